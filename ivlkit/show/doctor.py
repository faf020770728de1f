"""A data report as HTML: what was found, the figures, and sample pictures beside their findings."""

from ..data.checking.findings import KINDS, LEVELS
from ..errors import DataError
from .dataset import pictures_html
from .findings import figures_html, kind_table, problem_table, problems_of_rows, remarks_html, row_anchor
from .html import cards_html, fragment, page_html, table_html, text_html

NOTHING_FOUND = "<div>Nothing found.</div>"


def report_html(report):
    """The report in a notebook: a line of numbers, the first problems and the histograms."""
    return fragment(f"{_head(report)}{kind_table(report) or NOTHING_FOUND}{figures_html(report)}")


def report_page(report):
    """The same as one self-contained page, with figures, sources and sample pictures."""
    stats = report.stats
    left = sum(report.counts.values()) - len(report.problems)
    samples = cards_html([_card(problem, record) for problem, record in report.samples])
    sources = [
        (name, found["split"], f"{found['rows']:,}", f"{found['good']:,}", found["file"])
        for name, found in stats["sources"].items()
    ]
    answers = [(count, text) for text, count in stats["answers"]["top"]]
    said = f"Answers: {stats['answers']['distinct']:,} different ones"
    parts = [
        _head(report),
        _count_table(report),
        f"<h2>Problems</h2>{problem_table(report.problems)}",
        f'<div class="dim">… and {left:,} more</div>' if left > 0 else "",
        f"<h2>Pictures with a finding</h2>{samples}" if report.samples else "",
        f"<h2>Figures</h2>{figures_html(report)}",
        table_html(sources, header=("data set", "split", "rows", "usable", "file"), title="Sources") if sources else "",
        table_html(answers, header=("rows", "answer"), title=said),
    ]
    return page_html(f"Data report: {report.path}", "".join(parts))


def contact_sheet_html(report, data, *, rows=24):
    """The first rows of a data set as small pictures, each with its line and what the report says about it.

    A row that can't be read is named in its place.
    """
    found, cards = problems_of_rows(report), []
    for number in range(min(rows, len(data))):
        where = data.where(number)
        problems = found.get(where, [])
        try:
            record, kind = data[number], "bad" if problems else "good"
            shown = pictures_html(record.images[:2], where, max_px=140)
            shown += f"<div><b>{text_html(record.answer, 60)}</b></div>"
            shown += f'<div class="dim">{text_html(where, 120)}</div>'
        except DataError as error:
            shown, kind = f"<div>{text_html(error)}</div>", "bad"
        cards.append((shown + remarks_html(problems), kind))
    return fragment(cards_html(cards))


def _head(report):
    stats, lengths = report.stats, ""
    if "tokens" in stats:
        tokens, tiles = stats["tokens"], stats["tiles"]["total"]
        lengths = f" · {tokens['total']:,} tokens, {tokens['supervised']:,} supervised, {tiles:,} tiles"
    return (
        f'<div class="big">{"a run can start" if report.ok else "a run would not start"}</div>'
        f"<div>{text_html(report.path)}: {stats['rows']:,} rows, "
        f"{stats['good']:,} usable, {stats['distinct_pictures']:,} pictures{lengths}</div>"
    )


def _count_table(report):
    order = sorted(report.counts, key=lambda code: (LEVELS.index(KINDS[code].level), -report.counts[code]))
    rows = [(KINDS[code].level, code, f"{report.counts[code]:,}", KINDS[code].expected) for code in order]
    return table_html(rows, header=("level", "kind", "found", "expected")) if rows else NOTHING_FOUND


def _card(problem, record):
    inner = (
        f'<div id="{row_anchor(record.where)}">{pictures_html(record.images[:2], record.where)}</div>'
        f"<div>{text_html(record.question, 200)}</div><div><b>{text_html(record.answer, 200)}</b></div>"
        f'<div class="dim">{text_html(problem.where, 300)}</div>{remarks_html([problem])}'
    )
    return inner, "bad" if problem.level == "error" else ""
