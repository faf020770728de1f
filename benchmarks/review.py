"""What a confidence is worth, and how soon a wrong label is found: each figure is printed when it is measured.

    python benchmarks/review.py confidence   # AUROC and calibration error on fresh rows, before and after training
    python benchmarks/review.py planted      # wrong labels found in the first 5, 10 and 20 %, after 4 and 20 epochs
    python benchmarks/review.py planted --epochs 20 --folds 4   # beside those by folds, for each of which it trains
    python benchmarks/review.py pictures     # predict on small pictures: rows/s, memory, killed and continued

On nano and its handwritten strips; `--to` keeps the runs, which go on where they stopped.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import ivlkit as ivl
from ivlkit.data.collate import collate, normalise_tiles
from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Turn
from ivlkit.evaluation.confidence import TEMPERATURES, calibration_error, ranking_score, tempered
from ivlkit.models.load import load
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.recipes import recipe

ROWS = 400
PLANTED = 0.05  # of the rows
EPOCHS = (4, 20)
SWAPPED = str.maketrans("17", "71")
FIRST = (0.05, 0.10, 0.20)
FRESH, VALIDATION = 1000, 300
OF_LOGITS = np.geomspace(0.25, 4, 41).tolist()


def say(**figures):
    """One line of JSON."""
    print(json.dumps(figures), flush=True)


def one_digit(labels):
    """One label in twenty with one digit changed."""
    rng, wrong = random.Random(0), list(labels)
    for row in rng.sample(range(len(labels)), round(PLANTED * len(labels))):
        place = rng.randrange(len(labels[row]))
        other = rng.choice([digit for digit in "0123456789" if digit != labels[row][place]])
        wrong[row] = labels[row][:place] + other + labels[row][place + 1 :]
    return wrong


def shifted(labels):
    """One row in twenty, all in a block, with the label of the row below."""
    count = round(PLANTED * len(labels))
    start = (len(labels) - count) // 2
    return [*labels[:start], *labels[start + 1 : start + count + 1], *labels[start + count :]]


def swapped(labels):
    """One of eight labellers reads every 1 as 7 and every 7 as 1."""
    return [label.translate(SWAPPED) if row % 8 == 0 else label for row, label in enumerate(labels)]


KINDS = {"one_digit": one_digit, "shifted": shifted, "swapped": swapped}


def plant(folder, kind, rows):
    """(the JSONL with wrong labels, numbers of the rows that are wrong)."""
    path = write_digit_strips(folder / "strips", rows=rows, digits=(1, 3), tasks=("read",))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = [row["conversations"][1]["value"] for row in rows]
    wrong = KINDS[kind](labels)
    for row, label in zip(rows, wrong, strict=True):
        row["conversations"][1]["value"] = label
    planted = path.with_name(f"{kind}.jsonl")
    planted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return planted, {number for number, label in enumerate(labels) if label != wrong[number]}


def fit(folder, data, epochs):
    """nano-lora on the rows, learned in a process of its own, or as it was left there."""
    chosen = recipe("nano-lora", epochs=epochs)
    return ivl.train(chosen, ivl.open_data(data), folder=folder / f"{Path(data).stem}-{epochs}").wait()


def each_model(folder, data, epochs):
    """("base", nano), and ("4 epochs", the model trained so long) for each number."""
    yield "base", load("nano"), None
    for number in epochs:
        run = fit(folder, data, number)
        yield f"{number} epochs", run.load(), run


def planted(options, folder):
    """Wrong labels among the first rows of each order, in percent of the wrong ones."""
    for kind in options.kinds:
        data, wrong = plant(folder, kind, options.strips)
        records = ivl.open_data(data)
        for name, vlm, run in each_model(folder, data, options.epochs):
            report = ivl.evaluate(vlm, data, progress=False)
            orders = {order: report.review(vlm, order=order, data=records) for order in ("loss", "sure", "random")}
            if run and options.folds:
                orders[f"{options.folds} folds"] = report.review(run, folds=options.folds)
            for order, review in orders.items():
                numbers = review.numbers
                found = [len(wrong & set(numbers[: round(share * len(numbers))])) for share in FIRST]
                percent = {
                    f"in {share:.0%}": round(100 * n / len(wrong)) for share, n in zip(FIRST, found, strict=True)
                }
                say(kind=kind, wrong=len(wrong), model=name, order=order, **percent, told_right=round(report.score, 3))


def confidence(options, folder):
    """On fresh strips of digits that no training has seen; each temperature is fitted on other, validation ones."""
    strips = {
        split: write_digit_strips(folder / split, split, rows=rows, digits=(1, 3), tasks=("read",))
        for split, rows in (("validation", VALIDATION), ("test", options.rows))
    }
    data = write_digit_strips(folder / "clean", rows=ROWS, digits=(1, 3), tasks=("read",))
    for name, vlm, _ in each_model(folder, data, options.epochs):
        known, fresh = (with_logits(vlm, strips[split]) for split in ("validation", "test"))
        for kind, (score, temperatures) in CHANCES.items():
            best = min(temperatures, key=lambda t, score=score: log_loss(score(known, t), right(known)))
            values = score(fresh, best)
            numbers = (measure(values, right(fresh)) for measure in (ranking_score, calibration_error, log_loss))
            numbers = dict(
                zip(("auroc", "error", "log_loss"), (round(float(each), 3) for each in numbers), strict=True)
            )
            say(model=name, kind=kind, temperature=round(float(best), 2), **numbers)
        say(model=name, right=round(fresh.score, 3), rows=len(fresh.rows), said=repr(known.calibration()))


def with_logits(vlm, data):
    """The report of a model, with `logit_scores` among its details."""
    report = ivl.evaluate(vlm, data, progress=False)
    return replace(report, details=report.details | {"logits": logit_scores(vlm, report, data)})


def right(report):
    """Whether each row is."""
    return [row.is_right for row in report.rows]


def whole(report):
    """The confidence of each row."""
    return np.array([row.confidence for row in report.rows])


def lengths(report):
    """Tokens of each reply."""
    return np.array([len(row.token_scores) for row in report.rows])


def odds(report, temperature):
    """What the package takes: the log-odds of each token divided by the temperature."""
    return tempered([row.token_scores for row in report.rows], temperature)


CHANCES = {  # kind → (function of (report, temperature) → a chance for each row, the temperatures tried)
    "as it is": (lambda report, _: whole(report), [1.0]),
    "mean of tokens": (lambda report, _: whole(report) ** (1 / lengths(report)), [1.0]),
    "power of the whole": (lambda report, temperature: whole(report) ** (1 / temperature), TEMPERATURES),
    "log-odds of each token": (odds, TEMPERATURES),
    "logits": (lambda report, temperature: report.details["logits"][OF_LOGITS.index(temperature)], OF_LOGITS),
}


def log_loss(values, rights):
    """Mean log loss of chances to be right."""
    values, rights = np.clip(np.asarray(values, float), 1e-9, 1 - 1e-9), np.asarray(rights, bool)
    return float(-np.where(rights, np.log(values), np.log(1 - values)).mean())


@torch.inference_mode()
def logit_scores(vlm, report, data):
    """The probability of each reply from logits divided by each of OF_LOGITS: [temperatures, rows]."""
    found = []
    for record, row in zip(ivl.open_data(data), report.rows, strict=True):
        said = replace(record, turns=(*record.turns[:-1], Turn("assistant", row.reply)))
        batch = collate([encode(said, vlm.processor, draw=None)], pad_token_id=vlm.tokenizer.pad_token_id)
        targets = batch["labels"][0, 1:]
        logits = vlm.model(input_ids=batch["input_ids"], pixel_values=normalise_tiles(batch["tiles"])).logits[0, :-1]
        logits, targets = logits[targets >= 0].float(), targets[targets >= 0]
        scaled = (torch.stack([logits / temperature for temperature in OF_LOGITS])).log_softmax(-1)
        places = targets[None, :, None].expand(len(OF_LOGITS), -1, 1)
        found.append(scaled.gather(-1, places)[..., 0].sum(-1).exp().numpy())
    return np.stack(found, axis=1)


PREDICT = """
import resource, sys, time, json
import ivlkit as ivl
started = time.monotonic()
found = ivl.predict("nano", sys.argv[1], question="What number is written here?", to=sys.argv[2], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
asked, seconds = found.details["rows asked in them"], found.details["seconds"]
print(json.dumps({"rows": len(found), "asked": asked, "seconds": seconds, "peak_mib": round(peak)}))
"""


def pictures(options, folder):
    """Single digits in files of their own: rows/s and peak memory of a tenth and of all; all again, killed half way."""
    for rows in (options.rows // 10, options.rows):
        strips = write_digit_strips(folder / str(rows), rows=rows, digits=(1, 1), tasks=("read",))
        command = [sys.executable, "-c", PREDICT, str(strips.parent / "images")]
        print(subprocess.run([*command, str(folder / f"{rows}.csv")], capture_output=True, text=True).stdout, end="")
    again = folder / "killed.csv"
    child, journal = subprocess.Popen([*command, str(again)]), folder / "killed.csv.replies" / "replies.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < rows // 2:
        time.sleep(0.5)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    print(subprocess.run([*command, str(again)], capture_output=True, text=True).stdout, end="")
    say(killed_after=rows // 2, same_file=again.read_bytes() == (folder / f"{rows}.csv").read_bytes())


def main():
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[function.__name__ for function in (confidence, planted, pictures)])
    parser.add_argument("--epochs", type=int, nargs="*", default=EPOCHS)
    parser.add_argument("--folds", type=int, help="of planted: parts of the rows, each judged by a model without it")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="of planted")
    parser.add_argument("--strips", type=int, default=ROWS, help="of planted")
    parser.add_argument("--rows", type=int, default=FRESH)
    parser.add_argument("--to", type=Path, help="a folder that is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        globals()[options.what](options, options.to or Path(folder))


if __name__ == "__main__":
    main()
