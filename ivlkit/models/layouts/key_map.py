"""The released layout ↔ transformers' keys: one table, key_map.yaml, read in both directions.

`from_released` and `to_released` are exact inverses on whole state dicts; `register_with_transformers` hands the same
table to transformers, whose own loader then reads the released files (shards, memory maps, device maps, 4-bit).
Run checkpoints keep transformers' keys; only an export writes the released ones.
"""

import re
from functools import lru_cache
from pathlib import Path

import torch
import yaml

from ...errors import CheckpointError

GROUPED = "language_model.model.layers.*.attention.wqkv"  # rows lie per kv head as [its queries, key, value]


def _read_layouts():
    """{language class: {released name: hf names}} of key_map.yaml."""
    tables = yaml.safe_load(Path(__file__).with_name("key_map.yaml").read_text(encoding="utf-8"))
    tables = {of: {released: tuple(names.split()) for released, names in table.items()} for of, table in tables.items()}
    shared = tables.pop("vision tower and projector")
    return {language_class: shared | table for language_class, table in tables.items()}


LAYOUTS = _read_layouts()


@lru_cache(maxsize=4)
def _by_hf(language_class):
    """{hf name: released name} of a layout."""
    return {name: released for released, names in LAYOUTS[language_class].items() for name in names}


def from_released(tensors, config):
    """Released state dict → transformers' keys. Tensors may be on the meta device.

    Args: tensors: {key: tensor}; config: the released config.json as a dict.
    Raises: CheckpointError for a key the layout does not have.
    """
    hf = {}
    for key, tensor in tensors.items():
        targets = hf_keys(key, config)
        parts = split_grouped(tensor, **_heads(config)) if _is_grouped(key) else tensor.chunk(len(targets))
        hf |= zip(targets, parts, strict=True)
    return hf


def to_released(tensors, config):
    """transformers' state dict → released keys, fused where they are; the inverse of `from_released`, bit for bit.

    Raises: CheckpointError for a key the layout does not have, or if a part of a fused tensor is missing.
    """
    released = {}
    for target, keys in released_groups(tensors, config).items():
        if not tensors.keys() >= set(keys):
            raise CheckpointError(f"tensor {target} is incomplete; expected its query, key and value parts")
        pieces = [tensors[key] for key in keys]
        if _is_grouped(target):
            released[target] = join_grouped(*pieces, **_heads(config))
        else:
            released[target] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return released


def hf_keys(key, config):
    """Released key → the hf keys its rows go to: three for a fused query-key-value, else one.

    Raises: CheckpointError for a key the layout does not have.
    """
    name, layer, suffix = _parse(key)
    parts = LAYOUTS[config["llm_config"]["architectures"][0]].get(name)
    if parts is None:
        raise CheckpointError(f"unexpected tensor {key}; expected the released layout of {config['template']}")
    return [_fill(part, layer, suffix) for part in parts]


def _is_grouped(key):
    return _parse(key)[0] == GROUPED


def released_groups(keys, config):
    """{released key: the hf keys that make it, in the order they are joined} of hf keys.

    Raises: CheckpointError for a key the layout does not have.
    """
    by_hf, groups = _by_hf(config["llm_config"]["architectures"][0]), {}
    for key in keys:
        name, layer, suffix = _parse(key)
        if name not in by_hf:
            raise CheckpointError(f"tensor {key} has no place in the released layout; merge adapters before saving")
        target = _fill(by_hf[name], layer, suffix)
        groups.setdefault(target, hf_keys(target, config))
    return groups


def _parse(key):
    """ "….layers.3.norm1.weight" → ("….layers.*.norm1", "3", ".weight")."""
    layer = re.search(r"(?<=\.layers\.)\d+|(?<=\.layer\.)\d+", key)
    name = f"{key[: layer.start()]}*{key[layer.end() :]}" if layer else key
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), layer and layer.group(), suffix
    return name, layer and layer.group(), ""


def _fill(name, layer, suffix):
    return (name.replace("*", layer) if layer else name) + suffix


def _heads(config):
    """The numbers of kv heads and of queries a kv head, of InternLM2's language model."""
    language = config["llm_config"]
    kv_heads = language["num_key_value_heads"]
    return {"kv_heads": kv_heads, "queries": language["num_attention_heads"] // kv_heads}


def split_grouped(fused, *, kv_heads, queries):
    """InternLM2's wqkv [kv · (queries + 2) · d, …] → q [kv · queries · d, …], k, v [kv · d, …]."""
    rows = fused.unflatten(0, (kv_heads, queries + 2, -1))
    return rows[:, :queries].flatten(0, 2), rows[:, queries].flatten(0, 1), rows[:, queries + 1].flatten(0, 1)


def join_grouped(q, k, v, *, kv_heads, queries):
    """The inverse of `split_grouped`."""
    q = q.unflatten(0, (kv_heads, queries, -1))
    k, v = k.unflatten(0, (kv_heads, 1, -1)), v.unflatten(0, (kv_heads, 1, -1))
    return torch.cat([q, k, v], dim=1).flatten(0, 2)


def register_with_transformers(class_name):
    """Give the table to transformers' loader for models of this class. Idempotent."""
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

    class SplitGrouped(ConversionOps):
        """`split_grouped` as a loading step of transformers."""

        def convert(self, input_dict, source_patterns, target_patterns, config=None, **_):
            tensor = next(iter(input_dict.values()))
            tensor = tensor[0] if isinstance(tensor, list) else tensor
            heads = _heads({"llm_config": config.get_text_config().to_dict()})
            return dict(zip(target_patterns, split_grouped(tensor, **heads), strict=True))

        @property
        def reverse_op(self):
            raise NotImplementedError("saving goes through to_released")

    renamings, converters = {}, []
    for released, parts in (LAYOUTS["InternLM2ForCausalLM"] | LAYOUTS["Phi3ForCausalLM"]).items():
        source = "^" + re.escape(released).replace(r"\*", r"(\d+)")
        if len(parts) == 1:
            renamings[source] = parts[0].replace("*", r"\1")
            continue
        fused, home = released.rpartition(".")[2], parts[0].rpartition(".")[0]
        renamings[source] = f"{home}.{fused}".replace("*", r"\1")
        place = home.rpartition(".")[2]
        targets = [f"{place}.{name.rpartition('.')[2]}" for name in parts]
        step = SplitGrouped() if released == GROUPED else Chunk(0)
        converters.append(WeightConverter(f"{place}.{fused}", targets, operations=[step]))
    mapping = [WeightRenaming(source, target) for source, target in renamings.items()]
    register_checkpoint_conversion_mapping(class_name, mapping + converters, overwrite=True)
