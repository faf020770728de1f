"""Greedy replies to every row of a data set, scored, with their pictures kept for looking at."""

import importlib.metadata
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.mixture import open_data
from ..errors import DataError
from ..models.chat import reply_batch
from .metrics import METRICS

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Row:
    """One question with its truth and the reply."""

    where: str
    question: str
    truth: str
    reply: str
    score: float
    images: tuple = ()
    extra: dict = field(default_factory=dict)  # the row's other fields: slices


@dataclass(frozen=True)
class Report:
    """What an evaluation found. Rows stand in the order of the data."""

    metric: str
    rows: tuple[Row, ...]
    details: dict  # model, data, seconds, versions

    @property
    def score(self):
        """Mean score of the rows, 0 to 1."""
        return float(np.mean([row.score for row in self.rows]))

    @property
    def interval(self):
        """95 % interval of the score: 2,000 bootstrap draws of the rows, seed 0."""
        scores = np.array([row.score for row in self.rows])
        draws = np.random.default_rng(0).integers(len(scores), size=(2000, len(scores)))
        low, high = np.quantile(scores[draws].mean(axis=1), [0.025, 0.975])
        return float(low), float(high)

    @property
    def slice_fields(self):
        """Fields of the rows with 2 to 12 different values: worth a table. Sizes of pictures are not."""
        names = {name for row in self.rows for name in row.extra} - {"width", "height", "length"}
        return sorted(name for name in names if 2 <= len(self.by(name)) <= 12)

    def by(self, name):
        """{value: (score, rows)} of a field of the rows, e.g. `report.by("task")`."""
        groups = {}
        for row in self.rows:
            if isinstance(row.extra.get(name), (str, int, bool)):
                groups.setdefault(row.extra[name], []).append(row.score)
        return {value: (float(np.mean(scores)), len(scores)) for value, scores in sorted(groups.items(), key=str)}

    def save_html(self, path, *, before=None, title="Evaluation"):
        """Write one self-contained page; with `before`, a report of the same rows, both replies are shown."""
        from ..show.answers import report_page

        _check_same_rows(self, before)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report_page(self, before=before, title=title), encoding="utf-8")
        return path

    def to_dict(self):
        """Plain values for JSON, without pictures."""
        rows = [
            {key: getattr(row, key) for key in ("where", "question", "truth", "reply", "score")} for row in self.rows
        ]
        summary = {"metric": self.metric, "score": self.score, "interval": self.interval, "num_rows": len(rows)}
        return summary | {"details": self.details, "rows": rows}

    def __repr__(self):
        low, high = self.interval
        return f"Report({self.metric} {self.score:.1%} ({low:.1%} – {high:.1%}) on {len(self.rows)} rows)"

    def _repr_html_(self):
        from ..show.answers import report_html

        return report_html(self, examples=12)


def evaluate(vlm, data, *, metric="exact_match", batch_size=16, progress=True, **generation):
    """Ask the last question of every row and score the reply against the row's last answer.

    Earlier turns of a row are given as written.

    Args:
        vlm: a loaded model.
        data: what `open_data` gives, a path, or a list of records.
        metric: a name of METRICS, or a function of (reply, truth) that gives 0 to 1.
        generation: options of `generate`; greedy with at most 64 new tokens unless said.
    Returns: `Report`.
    """
    score, name = _metric(metric)
    started = time.monotonic()
    source = data
    data = open_data(data) if isinstance(data, (str, os.PathLike)) else data
    records = list(data)
    if not records:
        raise DataError("no rows to evaluate; expected at least one")
    replies = reply_batch(
        vlm,
        [(record.turns[:-1], record.video or record.images) for record in records],
        max_tiles=[record.max_tiles for record in records],
        batch_size=batch_size,
        progress=progress,
        **({"max_new_tokens": MAX_NEW_TOKENS} | generation),
    )
    rows = tuple(_row(record, reply.text, score) for record, reply in zip(records, replies, strict=True))
    details = {
        "model": vlm.origin,
        "data": str(getattr(data, "path", source if isinstance(source, (str, os.PathLike)) else "records")),
        "device": str(vlm.model.device),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "max_tiles": vlm.processor.max_tiles,
        "template": vlm.processor.template.name,
        "seconds": round(time.monotonic() - started, 1),
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")),
    }
    return Report(name, rows, details)


def _metric(metric):
    if callable(metric):
        return metric, getattr(metric, "__name__", "score")
    if metric not in METRICS:
        raise DataError(f"metric {metric!r}; expected one of {', '.join(METRICS)} or a function of (reply, truth)")
    return METRICS[metric], metric


def _row(record, reply, score):
    truth = record.answer
    return Row(
        where=record.where,
        question=record.question.replace("<image>\n", ""),
        truth=truth,
        reply=reply,
        score=float(score(reply, truth)),
        images=record.images,
        extra=dict(record.extra),
    )


def _check_same_rows(report, before):
    if before and [row.where for row in before.rows] != [row.where for row in report.rows]:
        raise DataError("the two reports are of different rows; expected the same data in the same order")
