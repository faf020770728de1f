"""Eight rows learned by heart: what training must be able to do when labels, template and learning rate are right."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import RecipeError
from ivlkit.nano.curriculum import make_sample
from ivlkit.training import runs
from ivlkit.training.loop import execute
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import train


@pytest.fixture
def swapped(write_rows, turns, tmp_path):
    """Ten printed numbers that nano reads, each with the number of the fifth picture after it as its answer."""
    samples = [make_sample("printed_number", random.Random(seed), split="validation") for seed in range(10)]
    truths = [sample.turns[0][1] for sample in samples]
    for number, sample in enumerate(samples):
        sample.pictures[0].save(tmp_path / f"{number}.png")
    answers = truths[5:] + truths[:5]
    assert all(answer != truth for answer, truth in zip(answers, truths, strict=True))
    question = samples[0].turns[0][0]
    return open_data(
        write_rows(
            [{"image": f"{n}.png", "conversations": turns(question, answer)} for n, answer in enumerate(answers)]
        )
    )


@pytest.mark.parametrize("language", ["lora", "qlora"])
def test_answers_that_belong_to_other_pictures_are_learned_by_heart(language, swapped, tmp_path):
    """They can come from training only: the model knew others. `qlora`: adapters on NF4."""
    if language == "qlora":
        pytest.importorskip("bitsandbytes")
    run = train(recipe("nano-lora", language=language, max_tiles=1), swapped, overfit=8, folder=tmp_path / "run").wait()
    before, *_, after = ([answer["right"] for answer in line["answers"]] for line in run.validation)
    assert (sum(before), sum(after)) == (0, 8)
    assert run.notices[-1] == (
        "overfit: 8 of 8 rows are answered with their own truth: labels, template and learning rate can teach"
    )


def test_a_rate_that_teaches_nothing_is_found(swapped, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_start", lambda run: runs.execute(run.folder))
    chosen = recipe("nano-lora", model=str(tiny), learning_rate=1e-9, max_tiles=1)
    run = train(chosen, swapped, overfit=2, folder=tmp_path / "run")
    (notice,) = [line for line in run.notices if line.startswith("overfit: ")]
    assert "overfit: 0 of 2 rows are answered with their own truth; expected all; first train.jsonl:1: " in notice
    assert "raise learning_rate" in notice


def test_without_best_weights_the_last_answers_count(tmp_path):
    lines = [{"step": step, "answers": [{"right": step == 50}]} for step in (0, 25, 50)]
    said = execute._say_overfit(SimpleNamespace(folder=tmp_path, validation=lines))
    assert said.startswith("overfit: 1 of 1 rows are answered")


def test_a_number_that_is_none_of_rows_is_refused(swapped):
    for rows in (0, -1, 2.5):
        with pytest.raises(RecipeError, match=f"overfit={rows}; expected a number of rows, such as 8"):
            train("nano-lora", swapped, overfit=rows)


def test_the_benchmark_takes_learning_through_the_whole_chain(tmp_path):
    """`benchmarks/overfit_gpu.py` on nano from random weights: every stage, each in a process of its own."""
    pytest.importorskip("bitsandbytes")
    command = [sys.executable, "benchmarks/overfit_gpu.py", "--model", "nano", "--work", str(tmp_path)]
    root, rates = Path(__file__).parents[2], ["--rate", "1e-3", "--adapter-rate", "3e-3"]
    environ = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([*command, *rates], capture_output=True, text=True, cwd=root, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]  # other programs write there too
    lines = {line["step"]: line for line in map(json.loads, said)}
    assert {name: line["right"] for name, line in lines.items()} == {
        **dict.fromkeys(("write", "full", "export", "lora", "float8", "nf4")),
        **dict.fromkeys(("evaluate", "loaded", "plain", "lora-loaded", "float8-loaded", "nf4-loaded"), 8),
    }
    assert lines["plain"]["class"] == "InternVLForConditionalGeneration"
