"""What is exported: a model's weights as a mapping that makes one tensor at a time, and everything beside them.

A folder's weights with its chain of adapters merged, or those of a model in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...data.processor import Processor
from ...errors import CheckpointError
from ..families import find_model
from ..layouts.configuration import hf_config, read_released_config
from ..layouts.weight_files import Lazy, open_weights, shapes_of
from ..load import VLM, as_trained, final_folder, find_base, meta_state, plain, read_origin, released_root
from ..modeling.float8 import holds_float8
from ..processor import load_processor
from .merge_lora import Merged, merge_loaded

_QUANTIZED = ("Params4bit", "Int8Params")  # bitsandbytes' parameters


@dataclass(frozen=True)
class Source:
    """A model to be written elsewhere: its weights lazily, adapters merged, and everything beside them."""

    weights: Mapping  # transformers' keys, in the order of the state dict
    shapes: dict  # {key: shape} of these
    config: dict  # config.json as released
    processor: Processor
    hf: object  # `InternVLConfig`
    folder: Path  # what was asked for: a run's `final/`, a model folder
    origin: dict | None  # the run's ivlkit.json

    @property
    def dtype(self):
        """What config.json names."""
        return getattr(torch, self.config.get("torch_dtype") or "bfloat16")

    @property
    def quantized(self):
        """Whether the weights were in 4 or 8 bits and are made whole as they are read."""
        return getattr(self.weights, "quantized", False)

    @property
    def has_adapter(self):
        """Whether `folder` holds an adapter."""
        return (self.folder / "adapter_config.json").exists()


def open_source(source):
    """A run, a folder that `load` takes, or a loaded `VLM` → `Source`; only headers are read.

    Raises: CheckpointError if anything is missing or does not fit config.json.
    """
    if isinstance(source, VLM):
        return _loaded(source)
    folder = final_folder(find_model(getattr(source, "folder", source)))
    root = released_root(folder)
    config, processor, origin = plain(read_released_config(root)), load_processor(root), read_origin(folder)
    hf = hf_config(config, image_token_id=processor.token_id("<IMG_CONTEXT>"))
    weights = _open(folder, config, hf)
    return Source(
        weights=weights,
        shapes=_fitting(weights, hf, folder),
        config=config,
        processor=as_trained(processor, origin) if origin else processor,
        hf=hf,
        folder=folder,
        origin=origin,
    )


def _loaded(vlm):
    if holds_float8(vlm.model):
        raise CheckpointError(
            f"{vlm.folder}: a model in memory, in float8; expected its original weights, which an adapter is folded "
            f"into; ivlkit export {vlm.folder} --to merged"
        )
    weights = Loaded(vlm.adapter or vlm.model)
    return Source(
        weights=weights,
        shapes=_fitting(weights, vlm.model.config, vlm.folder),
        config=plain(vlm.config),
        processor=vlm.processor,
        hf=vlm.model.config,
        folder=vlm.folder,
        origin=read_origin(vlm.folder),
    )


class Loaded(Lazy):
    """A model in memory, its adapter folded in and quantised layers made whole as they are asked for; left as it is."""

    def __init__(self, model):
        super().__init__({})
        for name, module in model.named_modules():
            name = name.removeprefix("base_model.model").removeprefix(".")
            if ".lora_" in f".{name}" or ".original_module" in name:
                continue
            name = name.replace(".modules_to_save.default", "").removesuffix(".base_layer")
            self._home |= {f"{name}.{part}": (module, part) for part, _ in module.named_parameters(recurse=False)}
        self._adapters = {
            name.removeprefix("base_model.model.") + ".weight": layer
            for name, layer in model.named_modules()
            if hasattr(layer, "lora_A")
        }

    @property
    def quantized(self):
        """Whether a layer holds 4- or 8-bit weights."""
        return any(type(getattr(module, part)).__name__ in _QUANTIZED for module, part in self._home.values())

    def __getitem__(self, key):
        from peft.utils.integrations import dequantize_module_weight

        module, part = self._home[key]
        tensor = dequantize_module_weight(module) if part == "weight" else getattr(module, part)
        layer = self._adapters.get(key)
        return (tensor if layer is None else merge_loaded(tensor, layer)).detach()


def _open(folder, config, hf):
    """The weights of one link of the chain, over those of its base."""
    if (folder / "adapter_config.json").exists():
        return Merged(_open(find_base(folder), config, hf), folder, hf)
    return open_weights(folder, config, meta_state(hf), released=read_origin(folder) is None)


def _fitting(weights, hf, folder):
    """{key: shape} of the configuration, once the weights have these keys and no other."""
    expected = shapes_of(meta_state(hf))
    if wrong := expected.keys() ^ weights.keys():
        raise CheckpointError(f"{folder}: tensor {min(wrong)} is missing or not expected; download or copy it again")
    return expected
