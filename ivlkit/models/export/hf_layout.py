"""The `-hf` kind of folder: transformers' own keys, configuration, fast tokenizer, chat template and processor."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from ...data.collate import IMAGENET_MEAN, IMAGENET_STD
from ...data.rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from ...data.rows.records import Turn
from ...errors import ExportError
from ..chat import MAX_NEW_TOKENS
from ..decoding import KEPT_TOKENS
from ..layouts.configuration import read_json, write_json
from ..layouts.safetensors_files import write_shards
from ..layouts.weight_files import Lazy
from .chat_template import chat_template

BICUBIC = 3  # PIL's number of the filter
_ON_DISK = {  # as `save_pretrained` of the plain class writes them: servers look for these
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


def write_hf(source, folder):
    """Write everything but the card.

    Raises: ExportError for what transformers' own classes would compute otherwise or not at all, and for a full disk.
    """
    folder, config, processor = Path(folder), source.config, source.processor
    many = processor.dynamic and processor.max_tiles > 1
    for field, found, expected in (
        ("ps_version", config.get("ps_version"), "v2"),
        ("select_layer", config.get("select_layer", -1), -1),
        ("use_thumbnail", processor.use_thumbnail or not many, True),
    ):
        if found != expected:
            raise ExportError(
                f"config.json: `{field}` is {found!r}; transformers' own InternVL knows {expected!r} only; use "
                'layout="released", which keeps it'
            )
    on_disk = {_on_disk(key): key for key in source.shapes}
    shapes = {name: source.shapes[key] for name, key in on_disk.items()}
    write_shards(Lazy(on_disk, source.weights.__getitem__), shapes, folder, dtype=source.dtype)
    _write_config(source, folder)
    _write_tokenizer(processor, folder)
    check_tokenizer(folder, processor)
    _write_processor(processor, folder)


def check_tokenizer(folder, processor):
    """Raise ExportError if the saved tokenizer and template do not turn stored questions into this model's ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in ("Hello, who are you?", "  <ref>北京</ref><box>[[1, 2, 3, 4]]</box>?\n\n"):
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ours = processor.render([Turn("user", question)]).text
        if tokenizer(text, add_special_tokens=False)["input_ids"] != processor.tokenizer(ours)["input_ids"]:
            raise ExportError(f"the saved tokenizer reads {question!r} as other ids; nothing was written")


def _on_disk(key):
    """ "model.vision_tower.….weight" → "vision_tower.….weight"."""
    prefix = next(prefix for prefix in _ON_DISK if key.startswith(prefix))
    return _ON_DISK[prefix] + key.removeprefix(prefix)


def _write_config(source, folder):
    processor, config = source.processor, source.hf.to_dict()
    for name in ("ps_version", "_name_or_path", "_attn_implementation"):
        config.pop(name, None)
    config |= {"architectures": ["InternVLForConditionalGeneration"], "dtype": str(source.dtype).split(".")[-1]}
    write_json(folder / "config.json", config)
    tokenizer = processor.tokenizer
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": processor.token_id(processor.template.end),
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    write_json(folder / "generation_config.json", generation)


def _write_tokenizer(processor, folder):
    """The same ids; box tokens lose the flag "special", so that a reply's boxes survive `skip_special_tokens=True`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = processor.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in KEPT_TOKENS
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    saved = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        **{name: getattr(tokenizer, name) for name in names},
        extra_special_tokens=_named_tokens(processor),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
    saved.save_pretrained(folder)
    path, names = folder / "tokenizer_config.json", {"processor_class": "InternVLProcessor"}
    write_json(path, read_json(path) | names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    text = chat_template(processor.template, processor.system_message)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _named_tokens(processor):
    """What transformers' processor asks its tokenizer for. These models know no videos: a token that no text holds."""
    unused = ("<|plugin|>", "<|placeholder1|>", "<quad>")
    known = processor.tokenizer.get_vocab()
    named = {"start_image_token": IMAGE_START, "end_image_token": IMAGE_END, "context_image_token": IMAGE_CONTEXT}
    return named | {"video_token": next(token for token in unused if token in known)}


def _write_processor(processor, folder):
    side = {"height": processor.tile_px, "width": processor.tile_px}
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": side,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "processor_class": "InternVLProcessor",
    }
    tiling = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": processor.dynamic,
        "min_patches": processor.min_tiles if processor.dynamic else 1,
        "max_patches": processor.max_tiles if processor.dynamic else 1,
    }
    write_json(folder / "preprocessor_config.json", pixels | tiling)
    video = {"video_processor_type": "InternVLVideoProcessor"}
    write_json(folder / "video_preprocessor_config.json", pixels | video)
    sizes = {"processor_class": "InternVLProcessor", "image_seq_length": processor.num_image_token}
    write_json(folder / "processor_config.json", sizes)
