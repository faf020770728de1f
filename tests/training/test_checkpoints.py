"""Checkpoints are whole or not there, whatever happens while one is written or afterwards."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.files import vanish
from ivlkit.errors import TrainingError
from ivlkit.models.load import load
from ivlkit.training.checkpoints import (
    checkpoints,
    find_damage,
    keep_newest,
    last_whole,
    tidy,
    write_contents,
    writing_checkpoint,
)
from ivlkit.training.loop.build import build_training
from ivlkit.training.recipes import recipe

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def start(tiny, mixed_rows, tmp_path):
    """`start()` → a `Trial` of seven rows, four a step, with a checkpoint every step."""

    def make(**changes):
        chosen = recipe(
            "nano-lora", **{"model": str(tiny), "total_batch": 4, "per_device_batch": 4, "epochs": 3} | changes
        )
        vlm = load(tiny)
        return Trial(build_training(vlm, vlm.processor, chosen, open_data(mixed_rows))[0], tmp_path / "run")

    return make


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints of two files, of steps 8, 9 and 10."""
    for step in (8, 9, 10):
        path = tmp_path / f"checkpoint-{step}"
        (path / "state").mkdir(parents=True)
        (path / "model.safetensors").write_bytes(bytes(range(100)))
        (path / "state" / "rank_0.pt").write_bytes(b"moments")
        write_contents(path)
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_the_newest_has_the_highest_step_and_others_names_are_left_alone(folder):
    (folder / "checkpoint-11.part").mkdir()
    (folder / "checkpoint-best").mkdir()
    assert names(checkpoints(folder)) == ["checkpoint-8", "checkpoint-9", "checkpoint-10"]
    assert last_whole(folder) == (folder / "checkpoint-10", {})
    keep_newest(folder, 2)
    assert names(checkpoints(folder)) == ["checkpoint-9", "checkpoint-10"]
    keep_newest(folder, 5)
    assert names(checkpoints(folder)) == ["checkpoint-9", "checkpoint-10"]


def _turn_bit(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: _turn_bit(path / "model.safetensors"), "model.safetensors is not as it was written"),
        (lambda path: _turn_bit(path / "state/rank_0.pt"), "state/rank_0.pt is not as it was written"),
        (
            lambda path: (path / "state/rank_0.pt").write_bytes(b"mom"),
            "state/rank_0.pt has another size than was written",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json can't be read (FileNotFoundError)"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "checkpoint.json can't be read (JSONDecodeError)"),
        (lambda path: (path / "checkpoint.json").write_text("{}"), "checkpoint.json lists nothing"),
        (lambda path: (path / "checkpoint.json").write_text("3"), "checkpoint.json can't be read (TypeError)"),
        (lambda path: (path / "checkpoint.json").write_text('{"a": 1}'), "a is missing"),
        (
            lambda path: (path / "checkpoint.json").write_text('{"model.safetensors": 1}'),
            "checkpoint.json can't be read (TypeError)",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_put_aside(folder, harm, expected):
    newest = folder / "checkpoint-10"
    harm(newest)
    found, damaged = last_whole(folder)
    assert (found, damaged) == (folder / "checkpoint-9", {newest: expected})
    (folder / "checkpoint-12.part").mkdir()
    tidy(folder, damaged)
    assert names(sorted(folder.glob("checkpoint-1*"))) == ["checkpoint-10.corrupt"]
    assert last_whole(folder) == (folder / "checkpoint-9", {})


def test_what_is_half_removed_has_no_checkpoints_name(folder, monkeypatch):
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before a file of it was removed
    vanish(folder / "checkpoint-10")
    assert names(checkpoints(folder)) == ["checkpoint-8", "checkpoint-9"]
    assert (folder / "checkpoint-10.old.part").is_dir()


# a trainer that saves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_checkpoints_stay_as_the_recipe_says_and_all_are_whole(start, tmp_path, limit):
    start(save_steps=1, save_total_limit=limit).train()
    found = checkpoints(tmp_path / "run")
    assert names(found) == [f"checkpoint-{step}" for step in range(7 - limit, 7)]
    assert [find_damage(path) for path in found] == [""] * limit
    contents = json.loads((found[-1] / "checkpoint.json").read_text())
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= contents.keys()
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize("parts", ["lora", "full"])
def test_a_checkpoint_that_has_no_room_stops_the_run_and_leaves_the_last_one(start, tmp_path, parts):
    full = {"vision": "full", "projector": "full", "language": "full"} if parts == "full" else {}
    trainer = start(save_steps=1, **full)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit_files():
        """From the third step on no file may be larger than a few pages: writing fails as on a full disk."""
        if trainer.training.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    trainer.watchers.append(limit_files)
    try:
        with pytest.raises(
            TrainingError, match=r"checkpoint-3: can't be written .*; checkpoint-2 is whole, and training"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names((tmp_path / "run").glob("checkpoint*")) == ["checkpoint-2"]
    again = start(save_steps=1, **full)
    again.train(resume_from_checkpoint=str(last_whole(tmp_path / "run")[0]))
    assert again.state.global_step == 6


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    from ivlkit.training import checkpoints as module

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 300_000}))
    said = module._not_written(tmp_path / "checkpoint-2", RuntimeError("unexpected pos 64 vs 0"))
    assert "can't be written (its disk is full, 0.3 MB are free); make room" in said
    assert said.endswith("; there is none before it")


def test_a_disk_that_was_full_is_called_so_though_what_filled_it_is_removed(tmp_path, monkeypatch):
    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    part = tmp_path / "checkpoint-2.part"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300_000 if part.exists() else 10**12))
    is_said = pytest.raises(TrainingError, match="its disk is full, 0.3 MB are free")
    with is_said, writing_checkpoint(tmp_path / "checkpoint-2", alone):
        raise RuntimeError("unexpected pos 64 vs 0")  # torch's words
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_names_its_rows_and_spoils_no_checkpoint(start, tmp_path):
    trainer = start(save_steps=1)
    weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    weight.register_hook(lambda grad: grad * float("nan") if trainer.training.step == 2 else grad)
    rows = r"train\.jsonl:\d, train\.jsonl:\d, train\.jsonl:\d, train\.jsonl:\d"
    with pytest.raises(TrainingError, match=rf"gradient norm nan at step 3, rows {rows}; expected a finite one"):
        trainer.train()
    (kept,) = checkpoints(tmp_path / "run")
    tensors = load_file(kept / "adapter_model.safetensors")
    assert kept.name == "checkpoint-2"
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_no_checkpoint_is_made_of_weights_that_are_not_finite(start, tmp_path):
    trainer = start(save_steps=1)

    def spoil():
        with torch.no_grad():
            next(one for one in trainer.model.parameters() if one.requires_grad)[0] = float("inf")

    trainer.watchers.append(spoil)
    with pytest.raises(TrainingError, match=r"lora_A.* is not finite after step 1; .*; no checkpoint is made of it"):
        trainer.train()
    assert not checkpoints(tmp_path / "run")


def test_the_digest_of_a_plan_knows_sizes_seeds_and_cuts(start):
    plan = start().train_dataset.batches
    assert plan.digest == start().train_dataset.batches.digest
    assert len({start(**one).train_dataset.batches.digest for one in ({}, {"seed": 1}, {"packing": True})}) == 3
    plan.tokens = np.where(plan.tokens == plan.tokens.max(), plan.tokens + 1, plan.tokens)
    assert plan.digest != start().train_dataset.batches.digest


# kills ---------------------------------------------------------------------------------------------------------------


def run_faults(tiny, tmp_path, *options):
    """The JSON lines of `benchmarks/faults.py`, which must end with 0."""
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--model", str(tiny), *options],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["nano-lora", "nano-full"])
def test_a_run_that_is_killed_or_damaged_ends_with_the_bits_of_an_undisturbed_one(tiny, tmp_path, kind):
    kills, damage = run_faults(tiny, tmp_path, "--recipe", kind, "--kills", "4", "--faults", "damage")
    assert (kills["kills"], kills["survived"], kills["unequal"], kills["failed"]) == (4, True, [], [])
    assert damage["survived"] and damage["cases"] >= 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="file events need Linux and a C compiler")
def test_a_run_survives_its_death_at_a_file_event_and_torn_files(tiny, tmp_path):
    """Of the two tables in benchmarks/NOTES.md six cases each, from the first to the last."""
    options = ("--recipe", "nano-lora", "--kills", "0", "--faults", "events", "torn", "--most", "6")
    kills, torn = run_faults(tiny, tmp_path, *options)
    assert (kills["cases"], kills["problems"], torn["cases"], torn["problems"]) == (6, [], 6, [])
    assert kills["events"] > 100 and {"open", "write", "rename", "unlink", "mkdir", "fsync"} <= kills["kinds"].keys()
