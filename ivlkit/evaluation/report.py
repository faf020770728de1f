"""What an evaluation found: rows, score, intervals, tables, galleries; to JSON and back."""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data.files import write_whole
from ..data.rows.records import Video
from ..errors import DataError
from ..views import shown
from .confidence import SCORES, calibrate, known_scores
from .intervals import score_interval
from .metrics import CORPUS_METRICS, EXACT_METRICS, METRICS, lenient_match, score_rows
from .normalise import collapse
from .pictures import media_key
from .review.agreement import MOST_CLASSES, beside_labeller, said_of_agreement
from .review.review import review_report

LOOKS = 0.10  # a model that looks loses this much of its score with other pictures
FORM = 0.05  # of the score lost to case, spaces and final punctuation: from here on it is said
FEW_ROWS = 5  # of a class: fewer say nothing about it
RIGHT = 0.5  # from this score on a row counts as right
FORMAT = 1  # of report.json
NOT_SLICES = {"width", "height", "length", "answers"}


@dataclass(frozen=True)
class Row:
    """One question with the reply, and with its truth where that is known."""

    where: str
    question: str
    truth: str | None  # None: of a prediction
    reply: str
    score: float | None
    images: tuple = ()
    extra: dict = field(default_factory=dict)  # the row's other fields: slices
    answers: tuple[str, ...] = ()  # all accepted answers, if the row has several
    video: Video | None = None  # instead of images
    box_scores: tuple[float, ...] = ()  # of the boxes of the reply: the probability of each one's tokens, if known
    confidence: float | None = None  # probability of the whole reply with its closing token; None: it was cut
    token_scores: tuple[float, ...] = ()  # the probability of each of its tokens, the closing one last, if known
    least_sure: tuple = ()  # the least probable token: (its begin, its end in the reply, probability), if known
    field_scores: dict = field(default_factory=dict)  # {"sum": 0.93}: of the values of a JSON reply, as box_scores

    @property
    def is_right(self):
        """Whether it scores at least 0.5."""
        return self.score >= RIGHT

    @property
    def least_sure_token(self):
        """Its text, "(end)" for the closing token; "" where nothing is known."""
        return self.reply[slice(*self.least_sure[:2])] or "(end)" if self.least_sure else ""


class Gallery(tuple):
    """Rows, or pairs of rows, that a notebook shows as cards with their pictures."""

    _repr_html_ = shown("answers:rows_html")


@dataclass(frozen=True)
class Report:
    """What an evaluation found. Rows stand in the order of the data."""

    metric: str
    rows: tuple[Row, ...]
    details: dict  # model, data, settings, seconds, versions
    numbers: dict = field(default_factory=dict)  # of a corpus metric, e.g. precision
    controls: dict = field(default_factory=dict)  # {"shuffled" or "none": score with those pictures}
    labellers: dict = field(default_factory=dict)  # of another person's truths: rows, equal, kappa, different

    @property
    def score(self):
        """Mean score of the rows, 0 to 1 (CIDEr: 0 to 10)."""
        return float(np.mean([row.score for row in self.rows]))

    @property
    def has_own_metric(self):
        """Whether its metric is a function of one's own: its name alone can't score again."""
        return self.metric not in METRICS | CORPUS_METRICS

    @property
    def interval(self):
        """95 % interval of the score: 2,000 bootstrap draws of the rows, seed 0; Wilson's where all are 0, or all 1."""
        return score_interval([row.score for row in self.rows])

    def interval_by(self, name):
        """95 % interval of the score when all rows with one value of a field are drawn together.

        Use it where rows depend on each other: `report.interval_by("images")` for questions about the same pictures,
        `report.interval_by("writer")` for a field of the rows.
        """
        return score_interval([row.score for row in self.rows], self.groups(name))

    def groups(self, name):
        """The value of a field for each row, or for "images" what the row shows.

        Raises: DataError if no row has the field.
        """
        if name == "images":
            return [media_key(row) or (row.where,) for row in self.rows]  # without any each is on its own
        if not any(name in row.extra for row in self.rows):
            known = sorted({name for row in self.rows for name in row.extra} | {"images"})
            raise DataError(f"no row has a field {name!r}; expected one of {', '.join(known)}")
        values = [row.extra.get(name) for row in self.rows]
        plain = (type(None), str, int, float)  # others are labels as JSON
        as_json = partial(json.dumps, ensure_ascii=False, sort_keys=True, default=str)
        return [value if isinstance(value, plain) else as_json(value) for value in values]

    @property
    def slice_fields(self):
        """Fields of the rows with 2 to 12 different values: worth a table. Sizes of pictures are not."""
        names = {name for row in self.rows for name in row.extra} - NOT_SLICES
        return sorted(name for name in names if 2 <= len(set(self.groups(name))) <= 12)

    def by(self, name):
        """{value: (score, rows)} of any field of the rows, e.g. `report.by("task")`; None: rows without it."""
        found = {}
        for value, row in zip(self.groups(name), self.rows, strict=True):
            found.setdefault(value, []).append(row.score)
        return {value: (float(np.mean(found[value])), len(found[value])) for value in sorted(found, key=_by_size)}

    def select(self, /, **values):
        """The report of the rows with these values of their fields: `report.select(task="read").interval`.

        Numbers of a corpus metric, controls and a second labeller belong to all rows and are left out.
        """
        groups, wanted = map(self.groups, values), [*values.values()]
        rows = tuple(row for row, *found in zip(self.rows, *groups, strict=True) if found == wanted)
        if not rows:
            raise DataError(f"no row with {values}; see `by` for the values that a field has")
        return replace(self, rows=rows, numbers={}, controls={}, labellers={})

    def worst(self, k=12):
        """The k rows with the lowest scores, in the order of the data where these are equal."""
        return Gallery(sorted(self.rows, key=lambda row: row.score)[:k])

    def corpus(self, name):
        """Numbers of a corpus metric on these rows: `report.corpus("pope")["precision"]`."""
        if name not in CORPUS_METRICS:
            raise DataError(f"corpus metric {name!r}; expected one of {', '.join(CORPUS_METRICS)}")
        return score_rows(name, self.rows)[1]

    def with_control(self, control):
        """This report beside one of the same rows with `pictures="shuffled"` or "none": see `warnings`.

        Raises: DataError if the rows or the metric differ, or if it is no control.
        """
        check_same_rows(self, control)
        kind = control.details.get("pictures")
        if kind not in ("shuffled", "none") or self.details.get("pictures", "right") != "right":
            raise DataError(
                f"a control with {kind!r} pictures for a report with {self.details.get('pictures')!r} ones; "
                'expected evaluate(…, pictures="shuffled") or "none" beside one with the right pictures'
            )
        return replace(self, controls=self.controls | {kind: control.score})

    # These take the report as their first argument.
    with_labeller = beside_labeller
    calibration = calibrate
    review = review_report

    @property
    def baseline(self):
        """("no", 0.83) where always answering the most frequent truth, "no", scores 83 %.

        None for a metric that is not of exact answers, and where no truth stands twice.
        """
        metric, [(answer, count)] = EXACT_METRICS.get(self.metric), self._truths().most_common(1)
        if metric is None or count == 1:
            return None
        return answer, float(np.mean([metric(answer, row.answers or row.truth) for row in self.rows]))

    @property
    def small_classes(self):
        """{truth: rows} of classes with fewer than 5 rows; {} where truths are no classes: more than 20, or mostly
        different ones."""
        found = self._truths()
        if not 2 <= len(found) <= min(MOST_CLASSES, len(self.rows) / 2):
            return {}
        return {truth: count for truth, count in found.items() if count < FEW_ROWS}

    def _truths(self):
        return Counter(collapse(row.truth) for row in self.rows)

    @property
    def warnings(self):
        """Sentences about what the score does not show: that the replies hardly depend on the pictures, that they
        differ from the truth in form only, that a class has too few rows, that two people differ too."""
        few = ", ".join(f"{truth!r} ({count})" for truth, count in self.small_classes.items())
        said = [f"Classes with fewer than {FEW_ROWS} rows: {few}. The score says nothing about them."] if few else []
        if self.metric in METRICS:
            lenient = [max(row.score, lenient_match(row.reply, row.answers or row.truth)) for row in self.rows]
            risen = float(np.mean(lenient))
            if round(risen - self.score, 9) >= FORM:
                said.append(
                    f"Without case, spaces and final punctuation the score would be {risen:.1%}, "
                    f"{100 * (risen - self.score):.1f} points more. If they don't matter, use the metric "
                    f"{lenient_match.__name__}."
                )
        outside = [row.score for row in self.rows if not 0 <= row.score <= 1]
        if outside and self.has_own_metric:  # CIDEr goes to 10
            found = f"{len(outside)} rows have a score that is not from 0 to 1, such as {outside[0]:g}."
            said.append(f"{found} A score of 1 is shown as 100%: let the metric divide.")
        said += [said_of_agreement(**self.labellers)] if self.labellers else []
        return said + [
            f"With {'shuffled' if kind == 'shuffled' else 'no'} pictures the score is {score:.1%}, only "
            f"{100 * (self.score - score):.1f} points under the {self.score:.1%} with the right ones; expected "
            f"{100 * LOOKS:.0f} points or more. The model may answer without looking."
            for kind, score in self.controls.items()
            if round(self.score - score, 9) < LOOKS
        ]

    def show(self, *, before=None, rows=12):
        """Bars of every slice and the worst rows with pictures, under a picker of other rows.

        Args: before: a report of the same rows; both replies then stand beside the truth.
        """
        return self._live(before=before and beside(before, self), rows=rows)

    def save_html(self, path, *, before=None, title="Evaluation"):
        """Write one self-contained page; `before`, a report of the same rows or its path, gives both replies."""
        before = Report.load(before) if isinstance(before, (str, os.PathLike)) else before
        return write_whole(path, self._page(before=before and beside(before, self), title=title))

    def save_json(self, path):
        """Write everything but pixels, for `Report.load`. Of pictures only paths are kept, none of those in memory."""
        saved = {"format": FORMAT} | self.to_dict()
        return write_whole(path, json.dumps(saved, ensure_ascii=False, indent=1, default=str))

    @classmethod
    def load(cls, path):
        """The report that `save_json` wrote, or that `evaluate(…, to=folder)` left in its folder.

        Raises: DataError if the file is missing or no report.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(
                f"a {type(path).__name__} in a report's place; expected what evaluate gives or keeps; write "
                "compare(evaluate(before, data), evaluate(after, data))"
            )
        path = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise ValueError(f"format {saved['format']!r} instead of {FORMAT}")
            rows = tuple(_read_row(row) for row in saved["rows"])
            if not rows:
                raise ValueError("without rows")
            kept = (saved["details"], saved["numbers"], saved["controls"], saved.get("labellers", {}))
            return cls(saved["metric"], rows, *kept)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror}); expected a report; check the path") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: no report ({type(error).__name__}: {error}); expected what save_json wrote"
            ) from error

    def to_dict(self):
        """Plain values for JSON, without pixels."""
        own = ("metric", "score", "interval", "numbers", "controls", "labellers", "warnings", "baseline")
        summary = {name: getattr(self, name) for name in (*own, "small_classes", "details")}
        return summary | {"num_rows": len(self.rows), "rows": [_plain_row(row) for row in self.rows]}

    def __repr__(self):
        low, high = self.interval
        numbers = "".join(f", {name} {value:.3f}" for name, value in self.numbers.items() if isinstance(value, float))
        warned = "".join(f"\n{warning}" for warning in self.warnings)
        always = f"; {said_of_baseline(*self.baseline)}" if self.baseline else ""
        return (
            f"Report({self.metric} {self.score:.1%} ({low:.1%} – {high:.1%}) on {len(self.rows)} rows{numbers}{always})"
            f"{warned}"
        )

    _repr_html_ = shown("answers:report_html")
    _live = shown("answers:answers_live")
    _page = shown("answers:report_page")


def _by_size(value):
    """The place of a value among others: numbers by their size, also those that a table has as text; then words."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return math.inf, str(value)


def said_of_baseline(answer, score):
    """ "always answering 'no' scores 83.0%"."""
    return f"always answering {answer[:40]!r} scores {score:.1%}"


def beside(before, after):
    """`before` with the rows' own fields as `after` has them: they may have been added to the data in between.

    Raises: DataError as `check_same_rows`.
    """
    check_same_rows(before, after)
    rows = zip(before.rows, after.rows, strict=True)
    return replace(before, rows=tuple(replace(row, extra=other.extra) for row, other in rows))


def check_same_rows(first, second):
    """Both reports asked the same questions about the same pictures in the same order and scored them alike.

    Raises: DataError with the first row that differs.
    """
    if first.metric != second.metric:
        raise DataError(f"one report has {first.metric}, the other {second.metric}; expected the same metric")
    by_picture = first.details.get("pictures") == second.details.get("pictures")  # a control shows others on purpose
    asked = [[_asked(row, by_picture=by_picture) for row in report.rows] for report in (first, second)]
    if asked[0] == asked[1]:
        return
    only = [len(set(own) - set(others)) for own, others in (asked, asked[::-1])]
    if len(first.rows) != len(second.rows):
        raise DataError(
            f"the two reports are of different rows: {len(first.rows)} and {len(second.rows)}, of which {only[0]} are "
            f"only in the first and {only[1]} only in the second; expected the same data"
        )
    place = next(n for n, (one, other) in enumerate(zip(*asked, strict=True)) if one != other)
    one, other = first.rows[place], second.rows[place]
    raise DataError(
        f"the two reports are of different rows: {one.where} ({one.question[:40]!r}) and {other.where} "
        f"({other.question[:40]!r}), {only[0]} of {len(first.rows)} are only in the first; expected the same data in "
        "the same order; ask both models the rows of one test part"
    )


def _asked(row, *, by_picture):
    """What makes a row the same one: its place, question, truth and the names of its pictures, wherever they lie."""
    shown = [*row.images, *([row.video.path] if row.video else [])] if by_picture else []
    names = [os.path.basename(name) for name in shown if isinstance(name, (str, os.PathLike))]
    return row.where, row.question, row.truth, *names


def _plain_row(row):
    values = {name: value for name, value in vars(row).items() if name not in SCORES} | known_scores(vars(row))
    paths = [str(image) for image in row.images if isinstance(image, (str, os.PathLike))]
    video = row.video and {"path": str(row.video.path), "clip": row.video.clip}
    if row.video and row.video.frames:
        video["frames"] = [str(path) for path in row.video.frames]
    return values | {"images": paths, "answers": list(row.answers), "video": video}


def _read_row(saved):
    row = Row(**saved)
    if not all(isinstance(text, str) for text in (row.where, row.question, row.truth, row.reply)):
        raise TypeError(f"row {row.where} has a field that is no text")
    video, clip = row.video, row.video and row.video["clip"] and tuple(row.video["clip"])
    video = video and Video(Path(video["path"]), clip, tuple(map(Path, video.get("frames", ()))))
    lists = ("images", "answers", "box_scores", "token_scores", "least_sure")
    tuples = {name: tuple(getattr(row, name)) for name in lists}
    return replace(row, score=float(row.score), video=video, **tuples)
