"""Charts of numbers: what a run holds in memory, score over rows, what was learned beside what was forgotten."""

import numpy as np

from ..hardware import GIB
from .figure import BLUE, GREEN, ORANGE, PINK, RED, ShownFigure, bars_of, plain_text
from .html import fragment, table_html, text_html

FEW = 6  # places of a line that are all told
MEMORY_COLOURS = {"weights": BLUE, "gradients": "#56b4e9", "optimizer": GREEN, "activations": ORANGE, "working": RED}


def memory_figure(parts, *, card_gib=None, measured=None, title="memory that torch allocates, predicted"):
    """One bar a setting.

    Args:
        parts: {setting: {part: bytes}}, such as `Case.parts` of a plan.
        card_gib: where the line is drawn.
        measured: {setting: GiB} of those that were run; each is marked.
    Returns: matplotlib figure.
    """
    totals = ", ".join(f"{setting} {sum(held.values()) / GIB:.1f} GiB" for setting, held in parts.items())
    figure = ShownFigure(figsize=(8, 1.2 + 0.45 * len(parts)), alt=f"{title}: {totals}")
    axes = figure.subplots()
    for place, held in enumerate(parts.values()):
        left = 0.0
        for name, size in held.items():
            axes.barh(place, size / GIB, left=left, color=MEMORY_COLOURS[name], label=None if place else name)
            left += size / GIB
    for setting, gib in (measured or {}).items():
        label = None if axes.collections else "measured"
        axes.scatter(gib, list(parts).index(setting), marker="D", color="black", zorder=3, label=label)
    if card_gib:
        axes.axvline(card_gib, color="black", linestyle="--", label=f"{card_gib:g} GiB card")
    axes.set(yticks=range(len(parts)), yticklabels=list(parts), xlabel="GiB", title=title)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def curves_figure(panels, *, across):
    """Lines over one quantity, panels side by side: of numbers, or of reports with their 95 % intervals.

    Args: panels: {what is upwards: {line: {place: number, or what `evaluate` gave}}}; across: what the places are.
    Returns: matplotlib figure.
    """
    told = [f"{what} over {across}, {name} {_told(line)}" for what in panels for name, line in panels[what].items()]
    figure = ShownFigure(figsize=(2 + 4.5 * len(panels), 3.2), layout="constrained", alt="; ".join(told))
    order = {}  # {name: number of its colour}, in every panel the same
    for axes, (what, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, line in lines.items():
            place = order.setdefault(name, len(order))
            colour, marker = (BLUE, ORANGE, GREEN, PINK, RED)[place % 5], "osD^v"[place % 5]
            heights = [getattr(value, "score", value) for value in line.values()]
            axes.plot(list(line), heights, color=colour, marker=marker, markersize=4, label=plain_text(name))
            bars = {x: report.interval for x, report in line.items() if hasattr(report, "interval")}
            axes.vlines(list(bars), *np.reshape(list(bars.values()), (-1, 2)).T, color=colour)
            if bars:
                axes.yaxis.set_major_formatter("{x:.0%}")
        places = {place for line in lines.values() for place in line}
        if len(places) <= FEW:
            axes.set_xticks(sorted(places))
        axes.set(xlabel=across, ylabel=what)
        axes.grid(alpha=0.3)
    drawn = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend([*drawn.values()], [*drawn], loc="outside right upper", frameon=False)
    return figure


def _told(line):
    values = [f"{value.score:.0%}" if hasattr(value, "score") else f"{value:.2f}" for value in line.values()]
    return ", ".join(values) if len(values) <= FEW else f"from {values[0]} to {values[-1]}"


def plan_html(plan):
    """A `RunPlan`: what it comes to, its cases as a table, and a line for each note below."""
    said, *notes = plan.lines()
    head, *rows = plan.table()
    lines = "".join(f"<div>{text_html(note)}</div>" for note in notes)
    return fragment(table_html(rows, header=head, title=said) + lines)


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
    spread = bars_of([(point.report.score, *point.report.interval) for point in trained])
    axes.errorbar(rows, scores, yerr=spread, marker="o", capsize=3, label="trained")
    axes.axhline(before.report.score, linestyle="--", color="gray", label="before training")
    axes.set_xscale("log")
    axes.set_xticks(rows, labels=[f"{number:,}" for number in rows])
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel=plain_text(before.report.metric), title="learning curve")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def learning_curve_html(curve):
    """The figure and a line for each point."""
    rows = []
    for point in curve.points:
        low, high = point.report.interval
        rows.append((f"{point.rows:,}", point.steps, f"{point.report.score:.1%}", f"{low:.1%} – {high:.1%}"))
    table = table_html(rows, header=("training rows", "steps", curve.points[0].report.metric, "95 %"))
    return fragment(learning_curve_figure(curve).to_html() + table)


def calibration_figure(calibration):
    """The share of right answers among the surest 5, 10, … 100 %, with its 95 % interval.

    Args: calibration: a `Calibration`.
    Returns: matplotlib figure.
    """
    points = [(share, *calibration.among(share / 100)) for share in range(5, 101, 5)]
    figure = ShownFigure(figsize=(7, 3.2), alt=repr(calibration))
    axes = figure.subplots()
    shares, rights, lows, highs = zip(*points, strict=True)
    axes.fill_between(shares, lows, highs, color=BLUE, alpha=0.2, label="95 %")
    axes.plot(shares, rights, color=BLUE, marker="o", markersize=3, label="right among these")
    axes.axvline(100 * calibration.surest[0], color="gray", linestyle="--", label="look at those to the right")
    axes.set(xlim=(0, 100), xlabel="the surest … % of the answers", ylabel="right", title="surest answers first")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def calibration_html(calibration):
    """The sentence and the curve."""
    return fragment(f"<p><b>{text_html(calibration)}</b></p>{calibration_figure(calibration).to_html()}")


def forgetting_figure(runs, *, learned="new task", kept="old tasks"):
    """Each model as a point: score on what it was trained for across, on what it could do before upwards.

    Arrows start at the first model: to the right is learned, downwards is forgotten. Bars are 95 % intervals.

    Args: runs: {name: {"new": (score, low, high), "old": (score, low, high)}}, the model before training first.
    Returns: matplotlib figure.
    """
    said = (f"{name}: {learned} {run['new'][0]:.1%}, {kept} {run['old'][0]:.1%}" for name, run in runs.items())
    figure = ShownFigure(figsize=(7.5, 4.2), layout="constrained", alt="; ".join(said))
    axes, start = figure.subplots(), next(iter(runs.values()))
    for place, (name, run) in enumerate(runs.items()):
        across, upwards = run["new"], run["old"]
        colour, marker = (BLUE, ORANGE, GREEN, PINK, RED)[(place - 1) % 5], "osD^vx"[place % 6]
        if run is start:
            colour = "#666666"
        else:
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.5, "linestyle": "--"}
            axes.annotate("", (across[0], upwards[0]), (start["new"][0], start["old"][0]), arrowprops=arrow)
        spread = {"xerr": bars_of([across]), "yerr": bars_of([upwards]), "elinewidth": 1, "capsize": 3}
        label = f"{plain_text(name, 40)}: {across[0]:.0%}, {upwards[0]:.0%}"
        axes.errorbar(across[0], upwards[0], fmt=marker, color=colour, markersize=8, label=label, **spread)
    axes.set(xlabel=f"{learned} →", ylabel=f"{kept} →")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(fontsize=8, title=f"{learned}, {kept}", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure
