"""Weights in fewer bits by bitsandbytes: the language model in NF4.

The projector and the head stay as they are, and the tower out of 4 bits, in which InternViT-6B breaks.
"""

from ...errors import CheckpointError

# Whole prefixes: "vision_tower" alone would match nothing, and the tower become 4 bits without a word.
KEPT = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def nf4_config(dtype):
    """NF4 with quantised scales, computed in `dtype`: QLoRA's way (arXiv:2305.14314)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"quantised weights: bitsandbytes does not import ({error}); expected it; pip install 'ivlkit[quant]'"
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=KEPT,
    )


def keep_scales(model):
    """NF4 weights answer as loaded: at the first question on a CPU with AVX512-BF16 bitsandbytes would round scales."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def count_values(parameter):
    """Values of a parameter; two of NF4 share a byte, and ZeRO-3 leaves none but a share in place."""
    state = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if state is None else state.shape.numel()
