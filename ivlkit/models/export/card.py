"""The model card of an export: what it was trained on and how, what was proven, how to serve it as it was trained."""

from pathlib import Path

import yaml
from jinja2 import Template

from ...data.files import sha256
from ...data.rows.records import IMAGE_PLACEHOLDER
from ...hardware import package_version
from ..layouts.configuration import write_json
from .chat_template import chat_template, lmdeploy_template

CONTEXT_TOKENS = 8192
PHI3_CONTEXT_TOKENS = 4096  # vLLM chooses Phi-3's rope factors once, by this number: more would take the long ones
_CARD = Path(__file__).with_name("card.md.jinja")
_PACKAGES = ("ivlkit", "torch", "transformers", "peft", "safetensors")


def write_card(source, folder, *, layout, proof, base=None, scores=None):
    """Write README.md from `card.md.jinja`.

    Args:
        source: the `OpenedModel` that was exported.
        proof: its `Proof`.
        base: dict of the base of an adapter.
        scores: {"VQA accuracy on test.jsonl": 0.61}, if there are any.
    """
    run, processor, proof = read_run(source.folder), source.processor, str(proof)
    recipe = run and run["recipe"] | {"model": str(run["recipe"]["model"]).rpartition("/")[2]}
    is_phi3 = source.config["llm_config"]["architectures"] == ["Phi3ForCausalLM"]
    versions = {name: package_version(name, missing="run from its sources") for name in _PACKAGES}
    hashes = {path.name: f"sha256 `{sha256(path)}`" for path in sorted(folder.glob("*.safetensors"))}
    card = Template(_CARD.read_text(encoding="utf-8"), keep_trailing_newline=True).render(
        title=f"{recipe['name']}: {processor.family.name}, fine-tuned" if run else source.folder.name,
        layout=layout,
        processor=processor,
        family=processor.family,
        dtype=str(source.dtype).split(".")[-1],
        base=base,
        quantized=source.quantized,
        run=run,
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        scores=scores,
        is_phi3=is_phi3,
        context=PHI3_CONTEXT_TOKENS if is_phi3 else CONTEXT_TOKENS,
        tiles=processor.max_tiles if processor.dynamic else 1,
        has_code=any(folder.glob("*.py")),
        proof=proof[0].upper() + proof[1:],
        licences=", ".join(f"`{path.name}`" for path in sorted(folder.glob("LICENSE*"))),
        versions=versions | hashes,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_templates(processor, folder):
    """The trained prompt for servers: a Jinja chat template and LMDeploy's file."""
    text = chat_template(processor.template, processor.system_message, image=IMAGE_PLACEHOLDER)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    write_json(folder / "lmdeploy.json", lmdeploy_template(processor.template, processor.system_message))


def read_run(folder):
    """run.yaml of a run's `final/` as a dict; None for any other folder."""
    path = folder.parent / "run.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if folder.name == "final" and path.exists() else None
