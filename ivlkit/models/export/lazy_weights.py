"""Weights as mappings that make one tensor at a time, so that a model never has to fit into memory to be rewritten.

Keys are transformers' own whatever the files hold: a released folder, a released-style LoRA, what a full run left, or
an adapter over any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ...data.processor import Processor
from ...errors import CheckpointError
from ..families import find_model
from ..layouts.configuration import native_config, read_released_config
from ..layouts.key_map import from_released, merge_released_lora, native_keys, released_groups, to_released
from ..load import (
    VLM,
    as_trained,
    check_shapes,
    final_folder,
    find_base,
    meta_state,
    read_origin,
    read_shapes,
    read_weight_files,
    released_root,
    shapes_of,
)
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
    native: object  # `InternVLConfig`
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


class _Lazy(Mapping):
    """A mapping over {key: where it comes from}; a subclass says how a tensor is made."""

    def __init__(self, home):
        self._home = home

    def __iter__(self):
        return iter(self._home)

    def __len__(self):
        return len(self._home)


class Files(_Lazy):
    """Tensors of safetensors files as they lie there. One file is open at a time: its pages go with it."""

    def __init__(self, files):
        super().__init__({})
        self._path = self._file = None
        for path in files:
            self._home |= dict.fromkeys(read_shapes([path]), path)

    def __getitem__(self, key):
        path = self._home[key]
        if path != self._path:
            self._path, self._file = path, safe_open(path, framework="pt")
        return self._file.get_tensor(key)


class Native(_Lazy):
    """Tensors under released keys, given out under transformers' own."""

    def __init__(self, released, config):
        super().__init__({key: name for name in released for key in native_keys(name, config)})
        self._released, self._config = released, config
        self._name = self._parts = None  # the last one read: a fused tensor is asked for three times in a row

    def __getitem__(self, key):
        name = self._home[key]
        if name != self._name:
            self._name, self._parts = name, from_released({name: self._released[name]}, self._config)
        return self._parts[key]


class Fused(_Lazy):
    """The inverse: tensors under transformers' keys, given out under released ones."""

    def __init__(self, native, config):
        super().__init__(released_groups(native, config))
        self._native, self._config = native, config

    def __getitem__(self, key):
        return to_released({part: self._native[part] for part in self._home[key]}, self._config)[key]

    def shapes(self, native_shapes):
        """{released key: shape} from {transformers' key: shape}."""
        blank = {key: torch.empty(shape, device="meta") for key, shape in native_shapes.items()}
        return shapes_of(to_released(blank, self._config))


class ReleasedLora(_Lazy):
    """A released-style LoRA checkpoint: base and adapter mixed in its files, given out merged, in float32."""

    def __init__(self, files):
        plain = {key.replace("base_model.model.", "", 1): key for key in files if ".lora_" not in key}
        super().__init__({key.replace(".base_layer.", "."): files_key for key, files_key in plain.items()})
        self._files = files

    def __getitem__(self, key):
        found = self._home[key]
        wanted = [found]
        if ".base_layer.weight" in found:
            stem = found.partition(".base_layer.")[0]
            halves = (f"{stem}.lora_{side}.default.weight" for side in "AB")
            wanted += [half for half in halves if half in self._files]
        return merge_released_lora({name: self._files[name] for name in wanted}, dtype=torch.float32)[key]


def open_source(source):
    """A run, a folder that `load` takes, or a loaded `VLM` → `Source`; only headers are read.

    Raises: CheckpointError if anything is missing or does not fit config.json.
    """
    if isinstance(source, VLM):
        return _loaded(source)
    folder = final_folder(find_model(getattr(source, "folder", source)))
    root = released_root(folder)
    config, processor, origin = _plain(read_released_config(root)), load_processor(root), read_origin(folder)
    native = native_config(config, image_token_id=processor.token_id("<IMG_CONTEXT>"))
    weights = _open(folder, config, native)
    return Source(
        weights=weights,
        shapes=_fitting(weights, native, folder),
        config=config,
        processor=as_trained(processor, origin) if origin else processor,
        native=native,
        folder=folder,
        origin=origin,
    )


def _plain(config):
    """Adapters inside a released checkpoint are merged as it is read."""
    return config | {"use_llm_lora": 0, "use_backbone_lora": 0}


def _loaded(vlm):
    weights = Loaded(vlm.adapter or vlm.model)
    return Source(
        weights=weights,
        shapes=_fitting(weights, vlm.model.config, vlm.folder),
        config=_plain(vlm.config),
        processor=vlm.processor,
        native=vlm.model.config,
        folder=vlm.folder,
        origin=read_origin(vlm.folder),
    )


class Loaded(_Lazy):
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


def _open(folder, config, native):
    """The weights of one link of the chain, over those of its base."""
    if (folder / "adapter_config.json").exists():
        return Merged(_open(find_base(folder), config, native), folder, native)
    paths, expected = read_weight_files(folder), meta_state(native)
    files, found = Files(paths), read_shapes(paths)
    if read_origin(folder) is not None:  # a full run's: transformers' keys
        check_shapes(found, shapes_of(expected), folder)
        return files
    if any(".lora_" in key for key in files):
        return Native(ReleasedLora(files), config)
    check_shapes(found, shapes_of(to_released(expected, config)), folder)
    return Native(files, config)


def _fitting(weights, native, folder):
    """{key: shape} of the configuration, once the weights have these keys and no other."""
    expected = shapes_of(meta_state(native))
    if wrong := expected.keys() ^ weights.keys():
        raise CheckpointError(f"{folder}: tensor {min(wrong)} is missing or not expected; download or copy it again")
    return expected
