"""Two evaluations of the same rows: the paired difference, and which rows were won and lost."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from ..data.files import write_whole
from ..views import shown
from .intervals import bootstrap_interval
from .metrics import SOURCE
from .report import Gallery, Report, Row, beside
from .review.review import EARLIER_TURNS

GROUPS = ("won", "lost", "both", "neither")
MEASURED_APART = {"model", "weights", "seconds", "rows asked in them", "device", EARLIER_TURNS}  # may always differ


@dataclass(frozen=True)
class Pair:
    """One question as answered in both evaluations."""

    before: Row
    after: Row

    @property
    def group(self):
        """ "won" if only the later reply is right, "lost" if only the earlier, "both" or "neither"."""
        if self.before.is_right == self.after.is_right:
            return "both" if self.after.is_right else "neither"
        return "won" if self.after.is_right else "lost"


def _rows_of(group, said):
    return property(lambda self: Gallery(pair for pair in self.pairs if pair.group == group), doc=said)


@dataclass(frozen=True)
class Comparison:
    """Two reports of the same rows."""

    before: Report
    after: Report

    @property
    def pairs(self):
        """All rows, in the order of the data."""
        return Gallery(Pair(*rows) for rows in zip(self.before.rows, self.after.rows, strict=True))

    @property
    def differences(self):
        """Score after minus before of each row: float [rows]."""
        return np.array([pair.after.score - pair.before.score for pair in self.pairs])

    @property
    def difference(self):
        """Mean score after minus before."""
        return float(self.differences.mean())

    @property
    def interval(self):
        """95 % interval of the difference: each bootstrap draw takes a row's both scores."""
        return bootstrap_interval(self.differences)

    def interval_by(self, name):
        """The same when rows with one value of a field, or with "images" the same pictures, are drawn together."""
        return bootstrap_interval(self.differences, self.after.groups(name))

    def by(self, name):
        """{value: (before, after, rows)} of any field of the rows."""
        earlier = self.before.by(name)
        return {value: (earlier[value][0], score, rows) for value, (score, rows) in self.after.by(name).items()}

    won = _rows_of("won", "Rows that only the later model answers rightly (a score of at least 0.5).")
    lost = _rows_of("lost", "Rows that only the earlier model answers rightly.")
    both = _rows_of("both", "Rows that both answer rightly.")
    neither = _rows_of("neither", "Rows that none answers rightly.")

    @property
    def disagreements(self):
        """Rows with different replies, whatever their scores."""
        return Gallery(pair for pair in self.pairs if pair.before.reply != pair.after.reply)

    @property
    def counts(self):
        """Number of rows won, lost, answered by both and by neither."""
        groups = [pair.group for pair in self.pairs]
        return {name: groups.count(name) for name in GROUPS}

    @property
    def measured_differently(self):
        """{detail: (before, after)} of settings that differ beside the model: the difference is theirs too."""
        first, second = self.before.details, self.after.details
        names = [name for name in first | second if name not in MEASURED_APART]
        return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}

    def save_html(self, path, *, title="Before and after"):
        """Write one self-contained page of at most 10 MB: numbers, slices, rows of each group with pictures."""
        return write_whole(path, self._page(title=title))

    def save_csv(self, path):
        """Write all rows as CSV: where, group, question, truth, both replies and scores, and the rows' own fields;
        one that has a name of the former is `row_<name>`.

        UTF-8 with a mark, as spreadsheets want it. A text that a spreadsheet would run as a formula starts with "'".
        """
        extra = list(dict.fromkeys(name for row in self.after.rows for name in row.extra))
        buffer = io.StringIO()
        writer = csv.writer(buffer)  # its line ends, "\r\n", make it quote a text with either of them
        fixed = ["where", "group", "question", "truth", "before", "after", "score_before", "score_after"]
        own = [f"row_{name}" if name in fixed else name for name in extra]
        writer.writerow(map(_no_formula, fixed + own))
        for pair in self.pairs:
            row = pair.after
            texts = [row.where, pair.group, row.question, row.truth, pair.before.reply, row.reply]
            values = [*texts, pair.before.score, row.score, *(row.extra.get(name, "") for name in extra)]
            writer.writerow(map(_no_formula, values))
        return write_whole(path, "\ufeff" + buffer.getvalue())

    def to_dict(self):
        """The numbers as plain values for JSON."""
        return {
            "metric": self.after.metric,
            "before": self.before.score,
            "after": self.after.score,
            "difference": self.difference,
            "interval": self.interval,
            "num_rows": len(self.after.rows),
            **self.counts,
            "measured_differently": self.measured_differently,
        }

    def __repr__(self):
        low, high = self.interval
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        edited = f"\n{self.after.metric} was edited in between, or its source then is not known: evaluate both again."
        return (
            f"Comparison({self.after.metric} {self.before.score:.1%} → {self.after.score:.1%}, "
            f"{100 * self.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}); {counts})"
            f"{edited if SOURCE in self.measured_differently else ''}"
        )

    _repr_html_ = shown("answers:comparison_html")
    _page = shown("answers:comparison_page")


def compare(before, after):
    """Compare two evaluations of the same rows: `compare(base, tuned)` → +12.0 points (+8.1 to +15.9), 40 won, 10 lost.

    The interval is of the paired difference: rows that are hard for both models don't widen it. It excludes 0 where the
    difference is more than chance among the rows.

    Args: before, after: a `Report` each, a file of `save_json`, or a folder that `evaluate(…, to=…)` left.
    Returns: `Comparison`; slices are by the later report's fields.
    Raises: DataError if rows or metric differ, with the first row that does.
    """
    before, after = (each if isinstance(each, Report) else Report.load(each) for each in (before, after))
    return Comparison(beside(before, after), after)


def _no_formula(value):
    """A cell whose text starts as a formula does, and is no number, gets an apostrophe in front."""
    if not isinstance(value, str) or not value.lstrip().startswith(("=", "+", "-", "@")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
