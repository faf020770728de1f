"""LoRA and DoRA folded into the weights tensor by tensor, in float32.

LoRA (Hu et al. 2021, arXiv:2106.09685): W + s·B·A. DoRA (Liu et al. 2024, arXiv:2402.09353): every row of that is
scaled to a length that was trained. What s is (α / r, or α / √r, or a layer's own) and which layers have an adapter is
read from PEFT: from a loaded model, or from one that it wraps without memory, on the meta device.
"""

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from ..layouts.weight_files import Lazy, merge_layer
from ..load import check_adapter, wrap_on_meta

_PREFIX = "base_model.model."
_QUANTIZED = ("Params4bit", "Int8Params")  # bitsandbytes' parameters


class Merged(Lazy):
    """Weights with an adapter folded in; a layer without one comes as it is in the base.

    Args:
        base: a mapping of transformers' keys to tensors.
        folder: with adapter_config.json and adapter_model.safetensors.
        hf: the model's `InternVLConfig`.
    Raises: CheckpointError for an adapter of another kind, or with other tensors than its configuration describes.
    """

    def __init__(self, base, folder, hf):
        super().__init__({key: key for key in base}, self._whole)
        wrapped = wrap_on_meta(hf, folder)
        self._base, self._layers = base, _adapted_layers(wrapped)
        self._file = safe_open(check_adapter(wrapped, folder), framework="pt")
        self._names = set(self._file.keys())
        used = {name for key in self._layers for name in self._parts(key)} | {_PREFIX + key for key in base}
        if rest := self._names - used:  # an adapter tensor that nothing reads would be left out without a word
            raise CheckpointError(
                f"{folder}: adapter tensor {min(rest)} is of a kind that can't be merged; expected LoRA or DoRA of "
                "linear layers and modules trained whole"
            )

    def _parts(self, key):
        """Names of a layer's halves in the file, and of DoRA's lengths."""
        dora = ["lora_magnitude_vector"] if _has_lengths(self._layers[key]) else []
        return [f"{_PREFIX}{key.removesuffix('weight')}{part}" for part in ("lora_A.weight", "lora_B.weight", *dora)]

    def _whole(self, key):
        if _PREFIX + key in self._names:  # a module trained whole beside the adapter
            return self._file.get_tensor(_PREFIX + key)
        if key not in self._layers:
            return self._base[key]
        down, up, *length = (self._file.get_tensor(name) for name in self._parts(key))
        scale = self._layers[key].scaling["default"]
        return merge_layer(self._base[key], down, up, scale=scale, length=length[0] if length else None)


class Loaded(Lazy):
    """A model in memory, its adapter folded in and quantised layers made whole as they are asked for; left as it is."""

    def __init__(self, model):
        home = {}
        for name, module in model.named_modules():
            name = name.removeprefix("base_model.model").removeprefix(".")
            if ".lora_" in f".{name}" or ".original_module" in name:
                continue
            name = name.replace(".modules_to_save.default", "").removesuffix(".base_layer")
            home |= {f"{name}.{part}": (module, part) for part, _ in module.named_parameters(recurse=False)}
        layers = _adapted_layers(model)
        super().__init__({key: (*place, layers.get(key)) for key, place in home.items()}, self._whole)

    @property
    def quantized(self):
        """Whether a layer holds 4- or 8-bit weights."""
        return any(type(getattr(module, part)).__name__ in _QUANTIZED for module, part, _ in self._home.values())

    def _whole(self, home):
        from peft.utils.integrations import dequantize_module_weight

        module, part, layer = home
        tensor = dequantize_module_weight(module) if part == "weight" else getattr(module, part)
        if layer is not None:
            length = layer.lora_magnitude_vector["default"].weight if _has_lengths(layer) else None
            halves = (half["default"].weight for half in (layer.lora_A, layer.lora_B))
            tensor = merge_layer(tensor, *halves, scale=layer.scaling["default"], length=length)
        return tensor.detach()


def _adapted_layers(wrapped):
    """{key of a weight: PEFT's layer around it}. Raises: CheckpointError for one that can't be folded in."""
    layers = {}
    for name, layer in wrapped.named_modules():
        if hasattr(layer, "lora_A") and "default" in layer.lora_A:
            if not isinstance(layer.get_base_layer(), torch.nn.Linear) or layer.lora_bias.get("default"):
                raise CheckpointError(
                    f"adapter of {name}: not of a linear layer, or with a bias; expected plain LoRA or DoRA"
                )
            layers[name.removeprefix(_PREFIX) + ".weight"] = layer
    return layers


def _has_lengths(layer):
    """Whether it is DoRA's."""
    return layer.use_dora.get("default")
