"""What a model learned beside what it forgot."""

from .figure import BLUE, GREEN, ORANGE, PINK, RED, ShownFigure, plain_text


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
        spread = {"xerr": _spread(*across), "yerr": _spread(*upwards), "elinewidth": 1, "capsize": 3}
        label = f"{plain_text(name, 40)}: {across[0]:.0%}, {upwards[0]:.0%}"
        axes.errorbar(across[0], upwards[0], fmt=marker, color=colour, markersize=8, label=label, **spread)
    axes.set(xlabel=f"{learned} →", ylabel=f"{kept} →")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(fontsize=8, title=f"{learned}, {kept}", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def _spread(score, low, high):
    return [[score - low], [high - score]]
