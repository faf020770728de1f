"""How the score grows with the rows that a recipe trains on: is it worth labelling more?"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...data.datasets.opening import open_data
from ...errors import DataError
from ...models.load import load
from ...training.recipes import recipe as named_recipe
from ...training.run import RUNS_FOLDER, Run
from ...training.runs import train
from ...views import shown
from ..evaluate import evaluate
from ..report import Report

ROWS = (25, 50, 100, 200, 400)


@dataclass(frozen=True)
class CurvePoint:
    """The model after training on so many rows; without a run, the model before."""

    rows: int
    report: Report
    run: Run | None = None

    @property
    def steps(self):
        """Optimiser steps of its training."""
        return self.run.history[-1]["step"] if self.run else 0


@dataclass(frozen=True)
class LearningCurve:
    """Points from no training to the most rows; a notebook shows them as a figure and a table."""

    points: tuple[CurvePoint, ...]

    @shown("charts:learning_curve_figure")
    def figure(self):
        """Score and 95 % interval over rows: matplotlib figure."""

    def to_dict(self):
        """Rows, steps, score and interval of each point, for JSON."""
        return {
            "metric": self.points[0].report.metric,
            "points": [
                {"rows": each.rows, "steps": each.steps, "score": each.report.score, "interval": each.report.interval}
                for each in self.points
            ],
        }

    def __repr__(self):
        scores = ", ".join(f"{each.rows} rows {each.report.score:.1%}" for each in self.points)
        return f"LearningCurve({self.points[0].report.metric}: {scores})"

    _repr_html_ = shown("charts:learning_curve_html")


def learning_curve(recipe, data, test, *, rows=ROWS, metric="exact_match", folder=None, seed=0, **options):
    """Train one run for each number of rows, and score it on the same test rows.

    The rows are nested: the 50 hold the 25. Every size gets the recipe's epochs, so fewer rows are fewer steps. Called
    again it goes on where it stopped: finished runs and replies are kept in the folder. Intervals are of the test rows;
    another training seed can move a point too.

    Args:
        recipe: a `Recipe` or its name.
        data: the training rows: what `open_data` gives, or a path.
        test: rows that are not among them.
        rows: sizes, each at most len(data).
        metric: as in `evaluate`; options: its other arguments.
        folder: default `runs/curve-<recipe>-<hash of recipe, data and seed>`.
        seed: of the order in which rows are taken.
    Returns: `LearningCurve`, the untrained model first.
    Raises: DataError before anything starts if a size is not between 1 and len(data); what `train` raises.
    """
    recipe = named_recipe(recipe)
    data = open_data(data)
    sizes = _check_sizes(rows, data)
    folder = Path(folder) if folder else RUNS_FOLDER / f"curve-{recipe.name}-{_digest(recipe, data, seed)}"
    order = np.random.default_rng(seed).permutation(len(data))

    def score(vlm, size):
        report = evaluate(vlm, test, metric=metric, to=folder / f"evaluation-{size}", **options)
        vlm.release()
        return report

    points = [CurvePoint(0, score(load(recipe.model, **recipe.loading), 0))]
    for size in sizes:
        run = train(recipe, data.select(order[:size]), folder=folder / f"run-{size}").wait()
        points.append(CurvePoint(size, score(run.load(), size), run))
    return LearningCurve(tuple(points))


def _check_sizes(rows, data):
    sizes = sorted(set(rows))
    if not sizes or sizes[0] < 1 or sizes[-1] > len(data):
        raise DataError(
            f"rows={list(rows)} of {data.path} with {len(data)} rows; expected numbers from 1 to {len(data)}; leave "
            "the larger ones out"
        )
    return sizes


def _digest(recipe, data, seed):
    return hashlib.sha256(json.dumps([asdict(recipe), data.fingerprint, seed]).encode()).hexdigest()[:8]
