"""A model → a folder in the released layout, which loads here and where the original does; it proves itself."""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..data.collate import normalise_tiles
from ..errors import ExportError
from .checkpoint import to_released
from .families import DOWNLOAD_FILE
from .load import ORIGIN_FILE, VLM, load

SHARD_BYTES = 5_000_000_000
TOLERANCE = 1e-4  # logits in float32
_NOT_COPIED = {"config.json", "model.safetensors.index.json", ORIGIN_FILE, DOWNLOAD_FILE, "README.md"}
_COPIED_SUFFIXES = {".json", ".model", ".py", ".txt"}


def save_released(vlm, folder):
    """Write weights, config.json and every small file of the original folder, `*.py` byte for byte.

    Weights are written in the dtype config.json names; the system prompt is stored. No proof: see `export`.

    Args: vlm: a `VLM` without adapter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, vlm.config.get("torch_dtype") or "bfloat16")
    native = {key: tensor.detach().to("cpu", dtype) for key, tensor in vlm.model.state_dict().items()}
    write_shards(to_released(native, vlm.config), folder)
    changes = {"use_llm_lora": 0, "use_backbone_lora": 0, "system_message": vlm.processor.system_message}
    changes["max_dynamic_patch"] = vlm.processor.max_tiles
    (folder / "config.json").write_text(json.dumps(vlm.config | changes, indent=2, ensure_ascii=False) + "\n")
    for path in sorted(vlm.processor.folder.iterdir()):
        target = folder / path.name
        if path.suffix in _COPIED_SUFFIXES and path.name not in _NOT_COPIED and path.resolve() != target.resolve():
            shutil.copyfile(path, target)


def export(source, to, *, layout="released"):
    """Write a run's model as a folder of its own: adapter merged, saved, reloaded, compared.

    Args:
        source: a `Run`, its folder, any folder `load` takes, or a loaded `VLM` (left as it is).
        to: the new folder; it must not exist. It appears only when it is complete and proven.
        layout: "released", which the original code and the serving tools read.
    Returns: the folder.
    Raises: ExportError if the reloaded model's logits differ.
    """
    if layout != "released":
        raise ExportError(f"layout {layout!r}; expected 'released'")
    to = Path(to)
    if to.exists():
        raise ExportError(f"{to}: exists already; expected a new folder; remove it or choose another name")
    vlm = _own_copy(source)
    with_adapter = _probe(vlm)
    vlm.merge_adapter()
    aside = to.with_name(to.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save_released(vlm, aside)
        _prove(vlm, with_adapter, load(aside, device="cpu", dtype=torch.float32))
        aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return to


def _own_copy(source):
    """A `VLM` in float32 on the CPU that may be merged and rounded; a loaded one as it is now, not as its folder is."""
    if not isinstance(source, VLM):
        return load(getattr(source, "folder", source), device="cpu", dtype=torch.float32)
    copied = copy.deepcopy(source)
    (copied.adapter or copied.model).to("cpu", torch.float32)
    return copied


def _prove(vlm, with_adapter, reloaded):
    """The merge equals the adapter in float32; the reloaded file equals the merge as rounded for the file."""
    merged = _probe(vlm)
    _compare(with_adapter, merged, "merging the adapter")
    dtype = getattr(torch, vlm.config.get("torch_dtype") or "bfloat16")
    for parameter in vlm.model.parameters():  # not the buffers: rotary frequencies are never rounded
        parameter.data = parameter.data.to(dtype).to(torch.float32)
    _compare(_probe(vlm), _probe(reloaded), "reloading the export")


def _compare(before, after, what):
    difference = (before - after).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, before.abs().max().item()):
        raise ExportError(
            f"{what} changed logits by {difference:.2e}; expected at most {TOLERANCE}; nothing was written"
        )


@torch.inference_mode()
def _probe(vlm):
    """Logits of the last tokens of a fixed prompt with one picture tile."""
    processor = vlm.processor
    side = processor.tile_px
    ramp = torch.arange(side * side * 3, dtype=torch.int64).reshape(1, side, side, 3)
    tiles = (ramp * 2654435761 % 256).to(torch.uint8)
    context = "<img>" + "<IMG_CONTEXT>" * processor.num_image_token + "</img>"
    text = f"{processor.template.user_prefix}{context}\nWhat is shown?{processor.template.end}"
    input_ids = torch.tensor([processor.tokenizer(text)["input_ids"]])
    outputs = vlm.model(input_ids=input_ids, pixel_values=normalise_tiles(tiles), logits_to_keep=8)
    return outputs.logits


def write_shards(tensors, folder):
    """One `model.safetensors`, or numbered shards and their index when it would be larger than SHARD_BYTES."""
    shards, sizes = [{}], [0]
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if sizes[-1] and sizes[-1] + size > SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][key] = tensor.contiguous()
        sizes[-1] += size
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
