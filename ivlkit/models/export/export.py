"""A run → a folder of its own, in one of three layouts. It appears only when it is complete and has proven itself."""

import json
import shutil
from pathlib import Path

import torch

from ...data.datasets.opening import open_data
from ...data.rows.records import IMAGE_PLACEHOLDER
from ...errors import ExportError
from ..families import DOWNLOAD_FILE, FAMILIES
from ..layouts.safetensors_files import (
    appearing_or_said,
    check_is_new,
    check_space,
    fingerprint,
    total_bytes,
    write_shards,
)
from ..layouts.weight_files import Fused, read_weight_files
from ..load import ORIGIN_FILE, VLM, find_base, load, quiet_if_small, read_origin
from .card import read_run, write_card, write_templates
from .handover import check_handover, write_handover
from .hf_layout import check_hf, write_hf
from .lazy_weights import open_source
from .proof import Proof, ask, check_tensors, choose_place, compare, count_equal, largest_difference, unround

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NOT_COPIED = {"config.json", "model.safetensors.index.json", ORIGIN_FILE, DOWNLOAD_FILE, "README.md"}
_COPIED_SUFFIXES = {".json", ".model", ".py", ".txt"}
_COPIED_STEMS = {"LICENSE", "NOTICE"}


def export(source, to, *, layout="released", scores=None, device=None, handover=False, test=None, report=None):
    """Write a model as a folder of its own: adapter merged, saved, reloaded, compared, described in README.md.

    Weights are read, merged in float32 and written tensor by tensor: beside the proof, memory holds one shard. The
    proof loads one model at a time, in float32 if that fits.

    Args:
        source: a `Run`, its folder, any folder `load` takes, or a loaded `VLM` (left as it is). Pass
            the loaded model where its base is in 4 or 8 bits: these weights are what the adapter was trained on, so
            they are made whole before it is folded in. An adapter trained on float8 goes into the original weights:
            pass its run; the card tells how far replies are from those on float8.
        to: the new folder; it must not exist. Killed at any moment, there is no such folder, or a complete one.
        layout: "released", which the original code and the serving tools read; "adapter", tens of MB for someone who
            has the base; "transformers", which plain transformers reads.
        scores: {"what was measured": number} for the model card.
        device: of the proof; default the GPU if there is one.
        handover: of a run, also write `handover/` for a colleague: labels and split as tables, run.yaml, the report,
            the test rows with their pictures (PNG, without metadata), and a notebook to load, ask and score.
        test, report: the test rows (what `open_data` gives, or a path), and what `evaluate` found on them.
    Returns: the folder.
    Raises: ExportError if the disk is too small, the layout can't hold the model, or the reloaded model differs.
    """
    if layout not in _LAYOUTS:
        raise ExportError(f"layout {layout!r}; expected one of {', '.join(_LAYOUTS)}")
    to = Path(to)
    check_is_new(to)
    test = open_data(test) if isinstance(test, (str, Path)) else test
    if handover:
        check_handover(source, test, report)
    opened = open_source(source)
    write, reload = _LAYOUTS[layout]
    with appearing_or_said(to) as aside:
        base = write(opened, source, aside)
        for path in opened.processor.folder.iterdir():
            if path.stem in _COPIED_STEMS:
                shutil.copyfile(path, aside / path.name)
        proof = _prove(opened, source, aside, reload, device, merges=layout != "adapter")
        write_card(opened, aside, layout=layout, proof=proof, base=base, scores=scores)
        if handover:
            write_handover(aside / "handover", source, opened, test=test, report=report)
    return to


def save_released(vlm, folder):
    """Write weights, config.json and every small file of the original folder, `*.py` byte for byte. No proof, no card.

    Weights are written in the dtype config.json names; the system prompt is stored. See `export`.

    Args: vlm: a `VLM`; an adapter is folded in, in the file only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_released(open_source(vlm), folder)


def push_to_hub(folder, repo_id, *, private=True):
    """Upload an exported folder to the hub: the only thing here that sends anything, and only when it is called.

    Args: repo_id: "name/model"; private: of a repository that doesn't exist yet.
    Returns: its address. Raises: ExportError for a folder that `export` did not write.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "README.md").exists() or not list(folder.glob("*.safetensors")):
        raise ExportError(f"{folder}: no model card beside weights; expected an exported folder; export first")
    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(folder_path=folder, repo_id=repo_id)
    return str(address)


# layouts -------------------------------------------------------------------------------------------------------------


def _write_whole_released(opened, _, folder):
    check_space(folder, total_bytes(opened.shapes, opened.dtype))
    write_released(opened, folder)
    write_templates(opened.processor, folder, image=IMAGE_PLACEHOLDER)


def write_released(opened, folder):
    """The released files of a `Source`, without card and server templates."""
    fused = Fused(opened.weights, opened.config)
    write_shards(fused, fused.shapes(opened.shapes), folder, dtype=opened.dtype)
    changes = {
        "use_llm_lora": 0,
        "use_backbone_lora": 0,
        "system_message": opened.processor.system_message,
        "max_dynamic_patch": opened.processor.max_tiles,
    }
    (folder / "config.json").write_text(json.dumps(opened.config | changes, indent=2, ensure_ascii=False) + "\n")
    _copy_small_files(opened.processor.folder, folder)


def _copy_small_files(source, folder):
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED_SUFFIXES or path.stem in _COPIED_STEMS
        if wanted and path.name not in _NOT_COPIED and path.resolve() != (folder / path.name).resolve():
            shutil.copyfile(path, folder / path.name)


def _write_hf(opened, _, folder):
    check_hf(opened)
    check_space(folder, total_bytes(opened.shapes, opened.dtype))
    write_hf(opened, folder)


def _write_adapter(opened, source, folder):
    """The adapter, what it belongs to, and how it is asked; returns what is known of its base."""
    loaded = source.adapter if isinstance(source, VLM) else None
    if loaded is None and (isinstance(source, VLM) or not opened.has_adapter):
        raise ExportError(f'{opened.folder}: no adapter; expected a LoRA run; use layout="released"')
    base = describe_base(opened.folder)
    if loaded is not None:
        loaded.save_pretrained(folder, save_embedding_layers=False)
    else:
        for name in ADAPTER_FILES:
            shutil.copyfile(opened.folder / name, folder / name)
    _name_base(folder / ADAPTER_FILES[0], base)
    for path in sorted(opened.processor.folder.glob("*token*")):
        shutil.copyfile(path, folder / path.name)
    processor = opened.processor
    settings = {
        "template": processor.template.name,
        "system_message": processor.system_message,
        "tile_px": processor.tile_px,
        "max_tiles": processor.max_tiles,
        "min_tiles": processor.min_tiles,
        "use_thumbnail": processor.use_thumbnail,
    }
    text = json.dumps((opened.origin or {}) | settings | base, indent=1, ensure_ascii=False)
    (folder / ORIGIN_FILE).write_text(text + "\n", encoding="utf-8")
    return base


def _name_base(path, base):
    """PEFT's file names the base by its folder on this machine, which is no one else's business."""
    family = FAMILIES.get(base["base"])
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = (family and family.hub_id) or base["base_name"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_base(folder):
    """{"base", "base_name", "base_revision", "base_fingerprint"} of the model an adapter in `folder` was trained on.

    Raises: ExportError if that is a run itself: no one else has it.
    """
    base = find_base(folder)
    if read_origin(base) is not None:
        raise ExportError(
            f"{folder}: its adapter was trained on another run ({base}); expected a released model as base, which a "
            'colleague can have; use layout="released"'
        )
    keys = [family.key for family in FAMILIES.values() if family.name == base.name]
    key = keys[0] if keys else read_origin(folder)["base"]
    try:
        revision = json.loads((base / DOWNLOAD_FILE).read_text())["revision"]
    except (OSError, ValueError, KeyError):
        revision = None
    return {
        "base": key,
        "base_name": FAMILIES[key].name if key in FAMILIES else base.name,
        "base_revision": revision,
        "base_fingerprint": fingerprint(read_weight_files(base)),
    }


# proof ---------------------------------------------------------------------------------------------------------------


def _prove(opened, source, aside, reload, device, *, merges):
    """One model in memory at a time: the source answers, then the export."""
    loaded = isinstance(source, VLM)
    if loaded:
        device, dtype = source.model.device, source.model.dtype
        vlm = source
    else:
        device, dtype = choose_place(total_bytes(opened.shapes, torch.uint8), device)  # at one byte: parameters
        vlm = load(opened.folder, device=device, dtype=dtype)
    before = ask(vlm.model, opened.processor)
    if not loaded:
        vlm.release()
    del vlm
    as_trained = None if loaded else _ask_in_float8(opened, device, dtype)
    model = reload(aside, device, dtype)
    written = ask(model, opened.processor)
    tensors = 0
    if merges:
        tensors = check_tensors(model, opened)
        unround(model, opened)
    after = ask(model, opened.processor) if merges else written
    return Proof(
        where=f"{dtype} on {device.type}".replace("torch.", ""),
        largest_difference=compare(before, after, dtype=dtype, what="merging" if merges else "reloading the adapter"),
        equal_replies=count_equal(before, written),
        samples=len(before.replies),
        tensors=tensors,
        from_float8=as_trained and (largest_difference(as_trained, after), count_equal(as_trained, written)),
    )


def _ask_in_float8(opened, device, dtype):
    """What a run that trained on float8 answers as it was trained; None for any other."""
    run = read_run(opened.folder)
    if not run or run["recipe"].get("weights") != "float8":
        return None
    vlm = load(opened.folder, device=device, dtype=dtype, quantize="float8")
    answers = ask(vlm.model, opened.processor)
    vlm.release()
    return answers


def _reload(folder, device, dtype):
    return load(folder, device=device, dtype=dtype).model


def _reload_hf(folder, device, dtype):
    """As anyone would: no class of ours."""
    from transformers import AutoModelForImageTextToText

    with quiet_if_small(folder):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


_LAYOUTS = {
    "released": (_write_whole_released, _reload),
    "adapter": (_write_adapter, _reload),
    "transformers": (_write_hf, _reload_hf),
}
