"""Several values of one field of a recipe, trained one after the other and compared row by row in validation."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ...data.datasets.opening import open_data
from ...errors import RecipeError, TrainingError
from ...training.estimate.outlook import START_MINUTES
from ...training.estimate.planner import plan
from ...training.loop.validation import find_best
from ...training.recipes import Recipe
from ...training.recipes import recipe as named_recipe
from ...training.run import RUNS_FOLDER
from ...training.runs import train, validation_of
from ...views import shown
from ..evaluate import evaluate
from ..intervals import bootstrap_interval
from ..report import Report

OTHER_MEASURES = ("loss", "weighting", "model", "name")  # with another of these a loss can't be compared
FEWEST_ROWS = 20  # of validation: fewer tell nothing apart


@dataclass
class Sweep:
    """Runs that differ in one field, the winner, and why it won; a notebook shows curves and a table."""

    field: str
    runs: dict  # value → `Run`, as far as they were started
    report: Report | None = None  # of the winner on the test rows

    @property
    def table(self):
        """{value: (step, loss, (low, high))} of the runs that have ended, the lowest loss first: the best validation,
        and by how much a row's loss is above the lowest run's, as a 95 % interval of the paired difference.

        Fewer than 20 rows tell nothing apart: their interval has no ends.
        """
        best = {value: find_best(run.folder) for value, run in self.runs.items() if run.state == "finished"}
        order = sorted((value for value in best if best[value]), key=lambda value: best[value]["loss"])
        rows = {value: np.array(best[value]["row_losses"]) for value in order}
        unknown = (-math.inf, math.inf) if order and len(rows[order[0]]) < FEWEST_ROWS else None
        apart = {value: unknown or bootstrap_interval(rows[value] - rows[order[0]]) for value in order}
        return {value: (best[value]["step"], best[value]["loss"], apart[value]) for value in order}

    @property
    def tied(self):
        """The values that validation can't tell from the lowest loss, its own among them; the one to take first: of
        numbers the smallest, of words the one that was given first."""
        table = self.table
        tied = [value for value in self.runs if value in table and table[value][2][0] <= 0]
        return sorted(tied) if all(isinstance(value, (int, float)) for value in tied) else tied

    @property
    def run(self):
        """The winner's `Run`. Raises: TrainingError if no run has ended well."""
        tied = self.tied
        if not tied:
            raise TrainingError(f"{self.field}: no run has ended with a validation{''.join(self._failed)}")
        return self.runs[tied[0]]

    @property
    def said(self):
        """The verdict: "learning_rate: can't tell 1e-05 and 0.0001 apart: took the smaller; 0.1 is worse by 0.412"."""
        table, tied = self.table, self.tied
        lowest = min((loss for _, loss, _ in table.values()), default=None)
        names = " and ".join(map(str, tied)) or "no run has ended"
        taken = "first" if isinstance(next(iter(tied), ""), str) else "smaller" if len(tied) == 2 else "smallest"
        verdict = f"can't tell {names} apart: took the {taken}" if len(tied) > 1 else names
        worse = [f"; {value} is worse by {one[1] - lowest:.3f}" for value, one in table.items() if value not in tied]
        return f"{self.field}: {verdict}{''.join([*worse, *self._failed])}"

    @property
    def _failed(self):
        ended = [(value, run) for value, run in self.runs.items() if run.state in ("failed", "stopped")]
        return [f"; {value} {run.state}: {run.error or 'call again to go on'}" for value, run in ended]

    def __repr__(self):
        lines = [
            f"{value}: loss {loss:.4f} at step {step}, {low:+.4f} to {high:+.4f} beside the lowest"
            for value, (step, loss, (low, high)) in self.table.items()
        ]
        return "\n".join([*lines, self.said])

    _repr_html_ = shown("run:sweep_html")
    _follow = shown("run:follow_sweep")


def sweep(recipe, data, *, validation=None, test=None, metric="exact_match", folder=None, **grid):
    """Train one run for each value of a field, one after the other: `sweep(recipe, data, learning_rate=[1e-4, 2e-4])`.

    The winner has the lowest validation loss, or is the smallest of the values that can't be told from it. Called
    again, after it was killed too, it goes on: finished runs are kept, a stopped one goes on from its checkpoint. A run
    that fails, such as one whose loss is no number, is named, and the next one begins.

    Args:
        recipe: a `Recipe` or its name. data: the training rows: what `open_data` gives, or a path.
        validation: rows apart, which decide. Default: those of a meta file, else a tenth of the data by picture.
        test: rows that only the winner is asked, once. metric: of them, as in `evaluate`.
        folder: default `runs/sweep-<recipe>-<field>-<hash of recipe and data>`.
        grid: one field of `Recipe` and its values, two or more.
    Returns: `Sweep`: its run (the winner's), table, said, report.
    Raises: RecipeError before anything starts; TrainingError if no run ends well.
    """
    recipe = named_recipe(recipe)
    trials = _trials(recipe, grid)
    data = open_data(data)
    validation = validation_of(data, validation)
    (field,) = grid
    kept = {name: value for name, value in recipe.to_dict().items() if name != field}
    digest = hashlib.sha256(json.dumps([kept, data.fingerprint]).encode()).hexdigest()[:8]
    folder = Path(folder or RUNS_FOLDER / f"sweep-{recipe.name}-{field}-{digest}")
    if validation is None:
        folder.mkdir(parents=True, exist_ok=True)
        data, validation = data.split(train=0.9, validation=0.1, file=folder / "split.csv")
    places = {value: folder / re.sub(r"[^\w.+-]", "_", f"{field}-{value}") for value in trials}
    left = [trials[value] for value, place in places.items() if not (place / "final").exists()]
    print(f"{len(left)} of {len(trials)} runs to train, compared on {len(validation):,} rows{_say_minutes(left, data)}")
    found = Sweep(field, {})
    for value, trial in trials.items():
        found.runs[value] = train(trial, data, validation=validation, folder=places[value])
        found._follow(found.runs[value])
    winner = found.run
    if test is not None:
        vlm = winner.load()
        found.report = evaluate(vlm, test, metric=metric, to=winner.folder / "test")
        vlm.release()
    return found


def _trials(recipe, grid):
    """{value: recipe}. Raises: RecipeError."""
    names = {each.name for each in fields(Recipe)} - set(OTHER_MEASURES)
    ((field, values),) = grid.items() if len(grid) == 1 else [("", ())]
    trials = {one: replace(recipe, **{field: one}) for one in values} if field in names and type(values) is list else {}
    if len(trials) < 2:
        raise RecipeError(
            f"sweep: {grid}; expected one field of the recipe with a list of two values or more, such as "
            f"learning_rate=[1e-4, 2e-4], and none of {', '.join(OTHER_MEASURES)}: their losses can't be compared"
        )
    return trials


def _say_minutes(trials, data):
    """How long they take, as planned; "" where that is unknown."""
    minutes = [START_MINUTES + (plan(trial, data=data).minutes or math.nan) for trial in trials]
    return f": about {math.ceil(sum(minutes))} minutes (predicted, without validation)" if sum(minutes) > 0 else ""
