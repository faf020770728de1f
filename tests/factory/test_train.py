"""How nano is trained: stages, and going on after an interruption."""

import json
from dataclasses import replace

import pytest
import train
from random_nano import build
from train import STAGES, train_nano

from ivlkit.training.loop import execute


@pytest.fixture
def short(monkeypatch):
    """The real stages, four steps of eight rows each, with a checkpoint every second step."""
    monkeypatch.setattr(train, "SHARED", train.SHARED | {"total_batch": 8, "per_device_batch": 8, "save_steps": 2})
    return tuple(replace(stage, steps=4) for stage in STAGES)


def test_building_twice_gives_the_same_bytes(tmp_path, tiny_config):
    first, second = (build(tmp_path / name, seed=3, config=tiny_config) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_the_language_model_is_frozen_while_the_vision_tower_learns_to_show_it_things():
    assert [stage.name for stage in STAGES] == ["language", "vision", "all"]
    recipe = STAGES[1].recipe("x", seed=0, workers=0)
    assert recipe.parts == ("full", "full", "frozen")
    assert STAGES[2].recipe("x", seed=0, workers=0).parts == ("full", "full", "full")


def test_a_training_that_was_interrupted_goes_on_and_ends_bit_equal(short, tmp_path, monkeypatch):
    whole = train_nano(tmp_path / "whole", stages=short, workers=0)
    log = execute.append_step

    def stop_in_the_last_stage(path, line):
        log(path, line)
        if path.parent.name == "all" and line["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(execute, "append_step", stop_in_the_last_stage)
    with pytest.raises(KeyboardInterrupt):
        train_nano(tmp_path / "cut", stages=short, workers=0)
    monkeypatch.setattr(execute, "append_step", log)
    resumed = train_nano(tmp_path / "cut", stages=short, workers=0)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert [(stage["stage"], stage["rows"], stage["steps"]) for stage in summary] == [
        ("language", 32, 4),
        ("vision", 32, 4),
        ("all", 32, 4),
    ]


def test_a_folder_of_another_training_is_refused(short, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RuntimeError, match="holds another training"):
        train_nano(tmp_path, stages=short, workers=0)


def test_the_script_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        train.main()
    assert "--workers" in capsys.readouterr().out
