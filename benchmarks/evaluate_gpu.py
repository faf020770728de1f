"""Replies a second: one question at a time as one writes it first, and in batches as `evaluate` asks.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/evaluate_gpu.py nano      # anywhere, beside other programs too
    python benchmarks/evaluate_gpu.py 2b --tokenizer FOLDER             # one GPU, random weights at true size
    python benchmarks/evaluate_gpu.py 2b --tokenizer FOLDER --dtype float32 --rows 64
    python benchmarks/evaluate_gpu.py 26b --tokenizer FOLDER --quantize float8 --rows 128

Every question has a picture of its own, so nothing is gained by remembering features. Both ways get the same questions
and exactly so many new tokens; the questions asked one at a time are the first of those asked in batches. Random
weights choose between nearly equal tokens, so fewer replies are equal in bfloat16 than a trained model's would be.
"""

import argparse
import time
from pathlib import Path

import torch
from true_size import draw_picture, show, write_random

from ivlkit.models.load import load
from ivlkit.models.shapes import RELEASED

SIZES = ((640, 480), (1920, 1080), (448, 448), (800, 600))  # 13, 9, 1 and 13 tiles
NEW_TOKENS = {"a word": 2, "a sentence": 32}


def main():
    """Print a JSON line for the model, and one for each reply length: speeds, their ratio, equal replies."""
    options = parse()
    dtype = options.dtype and getattr(torch, options.dtype)
    vlm = load(model_folder(options), dtype=dtype, quantize=options.quantize)
    questions = [f"What number is this? Row {number}" for number in range(options.rows)]
    pictures = [draw_picture(*SIZES[number % len(SIZES)], number) for number in range(options.rows)]
    show("model", loaded=repr(vlm), rows=options.rows, batch_size=options.batch_size, torch=torch.__version__)
    ask_one_by_one(vlm, questions[:2], pictures[:2], 2)  # kernels are built outside of the clock
    for name, tokens in NEW_TOKENS.items():
        few = options.one_by_one
        alone, seconds_alone = timed(ask_one_by_one, vlm, questions[:few], pictures[:few], tokens)
        ask = {"batch_size": options.batch_size, **exactly(tokens)}
        batched, seconds = timed(vlm.chat_batch, questions, pictures, **ask)
        speeds = [few / seconds_alone, options.rows / seconds]
        equal = [one.text == other.text for one, other in zip(alone, batched, strict=False)]
        show(
            name,
            new_tokens=tokens,
            one_by_one=round(speeds[0], 2),
            batched=round(speeds[1], 2),
            times=round(speeds[1] / speeds[0], 1),
            equal=f"{sum(equal)} of {few}",
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else None,
        )


def parse():
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"{', '.join(RELEASED)}: random weights at true size; or nano, or a model folder")
    parser.add_argument("--tokenizer", help="folder with the family's tokenizer files, for random weights")
    parser.add_argument("--work", default="/tmp/true_size", help="where random weights are written")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--quantize", choices=["float8", "4bit"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--one-by-one", type=int, default=48, help="rows asked one at a time; their speed is the same")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    options.one_by_one = min(options.one_by_one, options.rows)
    if options.model in RELEASED and not options.tokenizer:
        parser.error(f"{options.model} needs --tokenizer FOLDER")
    return options


def model_folder(options):
    """The folder or key to load; random weights are written once."""
    if options.model not in RELEASED:
        return options.model
    folder = Path(options.work) / options.model / "model"
    if not (folder / "config.json").exists():
        write_random(folder, options.model, Path(options.tokenizer))
    return folder


def ask_one_by_one(vlm, questions, pictures, tokens):
    """A loop over `chat`."""
    return [vlm.chat(*asked, **exactly(tokens)) for asked in zip(questions, pictures, strict=True)]


def exactly(tokens):
    """Options of `generate` for so many new tokens."""
    return {"min_new_tokens": tokens, "max_new_tokens": tokens}


def timed(function, *arguments, **options):
    """(result, seconds). Replies are texts: the device has finished."""
    started = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - started


if __name__ == "__main__":
    main()
