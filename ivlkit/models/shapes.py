"""The released models without a file of theirs: their sizes, and a model of any configuration that holds no memory.

Enough to count parameters and to plan a run before anything is downloaded.
"""

from ..errors import CheckpointError
from .families import FAMILIES, match_family
from .layouts.configuration import hf_config, read_released_config
from .load import on_meta, released_root

_VIT = {"image_size": 448, "patch_size": 14, "hidden_act": "gelu", "num_channels": 3, "layer_norm_eps": 1e-6}
VIT_300M = _VIT | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
}
VIT_6B = _VIT | {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "qk_normalization": True,
    "qkv_bias": False,
}
_INTERNLM2 = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "vocab_size": 92553,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
INTERNLM2_2B = _INTERNLM2 | {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}
INTERNLM2_20B = _INTERNLM2 | {
    "hidden_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "intermediate_size": 16384,
    "rope_scaling": {"type": "dynamic", "factor": 3.0},
}
PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 32020,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48},  # sizes only
    "sliding_window": 262144,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
PARTS = {"2b": (VIT_300M, INTERNLM2_2B), "4b": (VIT_300M, PHI3_MINI), "26b": (VIT_6B, INTERNLM2_20B)}


def released_shapes(key):
    """A config.json's fields that decide the sizes of a released model."""
    vision, language = PARTS[key]
    return {
        "model_type": "internvl_chat",
        "force_image_size": 448,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "template": FAMILIES[key].template,
        "vision_config": vision,
        "llm_config": language,
    }


def config_of(name):
    """(config.json of a model or a run, whether it was read here): a released one that is not here by its sizes.

    Raises: CheckpointError for a folder that is no model.
    """
    try:
        return read_released_config(released_root(name)), True
    except CheckpointError:
        if name not in PARTS:
            raise
        return released_shapes(name), False


def empty_model(config):
    """(model on torch's meta device, its `Family`): every module, name and shape, no memory."""
    return on_meta(hf_config(config, image_token_id=0)), match_family(config)
