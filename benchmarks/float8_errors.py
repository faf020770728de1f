"""What float8 makes of outliers: the error of every matrix of a family's decoder and tower, beside that of bf16.

    python benchmarks/float8_errors.py --key 26b --out float8_errors.md

Random weights (standard deviation 0.02) and rows of a standard deviation of one, in which 8 channels are multiplied by
1, 100 and 1,000. An error is the norm of the difference to a product in float32, as a share of the norm of what the
ordinary channels alone would give: outliers make the output large, but what is said beside them must not be lost. The
gradient's error is a share of the gradient's norm, of a gradient without outliers. Runs on a CPU too, more slowly.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from ivlkit.models.modeling.float8 import PARTS, Float8Linear
from ivlkit.models.shapes import RELEASED, empty_model

CHANNELS, FACTORS = 8, (1, 100, 1000)
HEAD = ("matrix", "out x in", "channels x", "bf16", "float8", "gradient bf16", "gradient float8")


def main():
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", default="2b", choices=("2b", "4b", "26b"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("float8_errors.md"))
    options = parser.parse_args()
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, (height, width) in matrices(options.key).items():
        for factor in FACTORS:
            found = errors(height, width, factor, rows=options.rows, device=options.device)
            lines.append((name, f"{height} x {width}", f"{factor:,}", *(f"{one:.2%}" for one in found)))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    options.out.write_text(text)
    print(text)


def matrices(key):
    """{name: (out, in)} of a decoder layer and a tower layer, one of each shape."""
    model, _ = empty_model(RELEASED[key])
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.startswith(PARTS):
            shape = (module.out_features, module.in_features)
            found.setdefault(shape, f"{'tower' if 'vision' in name else 'decoder'} {name.rpartition('.')[2]}")
    return {name: shape for shape, name in found.items()}


def errors(height, width, factor, *, rows, device):
    """Errors (bf16, float8, bf16's gradient, float8's gradient) of one matrix."""
    torch.manual_seed(0)
    linear = nn.Linear(width, height, bias=False, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(height, width, device=device) * 0.02)
    x = torch.randn(rows, width, device=device).bfloat16()
    plain = x.float()
    x[:, :: width // CHANNELS][:, :CHANNELS] *= factor
    exact = x.float() @ linear.weight.float().t()
    ordinary = (plain @ linear.weight.float().t()).norm()
    upstream = torch.randn(rows, height, device=device).bfloat16()
    exact_gradient = upstream.float() @ linear.weight.float()
    outputs, gradients = [], []
    for layer in (linear, Float8Linear(linear)):
        read = x.clone().requires_grad_()
        out = layer(read)
        (gradient,) = torch.autograd.grad(out, read, upstream)
        outputs.append(((out.float() - exact).norm() / ordinary).item())
        gradients.append(((gradient.float() - exact_gradient).norm() / exact_gradient.norm()).item())
    return (*outputs, *gradients)


if __name__ == "__main__":
    main()
