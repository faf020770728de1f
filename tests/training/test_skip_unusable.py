"""A row that can't be used ends a run, or is masked in its place where the user says so; the run's plan stays."""

import os
import signal

import pytest
import torch
import yaml

from ivlkit.data.collate import collate_packed
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import DataError
from ivlkit.models.load import load
from ivlkit.training.checkpoints import checkpoints
from ivlkit.training.loop import execute as child
from ivlkit.training.loop.loss import weighted_cross_entropy
from ivlkit.training.loop.schedule import MicroBatches, plan_packed
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import describe, execute

SMALL = {"total_batch": 4, "epochs": 2, "max_seq_length": 200, "bin_tokens": 400, "packing": True, "gpus": 1}
SMALL |= {"save_steps": 1, "lora_dropout": 0.0}


@pytest.fixture
def rows(write_rows, turns, draw_picture, tmp_path):
    """A JSONL of eight rows, each with a picture of noise that can be cut."""
    for number in range(8):
        draw_picture(112, 112, seed=number).save(tmp_path / f"{number}.png")
    return write_rows([{"image": f"{n}.png", "conversations": turns("Q", f"word {n}")} for n in range(8)])


def cut(path):
    """What an interrupted copy leaves: the header is whole, the end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.fixture
def begun(rows, tiny, tmp_path, monkeypatch):
    """A run of four steps that was stopped after the first, whose second picture was cut then."""
    run = describe(recipe("nano-lora", model=str(tiny), **SMALL), open_data(rows), folder=tmp_path / "run")
    log_line, handler = child.log_line, signal.getsignal(signal.SIGTERM)

    def stop(training, step, **options):
        if step.number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return log_line(training, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(child, "log_line", stop)
        execute(run.folder)
    signal.signal(signal.SIGTERM, handler)
    assert [path.name for path in checkpoints(run.folder)] == ["checkpoint-1"]
    cut(tmp_path / "1.png")
    return run


def test_without_the_word_the_run_ends_and_says_both_ways_on(begun):
    with pytest.raises(DataError, match="1 of 8 rows can't be used"):
        execute(begun.folder)
    assert begun.error.endswith(
        "train again with skip_unusable=True (--skip-unusable): the row keeps its place and weighs nothing"
    )
    assert begun.history[-1]["step"] == 1


def test_a_run_goes_on_from_its_checkpoint_with_the_row_masked_and_listed(begun, rows):
    before = begun.history[0]
    run = describe(begun.recipe, open_data(rows), folder=begun.folder, skip_unusable=True)
    execute(run.folder)
    assert run.state == "finished" and [line["step"] for line in run.history] == [1, 2, 3, 4]
    assert run.history[0] == before
    (said,) = run.skipped
    assert said.startswith("train.jsonl:2: ") and "1.png" in said
    assert yaml.safe_load((run.folder / "run.yaml").read_text())["skipped"] == [said]
    assert any("1 rows were masked" in notice for notice in run.notices)
    assert describe(begun.recipe, open_data(rows), folder=begun.folder).folder == run.folder  # still the same run


def test_a_masked_row_weighs_nothing_and_its_neighbours_as_much_as_without_it(rows, tiny, tmp_path):
    cut(tmp_path / "1.png")
    vlm, data, chosen = load(tiny), open_data(rows), recipe("nano-lora", **SMALL)
    sizes = torch.tensor([50] * 8).numpy()
    plan = plan_packed(sizes, sizes // 50, chosen)
    options = {"collate": collate_packed, "skip_unusable": True}
    made = MicroBatches(data, vlm.processor, chosen, plan, **options)
    number = next(n for n in range(len(made)) if any(row == 1 for _, row in plan[n].rows))
    batch = made[number]
    assert len(batch["where"]) == len(plan[number].rows) and len(batch["skipped"]) == 1
    hidden = torch.randn(1, batch["input_ids"].numel(), 8, generator=torch.Generator().manual_seed(0))
    head = torch.nn.Linear(8, 2000)
    names = ("labels", "weights", "sample_ids")
    found = weighted_cross_entropy(hidden, head, **{name: batch[name] for name in names})
    place = batch["where"].index("train.jsonl:2")
    kept = batch["sample_ids"][0] != place
    alone = {"labels": batch["labels"][:, kept], "weights": batch["weights"][torch.arange(4) != place]}
    alone["sample_ids"] = torch.unique(batch["sample_ids"][:, kept], return_inverse=True)[1]
    assert len(batch["weights"]) == 4 and batch["weights"][place] == 0
    torch.testing.assert_close(found, weighted_cross_entropy(hidden[:, kept], head, **alone))


def test_rows_that_are_broken_from_the_start_are_masked_too(rows, tiny, tmp_path):
    cut(tmp_path / "1.png")
    (tmp_path / "5.png").unlink()
    chosen = recipe("nano-lora", model=str(tiny), **SMALL)
    run = describe(chosen, open_data(rows), folder=tmp_path / "run", skip_unusable=True)
    execute(run.folder)
    assert run.state == "finished" and len(run.history) == 4
    assert [said.partition(": ")[0] for said in run.skipped] == ["train.jsonl:2", "train.jsonl:6"]
