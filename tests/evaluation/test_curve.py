"""A learning curve on the tiny model: nested rows, kept runs, a figure."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from ivlkit.errors import DataError
from ivlkit.evaluation.trials import curve as curve_module
from ivlkit.evaluation.trials.curve import LearningCurve, learning_curve
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run


@pytest.fixture
def rows(write_rows, turns, draw_picture, tmp_path):
    """A JSONL of six rows, two of them without a picture."""
    for number in range(6):
        draw_picture(112, 112, seed=number).save(tmp_path / f"{number}.png")
    return write_rows(
        [
            ({} if number % 3 == 2 else {"image": f"{number}.png"})
            | {"id": number, "task": "t", "conversations": turns(f"Q{number}", f"word {number}")}
            for number in range(6)
        ]
    )


@pytest.fixture
def chosen(tiny):
    return recipe("nano-lora", model=str(tiny), total_batch=2, per_device_batch=2, epochs=1)


@pytest.fixture
def trained_here(monkeypatch):
    """Runs train in this process at once; the list of their folders."""
    folders = []

    def train(recipe, data, *, folder):
        run = write_run(recipe, data, folder)
        if run.state != "finished":
            folders.append(folder.name)
            execute(folder)
        return run

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(curve_module, "train", train)
    yield folders
    signal.signal(signal.SIGTERM, handler)


def test_each_size_is_trained_and_scored_and_nothing_twice(rows, chosen, trained_here, tmp_path):
    options = {"rows": [4, 2], "folder": tmp_path / "curve", "progress": False, "max_new_tokens": 4}
    found = learning_curve(chosen, rows, rows, **options)
    assert [(point.rows, point.steps, len(point.report.rows)) for point in found.points] == [
        (0, 0, 6),
        (2, 1, 6),
        (4, 2, 6),
    ]
    assert trained_here == ["run-2", "run-4"]
    weights = {point.report.details["weights"] for point in found.points}
    assert len(weights) == 3
    small, large = (np.load(point.run.folder / "rows.npy").tolist() for point in found.points[1:])
    assert large[:2] == small and len(set(large)) == 4
    again = learning_curve(chosen, rows, rows, **options)
    assert trained_here == ["run-2", "run-4"]
    assert [point.report.rows for point in again.points] == [point.report.rows for point in found.points]
    json.dumps(found.to_dict())

    figure = found.figure()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4"]
    html = found._repr_html_()
    assert 'src="data:image/png' in html and "before training" in html and html.count("<tr>") == 4
    odd = [replace(point, report=replace(point.report, metric=r"$\frac$")) for point in found.points]
    assert 'src="data:image/png' in LearningCurve(tuple(odd))._repr_html_()  # a name, no formula


@pytest.mark.parametrize("sizes", [[], [0, 2], [7], [2, 7]])
def test_impossible_sizes_are_refused_before_anything_starts(rows, chosen, trained_here, sizes):
    with pytest.raises(DataError, match="with 6 rows; expected numbers from 1 to 6"):
        learning_curve(chosen, rows, rows, rows=sizes)
    assert trained_here == []
