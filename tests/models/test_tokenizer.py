"""The fast tokenizer has the ids of the released one: against its outputs, and against sentencepiece itself."""

import json
import random
import shutil

import pytest
import sentencepiece

from ivlkit.errors import CheckpointError
from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.tokenizer import load_tokenizer

WORDS = [
    "What",
    " is",
    " the",
    "number",
    "  ",
    "   ",
    " ",
    "\t",
    "\n",
    "\n\n",
    ".",
    " ?",
    "!",
    "1",
    "407",
    "e",
    "aaaa",
    "zzzz",
]
WORDS += [
    "图中",
    "有",
    "一只猫",
    "。",
    "，",
    "こんにちは",
    "한국어",
    "Привет",
    "мир",
    "عدد",
    "é",
    "ﬁ",
    "½",
    "℃",
    "\u3000",
    "\u200d",
]
WORDS += [
    "😀",
    "🍠",
    "👨‍👩‍👧",
    "鳔",
    "▁",
    "<",
    ">",
    "|",
    "<|",
    "im",
    "end",
    "x**2",
    "{}",
    "\\n",
    "-----",
    "=====",
    "\u0301",
    "\x07",
]


def texts(count, seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(1, 14))) for _ in range(count)]


@pytest.fixture(scope="module")
def nano():
    return load_tokenizer(NANO_FOLDER)


@pytest.fixture(scope="module")
def phi3(reference):
    return load_tokenizer(reference / "checkpoints" / "internvl-4b")


@pytest.mark.parametrize(("name", "model"), [("internlm2", "2b"), ("internlm2", "26b"), ("phi3", "4b")])
def test_ids_and_decodings_are_those_of_the_reference(reference, name, model):
    tokenizer = load_tokenizer(reference / "checkpoints" / f"internvl-{model}")
    cases = json.loads((reference / "tokens.json").read_text())[name]
    assert len(cases) == 60
    for case in cases:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded"]


def test_nano_ids_are_those_of_sentencepiece(nano):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(NANO_FOLDER / "tokenizer.model"))
    for text in [*texts(600, seed=0), "", " ", "  a", "a ", " a  b ", "\t a"]:
        assert nano(text)["input_ids"] == [1, *pieces.encode(text)], repr(text)


def test_internlm2_ids_are_those_of_sentencepiece(reference):
    folder = reference / "checkpoints" / "internvl-2b"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    for text in texts(400, seed=1):
        assert tokenizer(text)["input_ids"] == [1, *pieces.encode(text)], repr(text)


def test_phi3_free_text_is_sentencepiece_behind_one_space(phi3, reference):
    """The non-legacy Llama rule: one "▁" before the text, whatever it begins with, and no other change."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString((reference / "checkpoints" / "internvl-4b" / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    for text in texts(400, seed=2):
        assert phi3(text)["input_ids"] == [1, *pieces.encode("▁" + text)], repr(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a b", ["▁a", "▁b"]),
        (" a", ["▁", "▁a"]),
        ("  a", ["▁▁", "▁a"]),
        ("   ", ["▁▁▁▁"]),
        ("\ta", ["▁", "<0x09>", "a"]),
        ("<|user|>\nHi", ["<|user|>", "Hi"]),  # the role token swallows whitespace behind it
        ("<|user|>\n  Hi", ["<|user|>", "Hi"]),
        ("Hi <|end|>", ["▁Hi", "▁", "<|end|>"]),
    ],
)
def test_phi3_spaces_by_hand(phi3, text, pieces):
    assert phi3.convert_ids_to_tokens(phi3(text)["input_ids"]) == ["<s>", *pieces]


def test_nano_has_the_released_special_tokens(nano):
    names = ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</box>"]
    assert nano.convert_tokens_to_ids(names) == [1, 2, 1385, 1386, 1387, 1388, 1389, 1392, 1395]
    assert (nano.bos_token, nano.eos_token, nano.pad_token, nano.unk_token) == ("<s>", "</s>", "</s>", "<unk>")


def test_released_ids_of_special_tokens(reference):
    internlm2 = load_tokenizer(reference / "checkpoints" / "internvl-26b")
    names = ["<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "</box>"]
    assert internlm2.convert_tokens_to_ids(names) == [92542, 92543, 92544, 92545, 92546, 92552]
    assert internlm2.pad_token_id == 2
    phi3 = load_tokenizer(reference / "checkpoints" / "internvl-4b")
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<img>", "<IMG_CONTEXT>", "</box>"]
    assert phi3.convert_tokens_to_ids(names) == [32000, 32001, 32006, 32007, 32010, 32011, 32013, 32019]
    assert phi3.pad_token_id == 32000


def test_special_tokens_are_cut_out_of_any_text(nano):
    ids = nano("a<|im_end|>b<IMG_CONTEXT><IMG_CONTEXT>")["input_ids"]
    assert nano.convert_ids_to_tokens(ids) == ["<s>", "a", "<|im_end|>", "b", "<IMG_CONTEXT>", "<IMG_CONTEXT>"]


def test_offsets_are_characters_of_the_text(nano):
    text = "<|im_start|>What é 🍠 7<|im_end|>"
    encoded = nano(text, return_offsets_mapping=True)
    covered = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert covered[:3] == ["", "<|im_start|>", "What"]
    assert covered.count("🍠") == 4  # a token a byte, each with its whole character
    assert covered[-1] == "<|im_end|>"


def test_decoding_gives_any_text_back(nano):
    for text in ("407", "a  b", "naïve\tcafé", "🍠鳔", "x = a[0] * {b};"):
        assert nano.decode(nano(text)["input_ids"][1:]) == text


def test_internlm2_decoding_joins_punctuation_as_released(nano):
    assert nano.decode(nano("Well , who 's there ?")["input_ids"][1:]) == "Well, who's there?"


@pytest.fixture
def folder(tmp_path):
    for path in NANO_FOLDER.iterdir():
        if path.suffix in (".json", ".model"):
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def change(folder, **fields):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "left out"}))


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing; expected the"):
        load_tokenizer(folder)


def test_a_broken_model_or_config_is_named(folder):
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a sentencepiece model .*copy the file again"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: broken JSON"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "tokenizer_class 'Qwen2Tokenizer'; expected one of InternLM2Tokenizer"),
        ({"tokenizer_class": "left out"}, "tokenizer_class ''; expected one of"),
        ({"tokenizer_class": "LlamaTokenizer"}, "a legacy Llama tokenizer; expected `legacy: false`"),
        ({"added_tokens_decoder": "left out"}, "tokenizer_config.json: no `added_tokens_decoder`"),
        ({"pad_token": "left out"}, "tokenizer_config.json: no `pad_token`"),
    ],
)
def test_a_tokenizer_whose_rules_are_not_known_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)


def test_an_added_token_that_gets_another_id_is_refused(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = config["added_tokens_decoder"]
    tokens["2000"] = tokens.pop("1395")
    change(folder, added_tokens_decoder=tokens)
    with pytest.raises(CheckpointError, match="token </box> got id 1395; expected 2000 as in the folder's files"):
        load_tokenizer(folder)
