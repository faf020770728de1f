"""Graphics cards as their data sheets list them, and what was measured on one."""

import math
from dataclasses import dataclass

from ..recipes import RECIPES

LISTED_TO_MEASURED = 790 / 989  # an H100's bf16 product of 8,192 x 8,192 beside its data sheet


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet lists it: dense 16-bit TFLOP/s with float32 sums, TB/s, GiB."""

    tflops: float
    tb_per_second: float
    gib: float
    bf16: bool = True
    float8: bool = True  # multiplied as it is stored, twice as fast as bf16; else widened first

    @property
    def matrix_rate(self):
        """Operations a second that large products reach."""
        return self.tflops * 1e12 * LISTED_TO_MEASURED


CARDS = {
    "B200": Card(2250, 7.7, 178.4),
    "H200": Card(989, 4.8, 139.8),
    "H100": Card(989, 3.35, 79.2),
    "A100": Card(312, 2.04, 79.2, float8=False),
    "A100 40GB": Card(312, 1.56, 39.4, float8=False),
    "L40S": Card(362, 0.864, 44.4),
    "RTX 6000 Ada": Card(364, 0.96, 47.4),
    "A6000": Card(155, 0.768, 47.5, float8=False),
    "RTX PRO 6000": Card(504, 1.792, 94.9),
    "RTX 5090": Card(210, 1.792, 31.4),
    "RTX 4090": Card(165, 1.008, 23.6),
    "RTX 3090": Card(71, 0.936, 23.6, float8=False),
    "A10": Card(125, 0.6, 22.1, float8=False),
    "L4": Card(121, 0.3, 22.2),
    "V100": Card(125, 0.9, 31.7, bf16=False, float8=False),
    "T4": Card(65, 0.32, 14.6, bf16=False, float8=False),
}


@dataclass(frozen=True)
class Measured:
    """A run that was measured: peak GiB that torch allocated, useful tokens a second."""

    model: str
    language: str
    bin_tokens: int
    gradient_checkpointing: str
    compile: bool
    weights: str
    peak_gib: float
    tokens_a_second: int
    card: str = "H200"
    vision_offload: bool = False


# `benchmarks/train_gpu.py` on one GPU, about 2,260 tokens and 8.2 tiles a row, these fields as released.
AS_RELEASED = ("vision", "unfreeze_vit_layers", "projector", "lora_rank", "lora_dropout", "optimizer", "packing")
MEASURED = (
    Measured("2b", "lora", 14336, "full", False, "bf16", 8.16, 18_363, "H100"),
    Measured("2b", "lora", 14336, "full", True, "bf16", 8.22, 25_349, "H100"),
    Measured("2b", "full", 14336, "full", False, "bf16", 36.9, 19_737, "H100"),
    Measured("2b", "lora", 14336, "none", True, "bf16", 37.57, 40_143),
    Measured("2b", "lora", 14336, "full", True, "bf16", 8.22, 28_441),
    Measured("2b", "lora", 12288, "full", True, "bf16", 7.41, 27_237),
    Measured("2b", "full", 14336, "full", True, "bf16", 34.35, 28_712),
    Measured("2b", "lora", 14336, "none", True, "float8", 36.33, 45_552),
    Measured("2b", "lora", 14336, "full", True, "float8", 6.72, 34_417),
    Measured("4b", "lora", 8192, "none", False, "bf16", 44.48, 14_071),
    Measured("4b", "lora", 8192, "full", False, "bf16", 11.09, 10_529),
    Measured("4b", "lora", 8192, "none", True, "bf16", 37.88, 21_196),
    Measured("4b", "lora", 8192, "full", True, "bf16", 11.12, 14_560),
    Measured("4b", "full", 8192, "full", False, "bf16", 69.11, 10_122),
    Measured("4b", "lora", 8192, "none", True, "float8", 35.1, 23_914),
    Measured("26b", "lora", 8192, "full", False, "bf16", 56.25, 2_542),
    Measured("26b", "lora", 8192, "full", True, "bf16", 56.16, 3_184),
    Measured("26b", "lora", 8192, "full", True, "float8", 33.92, 4_597),
    Measured("26b", "qlora", 4096, "full", False, "bf16", 17.0, 2_001, vision_offload=True),
    Measured("26b", "qlora", 4096, "full", True, "bf16", 16.62, 2_684, vision_offload=True),
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
    return Card(rate / 1e12 / LISTED_TO_MEASURED, moved / 1e12, math.inf, bf16=False, float8=False)


def find_measured(recipe):
    """What was measured with a recipe's settings, in words; "" if nothing was."""
    names = ("model", "language", "gradient_checkpointing", "compile", "weights", "vision_offload")
    base = RECIPES.get(f"{recipe.model}-{'full' if recipe.language == 'full' else 'lora'}")
    if not base or recipe.processes > 1 or any(getattr(recipe, name) != getattr(base, name) for name in AS_RELEASED):
        return ""
    found = [
        f"{one.peak_gib} GiB allocated and {one.tokens_a_second:,} tokens/s by the kit on an {one.card}"
        for one in MEASURED
        if recipe.budgets[0] == one.bin_tokens and all(getattr(recipe, name) == getattr(one, name) for name in names)
    ]
    return f"measured with these settings: {'; '.join(found)}; about 2,260 tokens and 8.2 tiles a row" if found else ""
