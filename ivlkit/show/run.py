"""A run: its loss and learning rate, as a figure and as HTML."""

from itertools import starmap

from .figure import ShownFigure
from .html import fragment, text_html


def loss_figure(histories, *, title="training loss"):
    """Loss over steps with its running mean.

    Args: histories: {name: `Run.history`}.
    Returns: matplotlib figure.
    """
    figure = ShownFigure(figsize=(7, 3.2), alt="; ".join(starmap(_said_of, histories.items())))
    axes = figure.subplots()
    for name, history in histories.items():
        steps, losses = [line["step"] for line in history], [line["loss"] for line in history]
        (line,) = axes.plot(steps, losses, alpha=0.3)
        axes.plot(steps, _smooth(losses), color=line.get_color(), label=name)
    axes.set(xlabel="optimiser step", ylabel="loss", title=title)
    if len(histories) > 1:
        axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _said_of(name, history):
    return f"loss of {name}: from {history[0]['loss']:.3f} to {history[-1]['loss']:.3f} in {len(history)} steps"


def run_html(run):
    """State, last numbers and the loss curve of a run."""
    history = run.history
    lines = [f"<b>{text_html(run)}</b>"]
    if run.error:
        lines.append(f"<div>{text_html(run.error)}</div>")
    if len(history) > 1:
        lines.append(loss_figure({run.folder.name: history}).to_html())
    return fragment("".join(lines))


def _smooth(values, weight=0.9):
    """Exponential running mean without the bias of its start."""
    smoothed, mean = [], 0.0
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smoothed.append(mean / (1 - weight**number))
    return smoothed
