"""config.json of the released kind → the configuration of transformers' `internvl` classes.

What is not known is refused with a sentence: a model that loads with one field misread answers almost right.
"""

import json
from pathlib import Path

from ...errors import CheckpointError

_LORA_RANKS = ("use_backbone_lora", "use_llm_lora")
PHI3_SHORT_CONTEXT = 4096  # tokens up to which Phi-3's short rope factors hold
# Fields that decide what the model computes: no default of ours or of transformers may stand in for one.
_VISION_FIELDS = (  # of the same name in transformers
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("image_size", "norm_type"),
)
_LANGUAGE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
)


def read_released_config(folder):
    """The dict of `folder/config.json`.

    Raises: CheckpointError if there is none, or if it is not an InternVL chat model.
    """
    path = Path(folder) / "config.json"
    if not path.exists() and (path.parent / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: an adapter (adapter_config.json) and no model; expected a model; name its base"
        )
    missing = f"{folder}: no config.json; expected a model folder in the released layout; check the path"
    config = read_json(path, missing)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: a {type(config).__name__}; expected an object; copy the file again")
    if config.get("model_type") != "internvl_chat":
        raise CheckpointError(
            f"{path}: model_type {config.get('model_type')!r}; expected 'internvl_chat', the released InternVL 1.5 kind"
            + ('; export again with layout="released"' if config.get("model_type") == "internvl" else "")
        )
    for key in ("llm_config", "vision_config", "template"):
        if not config.get(key):
            raise CheckpointError(f"{path}: no `{key}`; expected the released fields; copy the file again")
    return config


def read_json(path, missing=None):
    """What the JSON file at a `Path` holds. Raises: CheckpointError, with the sentence `missing` if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(missing or f"{path}: missing; expected it there; copy the file again") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: broken JSON ({error}); copy the file again") from error


def write_json(path, value):
    """Write a value as such a file, indented, with a line feed at its end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def has_lora(config):
    """Whether it says that adapters lie among its weights."""
    return any(config.get(name) for name in _LORA_RANKS)


def plain(config):
    """The same, of weights that its adapters are merged into."""
    return config | dict.fromkeys(_LORA_RANKS, 0)


def num_image_token(config):
    """Context tokens a tile: (448 / 14)² · 0.5² = 256."""
    side = tile_px(config) // config["vision_config"].get("patch_size", 14)
    return int(side**2 * config.get("downsample_ratio", 0.5) ** 2)


def tile_px(config):
    """Side of a tile in pixels."""
    return config.get("force_image_size") or config["vision_config"]["image_size"]


def hf_config(config, *, image_token_id):
    """Released config dict → `InternVLConfig`, with `ps_version` as an extra field.

    Raises: CheckpointError for a value whose meaning we don't have code for.
    """
    from transformers import InternVLConfig

    _require(config.get("ps_version") in ("v1", "v2"), "ps_version", config.get("ps_version"), "'v1' or 'v2'")
    _require(not config.get("pad2square"), "pad2square", True, "false")
    for rank in _LORA_RANKS:
        _require(not config.get(rank), rank, config.get(rank), "0 (merged)")
    return InternVLConfig(
        vision_config=_vision_config(config),
        text_config=_text_config(config["llm_config"]),
        image_token_id=image_token_id,
        image_seq_length=num_image_token(config),
        downsample_ratio=config.get("downsample_ratio", 0.5),
        vision_feature_layer=config.get("select_layer", -1),
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        ps_version=config["ps_version"],
    )


def _require(holds, field, found, expected):
    if not holds:
        raise CheckpointError(
            f"config.json: `{field}` is {found!r}; expected {expected}; this kit can't run it otherwise"
        )


def _require_fields(part, names, where):
    for name in names:
        if part.get(name) is None:
            raise CheckpointError(f"config.json: no `{name}` in {where}; expected the released fields; copy it again")


def _vision_config(config):
    from transformers import InternVLVisionConfig

    vision = config["vision_config"]
    _require_fields(vision, (*_VISION_FIELDS, "qkv_bias", "qk_normalization"), "vision_config")
    norm, eps, size = vision["norm_type"], vision.get("layer_norm_eps", 1e-6), vision["image_size"]
    _require(norm in ("layer_norm", "rms_norm"), "vision_config.norm_type", norm, "layer_norm or rms_norm")
    _require(size == tile_px(config), "force_image_size", tile_px(config), f"vision_config.image_size ({size})")
    if vision["qk_normalization"]:
        _require(eps == 1e-6, "vision_config.layer_norm_eps", eps, "1e-06 beside qk_normalization")
    return InternVLVisionConfig(
        **{name: vision[name] for name in _VISION_FIELDS},
        hidden_act=vision.get("hidden_act", "gelu"),
        attention_bias=vision["qkv_bias"],
        use_qk_norm=vision["qk_normalization"],
        layer_norm_eps=eps,
        patch_size=vision.get("patch_size", 14),
        num_channels=vision.get("num_channels", 3),
        hidden_dropout_prob=vision.get("dropout", 0.0),
        attention_dropout=vision.get("attention_dropout", 0.0),
        use_mean_pooling=True,  # the released tower has no final norm
    )


def _text_config(language):
    name = (language.get("architectures") or [None])[0]
    _require(name in _TEXT_CONFIGS, "llm_config.architectures", name, " or ".join(_TEXT_CONFIGS))
    _require(not language.get("tie_word_embeddings"), "llm_config.tie_word_embeddings", True, "false")
    return _TEXT_CONFIGS[name](language)


def _common(language):
    _require_fields(language, _LANGUAGE_FIELDS, "llm_config")
    names = (*_LANGUAGE_FIELDS, "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    return {name: language[name] for name in names if name in language} | {"tie_word_embeddings": False}


def _internlm2_config(language):
    """InternLM2 is Llama with fused, grouped q/k/v; `rope_scaling: null` means default rope."""
    from transformers import LlamaConfig

    _require(not language.get("bias"), "llm_config.bias", True, "false")
    scaling = language.get("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": float(language.get("rope_theta", 10000))}
    if scaling:
        kind = scaling.get("type", scaling.get("rope_type"))
        _require(kind == "dynamic", "llm_config.rope_scaling.type", kind, "dynamic or null")
        rope |= {"rope_type": "dynamic", "factor": float(scaling["factor"])}
    return LlamaConfig(**_common(language), rope_parameters=rope, attention_bias=False, mlp_bias=False)


def _phi3_config(language):
    from transformers import Phi3Config

    scaling = language.get("rope_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type"))
    _require(kind in ("su", "longrope"), "llm_config.rope_scaling.type", kind, "su, which is longrope")
    original = language.get("original_max_position_embeddings", PHI3_SHORT_CONTEXT)
    window = language.get("sliding_window")
    is_longer = window is None or window >= language["max_position_embeddings"]
    _require(is_longer, "llm_config.sliding_window", window, "none, or one longer than the context")
    return Phi3Config(
        **_common(language),
        original_max_position_embeddings=original,
        sliding_window=None,
        attention_dropout=language.get("attention_dropout", 0.0),
        embd_pdrop=language.get("embd_pdrop", 0.0),
        resid_pdrop=language.get("resid_pdrop", 0.0),
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": float(language.get("rope_theta", 10000.0)),
            "short_factor": list(scaling["short_factor"]),
            "long_factor": list(scaling["long_factor"]),
            "original_max_position_embeddings": original,
            "factor": language["max_position_embeddings"] / original,
        },
    )


_TEXT_CONFIGS = {"InternLM2ForCausalLM": _internlm2_config, "Phi3ForCausalLM": _phi3_config}
