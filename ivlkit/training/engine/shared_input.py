"""Layers that read one input share its work: q, k and v of an attention, gate and up of an MLP.

PEFT gives each adapter a dropout mask of its own and a product of its own with A, and each float8 matrix would quantise
the input again. Here one mask is drawn for all, as the released LoRA does on its fused wqkv, the A matrices are
multiplied at once, and the input is quantised once. Without dropout the losses are PEFT's. Parameters, their names and
the adapter's file stay as they are.
"""

from functools import cache

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from ...models.modeling.float8 import Float8Linear, quantise

READERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ADAPTER = "default"


def share_inputs(model):
    """Let the readers of one input, adapters or float8 matrices, share its work. Returns the number of such inputs.

    Modules get a subclass of their own class, so that compiled layers of one kind still share one graph.
    """
    shared = 0
    for module in list(model.modules()):
        for names in READERS:
            readers = [getattr(module, name, None) for name in names]
            if all(map(_is_plain, readers)):
                module.__class__, module.reader_names = _mixed(_Shares, type(module)), names
                for place, reader in enumerate(readers):
                    reader.__class__, reader.place = _mixed(_Reads, type(reader)), place
                shared += 1
    return shared


def _is_plain(layer):
    """Whether a layer is float8 or has LoRA's B · A beside it, and none of PEFT's variants, such as DoRA."""
    return isinstance(layer, (LoraLayer, Float8Linear)) and not getattr(layer, "lora_variant", None)


@cache
def _mixed(mixin, kind):
    return type(kind.__name__, (mixin, kind), {})


class _Shares:
    """An attention or MLP that hands its input to its readers as a `SharedInput`."""

    def forward(self, hidden_states, *args, **kwargs):
        readers = [getattr(self, name) for name in self.reader_names]
        return super().forward(SharedInput(hidden_states, readers), *args, **kwargs)


class _Reads:
    """A reader: for a tensor what it was before."""

    def forward(self, x, *args, **kwargs):
        if not isinstance(x, SharedInput):
            return super().forward(x, *args, **kwargs)
        base = _base(self)
        product = super().forward if base is self else base
        out = product(x.x, x.quantised) if isinstance(base, Float8Linear) else product(x.x)
        down = x.down[self.place]
        if down is None:
            return out
        return (out + self.lora_B[ADAPTER](down) * self.scaling[ADAPTER]).to(out.dtype)


class SharedInput:
    """In place of a tensor [..., K]: what its readers need of it, and its shape, which is all that others ask for."""

    def __init__(self, x, readers):
        self.x, self.shape = x, x.shape
        self.quantised = None
        if any(getattr(_base(one), "multiplies", False) for one in readers):
            self.quantised = quantise(x.detach().reshape(-1, x.shape[-1]))
        adapts = [isinstance(one, LoraLayer) and not (one.disable_adapters or one.merged) for one in readers]
        parts = _multiply_at_once(x, [one for one, yes in zip(readers, adapts, strict=True) if yes])
        self.down = [parts.pop(0) if yes else None for yes in adapts]  # [..., r] of each reader

    def size(self):
        """As of a tensor."""
        return self.shape


def _multiply_at_once(x, layers):
    """[..., r] of each adapter: the input, dropped out once, times the A matrices one below the other."""
    if not layers:
        return []
    matrices = [one.lora_A[ADAPTER].weight for one in layers]
    dropped = layers[0].lora_dropout[ADAPTER](layers[0]._cast_input_dtype(x, matrices[0].dtype))
    return list(F.linear(dropped, torch.cat(matrices)).split([len(one) for one in matrices], dim=-1))


def _base(layer):
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
