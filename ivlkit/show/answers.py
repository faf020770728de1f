"""Replies beside the truth: a report as HTML, alone or before and after; two reports compared."""

from ..evaluation.benchmarks import HEADER
from ..evaluation.compare import Comparison
from ..evaluation.report import RIGHT, said_of_baseline
from .dataset import media_html
from .figure import BLUE, ShownFigure, bars_of, drawn_names, plain_text
from .html import cards_html, fragment, line_html, page_html, table_html, text_html
from .live import live_under

EXAMPLES = 48  # pictures of a page: about 10 KB each
EXAMPLES_IN_NOTEBOOK = 12
ROWS_IN_NOTEBOOK = {"won": 8, "lost": 8}  # of a comparison
ROWS_OF_A_GROUP = {"won": 40, "lost": 40, "neither": 20, "both": 20}  # of a page of two reports, in this order
PAGE_BYTES = 9_500_000  # of cards: with the rest a page stays under 10 MB
SAID_OF_A_GROUP = {
    "won": "Won: only the reply after is right",
    "lost": "Lost: only the reply before is right",
    "neither": "Neither is right",
    "both": "Both are right",
}


def reply_html(reply):
    """A conversation so far, its last answer first."""
    turns = "".join(line_html(turn.role, text_html(turn.text)) for turn in reply.turns[:-1])
    return fragment(f'<div class="big">{text_html(reply.text)}</div>{turns}')


def report_html(report):
    """Score, slices and examples, wrong ones first."""
    return fragment(_body(report, None, EXAMPLES_IN_NOTEBOOK))


def report_page(report, *, before=None, title="Evaluation"):
    """The same as one self-contained page; with `before`, both replies beside each other, rows won and lost first."""
    return page_html(title, _body(report, before, EXAMPLES))


def _body(report, before, examples):
    reports = _named(report, before)
    parts = [f"<p><b>{text_html(warning)}</b></p>" for warning in report.warnings]
    parts += [_scores(reports), *(_slices(field, reports) for field in report.slice_fields)]
    if before:
        parts += _groups(Comparison(before, report), ROWS_OF_A_GROUP)
    else:  # half of the examples wrong and half right, where there are that many of both
        order = report.worst(len(report.rows))
        right = [row for row in order if row.is_right]
        wrong = [row for row in order if not row.is_right][: max(examples // 2, examples - len(right))]
        parts.append(f"<h3>Examples</h3>{cards_html(map(_card, wrong + right[: examples - len(wrong)]))}")
    return "".join([*parts, table_html(report.details.items(), title="How this was measured")])


def _named(report, before):
    return [("before", before), ("after", report)] if before else [("", report)]


def slices_figure(report, field, *, before=None):
    """Score of each value of a field as bars with their 95 % intervals, before and after beside each other.

    Returns: matplotlib figure.
    """
    reports = [("before", before, "#999999"), ("after", report, BLUE)] if before else [("score", report, BLUE)]
    values = report.by(field)
    names = ["(none)" if value is None else str(value) for value in values]
    labels, below = drawn_names(names)
    told = [f"{plain_text(name)} {_slice(report, field, value)}" for name, value in zip(names, values, strict=True)]
    size, alt = (7, 0.9 + 0.3 * len(values) * len(reports)), f"{report.metric} by {field}: {'; '.join(told)}"
    figure = ShownFigure(figsize=size, layout="constrained", alt=alt, below=below)
    axes = figure.subplots()
    for place, (name, each, colour) in enumerate(reports):
        parts = [each.select(**{field: value}) for value in values]
        at = [row + (place - (len(reports) - 1) / 2) * 0.4 for row in range(len(values))]
        scores, spread = [part.score for part in parts], bars_of([(part.score, *part.interval) for part in parts])
        axes.barh(at, scores, height=0.36, color=colour, label=name, hatch="//" if name == "before" else "", alpha=0.85)
        axes.errorbar(scores, at, xerr=spread, fmt="none", ecolor="black", capsize=3)
    rows = [count for _, count in values.values()]
    axes.set_yticks(range(len(rows)), [f"{name} ({count})" for name, count in zip(labels, rows, strict=True)])
    axes.set(xlabel=f"{report.metric}, with its 95 % interval", xlim=(0, max(1, report.score)))
    axes.set_title(plain_text(f"by {field} (rows)"))
    axes.invert_yaxis()
    if before:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # no bar ends under it
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def answers_live(report, *, before=None, rows=12):
    """Bars of every slice, and below them rows of one kind, worst first, under a picker of the kind.

    With `before`, a report of the same rows, both replies stand beside the truth.
    """
    kinds = _kinds_of_rows(report, before)

    def draw(chosen):
        numbers = kinds[chosen]
        cards = [_card(report.rows[n], before and before.rows[n]) for n in numbers[:rows]]
        bars = "".join(slices_figure(report, field, before=before).to_html() for field in report.slice_fields[:3])
        head = f"<p><b>{text_html(chosen)}</b>: {len(numbers)} of {len(report.rows)} rows, {len(cards)} shown</p>"
        return fragment(f"{_scores(_named(report, before))}{bars}{head}{cards_html(cards)}")

    names = list(kinds)
    return live_under(draw, lambda widgets: widgets.Dropdown(options=names, description="rows"), names[0])


def _kinds_of_rows(report, before):
    """{what a picker calls them: numbers of the rows, worst first}."""
    order = sorted(range(len(report.rows)), key=lambda number: report.rows[number].score)
    kinds = {"worst first": order, "right": [n for n in order if report.rows[n].is_right]}
    if before:
        right = [row.is_right for row in before.rows]
        kinds["turned right"] = [n for n in kinds["right"] if not right[n]]
        kinds["turned wrong"] = [n for n in order if right[n] and not report.rows[n].is_right]
    for field in report.slice_fields:
        groups = [str(value) for value in report.groups(field)]  # a picker can't tell 1 from "1"
        kinds |= {f"{field}: {value}": [n for n in order if groups[n] == value] for value in map(str, report.by(field))}
    return kinds


def _scores(reports):
    """A line a report of [(name, report)], and a line for each control and number of its metric."""
    rows = []
    for name, report in reports:
        low, high = report.interval
        rows.append((name, f"{report.score:.1%}", f"{low:.1%} – {high:.1%}", len(report.rows)))
        if report.baseline and report is reports[-1][1]:  # of the truths, which are the same
            rows.append((said_of_baseline(*report.baseline), "", "", ""))
        numbers = {f"{kind} pictures": f"{score:.1%}" for kind, score in report.controls.items()}
        for key, value in report.numbers.items():
            numbers[key] = f"{value:.4f}" if isinstance(value, float) else value
        rows += [(f"{name} {key}".strip(), value, "", "") for key, value in numbers.items()]
    return table_html(rows, header=("", reports[-1][1].metric, "95 %", "rows"))


def _slices(field, reports):
    """Score and interval of each value of a field."""
    rows = []
    for value, (_, count) in reports[-1][1].by(field).items():
        cells = [_slice(report, field, value) for _, report in reports]
        rows.append(("(none)" if value is None else value, count, *cells))
    return table_html(rows, header=(field, "rows", *(name or "score" for name, _ in reports)), title=f"by {field}")


def _slice(report, field, value):
    if value not in report.by(field):
        return "–"
    part = report.select(**{field: value})
    low, high = part.interval
    return f"{part.score:.1%} ({low:.1%} – {high:.1%})"


def scores_html(scores):
    """What was measured beside what was published: a line for each set of a `Scores`."""
    return table_html(scores.lines(), header=HEADER, title=scores.heading)


def rows_html(rows):
    """Rows of a report, or pairs of them, as cards."""
    pairs = [(row.after, row.before) if hasattr(row, "after") else (row, None) for row in rows]
    return fragment(f"<b>{len(pairs)} rows</b>{cards_html([_card(*pair) for pair in pairs])}")


def _card(row, earlier=None, *, max_px=320):
    earlier_line = line_html("before", text_html(earlier.reply, 300)) if earlier else ""
    truth_line = "" if row.truth is None else line_html("truth", text_html(" | ".join(row.answers) or row.truth, 300))
    inner = (
        f"{media_html(row, max_px=max_px)}<div>{text_html(row.question, 300)}</div>{truth_line}{earlier_line}"
        f"{line_html('after' if earlier else 'reply', _marked(row))}"
        f'<div class="dim">{text_html(row.where)} · {_verdict(row)}</div>'
    )
    return inner, "" if row.truth is None else "good" if row.is_right else "bad"


def _marked(row):
    """The reply, with a line under the token that the model was least sure of."""
    if not row.least_sure or len(row.reply) > 300:
        return f"<b>{text_html(row.reply, 300)}</b>"
    begin, end, probability = row.least_sure
    before, token, after = row.reply[:begin], row.reply[begin:end] or "▮", row.reply[end:]
    said = f'<u title="least sure of this: {probability:.0%}">{text_html(token)}</u>'
    return f"<b>{text_html(before)}{said}{text_html(after)}</b>"


def _verdict(row):
    mark = "✓" if row.score is not None and row.is_right else "✗"
    scored = {None: "", 0.0: "✗ wrong", 1.0: "✓ right"}.get(row.score, f"{mark} score {row.score or 0:.2f}")
    cut = "cut before its end" if row.least_sure else ""
    sure = cut if row.confidence is None else f"confidence {row.confidence:.2f}"
    fields = (f"{text_html(name, 40)} {value:.2f}" for name, value in row.field_scores.items())
    return " · ".join(filter(None, (scored, sure, ", ".join(fields))))


def review_html(review):
    """The first rows of a `Review` that are not decided, with their sources."""
    cards = []
    for line in [line for line in review.rows if not line["decision"]][:EXAMPLES_IN_NOTEBOOK]:
        row = review.report.rows[line["number"]]
        reply = "hidden until decided" if line["reply"] is None else line["reply"]
        loss = "" if line["loss"] is None else f" · loss {line['loss']:.2f}"
        lines = line_html("truth", f"<b>{text_html(row.truth, 300)}</b>") + line_html("reply", text_html(reply, 300))
        source = f'<div class="dim">{text_html(line["source"])}{loss}</div>'
        cards.append((f"{media_html(row)}<div>{text_html(row.question, 300)}</div>{lines}{source}", ""))
    return fragment(f"<b>{text_html(review)}</b>{cards_html(cards)}")


def predictions_html(predictions):
    """What was answered and what a confidence is worth; the least sure answers as cards."""
    return fragment(_answered(predictions, EXAMPLES_IN_NOTEBOOK))


def predictions_page(predictions, *, title):
    """The same as one self-contained page."""
    return page_html(title, _answered(predictions, EXAMPLES))


def _answered(predictions, examples):
    curve = predictions.calibration.figure().to_html() if predictions.calibration else ""
    cards = [_card(row) for row in predictions.least_sure(examples)]
    said = "".join(f"<p><b>{text_html(line)}</b></p>" for line in predictions.said)
    details = table_html(predictions.details.items(), title="How this was answered")
    return f"{said}{curve}<h3>The {len(cards)} least sure</h3>{cards_html(cards)}{details}"


def comparison_html(comparison):
    """Numbers and the first rows won and lost."""
    return fragment(_comparison_body(comparison, ROWS_IN_NOTEBOOK))


def comparison_page(comparison, *, title):
    """Numbers, slices and rows of each group as one self-contained page under 10 MB."""
    return page_html(title, _comparison_body(comparison, ROWS_OF_A_GROUP))


def _comparison_body(comparison, limits):
    low, high = comparison.interval
    reports = _named(comparison.after, comparison.before)
    said = (
        f"<p><b>{100 * comparison.difference:+.1f} points</b> (95 %: {100 * low:+.1f} to {100 * high:+.1f}) on "
        f"{len(comparison.after.rows)} rows: {', '.join(f'{n} {name}' for name, n in comparison.counts.items())}. "
        f"A row counts as right from a score of {RIGHT} on.</p>"
    )
    settings = [(name, *values) for name, values in comparison.measured_differently.items()]
    warned = table_html(settings, header=("", "before", "after"), title="Measured differently") if settings else ""
    models = [(name, *(each.details.get(key, "") for key in ("model", "weights"))) for name, each in reports]
    slices = [_slices(field, reports) for field in comparison.after.slice_fields]
    rows = _groups(comparison, limits)
    return "".join([said, _scores(reports), warned, *slices, *rows, table_html(models, title="Models")])


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
