"""How far two people agree who labelled the same rows: a score above that says nothing of a model."""

import os
from dataclasses import replace

from ...data.datasets.opening import open_data
from ...data.rows.formats import without_places
from ...errors import DataError
from ..intervals import share_interval
from ..metrics import EXACT_METRICS, METRICS, exact_match
from ..normalise import collapse
from ..pictures import content_key, media_key
from .review import source_of

MOST_CLASSES = 20  # different truths, each twice on average: more are no classes


def beside_labeller(report, data):
    """The report beside the answers of a second person, who labelled some of its rows too, say 30.

    How far the two agree is the ceiling of the score: `warnings` says it, `labellers` has {"rows": those that both
    labelled, "equal": 27, "kappa": 0.87, "different": [[source, truth, answer], …]}. A row is the same if its pictures
    have the same bytes and its question the same words; answers are equal if the metric says so (of a metric of a whole
    report, if they are the same). Choices also get Cohen's kappa, which takes off what two people agree on by chance.

    Args: data: the second labels: what `open_data` gives, records, or a path such as "labels_anna.csv".
    Raises: DataError if no row is in both.
    """
    records = open_data(data) if isinstance(data, (str, os.PathLike)) else data
    answers, score = {}, (METRICS | EXACT_METRICS).get(report.metric, exact_match)
    for record in records:
        answers.setdefault(_key(record), []).append(record.answer)
    found = [(row, answers[_key(row)].pop(0)) for row in report.rows if answers.get(_key(row))]
    if not found:
        raise DataError(
            f"none of {len(records):,} rows shows what one of the report's {len(report.rows):,} does and asks the same "
            f"({without_places(records[0].question)!r:.60} beside {report.rows[0].question!r:.60}); expected some that "
            "both labelled; give the second labeller's table the same question and pictures"
        )
    other = [replace(row, reply=answer, score=score(answer, row.answers or row.truth)) for row, answer in found]
    different = [[source_of(row), row.truth, row.reply] for row in other if not row.is_right]
    kappa = cohens_kappa(*([collapse(getattr(row, name)) for row in other] for name in ("truth", "reply")))
    equal = len(other) - len(different)
    found = {"rows": len(other), "equal": equal, "kappa": kappa, "different": different}
    return replace(report, labellers=found)


def _key(row):
    """What it shows, by the bytes of its files wherever they lie, and what it asks."""
    shown = content_key(row)
    if None in shown or len(shown) < len(row.images):  # a picture that is no file, or is gone
        shown = media_key(row)
    return shown, collapse(without_places(row.question))


def cohens_kappa(first, second):
    """Cohen's kappa (1960) of two lists of classes: 1 always equal, 0 as often as by chance; None of no classes."""
    count, classes = len(first), set(first) | set(second)
    if not 2 <= len(classes) <= min(MOST_CLASSES, count / 2):
        return None
    equal = sum(one == other for one, other in zip(first, second, strict=True)) / count
    by_chance = sum(first.count(name) * second.count(name) for name in classes) / count**2
    return (equal - by_chance) / (1 - by_chance)


def said_of_agreement(rows, equal, kappa, **_):
    """ "Two labellers agree on 27 of 30 rows (74–97 %), kappa 0.80: no score above that means anything."."""
    low, high = share_interval(equal, rows)
    told = "" if kappa is None else f", kappa {kappa:.2f}"
    return (
        f"Two labellers agree on {equal:,} of {rows:,} rows ({100 * low:.0f}–{100 * high:.0f} %){told}: no score above "
        "that means anything."
    )
