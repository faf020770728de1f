"""A run: its curves and numbers, live while it trains and as a picture afterwards. All of it comes from its log."""

import asyncio
import time
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from statistics import median

from ..errors import TrainingError
from ..training.run import BEGINNING
from .figure import BLUE, GREEN, ORANGE, PINK, ShownFigure
from .html import escape_text, fragment, table_html, text_html
from .live import Live, make_controls

REDRAWN_EVERY_SECONDS = 1.0  # at most
REST_AFTER_DRAWING = 9  # times as long as it took: the run may train on the same cores
RECENT_STEPS = 20  # whose time tells what is left
ANSWER_STEPS = 6  # shown, spread over the run
FREE = (
    "Validation: answers to rows that are not trained on",
    "What the model says by itself, from the first word on (greedy), beside loss and score of the validation rows.",
)
FORCED = (
    "Training rows: the next token, not an answer",
    "Each token is predicted after the true tokens before it. Where all are right, so is the model's own answer.",
)
_following = set()  # a loop alone would let its tasks be collected as garbage


def run_figure(name, history, validation=()):
    """Loss, learning rate, and where they were logged tokens a second and memory, each over the steps.

    Args: validation: `Run.validation`, whose losses are marked.
    Returns: matplotlib figure.
    """
    logged = [(title, colour, [pair for pair in of(history) if pair[1] is not None]) for title, colour, of in _PANELS]
    panels = [panel for panel in logged if panel[2]]
    alt = f"loss of {name}: from {history[0]['loss']:.3f} to {history[-1]['loss']:.3f} in {len(history)} steps"
    if validation:
        alt += f"; in validation from {validation[0]['loss']:.3f} to {validation[-1]['loss']:.3f}"
    figure = ShownFigure(figsize=(2.6 * len(panels) + 3.6, 2.6), layout="constrained", alt=alt)
    first, *others = figure.subplots(1, 1 + len(panels), squeeze=False, width_ratios=[1.5] + [1] * len(panels))[0]
    _draw_losses(first, history, validation)
    _over_steps(first, "loss")
    for axes, (title, colour, pairs) in zip(others, panels, strict=True):
        axes.plot(*zip(*pairs, strict=True), color=colour, marker="o" if len(pairs) == 1 else None)
        axes.set_ylim(0, 1.15 * max(value for _, value in pairs) or 1)
        _over_steps(axes, title)
    for axes in (first, *others):
        axes.tick_params(labelsize=7)
    return figure


def _draw_losses(axes, history, validation):
    """Each step pale, the running mean strong; validations as dots."""
    steps, losses = _losses(history)
    axes.plot(steps, losses, alpha=0.3, color=BLUE)
    axes.plot(steps, _smooth(losses), color=BLUE, label="training")
    if validation:
        axes.plot(*_losses(validation), "o", markersize=3.5, color=ORANGE, label="validation")
        axes.legend(fontsize=7)


def _losses(lines):
    """([step, …], [loss, …]) of lines of a log."""
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def _smooth(values, weight=0.9):
    """Exponential running mean without the bias of its start."""
    smoothed, mean = [], 0.0
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smoothed.append(mean / (1 - weight**number))
    return smoothed


def _over_steps(axes, title):
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("optimiser step", fontsize=8)
    axes.grid(alpha=0.3)


def token_rates(history):
    """[(step, tokens a second)] of each step; none for the first of a start, whose time is not known."""
    return [
        (line["step"], (line["tokens"] - before["tokens"]) / (line["seconds"] - before["seconds"]))
        for before, line in _strides(history)
        if line.get("tokens") is not None and before.get("tokens") is not None
    ]


def seconds_left(history):
    """Seconds to the last step at the pace of the latest ones; None before two steps."""
    paces = [line["seconds"] - before["seconds"] for before, line in _strides(history)]
    return median(paces[-RECENT_STEPS:]) * (history[-1]["steps"] - history[-1]["step"]) if paces else None


def _strides(history):
    """[(line before, line)] of steps; not over a break, behind which seconds and tokens are counted from 0 again."""
    return [(before, line) for before, line in pairwise(history) if line["seconds"] > before["seconds"]]


_PANELS = (  # (title, colour, [(step, value or None)] of a history)
    ("learning rate", ORANGE, lambda history: [(line["step"], line.get("learning_rate")) for line in history]),
    ("tokens a second", GREEN, token_rates),
    # Of a GPU the most that was in use, of a CPU what the process holds.
    ("memory, GiB", PINK, lambda history: [(line["step"], line.get("memory_gib")) for line in history]),
)


def run_html(run):
    """State, last numbers and curves of a run."""
    history, state, validation, samples = run.history, run.state, run.validation, run.samples
    parts = [f"<b>{text_html(run)}</b>"]
    if run.error:
        parts.append(f'<div class="card bad">{text_html(run.error)}</div>')
    parts += [f'<div class="dim">{text_html(notice)}</div>' for notice in run.notices]
    if len(history) > 1:
        parts.append(_numbers(history, is_running=state == "running"))
        parts.append(run_figure(run.folder.name, history, validation).to_html())
    parts += [_answers_html(lines, *said) for lines, said in ((validation, FREE), (samples, FORCED)) if lines]
    if len(history) < 2 and state == "running":
        parts.append(f"<div>{BEGINNING}</div>")
    return fragment("".join(parts))


def recipe_html(recipe):
    """Every field of a `Recipe`, below the reasons for its values where it has some."""
    reasons = "".join(f"<li>{escape_text(reason)}</li>" for reason in recipe.reasons)
    rows = [(field.name, getattr(recipe, field.name)) for field in fields(recipe)]
    return (fragment(f"<ul>{reasons}</ul>") if reasons else "") + table_html(rows, title=recipe.name)


def sweep_figure(sweep):
    """The training loss of every run as a running mean, and its validations: matplotlib figure."""
    logs = {value: (run.history, run.validation) for value, run in sweep.runs.items()}
    ends = ", ".join(f"{value} {lines[-1]['loss']:.3f}" for value, (_, lines) in logs.items() if lines)
    figure = ShownFigure(figsize=(8, 3), layout="constrained", alt=f"losses by {sweep.field}; in validation {ends}")
    axes = figure.subplots(1, 2, sharex=True)
    for value, (history, validation) in logs.items():
        steps, losses = _losses(history)
        axes[0].plot(steps, _smooth(losses))
        axes[1].plot(*_losses(validation), ".-", label=value)
    for each, title in zip(axes, ("loss in training", "loss in validation"), strict=True):
        _over_steps(each, title)
    axes[1].legend(title=sweep.field, fontsize=7, title_fontsize=7)
    return figure


def sweep_html(sweep):
    """Curves, a line for each run that has ended, and the verdict."""
    header, rows = (sweep.field, "best step", "validation loss", "a row beside the lowest, 95 %"), []
    for value, (step, loss, (low, high)) in sweep.table.items():
        rows.append((value, step, f"{loss:.4f}", f"{low:+.4f} to {high:+.4f}"))
    return fragment(f"{sweep_figure(sweep).to_html()}{table_html(rows, header=header)}{text_html(sweep.said)}")


def follow_sweep(sweep, run):
    """Wait for a run: in a notebook with the sweep's picture, which stays one, else with a bar of progress."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with suppress(TrainingError):  # the sweep names it
            run.wait()
        return
    live = sweep.__dict__.setdefault("_live", Live(lambda: sweep_html(sweep)))
    while run.state == "running":
        began = time.perf_counter()
        live.redraw()
        time.sleep(max(REDRAWN_EVERY_SECONDS, REST_AFTER_DRAWING * (time.perf_counter() - began)))
    live.redraw()


def _answers_html(lines, title, said):
    """A line a row: its truth, and what came at some of the steps, the latest last; ✓ and ✗ beside the colours."""
    shown = min(ANSWER_STEPS, len(lines))
    steps = [lines[round(place * (len(lines) - 1) / max(1, shown - 1))] for place in range(shown)]
    head, rows = "", ""
    for line in steps:  # below the step of a validation its loss and score
        known = [f"{name} {line[name]:.3f}" for name in ("loss", "score") if line.get(name) is not None]
        measured = f'<div class="dim">{"<br>".join(known)}</div>' if known else ""
        head += f"<th>step {line['step']:,}{measured}</th>"
    for answers in zip(*(line["answers"] for line in steps), strict=True):
        question = text_html(answers[0]["question"].replace("<image>", "").strip(), 60)
        truth, cells = text_html(answers[0]["truth"], 60), "".join(map(_answer_cell, answers))
        rows += f"<tr><td>{question}</td><td><b>{truth}</b></td>{cells}</tr>"
    table = f"<table><tr><th>row</th><th>truth</th>{head}</tr>{rows}</table>"
    return f'<div><b>{title}</b></div>{table}<div class="dim">{said}</div>'


def _answer_cell(answer):
    kind, mark = ("good", "✓") if answer["right"] else ("bad", "✗")
    return f'<td><span class="{kind} answer">{mark} {text_html(answer["reply"], 40)}</span></td>'


def _numbers(history, *, is_running):
    """The latest step in a line."""
    last, rates = history[-1], token_rates(history)
    cells = {"step": f"{last['step']:,} of {last['steps']:,}", "loss": f"{last['loss']:.4f}"}
    if last.get("learning_rate") is not None:
        cells["learning rate"] = f"{last['learning_rate']:.2e}"
    if rates:
        cells["tokens a second"] = f"{median(rate for _, rate in rates[-RECENT_STEPS:]):,.0f}"
    if last.get("memory_gib") is not None:
        cells["memory"] = f"{last['memory_gib']:.1f} GiB"
    left = seconds_left(history) if is_running else None
    if left is not None:
        cells["left"] = duration_text(left)
    return table_html([cells.values()], header=cells.keys())


def duration_text(seconds):
    """ "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Watching:
    """A run that is being watched; `await` it to keep the cell until the run ends."""

    def __init__(self, run, task):
        self.run, self.task = run, task

    def __await__(self):
        yield from self.task.__await__()
        self.run.raise_if_failed()

    def _ipython_display_(self):
        """Nothing: it shows itself already."""


def watch(run, *, every_seconds=REDRAWN_EVERY_SECONDS):
    """Show a run here and keep it up to date until it ends; in a script with a bar of progress. See `Run.watch`.

    Returns: `Watching` in a notebook; where no event loop runs, nothing, once the run has ended.
    """
    from IPython import get_ipython

    if get_ipython() is None:  # a display would print its HTML, every second
        run.wait()
        return None

    def stop(button):
        button.disabled, button.description = True, "stopping …"
        run.request_stop()

    buttons = make_controls(lambda widgets: [widgets.Button(description="stop", tooltip="saves a checkpoint first")])
    for button in buttons:
        button.on_click(stop)
    live = Live(lambda: run_html(run), buttons)
    live.show()
    following = _follow(run, live, every_seconds)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(following)
        run.raise_if_failed()
        return None
    task = loop.create_task(following)
    _following.add(task)
    task.add_done_callback(_following.discard)
    return Watching(run, task)


async def _follow(run, live, every_seconds):
    """Redraw until the run ends, or nobody follows any more; what stays is the last state and a dead button."""
    rested_at = 0.0
    try:
        while run.state == "running":
            await asyncio.sleep(every_seconds)
            began = time.perf_counter()
            if began >= rested_at:
                live.redraw()
                drawn = time.perf_counter()
                rested_at = drawn + REST_AFTER_DRAWING * (drawn - began)
    finally:
        live.redraw()
        for button in live.controls:
            button.disabled, button.description = True, "ended"
