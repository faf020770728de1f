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
from ..layouts.configuration import plain
from ..layouts.weight_files import open_weights, shapes_of
from ..load import (
    ADAPTER_CONFIG,
    VLM,
    as_trained,
    final_folder,
    find_base,
    meta_state,
    read_model,
    read_origin,
    released_root,
)
from ..modeling.float8 import holds_float8
from ..options import check_loaded
from .merge_lora import Loaded, Merged


@dataclass(frozen=True)
class OpenedModel:
    """A model to be written elsewhere: its weights lazily, adapters merged, and everything beside them."""

    weights: Mapping  # transformers' keys, in the order of the state dict
    shapes: dict  # {key: shape} of these
    config: dict  # config.json as released
    processor: Processor
    hf: object  # `InternVLConfig`
    folder: Path  # what was asked for: a run's `final/`, a model folder
    origin: dict | None  # the run's ivlkit.json
    vlm: VLM | None = None  # the model in memory, left as it is; None where a folder was asked for

    @property
    def dtype(self):
        """What config.json names."""
        return getattr(torch, self.config.get("torch_dtype") or "bfloat16")

    @property
    def quantized(self):
        """Whether the weights were in 4 or 8 bits and are made whole as they are read."""
        return getattr(self.weights, "quantized", False)


def open_source(source):
    """A run, a folder that `load` takes, or a loaded `VLM` → `OpenedModel`; only headers are read.

    Raises: CheckpointError if anything is missing or does not fit config.json, or for weights in float8.
    """
    vlm = source if isinstance(source, VLM) else None
    if vlm:
        check_loaded(vlm)
        if holds_float8(source.model):
            raise CheckpointError(
                f"{source.folder}: a model in memory, in float8; expected its original weights, which an adapter is "
                f"folded into; ivlkit export {source.folder} --to merged"
            )
        folder, config, processor, hf = source.folder, plain(source.config), source.processor, source.model.config
        expected, weights = meta_state(hf), Loaded(source.adapter or source.model)
        origin = read_origin(folder)
    else:
        folder = final_folder(find_model(getattr(source, "folder", source)))
        root, origin = released_root(folder), read_origin(folder)
        config, processor, hf = read_model(root)
        processor, expected = as_trained(processor, origin or {}), meta_state(hf)
        weights = _open(folder, config, hf, expected)
    if wrong := expected.keys() ^ weights.keys():
        raise CheckpointError(f"{folder}: tensor {min(wrong)} is missing or not expected; download or copy it again")
    return OpenedModel(weights, shapes_of(expected), config, processor, hf, folder, origin, vlm)


def _open(folder, config, hf, expected):
    """The weights of one link of the chain, over those of its base."""
    if (folder / ADAPTER_CONFIG).exists():
        return Merged(_open(find_base(folder), config, hf, expected), folder, hf)
    return open_weights(folder, config, expected, released=read_origin(folder) is None)
