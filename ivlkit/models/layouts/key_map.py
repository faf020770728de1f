"""The released layout ↔ transformers' keys: one table, read in both directions.

`from_released` and `to_released` are exact inverses on whole state dicts; `register_with_transformers` hands the same
table to transformers, whose own loader then reads the released files (shards, memory maps, device maps, 4-bit).
Run checkpoints keep transformers' keys; only an export writes the released ones.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from ...errors import CheckpointError

_VIT = ("vision_model.encoder.layers.*.", "model.vision_tower.encoder.layer.*.")
_EMBEDDINGS = ("vision_model.embeddings.", "model.vision_tower.embeddings.")
_LLM = ("language_model.model.layers.*.", "model.language_model.layers.*.")


@dataclass(frozen=True)
class Entry:
    """One module or parameter: its released name and its hf ones (three where the released one is fused).

    Names carry neither ".weight" nor ".bias"; "*" stands for the layer's number.
    """

    released: str
    hf: tuple[str, ...]
    grouped: bool = False  # rows lie per kv head as [its queries, key, value] instead of [all q, all k, all v]


def _entries(prefixes, names):
    return tuple(Entry(prefixes[0] + old, (prefixes[1] + new,)) for old, new in names.items())


def _fused(prefixes, old, new, grouped=False):
    return Entry(prefixes[0] + old, tuple(prefixes[1] + name for name in new), grouped)


_VISION = (
    *_entries(_EMBEDDINGS, {"class_embedding": "cls_token", "position_embedding": "position_embeddings"}),
    *_entries(_EMBEDDINGS, {"patch_embedding": "patch_embeddings.projection"}),
    *_entries(
        _VIT,
        {
            "attn.q_norm": "attention.q_norm",
            "attn.k_norm": "attention.k_norm",
            "attn.proj": "attention.projection_layer",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "ls1": "lambda_1",
            "ls2": "lambda_2",
        },
    ),
    _fused(_VIT, "attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
)
_PROJECTOR = _entries(("mlp1.", "model.multi_modal_projector."), {"0": "layer_norm", "1": "linear_1", "3": "linear_2"})
_INTERNLM2 = (
    *_entries(
        _LLM,
        {
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w3": "mlp.up_proj",
            "feed_forward.w2": "mlp.down_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
    ),
    _fused(_LLM, "attention.wqkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), grouped=True),
    Entry("language_model.model.tok_embeddings", ("model.language_model.embed_tokens",)),
    Entry("language_model.model.norm", ("model.language_model.norm",)),
    Entry("language_model.output", ("lm_head",)),
)
_PHI3_MODULES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PHI3_NORMS = ("input_layernorm", "post_attention_layernorm")
_PHI3 = (
    *_entries(_LLM, {name: name for name in _PHI3_MODULES + _PHI3_NORMS}),
    Entry("language_model.model.embed_tokens", ("model.language_model.embed_tokens",)),
    Entry("language_model.model.norm", ("model.language_model.norm",)),
    Entry("language_model.lm_head", ("lm_head",)),
)
LAYOUTS = {
    "InternLM2ForCausalLM": _VISION + _PROJECTOR + _INTERNLM2,
    "Phi3ForCausalLM": _VISION + _PROJECTOR + _PHI3,
}


@lru_cache(maxsize=4)
def _tables(language_class):
    """(released name → entry, hf name → entry) of a layout."""
    entries = LAYOUTS[language_class]
    return {entry.released: entry for entry in entries}, {name: entry for entry in entries for name in entry.hf}


def from_released(tensors, config):
    """Released state dict → transformers' keys. Tensors may be on the meta device.

    Args: tensors: {key: tensor}; config: the released config.json as a dict.
    Raises: CheckpointError for a key the layout does not have.
    """
    hf = {}
    for key, tensor in tensors.items():
        targets = hf_keys(key, config)
        parts = split_grouped(tensor, **_heads(config)) if _is_grouped(key, config) else tensor.chunk(len(targets))
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
        if _is_grouped(target, config):
            released[target] = join_grouped(*pieces, **_heads(config))
        else:
            released[target] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return released


def hf_keys(key, config):
    """Released key → the hf keys its rows go to: three for a fused query-key-value, else one.

    Raises: CheckpointError for a key the layout does not have.
    """
    name, layer, suffix = _parse(key)
    entry = _tables(config["llm_config"]["architectures"][0])[0].get(name)
    if entry is None:
        raise CheckpointError(f"unexpected tensor {key}; expected the released layout of {config['template']}")
    return [_fill(part, layer, suffix) for part in entry.hf]


def _is_grouped(key, config):
    return _tables(config["llm_config"]["architectures"][0])[0][_parse(key)[0]].grouped


def released_groups(keys, config):
    """{released key: the hf keys that make it, in the order they are joined} of hf keys.

    Raises: CheckpointError for a key the layout does not have.
    """
    by_hf = _tables(config["llm_config"]["architectures"][0])[1]
    groups = {}
    for key in keys:
        name, layer, suffix = _parse(key)
        if name not in by_hf:
            raise CheckpointError(f"tensor {key} has no place in the released layout; merge adapters before saving")
        target = _fill(by_hf[name].released, layer, suffix)
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
    for entry in dict.fromkeys(entry for layout in LAYOUTS.values() for entry in layout):
        source = "^" + re.escape(entry.released).replace(r"\*", r"(\d+)")
        if len(entry.hf) == 1:
            renamings[source] = entry.hf[0].replace("*", r"\1")
            continue
        stem, _, fused = entry.released.rpartition(".")
        home = entry.hf[0].rpartition(".")[0]
        renamings[source] = f"{home}.{fused}".replace("*", r"\1")
        place = home.rpartition(".")[2]
        parts = [f"{place}.{name.rpartition('.')[2]}" for name in entry.hf]
        step = SplitGrouped() if entry.grouped else Chunk(0)
        converters.append(WeightConverter(f"{place}.{fused}", parts, operations=[step]))
    mapping = [WeightRenaming(source, target) for source, target in renamings.items()]
    register_checkpoint_conversion_mapping(class_name, mapping + converters, overwrite=True)
