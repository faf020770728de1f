"""What packing gives nano on a CPU: steps a second and filled places, padded beside packed.

    python benchmarks/packing.py                 # both data sets, every variant
    python benchmarks/packing.py --rounds 1      # a look

`strips` are the digit strips of the lesson, `mix` has the shares of tiles of a real instruction mix (30 % of 13 tiles,
20 % of 9, 20 % of 7, 10 % of 10, 10 % of 1, 10 % text) with answers of 1 to 60 words. A step is forward and backward of
nano-lora's 16 rows; reading rows and the optimiser, equal for all, are left out. The variants take turns at every step,
and of each step the fastest round counts: other programs only ever slow it down.

Steps a second on 2 cores shared with other programs (3 steps, 5 rounds; of the mix 2 steps, 4 rounds):

              padded  padded by 4  bins of 512  of 1,024  of 4,096 tokens
    strips      1.85         1.81         1.74      1.69      1.44
    mix         0.70         0.82         0.64      0.63      0.37

A CPU has no kernel for a bin's bounds: it computes the whole square and masks it, which costs more than the padding
did. So nano's recipes keep padded batches.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from ivlkit.data.checking.lengths import row_lengths
from ivlkit.data.collate import collate, collate_packed
from ivlkit.data.datasets.opening import open_data
from ivlkit.models.load import load
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.loop.loss import cross_entropy
from ivlkit.training.loop.schedule import MicroBatches, plan_grouped, plan_packed
from ivlkit.training.loop.state import begin
from ivlkit.training.loop.train import sum_losses, weigh
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

SIZES_PX = {
    13: (448, 336),
    9: (448, 224),
    7: (336, 224),
    10: (336, 336),
    1: (112, 112),
}  # at most 12 tiles and a thumbnail
SHARES = {13: 30, 9: 20, 7: 20, 10: 10, 1: 10, 0: 10}
VARIANTS = {
    "padded": {"packing": False},
    "padded by 4": {"packing": False, "per_device_batch": 4},
    "bins of 512": {"bin_tokens": 512},
    "bins of 1,024": {"bin_tokens": 1024},
    "bins of 4,096": {"bin_tokens": 4096},
}


def write_mix(folder, *, rows, seed=0):
    """A JSONL of `rows` rows with those shares; returns its path."""
    folder, draw = Path(folder), random.Random(seed)
    folder.mkdir(parents=True)
    for tiles, size in SIZES_PX.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{tiles}.png")
    lines = []
    for _ in range(rows):
        (tiles,) = draw.choices(list(SHARES), SHARES.values())
        answer = " ".join(draw.choices(("red", "round", "left", "seven", "small"), k=draw.randint(1, 60)))
        turns = [{"from": "human", "value": "What is there?"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps(({"image": f"{tiles}.png"} if tiles else {}) | {"conversations": turns}))
    (folder / "mix.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "mix.jsonl"


class Variant:
    """The micro-batches of the first steps under one way to batch, and the time each step took at best."""

    def __init__(self, vlm, path, changes, *, steps):
        self.recipe = recipe("nano-lora", **{"packing": True, "lora_dropout": 0.0, "max_seq_length": 512} | changes)
        data = open_data(path)
        tokens, tiles = row_lengths(data, vlm.processor, max_length=self.recipe.max_seq_length)
        self.plan = (plan_packed if self.recipe.packing else plan_grouped)(tokens, tiles, self.recipe)
        together = collate_packed if self.recipe.packing else collate
        self.made = MicroBatches(data, vlm.processor, self.recipe, self.plan, collate=together)
        size = self.plan.accumulation
        self.steps = [[self.made[step * size + part] for part in range(size)] for step in range(steps)]
        self.seconds, self.losses = [float("inf")] * steps, [0.0] * steps

    def run(self, training, step):
        """Forward and backward of one step."""
        weight = weigh(training, self.steps[step])
        began, total = time.perf_counter(), 0.0
        for batch in self.steps[step]:
            loss = sum_losses(training.engine, batch, training) / weight
            loss.backward()
            total += loss.item()
        self.seconds[step] = min(self.seconds[step], time.perf_counter() - began)
        self.losses[step] = total


def measure(path, *, steps, rounds):
    """{variant: (steps a second, share of filled places, mean loss)}."""
    vlm = load("nano")
    variants = {name: Variant(vlm, path, changes, steps=steps) for name, changes in VARIANTS.items()}
    some = variants["padded"]
    training = begin(prepare(vlm, some.recipe), some.made, loss_fn=cross_entropy, device=torch.device("cpu"))
    training.model.train()
    for step in (0, *(step for _ in range(rounds) for step in range(steps))):
        for variant in variants.values():
            variant.run(training, step)
    return {name: (steps / sum(one.seconds), one.plan.fill, sum(one.losses) / steps) for name, one in variants.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    rows = 16 * options.steps
    with tempfile.TemporaryDirectory() as folder:
        strips = write_digit_strips(Path(folder, "strips"), "train", rows=rows, digits=(1, 3), tasks=("read",))
        for name, path in (("strips", strips), ("mix", write_mix(Path(folder, "mix"), rows=rows))):
            for variant, (rate, fill, loss) in measure(path, steps=options.steps, rounds=options.rounds).items():
                print(f"{name:<7} {variant:<14} {rate:6.2f} steps/s  {fill:6.1%} filled  loss {loss:.4f}", flush=True)
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
