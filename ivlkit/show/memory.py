"""What a run holds in memory: its parts as bars, under the line of the card."""

from ..hardware import GIB
from .figure import BLUE, GREEN, ORANGE, RED, ShownFigure
from .html import fragment, table_html, text_html

COLOURS = {"weights": BLUE, "gradients": "#56b4e9", "optimizer": GREEN, "activations": ORANGE, "working": RED}


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
            axes.barh(place, size / GIB, left=left, color=COLOURS[name], label=None if place else name)
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


def plan_html(plan):
    """A `RunPlan`: what it comes to, its cases as a table, and a line for each note below."""
    said, *notes = plan.lines()
    head, *rows = plan.table()
    lines = "".join(f"<div>{text_html(note)}</div>" for note in notes)
    return fragment(table_html(rows, header=head, title=said) + lines)
