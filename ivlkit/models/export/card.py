"""The model card of an export: what it was trained on and how, what was proven, how to serve it as it was trained."""

import json
import shlex

import yaml

from ...data.files import sha256
from ...data.rows.records import IMAGE_PLACEHOLDER
from ...hardware import package_version
from ..layouts.configuration import write_json
from .chat_template import chat_template, lmdeploy_template

CONTEXT_TOKENS = 8192
PHI3_CONTEXT_TOKENS = 4096  # vLLM chooses Phi-3's rope factors once, by this number: more would take the long ones
LMDEPLOY_FILE, JINJA_FILE = "lmdeploy.json", "chat_template.jinja"
_PACKAGES = ("ivlkit", "torch", "transformers", "peft", "safetensors")
_READS_RELEASED = (
    "The original code, vLLM, LMDeploy, SGLang and `ivlkit.load` read this folder: InternVL 1.5's own layout. "
    'transformers\' own classes (`AutoModel…`) read an export with `layout="transformers"` instead.'
)
_INTRODUCTIONS = {
    "released": _READS_RELEASED,
    "transformers": "`transformers` reads this folder with its own classes; no code comes with it.",
    "adapter": "An adapter: it needs the base named below. `ivlkit.load` puts both together.",
}


def write_card(source, folder, *, layout, proof, base=None, scores=None):
    """Write README.md.

    Args:
        source: the `Source` that was exported.
        proof: its `Proof`.
        base: dict of the base of an adapter.
        scores: {"VQA accuracy on test.jsonl": 0.61}, if there are any.
    """
    title, data, recipe = _of_run(source, read_run(source.folder))
    versions = {name: package_version(name, missing="run from its sources") for name in _PACKAGES}
    hashes = {path.name: f"sha256 `{sha256(path)}`" for path in sorted(folder.glob("*.safetensors"))}
    asking = _ASK_TRANSFORMERS.replace("CONTEXT_TOKENS", str(source.processor.num_image_token))
    licences = ", ".join(f"`{path.name}`" for path in sorted(folder.glob("LICENSE*")))
    licence = f"in {licences}." if licences else "which its page names: its folder held no licence file."
    sections = {
        "What it is": _table(_facts(source, base)),
        "Data": data,
        "Recipe": recipe,
        "Scores": _table(scores) if scores else "None were given to the export.",
        "Ask it": asking if layout == "transformers" else _ASK,
        "Serve it": _serve(source, folder, layout),
        "What was proven": f"{str(proof)[0].upper()}{str(proof)[1:]}.",
        "Before you share it": _SHARING + licence,
        "Versions and hashes": _table(versions | hashes),
    }
    parts = [f"# {title}", _INTRODUCTIONS[layout], *(f"## {name}\n\n{text}" for name, text in sections.items())]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_templates(processor, folder):
    """The trained prompt for servers: a Jinja chat template and LMDeploy's file."""
    text = chat_template(processor.template, processor.system_message, image=IMAGE_PLACEHOLDER)
    (folder / JINJA_FILE).write_text(text, encoding="utf-8")
    write_json(folder / LMDEPLOY_FILE, lmdeploy_template(processor.template, processor.system_message))


def serving_commands(source, layout):
    """{server: command or the reason why there is none}: all with the tile limit and the prompt it was trained with."""
    if layout == "adapter":
        return {"every server": 'export with layout="released": servers want the adapter merged'}
    is_phi3 = source.processor.family.language_class == "Phi3ForCausalLM"
    tokens = PHI3_CONTEXT_TOKENS if is_phi3 else CONTEXT_TOKENS
    tiles = source.processor.max_tiles if source.processor.dynamic else 1
    limit = {"max_dynamic_patch" if layout == "released" else "max_patches": tiles}
    code = " --trust-remote-code" if layout == "released" else ""
    vllm = f"vllm serve FOLDER{code} --max-model-len {tokens} --chat-template FOLDER/{JINJA_FILE}"
    commands = {"vLLM": f"{vllm} --mm-processor-kwargs {shlex.quote(json.dumps(limit))}"}
    if layout == "transformers":
        other = 'export with layout="released"'
        return {"transformers": "transformers serve FOLDER"} | commands | {"LMDeploy": other, "SGLang": other}
    lmdeploy = f"lmdeploy serve api_server FOLDER --session-len {tokens} --chat-template FOLDER/{LMDEPLOY_FILE}"
    sglang = (
        f"python -m sglang.launch_server --model-path FOLDER --trust-remote-code --context-length {tokens} "
        f"--chat-template FOLDER/{JINJA_FILE}"
    )
    return commands | {
        "LMDeploy": lmdeploy,
        "SGLang": "its InternVL has no Phi-3 language model" if is_phi3 else sglang,
    }


def read_run(folder):
    """run.yaml of a run's `final/` as a dict; None for any other folder."""
    path = folder.parent / "run.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if folder.name == "final" and path.exists() else None


def _table(values):
    lines = [f"| {key} | {value} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _facts(source, base):
    processor = source.processor
    facts = {
        "family": f"`{processor.family.key}`: {processor.family.vision} + {processor.family.language}",
        "weights": str(source.dtype).split(".")[-1],
        "template": f"`{processor.template.name}`",
        "system prompt": processor.system_message,
        "tiles": f"at most {processor.max_tiles} of {processor.tile_px} px"
        + (", and a thumbnail" if processor.use_thumbnail else ""),
    }
    if base:
        revision = base["base_revision"] or "not recorded"
        facts["base"] = f"{base['base_name']}, revision {revision}, fingerprint `{base['base_fingerprint']}`"
    if source.quantized:
        facts["quantised base"] = "its 4- or 8-bit weights were made whole before the adapter was folded in"
    return facts


def _of_run(source, run):
    """(title, data, recipe) as Markdown."""
    if not run:
        return source.folder.name, *["Not from a run: nothing is known."] * 2
    data, recipe = run["data"], run["recipe"] | {"model": str(run["recipe"]["model"]).rpartition("/")[2]}
    return (
        f"{recipe['name']}: {source.processor.family.name}, fine-tuned",
        f"{data['rows']:,} rows of `{data['path'].rpartition('/')[2]}`, fingerprint `{data['fingerprint']}`.",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```",
    )


_ASK = """```python
import ivlkit

print(ivlkit.load("FOLDER").chat("What is shown?", images="picture.png"))
```"""
_ASK_TRANSFORMERS = """```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
processor.image_processor = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")
content = [{"type": "image", "image": Image.open("picture.png")}, {"type": "text", "text": "What is shown?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
ids = model.generate(**inputs.to(model.device, model.dtype))[0, inputs["input_ids"].shape[1]:]
print(processor.decode(ids, skip_special_tokens=True).strip())
```

`AutoProcessor` needs torchvision, because transformers' InternVL processor carries one for videos. Without torchvision
its two halves load on their own and give the same (`model` as above):

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
pictures = AutoImageProcessor.from_pretrained("FOLDER", backend="pil")(Image.open("picture.png"), return_tensors="pt")
content = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
text = tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
count = CONTEXT_TOKENS * int(pictures["num_patches"][0])
text = text.replace("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * count + "</img>")
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
ids = model.generate(**inputs, pixel_values=pictures["pixel_values"].to(model.device, model.dtype))
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
```

`backend="pil"` cuts exactly the tiles of the training. Without that line transformers resizes with torchvision's
filter: the same grid of tiles, slightly other pixels. Several pictures in one message: transformers gives each the
whole tile budget, the training shared it between them; pass `max_patches` divided by their number."""


_SHARING = """Languages: the makers trained the base on English and Chinese conversations; measure before you train in
another.

Privacy: no picture is among these weights, but they, and an adapter too, can repeat text that they were trained on.

Licence: the base's own, """
_SERVED = """`transformers serve` needs `pip install 'transformers[serving]' torchvision`, one that fits torch.
It reads pictures with torchvision: the same tiles, slightly other pixels, so a reply may differ from the run's. Of
several pictures in a message each gets the whole tile limit, which the training shared between them."""


def _serve(source, folder, layout):
    lines = [
        "Written from the servers' own sources; the kit's tests run `transformers serve` alone. FOLDER is this folder. "
        "Every command carries the prompt and the tile limit of the training, and a system message of a request takes "
        "the prompt's place; LMDeploy and SGLang read the limit from config.json where their version does "
        "(`max_dynamic_patch`).",
        *([_SERVED] if layout == "transformers" else []),
        *(f"{server}:\n\n    {command}" for server, command in serving_commands(source, layout).items()),
    ]
    if layout == "released" and not list(folder.glob("*.py")):
        lines.append(
            "The servers want the `*.py` of the released model beside config.json; the folder this came from had none: "
            "copy them from the model's page first."
        )
    return "\n\n".join(lines)
