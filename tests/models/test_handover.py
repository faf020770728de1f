"""A colleague opens what was handed over, elsewhere, as someone else, and gets the same score."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import ExportError
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.models.export.export import export
from ivlkit.training.recipes import recipe
from ivlkit.training.run import runs
from ivlkit.training.runs import execute, write_run

SECRETS = (b"Secret", b"Exif", "Secret".encode("utf-16-le"))
RUN_CELLS = """
import json, sys
cells = json.load(open("ask_and_score.ipynb"))["cells"]
found = {}
for cell in cells:
    exec(cell["source"], found)
print(json.dumps({"user": __import__("os").getuid(), "cells": len(cells), "score": found["report"].score,
    "difference": found["scores"].difference, "replies": [row.reply for row in found["report"].rows],
    "asked": found["reply"].text, "predicted": [row.reply for row in found["found"].rows]}))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("private-name")


@pytest.fixture(scope="module")
def rows(work):
    """Six rows; their photos tell where they were taken, and lie on their side."""
    lines = []
    for number in range(6):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "SecretMaker", 6
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 1.0), 29: "Secret date"})
        Image.effect_noise((120 + 20 * number, 90), 60 + number).convert("RGB").save(
            work / f"{number}.jpg", exif=exif, comment=b"Secret comment"
        )
        turns = [{"from": "human", "value": "<image>\nWhat is written?"}, {"from": "gpt", "value": f"{number}, the"}]
        lines.append({"image": f"{number}.jpg", "conversations": turns, "kind": "ab"[number % 2]})
    for name, part in (("train.jsonl", lines[:4]), ("test.jsonl", lines[4:])):
        (work / name).write_text("".join(json.dumps(line) + "\n" for line in part))
    return work


@pytest.fixture(scope="module")
def made(tiny, rows):
    """(run, test rows, report, the folder that was handed over)."""
    settings = recipe("nano-lora", model=str(tiny), total_batch=2, per_device_batch=2, workers=0)
    data, test = open_data(rows / "train.jsonl"), open_data(rows / "test.jsonl")
    run = write_run(settings, data.select([0, 1, 2]), rows / "run", validation=data.select([3]))
    execute(run.folder)
    report = evaluate(run, test, metric="anls", max_new_tokens=8, progress=False)
    return run, test, report, export(run, rows / "given", handover=True, test=test, report=report)


def test_it_holds_labels_split_recipe_report_rows_and_a_notebook_of_four_cells(made):
    folder = made[3] / "handover"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("labels.csv", "split.csv", "run.yaml", "report.json", "report.html", "ask_and_score.ipynb"),
        *("test/rows.jsonl", "test/images/00000-0.png", "test/images/00001-0.png"),
    }
    labels = list(csv.DictReader((folder / "labels.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["part"] for row in labels] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert labels[3] == {
        **{"part": "validation", "row": "train.jsonl:4", "pictures": "3.jpg"},
        **{"question": "What is written?", "answer": "3, the"},
    }


def test_it_is_no_run_to_be_found_and_gone_on_with(made, rows):
    assert [run.folder for run in runs(rows)] == [made[0].folder]


def test_the_split_is_taken_again_by_whoever_has_the_pictures(made, rows, tmp_path):
    split = shutil.copy(made[3] / "handover" / "split.csv", tmp_path)
    lines = (rows / "test.jsonl").read_text() + (rows / "train.jsonl").read_text()
    (rows / "all.jsonl").write_text(lines)
    parts = open_data(rows / "all.jsonl").split(train=0.5, validation=0.2, test=0.3, file=split)
    answers = [[record.answer for record in part] for part in parts]
    assert answers == [["0, the", "1, the", "2, the"], ["3, the"], ["4, the", "5, the"]]


def test_no_folder_of_this_machine_and_no_metadata_is_in_it(made, rows, tiny):
    private = [os.fsencode(name) for name in (rows, rows.name, tiny, tiny.parent.name, Path.home())]
    for path in (made[3] / "handover").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [secret for secret in (*SECRETS, *private) if secret in content], path
    for path in (made[3] / "handover").rglob("*.png"):
        assert Image.open(path).info == {} and Image.open(path).size[0] == 90  # turned upright


def find_other_user():
    """Options of a process for another user who may run this Python; none where that is not allowed."""
    other = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        return other if not subprocess.run([sys.executable, "-c", "import ivlkit"], cwd="/", **other).returncode else {}
    except (PermissionError, OSError):
        return {}


def test_opened_elsewhere_by_someone_else_it_gives_the_same_score(made, rows, tmp_path):
    _, _, report, given = made
    theirs, other = shutil.copytree(given, tmp_path / "theirs"), find_other_user()
    for path in [tmp_path, *tmp_path.parents[:-2], *tmp_path.rglob("*")] if other else ():
        path.chmod(0o777)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    how = {"cwd": theirs / "handover", "env": environment, "capture_output": True, "text": True} | other
    gone = rows.rename(rows.with_name("gone"))  # nothing is read from where it was made
    try:
        done = subprocess.run([sys.executable, "-c", RUN_CELLS], **how)
    finally:
        gone.rename(rows)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cells"] == 4 and found["user"] == other.get("user", os.getuid())
    assert (found["score"], found["difference"]) == (report.score, 0.0)
    assert found["predicted"] == found["replies"] == [row.reply for row in report.rows]


def test_the_notebook_asks_with_the_tiles_and_the_seed_of_the_report(made, rows):
    run, test, _, _ = made
    report = evaluate(run, test, max_tiles=2, seed=7, max_new_tokens=8, progress=False)
    given = export(run, rows / "given2", handover=True, test=test, report=report)
    cells = json.loads((given / "handover" / "ask_and_score.ipynb").read_text())["cells"]
    asked = "{'max_new_tokens': 8, 'batch_size': 16, 'max_tiles': 2, 'seed': 7}"
    assert [asked in cell["source"] for cell in cells] == [False, False, True, True]


def half(reply, truth):
    return 0.5


def test_a_metric_of_one_s_own_is_asked_for_and_the_rest_runs(made, rows, monkeypatch):
    run, test, _, _ = made
    report = evaluate(run, test, metric=half, max_new_tokens=8, progress=False)
    given = export(run, rows / "given3", handover=True, test=test, report=report)
    monkeypatch.chdir(given / "handover")
    cells = [cell["source"] for cell in json.loads(Path("ask_and_score.ipynb").read_text())["cells"]]
    found = {}
    for cell in cells:
        exec(cell, found)
    assert found["scores"].metric == "exact_match"
    assert cells[-1].startswith("metric = None  # half")
    found["half"] = half
    exec(cells[-1].replace("None", "half", 1), found)
    assert (found["scores"].difference, found["report"].score) == (0.0, 0.5)


def test_what_is_missing_for_it_is_named_and_nothing_is_left(made, rows):
    run, test, report, _ = made
    for source, options in (
        (run, {"test": test}),
        (run, {"test": test, "report": rows / "given" / "handover" / "report.json"}),
        (run, {"report": report}),
        (run.folder, {"test": test, "report": report}),
    ):
        with pytest.raises(ExportError, match="handover=True without a run, its test rows and their report"):
            export(source, rows / "none", handover=True, **options)
    with pytest.raises(ExportError, match="the report is of other rows than `test`"):
        export(run, rows / "none", handover=True, test=rows / "train.jsonl", report=report)
    assert not (rows / "none").exists()
