"""A run → a folder of its own, in one of three layouts. It appears only when it is complete and has proven itself."""

import shutil
from pathlib import Path

import torch

from ...data.datasets.opening import open_data
from ...errors import ExportError
from ..families import DOWNLOAD_FILE, FAMILIES
from ..hub.download import read_record
from ..hub.files import HTTP_ERROR
from ..layouts.configuration import read_json, write_json
from ..layouts.safetensors_files import fingerprint, new_folder, total_bytes, write_shards
from ..layouts.weight_files import fused, read_weight_files
from ..load import ADAPTER_CONFIG, ORIGIN_FILE, find_base, load, quiet_if_small, read_origin
from .card import read_run, write_card, write_templates
from .handover import check_handover, write_handover
from .hf_layout import write_hf
from .lazy_weights import open_source
from .proof import Proof, ask, check_and_unround, choose_place, compare, count_equal, largest_difference

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
        layout: "released", which the original code and the serving tools read; "adapter" (the 2B's: 69 MB) for someone
            who has the base; "transformers", which plain transformers reads.
        scores: {"what was measured": number} for the model card.
        device: of the proof; default the GPU if there is one with room.
        handover: of a run, also write `handover/` for a colleague: labels and split as tables, run.yaml, the report,
            the test rows with their pictures (PNG, without metadata), and a notebook to load, ask and score.
        test, report: the test rows (what `open_data` gives, or a path), and what `evaluate` found on them.
    Returns: the folder.
    Raises: ExportError if the disk is too small, the layout can't hold the model, or the reloaded model differs.
    """
    if layout not in _LAYOUTS:
        raise ExportError(f"layout {layout!r}; expected one of {', '.join(_LAYOUTS)}")
    if scores is not None and not isinstance(scores, dict):
        raise ExportError(f'scores={scores!r:.60}; expected names and numbers; write scores={{"exact match": 0.61}}')
    to = Path(to)
    test = None if test is None else open_data(test)
    if handover:
        check_handover(source, test, report)
    opened = open_source(source)
    write, reload = _LAYOUTS[layout]
    with new_folder(to) as aside:
        base = write(opened, aside)
        for path in opened.processor.folder.iterdir():
            if path.stem in _COPIED_STEMS:
                shutil.copyfile(path, aside / path.name)
        proof = _prove(opened, aside, reload, device, merges=layout != "adapter")
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

    `handover/` stays here, since it holds rows and pictures.

    Args: repo_id: "name/model"; private: of a repository that doesn't exist yet.
    Returns: its address. Raises: ExportError for a folder that `export` did not write, and for what the hub refused.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "README.md").exists() or not list(folder.glob("*.safetensors")):
        raise ExportError(f"{folder}: no model card beside weights; expected an exported folder; export first")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo_id, ignore_patterns="handover/*")
    except (HTTP_ERROR, OSError, ValueError) as error:
        raise ExportError(
            f"{folder}: is complete, but was not uploaded to {repo_id!r} ({error}); expected your name/model and a "
            "token that may write (hf auth login); upload it again with push_to_hub"
        ) from error
    return str(address)


# layouts -------------------------------------------------------------------------------------------------------------


def _write_released(opened, folder):
    write_released(opened, folder)
    write_templates(opened.processor, folder)


def write_released(opened, folder):
    """The released files of an `OpenedModel`, without card and server templates."""
    write_shards(*fused(opened.weights, opened.shapes, opened.config), folder, dtype=opened.dtype)
    prompt, max_tiles = opened.processor.system_message, opened.processor.max_tiles
    changes = {"use_llm_lora": 0, "use_backbone_lora": 0, "system_message": prompt, "max_dynamic_patch": max_tiles}
    write_json(folder / "config.json", opened.config | changes)
    for path in sorted(opened.processor.folder.iterdir()):
        wanted = path.suffix in _COPIED_SUFFIXES or path.stem in _COPIED_STEMS
        if wanted and path.name not in _NOT_COPIED and path.resolve() != (folder / path.name).resolve():
            shutil.copyfile(path, folder / path.name)


def _write_adapter(opened, folder):
    """The adapter, what it belongs to, and how it is asked; returns what is known of its base."""
    vlm = opened.vlm
    if not (vlm.adapter if vlm else (opened.folder / ADAPTER_CONFIG).exists()):
        raise ExportError(f'{opened.folder}: no adapter; expected a LoRA run; use layout="released"')
    base, processor = describe_base(opened.folder), opened.processor
    if vlm:
        vlm.adapter.save_pretrained(folder, save_embedding_layers=False)
    copied = [] if vlm else [opened.folder / name for name in (ADAPTER_CONFIG, "adapter_model.safetensors")]
    for path in (*copied, *processor.folder.glob("*token*")):
        shutil.copyfile(path, folder / path.name)
    # PEFT's file names the base by its folder on this machine, which is no one else's business.
    family, config = FAMILIES.get(base["base"]), read_json(folder / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = (family and family.hub_id) or base["base_name"]
    write_json(folder / ADAPTER_CONFIG, config)
    names = ("system_message", "tile_px", "max_tiles", "min_tiles", "use_thumbnail")
    settings = {"template": processor.template.name} | {name: getattr(processor, name) for name in names}
    write_json(folder / ORIGIN_FILE, (opened.origin or {}) | settings | base)
    return base


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
    return {
        "base": key,
        "base_name": FAMILIES[key].name if key in FAMILIES else base.name,
        "base_revision": (read_record(base) or {}).get("revision"),
        "base_fingerprint": fingerprint(read_weight_files(base)),
    }


# proof ---------------------------------------------------------------------------------------------------------------


def _prove(opened, aside, reload, device, *, merges):
    """One model in memory at a time: the source answers, then the export."""
    trained, in_float8 = _as_trained(read_run(opened.folder)), None
    if opened.vlm:
        place = {"device": opened.vlm.model.device, "dtype": opened.vlm.model.dtype}
        before = ask(opened.vlm.model, opened.processor)
    elif trained and not merges:
        place = {"device": device} | trained
        before = _ask_once(opened, **place)
    else:
        device, dtype = choose_place(total_bytes(opened.shapes, torch.uint8), device)  # at one byte: parameters
        place = {"device": device, "dtype": dtype}
        before = _ask_once(opened, **place)
        if trained.get("quantize") == "float8":
            in_float8 = _ask_once(opened, **place, quantize="float8")
    model = reload(aside, **place)
    written = ask(model, opened.processor)
    tensors = check_and_unround(model, opened) if merges else 0
    after = ask(model, opened.processor) if merges else written
    what, where = "merging" if merges else "reloading the adapter", f"{model.dtype} on {model.device.type}"
    return Proof(
        where=" ".join(filter(None, [place.get("quantize"), where.replace("torch.", "")])),
        largest_difference=compare(before, after, dtype=model.dtype, what=what),
        equal_replies=count_equal(before, written),
        samples=len(before.replies),
        tensors=tensors,
        from_float8=in_float8 and (largest_difference(in_float8, after), count_equal(in_float8, written)),
    )


def _as_trained(run):
    """How a quantised run's model is loaded, from its run.yaml: as its recipe's `loading`; {} for any other."""
    recipe = run["recipe"] if run else {}
    quantize = "4bit" if recipe.get("language") == "qlora" else recipe.get("weights")
    tower_device = "cpu" if recipe.get("vision_offload") else None
    return {"quantize": quantize, "tower_device": tower_device} if quantize in ("4bit", "float8") else {}


def _ask_once(opened, **options):
    """What the source answers; it leaves no model in memory."""
    vlm = load(opened.folder, **options)
    answers = ask(vlm.model, opened.processor)
    vlm.release()
    return answers


def _reload(folder, **options):
    return load(folder, **options).model


def _reload_hf(folder, *, device, dtype):
    """As anyone would: no class of ours."""
    from transformers import AutoModelForImageTextToText

    with quiet_if_small(folder):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


_LAYOUTS = {
    "released": (_write_released, _reload),
    "adapter": (_write_adapter, _reload),
    "transformers": (write_hf, _reload_hf),
}
