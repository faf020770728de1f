"""Whatever holds rows → the released JSONL and its meta file, in a folder of its own.

Pictures stay where they are and are named by path. Written are only those that no path names: data URIs, pages of a
PDF, objects in memory, fetched ones. Every row of the source is either in one of the JSONL files or in rejects.jsonl,
with the reason.
"""

import filecmp
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

from ...errors import DataError, first_raised
from ..files import PART
from ..groups import RowKeys
from ..rows.formats import detect_format, release
from ..rows.records import numbered_rows, read_released
from ..splits import default_file, place_rows, splits_beside
from .gather import PictureTaker
from .labelled import labelled_rows
from .tables import PART_OF, PARTS, TABLE_SUFFIXES, dataset_rows, folder_rows, rows_of_cells, table_rows
from .tools import find_tool, home_of, read_labelled

TRAIN = "train"
SHARES = {TRAIN: 0.8, "validation": 0.1, "test": 0.1}
META = "meta.json"
MARKER = "conversion.json"  # says that a folder was written by us and may be written again
REJECTS = "rejects.jsonl"
TAKEN = {Path(MARKER).stem, Path(REJECTS).stem, "meta"}  # a split of such a name would be written over one of our files
ALL = {"rows": 1.0}
_COLUMNS = {"image", "video", "question", "answer", "suffix"}  # what is said of a table
LISTED = 10  # rows that a message quotes


@dataclass(frozen=True)
class Conversion:
    """What was written: `folder`/meta.json with all splits, and a meta file of its own for all but the training one."""

    folder: Path
    source: str
    detected: str  # how the source was read
    rows: dict  # split → rows written
    rejected: int
    first_rejects: tuple[str, ...] = ()
    said: tuple[str, ...] = ()  # what surprises about the split

    @property
    def meta(self):
        """The meta file; `open_data` and training take its training rows, `check` all."""
        return self.folder / META

    def __repr__(self):
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        listed = f", {self.rejected:,} rejected (see {self.folder / REJECTS})" if self.rejected else ""
        return f"Conversion({self.source} as {self.detected} → {self.folder}: {rows}{listed})"


def convert(
    source,
    to,
    *,
    images=None,
    format=None,
    shares=SHARES,
    seed=0,
    group=None,
    alike=None,
    split_file=None,
    fetch=None,
    **columns,
):
    """Write a source as the released JSONL and meta files into the folder `to`.

    The split is that of `Data.split`: by picture, kept beside the source, so that a later conversion moves nothing. A
    folder of `train`, `valid` and `test` with class folders or labels in them stays split as it is. A row's field
    `source` names its file and line; one that it had is `row_source`.

    Args:
        source: .jsonl, .json (a list), .csv, .tsv, .xlsx, a folder with a sub-folder a class, a dataset object, or the
            file or folder of COCO, YOLO (data.yaml), Pascal VOC or Label Studio.
        to: a new folder, or one that this function wrote.
        images: folder that picture paths start from; default the source's own.
        format: format of JSON rows, a name of `formats.FORMATS`; default: detected, row by row.
        shares: {split: share}; {"rows": 1} for one file, rows.jsonl; the name of a field that says each row's part.
        seed, group, alike: as in `Data.split`; a row without a value in the field `group` is rejected.
        split_file: as its `file`.
        fetch: function of an address that gives a picture's bytes (`fetch_url`); without it such rows are rejected.
        columns: image, video, question, answer, suffix of a table, as in `from_csv`; ask, question, answer of what a
            labelling tool wrote, as in `labelled_rows`.
    Returns: `Conversion`, e.g. of 97 rows: {"train": 78, "validation": 10, "test": 9}, 3 rejected.
    Raises: DataError if the source can't be read, no row is left, or `to` holds other files.
    """
    field, shares = (shares, SHARES) if isinstance(shares, str) else (None, shares)
    _check_shares(shares)
    columns = {name: value for name, value in columns.items() if value is not None}
    detected, rows, root = _opened(source, images and Path(images), columns)
    is_file = isinstance(source, (str, os.PathLike))
    name = Path(source).name if is_file else "dataset"
    with _writing(Path(to), name, Path(source) if is_file else None) as folder:
        taker = PictureTaker(root, folder, fetch=fetch)
        rows = _in_parts(rows, field) if field else rows
        sorted_out = _sort_out(rows, folder, taker, format=format, group=group)
        if not sorted_out.keys.own:
            listed = listed_text(sorted_out.first_rejects, sorted_out.rejected) or " it has none; expected one at least"
            raise DataError(f"{name}: none of {sorted_out.rejected} rows can be used:{listed}")
        if is_file and detected.startswith("JSON"):
            counts = sorted_out.formats.most_common()
            several = len(counts) > 1
            detected += f" of {', '.join(f'{count} {name}' if several else name for name, count in counts)} rows"
        how = {"file": split_file, "seed": seed, "group": group, "alike": alike}
        splits, said = _split(sorted_out, shares, beside=source if is_file else folder / name, **how)
        counts = Counter(splits)
        written = {name: counts[name] for name in dict.fromkeys([*shares, *PARTS]) if counts[name]}
        _write_splits(folder, splits, written, taker.base, f"{name} ({detected})")
        note = {"source": name, "detected": detected, "rows": written, "rejected": sorted_out.rejected, "seed": seed}
        note |= {"path": os.path.relpath(source, folder)} if is_file else {"path": name}
        (folder / f"{MARKER}{PART}").write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
    return Conversion(Path(to), name, detected, written, sorted_out.rejected, tuple(sorted_out.first_rejects), said)


def _split(sorted_out, shares, *, beside, file, **how):
    """(the split of each accepted row, sentences about it), kept in a file if rows were placed: the source has no split
    of its own, and more than one part is asked for."""
    if any(sorted_out.parts):
        return sorted_out.parts, ()
    names = [name for name in sorted(shares, key=shares.get, reverse=True) if shares[name]]
    if len(names) == 1:
        return names * len(sorted_out.places), ()
    how |= {"file": Path(file or default_file(beside)), "where": sorted_out.places.__getitem__}
    how["others"] = () if file else splits_beside(how["file"])
    placement = place_rows(sorted_out.keys, {name: shares[name] for name in names}, **how)
    missing = [(name, placement.missing(number)) for number, name in enumerate(names)]
    said = [f"no row for {name!r}; {why}" for name, why in missing if why]
    if len(sorted_out.named) > 1:
        own = ", ".join(sorted(sorted_out.named))
        said.append(f'the rows\' own field `split` ({own}) was not used; --split split keeps it (shares="split")')
    return [names[part] for part in placement.part_of], (*said, *placement.keep())


def _check_shares(shares):
    if not all(share >= 0 for share in shares.values()) or not abs(sum(shares.values()) - 1) < 1e-6:
        raise DataError(f"shares {shares}; expected numbers that sum to 1")
    for name in shares:
        if not name or Path(name).name != name or name in TAKEN:
            raise DataError(f"a split named {name!r}; expected a file's name, none of {', '.join(sorted(TAKEN))}")


def read_shares(text):
    """Shares as they are typed: "80/10/10", of train, validation and test, "none" for one file, or a field's name."""
    if text == "none":
        return ALL
    if re.fullmatch(r"[^/\d][^/]*", text):
        return text
    try:
        parts = [float(part) for part in text.split("/")]
        train, validation, test = (part / sum(parts) for part in parts)
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"--split {text!r}; expected three shares like 80/10/10, or none, or a field") from error
    return {TRAIN: train, "validation": validation, "test": test}


# Sources


def _opened(source, images, columns):
    """`_open_source`. Raises: DataError for what can't be read, or if the pictures' folder is not there."""
    try:
        detected, rows, root = _open_source(source, images, columns)
    except OSError as error:
        raise _unreadable(error) from error
    if not root.is_dir():
        raise DataError("no folder", "the one that picture paths start from", "name it with images=", where=root)
    return detected, rows, root


def _open_source(source, images, columns):
    """(what was detected, iterator of (where, row or DataError, perhaps its part), folder that paths start from).

    The parts are those of a split that the source has itself.
    """
    if not isinstance(source, (str, os.PathLike)):
        return *dataset_rows(source, **_only(columns, _COLUMNS, "a dataset")), images or Path.cwd()
    path = Path(source)
    if not path.exists():
        expected = "a table, a .jsonl, a .json list or a folder"
        raise DataError("does not exist", expected, "check the path", where=path)
    tool, read, files = find_tool(path)
    home, suffix = images or home_of(path, tool), path.suffix.lower()
    if tool:
        _only(columns, {"ask", "question", "answer"}, tool)
        more = f" in {len(files):,} files" if len(files) > 1 else ""
        return f"labels of {tool}{more}", labelled_rows(read_labelled(path, read, files), home, **columns), home
    if path.is_dir():
        return *folder_rows(path, **_only(columns, {"question"}, "a folder")), home
    if suffix in TABLE_SUFFIXES:
        return *table_rows(path, **_only(columns, _COLUMNS, "a table")), home
    if suffix in (".jsonl", ".ndjson"):
        return *_rows_of_json("JSON lines", numbered_rows(path), columns), home
    if suffix == ".json":
        return *_rows_of_json("JSON list", _json_rows(path), columns), home
    expected = ".jsonl, .json, .csv, .tsv, .xlsx or a folder"
    raise DataError(f"suffix {path.suffix!r}", expected, "save it as one of these", where=path)


def _in_parts(rows, field):
    """The rows with the part that a field of theirs names: "train", "val", …; others are DataErrors."""
    for where, row, *_ in rows:
        name = row.get(field) if isinstance(row, Mapping) else None
        part = PART_OF.get(str(name).strip().casefold())
        if not part and not isinstance(row, Exception):
            row = DataError(f"`{field}` is {name!r:.60}", "train, validation or test", "correct it", where=where)
        yield where, row, part


def _only(columns, allowed, what):
    for name in columns.keys() - allowed:
        where = "labels of things" if name == "ask" else "a table"
        raise DataError(f"{name}={columns[name]!r} beside {what}; expected it with {where} only; leave it out")
    return columns


def _rows_of_json(said, rows, columns):
    """(what was detected, rows): those of a table where the first has no turns."""
    rows, ahead = tee(rows)
    first = next((row for _, row in ahead if isinstance(row, dict)), {})
    if first.keys() & {"conversations", "messages"}:
        _only(columns, set(), "JSON rows")
        return said, rows
    return f"a table of {said}", rows_of_cells(rows, **_only(columns, _COLUMNS, "rows"))


def _json_rows(path):
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        found = f"broken JSON ({error})"
        raise DataError(
            found, "a list of rows", "mend it; if each line is a row, name it .jsonl", where=path
        ) from error
    if not isinstance(rows, list) or not rows:
        found = f"a {type(rows).__name__} of {len(rows) if isinstance(rows, (list, dict)) else 1}"
        lists = [key for key, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        todo = f"write the list in {lists[0]!r} alone" if len(lists) == 1 else "a meta file is opened as it is"
        raise DataError(found, "a list of rows", todo, where=path)
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}: row {number}"
        yield where, row if isinstance(row, dict) else DataError(f"{where}: a {type(row).__name__}; expected an object")


# Writing


@contextmanager
def _writing(to, name, source):
    """Files are written with `.part` behind their names and take their places together, when all is well."""
    note = conversion_note(to)
    earlier = to / note["path"] if source and note.get("source") == name and note.get("path") else None
    if earlier and earlier.exists() and not earlier.samefile(source):  # train/labels.csv and test/labels.csv
        raise DataError(f"holds the rows of {os.path.relpath(earlier)}", "a new folder", "name another", where=to)
    if to.exists() and not (to.is_dir() and (note.get("source") == name or not any(to.iterdir()))):
        expected = f"a new folder or one of an earlier conversion of {name}"
        raise DataError("holds other files", expected, "name another", where=to)
    is_new, here = not to.exists(), to.absolute()
    try:
        to.mkdir(parents=True, exist_ok=True)
        try:
            yield to
            _put_in_place(to)
        except BaseException:
            for path in list(to.glob(f"*{PART}")):
                path.unlink(missing_ok=True)
            if is_new:
                shutil.rmtree(to)
            raise
    except OSError as error:
        named = Path(error.filename or to).absolute()  # a full disk names no file
        if not named.is_relative_to(here) and not here.is_relative_to(named):  # nor a folder above
            raise _unreadable(error) from error
        raise DataError(f"{to}: can't be written ({error.strerror}); name another folder with to=") from error


def _unreadable(error):
    found, todo = f"can't be read ({error.strerror})", "change its permissions, or leave it out"
    return DataError(found, "one that can be", todo, where=error.filename)


def _put_in_place(folder):
    new = [path.with_suffix("") for path in folder.glob(f"*{PART}")]
    names = [f"{name}.{suffix}" for name in conversion_note(folder).get("rows", {}) for suffix in ("json", "jsonl")]
    for path in (folder / name for name in (REJECTS, *names)):
        if path not in new:
            path.unlink(missing_ok=True)
    for path in new:
        if path.exists() and filecmp.cmp(path, f"{path}{PART}", shallow=False):
            os.remove(f"{path}{PART}")  # a run may be reading it, an index may know its time
        else:
            os.replace(f"{path}{PART}", path)


def conversion_note(folder):
    """What the conversion that wrote a folder says of itself; {} if none did."""
    try:
        note = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


class _SortedOut:
    """What became of the rows: the accepted ones, and the rejected."""

    def __init__(self):
        self.keys, self.places, self.formats = RowKeys(), [], Counter()  # of the accepted ones: "labels.csv:17"
        self.parts = []  # theirs, None for no split of the source's own
        self.named = set()  # parts in a field `split`, which only says something if it was asked for
        self.rejected, self.first_rejects = 0, []


def listed_text(first, total):
    """The first rejects, a line each, and how many more there are."""
    more = f"\n  … and {total - len(first)} more" if total > len(first) else ""
    return "".join(f"\n  {reject}" for reject in first) + more


def _sort_out(rows, folder, taker, *, format, group):
    """Write accepted rows, pictures as absolute paths, to accepted.part, and the others to rejects.jsonl.part."""
    found = _SortedOut()
    rejects = folder / f"{REJECTS}{PART}"
    with open(folder / f"accepted{PART}", "wb") as accepted, open(rejects, "wb") as rejected:
        for where, row, *part in rows:
            try:
                accepted.write(_json_line(_accept(row, where, taker, found, format=format, group=group)))
                found.places.append(where)
                found.parts.append(part[0] if part else None)
                found.named |= {PART_OF.get(str(row.get("split")).strip().casefold())} - {None}
            except DataError as error:
                found.rejected += 1
                found.first_rejects += [str(error)] if len(found.first_rejects) < LISTED else []
                kept = {} if isinstance(row, Exception) else {"row": row}
                rejected.write(_json_line({"where": where, "error": str(error)} | kept))
    if not found.rejected:
        rejects.unlink()
    return found


def _accept(row, where, taker, found, *, format, group):
    """The released row with absolute paths, read once as training will read it; `found` takes its keys and format."""
    if isinstance(row, Exception):
        raise row
    name = format or detect_format(row)
    taken = taker.take(first_raised(release(row, format=name), where), where)
    record = first_raised(read_released(taken, where, Path(taker.root.anchor)), where)
    if record.video:
        taker.check_video(record.video, where)
    found.keys.add(record, taker.digest_of, group=group)
    found.formats[name] += 1
    own = {"row_source": taken["source"]} if "source" in taken else {}
    return taken | own | {"source": where}


def _json_line(row):
    text = json.dumps(row, ensure_ascii=False, default=lambda value: f"<{type(value).__name__}>")
    return text.encode(errors="backslashreplace") + b"\n"  # half a surrogate pair: JSON can say it, UTF-8 can't


def _write_splits(folder, splits, counts, base, entry):
    """A JSONL of each split, meta.json with all of them, and a meta file of its own for each but the training rows.

    In meta.json the training rows' entry comes first and has no `split`; train, or else the largest, is trained on.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.jsonl{PART}", "wb")) for name in counts}
        accepted = stack.enter_context(open(folder / f"accepted{PART}", "rb"))
        for line, split in zip(accepted, splits, strict=True):
            files[split].write(_json_line(_relative(json.loads(line), base)))
    (folder / f"accepted{PART}").unlink()
    entries = {}
    for name, length in counts.items():
        own = {"root": str(base), "annotation": str((folder / f"{name}.jsonl").resolve())}
        entries[name] = own | {"data_augment": False, "repeat_time": 1, "length": length}
    trained = TRAIN if TRAIN in counts else max(counts, key=counts.get)
    others = {name: fields for name, fields in entries.items() if name != trained}
    named = {f"{entry}, {name}": fields | {"split": name} for name, fields in others.items()}
    metas = {META: {entry: entries[trained]} | named} | {f"{name}.json": {entry: one} for name, one in others.items()}
    for name, meta in metas.items():
        text = json.dumps(meta, indent=1, ensure_ascii=False)
        (folder / f"{name}{PART}").write_text(text + "\n", encoding="utf-8")


def _relative(row, base):
    for key in filter(row.get, ("image", "video")):
        paths = row[key] if isinstance(row[key], list) else [row[key]]
        names = [Path(os.path.relpath(path, base)).as_posix() for path in paths]
        row[key] = names if isinstance(row[key], list) else names[0]
    return row
