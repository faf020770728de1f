"""What was found about a data set, as pieces of a page: histograms, problems as a table, remarks about one row."""

import hashlib

from matplotlib.ticker import MaxNLocator

from ..data.checking.findings import PLACES, grouped
from .figure import ShownFigure, plain_text
from .html import escape_text, text_html

LEVEL_COLOURS = {"error": "#d55e00", "warning": "#b07b00", "info": "#0072b2"}


def kind_table(report):
    """A line for each kind of problem: the first in full, and where else it was found."""
    kinds = grouped(report.problems, lambda problem: problem.code)
    return _table("".join(_problem_row(same, report.counts[same[0].code]) for same in kinds))


def problem_table(problems):
    """Problems as lines of a table, equal ones in one, each linked to the card of its row where the page has one."""
    equal = grouped(problems, lambda problem: (problem.code, problem.found, problem.source))
    return _table("".join(_problem_row(same, len(same)) for same in equal))


def _table(rows):
    head = "<tr><th>where</th><th>level</th><th>found</th><th>expected</th><th>what to do</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _problem_row(same, number):
    problem, *others = same
    places = ", ".join(_place_html(one) for one in same[: 1 + PLACES])
    hidden = "".join(f'<a id="{anchor(one)}"></a>' for one in others[PLACES:])
    more = f" and {number - 1 - PLACES:,} more" if number > 1 + PLACES else ""
    where = f"{places}{more}{hidden}"
    said = (problem.found, problem.expected, problem.todo)
    cells = "".join(f"<td>{text_html(cell, 400)}</td>" for cell in said)
    return f"<tr><td>{where}</td><td>{_level_html(problem.level)}</td>{cells}</tr>"


def _place_html(problem):
    where = text_html(problem.where, 300)
    link = where if problem.row is None else f'<a href="#{row_anchor(problem.where)}">{where}</a>'
    return f'<span id="{anchor(problem)}">{link}</span>'


def _level_html(level):
    """The word in the theme's own colour beside a mark in the level's: readable on white and on black."""
    return f'<b style="border-left:5px solid {LEVEL_COLOURS[level]};padding-left:4px">{level}</b>'


def anchor(problem):
    """The name by which a page links to this problem's line."""
    return escape_text(f"{problem.code}-{problem.source}-{problem.row}".replace(" ", "_"))


def row_anchor(where):
    """The name by which a page links to the card of a row."""
    return f"row-{hashlib.sha256(str(where).encode(errors='replace')).hexdigest()[:12]}"


def remarks_html(problems):
    """What was found about one row, each linked to its line in the table of problems."""
    return "".join(
        f'<div>{_level_html(problem.level)} <a href="#{anchor(problem)}">{text_html(problem.found, 120)}</a></div>'
        for problem in problems
    )


def report_figure(report):
    """Histograms of tokens, tiles and aspect ratios, and the most frequent answers."""
    drawn = _drawn(report.stats)
    size = (10, 3 * ((len(drawn) + 1) // 2))
    figure = ShownFigure(figsize=size, layout="constrained", alt=_figure_alt(report))
    for place, (draw, title, values) in enumerate(drawn, start=1):
        axes = figure.add_subplot((len(drawn) + 1) // 2, 2, place)
        axes.set_title(title, fontsize=10)
        draw(axes, values)
    return figure


def figures_html(report):
    """`report_figure`, or nothing where no row is usable."""
    return report_figure(report).to_html() if _drawn(report.stats) else ""


def _drawn(stats):
    """(function, title, values) of each figure that has something to show."""
    known = (
        ("tokens", _draw_tokens, "tokens of a row", lambda values: values["histogram"]["counts"]),
        ("tiles", _draw_tiles, "tiles of a row", lambda values: values["histogram"]),
        ("aspect_ratios", _draw_aspects, "width : height of a picture", lambda values: values["counts"]),
        ("answers", _draw_answers, "most frequent answers", lambda values: values["top"]),
    )
    return [(draw, title, stats[key]) for key, draw, title, counts in known if key in stats and any(counts(stats[key]))]


def _draw_tokens(axes, tokens):
    edges, counts = tokens["histogram"]["edges"], tokens["histogram"]["counts"]
    axes.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge")
    _label(axes, "tokens", "rows")


def _draw_tiles(axes, tiles):
    axes.bar(range(len(tiles["histogram"])), tiles["histogram"])
    _label(axes, "tiles, thumbnail included", "rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_aspects(axes, aspects):
    names = [f"< {edge:g}" for edge in aspects["edges"][1:-1]] + [f"≥ {aspects['edges'][-2]:g}"]
    axes.bar(range(len(names)), aspects["counts"])
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=7)
    _label(axes, "", "pictures")


def _draw_answers(axes, answers):
    top = answers["top"][:10][::-1]
    axes.barh(range(len(top)), [count for _, count in top])
    axes.set_yticks(range(len(top)), [plain_text(text) for text, _ in top], fontsize=7)
    _label(axes, "rows", "")


def _label(axes, horizontal, vertical):
    axes.set_xlabel(horizontal, fontsize=8)
    axes.set_ylabel(vertical, fontsize=8)
    axes.tick_params(labelsize=7)


def _figure_alt(report):
    stats = report.stats
    lengths = f"; tokens of a row: median {stats['tokens']['median']}" if "tokens" in stats else ""
    return f"{stats['good']:,} usable rows, {stats['distinct_pictures']:,} pictures{lengths}"
