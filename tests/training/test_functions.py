"""A loss and an order of one's own: found by name in the process that trains, and told apart by their source."""

import sys

import numpy as np
import pytest

import ivlkit
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import DataError, RecipeError, TrainingError
from ivlkit.training.loop.loss import cross_entropy
from ivlkit.training.loop.schedule import plan_packed
from ivlkit.training.recipes import Recipe, recipe
from ivlkit.training.runs import describe, execute

SMALL = {"total_batch": 4, "per_device_batch": 4, "epochs": 1, "max_seq_length": 200, "lora_dropout": 0.0, "gpus": 1}
MINE = """
from ivlkit.training.loop.loss import cross_entropy

def doubled(hidden, head, batch):
    return 2 * cross_entropy(hidden, head, batch)

def backwards(tokens, tiles, *, seed, epoch):
    return list(range(len(tokens)))[::-1]

def repeated(tokens, tiles, *, seed, epoch):
    return [0] * len(tokens)

def broken(hidden, head, batch):
    return batch["lables"]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module beside the notebook, as a user writes it."""
    (tmp_path / "my_functions.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield __import__("my_functions")
    sys.modules.pop("my_functions", None)


@pytest.fixture
def data(mixed_rows):
    return open_data(mixed_rows)


def test_a_loss_of_ones_own_trains_by_the_name_that_it_was_given_here(mine, tiny, data, monkeypatch):
    monkeypatch.setitem(ivlkit.LOSSES, "doubled", mine.doubled)
    losses = {}
    for name in ("cross_entropy", "doubled"):
        run = describe(recipe("nano-lora", model=str(tiny), loss=name, **SMALL), data)
        execute(run.folder)
        losses[name] = run.history[0]["loss"]
    assert run.recipe.loss == "my_functions:doubled"
    assert losses["doubled"] == pytest.approx(2 * losses["cross_entropy"], rel=1e-6)


def test_an_edited_loss_makes_another_run_and_does_not_go_on_with_the_old_one(mine, tiny, data, tmp_path):
    chosen = recipe("nano-lora", model=str(tiny), loss="my_functions:doubled", **SMALL)
    first = describe(chosen, data)
    assert describe(chosen, data).folder == first.folder
    (tmp_path / "my_functions.py").write_text(MINE.replace("2 *", "3 *"))
    import linecache

    linecache.checkcache()
    assert describe(chosen, data).folder != first.folder
    with pytest.raises(TrainingError, match="my_functions:doubled has changed since this run was described"):
        execute(first.folder)


def test_what_a_loss_of_ones_own_raises_is_said_with_its_line(mine, tiny, data):
    run = describe(recipe("nano-lora", model=str(tiny), loss="my_functions:broken", **SMALL), data)
    with pytest.raises(KeyError):
        execute(run.folder)
    assert run.error == f"{mine.__file__}:14: KeyError: 'lables'"


def test_an_order_of_ones_own_decides_which_rows_a_step_has(mine):
    tokens, tiles = np.arange(10) + 5, np.zeros(10, int)
    chosen = recipe("nano-lora", packing=True, order="my_functions:backwards", **SMALL)
    plan = plan_packed(tokens, tiles, chosen)
    rows = [
        sorted(row for part in range(plan.accumulation) for _, row in plan[step * plan.accumulation + part].rows)
        for step in range(3)
    ]
    assert rows == [[6, 7, 8, 9], [2, 3, 4, 5], [0, 1]]


def test_an_order_that_is_no_permutation_is_refused(mine):
    chosen = recipe("nano-lora", packing=True, order="my_functions:repeated", **SMALL)
    with pytest.raises(DataError, match="order repeated: epoch 0 has 5 rows, not each of the 5 once"):
        len(plan_packed(np.ones(5, int), np.zeros(5, int), chosen))


def test_rows_as_they_are_written(mine):
    chosen = recipe("nano-lora", packing=True, order="as_written", **SMALL)
    plan = plan_packed(np.ones(6, int), np.zeros(6, int), chosen)
    assert sorted(row for _, row in plan[0].rows) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "focal"}, "loss='focal'; expected one of cross_entropy, or module:function"),
        ({"order": "no_such_module:one"}, "order no_such_module:one: can't be imported"),
    ],
)
def test_a_name_that_nothing_has_is_refused_before_anything_starts(tiny, data, changes, expected):
    with pytest.raises(RecipeError, match=expected):
        describe(recipe("nano-lora", model=str(tiny), **SMALL, **changes), data)


def test_a_function_of_the_notebook_itself_is_refused(tiny, data, monkeypatch):
    monkeypatch.setitem(ivlkit.LOSSES, "here", lambda hidden, head, batch: cross_entropy(hidden, head, batch))
    with pytest.raises(RecipeError, match="expected a function of a module; write it into a file"):
        describe(recipe("nano-lora", model=str(tiny), loss="here", **SMALL), data)


def test_a_function_in_its_name_s_place_is_told_so(mine):
    with pytest.raises(RecipeError, match="expected the name of that function, .*, such as 'my_module:my_function'"):
        recipe("nano-lora", loss=mine.doubled)


def test_the_defaults_leave_the_names_of_older_runs_as_they_were():
    """A run's folder is named by a digest of these fields."""
    assert not {"loss", "order"} & recipe("nano-lora").to_dict().keys()
    assert Recipe.from_dict(recipe("nano-lora").to_dict()) == recipe("nano-lora")


# a tracker of experiments -------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_losses_of_the_log(tiny, data, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    chosen = recipe("nano-lora", model=str(tiny), **SMALL)
    run = describe(chosen, data, folder=tmp_path / "tracked", report_to="tensorboard")
    execute(run.folder)
    (events,) = run.folder.rglob("events.out.tfevents.*.0")
    found = reader.EventAccumulator(str(events)).Reload()
    written = [(event.step, event.value) for event in found.Scalars("loss")]
    assert written == [(line["step"], pytest.approx(line["loss"])) for line in run.history]
    again = describe(chosen, data, folder=tmp_path / "tracked")
    assert again.spec["report_to"] is None  # the latest call decides; the run is the same


@pytest.mark.parametrize(
    ("name", "expected"), [("tensorbord", "expected one of tensorboard, wandb, trackio"), ("wandb", "is not installed")]
)
def test_a_tracker_that_is_not_there_is_refused(tiny, data, name, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=expected):
        describe(recipe("nano-lora", model=str(tiny), **SMALL), data, report_to=name)


def test_no_tracker_writes_unless_asked(tiny, data, tmp_path):
    run = describe(recipe("nano-lora", model=str(tiny), **SMALL), data, folder=tmp_path / "run")
    execute(run.folder)
    assert not list(run.folder.rglob("events.*"))
