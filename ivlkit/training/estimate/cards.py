"""Graphics cards as their data sheets list them, and what was measured on some."""

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

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
    bus_gb_per_second: int = 25  # from the host, as by PCIe 4; by PCIe 5 twice that: assumed, not measured

    @property
    def matrix_rate(self):
        """Operations a second that large products reach."""
        return self.tflops * 1e12 * LISTED_TO_MEASURED


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
    card: str
    vision_offload: bool = False


# Fields that the measured runs had as their released recipe has them.
AS_RELEASED = ("vision", "unfreeze_vit_layers", "projector", "lora_rank", "lora_dropout", "optimizer", "packing")
_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CARDS = {name: Card(*row) for name, row in _TABLES["cards"].items()}
MEASURED = tuple(Measured(*row) for row in _TABLES["measured"])


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
