"""How nano is trained: stages, and going on after an interruption."""

import json
from dataclasses import replace
from functools import partial

import pytest
import random_nano
import tokenizer
import torch
import train
from carry_over import EMBEDDING, HEAD, carry_over
from random_nano import build
from train import STAGES, train_nano

from ivlkit.models.load import load
from ivlkit.nano.vocabulary import ACCENTED
from ivlkit.training.log import read_steps
from ivlkit.training.loop import execute
from ivlkit.training.run import LOG_FILE


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


@pytest.fixture
def old(tmp_path, monkeypatch, tiny_config):
    """A tiny model whose tokenizer has no letter with an accent, as nano's was."""
    with monkeypatch.context() as before:
        before.setattr(tokenizer, "CHARACTERS", tokenizer.CHARACTERS[:95])
        before.setattr(tokenizer, "TEXT_PIECES", 1274)
        before.setattr(random_nano, "NANO_FOLDER", tokenizer.train_tokenizer(tmp_path / "tokenizer"))
        tiny_config["llm_config"]["vocab_size"] = 1289
        return build(tmp_path / "old", seed=1, config=tiny_config)


def test_a_piece_of_both_tokenizers_keeps_its_rows_and_a_new_one_begins_as_its_base(old, tiny_config, tmp_path):
    tiny_config["llm_config"]["vocab_size"] = 1396
    one, other = load(old), load(carry_over(old, tmp_path / "new", config=tiny_config))
    before, after = one.model.state_dict(), other.model.state_dict()
    known, pieces = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    assert set(pieces) - set(known) == {*ACCENTED, *"¿¡"} and len(known) == 1289
    shared = sorted(known)
    moved = [pieces[piece] for piece in shared]
    assert moved != [known[piece] for piece in shared]  # the tokens of the chat have other numbers
    for key in (EMBEDDING, HEAD):
        assert torch.equal(before.pop(key)[[known[piece] for piece in shared]], (rows := after.pop(key))[moved])
        assert len(rows) == 1396
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_new_letter_reads_like_its_base_and_is_said_like_its_bytes(old, tiny_config, tmp_path):
    tiny_config["llm_config"]["vocab_size"] = 1396
    one, other = load(old), load(carry_over(old, tmp_path / "new", config=tiny_config))
    known, pieces = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    before, after = one.model.state_dict(), other.model.state_dict()
    for letter, base in (("é", "e"), ("Ł", "L"), ("ß", "s"), ("İ", "I")):
        assert torch.equal(after[EMBEDDING][pieces[letter]], before[EMBEDDING][known[base]])
    of_bytes = before[HEAD][[known["<0xC3>"], known["<0xA9>"]]].mean(0)
    assert torch.equal(after[HEAD][pieces["é"]], of_bytes.bfloat16().float())  # as it is stored


def test_a_training_continues_with_the_one_stage_and_says_how_fast(
    short, old, tiny_config, tmp_path, monkeypatch, capsys
):
    tiny_config["llm_config"]["vocab_size"] = 1396
    monkeypatch.setattr(train, "carry_over", partial(carry_over, config=tiny_config))
    given = ["--to", str(tmp_path / "to"), "--continue-from", str(old), "--steps", "2", "--workers", "0"]
    monkeypatch.setattr("sys.argv", ["train.py", *given, "--learning-rate", "1e-3"])
    train.main()
    assert "step 1 of 2: loss" in capsys.readouterr().out
    (stage,) = json.loads((tmp_path / "to" / "summary.json").read_text())
    assert (stage["stage"], stage["rows"], stage["steps"]) == ("all", 16, 2)
    assert max(step["learning_rate"] for step in read_steps(tmp_path / "to" / "all" / LOG_FILE)) == 1e-3


def test_a_folder_of_another_training_is_refused(short, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RuntimeError, match="holds another training"):
        train_nano(tmp_path, stages=short, workers=0)


def test_the_script_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        train.main()
    assert "--workers" in capsys.readouterr().out
