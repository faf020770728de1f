"""A data report as HTML: what was found, the figures, and sample pictures beside their findings."""

from matplotlib.ticker import MaxNLocator

from .dataset import pictures_html, row_anchor
from .figure import ShownFigure, plain_text
from .html import cards_html, escape_text, fragment, page_html, table_html, text_html

LEVEL_COLOURS = {"error": "#d55e00", "warning": "#b07b00", "info": "#0072b2"}
LISTED_IN_NOTEBOOK = 20


def report_html(report):
    """The report in a notebook: a line of numbers, the first problems and the histograms."""
    listed = problem_table(report.problems[:LISTED_IN_NOTEBOOK])
    more = _more(report, LISTED_IN_NOTEBOOK)
    return fragment(f"{_head(report)}{_count_table(report)}{listed}{more}{figures_html(report)}")


def report_page(report):
    """The same as one self-contained page, with figures, sources and sample pictures."""
    samples = cards_html([_card(problem, record) for problem, record in report.samples])
    parts = [
        _head(report),
        _count_table(report),
        f"<h2>Problems</h2>{problem_table(report.problems)}{_more(report, len(report.problems))}",
        f"<h2>Pictures with a finding</h2>{samples}" if report.samples else "",
        f"<h2>Figures</h2>{figures_html(report)}",
        _source_table(report),
        _answer_table(report),
    ]
    return page_html(f"Data report: {report.path}", "".join(parts))


def contact_sheet_html(report, data, *, rows=24):
    """The first rows of a data set as small pictures, each with its line and what the report says about it."""
    said = {}
    for problem in report.problems:
        said.setdefault(problem.where, []).append(problem)
    return fragment(cards_html([_sheet_card(data[number], said) for number in range(min(rows, len(data)))]))


def _sheet_card(record, said):
    problems = said.get(record.where, [])
    inner = (
        f"{pictures_html(record.images[:2], record.where, max_px=140)}<div><b>{text_html(record.answer, 60)}</b></div>"
        f'<div class="dim">{text_html(record.where, 120)}</div>{remarks_html(problems)}'
    )
    return inner, "bad" if problems else "good"


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


def _head(report):
    stats = report.stats
    said = "a run can start" if report.ok else "a run would not start"
    lengths = (
        f" · {stats['tokens']['total']:,} tokens, {stats['tokens']['supervised']:,} supervised, "
        f"{stats['tiles']['total']:,} tiles"
        if "tokens" in stats
        else ""
    )
    return (
        f'<div class="big">{said}</div><div>{text_html(report.path)}: {stats["rows"]:,} rows, '
        f"{stats['good']:,} usable, {stats['distinct_pictures']:,} pictures{lengths}</div>"
    )


def _count_table(report):
    from ..data.checking.findings import KINDS, LEVELS

    order = sorted(report.counts, key=lambda code: (LEVELS.index(KINDS[code].level), -report.counts[code]))
    rows = [(KINDS[code].level, code, f"{report.counts[code]:,}", KINDS[code].expected) for code in order]
    return table_html(rows, header=("level", "kind", "found", "expected")) if rows else "<div>Nothing found.</div>"


def problem_table(problems):
    """Problems as lines of a table, each linked to the card of its row where the page has one."""
    rows = "".join(_problem_row(problem) for problem in problems)
    head = "<tr><th>where</th><th>level</th><th>found</th><th>expected</th><th>what to do</th></tr>"
    return f"<table>{head}{rows}</table>" if problems else ""


def _problem_row(problem):
    where = text_html(problem.where, 300)
    if problem.row is not None:
        where = f'<a href="#{row_anchor(problem.where)}">{where}</a>'
    said = (problem.found, problem.expected, problem.todo)
    cells = "".join(f"<td>{text_html(cell, 400)}</td>" for cell in said)
    return f'<tr id="{anchor(problem)}"><td>{where}</td><td>{_level_html(problem.level)}</td>{cells}</tr>'


def _level_html(level):
    """The word in the theme's own colour beside a mark in the level's: readable on white and on black."""
    return f'<b style="border-left:5px solid {LEVEL_COLOURS[level]};padding-left:4px">{level}</b>'


def anchor(problem):
    """The name by which a page links to this problem's line."""
    return escape_text(f"{problem.code}-{problem.source}-{problem.row}".replace(" ", "_"))


def _more(report, listed):
    left = sum(report.counts.values()) - min(listed, len(report.problems))
    return f'<div class="dim">… and {left:,} more</div>' if left > 0 else ""


def _card(problem, record):
    inner = (
        f'<div id="{row_anchor(record.where)}">{pictures_html(record.images[:2], record.where)}</div>'
        f"<div>{text_html(record.question, 200)}</div><div><b>{text_html(record.answer, 200)}</b></div>"
        f'<div class="dim">{text_html(problem.where, 300)}</div>{remarks_html([problem])}'
    )
    return inner, "bad" if problem.level == "error" else ""


def _source_table(report):
    rows = [
        (name, found["split"], f"{found['rows']:,}", f"{found['good']:,}", found["file"])
        for name, found in report.stats["sources"].items()
    ]
    return table_html(rows, header=("data set", "split", "rows", "usable", "file"), title="Sources") if rows else ""


def _answer_table(report):
    answers = report.stats["answers"]
    title = f"Answers: {answers['distinct']:,} different ones"
    return table_html([(count, text) for text, count in answers["top"]], header=("rows", "answer"), title=title)
