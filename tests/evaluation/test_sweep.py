"""Values of one field: trained one after the other, compared row by row, gone on with after a kill."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ivlkit.errors import RecipeError, TrainingError
from ivlkit.evaluation.trials import sweep as module
from ivlkit.evaluation.trials.sweep import Sweep, sweep
from ivlkit.training.recipes import recipe
from ivlkit.training.run import Run


@pytest.fixture
def make_sweep(tmp_path, monkeypatch):
    """`make_sweep({value: losses of rows})` → a sweep of finished runs; None for one that failed."""

    def make(losses):
        runs = {}
        for value, rows in losses.items():
            folder = tmp_path / str(value)
            (folder / "best-5").mkdir(parents=True)
            (folder / "run.yaml").write_text("{}")
            runs[value] = Run(folder)
            if rows is None:
                (folder / "error.txt").write_text("loss nan at step 3")
                continue
            (folder / "final").mkdir()
            best = {"step": 5, "loss": float(np.mean(rows)), "score": None, "chosen_by": "loss"}
            (folder / "best-5" / "best.json").write_text(json.dumps(best | {"row_losses": list(map(float, rows))}))
        return Sweep("learning_rate", runs)

    return make


HARD = np.linspace(0.1, 4, 50)  # rows differ by more than the runs do
NOISE = np.tile([0.1, -0.1], 25)


def test_the_smaller_of_two_that_can_not_be_told_apart_is_taken(make_sweep):
    found = make_sweep({2e-4: HARD, 1e-4: HARD + NOISE + 0.001, 4e-4: HARD + 0.5})
    assert found.tied == [1e-4, 2e-4]
    assert found.run is found.runs[1e-4]
    assert found.said == "learning_rate: can't tell 0.0001 and 0.0002 apart: took the smaller; 0.0004 is worse by 0.500"


def test_a_few_validation_rows_tell_nothing_apart(make_sweep):
    found = make_sweep({1e-3: np.full(19, 0.1), 1e-4: np.full(19, 4.0)})
    assert found.tied == [1e-4, 1e-3] and "can't tell 0.0001 and 0.001 apart: took the smaller" in found.said


def test_rows_are_paired_so_that_a_small_steady_difference_is_seen(make_sweep):
    found = make_sweep({1e-4: HARD + 0.02 + NOISE / 100, 2e-4: HARD})
    assert found.tied == [2e-4] and found.run is found.runs[2e-4]
    step, loss, (low, high) = found.table[1e-4]
    assert (step, loss) == (5, pytest.approx(2.07)) and 0.019 < low < 0.02 < high < 0.021
    assert found.said == "learning_rate: 0.0002; 0.0001 is worse by 0.020"


def test_of_words_that_can_not_be_told_apart_the_first_is_taken(make_sweep):
    found = make_sweep({"linear": HARD + NOISE, "cosine": HARD})
    assert found.tied == ["linear", "cosine"] and found.run is found.runs["linear"]
    assert found.said == "learning_rate: can't tell linear and cosine apart: took the first"


def test_a_run_that_failed_is_named_and_never_wins(make_sweep):
    found = make_sweep({1e-1: None, 1e-4: HARD})
    assert found.tied == [1e-4] and list(found.table) == [1e-4]
    assert found.said == "learning_rate: 0.0001; 0.1 failed: loss nan at step 3"
    with pytest.raises(TrainingError, match="no run has ended with a validation; 0.2 failed: loss nan at step 3"):
        make_sweep({2e-1: None}).run  # noqa: B018


def test_a_run_that_was_stopped_is_named_in_the_verdict(make_sweep):
    found = make_sweep({1e-1: None, 1e-4: HARD})
    (found.runs[1e-1].folder / "error.txt").unlink()
    assert found.said == "learning_rate: 0.0001; 0.1 stopped: call again to go on"


@pytest.mark.parametrize(
    "grid",
    [
        {},
        {"learning_rate": [1e-4]},
        {"learning_rate": [1e-4, 1e-4]},
        {"learning_rate": 1e-4},
        {"learning_rate": [1e-4, 2e-4], "epochs": [1, 2]},
        {"lr": [1e-4, 2e-4]},
        {"weighting": ["token", "sample"]},
    ],
    ids=str,
)
def test_what_is_no_list_of_values_of_one_field_is_refused(grid, mixed_rows):
    with pytest.raises(RecipeError, match="expected one field of the recipe with a list of two values or more"):
        sweep("nano-lora", mixed_rows, **grid)


def test_a_value_out_of_range_is_refused_before_anything_starts(mixed_rows, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(RecipeError, match="learning_rate=-1.0; expected more than 0"):
        sweep("nano-lora", mixed_rows, learning_rate=[1e-4, -1])


class TestOfRuns:
    """Of tiny runs in processes of their own."""

    @pytest.fixture
    def chosen(self, tiny):
        return recipe("nano-lora", model=str(tiny), total_batch=3, per_device_batch=3, save_steps=1, workers=0)

    @pytest.fixture
    def started(self, monkeypatch):
        """(folder's name, state before) of every run that `train` was called for."""
        found, train = [], module.train

        def noting(*names, folder, **options):
            state = Run(folder).state if (folder / "run.yaml").exists() else "new"
            found.append((folder.name, state))
            return train(*names, folder=folder, **options)

        monkeypatch.setattr(module, "train", noting)
        return found

    def test_killed_it_goes_on_and_only_the_winner_is_asked(
        self, chosen, mixed_rows, tmp_path, monkeypatch, started, capsys
    ):
        monkeypatch.chdir(tmp_path)
        follow, asked = Sweep._follow, []

        def die(self, run):
            follow.__get__(self)(run)
            raise KeyboardInterrupt

        monkeypatch.setattr(Sweep, "_follow", die)
        with pytest.raises(KeyboardInterrupt):
            sweep(chosen, mixed_rows, learning_rate=[1e-3, 1e-2], test=mixed_rows)
        monkeypatch.setattr(Sweep, "_follow", follow)
        monkeypatch.setattr(module, "evaluate", lambda vlm, test, **_: asked.append(vlm.folder) or SimpleNamespace())
        found = sweep(chosen, mixed_rows, learning_rate=[1e-3, 1e-2], test=mixed_rows)
        first, second = "learning_rate-0.001", "learning_rate-0.01"
        assert started == [(first, "new"), (first, "finished"), (second, "new")]
        assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 2 runs to train, compared on 1 rows: about ")
        assert asked == [found.run.folder / "final"]
        parts = [(run.spec["data"]["rows"], run.spec["validation"]["rows"]) for run in found.runs.values()]
        assert parts == [(6, 1), (6, 1)]  # the same tenth of seven rows
        html = found._repr_html_()
        assert "learning_rate: " in html and 'alt="losses by learning_rate' in html
