"""A data report as HTML: what was found, the figures, and sample pictures beside their findings."""

from ..data.checking.findings import KINDS, LEVELS
from .dataset import pictures_html
from .findings import figures_html, kind_table, problem_table, remarks_html, row_anchor
from .html import cards_html, fragment, page_html, table_html, text_html

NOTHING_FOUND = "<div>Nothing found.</div>"


def report_html(report):
    """The report in a notebook: a line of numbers, the first problems and the histograms."""
    return fragment(f"{_head(report)}{kind_table(report) or NOTHING_FOUND}{figures_html(report)}")


def report_page(report):
    """The same as one self-contained page, with figures, sources and sample pictures."""
    samples = cards_html([_card(problem, record) for problem, record in report.samples])
    parts = [
        _head(report),
        _count_table(report),
        f"<h2>Problems</h2>{problem_table(report.problems)}{_more(report)}",
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
    order = sorted(report.counts, key=lambda code: (LEVELS.index(KINDS[code].level), -report.counts[code]))
    rows = [(KINDS[code].level, code, f"{report.counts[code]:,}", KINDS[code].expected) for code in order]
    return table_html(rows, header=("level", "kind", "found", "expected")) if rows else NOTHING_FOUND


def _more(report):
    left = sum(report.counts.values()) - len(report.problems)
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
