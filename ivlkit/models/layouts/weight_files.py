"""The weights of one folder as mappings that make one tensor at a time, so that no model has to fit into memory.

Keys are transformers' own whatever the files hold: a released folder, a released-style LoRA, or what a full run left.
"""

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from .key_map import from_released, hf_keys, released_groups, to_released
from .safetensors_files import INDEX_FILE


def open_weights(folder, config, expected, *, released=True, dtype=torch.float32):
    """The weights of a folder, once its headers fit; tensors are read when they are asked for.

    Args:
        config: dict of config.json, as released.
        expected: {transformers' key: meta tensor} that it describes.
        released: whether the files have released keys; a full run writes transformers'.
        dtype: of the tensors that a released-style LoRA is merged into; all others are as they lie in the files.
    Raises: CheckpointError that names the first tensor that is missing, unexpected or of another shape.
    """
    files = Files(read_weight_files(folder))
    if not released:
        check_shapes(files.shapes, expected, folder)
        return files
    if any(".lora_" in key for key in files):
        files = ReleasedLora(files, dtype=dtype)
    check_shapes(files.shapes, to_released(expected, config), folder)
    return hf_named(files, config)


class Lazy(Mapping):
    """Tensors that are made when they are asked for: {key: where it comes from}, and the function that makes one."""

    def __init__(self, home, make):
        self._home, self._make = home, make

    def __getitem__(self, key):
        return self._make(self._home[key])

    def __iter__(self):
        return iter(self._home)

    def __len__(self):
        return len(self._home)


class Files(Lazy):
    """Tensors of safetensors files as they lie there. One file is open at a time: its pages go with it."""

    def __init__(self, files):
        opened = lru_cache(maxsize=1)(partial(safe_open, framework="pt"))
        found = {path: read_shapes([path]) for path in files}
        self.shapes = {key: shape for shapes in found.values() for key, shape in shapes.items()}
        home = {key: (path, key) for path, shapes in found.items() for key in shapes}
        super().__init__(home, lambda place: opened(place[0]).get_tensor(place[1]))


def hf_named(released, config):
    """Tensors under released keys, given out under transformers' own."""
    home = {key: (name, key) for name in released for key in hf_keys(name, config)}

    @lru_cache(maxsize=1)  # a fused tensor is asked for three times in a row
    def parts(name):
        return from_released({name: released[name]}, config)

    return Lazy(home, lambda place: parts(place[0])[place[1]])


def fused(tensors, shapes, config):
    """The inverse: (the mapping of tensors under released keys, their shapes) of those under transformers'."""

    def fuse(parts):
        return next(iter(to_released({part: tensors[part] for part in parts}, config).values()))

    blank = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return Lazy(released_groups(tensors, config), fuse), shapes_of(to_released(blank, config))


class ReleasedLora(Lazy):
    """A released-style LoRA checkpoint (`use_llm_lora`, `use_backbone_lora`), given out as the plain one it stands for.

    The reference saves base and adapter mixed (`….base_layer.weight`, with PEFT before 0.7 `….weight`, beside
    `….lora_A.default.weight`) and keeps only the rank: the scale is always 2 (α = 2r). Merged in float32, then rounded
    to `dtype`.

    Raises: CheckpointError if an adapter lacks a half or its weight, and for a tensor of an adapter that is neither.
    """

    def __init__(self, tensors, *, dtype):
        plain = {key.replace("base_model.model.", "", 1): key for key in tensors}
        kept = {key.replace(".base_layer.", "."): own for key, own in plain.items() if ".lora_" not in key}
        adapter = {key: key.partition(".lora_")[0] for key in plain if ".lora_" in key}
        stems = dict.fromkeys(key.removesuffix(".base_layer.weight") for key in plain if ".base_layer.weight" in key)
        halves = {
            f"{stem}.weight": [f"{stem}.lora_{side}.default.weight" for side in "AB"]
            for stem in stems | dict.fromkeys(adapter.values())
        }
        for half in (half for pair in halves.values() for half in pair if half not in plain):
            raise CheckpointError(f"tensor {half} is missing; expected both halves of every adapter; download it again")
        used = {half for key, pair in halves.items() for half in pair if key in kept}
        for key in sorted(adapter.keys() - used):
            raise CheckpointError(
                f"tensor {key} belongs to no weight {adapter[key]}.weight; expected an adapter's two halves beside it; "
                "merge it with the code that wrote it, then load that"
            )
        home = {key: (own, [plain[half] for half in halves.get(key, ())]) for key, own in kept.items()}
        super().__init__(home, self._merged)
        self._tensors, self._dtype = tensors, dtype

    @property
    def shapes(self):
        """{key: shape} of what is given out."""
        return {key: self._tensors.shapes[own] for key, (own, _) in self._home.items()}

    def _merged(self, home):
        own, halves = home
        tensor = self._tensors[own]
        if not halves:
            return tensor
        return merge_layer(tensor, *(self._tensors[half] for half in halves), scale=2.0).to(self._dtype)


@torch.no_grad()
def merge_layer(weight, down, up, *, scale, length=None):
    """W [out, in], A [r, in], B [out, r] → W + scale · B A in float32; rows get `length` [out] if given."""
    merged = weight.to(torch.float32, copy=True).addmm_(up.float(), down.float(), alpha=scale)  # one copy, not four
    if length is None:
        return merged
    return merged.mul_((length.float() / torch.linalg.vector_norm(merged, dim=1)).unsqueeze(1))


def shapes_of(tensors):
    """{key: tensor} → {key: shape}."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def check_shapes(found, expected, folder, *, by="config.json"):
    """Every key and shape of the architecture, no other: known before a byte of weights is read.

    Args: found: {key: shape}; expected: {key: tensor}; by: the file that describes it.
    Raises: CheckpointError that names the first tensor that is missing, unexpected or of another shape.
    """
    expected = shapes_of(expected)
    for key in sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{folder}: tensor {key} is missing; expected shape {expected[key]}; download it again")
    for key in sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{folder}: unexpected tensor {key}; its {by} describes a model without it")
    for key, shape in found.items():
        if shape != expected[key]:
            raise CheckpointError(f"{folder}: tensor {key} has shape {shape}; expected {expected[key]} by {by}")


def read_weight_files(folder):
    """The safetensors files of a folder, from its index if it has one.

    Raises: CheckpointError if one is missing, or if there are only pickles.
    """
    folder = Path(folder)
    index = folder / INDEX_FILE
    names = _shard_names(index) if index.exists() else ["model.safetensors"]
    missing = [folder / name for name in names if not (folder / name).exists()]
    if missing and list(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder}: its weights are pickles (*.bin), which can run code when opened; expected safetensors; convert "
            "them once: tensors = torch.load(file, weights_only=True), then safetensors.torch.save_file(tensors, …)"
        )
    if missing:
        raise CheckpointError(f"{missing[0]}: missing; expected the weights there; download the folder again")
    return [folder / name for name in names]


def _shard_names(index):
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: broken ({error}); expected a `weight_map`; copy the file again") from error


def read_shapes(files):
    """{key: shape} over safetensors files, from their headers. Raises: as `read_headers`."""
    return {key: shape for key, (shape, _) in read_headers(files).items()}


def read_headers(files):
    """{key: (shape, dtype as the file names it: "BF16")} over safetensors files.

    Raises: CheckpointError for a file that is truncated or no safetensors file.
    """
    found = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                found |= {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download it again") from error
    return found
