"""Answers to rows whose truth nobody knows, with how sure the model is of each: a table, a page of pictures."""

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..data.datasets.questions import left_aside, questions_of
from ..data.files import write_whole
from ..data.rows.formats import without_places
from ..errors import DataError
from ..models.options import check_options
from ..training.run import loaded
from ..views import shown
from .confidence import Calibration
from .evaluate import ask_all, check_media, check_seed, evaluate, fingerprint, name_of_data, row_of
from .pictures import files_shown, media_key
from .report import Gallery, Report, Row

JOURNAL = ".replies"  # ends the name of the folder that keeps the replies: answers.csv.replies
COLUMNS = ("source", "file", "id", "question", "answer", "confidence", "chance_right", "least_sure")


@dataclass(frozen=True)
class Predictions:
    """Rows in the order of the data, without truth and score; `extra` has their `file` and `id`."""

    rows: tuple[Row, ...]
    details: dict  # model, data, settings, seconds, versions
    calibration: Calibration | None = None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]

    def chance_right(self, row):
        """The calibrated confidence of a row; None without a calibration, and for an answer that was cut."""
        return self.calibration and self.calibration.chance_right(row)

    def least_sure(self, k=12):
        """The k rows that are least likely to be right, or have the lowest confidence; answers that were cut first."""
        return Gallery(sorted(self.rows, key=lambda row: self.chance_right(row) or row.confidence or 0.0)[:k])

    def table(self):
        """A dict for each row: source, file, id, question, answer, confidence, chance_right, least_sure, fields.

        `least_sure` is the token that the model was least sure of, "(end)" for where the answer ends. `confidence` is
        None for an answer that was cut. `fields` is {"sum": 0.93, …} for an answer in JSON, else {}.
        """
        return [self._line(row) for row in self.rows]

    def _line(self, row):
        own = {name: row.extra.get(name) for name in ("file", "id")}
        scores = {"confidence": _short(row.confidence), "chance_right": _short(self.chance_right(row))}
        fields = {name: _short(value) for name, value in row.field_scores.items()}
        said = {"question": row.question, "answer": row.reply, "least_sure": row.least_sure_token, "fields": fields}
        return {"source": row.where} | own | said | scores

    def save(self, path):
        """Write the table as .csv or .jsonl, in one step; a field of a JSON answer gets a column "confidence of …"."""
        lines, fields = self.table(), dict.fromkeys(name for row in self.rows for name in row.field_scores)
        if check_ending(path) == ".jsonl":
            text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
            return write_whole(path, text)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*COLUMNS, *(f"confidence of {name}" for name in fields)])
        table.writerows([*map(line.get, COLUMNS), *map(line["fields"].get, fields)] for line in lines)
        return write_whole(path, text.getvalue())

    def save_html(self, path, *, title="Answers"):
        """Write one self-contained page with pictures: the least sure answers first, their least sure token marked."""
        return write_whole(path, self._page(title=title))

    @property
    def said(self):
        """Sentences: how many answers, how many were cut, what was left aside, what a confidence is worth."""
        cut = sum(bool(row.least_sure) and row.confidence is None for row in self.rows)
        more = [f"Cut before their end: {cut:,}."] if cut else []
        if aside := self.details.get("left aside"):
            more.append(f"Left aside: {aside}.")
        worth = str(self.calibration or "The confidences are uncalibrated; give validation rows, with answers.")
        return [f"{len(self.rows):,} answers; the model: {self.details['model']}.", *more, worth]

    def __repr__(self):
        return "\n".join(self.said)

    _repr_html_ = shown("answers:predictions_html")
    _page = shown("answers:predictions_page")


def predict(
    model,
    data,
    *,
    question=None,
    to=None,
    root=None,
    validation=None,
    max_tiles=None,
    batch_size=16,
    seed=0,
    progress=True,
    **generation,
):
    """Answer every row, with the probability of each answer.

    The confidence is the probability that greedy decoding gave to the whole answer and its end, in float32; how often
    such an answer is right is another question: `validation` answers it, and without it the confidences only rank.

    Args:
        model: a loaded model; or a key such as "nano", a folder or a finished run, which is loaded and released again.
        data: a folder, all of whose pictures and videos are asked about; one of them, or a list of such; a table or a
            JSONL, whose answers are not read if it has any; what `open_data` takes; a list of records.
        question: for pictures alone; of a table also the name of a column, default "question".
        to: a .csv or .jsonl. The replies are kept in a folder beside it, answers.csv.replies: called again, also after
            a kill, it goes on where it stopped, and writes the same file.
        root: folder that the names in a table or JSONL start from; default its own.
        validation: a `Report` of this model on validation rows, 50 at least, or such rows: what a confidence is worth.
            They may not be among the rows that are asked about.
        max_tiles, seed, generation: as in `evaluate`.
    Returns: `Predictions`.
    Raises: DataError that names the row, and for a `to` that holds anything but answers of this model to these rows.
    """
    check_options(generation, "predict", predict)
    journal = to and f"{to}{JOURNAL}"
    if to:
        check_ending(to)
        if os.path.exists(to) and not os.path.isdir(journal):  # the rows themselves, at worst
            raise DataError(
                f"{to}: is there, but not {journal}, as predict keeps it; expected a new file; name another"
            )
    check_seed(seed)
    records, home = questions_of(data, question=question, root=root)
    if not records:
        raise DataError("no rows to answer; expected at least one")
    options = {"max_tiles": max_tiles, "batch_size": batch_size, "seed": seed, "progress": progress, **generation}
    with loaded(model, "predict") as vlm:
        check_media(records, vlm.processor)
        calibration = None if validation is None else _calibrate(vlm, validation, records, journal, options)
        replies, details = ask_all(vlm, records, folder=journal, **options)
    rows = tuple(_row(record, reply, home) for record, reply in zip(records, replies, strict=True))
    details = {"data": name_of_data(data)} | details
    if aside := left_aside(data):
        details |= {"left aside": f"{len(aside):,} files that are no picture and no video, such as {aside[0]}"}
    found = Predictions(rows, details, calibration)
    if to:
        found.save(to)
    return found


def _calibrate(vlm, validation, records, journal, options):
    """The calibration by rows whose truth is known, none of which may be asked about."""
    folder = journal and Path(journal) / "validation"
    report = validation if isinstance(validation, Report) else evaluate(vlm, validation, to=folder, **options)
    found, weights = report.calibration(), fingerprint(vlm.model)
    if found.weights != weights:
        raise DataError(
            f"a validation report of a model with weights {found.weights}; expected {weights}, the one that answers; "
            "evaluate it on the validation rows"
        )
    asked = {_key(record) for record in records}
    if again := next((row.where for row in report.rows if _key(row) in asked), None):
        raise DataError(
            f"{again}: is a validation row and is asked about; expected other rows: of those that it was fitted on a "
            "confidence says too much; leave them out of one of the two"
        )
    return found


def _key(row):
    return row.where, without_places(row.question), media_key(row)


def check_ending(path):
    """The suffix of a table of answers, .csv or .jsonl. Raises: DataError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise DataError(f"{path}: ends with {suffix!r}; expected .csv or .jsonl; rename it")
    return suffix


def _row(record, reply, home):
    own = {"file": " ".join(_from(home, os.fspath(file)) for file in files_shown(record)), "id": record.id}
    return row_of(record, reply, truth=None, score=None, extra=dict(record.extra) | own)


def _from(home, name):
    """A file's name as it starts from a folder, or its whole one where it lies elsewhere."""
    inside = os.path.relpath(name, home) if home else ".."
    return name if inside.startswith("..") else Path(inside).as_posix()


def _short(value):
    """Six digits of a probability: more are noise."""
    return None if value is None else float(f"{value:.6g}")
