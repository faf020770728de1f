"""Graphics cards as their data sheets list them, and what was measured on one."""

import math
from dataclasses import dataclass

LISTED_TO_MEASURED = 790 / 989  # an H100's bf16 product of 8,192 x 8,192 beside its data sheet


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet lists it: dense 16-bit TFLOP/s with float32 sums, TB/s, GiB."""

    tflops: float
    tb_per_second: float
    gib: float
    bf16: bool = True

    @property
    def matrix_rate(self):
        """Operations a second that large products reach."""
        return self.tflops * 1e12 * LISTED_TO_MEASURED


CARDS = {
    "B200": Card(2250, 7.7, 178.4),
    "H200": Card(989, 4.8, 139.8),
    "H100": Card(989, 3.35, 79.2),
    "A100": Card(312, 2.04, 79.2),
    "A100 40GB": Card(312, 1.56, 39.4),
    "L40S": Card(362, 0.864, 44.4),
    "RTX 6000 Ada": Card(364, 0.96, 47.4),
    "A6000": Card(155, 0.768, 47.5),
    "RTX PRO 6000": Card(504, 1.792, 94.9),
    "RTX 5090": Card(210, 1.792, 31.4),
    "RTX 4090": Card(165, 1.008, 23.6),
    "RTX 3090": Card(71, 0.936, 23.6),
    "A10": Card(125, 0.6, 22.1),
    "L4": Card(121, 0.3, 22.2),
    "V100": Card(125, 0.9, 31.7, bf16=False),
    "T4": Card(65, 0.32, 14.6, bf16=False),
}


@dataclass(frozen=True)
class Measured:
    """A run that was measured: peak GiB that torch allocated, useful tokens a second."""

    model: str
    language: str
    bin_tokens: int
    gradient_checkpointing: str
    compile: bool
    vision_int8: bool
    adapter_bytes: int  # 4: adapters computed in float32, without autocast
    peak_gib: float
    tokens_a_second: int
    by: str
    card: str = "H100"


# On one GPU: LoRA of rank 16, dropout 0.05, about 2,260 tokens and 8.2 tiles a row. The kit's rows are of
# `benchmarks/train_gpu.py`; the prototype was 40 lines without a Trainer that tried bins, kernel and compiling first.
MEASURED = (
    Measured("2b", "lora", 14336, "none", False, False, 2, 51.3, 24_426, "the kit"),
    Measured("2b", "lora", 14336, "full", False, False, 2, 8.16, 18_363, "the kit"),
    Measured("2b", "lora", 14336, "none", True, False, 2, 43.6, 33_502, "the kit"),
    Measured("2b", "lora", 14336, "full", True, False, 2, 8.22, 25_349, "the kit"),
    Measured("2b", "full", 14336, "full", False, False, 2, 36.9, 19_737, "the kit"),
    Measured("2b", "lora", 14336, "full", False, False, 4, 9.6, 13_273, "a prototype"),
    Measured("2b", "lora", 14336, "none", False, False, 4, 64.9, 18_177, "a prototype"),
    Measured("26b", "lora", 8192, "full", False, False, 4, 58.4, 1_963, "a prototype"),
    Measured("26b", "lora", 8192, "full", True, False, 2, 56.3, 2_686, "a prototype"),
    Measured("26b", "qlora", 4096, "full", False, True, 4, 22.6, 1_532, "a prototype"),
    Measured("2b", "lora", 14336, "none", False, False, 2, 51.35, 27_356, "the kit", "H200"),
    Measured("2b", "lora", 14336, "none", True, False, 2, 43.65, 37_051, "the kit", "H200"),
    Measured("2b", "lora", 14336, "full", True, False, 2, 8.22, 28_441, "the kit", "H200"),
    Measured("2b", "lora", 12288, "full", True, False, 2, 7.41, 27_237, "the kit", "H200"),
    Measured("2b", "full", 14336, "full", True, False, 2, 34.35, 28_712, "the kit", "H200"),
    Measured("4b", "lora", 8192, "none", False, False, 2, 44.48, 14_071, "the kit", "H200"),
    Measured("4b", "lora", 8192, "full", False, False, 2, 11.09, 10_529, "the kit", "H200"),
    Measured("4b", "lora", 8192, "none", True, False, 2, 37.88, 21_196, "the kit", "H200"),
    Measured("4b", "lora", 8192, "full", True, False, 2, 11.12, 14_560, "the kit", "H200"),
    Measured("4b", "full", 8192, "full", False, False, 2, 69.11, 10_122, "the kit", "H200"),
    Measured("26b", "lora", 8192, "full", False, False, 2, 56.25, 2_542, "the kit", "H200"),
    Measured("26b", "lora", 8192, "full", True, False, 2, 56.16, 3_184, "the kit", "H200"),
)


def match_card(name):
    """The card of a driver's name: "NVIDIA A100-SXM4-40GB" → A100 40GB's; None for one that is not listed."""
    plain = name.replace("-", " ").replace("SXM4 ", "").replace("PCIE ", "").replace("PCIe ", "")
    found = [key for key in CARDS if f" {key} " in f" {plain} "]  # whole words: an A1000 is no A100
    return CARDS[max(found, key=len)] if found else None


def probe_cpu(size=768, repeats=3):
    """This CPU as a `Card`: float32 products and copies, a tenth of a second."""
    import time

    import torch

    left, copied, target = torch.ones(size, size), torch.ones(2**24), torch.ones(2**24)
    seconds = []
    for work in (lambda: left @ left, lambda: target.copy_(copied)):
        work()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        seconds.append((time.perf_counter() - began) / repeats)
    rate, moved = 2 * size**3 / seconds[0], 2 * copied.nbytes / seconds[1]
    return Card(rate / 1e12 / LISTED_TO_MEASURED, moved / 1e12, math.inf, bf16=False)


def find_measured(recipe):
    """What was measured with a recipe's settings, in words; "" if nothing was."""
    names = ("model", "language", "gradient_checkpointing", "compile", "vision_int8")
    plain = recipe.packing and recipe.weights == "bf16" and recipe.vision == "frozen" and not recipe.vision_offload
    found = [
        f"{one.peak_gib} GiB allocated and {one.tokens_a_second:,} tokens/s by {one.by} on an {one.card}"
        for one in MEASURED
        if plain
        and recipe.budgets[0] == one.bin_tokens
        and all(getattr(recipe, name) == getattr(one, name) for name in names)
    ]
    return f"measured with these settings: {'; '.join(found)}; about 2,260 tokens and 8.2 tiles a row" if found else ""
