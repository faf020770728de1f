"""What a model is asked about, answers or not: a folder of pictures and videos, a table, rows → `Record`s."""

import os
from pathlib import Path

from ...errors import DataError, all_faults
from ..importing.gather import PictureTaker
from ..importing.tables import PICTURE_SUFFIXES, TABLE_SUFFIXES, rows_of_cells, table_rows, visible_files
from ..rows.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, with_places
from ..rows.media import VIDEO_SUFFIXES
from ..rows.records import Record, Turn, Video, numbered_rows, read_row
from .opening import open_data

MEDIA_SUFFIXES = PICTURE_SUFFIXES - {".pdf"} | {*VIDEO_SUFFIXES}


def questions_of(data, *, question=None, root=None):
    """(records whose answers, if any, are not used, the folder that their files' names start from or None).

    Args:
        data: a folder, all of whose pictures and videos are asked about, also those in its sub-folders; one picture or
            video, or a list of such; a table (.csv, .tsv, .xlsx) or a JSONL, with answers or without; what `open_data`
            takes; records.
        question: for pictures alone; of a table or of rows without turns also the name of a column.
        root: folder that the names in a table or JSONL start from; default its own.
    Raises: DataError that names the row, and for pictures without a question.
    """
    if _are_files(data):
        return [_of_file(Path(one), os.fspath(one), question) for one in data], None
    if not isinstance(data, (str, os.PathLike)):
        records = records_in(data)
        _no_question(question, "records")
        return [_asking(record) for record in records], None
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected pictures, a table or rows; check the path")
    suffix, root = path.suffix.lower(), Path(root) if root else path if path.is_dir() else path.parent
    if path.is_dir() and not (path / "meta.json").exists():
        names = [name for name in visible_files(path) if name.suffix.lower() in MEDIA_SUFFIXES]
        if not names:
            raise DataError("no picture or video", f"one at least, {', '.join(sorted(MEDIA_SUFFIXES))}", where=path)
        return [_of_file(path / name, name.as_posix(), question) for name in names], root
    if suffix in MEDIA_SUFFIXES and path.is_file():
        return [_of_file(path, path.name, question)], root
    if suffix in (*TABLE_SUFFIXES, ".jsonl", ".ndjson"):
        return [_asking(record) for record in _of_rows(path, root, question)], root
    _no_question(question, path)
    return list(open_data(path)), None


def _are_files(data):
    """Whether all are names and one of a file at least; another that is missing is named where it is opened."""
    named = isinstance(data, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in data)
    return named and any(map(os.path.exists, data))


def records_in(data):
    """The rows of a `Data`, a benchmark or a list. Raises: DataError for what is no record."""
    rows = list(data) if hasattr(data, "__getitem__") or hasattr(data, "__iter__") else [data]
    for kind in {type(row).__name__ for row in rows if not isinstance(row, Record)}:
        todo = "name their file or folder; rows in memory: ivlkit.data.datasets.opening.from_dataset(rows, to=folder)"
        raise DataError(f"a {kind} in a row's place", "a record, as open_data has them", todo)
    return rows


def _no_question(question, where):
    if question is not None:
        raise DataError(f"{where}: have their own questions; expected no question={question!r}; leave it out")


def _asking(record):
    if not record.turns or "user" not in (turn.role for turn in record.turns[-2:]):
        raise DataError(f"{record.where}: ends without a question; expected one last, or one and its answer; add it")
    return record


def left_aside(data):
    """Names of a folder's files that are no picture and no video, and so no rows; hidden ones don't count."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data) or (Path(data) / "meta.json").exists():
        return []
    return [name.as_posix() for name in visible_files(data) if name.suffix.lower() not in MEDIA_SUFFIXES]


def _of_file(path, name, question):
    if not question:
        raise DataError(f"{path}: no question; expected one that is asked about every picture; add question=…")
    is_video = path.suffix.lower() in VIDEO_SUFFIXES
    text = with_places(question, place=VIDEO_PLACEHOLDER if is_video else IMAGE_PLACEHOLDER)
    media = {"video": Video(path)} if is_video else {"images": (path,)}
    return Record(id=name, turns=(Turn("user", text),), where=name, **media)


def _of_rows(path, root, question):
    """The records of a table or JSONL; that an answer is missing is no fault here."""
    is_table, taker = path.suffix.lower() in TABLE_SUFFIXES, PictureTaker(root, root)
    choice = {"question": question, "answer": ()}
    for where, row in table_rows(path, **choice)[1] if is_table else rows_of_cells(numbered_rows(path), **choice):
        if isinstance(row, DataError):
            raise row
        if is_table:
            images = row["image"] if isinstance(row["image"], list) else [row["image"]]
            row["image"], root = [str(taker.find(name, where)) for name in images], Path(taker.root.anchor)
        (_, record), faults = all_faults(read_row(row, where, root))
        for fault in faults:
            if fault.code != "no_answer":
                raise fault.at(where)
        yield record
