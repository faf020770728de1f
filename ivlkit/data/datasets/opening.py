"""What a person has → a data set: a meta file or JSONL as it is, whatever else holds rows through `convert`."""

import os
import re
from pathlib import Path

from ...errors import DataError
from ..importing.convert import ALL as ALL_ROWS
from ..importing.convert import REJECTS, convert, listed_text
from ..importing.tables import TABLE_SUFFIXES
from ..importing.tools import find_tool
from .mixture import ALL, TRAIN, Data, Source, read_meta


def open_data(path, *, root=None, seed=0, split=TRAIN):
    """Open a meta JSON or a JSONL, or what `convert` can make one of: a table, a JSON list, a folder with classes.

    Args:
        path: `*.json` is a meta file, a list of rows or COCO's, `*.jsonl` one data set; what YOLO, Pascal VOC and Label
            Studio write is read too (docs/formats.md). `Data` alone is given back as it is.
        root: folder of the pictures of a JSONL; defaults to the JSONL's own folder.
        seed: for `repeat_time` fractions.
        split: of a meta file, the entries of this `split`; "train" are also those that name none; "all" is every one.
    Raises: DataError with the entry, what was found, what was expected.
    """
    if isinstance(path, Data) and (root, seed, split) == (None, 0, TRAIN):
        return path
    path, root = openable(path, root)
    if path.suffix != ".json":
        if split not in (TRAIN, ALL):
            todo = f"open that part's own file, or cut this one: data.split(train=0.8, {split}=0.2)"
            raise DataError(f"split={split!r} of one file of rows, which has no parts", None, todo, where=path)
        return Data([Source(path.stem, path, root)], path=path, seed=seed)
    sources = read_meta(path)
    chosen = [source for source in sources if split in (source.split, ALL)]
    if not chosen:
        found = ", ".join(sorted({source.split for source in sources}))
        raise DataError(f"no entry of split {split!r}", f"one of {found}, {ALL}", "name one of them", where=path)
    return Data(chosen, path=path, seed=seed, part=split)


def from_csv(
    path, *, images=None, question=None, answer=None, suffix=None, image=None, video=None, to=None, rejects="refuse"
):
    """A table of pictures and labels (CSV, TSV, XLSX, JSON) as a data set; `ivl.train`, `encode` and `check` take it.

    The rows are written as the released JSONL into the folder `to`, which a run can open again. Separator and encoding
    are detected. A picture may be named without suffix or with backslashes; a page of a PDF or TIFF is `a.pdf#page=2`.

    Args:
        images: folder that the pictures' names start from; default the table's own.
        question: a column, or a sentence that is asked about every picture; default a column "question".
        answer: a column; several give one JSON answer, {"column": cell, …}; default a column "answer" or "label".
        suffix: a line after every question: "Answer the question using a single word or phrase."
        image: the column of the pictures' names, or several; default "image", "file_name", "file", "path", …
        video: a column of videos, in place of `image`.
        to: folder to write; default `labels_ivlkit/` beside labels.csv.
        rejects: "refuse" raises if any row can't be used; "list" goes on without them, named in `to`/rejects.jsonl.
    Returns: `Data`, one row each row of the table.
    Raises: DataError that names lines: an empty cell, a missing picture, a column that is not there or there twice.
    """
    columns = {"image": image, "video": video, "question": question, "answer": answer, "suffix": suffix}
    return open_data(_converted(path, to, rejects, images=images, **columns))


def from_folder(path, *, question=None, to=None, rejects="refuse"):
    """A folder with one sub-folder a class (`photos/cat/1.jpg`) as a data set; the sub-folder's name is the answer.

    Of `photos/train/cat/1.jpg`, `photos/valid/cat/2.jpg`, … these are the rows of train; `open_data("photos",
    split="validation")` opens the others.

    Args: question: asked about every picture, "What is it?" unless said; the rest as in `from_csv`.
    """
    return open_data(_converted(path, to, rejects, question=question))


def from_dataset(dataset, *, to, question=None, answer=None, image=None, video=None, rejects="refuse"):
    """An object of the `datasets` library (one split), or any iterable of dictionaries, as a data set.

    Rows with `messages` or `conversations` are read as such, others as a table's; pictures in memory are written under
    `to`. Arguments as in `from_csv`.
    """
    columns = {"image": image, "video": video, "question": question, "answer": answer}
    return open_data(_converted(dataset, to, rejects, images=Path.cwd(), **columns))


def openable(path, root=None):
    """What `open_data` is given → (a meta .json, None) or (a .jsonl, its root).

    Tables, folders and JSON lists are converted: written anew, beside themselves, at every call. A folder that holds a
    meta.json is that meta file. Raises: DataError if there is nothing, or a root beside a meta file.
    """
    if not isinstance(path, (str, os.PathLike)):
        todo = "name several files in one meta .json; "
        todo += "rows in memory: ivlkit.data.datasets.opening.from_dataset(rows, to=folder)"
        raise DataError(f"a {type(path).__name__} in the data's place", "a path", todo, where="open_data")
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a meta .json or a .jsonl; check the path")
    if path.is_dir() and (path / "meta.json").exists():
        path = path / "meta.json"
    elif path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES or _is_json_list(path) or find_tool(path)[0]:
        return _converted(path, images=root), None
    if path.suffix != ".json":
        return path, Path(root) if root else path.parent
    if root is not None:
        raise DataError(f"{path}: a meta file has its own `root`s; leave out root={root!r}")
    return path, None


def _is_json_list(path):
    if path.suffix.lower() != ".json":
        return False
    with open(path, "rb") as file:
        return bool(re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(1000)))


def _converted(source, to=None, rejects="refuse", **options):
    """The meta file of a source that was written anew."""
    if rejects not in ("refuse", "list"):
        raise DataError(f'rejects={rejects!r}; expected "refuse" or "list"')
    if to is None:
        path = Path(os.path.abspath(source))
        to = path.with_name(f"{path.stem if path.is_file() else path.name}_ivlkit")
    done = convert(source, to, shares=ALL_ROWS, **options)
    if done.rejected and rejects == "refuse":
        found = f"{done.rejected} of {done.rejected + sum(done.rows.values())} rows can't be used, all in "
        todo = f'mend them, or go on without (rejects="list"):{listed_text(done.first_rejects, done.rejected)}'
        raise DataError(f"{found}{done.folder / REJECTS}", None, todo, where=done.source)
    return done.meta
