"""torchao's weight-only float8 beside ours, for the linear layers of the 2B's decoder: bytes, speed and error.

    python benchmarks/float8_storage.py                                 # one GPU; pip install torchao
    python benchmarks/float8_storage.py --divide 32 --tokens 64         # anywhere

Weights (standard deviation 0.02) and rows (of one) are random, in bf16. MiB are held, scales included; milliseconds are
of the product alone, and of it with the gradient of its rows; an error is a share of the norm of float32's product.
"""

import argparse

import torch
from float8_errors import matrices
from torch import nn
from torch.utils.benchmark import Timer
from torchao import __version__
from torchao.quantization import Float8WeightOnlyConfig, quantize_

from ivlkit.models.modeling.float8 import Float8Linear


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--divide", type=int, default=1, help="sides of the matrices, for a try")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, torchao {__version__}, {options.tokens:,} rows on {device}\n")
    print("| way | matrix | out x in | MiB | error | gradient's error | eager ms | both | compiled ms | both |")
    print("| --- " * 10 + "|", flush=True)
    decoder = {name: shape for name, shape in matrices("2b").items() if name.startswith("decoder ")}
    for way, swap in WAYS.items():  # torchao last: it sets options of torch.compile for all that follow
        for name, shape in decoder.items():
            height, width = (side // options.divide for side in shape)
            found = measure(swap, height, width, tokens=options.tokens, device=device)
            print(f"| {' | '.join((way, name, f'{height} x {width}', *found))} |", flush=True)


def weight_only(linear):
    """torchao's: e4m3 with a scale a row, widened for every product."""
    quantize_(held := nn.Sequential(linear), Float8WeightOnlyConfig())
    return held[0]


WAYS = {"bf16": lambda linear: linear, "ivlkit": Float8Linear, "torchao": weight_only}


def measure(swap, height, width, *, tokens, device):
    """The figures of a matrix, as text in the order of the table."""
    torch.manual_seed(0)
    linear = nn.Linear(width, height, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
    nn.init.normal_(linear.weight, std=0.02)
    x = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(tokens, height, device=device, dtype=torch.bfloat16)
    exact = x.detach().float() @ linear.weight.float().t(), upstream.float() @ linear.weight.float()
    layer = swap(linear)

    def passes(called):
        """Forward alone, and the gradient of x by way of it."""
        return lambda: called(x.detach()), lambda: torch.autograd.grad(called(x), x, upstream)[0]

    pairs = zip(passes(layer), exact, strict=True)
    errors = [f"{((compute().float() - right).norm() / right.norm()).item():.2%}" for compute, right in pairs]
    torch._dynamo.reset()  # eight graphs of one `forward` are its limit
    times = []
    for compute in (*passes(layer), *passes(torch.compile(layer))):
        compute()  # built outside of the clock
        times.append(f"{1000 * Timer('compute()', globals={'compute': compute}).blocked_autorange().mean:.3f}")
    return f"{sum(map(held_bytes, [*layer.parameters(), *layer.buffers()])) / 2**20:.3f}", *errors, *times


def held_bytes(tensor):
    """Of a tensor, or of those that a tensor of torchao's is made of."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    return sum(getattr(tensor, name).nbytes for name in names) or tensor.nbytes


if __name__ == "__main__":
    main()
