"""Frozen matrices in float8: e4m3 values with a scale a row, multiplied as they are stored where the card can.

A row of activations gets its scale as it comes, so an outlier costs its own token alone. NVIDIA's cards multiply e4m3
from Ada on (compute capability 8.9); an older one widens a matrix while it is multiplied: the memory without the speed.
On a CPU the same e4m3 values are multiplied in float32: torch's own product there takes shapes that CUDA refuses, and
no empty batch.
"""

import torch
from torch import library, nn
from torch.nn import functional as F

from ...errors import CheckpointError

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
SMALLEST_ROW = 1e-12  # a row of zeros has a scale too
MULTIPLE = 16  # values: CUDA's rule for both sides of a matrix
HAS_SCALED_MM = hasattr(F, "scaled_mm") and torch.__version__ >= (2, 13)  # the first one known to compile it
PARTS = ("model.language_model.layers.", "model.vision_tower.encoder.")  # embeddings, projector and head stay


def to_float8(model, *, device=None, tower=True):
    """Swap the frozen matrices of the decoder and the tower for float8 ones; a second time changes nothing.

    Args:
        model: a `ReleasedInternVLForConditionalGeneration`, adapters of PEFT allowed, which stay as they are.
        device: where the float8 matrices go, one after the other; None: where they are.
        tower: whether the tower's are swapped too.
    Returns: the number of matrices. Raises: CheckpointError for one whose sides are no multiples of 16.
    """
    swapped = 0
    for name in [name for name, _ in model.named_modules()]:  # by name: a list of modules would keep their weights
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(name)
        if type(module) is nn.Linear and ".lora_" not in name and name.startswith(PARTS[: 1 + tower]):
            if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
                raise CheckpointError(
                    f"{name}: a matrix of {module.out_features} x {module.in_features}, to be float8; expected "
                    f"multiples of {MULTIPLE}; load it without"
                )
            setattr(model.get_submodule(parent), own, Float8Linear(module, device=device))
            swapped += 1
    return swapped


def holds_float8(model):
    """Whether a matrix of the model is in float8."""
    return any(isinstance(module, Float8Linear) for module in model.modules())


class Float8Linear(nn.Linear):
    """A frozen linear layer in float8, from one of any precision.

    `weight` [N, K] is stored as uint8 and the scale as the bits of a float32: `.to(dtype)` changes floating tensors
    only, and PEFT would give its adapters the precision of a floating weight.
    """

    def __init__(self, linear, *, device=None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = quantise(linear.weight.detach().to(device))
        self.weight = nn.Parameter(values.view(torch.uint8), requires_grad=False)
        self.register_buffer("scale_bits", scale.view(torch.int32))  # [N, 1]
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)
        self.multiplies = multiplies_float8(self.weight.device)

    def forward(self, x, quantised=None):
        """x [..., K] → [..., N] in x's dtype, or autocast's.

        Args: quantised: `quantise` of x [M, K], where another layer reads x too.
        """
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        rows = x.reshape(-1, self.in_features)
        values, scale = (None, None) if not self.multiplies else quantised or quantise(rows.detach())
        out = frozen_product(rows, values, scale, self.weight, self.scale_bits.view(torch.float32), dtype)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(dtype)

    def _apply(self, fn, recurse=True):
        """What `.to()` calls: another device may multiply otherwise."""
        super()._apply(fn, recurse)
        self.multiplies = multiplies_float8(self.weight.device)
        return self


def multiplies_float8(device):
    """Whether products of e4m3 are made there: on a CPU by way of float32."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def quantise(rows):
    """Rows [M, K] → (e4m3 values [M, K], float32 scales [M, 1]): values · scale is about the rows."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_ROW) / LARGEST
    return (wide / scale).to(E4M3).contiguous(), scale


# An operator, not an `autograd.Function`: where a function reads only the quantised x, torch.compile (2.11) takes x for
# unused and gives it no gradient.
@library.custom_op("ivlkit::frozen_product", mutates_args=())
def frozen_product(
    x: torch.Tensor,
    values: torch.Tensor | None,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """x [M, K] times a frozen W [N, K] → [M, N]; `values` and `scale` are `quantise` of x, or None to widen W."""
    if values is None:
        return x.to(dtype) @ widen(weight, weight_scale, dtype).t()
    return multiply(values, weight.view(E4M3).t(), scale, weight_scale.t()).to(dtype)


@frozen_product.register_fake
def _(x, values, scale, weight, weight_scale, dtype):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)  # `len` would tie a graph to one length


def _keep(ctx, inputs, output):
    """Nothing but W, which is there anyway, is kept for backward."""
    x, values, _, weight, weight_scale, _ = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.dtype, ctx.multiplies = x.dtype, values is not None


def _backward(ctx, gradient):
    """A row of W has one scale, so it belongs to a column of the gradient, which is quantised with it by row."""
    weight, weight_scale = ctx.saved_tensors
    if ctx.multiplies:
        turned = weight.t().contiguous().view(E4M3).t()  # [N, K] with N side by side, for CUDA
        values, scale = quantise(gradient * weight_scale.t())
        found = multiply(values, turned, scale, scale.new_ones(1, weight.shape[1]))
    else:
        found = gradient @ widen(weight, weight_scale, gradient.dtype)
    return found.to(ctx.dtype), None, None, None, None, None


frozen_product.register_autograd(_backward, setup_context=_keep)


def widen(weight, scale, dtype):
    """Bytes [N, K] that are e4m3, with scales [N, 1] → [N, K] in another dtype."""
    return (weight.view(E4M3).to(torch.float32) * scale).to(dtype)


def multiply(a, b, scale_a, scale_b):
    """a [M, K] times b [K, N], both e4m3, each row of a and each column of b with its scale → [M, N].

    On a GPU in bf16, as row scales want it; elsewhere in float32.
    """
    check_scaled(a, b)
    if a.device.type != "cuda":
        return (a.float() @ b.float()) * scale_a * scale_b
    if a.shape[0] == 0:
        return a.new_empty(0, b.shape[1], dtype=torch.bfloat16)
    if not HAS_SCALED_MM:
        return torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=True)
    by_row = F.ScalingType.RowWise
    return F.scaled_mm(*(a, b, scale_a, by_row, scale_b, by_row), output_dtype=torch.bfloat16, use_fast_accum=True)


def check_scaled(a, b):
    """Hold two operands [M, K] and [K, N] against CUDA's rules, on every device.

    Raises: ValueError for another type than e4m3, sides that are no multiples of 16, or a wrong order in memory.
    """
    (_, inner), (height, width) = a.shape, b.shape
    found = f"{a.dtype} {tuple(a.shape)} times {b.dtype} {tuple(b.shape)}"
    if a.dtype != E4M3 or b.dtype != E4M3:
        raise ValueError(f"{found}; expected e4m3 twice")
    if inner != height or inner % MULTIPLE or width % MULTIPLE:
        raise ValueError(f"{found}; expected [M, K] times [K, N], K and N multiples of {MULTIPLE}")
    if a.stride(1) != 1 or b.stride(0) != 1:
        raise ValueError(f"{found} with strides {a.stride()} and {b.stride()}; expected a by rows and b by columns")
