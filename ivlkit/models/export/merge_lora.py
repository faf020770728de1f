"""LoRA and DoRA folded into the weights tensor by tensor, in float32.

LoRA (Hu et al. 2021, arXiv:2106.09685): W + s·B·A. DoRA (Liu et al. 2024, arXiv:2402.09353): every row of that is
scaled to a length that was trained. What s is (α / r, or α / √r, or a layer's own) and which layers have an adapter is
read from PEFT, which builds the wrapped model without memory, on the meta device.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from ..load import check_adapter, wrap_on_meta

_PREFIX = "base_model.model."


class Merged(Mapping):
    """Weights with an adapter folded in; a layer without one comes as it is in the base.

    Args:
        base: a mapping of transformers' keys to tensors.
        folder: with adapter_config.json and adapter_model.safetensors.
        hf: the model's `InternVLConfig`.
    Raises: CheckpointError for an adapter of another kind, or with other tensors than its configuration describes.
    """

    def __init__(self, base, folder, hf):
        self._base = base
        wrapped = wrap_on_meta(hf, folder)
        check_adapter(wrapped, folder)
        self._file = safe_open(folder / "adapter_model.safetensors", framework="pt")
        self._names = set(self._file.keys())
        self._layers = {}
        for name, layer in wrapped.named_modules():
            if hasattr(layer, "lora_A") and "default" in layer.lora_A:
                self._layers[name.removeprefix(_PREFIX) + ".weight"] = _Layer.read(name, layer)
        self._check_all_are_used(folder)

    def _check_all_are_used(self, folder):
        """An adapter tensor that nothing reads would be left out of the merge without a word."""
        used = {name for layer in self._layers.values() for name in layer.names}
        used |= {_PREFIX + key for key in self._base}
        if rest := self._names - used:
            raise CheckpointError(
                f"{folder}: adapter tensor {min(rest)} is of a kind that can't be merged; expected LoRA or DoRA of "
                "linear layers and modules trained whole"
            )

    def __getitem__(self, key):
        if _PREFIX + key in self._names:  # a module trained whole beside the adapter
            return self._file.get_tensor(_PREFIX + key)
        layer = self._layers.get(key)
        if layer is None:
            return self._base[key]
        down, up, *length = (self._file.get_tensor(name) for name in layer.names)
        return merge_layer(self._base[key], down, up, scale=layer.scale, length=length[0] if length else None)

    def __iter__(self):
        return iter(self._base)

    def __len__(self):
        return len(self._base)


@dataclass(frozen=True)
class _Layer:
    """Where a layer's adapter lies in the file, and its scale."""

    names: tuple[str, ...]
    scale: float

    @classmethod
    def read(cls, name, layer):
        _check_plain(name, layer)
        dora = ("lora_magnitude_vector",) if layer.use_dora.get("default") else ()
        names = ("lora_A.weight", "lora_B.weight", *dora)
        return cls(tuple(f"{name}.{part}" for part in names), layer.scaling["default"])


def _check_plain(name, layer):
    if not isinstance(layer.get_base_layer(), torch.nn.Linear) or layer.lora_bias.get("default"):
        raise CheckpointError(f"adapter of {name}: not of a linear layer, or with a bias; expected plain LoRA or DoRA")


def merge_loaded(weight, layer):
    """The whole weight [out, in] of a layer that PEFT has wrapped, its one adapter folded in."""
    _check_plain("a loaded model", layer)
    length = layer.lora_magnitude_vector["default"].weight if layer.use_dora.get("default") else None
    halves = (half["default"].weight for half in (layer.lora_A, layer.lora_B))
    return merge_layer(weight, *halves, scale=layer.scaling["default"], length=length)


@torch.no_grad()
def merge_layer(weight, down, up, *, scale, length=None):
    """W [out, in], A [r, in], B [out, r] → W + scale · B A in float32; rows get `length` [out] if given."""
    merged = weight.to(torch.float32, copy=True).addmm_(up.float(), down.float(), alpha=scale)  # one copy, not four
    if length is None:
        return merged
    return merged.mul_((length.float() / torch.linalg.vector_norm(merged, dim=1)).unsqueeze(1))
