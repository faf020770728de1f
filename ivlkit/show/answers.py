"""Replies beside the truth: a report as HTML, alone or before and after."""

from .dataset import pictures_html
from .html import cards_html, fragment, page_html, table_html, text_html

EXAMPLES = 48  # pictures of a page: about 10 KB each


def reply_html(reply):
    """A conversation so far, its last answer first."""
    turns = "".join(
        f'<div><span class="dim">{turn.role}</span> {text_html(turn.text)}</div>' for turn in reply.turns[:-1]
    )
    return fragment(f'<div class="big">{text_html(reply.text)}</div>{turns}')


def report_html(report, *, before=None, examples=EXAMPLES):
    """Score, slices and examples, wrong ones first; with `before`, both replies stand beside each other."""
    return fragment(_body(report, before, examples))


def report_page(report, *, before=None, title="Evaluation", examples=EXAMPLES):
    """The same as one self-contained page."""
    return page_html(title, _body(report, before, examples))


def _body(report, before, examples):
    reports = [("before", before), ("after", report)] if before else [("", report)]
    parts = [
        table_html([(name, *_numbers(each)) for name, each in reports], header=("", report.metric, "95 %", "rows"))
    ]
    for field in report.slice_fields:
        parts.append(_slices(field, reports))
    parts.append(f"<h3>Examples</h3>{cards_html(_cards(report, before, examples))}")
    details = [(key, value) for key, value in report.details.items()]
    parts.append(table_html(details, title="How this was measured"))
    return "".join(parts)


def _numbers(report):
    low, high = report.interval
    return f"{report.score:.1%}", f"{low:.1%} – {high:.1%}", len(report.rows)


def _slices(field, reports):
    tables = [report.by(field) for _, report in reports]
    rows = [
        (value, tables[-1][value][1], *(f"{table[value][0]:.1%}" if value in table else "–" for table in tables))
        for value in tables[-1]
    ]
    return table_html(rows, header=(field, "rows", *(name or "score" for name, _ in reports)), title=f"by {field}")


def _cards(report, before, examples):
    """Half of the examples wrong where there are that many, the rest right; each with its picture."""
    order = sorted(range(len(report.rows)), key=lambda number: report.rows[number].score)
    wrong = [number for number in order if report.rows[number].score < 1][: examples // 2]
    right = [number for number in order if report.rows[number].score == 1][: examples - len(wrong)]
    return [_card(report.rows[number], before and before.rows[number]) for number in wrong + right]


def _card(row, earlier):
    earlier_line = f'<div><span class="dim">before</span> {text_html(earlier.reply, 300)}</div>' if earlier else ""
    name = "after" if earlier else "reply"
    inner = (
        f"{pictures_html(row.images, row.where)}<div>{text_html(row.question, 300)}</div>"
        f'<div><span class="dim">truth</span> {text_html(row.truth, 300)}</div>{earlier_line}'
        f'<div><span class="dim">{name}</span> <b>{text_html(row.reply, 300)}</b></div>'
        f'<div class="dim">{text_html(row.where)} · {"right" if row.score == 1 else "wrong"}</div>'
    )
    return inner, "good" if row.score == 1 else "bad"
