"""Whatever holds rows → the released JSONL and its meta file, in a folder of its own.

Pictures stay where they are and are named by path. Written are only those that no path names: data URIs, pages of a
PDF, objects in memory, fetched ones. Every row of the source is either in one of the JSONL files or in rejects.jsonl,
with the reason.
"""

import filecmp
import json
import os
import shutil
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ..files import PART
from ..groups import group_keys, part_of_groups, text_key
from ..rows.formats import as_released, detect_format
from ..rows.records import parse_row, read_released
from ..rows.video import read_header
from .gather import PictureTaker
from .tables import TABLE_SUFFIXES, dataset_rows, folder_rows, table_rows

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
MARKER = "conversion.json"  # says that a folder was written by us and may be written again
REJECTS = "rejects.jsonl"
TAKEN = {Path(MARKER).stem, Path(REJECTS).stem, "meta"}  # a split of such a name would be written over one of our files
ALL = {"rows": 1.0}
LISTED = 10  # rejects that a message quotes


@dataclass(frozen=True)
class Conversion:
    """What was written: `folder`/meta.json for the training rows, and one meta file for each other split."""

    folder: Path
    source: str
    detected: str  # how the source was read
    rows: dict  # split → rows written
    rejected: int
    first_rejects: tuple[str, ...] = ()

    @property
    def meta(self):
        """The meta file of the training rows."""
        return self.folder / "meta.json"

    def __repr__(self):
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        listed = f", {self.rejected:,} rejected (see {self.folder / REJECTS})" if self.rejected else ""
        return f"Conversion({self.source} as {self.detected} → {self.folder}: {rows}{listed})"


def convert(source, to, *, images=None, format=None, shares=SHARES, seed=0, fetch=None, **columns):
    """Write a source as the released JSONL and meta files into the folder `to`.

    The split is by what is in the pictures: rows that share one, byte for byte, go to the same side, and so do rows
    that are joined by others, and equal rows without pictures. The same rows and seed give the same files. A row's
    field `source` names its file and line; one that it had is `row_source`.

    Args:
        source: .jsonl, .json (a list), .csv, .tsv, .xlsx, a folder with a sub-folder a class, or a dataset object.
        to: a new folder, or one that this function wrote.
        images: folder that picture paths start from; default the source's own.
        format: format of JSON rows, a name of `formats.FORMATS`; default: detected, row by row.
        shares: {split: share}; {"rows": 1} for one file, rows.jsonl.
        fetch: function of an address that gives a picture's bytes (`fetch_url`); without it such rows are rejected.
        columns: image, video, question, answer, suffix of a table, as in `from_csv`.
    Returns: `Conversion`, e.g. of 97 rows: {"train": 78, "validation": 10, "test": 9}, 3 rejected.
    Raises: DataError if the source can't be read, no row is left, or `to` holds other files.
    """
    _check_shares(shares)
    detected, rows, home = _open_source(source, format, columns)
    root = Path(images) if images is not None else home
    if not root.is_dir():
        raise DataError(f"{root}: no folder; expected the one that picture paths start from; name it with images=")
    name = Path(source).name if isinstance(source, (str, os.PathLike)) else "dataset"
    with _writing(Path(to), name) as folder:
        taker = PictureTaker(root, folder, fetch=fetch)
        sorted_out = _sort_out(rows, folder, taker, format)
        if not sorted_out.keys:
            raise DataError(f"{name}: none of {sorted_out.rejected} rows can be used:{sorted_out.listed}")
        if isinstance(source, (str, os.PathLike)) and detected.startswith("JSON"):
            detected += _formats_text(sorted_out.formats)
        names = sorted(shares, key=shares.get, reverse=True)
        parts = part_of_groups(group_keys(sorted_out.keys), [shares[name] for name in names], seed=seed)
        splits = [names[part] for part in parts]
        written = _write_splits(folder, splits, names, taker.base, f"{name} ({detected})")
        note = {"source": name, "detected": detected, "rows": written, "rejected": sorted_out.rejected, "seed": seed}
        (folder / f"{MARKER}{PART}").write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
    return Conversion(Path(to), name, detected, written, sorted_out.rejected, tuple(sorted_out.first_rejects))


def _check_shares(shares):
    if not all(share >= 0 for share in shares.values()) or not abs(sum(shares.values()) - 1) < 1e-6:
        raise DataError(f"shares {shares}; expected numbers that sum to 1")
    for name in shares:
        if not name or Path(name).name != name or name in TAKEN:
            raise DataError(f"a split named {name!r}; expected a file's name, none of {', '.join(sorted(TAKEN))}")


# Sources


def _open_source(source, format, columns):
    """(what was detected, iterator of (where, row or DataError), folder that relative paths start from)."""
    columns = {name: value for name, value in columns.items() if value is not None}
    if not isinstance(source, (str, os.PathLike)):
        return *dataset_rows(source, **columns), Path.cwd()
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a table, a .jsonl, a .json list or a folder; check the path")
    if path.is_dir():
        return *folder_rows(path, **_only(columns, {"question"}, "a folder")), path
    if path.suffix.lower() in TABLE_SUFFIXES:
        return *table_rows(path, **columns), path.parent
    _only(columns, set(), "JSON rows")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return "JSON lines", _jsonl_rows(path), path.parent
    if path.suffix.lower() == ".json":
        return "JSON list", _json_rows(path), path.parent
    raise DataError(f"{path}: suffix {path.suffix!r}; expected .jsonl, .json, .csv, .tsv, .xlsx or a folder; rename it")


def _only(columns, allowed, what):
    for name in columns:
        if name not in allowed:
            raise DataError(f"{name}={columns[name]!r} beside {what}; expected it with a table only; leave it out")
    return columns


def _jsonl_rows(path):
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    yield where, parse_row(line, where)
                except DataError as error:
                    yield where, error


def _json_rows(path):
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({error}); expected a list of rows") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: a {type(rows).__name__} of {len(rows) if isinstance(rows, (list, dict)) else 1}; "
            "expected a list of rows; a meta file is opened as it is"
        )
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}: row {number}"
        yield where, row if isinstance(row, dict) else DataError(f"{where}: a {type(row).__name__}; expected an object")


def _formats_text(formats):
    if not formats:
        return ""
    if len(formats) == 1:
        return f" of {next(iter(formats))} rows"
    return " of " + ", ".join(f"{count} {name}" for name, count in formats.most_common()) + " rows"


# Writing


@contextmanager
def _writing(to, name):
    """Files are written with `.part` behind their names and take their places together, when all is well."""
    if to.exists() and not (to.is_dir() and (_earlier(to).get("source") == name or not any(to.iterdir()))):
        raise DataError(
            f"{to}: holds other files; expected a new folder or one of an earlier conversion of {name}; name another"
        )
    is_new = not to.exists()
    try:
        to.mkdir(parents=True, exist_ok=True)
        try:
            yield to
            _put_in_place(to)
        except BaseException:
            shutil.rmtree(to) if is_new else _remove(to.glob(f"*{PART}"))
            raise
    except OSError as error:
        raise DataError(f"{to}: can't be written ({error.strerror}); name another folder with to=") from error


def _put_in_place(folder):
    new = [path.with_suffix("") for path in folder.glob(f"*{PART}")]
    names = [f"{name}.{suffix}" for name in _earlier(folder).get("rows", {}) for suffix in ("json", "jsonl")]
    _remove(folder / name for name in (REJECTS, *names) if folder / name not in new)
    for path in new:
        if path.exists() and filecmp.cmp(path, f"{path}{PART}", shallow=False):
            os.remove(f"{path}{PART}")  # a run may be reading it, an index may know its time
        else:
            os.replace(f"{path}{PART}", path)


def _earlier(folder):
    """What an earlier conversion said of itself; {} if there was none."""
    try:
        note = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _remove(paths):
    for path in list(paths):
        path.unlink(missing_ok=True)


@dataclass
class _SortedOut:
    """What became of the rows: keys of the accepted ones, and the rejected."""

    keys: list = field(default_factory=list)  # of each accepted row, the hashes of its pictures, or of its text
    formats: Counter = field(default_factory=Counter)
    rejected: int = 0
    first_rejects: list = field(default_factory=list)

    @property
    def listed(self):
        """The first rejects, a line each, behind a colon."""
        return listed_text(self.first_rejects, self.rejected)


def listed_text(first, total):
    """The first rejects, a line each, and how many more there are."""
    more = f"\n  … and {total - len(first)} more" if total > len(first) else ""
    return "".join(f"\n  {reject}" for reject in first) + more


def _sort_out(rows, folder, taker, format):
    """Write accepted rows, pictures as absolute paths, to accepted.part, and the others to rejects.jsonl.part."""
    found = _SortedOut()
    rejects = folder / f"{REJECTS}{PART}"
    with open(folder / f"accepted{PART}", "wb") as accepted, open(rejects, "wb") as rejected:
        for where, row in rows:
            try:
                taken, keys = _accept(row, where, taker, format, found.formats)
                accepted.write(_json_line(taken))
                found.keys.append(keys)
            except DataError as error:
                found.rejected += 1
                found.first_rejects += [str(error)] if len(found.first_rejects) < LISTED else []
                kept = {} if isinstance(row, Exception) else {"row": row}
                rejected.write(_json_line({"where": where, "error": str(error)} | kept))
    if not found.rejected:
        rejects.unlink()
    return found


def _accept(row, where, taker, format, formats):
    """(released row with absolute paths, keys of its pictures or text), read once as training will read it."""
    if isinstance(row, Exception):
        raise row
    name = format or detect_format(row)
    taken, keys = taker.take(as_released(row, where, format=name), where)
    record = read_released(taken, where, taker.anchor)
    if record.video and record.video.clip:
        read_header(record.video, where)
    formats[name] += 1
    own = {"row_source": taken["source"]} if "source" in taken else {}
    return taken | own | {"source": where}, keys or (text_key(record.turns),)


def _json_line(row):
    text = json.dumps(row, ensure_ascii=False, default=lambda value: f"<{type(value).__name__}>")
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can say and UTF-8 can't
        return json.dumps(row, default=lambda value: f"<{type(value).__name__}>").encode() + b"\n"


def _write_splits(folder, splits, names, base, entry):
    """One JSONL and one meta file a split; the first one's is meta.json. Returns {split: rows}, without empty ones."""
    counts = Counter(splits)
    with ExitStack() as stack:
        paths = {name: folder / f"{name}.jsonl{PART}" for name in names if counts[name]}
        files = {name: stack.enter_context(open(path, "wb")) for name, path in paths.items()}
        accepted = stack.enter_context(open(folder / f"accepted{PART}", "rb"))
        for line, split in zip(accepted, splits, strict=True):
            files[split].write(_json_line(_relative(json.loads(line), base)))
    (folder / f"accepted{PART}").unlink()
    for number, name in enumerate(names):
        if counts[name]:
            _write_meta(folder, "meta" if number == 0 else name, name, base, counts[name], entry)
    return {name: counts[name] for name in names if counts[name]}


def _write_meta(folder, meta, split, base, length, entry):
    place = (folder / f"{split}.jsonl").resolve()
    fields = {"root": str(base), "annotation": str(place), "data_augment": False, "repeat_time": 1, "length": length}
    text = json.dumps({entry: fields}, indent=1, ensure_ascii=False)
    (folder / f"{meta}.json{PART}").write_text(text + "\n", encoding="utf-8")


def _relative(row, base):
    for key in ("image", "video"):
        value = row.get(key)
        if isinstance(value, list):
            row[key] = [Path(os.path.relpath(name, base)).as_posix() for name in value]
        elif value:
            row[key] = Path(os.path.relpath(value, base)).as_posix()
    return row
