"""Lines over one quantity: numbers, and reports with their intervals."""

import pytest

from ivlkit.evaluation.report import Report, Row
from ivlkit.show.charts import curves_figure


def right_of_ten(count):
    rows = [Row(f"a.jsonl:{n}", "Which?", "a", "a", float(n < count)) for n in range(10)]
    return Report("exact_match", tuple(rows), {})


def test_reports_are_drawn_with_their_intervals_and_numbers_without():
    reports = {"words": {1: right_of_ten(2), 12: right_of_ten(9)}, "prices": {1: right_of_ten(0), 12: right_of_ten(0)}}
    figure = curves_figure({"score": reports, "loss": {"words": {1: 2.5, 12: 0.25}}}, across="max_tiles")
    told = ["score over max_tiles, words 20%, 90%", "score over max_tiles, prices 0%, 0%"]
    assert figure.alt == "; ".join([*told, "loss over max_tiles, words 2.50, 0.25"])
    scores, losses = figure.axes
    assert [line.get_ydata().tolist() for line in scores.lines] == [[0.2, 0.9], [0.0, 0.0]]
    low, high = right_of_ten(2).interval
    assert scores.collections[0].get_segments()[0][:, 1].tolist() == pytest.approx([low, high])
    assert losses.lines[0].get_xdata().tolist() == [1, 12] and not losses.collections[0].get_segments()


def test_the_legend_names_the_lines_of_all_panels_and_a_name_has_one_colour():
    panels = {"loss": {"a": {1: 2.0}, "b": {1: 1.0}}, "score": {"b": {1: 0.5}, "c": {1: 0.25}}}
    figure = curves_figure(panels, across="step")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    (a, b), (again, c) = ([line.get_color() for line in axes.lines] for axes in figure.axes)
    assert b == again and len({a, b, c}) == 3


def test_of_a_long_line_its_ends_are_told():
    figure = curves_figure({"loss": {"a": {step: 2.0 - step / 10 for step in range(10)}}}, across="step")
    assert figure.alt == "loss over step, a from 2.00 to 1.10"
