"""A learning curve: score over the rows that were trained on."""

from .figure import ShownFigure, plain_text
from .html import fragment, table_html


def learning_curve_figure(curve):
    """Score with its 95 % interval over the number of rows, and as a dashed line the model before training.

    Args: curve: a `LearningCurve`.
    Returns: matplotlib figure.
    """
    before, *trained = curve.points
    last = curve.points[-1]
    alt = f"score from {before.report.score:.1%} before training to {last.report.score:.1%} on {last.rows:,} rows"
    figure = ShownFigure(figsize=(7, 3.2), alt=alt)
    axes = figure.subplots()
    rows, scores = [point.rows for point in trained], [point.report.score for point in trained]
    spread = [
        (point.report.score - point.report.interval[0], point.report.interval[1] - point.report.score)
        for point in trained
    ]
    axes.errorbar(rows, scores, yerr=list(zip(*spread, strict=True)), marker="o", capsize=3, label="trained")
    axes.axhline(before.report.score, linestyle="--", color="gray", label="before training")
    axes.set_xscale("log")
    axes.set_xticks(rows, labels=[f"{number:,}" for number in rows])
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel=plain_text(before.report.metric), title="learning curve")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")  # a curve that rises leaves it free
    return figure


def learning_curve_html(curve):
    """The figure and a line for each point."""
    rows = []
    for point in curve.points:
        low, high = point.report.interval
        rows.append((f"{point.rows:,}", point.steps, f"{point.report.score:.1%}", f"{low:.1%} – {high:.1%}"))
    table = table_html(rows, header=("training rows", "steps", curve.points[0].report.metric, "95 %"))
    return fragment(learning_curve_figure(curve).to_html() + table)
