"""Weights in fewer bits by bitsandbytes: the language model in NF4, a frozen vision tower in int8.

One configuration of transformers can't hold both kinds, so the tower's matrices are swapped after loading. The
projector and the head stay as they are, and the tower out of 4 bits, in which InternViT-6B breaks.
"""

import logging

import torch

from ...errors import CheckpointError

# Whole prefixes: "vision_tower" alone would match nothing, and the tower become 4 bits without a word.
KEPT = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
INT8_THRESHOLD = 6.0  # LLM.int8's: inputs beyond it are multiplied in half precision (arXiv:2208.07339)


def nf4_config(dtype):
    """NF4 with quantised scales, computed in `dtype`: QLoRA's way (arXiv:2305.14314)."""
    _import_bitsandbytes()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=KEPT,
    )


def tower_to_int8(model):
    """Swap the matrices of the tower's layers for 8-bit ones, which don't train. Returns their number."""
    bitsandbytes = _import_bitsandbytes()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every product
    swapped = 0
    for module in list(model.model.vision_tower.encoder.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, _int8(child, bitsandbytes))
                swapped += 1
    return swapped


def _int8(linear, bitsandbytes):
    device, weight = linear.weight.device, linear.weight.data
    new = bitsandbytes.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=INT8_THRESHOLD,
        device="meta",
    )
    new.weight = bitsandbytes.nn.Int8Params(weight.to("cpu"), requires_grad=False, has_fp16_weights=False)
    new.bias = linear.bias
    return new.to(device)  # quantised on the way


def count_values(parameter):
    """Values of a parameter; two of NF4 share a byte, and ZeRO-3 leaves none but a share in place."""
    state = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if state is None else state.shape.numel()


def _import_bitsandbytes():
    try:
        import bitsandbytes
    except ImportError as error:
        raise CheckpointError(
            f"quantised weights: bitsandbytes does not import ({error}); expected it; pip install 'ivlkit[quant]'"
        ) from error
    return bitsandbytes
