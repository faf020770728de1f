"""What was found about a data set, as pieces of a page: histograms, problems as a table, remarks about one row."""

import hashlib

from matplotlib.ticker import MaxNLocator

from ..data.checking.findings import PLACES, grouped
from .figure import ShownFigure, drawn_names
from .html import escape_text, text_html

LEVEL_COLOURS = {"error": "#d55e00", "warning": "#b07b00", "info": "#0072b2"}


def kind_table(report):
    """A line for each kind of problem: the first in full, and where else it was found."""
    kinds = grouped(report.problems, lambda problem: problem.code)
    return _table([(same, report.counts[same[0].code]) for same in kinds])


def problem_table(problems):
    """Problems as lines of a table, equal ones in one, each linked to the card of its row where the page has one."""
    equal = grouped(problems, lambda problem: (problem.code, problem.found, problem.source))
    return _table([(same, len(same)) for same in equal])


def _table(groups):
    """[(problems of a line, how many there are in all)] as a table."""
    rows = []
    for (first, *others), number in groups:
        places = [f'<span id="{_anchor(one)}">{_where_html(one)}</span>' for one in (first, *others[:PLACES])]
        hidden = "".join(f'<a id="{_anchor(one)}"></a>' for one in others[PLACES:])
        more = f" and {number - 1 - PLACES:,} more" if number > 1 + PLACES else ""
        said = "".join(f"<td>{text_html(cell, 400)}</td>" for cell in (first.found, first.expected, first.todo))
        rows.append(f"<tr><td>{', '.join(places)}{more}{hidden}</td><td>{_level_html(first.level)}</td>{said}</tr>")
    head = "<tr><th>where</th><th>level</th><th>found</th><th>expected</th><th>what to do</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>" if rows else ""


def _where_html(problem):
    where = text_html(problem.where, 300)
    return where if problem.row is None else f'<a href="#{row_anchor(problem.where)}">{where}</a>'


def _level_html(level):
    """The word in the theme's own colour beside a mark in the level's: readable on white and on black."""
    return f'<b style="border-left:5px solid {LEVEL_COLOURS[level]};padding-left:4px">{level}</b>'


def _anchor(problem):
    """The name by which a page links to this problem's line."""
    return escape_text(f"{problem.code}-{problem.source}-{problem.row}".replace(" ", "_"))


def row_anchor(where):
    """The name by which a page links to the card of a row."""
    return f"row-{hashlib.sha256(str(where).encode(errors='replace')).hexdigest()[:12]}"


def problems_of_rows(report):
    """{where: problems of that row} of a `DataReport`; {} for None."""
    found = {}
    for problem in report.problems if report else ():
        found.setdefault(problem.where, []).append(problem)
    return found


def remarks_html(problems):
    """What was found about one row, each linked to its line in the table of problems."""
    return "".join(
        f'<div>{_level_html(problem.level)} <a href="#{_anchor(problem)}">{text_html(problem.found, 120)}</a></div>'
        for problem in problems
    )


def figures_html(report):
    """Histograms of tokens, tiles and aspect ratios, and the most frequent answers; nothing where no row is usable."""
    stats = report.stats
    drawn = [panel for panel in _PANELS if panel[0] in stats and any(panel[2](stats[panel[0]]))]
    if not drawn:
        return ""
    lengths = f"; tokens of a row: median {stats['tokens']['median']}" if "tokens" in stats else ""
    alt = f"{stats['good']:,} usable rows, {stats['distinct_pictures']:,} pictures{lengths}"
    down = (len(drawn) + 1) // 2
    _, below = drawn_names(_most_frequent(stats["answers"]))
    figure = ShownFigure(figsize=(10, 3 * down), layout="constrained", alt=alt, below=below)
    for place, (key, title, _, draw, labels) in enumerate(drawn, start=1):
        axes = figure.add_subplot(down, 2, place)
        axes.set_title(title, fontsize=10)
        draw(axes, stats[key])
        axes.set_xlabel(labels[0], fontsize=8)
        axes.set_ylabel(labels[1], fontsize=8)
        axes.tick_params(labelsize=7)
    return figure.to_html()


def _draw_tokens(axes, tokens):
    edges = tokens["histogram"]["edges"]
    axes.bar(edges[:-1], tokens["histogram"]["counts"], width=edges[1] - edges[0], align="edge")


def _draw_tiles(axes, tiles):
    axes.bar(range(len(tiles["histogram"])), tiles["histogram"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_aspects(axes, aspects):
    names = [f"< {edge:g}" for edge in aspects["edges"][1:-1]] + [f"≥ {aspects['edges'][-2]:g}"]
    axes.bar(range(len(names)), aspects["counts"])
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=7)


def _draw_answers(axes, answers):
    labels, _ = drawn_names(_most_frequent(answers))
    axes.barh(range(len(labels)), [count for _, count in answers["top"][: len(labels)]])
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()


def _most_frequent(answers):
    return [text for text, _ in answers["top"][:10]]


_PANELS = (  # (key of the figures, title, its counts, what draws it, (across, upwards))
    ("tokens", "tokens of a row", lambda found: found["histogram"]["counts"], _draw_tokens, ("tokens", "rows")),
    ("tiles", "tiles of a row", lambda found: found["histogram"], _draw_tiles, ("tiles, thumbnail included", "rows")),
    ("aspect_ratios", "width : height of a picture", lambda found: found["counts"], _draw_aspects, ("", "pictures")),
    ("answers", "most frequent answers", lambda found: found["top"], _draw_answers, ("rows", "")),
)
