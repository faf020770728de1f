"""Tables and folders of pictures → rows of the released shape, each with its place ("labels.csv:17").

A row that can't be used is yielded as the DataError that says why; none is left out.
"""

import csv
import datetime
import json
import os
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path

from ...errors import DataError
from ..rows.fields import REFUSED_IN_ROW, UNUSED_IN_ROW
from ..rows.formats import ANSWER_COLUMNS, QUESTION_COLUMNS, VIDEO_PLACEHOLDER, is_nothing, with_places
from ..rows.video import FRAME_SUFFIXES

TABLE_SUFFIXES = {".csv", ".tsv", ".xlsx"}
PICTURE_SUFFIXES = FRAME_SUFFIXES | {".gif", ".jfif", ".heic", ".heif", ".avif", ".jp2", ".ppm", ".pdf"}
IMAGE_COLUMNS = ("image", "images", "file_name", "filename", "file", "image_path", "path", "picture", "photo", "img")
DELIMITERS = (",", ";", "\t", "|")
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python keeps a byte that it can't decode
_WORDS, _FOREIGN = re.compile(rb"[A-Za-z\x80-\xff]+"), re.compile(rb"^[\x80-\xff]+$|[\x80-\xff]{3}")
RESERVED = {"id", "image", "video", "clip", "conversations", "messages", "images", "videos", "system", "tools"}
_OF_ROWS = {"objects", *REFUSED_IN_ROW}  # fields of other formats; a column of such a name is none of these
FOLDER_QUESTION = "What is it?"
PARTS = ("train", "validation", "test")
PART_OF = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
PART_OF |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_KINDS_OF_FILES = {"images", "image", "imgs", "img", "labels", "annotations", "ann", "masks", "data", "set"}
_KINDS_OF_FILES |= {"jpegimages", "pngimages", "segmentationclass", "segmentationobject", "imagesets"}
HIDDEN_FILES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Columns:
    """Which columns make a row. A name that is no column of the table is the question itself, for every row."""

    images: tuple[str, ...]
    question: str
    answer: tuple[str, ...]
    video: str | None = None
    is_constant: bool = False  # the question
    as_json: bool = False  # the answer: {"column": cell, …}
    suffix: str | None = None  # a line after every question


def choose_columns(header, where, *, image=None, video=None, question=None, answer=None, suffix=None):
    """`Columns` of a table by what was asked for, or by usual names ("image", "question", "answer", …).

    Args: answer: () for rows that have none, or whose answer is not read.
    Raises: DataError with the table's columns if one is named that is not there, or none fits.
    """
    images = _listed(image) or (() if video else _usual(header, IMAGE_COLUMNS, "image", where))
    asked = question or _usual(header, QUESTION_COLUMNS, "question", where)[0]
    answers = _usual(header, ANSWER_COLUMNS, "answer", where) if answer is None else _listed(answer)
    for name in (*images, *answers, *_listed(video)):
        if name not in header:
            raise DataError(f"no column {name!r}", f"one of {_names(header)}", where=where)
    constant = asked not in header
    if constant and (re.fullmatch(r"\w+", asked) or asked.strip().casefold() in map(str.casefold, header)):
        expected = f"one of {_names(header)}, or a sentence that is asked about every row"
        raise DataError(f"no column {asked!r} for the question", expected, where=where)
    return Columns(images, asked, answers, video, constant, isinstance(answer, (list, tuple)), suffix)


def _listed(value):
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _usual(header, names, role, where):
    by_name = {name.casefold(): name for name in reversed(header)}
    found = [by_name[name] for name in names if name in by_name]
    if not found:
        raise DataError(f"{where}: no {role} column among {_names(header)}; name it: {role}=… (from_csv, convert)")
    return (found[0],)


def _names(header):
    return ", ".join(repr(name) for name in header if name)


def row_from_cells(cells, columns, where):
    """One row of a table, {column: cell}, as a released row.

    Raises: DataError naming the column of an empty cell. In a JSON answer an empty cell is null, but not all of them.
    """
    # pandas has NaN where nothing is written
    cells = {name: None if isinstance(cell, float) and cell != cell else cell for name, cell in cells.items()}
    images = [name for column in columns.images for name in _listed(_filled(cells, column, where))]
    images = [str(name) if isinstance(name, (int, float)) else name for name in images]  # a spreadsheet's 0017
    question = columns.question if columns.is_constant else _text(cells, columns.question, where)
    question = "\n".join(filter(None, (question, columns.suffix)))
    marked = with_places(question, place=VIDEO_PLACEHOLDER) if columns.video else with_places(question, len(images))
    conversations = [{"from": "human", "value": marked}]
    if columns.answer:
        conversations.append({"from": "gpt", "value": _answer(cells, columns, where)})
    row = {"id": cells.get("id"), "conversations": conversations}
    if images:
        row["image"] = images if len(images) > 1 else images[0]
    if columns.video:
        value = _filled(cells, columns.video, where)
        row["video"] = value if isinstance(value, list) else str(value)
        if not is_nothing(clip := cells.get("clip")):
            with suppress(ValueError, TypeError):  # what is no "[0, 2.5]" is said where the row is read
                clip = json.loads(clip)
            row["clip"] = clip
    used, plain = {*columns.images, columns.question, columns.video}, (str, int, float, bool)
    if "system" not in used.union(columns.answer) and str(cells.get("system") or "").strip():
        row["system"] = _text(cells, "system", where)
    used |= RESERVED | _OF_ROWS
    kept = {key: value for key, value in cells.items() if isinstance(value, plain) or key in UNUSED_IN_ROW}
    others = {key: value for key, value in kept.items() if key and key not in used}
    others |= {"answers": cells["answers"]} if isinstance(cells.get("answers"), list) else {}  # all are right
    return others | row  # a report can be sliced by them


def _filled(cells, name, where):
    value = cells.get(name)
    if is_nothing(value.strip() if isinstance(value, str) else value):
        raise DataError(f"{where}: the cell {name!r} is empty; expected a value; fill it or remove the row")
    return value.strip() if isinstance(value, str) else value


def _text(cells, name, where):
    """A cell as text. A list is none: str() would make an answer of its brackets and quotes."""
    value = _filled(cells, name, where)
    if isinstance(value, Container) and not isinstance(value, str):
        found = f"the cell {name!r} is a {type(value).__name__}"
        raise DataError(found, "a text or a number", "choose one of its values", where=where)
    return str(value)


def _answer(cells, columns, where):
    if not columns.as_json:
        return _text(cells, columns.answer[0], where)
    values = {name: cells.get(name) for name in columns.answer}
    values = {name: None if isinstance(value, str) and not value.strip() else value for name, value in values.items()}
    if all(value is None for value in values.values()):
        raise DataError(f"{where}: all cells of the answer are empty; expected one value at least; fill them")
    try:
        return json.dumps(values, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{where}: {error}; expected texts, numbers or lists of them; convert the column") from error


# CSV and TSV


def table_rows(path, **choice):
    """(what was detected, [(where, released row or DataError), …] as an iterator); `choice` as in `choose_columns`."""
    said, header, rows = table_cells(path, Path(path).name)
    return said, rows_of_cells(rows, choose_columns(header, f"{Path(path).name}:1", **choice))


def table_cells(path, name):
    """(what was detected, columns, [(where, {column: cell} or DataError), …] as an iterator) of a CSV, TSV or XLSX.

    A row without a cell "id" gets the number of its line. Args: name: of the file, as messages have it.
    """
    path = Path(path)
    header, lines, said = xlsx_table(path) if path.suffix.lower() == ".xlsx" else text_table(path)
    header = [str(column).strip() if column is not None else "" for column in header]
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise DataError(f"{name}:1: column {twice[0]!r} twice; expected every name once; rename one")
    if pictures := [column for column in header if column.lower().endswith(tuple(PICTURE_SUFFIXES))]:
        found = f"the first line names a picture, {pictures[0]!r}"
        raise DataError(found, "column names", "write them above, image,answer or the like", where=f"{name}:1")
    return said, header, _cells(name, header, lines)


def _cells(name, header, lines):
    for number, cells in lines:
        where = f"{name}:{number}"
        if isinstance(cells, Exception):
            yield where, DataError(f"{where}: {cells}")
        elif len(cells) > len(header) and any(cell not in ("", None) for cell in cells[len(header) :]):
            found = f"{len(cells)} cells in a table of {len(header)} columns"
            yield where, DataError(found, None, "put quotes around the cell that holds a separator", where=where)
        else:
            yield where, {"id": number} | dict(zip(header, cells, strict=False))


def text_table(path):
    """(header, iterator of (line, cells or the error), what was detected) of a CSV or TSV."""
    encoding = encoding_of(path)
    delimiter = delimiter_of(path, encoding)
    lines = _csv_lines(path, encoding, delimiter)
    number, header = next(lines, (1, None))
    if header is None or isinstance(header, Exception):
        raise DataError(f"{path.name}:{number}: no header ({header or 'the file is empty'}); expected column names")
    if any("\0" in name for name in header):
        raise DataError(f"{path.name}:1: NUL characters; expected text; save it as CSV in UTF-8")
    return header, lines, f"csv, {'tab' if delimiter == chr(9) else delimiter} between cells, {encoding}"


def encoding_of(path):
    """The encoding that a table is read in. Raises: DataError if it is none of UTF-8, UTF-16 or Western ones.

    It is UTF-8 if at least half of the lines beyond ASCII are: then the others are mistakes, each of its row. It is
    Western if at least half of the words beyond ASCII have ASCII letters too: Chinese ones would be misread. A single
    character, "°" or "à", says nothing; three in a row, even between ASCII letters, are no Western word.
    """
    right = wrong = words = foreign = 0
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if marked := next((encoding for mark, encoding in MARKS if start.startswith(mark)), None):
                return marked
            file.seek(0)
            for line in file:
                if line.isascii():
                    continue
                is_right = not _NOT_UTF8.search(line.decode(errors="surrogateescape"))
                right, wrong = right + is_right, wrong + (not is_right)
                found = [word for word in _WORDS.findall(line) if len(word) > 1 and not word.isascii()]
                words, foreign = words + len(found), foreign + sum(map(bool, map(_FOREIGN.search, found)))
    except OSError as error:
        found = f"can't be read ({error.strerror})"
        raise DataError(found, "a table", "check the path", where=path) from error
    if right >= wrong:
        return "utf-8"
    if 2 * foreign > words:
        found = "not UTF-8, and its words are not Western ones"
        raise DataError(found, "UTF-8", "save it as CSV in UTF-8", where=path)
    return "cp1252"  # a byte that it lacks is its row's fault: in latin-1 it would be a control character


def delimiter_of(path, encoding):
    """The separator that cuts most of the first lines into as many cells as the header has."""

    def fit(delimiter):
        rows = [cells for _, cells in islice(_csv_lines(path, encoding, delimiter), 20) if isinstance(cells, list)]
        width = len(rows[0]) if rows else 0
        return (width > 1, sum(len(cells) == width for cells in rows), width)

    return "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=fit)


def _csv_lines(path, encoding, delimiter):
    """(line, cells or the error) of every row that is not blank, nor a first line `sep=;`, which Excel reads."""
    try:
        with open(path, encoding=encoding, errors="surrogateescape", newline="") as file:
            for line, raw, cells in csv_rows(file, delimiter):
                if line == 1 and re.fullmatch(r"sep=.[\r\n]*", raw):
                    continue
                if isinstance(cells, list) and (wrong := _NOT_UTF8.search(raw)):
                    number = next(number for number, cell in enumerate(cells, start=1) if wrong[0] in cell)
                    said = f"byte 0x{ord(wrong[0]) - 0xDC00:02x} in cell {number} is not {encoding}"
                    cells = ValueError(f"{said}; type the character anew, or save all as UTF-8")
                if isinstance(cells, Exception) or any(cell.strip() for cell in cells):
                    yield line, cells
    except UnicodeError as error:
        raise DataError(f"{path}: not {encoding} ({error}); save it as CSV in UTF-8") from error


def csv_rows(lines, delimiter):
    """Yield (its first line, its text as it stands, its cells or the error) of every row; a row may span lines."""
    lines, behind = tee(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = _csv_error(error, begin + 1, reader.line_num)
        yield begin + 1, "".join(islice(behind, reader.line_num - begin)), cells


def _csv_error(error, first, last):
    if "unexpected end" in str(error):
        return ValueError(f"a quote is opened and never closed, up to line {last}; close it")
    lines = f" (lines {first} to {last})" if last > first else ""
    if "field limit" in str(error):
        return ValueError(f"a cell of more than {csv.field_size_limit():,} characters{lines}; is a quote left open?")
    return ValueError(f"broken CSV{lines}: {error}; write a quote inside quotes twice")


# XLSX


def xlsx_table(path):
    """The same of the first sheet of a spreadsheet, with cells as JSON can hold them."""
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(f"{path}: .xlsx needs a library: pip install openpyxl; or save it as CSV") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet, *others = shown_sheets(book)
        rows = [(number, [*map(_plain, cells)]) for number, cells in enumerate(sheet.iter_rows(), start=1)]
    except Exception as error:  # a damaged archive raises whatever its parser meets first
        raise DataError(f"{path}: can't be read ({error}); expected an Excel file; save it anew or as CSV") from error
    lines = ((number, cells) for number, cells in rows if any(cell is not None for cell in cells))
    _, header = next(lines, (1, None))
    if header is None:
        raise DataError(f"{path.name}:1: no header (the sheet is empty); expected column names")
    more = f", the first of {1 + len(others)} sheets" if others else ""
    return header, lines, f"xlsx, sheet {sheet.title!r}{more}"


def shown_sheets(book):
    """The sheets of a workbook that a person sees; the first one is the table."""
    return [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]


def _plain(cell):
    """A cell as JSON can hold it: 3 for 3.0, "2024-05-01" for a day, 0.3 for a computed 0.30000000000000004.

    A number that the format "00000" shows with zeros in front has them: "00012".
    """
    value = cell.value
    if type(value) is int and value >= 0 and re.fullmatch("00+", cell.number_format):
        return str(value).zfill(len(cell.number_format))
    if isinstance(value, float):  # 15 digits are those that a spreadsheet shows
        return int(value) if value.is_integer() else float(f"{value:.15g}")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat().removesuffix("T00:00:00")
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


# A folder with one sub-folder a class, or with one a part that has these


def folder_rows(folder, *, question=FOLDER_QUESTION):
    """(what was detected, rows) of `photos/cat/1.jpg`, `photos/dog/2.jpg`: the sub-folder is the answer.

    Of `photos/train/cat/1.jpg`, `photos/valid/dog/2.jpg` it is the one below the part.
    """
    folder, names = Path(folder), _folders_in(folder)
    parts = {name: PART_OF[name.casefold()] for name in names if name.casefold() in PART_OF}
    others = [name for name in names if name not in parts]
    nested = [name for name in parts if _folders_in(folder / name)]
    if others and nested:  # a part's name is never an answer
        found = f"{_names(nested)} with folders in them beside {_names(others)}"
        expected = "parts of a split only, or classes only"
        raise DataError(found, expected, "move the others elsewhere", where=folder)
    parts = {} if others else parts
    classes = {name for part in parts or [""] for name in _folders_in(folder / part)}
    rows = sorted(path for path in folder.iterdir() if path.suffix.lower() in {*TABLE_SUFFIXES, ".jsonl"})
    table = f"or name the table, {rows[0]}" if rows else ""
    if not classes:
        found = "no class folders in those of the split" if parts else "no sub-folders"
        expected = f"one a class, {'/'.join([folder.name, *list(parts)[:1]])}/cat/1.jpg"
        todo = "with a table of labels use from_csv(table, images=folder)"
        raise DataError(found, expected, table or todo, where=folder)
    if all(map(_is_no_class, classes)):
        found = f"folders {_names(sorted(classes))} are those of a set with boxes or masks, or parts of a split"
        todo = "add the tool's own file: data.yaml, _annotations.coco.json, …; or call parts train, valid and test"
        raise DataError(found, "one a class", table or todo, where=folder)
    said = f", split into {', '.join(parts)}" if parts else ""
    return f"folder of {len(classes)} classes{said}, asked {question!r}", _folder_rows(folder, question, parts)


def _is_no_class(name):
    """Whether a folder is called after its kind of files or part alone, as "train_images" and "val2017" are."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return bool(words) and all(word in _KINDS_OF_FILES or word in PART_OF for word in words)


def _folders_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folder_rows(folder, question, parts):
    """The outermost folder is the answer, or the one in it where the outermost are `parts`."""
    for number, name in enumerate(visible_files(folder), start=1):
        where, part, depth = name.as_posix(), parts.get(name.parts[0]), bool(parts)
        if len(name.parts) <= depth + 1:
            inside = "/".join([folder.name, *name.parts[:-1], "CLASS", name.name])
            yield where, DataError("lies beside the class folders", inside, where=where), part
        elif name.suffix.lower() not in PICTURE_SUFFIXES:
            expected = ", ".join(sorted(PICTURE_SUFFIXES))
            yield where, DataError("no picture by its name", expected, where=where), part
        else:
            turns = [{"from": "human", "value": with_places(question)}, {"from": "gpt", "value": name.parts[depth]}]
            yield where, {"id": number, "image": where, "conversations": turns}, part


def visible_files(folder):
    """Names, from the folder on, of the files in it and in its sub-folders but hidden ones, in order."""
    names = sorted(path.relative_to(folder) for path in files_below(Path(folder)))
    shown = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return [name for name in shown if name.name.lower() not in HIDDEN_FILES]


def files_below(folder, above=()):
    """Files of a folder and of its sub-folders, through links too, unless one leads back to a folder it lies in."""
    above = (*above, os.path.realpath(folder))
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from files_below(path, above)


# Objects of the `datasets` library, JSON rows without turns, and whatever else gives dictionaries


def dataset_rows(dataset, **choice):
    """(what was detected, rows) of an iterable of dictionaries; class numbers become their names.

    Rows with `conversations` or `messages` are read as such, others as a table's.
    """
    if isinstance(dataset, Mapping):
        raise DataError(f"a dictionary of {_names(dataset)}; expected one split; choose it: dataset['train']")
    features = getattr(dataset, "features", None) or {}
    columns = _names(getattr(dataset, "column_names", None) or features)
    name = getattr(dataset, "builder_name", None) or "dataset"
    rows = ((f"{name}: row {number}", row) for number, row in enumerate(dataset))
    return f"dataset with {columns or 'rows'}", rows_of_cells(rows, features=features, **choice)


def rows_of_cells(rows, columns=None, *, features=(), **choice):
    """Released rows of (where, {column: cell} or DataError); what has turns is a row already.

    Args: columns: default those of the first row, by `choice` as in `choose_columns`.
    """
    names_of = {key: feature.int2str for key, feature in dict(features).items() if hasattr(feature, "int2str")}
    for number, (where, row) in enumerate(rows):
        try:
            if isinstance(row, Exception):
                raise row
            if not isinstance(row, Mapping):
                raise DataError(f"{where}: a {type(row).__name__}; expected a dictionary")
            if any(isinstance(row.get(name), list) for name in ("conversations", "messages")):
                if asked := choice.get("question"):
                    todo = f"have their own questions; expected no question={asked!r}; leave it out"
                    raise DataError(f"{where}: {todo}")
                yield where, {key: value for key, value in row.items() if key in RESERVED or _is_json(value)}
                continue
            columns = columns or choose_columns(list(row), where, **choice)
            classes = {key: row[key] for key in names_of if isinstance(row.get(key), int)}
            named = {key: names_of[key](value) if value >= 0 else None for key, value in classes.items()}
            yield where, row_from_cells({"id": number, **row, **named}, columns, where)  # -1 stands for no class
        except DataError as error:
            yield where, error


def _is_json(value):
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
