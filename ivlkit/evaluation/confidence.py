"""How sure a reply is, by the probabilities of its own tokens, and what that is worth on rows whose truth is known."""

import json
import math
import re
from dataclasses import dataclass, replace

import numpy as np

from ..data.rows.boxes import BOX, parse_boxes
from ..errors import DataError
from ..views import shown
from .intervals import share_interval

SCORES = ("confidence", "token_scores", "least_sure", "field_scores", "box_scores")
FEWEST_ROWS = 50  # that a temperature is fitted on
TEMPERATURES = np.geomspace(0.1, 20, 266)  # a step is 2 %
LEAST = 1e-9  # that a token's probability stays away from 0 and 1
BINS = 10  # of the calibration error, with as many rows each
WANTED = 0.98  # share of right answers that the sentence looks for among the surest
FEWEST_SURE = 20  # rows of that group at least
_KEY = re.compile(r'[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')


class ScoredReply(str):
    """A reply that carries what the probabilities of its tokens say; `Row` of report.py explains each."""

    def __new__(cls, text, box_scores=(), *, confidence=None, token_scores=(), least_sure=(), field_scores=None):
        """The text, with `box_scores` in the order of its boxes."""
        reply = super().__new__(cls, text)
        reply.confidence, reply.token_scores, reply.least_sure = confidence, tuple(token_scores), tuple(least_sure)
        reply.field_scores, reply.box_scores = field_scores or {}, tuple(box_scores)
        return reply


def known_scores(values):
    """Of a dict those entries of SCORES that say something."""
    return {name: values[name] for name in SCORES if values.get(name) not in (None, (), {})}


def scored(reply):
    """A `Reply` with the probabilities of its tokens → `ScoredReply`."""
    text, tokens = reply.text, reply.tokens
    if not tokens:
        return ScoredReply(text)
    return ScoredReply(
        text,
        [span_score(box.span(), tokens) for box in BOX.finditer(text)],
        confidence=reply.confidence,
        token_scores=(p for _, p in tokens),
        least_sure=_least_sure(tokens),
        field_scores={name: span_score(span, tokens) for name, span in field_spans(text).items()},
    )


def span_score(span, tokens):
    """The probability of a part of a reply, (begin, end): the product over the tokens that reach into it."""
    starts, (first, last) = [0, *(end for end, _ in tokens)], span
    return math.prod(p for begin, (end, p) in zip(starts, tokens, strict=False) if begin < last and end > first)


def _least_sure(tokens):
    """(begin, end, probability) of the least probable token; begin = end is the closing one."""
    place = min(range(len(tokens)), key=lambda number: tokens[number][1])
    return (tokens[place - 1][0] if place else 0, *tokens[place])


def field_spans(text):
    """Where the values of a JSON object stand: {"sum": (8, 10)} of '{"sum": 11}'; {} for any other text."""
    spans, place = {}, 0
    while found := _KEY.match(text, place):
        try:
            _, place = json.JSONDecoder().raw_decode(text, found.end())
        except ValueError:
            break
        spans[json.loads(found[1])] = (found.end(), place)
        place += len(text[place:]) - len(text[place:].lstrip())
    return spans


# what it is worth -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """How often answers of a confidence were right, on rows whose truth is known.

    `chance_right(row)` is what a row's confidence is worth. Without a temperature it is None, and `why` says why: the
    confidences then only rank.
    """

    chances: tuple[float, ...]  # the surest first: to be right, or without a temperature the confidences; 0 if cut
    rights: tuple[bool, ...]  # whether each was right
    temperature: float | None
    weights: str = ""  # the fingerprint of the model that answered
    why: str = ""  # uncalibrated

    def chance_right(self, row):
        """The calibrated confidence of a row, 0 to 1; None without a temperature, and for an answer that was cut."""
        if self.temperature is None or row.confidence is None:
            return None
        return float(tempered([row.token_scores], self.temperature)[0])

    @property
    def auroc(self):
        """How well confidence ranks: the chance that a right answer is surer than a wrong one. None without both."""
        return ranking_score(self.chances, self.rights)

    @property
    def surest(self):
        """(share of the answers, share of these that is right, low and high end of its 95 % interval): the largest
        group of the surest that is 98 % right, or else the surest fifth."""
        counts = range(min(FEWEST_SURE, len(self.rights)), len(self.rights) + 1)
        rights = np.cumsum(self.rights)
        share = max((n for n in counts if rights[n - 1] >= WANTED * n), default=0) / len(self.rights) or 0.2
        return share, *self.among(share)

    def among(self, share):
        """(share of the right in this share of the surest answers, low and high end of its 95 % interval)."""
        kept = max(1, round(share * len(self.rights)))
        right = sum(self.rights[:kept])
        return right / kept, *share_interval(right, kept)

    def __repr__(self):
        share, right, low, high = self.surest
        rest = f"; look at the other {1 - share:.0%}" if share < 1 else ""
        worth = f"Temperature {self.temperature:.2f}" if self.temperature else f"Uncalibrated: {self.why}"
        return (
            f"The surest {share:.0%} of {len(self.rights)} validation answers are {right:.0%} right "
            f"({100 * low:.0f}–{100 * high:.0f}){rest}. {worth}."
        )

    @shown("charts:calibration_figure")
    def figure(self):
        """The share of right answers among the surest 5, 10, … 100 %, with its 95 % interval: matplotlib figure."""

    _repr_html_ = shown("charts:calibration_html")


def calibrate(report):
    """What the confidences are worth on these rows, for rows to come: `ivlkit.predict(…, validation=report)`.

    Take validation rows, not those whose score you report. Of fewer than 50 rows the `Calibration` has no temperature.

    Raises: DataError if the rows carry no confidence, as those of earlier versions.
    """
    rows = [row for row in report.rows if row.least_sure]
    if len(rows) < len(report.rows):
        raise DataError(
            f"{len(report.rows) - len(rows)} of {len(report.rows)} rows have no confidence; expected replies of this "
            "version, without beams; evaluate again, into another folder"
        )
    why = _why_not(rows)
    whole = [row for row in rows if row.confidence is not None]
    temperature = None if why else fit_temperature([r.token_scores for r in whole], [r.is_right for r in whole])
    found = Calibration((), (), temperature, report.details.get("weights", ""), why)
    chances = [row.confidence or 0.0 if why else found.chance_right(row) or 0.0 for row in rows]
    pairs = sorted(zip(chances, (row.is_right for row in rows), strict=True), key=lambda pair: -pair[0])
    return replace(found, chances=tuple(pair[0] for pair in pairs), rights=tuple(pair[1] for pair in pairs))


def _why_not(rows):
    rights = [row.is_right for row in rows if row.confidence is not None]
    if any(parse_boxes(row.truth) for row in rows):
        return "the confidence of a box only ranks"
    if len(rights) < FEWEST_ROWS:
        return f"{len(rights)} whole answers, expected {FEWEST_ROWS} or more"
    return "" if len(set(rights)) == 2 else f"all answers are {'right' if rights[0] else 'wrong'}"


def tempered(token_scores, temperature):
    """The probability of each reply, [N], once the log-odds of its tokens are divided by a temperature.

    Dividing the logits would give the same if only one other token were possible at each place, which is nearly so in
    an answer; generating keeps one probability a token and no logits. On nano this tells right answers from wrong ones
    better than a power of the whole probability does, and nearly as well as the logits do (benchmarks/NOTES.md).

    Args: token_scores: the probabilities of each reply's tokens, at any length.
    """
    padded = np.ones((len(token_scores), max(map(len, token_scores))))
    for row, scores in zip(padded, token_scores, strict=True):
        row[: len(scores)] = np.clip(scores, LEAST, 1 - LEAST)
    against = (1 / padded - 1) ** (1 / temperature)  # [N, tokens]
    return np.exp(-np.log1p(against).sum(axis=1))


def fit_temperature(token_scores, rights):
    """The temperature at which `tempered` says best which replies are right: the least log loss, 0.1 to 20."""
    rights = np.asarray(rights, bool)

    def loss(temperature):
        chances = np.clip(tempered(token_scores, temperature), LEAST, 1 - LEAST)
        return -np.log(np.where(rights, chances, 1 - chances)).mean()

    return float(min(TEMPERATURES, key=loss))


def ranking_score(confidences, rights):
    """Area under the ROC curve, ties counted as half: 1.0 where every right answer is surer than every wrong one.

    None where all are right, or all are wrong.
    """
    values, rights = np.asarray(confidences), np.asarray(rights, bool)
    good, bad = values[rights], np.sort(values[~rights])
    if not len(good) or not len(bad):
        return None
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / 2 / len(bad))


def calibration_error(confidences, rights):
    """Mean distance of confidence and share of right answers, over ten groups of equally many rows."""
    order = np.argsort(confidences, kind="stable")
    groups = zip(
        *(np.array_split(np.asarray(values, float)[order], BINS) for values in (confidences, rights)), strict=True
    )
    return sum(abs(said.mean() - right.mean()) * len(said) for said, right in groups if len(said)) / len(order)
