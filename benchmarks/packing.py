"""What packing gives nano on a CPU: steps a second and filled places, padded beside packed.

    python benchmarks/packing.py                 # both data sets, every variant, two rounds in turn
    python benchmarks/packing.py --steps 10      # a look

`strips` are the digit strips of the lesson, `mix` has the shares of tiles of a real instruction mix (30 % of 13 tiles,
20 % of 9, 20 % of 7, 10 % of 10, 10 % of 1, 10 % text) with answers of 1 to 60 words. Each row of the table is one
variant's best round, since other programs only ever slow a round down. Equal steps, equal losses.
"""

import argparse
import contextlib
import json
import os
import random
import re
import tempfile
from pathlib import Path

from PIL import Image

from ivlkit.data.mixture import open_data
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run

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


def measure(path, folder, changes):
    """(steps a second without the first, share of filled places, last loss) of a run of nano-lora in this process."""
    chosen = recipe("nano-lora", **{"packing": True, "lora_dropout": 0.0, "max_seq_length": 512} | changes)
    run = write_run(chosen, open_data(path), folder)
    output = folder / "said.txt"
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        execute(run.folder)
    history = run.history
    rate = (len(history) - 1) / (history[-1]["seconds"] - history[0]["seconds"])
    filled = float(re.search(r"([\d.]+)% of the places filled", output.read_text())[1])
    return rate, filled, history[-1]["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rows = 16 * options.steps
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sets = {
            "strips": write_digit_strips(folder / "strips", "train", rows=rows, digits=(1, 3), tasks=("read",)),
            "mix": write_mix(folder / "mix", rows=rows),
        }
        for name, path in sets.items():
            found = {}
            for number in range(options.rounds):
                for variant, changes in VARIANTS.items():
                    place = folder / f"{name}-{variant}-{number}".replace(" ", "-")
                    found.setdefault(variant, []).append(measure(path, place, changes))
            for variant, rounds in found.items():
                rate, filled, loss = max(rounds)
                print(
                    f"{name:<7} {variant:<14} {rate:6.2f} steps/s  {filled:5.1f} % filled  loss {loss:.4f}", flush=True
                )
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
