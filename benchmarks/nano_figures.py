"""The figures of nano's model card: its pre-training tasks, and how fine-tuning teaches it handwriting.

    python benchmarks/nano_figures.py pretraining                  # exact match of each curriculum task
    python benchmarks/nano_figures.py handwriting --jobs 2         # recipes on strips of one to three digits

Only training and validation splits are read; the test split of the digits is left for the lessons. Each figure is
printed as one line of JSON.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from ivlkit.data.mixture import open_data
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.models.load import load
from ivlkit.nano.curriculum import write_curriculum
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run

VALIDATION_SETS = {"one digit": ((1, 1), 500), "three digits": ((3, 3), 300)}
# (recipe, learning rate, rows, epochs): what is seen is rows · epochs
TRIALS = [
    ("nano-lora", rate, rows, epochs)
    for rate in (1e-3, 3e-3)
    for rows, epochs in ((4800, 1), (1600, 3), (1600, 2), (1600, 1))
]
TRIALS += [("nano-full", rate, 1200, 3) for rate in (5e-4,)]
TRIALS += [("nano-projector", rate, 1200, 3) for rate in (4e-3,)]


def pretraining(model, folder, *, rows=3000, batch_size=64):
    """Exact match of each task on the curriculum's validation split (words and fonts that training never shows).

    Returns: (report, {task: (score, rows)}).
    """
    path = write_curriculum(Path(folder) / "curriculum", rows=rows, split="validation", workers=os.cpu_count())
    vlm = load(model, dtype=torch.float32)
    report = evaluate(vlm, path, batch_size=batch_size, progress=False)
    return report, report.by("task")


def write_handwriting(folder):
    """Training strips of one to three digits and the validation sets; returns {name: path}."""
    folder = Path(folder)
    paths = {
        rows: write_digit_strips(folder / str(rows), "train", rows=rows, digits=(1, 3), tasks=("read",))
        for rows in sorted({rows for _, _, rows, _ in TRIALS})
    }
    for name, (digits, rows) in VALIDATION_SETS.items():
        paths[name] = write_digit_strips(folder / name, "validation", rows=rows, digits=digits, tasks=("read",))
    return paths


def score_handwriting(vlm, paths, *, batch_size=64):
    """{validation set: exact match}."""
    return {name: evaluate(vlm, paths[name], batch_size=batch_size, progress=False).score for name in VALIDATION_SETS}


def handwriting(model, paths, folder, trial):
    """Fine-tune `model` by one trial in this process; returns its scores, final loss and seconds."""
    name, rate, rows, epochs = trial
    changed = replace(recipe(name), model=str(model), learning_rate=rate, epochs=epochs)
    run = write_run(changed, open_data(paths[rows]), Path(folder) / f"{name}-{rate}-{rows}-{epochs}")
    started = time.monotonic()
    execute(run.folder)
    seconds = time.monotonic() - started
    losses = [line["loss"] for line in run.history[-20:]]
    scores = score_handwriting(load(run.folder, dtype=torch.float32), paths)
    result = {"recipe": name, "learning_rate": rate, "rows": rows, "epochs": epochs, **scores}
    return result | {"loss": round(sum(losses) / len(losses), 4), "seconds": round(seconds, 1)}


def _print_trial(model, paths, folder, trial):
    if torch.cuda.is_available():
        torch.set_num_threads(1)  # the GPU computes, and other trials want the cores
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            result = handwriting(model, paths, folder, trial) if trial else _before(model, paths)
    except Exception:  # one trial must not end the others
        result = {"trial": trial, "error": traceback.format_exc()}
    print(json.dumps(result), flush=True)


def _before(model, paths):
    return {"recipe": "none", **score_handwriting(load(model, dtype=torch.float32), paths)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pretraining", "handwriting"))
    parser.add_argument("--model", default="nano", help="a key or a folder")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "pretraining":
            report, tasks = pretraining(options.model, folder)
            print(
                report, *(json.dumps({"task": task, "exact": s, "rows": n}) for task, (s, n) in tasks.items()), sep="\n"
            )
            return
        paths = write_handwriting(folder)
        with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
            for trial in [None, *TRIALS]:
                pool.apply_async(_print_trial, (options.model, paths, folder, trial))
            pool.close()
            pool.join()


if __name__ == "__main__":
    main()
