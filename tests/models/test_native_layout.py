"""The folder for plain transformers: its own keys, our prompt, our tiles, the same reply."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.rows.conversation import TEMPLATES, render
from ivlkit.data.rows.records import Turn
from ivlkit.errors import ExportError
from ivlkit.models.export.chat_template import chat_template
from ivlkit.models.export.export import export
from ivlkit.models.load import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nano in this layout. Don't write."""
    return export("nano", tmp_path_factory.mktemp("hf") / "nano", layout="transformers")


def test_the_files_are_those_of_an_hf_folder_and_the_keys_those_of_the_plain_class(folder, tmp_path):
    from transformers import AutoConfig, InternVLForConditionalGeneration

    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json"),
        *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    }
    config = AutoConfig.from_pretrained(folder)
    assert not hasattr(config, "ps_version")
    InternVLForConditionalGeneration(config).save_pretrained(tmp_path)
    expected, found = (safe_open(path / "model.safetensors", "pt") for path in (tmp_path, folder))
    assert set(found.keys()) == set(expected.keys())
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in found.keys()  # noqa: SIM118
    generation = json.loads((folder / "generation_config.json").read_text())
    end = load("nano").processor.token_id("<|im_end|>")
    assert (generation["eos_token_id"], generation["do_sample"], generation["max_new_tokens"]) == (end, False, 1024)


# the prompt ----------------------------------------------------------------------------------------------------------


def rendered(template, system_message, messages):
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    jinja = environment.from_string(chat_template(template, system_message))
    return jinja.render(messages=messages, bos_token="<s>", add_generation_prompt=messages[-1]["role"] == "user")


def as_messages(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(
    system=TEXTS,
    own=st.none() | TEXTS,
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
    asks=st.booleans(),
)
def test_the_jinja_template_writes_what_render_writes(name, system, own, pairs, asks):
    turns = [] if own is None else [Turn("system", own)]
    turns += [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns += [Turn("user", "And now?")] if asks else []
    expected = render(turns, TEMPLATES[name], system_message=system).text
    assert rendered(TEMPLATES[name], system, as_messages(turns)) == "<s>" + expected


def test_a_prompt_may_hold_the_names_that_the_jinja_template_is_filled_by():
    system, turns = "Mail to info@END@ivlkit or @USER_PREFIX@.", [Turn("user", "Q")]
    template = TEMPLATES["internlm2-chat"]
    expected = render(turns, template, system_message=system).text
    assert rendered(template, system, as_messages(turns)) == "<s>" + expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["image", "What?"], "<image>\nWhat?"),
        (["image", "image", "Which?"], "Image-1: <image>\nImage-2: <image>\nWhich?"),
        (["First <image>, then <image>: ", "which?", "image", "image"], "First <image>, then <image>: which?"),
        (["  Only text, with <image>. "], "  Only text, with <image>. "),
    ],
)
def test_pictures_stand_where_chat_puts_them(name, content, text):
    """Expanded by transformers' processor, `<IMG_CONTEXT>` becomes `<img>…</img>` of a picture's tiles."""
    pictures = content.count("image")
    parts = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in content]
    found = rendered(TEMPLATES[name], "S", [{"role": "user", "content": parts}])
    expanded = found.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 16 + "</img>")
    expected = render([Turn("user", text)], TEMPLATES[name], num_tiles=[1] * pictures, num_image_token=16)
    assert expanded == "<s>" + expected.text.replace(TEMPLATES[name].system_message, "S", 1)


def test_the_saved_tokenizer_renders_the_trained_prompt_and_gives_our_ids(folder):
    vlm, tokenizer = load("nano"), AutoTokenizer.from_pretrained(folder)
    turns = [Turn("user", "  What is shown? "), Turn("assistant", "<ref>a</ref> 北京\n"), Turn("user", "And <box>?")]
    text = tokenizer.apply_chat_template(as_messages(turns), tokenize=False, add_generation_prompt=True)
    ours = render(turns, vlm.processor.template, system_message=vlm.processor.system_message).text
    assert text == "<s>" + ours
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer(ours)["input_ids"] == vlm.tokenizer(ours)["input_ids"]


def test_a_tokenizer_that_reads_otherwise_is_refused(tiny, tmp_path, monkeypatch):
    from ivlkit.models.export import hf_layout as native_layout

    right = native_layout.chat_template
    monkeypatch.setattr(native_layout, "chat_template", lambda template, system: right(template, system + "!"))
    with pytest.raises(ExportError, match="the saved tokenizer reads 'Hello, who are you.' as other ids"):
        export(tiny, tmp_path / "out", layout="transformers")


def test_boxes_in_a_reply_survive_when_special_tokens_are_skipped(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("<ref>a cat</ref><box>[[1, 2, 3, 4]]</box><|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<ref>a cat</ref><box>[[1, 2, 3, 4]]</box>"


# pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(112, 112), (100, 90), (640, 480), (300, 900), (64, 48), (500, 110)])
def test_transformers_pil_processor_gives_our_pixels(folder, size):
    processor = load("nano").processor
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tiles = processor.tile(image, max_tiles=processor.max_tiles)
    expected = normalise_tiles(torch.from_numpy(tiles))
    found = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt")
    assert int(found["num_patches"][0]) == len(tiles)
    torch.testing.assert_close(found["pixel_values"], expected, atol=1e-5, rtol=0)


FRESH = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
folder, picture, question, whole = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": question}]
messages = [{"role": "user", "content": content}]
pil = AutoImageProcessor.from_pretrained(folder, backend="pil")
if whole == "whole":
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = pil
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **options)
    tokenizer = processor.tokenizer
else:
    pictures = pil(content[0]["image"], return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    count = 16 * int(pictures["num_patches"][0])
    text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * count + "</img>")
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt") | {"pixel_values": pictures["pixel_values"]}
ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
assert "ivlkit" not in sys.modules
reply = tokenizer.decode(ids, skip_special_tokens=True).strip()
print(json.dumps([reply, inputs["input_ids"][0].tolist()]))
"""


def has_torchvision():
    """Whether a torchvision is here that fits torch; one that doesn't breaks transformers, so it is asked outside."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0


@pytest.mark.parametrize("way", ["halves", "whole"])
@pytest.mark.parametrize("name", ["receipt", "shapes", "visitors"])
def test_a_fresh_process_of_plain_transformers_gives_the_same_reply(folder, tmp_path, way, name):
    if way == "whole" and not has_torchvision():
        pytest.skip("transformers' AutoProcessor for InternVL needs a torchvision that fits torch")
    vlm = load("nano")
    picture = Path(__file__).parents[2] / "data_templates" / "image" / "images" / f"{name}.png"
    expected = vlm.chat("What does the picture say?", picture)
    command = [sys.executable, "-c", FRESH, str(folder), str(picture), "What does the picture say?", way]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_without_ivlkit())
    assert done.returncode == 0, done.stderr
    reply, ids = json.loads(done.stdout.splitlines()[-1])
    assert reply == expected.text
    assert ids.count(vlm.processor.token_id("<IMG_CONTEXT>")) == 16 * expected.num_tiles[0]


def _without_ivlkit():
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}


# outputs of the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "name"), [("2b", "internlm2"), ("4b", "phi3")])
def test_the_saved_tokenizer_has_the_ids_of_the_reference(reference, tmp_path, key, name):
    out = export(reference / "checkpoints" / f"internvl-{key}", tmp_path / "out", layout="transformers")
    tokenizer = AutoTokenizer.from_pretrained(out)
    cases = json.loads((reference / "tokens.json").read_text())[name]
    kept = ("<ref>", "<box>", "<quad>")
    for case in cases:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        if not any(token in case["text"] for token in kept):  # ours keeps these, as `chat` does
            assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded"]


@pytest.mark.parametrize("length", [600, 4200])
def test_phi3_keeps_its_rope_factors_in_the_plain_class(reference, tmp_path, length):
    from transformers import AutoModelForImageTextToText

    base = reference / "checkpoints" / "internvl-4b"
    out = export(base, tmp_path / "out", layout="transformers")
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    expected = load_file(base / "long_context.safetensors")
    with torch.inference_mode():
        found = model(input_ids=expected[f"input_ids_{length}"].long(), logits_to_keep=4).logits[0]
    torch.testing.assert_close(found, expected[f"logits_last4_{length}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["26b", "2b", "4b"])
def test_plain_transformers_replies_as_the_reference_does(reference, tmp_path, key):
    """Greedy, to the two stored tiles without thumbnail: given one by one, for plain transformers always adds it."""
    from transformers import AutoModelForImageTextToText

    base = reference / "checkpoints" / f"internvl-{key}"
    out = export(base, tmp_path / "out", layout="transformers")
    asked, tiles = json.loads((base / "reference_chat.json").read_text()), load_file(base / "reference.safetensors")
    pictures = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles["tiles_uint8"]]
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer, pixels = AutoTokenizer.from_pretrained(out), AutoImageProcessor.from_pretrained(out, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": asked["question"]}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert asked["system_message"] in text
    text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 512 + "</img>")
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    pixel_values = pixels(pictures, return_tensors="pt")["pixel_values"]  # [2, 3, 448, 448]
    ids = model.generate(**inputs, pixel_values=pixel_values, max_new_tokens=asked["max_new_tokens"])
    reply = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert reply == asked["response"]


# what it can't hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "ps_version",
            "v1",
            "`ps_version` is 'v1'; transformers' own InternVL knows 'v2' only; use layout=",
        ),
        ("use_thumbnail", False, '`use_thumbnail` is False; .* use layout="released"'),
        ("select_layer", -2, '`select_layer` is -2; .* use layout="released"'),
    ],
)
def test_what_the_plain_class_would_compute_otherwise_is_refused(tiny, tmp_path, tiny_config, field, value, message):
    import shutil

    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(tiny_config | {field: value}))
    with pytest.raises(ExportError, match=message):
        export(base, tmp_path / "out", layout="transformers")
    assert not (tmp_path / "out").exists()
    export(base, tmp_path / "released")


def test_a_model_of_one_stretched_tile_stays_one(tiny, tmp_path, tiny_config):
    import shutil

    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(tiny_config | {"dynamic_image_size": False, "use_thumbnail": False}))
    folder = export(base, tmp_path / "out", layout="transformers")
    found = AutoImageProcessor.from_pretrained(folder, backend="pil")(Image.new("RGB", (640, 480)), return_tensors="pt")
    assert found["pixel_values"].shape == (1, 3, 112, 112)
