"""The tokenizer of a released folder, as a fast one, with the same ids.

Released folders carry a sentencepiece model (BPE) and JSON files with the added tokens. Here its pieces become a
`tokenizers` BPE: every way a piece splits into two pieces is a merge, ordered by the piece's score. Flags and ids are
read from the folder. Fast tokenizers give character offsets, which labels need.
"""

from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ..errors import CheckpointError
from .layouts.configuration import read_json

SPACE = "▁"  # sentencepiece writes a space like this
_NORMAL, _USER_DEFINED = 1, 4  # piece types of sentencepiece
_KINDS = ("InternLM2Tokenizer", "LlamaTokenizer")


def load_tokenizer(folder):
    """Folder with `tokenizer.model` → fast tokenizer with the released ids.

    Raises: CheckpointError if files are missing or the tokenizer is of a kind whose rules we don't know.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    config = read_json(path, f"{path}: missing; expected the tokenizer files of a released folder")
    kind = config.get("tokenizer_class", "").removesuffix("Fast")
    if kind not in _KINDS:
        raise CheckpointError(f"{folder}: tokenizer_class {kind!r}; expected one of {', '.join(_KINDS)}")
    if kind == "LlamaTokenizer" and config.get("legacy", True) is not False:
        raise CheckpointError(f"{folder}: a legacy Llama tokenizer; expected `legacy: false`, as released")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    for name in ("added_tokens_decoder", *names):
        if not config.get(name):
            raise CheckpointError(f"{path}: no `{name}`; expected it, as released")
    proto = _read_model(folder / "tokenizer.model")
    special = {name: token["content"] if isinstance(token := config[name], dict) else token for name in names}
    return PreTrainedTokenizerFast(
        tokenizer_object=_build(proto, config, special),
        **special,
        additional_special_tokens=config.get("additional_special_tokens", []),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _build(proto, config, special):
    pieces = [piece.piece for piece in proto.pieces]
    added = {int(number): token for number, token in config["added_tokens_decoder"].items()}
    for number, token in added.items():  # chat tokens override unused pieces of the sentencepiece model
        if number < len(pieces):
            pieces[number] = token["content"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    rules = {"unk_token": special["unk_token"], "fuse_unk": True, "byte_fallback": proto.trainer_spec.byte_fallback}
    backend = Tokenizer(BPE(vocabulary, _merges(proto, vocabulary), **rules))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    has_prefix = proto.normalizer_spec.add_dummy_prefix
    if has_prefix:
        backend.pre_tokenizer = _space_before_all()
    backend.decoder = _decoder(strips_prefix=has_prefix, cleaned=config["tokenizer_class"].startswith("InternLM2"))
    user_defined = [
        AddedToken(piece.piece, normalized=False, special=False)
        for number, piece in enumerate(proto.pieces)
        if piece.type == _USER_DEFINED and number not in added
    ]
    backend.add_tokens(user_defined)
    flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
    tokens = [added[number] for number in sorted(added)]
    backend.add_special_tokens([AddedToken(one["content"], **{flag: one[flag] for flag in flags}) for one in tokens])
    for number, token in added.items():
        if (found := backend.token_to_id(token["content"])) != number:
            raise CheckpointError(
                f"token {token['content']} got id {found}; expected {number} as in the folder's files"
            )
    bos = special["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def _space_before_all():
    """A space before the very first character only.

    Two steps, because Metaspace alone adds none to a text that begins with a space: the first prepends " " (no other
    space is left), the second writes it as "▁".
    """
    first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
    second = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    return pre_tokenizers.Sequence([first, second])


def _merges(proto, vocabulary):
    """All (left, right) with left + right a piece, best score first; equal scores keep the order of ids."""
    merges = []
    for piece in proto.pieces:
        if piece.type != _NORMAL or len(piece.piece) < 2:
            continue
        for cut in range(1, len(piece.piece)):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-piece.score, vocabulary[piece.piece], left, right))
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]


# The released InternLM2 tokenizer always joins these when it decodes ("chat ?" becomes "chat?"): so replies are equal.
_CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
_CLEANED |= {" 've": "'ve", " 're": "'re"}


def _decoder(*, strips_prefix, cleaned):
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    if cleaned:
        steps += [decoders.Replace(found, written) for found, written in _CLEANED.items()]
    return decoders.Sequence(steps)


@lru_cache(maxsize=4)
def _read_model(path):
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; expected the sentencepiece model of the tokenizer") from error
    except DecodeError as error:
        raise CheckpointError(f"{path}: not a sentencepiece model ({error}); copy the file again") from error
    return proto
