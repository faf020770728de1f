"""A meta JSON or a JSONL → one indexed data set; rows are read when asked for, so a large file costs 8 bytes a line.

A meta file names data sets: `{"name": {"root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time",
"length"}}`. Paths in it start from the working directory, as in the guide, or else from the meta file's own folder.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from .convert import openable
from .records import parse_line

META_FIELDS = {"root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time", "length"}


@dataclass(frozen=True)
class Source:
    """One entry of a meta file."""

    name: str
    annotation: Path  # the JSONL
    root: Path  # folder of its pictures
    augment_jpeg: bool = False  # `data_augment`: re-encode every tile as JPEG, quality 75–100
    max_tiles: int | None = None  # `max_dynamic_patch`: tile budget of this set
    repeat: float = 1.0  # `repeat_time`: 0.3 draws 30 % of the rows, 2.5 takes all twice and half of them again
    length: int | None = None  # declared rows, checked against the file


class LineIndex:
    """Byte offsets of the non-blank lines of a file; reads one line at a time."""

    def __init__(self, path):
        self.path = Path(path)
        offsets, numbers, position = [], [], 0
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        offsets.append(position)
                        numbers.append(number)
                    position += len(line)
        except OSError as error:
            raise DataError(
                f"{self.path}: can't be read ({error.strerror}); expected a JSONL file; check the path"
            ) from error
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.numbers = np.asarray(numbers, dtype=np.int64)
        if not offsets:
            raise DataError(f"{self.path}: no rows; expected one JSON object a line; was the file written completely?")

    def __len__(self):
        return len(self.offsets)

    def line(self, row):
        """(bytes of the row's line, "file:line")."""
        with open(self.path, "rb") as file:
            file.seek(self.offsets[row])
            return file.readline(), f"{self.path.name}:{self.numbers[row]}"


class Data:
    """An indexed data set of one or more sources. `data[i]` is a `Record`; the order is the files'."""

    def __init__(self, sources, *, path, seed=0):
        self.path, self.seed, self.sources = Path(path), seed, tuple(sources)
        self._indexes = [LineIndex(source.annotation) for source in self.sources]
        for source, index in zip(self.sources, self._indexes, strict=True):
            _check_length(source, index)
        drawn = [
            _draw_rows(len(index), source.repeat, seed=f"{seed}:{source.name}")
            for source, index in zip(self.sources, self._indexes, strict=True)
        ]
        self._source_of = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
        self._row_of = np.concatenate(drawn)

    def __len__(self):
        return len(self._row_of)

    def __getitem__(self, number):
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        source = self.sources[self._source_of[number]]
        line, where = self._indexes[self._source_of[number]].line(self._row_of[number])
        record = parse_line(line, where, source.root)
        return replace(record, max_tiles=source.max_tiles, augment_jpeg=source.augment_jpeg)

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    @property
    def fingerprint(self):
        """SHA-256 over the files' bytes and what is drawn from them: the same data gives the same string."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(repr((source.name, source.augment_jpeg, source.max_tiles, source.repeat)).encode())
            digest.update(source.annotation.read_bytes())
        digest.update(self._row_of.tobytes())
        return digest.hexdigest()

    def __repr__(self):
        names = ", ".join(f"{source.name} × {source.repeat:g}" for source in self.sources)
        return f"Data({self.path}: {len(self):,} rows; {names})"

    def _repr_html_(self):
        from ..show.dataset import gallery_html

        return gallery_html(self)

    def show(self, rows=8):
        """The first rows with their pictures, as an HTML display object of the notebook."""
        from IPython.display import HTML

        from ..show.dataset import gallery_html

        return HTML(gallery_html(self, rows=rows))


def open_data(path, *, root=None, seed=0):
    """Open a meta JSON or a JSONL, or what `convert` can make one of: a table, a JSON list, a folder with classes.

    Args:
        path: `*.json` is a meta file or a list of rows, `*.jsonl` one data set.
        root: folder of the pictures of a JSONL; defaults to the JSONL's own folder.
        seed: for `repeat_time` fractions.
    Raises: DataError with the entry, what was found, what was expected.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a meta .json or a .jsonl; check the path")
    path, root = openable(path, root)
    if path.suffix == ".json":
        if root is not None:
            raise DataError(f"{path}: a meta file has its own `root`s; leave out root={root!r}")
        return Data(_read_meta(path), path=path, seed=seed)
    return Data([Source(path.stem, path, Path(root) if root else path.parent)], path=path, seed=seed)


def _read_meta(path):
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); expected a meta file") from error
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path}: expected an object of data sets, {{name: {{root, annotation, …}}}}")
    return [_read_source(name, entry, path) for name, entry in entries.items()]


def _unique(pairs):
    """JSON keeps the last of two equal keys: the first data set would be lost without a word."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{name!r} twice; expected every name once; rename or remove one")
    return dict(pairs)


def _read_source(name, entry, meta_path):
    where = f"{meta_path}: {name!r}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is a {type(entry).__name__}; expected an object with `root` and `annotation`")
    unknown = sorted(set(entry) - META_FIELDS)
    if unknown:
        raise DataError(f"{where} has the unknown field {unknown[0]!r}; expected only {', '.join(sorted(META_FIELDS))}")
    for key in ("root", "annotation"):
        if not isinstance(entry.get(key), str):
            raise DataError(f"{where} has no `{key}`; expected a path")
    return Source(
        name=name,
        annotation=_resolve(entry["annotation"], meta_path),
        root=_resolve(entry["root"], meta_path),
        augment_jpeg=_typed(entry, "data_augment", (bool,), False, where),
        max_tiles=_positive(_typed(entry, "max_dynamic_patch", (int,), None, where), "max_dynamic_patch", where),
        repeat=_positive(_typed(entry, "repeat_time", (int, float), 1, where), "repeat_time", where),
        length=_typed(entry, "length", (int,), None, where),
    )


def _typed(entry, key, kinds, default, where):
    value = entry.get(key, default)
    if value is default:
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where}: `{key}` is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _positive(value, key, where):
    if value is not None and not 0 < value < float("inf"):
        raise DataError(f"{where}: `{key}` is {value!r}; expected more than 0")
    return value


def _resolve(name, meta_path):
    path = Path(name)
    return path if path.is_absolute() or path.exists() else meta_path.parent / path


def _check_length(source, index):
    if source.length is not None and source.length != len(index):
        raise DataError(
            f"{source.annotation}: {len(index)} rows but the meta file declares `length` {source.length}; "
            "is the file complete? Correct one of them"
        )


def _draw_rows(num_rows, repeat, *, seed):
    """All rows ⌊repeat⌋ times, then a seeded draw of the rest, in file order: 10 rows × 2.5 → 25 numbers."""
    whole, part = divmod(repeat, 1)
    count = round(part * num_rows)
    if not whole and not count:
        raise DataError(f"repeat_time {repeat} of {num_rows} rows leaves none; raise it or remove the entry")
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(seed.encode()).digest(), np.uint32))
    drawn = np.sort(rng.choice(num_rows, size=count, replace=False))
    return np.concatenate([np.arange(num_rows)] * int(whole) + [drawn]).astype(np.int64)
