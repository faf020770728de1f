"""What nano knows, and what fine-tuning teaches it: the figures of its model card. Each is printed when it is measured.

    python benchmarks/nano.py curriculum     # each task it was trained on; without tiles; with another row's pictures
    python benchmarks/nano.py accents        # six new names with accents, before and after 40 steps of LoRA
    python benchmarks/nano.py handwriting    # LoRA, full, projector: score, minutes, memory, parameters
    python benchmarks/nano.py curve          # score over 25 to 400 rows
    python benchmarks/nano.py forgetting     # what it still knows after handwriting, alone and with 10 % of old rows
    python benchmarks/nano.py forgetting --recipes nano-lora nano-full --rows 400 --train-rows 1200 --epochs 2 --to \
        ivlkit/nano/forgetting.json          # the log that notebook 11 shows, about 10 minutes on 2 cores
    python benchmarks/nano.py equality       # greedy replies on CPU and GPU, and after a save and a load
    python benchmarks/nano.py float8         # beside float32: untrained, trained on it, and exported after that

Settings are chosen on `--split validation`, the default; `--split test` is for the figures that are reported. Every
digit picture of a split is in one strip only, so an interval over strips is one over digit pictures.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import psutil
import torch

import ivlkit as ivl
from ivlkit.data.files import sha256
from ivlkit.evaluation.metrics import exact_match, iou_at_50
from ivlkit.models.load import load
from ivlkit.nano.curriculum import Curriculum, write_curriculum
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import train

FINE_PRINT = ("receipt", "chart", "whole_print")
DIGITS = (3, 3)
STRIPS = {"validation": 166, "test": 166}  # of three of the split's 500 digits, each used once
TRAIN_ROWS = 4200  # strips of one to three digits
RECIPES = ("nano-lora", "nano-full", "nano-projector")
CURVE_ROWS = (25, 50, 100, 200, 400)
OLD_SHARE = 0.1
NAMES = {"green": "grün", "pink": "weiß", "red": "naïve", "brown": "café", "blue": "año", "yellow": "żółty"}
NAMED_ROWS = {"train": 640, "validation": 120}  # 40 steps of 16 rows


def right(reply, truth):
    """Exact match; a box is right from an intersection over union of 0.5."""
    return iou_at_50(reply, truth) if "<box>" in truth else exact_match(reply, truth)


def say(**figures):
    """One line of JSON."""
    print(json.dumps(figures), flush=True)


def say_score(name, report, **more):
    """A score with its interval, in percent."""
    low, high = report.interval
    say(
        what=name, percent=_percent(report.score), low=_percent(low), high=_percent(high), rows=len(report.rows), **more
    )


def _percent(share):
    return round(100 * share, 1)


def curriculum(options, folder):
    """Each task; fine print with one tile; everything with shuffled pictures."""
    vlm = load(options.model, dtype=torch.float32)
    rows = list(Curriculum(options.rows, "validation"))
    asked = {"metric": right, "batch_size": options.batch_size, "progress": False, "max_new_tokens": 128}
    report = ivl.evaluate(vlm, rows, **asked)
    shuffled = ivl.evaluate(vlm, rows, pictures="shuffled", **asked)
    fine = [row for row in rows if row.extra["task"] in FINE_PRINT]
    squeezed = ivl.evaluate(vlm, fine, max_tiles=1, **asked)
    for task in report.by("task"):
        control = {"shuffled": _percent(shuffled.select(task=task).score)}
        if task in FINE_PRINT:
            control["one_tile"] = _percent(squeezed.select(task=task).score)
        say_score(task, report.select(task=task), **control)
    accented = tuple(row for row in report.rows if not row.truth.isascii())
    say_score("words with accents", replace(report, rows=accented))
    say_score("all", report, shuffled=_percent(shuffled.score))


def accents(options, folder):
    """Colours under new names with accents, before and after one epoch of LoRA."""
    data, test = (write_names(folder / split, split, rows) for split, rows in NAMED_ROWS.items())
    say_score("new names, before", ask(load(options.model, dtype=torch.float32), test, options))
    run, cost = fit("nano-lora", data, folder / "run", options)
    after = ask(load(run.folder, dtype=torch.float32), test, options)
    say_score("new names, nano-lora", after, steps=len(run.history), **cost)


def write_names(folder, split, rows):
    """The curriculum's rows that ask for one of six colours, with another name as the answer; the path of the JSONL."""
    drawn = Curriculum(3 * rows, split, seed="names", shares={"shape_colour": 1})
    named = [record for record in drawn if record.answer in NAMES][:rows]
    (folder / "images").mkdir(parents=True)
    lines = []
    for record in named:
        image = f"images/{record.id}.png"
        record.images[0].save(folder / image)
        question, answer = record.turns[0].text, NAMES[record.answer]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append({"id": record.id, "image": image, "conversations": turns})
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_strips(folder, split, *, rows=None):
    """Strips to train on (one to three digits), or the ones that are asked about (three)."""
    if split == "train":
        return write_digit_strips(folder / "train", rows=rows or TRAIN_ROWS, digits=(1, 3), tasks=("read",))
    return write_digit_strips(folder / split, split, rows=STRIPS[split], digits=DIGITS, tasks=("read",))


def ask(vlm, path, options):
    """The report of a model on strips."""
    return ivl.evaluate(vlm, path, batch_size=options.batch_size, progress=False)


def fit(name, data, folder, options):
    """Train one recipe in a process of its own. Returns (run, {"minutes", "peak_gib", "trainable"})."""
    started, chosen = time.monotonic(), recipe(name, model=options.model)
    chosen = replace(chosen, epochs=options.epochs or chosen.epochs)
    run = train(chosen, ivl.open_data(data), folder=folder)
    peak = 0
    while run.state == "running":
        try:
            peak = max(peak, psutil.Process(int((run.folder / "pid").read_text())).memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    run.wait()
    return run, {
        "minutes": round((time.monotonic() - started) / 60, 2),
        "peak_gib": round(peak / 2**30, 2),
        "trainable": _trainable(run),
    }


def _trainable(run):
    """The last column of the table at the head of the run's output."""
    lines = map(str.split, (run.folder / "output.txt").read_text().splitlines())
    table = [line for line in lines if line[:1] and line[0] in ("vision", "projector", "language", "head")]
    return sum(int(row[-1].replace(",", "")) for row in table[:4])


def handwriting(options, folder):
    """Before, and after each recipe (`--recipes`), on the same strips."""
    test, data = write_strips(folder, options.split), write_strips(folder, "train")
    say_score("before", ask(load(options.model, dtype=torch.float32), test, options))
    for name in options.recipes:
        run, cost = fit(name, data, folder / name, options)
        say_score(name, ask(load(run.folder, dtype=torch.float32), test, options), **cost)


def curve(options, folder):
    """Nested subsets of the same strips, LoRA, the recipe's one epoch of each times what makes 1,600 rows seen."""
    test, data = write_strips(folder, options.split), ivl.open_data(write_strips(folder, "train", rows=max(CURVE_ROWS)))
    found = ivl.learning_curve(
        recipe("nano-lora", model=options.model, epochs=4), data, test, rows=CURVE_ROWS, folder=folder / "curve"
    )
    for point in found.points:
        say_score(f"{point.rows} rows", point.report, steps=point.steps)


def forgetting(options, folder):
    """Curriculum and handwriting before, after handwriting alone, and with 10 % of the curriculum; `--to` keeps it."""
    alone = write_strips(folder, "train", rows=options.train_rows)
    data = {"alone": alone, f"{OLD_SHARE:.0%} old rows": mix_in(alone, folder, options.train_rows)}
    vlm = load(options.model, dtype=torch.float32)
    log = {"model_sha256": sha256(vlm.folder / "model.safetensors"), "cores": ivl.machine().cpu_count}
    log |= {"train_rows": options.train_rows, "epochs": options.epochs, "old_rows": options.rows}
    asks = partial(ask_both, options=options, test=write_strips(folder, options.split))
    log["runs"] = {"before": asks("before", vlm)}
    for name, (mix, path) in product(options.recipes, data.items()):
        key = f"{name}, {mix}"
        run, cost = fit(name, path, folder / key, options)
        log["runs"][key] = asks(key, load(run.folder, dtype=torch.float32)) | cost
    if options.to:
        options.to.write_text(json.dumps(log) + "\n", encoding="utf-8")


def ask_both(name, vlm, *, options, test):
    """{"old": [score, low, high] on the curriculum, "tasks": {task: (score, rows)} of it, "new": on strips}."""
    asked = {"metric": right, "batch_size": options.batch_size, "progress": False, "max_new_tokens": 128}
    old = ivl.evaluate(vlm, list(Curriculum(options.rows, "validation")), **asked)
    new = ask(vlm, test, options)
    say_score(f"curriculum, {name}", old)
    say_score(f"handwriting, {name}", new)
    return {"old": [old.score, *old.interval], "new": [new.score, *new.interval], "tasks": old.by("task")}


def mix_in(new, folder, rows):
    """A meta file of the new rows and so many of the curriculum's that these are `OLD_SHARE` of all."""
    old = write_curriculum(folder / "old", round(rows * OLD_SHARE / (1 - OLD_SHARE)), "train", seed=1)
    meta = {name: {"root": str(path.parent), "annotation": str(path)} for name, path in (("new", new), ("old", old))}
    path = folder / "mixed.json"
    path.write_text(json.dumps(meta))
    return path


def equality(options, folder):
    """Equal greedy replies in float32: CPU and GPU, and the model that was saved and loaded."""
    rows = list(Curriculum(options.rows, "validation"))
    vlm = load(options.model, device="cpu", dtype=torch.float32)
    copy = load(ivl.export(vlm, to=folder / "copy"), device="cpu", dtype=torch.float32)
    others = {"saved and loaded": copy}
    if torch.cuda.is_available():
        others["on the GPU"] = load(options.model, device="cuda", dtype=torch.float32)
    asked = {"batch_size": options.batch_size, "progress": False}
    expected = [row.reply for row in ivl.evaluate(vlm, rows, **asked).rows]
    for name, other in others.items():
        replies = [row.reply for row in ivl.evaluate(other, rows, **asked).rows]
        differ = [number for number, pair in enumerate(zip(expected, replies, strict=True)) if pair[0] != pair[1]]
        say(what=f"equal replies, {name}", equal=len(rows) - len(differ), rows=len(rows), first_different=differ[:5])


def float8(options, folder):
    """Float8 beside float32 on `--rows` strips and as many of the curriculum, before and after LoRA on each."""
    strips = write_digit_strips(folder / "asked", options.split, rows=options.rows, digits=DIGITS, tasks=("read",))
    data = {"handwriting": strips, "curriculum": list(Curriculum(options.rows, "validation"))}
    models = {name: load(options.model, dtype=torch.float32, quantize=name) for name in (None, "float8")}
    say_pair("before", *models.values(), data, options)
    train_on = write_strips(folder, "train", rows=options.train_rows)
    chosen = recipe("nano-lora", model=options.model, epochs=options.epochs or 1)
    runs = [replace(chosen, weights=weights) for weights in ("bf16", "float8")]
    runs = [train(one, ivl.open_data(train_on), folder=folder / one.weights).wait() for one in runs]
    tuned = [load(run.folder, dtype=torch.float32) for run in runs]
    say_pair("after LoRA", *tuned, data, options)
    merged = load(ivl.export(runs[1], to=folder / "merged"), dtype=torch.float32)
    say_pair("the float8 run's export", merged, tuned[1], data, options)


def say_pair(name, exact, other, data, options):
    """Scores of two models on the same rows, and in how many their replies are equal."""
    for what, rows in data.items():
        asked = {"metric": right, "batch_size": options.batch_size, "progress": False, "max_new_tokens": 128}
        reports = [ivl.evaluate(vlm, rows, **asked) for vlm in (exact, other)]
        say_score(f"{what}, {name}", reports[0])
        equal = [one.reply == two.reply for one, two in zip(reports[0].rows, reports[1].rows, strict=True)]
        say_score(f"{what}, {name}, float8", reports[1], equal_replies=_percent(sum(equal) / len(equal)))


PARTS = {part.__name__: part for part in (curriculum, accents, handwriting, curve, forgetting, equality, float8)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", default="nano", help="a key or a folder")
    parser.add_argument("--rows", type=int, default=1000, help="of the curriculum")
    parser.add_argument("--split", choices=STRIPS, default="validation", help="digits that are asked about")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS, help="strips that forgetting trains on")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--to", type=Path, help="JSON that forgetting writes")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        PARTS[options.part](options, Path(folder))


if __name__ == "__main__":
    main()
