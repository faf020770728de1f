"""Attention for packed rows: which kernel this machine has, switched on for the language model while it trains.

A packed row holds several samples, told apart by positions that restart. transformers' sdpa, eager, flex and flash
attention honour them by themselves. torch's own variable-length kernel (`torch.nn.attention.varlen`: flash attention
without another package) is registered here, under `VARLEN`, and takes the samples' bounds.

Only training on packed rows runs under these. Padded batches, evaluation and generation belong under sdpa: `VARLEN`
can't see padding or a cache, and refuses both rather than be wrong without a word.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from transformers.utils import is_flash_attn_2_available

VARLEN = "ivlkit_varlen"
PADDED = "sdpa"
FIRST_WITH_FLASH = (8, 0)  # Ampere: bf16 and flash attention


@dataclass(frozen=True)
class AttentionChoice:
    """A backend's name in transformers, and why this one. Printed before training."""

    name: str
    why: str
    packs: bool = True  # False: a card for which padded batches are the better way

    def __str__(self):
        return f"attention: {self.name} ({self.why})"


NO_PACKING = AttentionChoice(PADDED, "padded batches, as the recipe says", packs=False)


def choose_attention(device):
    """The fastest attention for packed rows that this device has: varlen, flash_attention_2, flex_attention or sdpa."""
    device = torch.device(device)
    if device.type != "cuda":
        return AttentionChoice(PADDED, f"{device.type}: a mask of the samples; no kernel for bounds here")
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_WITH_FLASH:
        return AttentionChoice(PADDED, f"capability {capability[0]}.{capability[1]}: padded batches", packs=False)
    if _varlen_kernel() is not None:
        return AttentionChoice(VARLEN, "torch.nn.attention.varlen")
    lacking = f"torch {torch.__version__} has no varlen kernel"
    if is_flash_attn_2_available():
        return AttentionChoice("flash_attention_2", f"{lacking}; flash-attn has")
    return AttentionChoice("flex_attention", f"{lacking}, and no flash-attn is here")


@contextmanager
def use_attention(model, name):
    """The language model under one backend, for the length of a `with`; the vision tower keeps its own.

    Args: model: the InternVL model, or PEFT's wrapper around it; name: of transformers' ("sdpa", …), or `VARLEN`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config.text_config._attn_implementation
    if name == VARLEN:
        register_varlen()
    base.set_attn_implementation({"text_config": name})
    try:
        yield model
    finally:
        base.set_attn_implementation({"text_config": before})


def rope_limits(text_config):
    """(tokens up to which every length has the same rope, whether longer rows share one): `packing.rope_groups`' rules.

    Returns: (4096, True) for Phi-3's longrope, (32768, False) for a dynamic rope of that context, (None, True) for
        plain rope.
    """
    rope = text_config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        return rope.get("original_max_position_embeddings", text_config.max_position_embeddings), True
    return (text_config.max_position_embeddings, False) if kind == "dynamic" else (None, True)


def packed_arguments(cu_seqlens, max_length):
    """The bounds of the samples as transformers passes them on to an attention function."""
    bounds = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
    return bounds | {"max_length_q": max_length, "max_length_k": max_length}


def register_varlen():
    """Make `VARLEN` known to transformers, as attention and as mask: without the latter a mask would be dropped."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(VARLEN, partial(varlen_attention, kernel=_varlen_kernel()))
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, _no_mask)


def varlen_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    kernel,
    scaling=None,
    dropout=0.0,
    cu_seq_lens_q=None,
    max_length_q=None,
    **_,
):
    """Causal attention within each sample of one packed row. query [1, heads, L, D], key and value [1, kv heads, L, D].

    Args: kernel: torch's `varlen_attn`, looked up beforehand: a compiled layer can't.
    Returns: ([1, L, heads, D], None). Raises: ValueError without bounds, or for what the kernel can't do.
    """
    if attention_mask is not None or cu_seq_lens_q is None or len(query) != 1:
        raise ValueError(f"{VARLEN} attention on a batch that is not packed; expected one row with cu_seq_lens_q")
    if dropout:
        raise ValueError(f"{VARLEN} attention with dropout {dropout}; the kernel has none; use sdpa")
    groups = query.shape[1] // key.shape[1]
    states = [_rows(query, value.dtype, 1), _rows(key, value.dtype, groups), _rows(value, value.dtype, groups)]
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    output = kernel(*states, *bounds, scale=scaling, window_size=(-1, 0))  # [L, heads, D]
    return output[None], None


def _rows(states, dtype, times):
    """[1, heads, L, D] → [L, heads · times, D]; rotary embeddings leave float32 behind under autocast."""
    states = states[0].transpose(0, 1).to(dtype).contiguous()  # [L, heads, D]
    return states.repeat_interleave(times, dim=1) if times > 1 else states


def _no_mask(*, attention_mask=None, q_length=None, kv_length=None, **_):
    if attention_mask is not None:
        raise ValueError(f"{VARLEN} attention with a padding mask; padded batches and generation run under sdpa")
    if q_length is not None and int(q_length) != int(kv_length):
        raise ValueError(f"{VARLEN} attention with a cache; generation runs under sdpa")
    return None


def _varlen_kernel():
    """torch's function where it has causal windows; the first releases of the module took other arguments."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "scale"} <= known.keys() else None
