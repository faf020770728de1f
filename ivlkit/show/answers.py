"""Replies beside the truth: a report as HTML, alone or before and after; two reports compared."""

from ..evaluation.report import RIGHT
from .dataset import media_html
from .html import cards_html, fragment, page_html, table_html, text_html

EXAMPLES = 48  # pictures of a page: about 10 KB each
ROWS_OF_A_GROUP = {"won": 40, "lost": 40, "neither": 20, "both": 20}  # of a comparison's page, in this order
PAGE_BYTES = 9_500_000  # of cards: with the rest a page stays under 10 MB
SAID_OF_A_GROUP = {
    "won": "Won: only the reply after is right",
    "lost": "Lost: only the reply before is right",
    "neither": "Neither is right",
    "both": "Both are right",
}


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


def rows_html(rows):
    """Rows of a report, or pairs of them, as cards."""
    pairs = [(row.after, row.before) if hasattr(row, "after") else (row, None) for row in rows]
    return fragment(f"<b>{len(pairs)} rows</b>{cards_html([_card(*pair) for pair in pairs])}")


def _body(report, before, examples):
    reports = [("before", before), ("after", report)] if before else [("", report)]
    parts = [f"<p><b>{text_html(warning)}</b></p>" for warning in report.warnings]
    parts.append(_scores(reports))
    parts += [_slices(field, reports) for field in report.slice_fields]
    parts.append(f"<h3>Examples</h3>{cards_html(_cards(report, before, examples))}")
    parts.append(table_html(report.details.items(), title="How this was measured"))
    return "".join(parts)


def _scores(reports):
    """A line a report, and a line for each control and number of its metric."""
    rows = []
    for name, report in reports:
        low, high = report.interval
        rows.append((name, f"{report.score:.1%}", f"{low:.1%} – {high:.1%}", len(report.rows)))
        rows += [(f"{name} {kind} pictures".strip(), f"{score:.1%}", "", "") for kind, score in report.controls.items()]
        rows += [
            (f"{name} {key}".strip(), f"{value:.4f}" if isinstance(value, float) else value, "", "")
            for key, value in report.numbers.items()
        ]
    return table_html(rows, header=("", reports[-1][1].metric, "95 %", "rows"))


def _slices(field, reports):
    """Score and interval of each value of a field."""
    values = reports[-1][1].by(field)
    rows = []
    for value, (_, count) in values.items():
        cells = [_slice(report, field, value) for _, report in reports]
        rows.append(("(none)" if value is None else value, count, *cells))
    return table_html(rows, header=(field, "rows", *(name or "score" for name, _ in reports)), title=f"by {field}")


def _slice(report, field, value):
    if value not in report.by(field):
        return "–"
    part = report.select(**{field: value})
    low, high = part.interval
    return f"{part.score:.1%} ({low:.1%} – {high:.1%})"


def _cards(report, before, examples):
    """Half of the examples wrong where there are that many, the rest right; each with its picture."""
    order = sorted(range(len(report.rows)), key=lambda number: report.rows[number].score)
    wrong = [number for number in order if not report.rows[number].is_right][: examples // 2]
    right = [number for number in order if report.rows[number].is_right][: examples - len(wrong)]
    return [_card(report.rows[number], before and before.rows[number]) for number in wrong + right]


def _card(row, earlier=None, *, max_px=320):
    earlier_line = f'<div><span class="dim">before</span> {text_html(earlier.reply, 300)}</div>' if earlier else ""
    truth = " | ".join(row.answers) or row.truth
    name = "after" if earlier else "reply"
    inner = (
        f"{media_html(row, max_px=max_px)}<div>{text_html(row.question, 300)}</div>"
        f'<div><span class="dim">truth</span> {text_html(truth, 300)}</div>{earlier_line}'
        f'<div><span class="dim">{name}</span> <b>{text_html(row.reply, 300)}</b></div>'
        f'<div class="dim">{text_html(row.where)} · {_verdict(row.score)}</div>'
    )
    return inner, "good" if row.is_right else "bad"


def _verdict(score):
    return {0.0: "wrong", 1.0: "right"}.get(score, f"score {score:.2f}")


# two reports ----------------------------------------------------------------------------------------------------------


def comparison_html(comparison, *, examples):
    """Numbers and the first rows won and lost."""
    return fragment(_comparison_body(comparison, {"won": examples, "lost": examples}))


def comparison_page(comparison, *, title):
    """Numbers, slices and rows of each group as one self-contained page under 10 MB."""
    return page_html(title, _comparison_body(comparison, ROWS_OF_A_GROUP))


def _comparison_body(comparison, limits):
    low, high = comparison.interval
    before, after = comparison.before, comparison.after
    scores = _scores([("before", before), ("after", after)])
    said = (
        f"<p><b>{100 * comparison.difference:+.1f} points</b> (95 %: {100 * low:+.1f} to {100 * high:+.1f}) on "
        f"{len(after.rows)} rows: {', '.join(f'{count} {name}' for name, count in comparison.counts.items())}. "
        f"A row counts as right from a score of {RIGHT} on.</p>"
    )
    slices = [_slices(field, [("before", before), ("after", after)]) for field in after.slice_fields]
    settings = [(name, *values) for name, values in comparison.measured_differently.items()]
    warned = table_html(settings, header=("", "before", "after"), title="Measured differently") if settings else ""
    models = [
        (name, each.details.get("model", ""), each.details.get("weights", ""))
        for name, each in (("before", before), ("after", after))
    ]
    return "".join([said, scores, warned, *slices, *_groups(comparison, limits), table_html(models, title="Models")])


def _groups(comparison, limits):
    """A heading and cards a group, until the page is full; headings say how many rows are shown."""
    left = PAGE_BYTES
    for group, limit in limits.items():
        pairs, cards = getattr(comparison, group), []
        for pair in pairs[:limit]:
            card = _card(pair.after, pair.before, max_px=240)
            left -= len(card[0].encode())
            if left < 0:
                break
            cards.append(card)
        shown = "" if len(cards) == len(pairs) else f", {len(cards)} shown"
        yield f"<h3>{SAID_OF_A_GROUP[group]} ({len(pairs)} rows{shown})</h3>{cards_html(cards)}"
