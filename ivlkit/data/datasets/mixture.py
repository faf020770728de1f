"""A meta JSON or a JSONL → one indexed data set; rows are read when asked for, so a large file costs 8 bytes a line.

A meta file names data sets: `{"name": {"root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time",
"length"}}`, and beyond the released fields `format`, `split`, `weight`, `system`, `max_tiles` and `about`. Paths in it
start from the working directory, as in the guide, or else from the meta file's own folder.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import warnings
from collections import Counter, namedtuple
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...views import shown
from ..groups import row_keys
from ..importing.convert import MARKER, META, SHARES, TRAIN, conversion_note
from ..rows.formats import FORMATS
from ..rows.records import Turn, in_its_form, parse_line, parse_row
from ..splits import default_file, place_rows, splits_beside
from ..tiling import MOST_TILES
from .index import LineIndex

ALL = "all"  # the split that every entry belongs to
MOST_REPEATS = 1_000_000  # more is a slip of the hand, and too many rows to count


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
    format: str | None = None  # its reader's name in FORMATS; None: detected, row by row
    split: str = TRAIN  # the part of the data it belongs to
    weight: float | None = None  # share of the epoch among the sets that have one; sets `repeat`
    system: str | None = None  # system prompt of its rows
    about: str = ""  # where it comes from

    def origin(self, line):
        """Where `convert` took a row from, "labels.csv:40"; "" for one that it did not write or that can't be read."""
        if (self.annotation.parent / MARKER).exists():
            with contextlib.suppress(DataError):
                return str(parse_row(line, "").get("source", ""))
        return ""

    def read(self, line, where):
        """One line of the file → `Record`, with what the entry says about it."""
        return self.complete(parse_line(line, where, self.root, format=self.format))

    def complete(self, record):
        """A record of this set with what the entry says about its rows."""
        if self.system is None and self.max_tiles is None and not self.augment_jpeg:
            return record
        turns = record.turns
        if self.system is not None and turns[0].role != "system":
            turns = (Turn("system", self.system), *turns)
        return replace(record, turns=turns, max_tiles=self.max_tiles, augment_jpeg=self.augment_jpeg)


class Data:
    """An indexed data set of one or more sources. `data[i]` is a `Record`; the order is the files'.

    A row costs 8 bytes, shared by all processes; a drawn or selected one 8 more.
    """

    def __init__(self, sources, *, path, seed=0, part=TRAIN, selection=None):
        self.path, self.seed, self.part = Path(path), seed, part
        self._cut = ()  # the parts that it was cut out of, the outermost first
        _check_files(sources)
        self.indexes = [LineIndex(source.annotation) for source in sources]
        counts = [len(index) for index in self.indexes]
        for source, count in zip(sources, counts, strict=True):
            if source.length not in (None, count):
                found = f"{count} rows but the meta file declares `length` {source.length}"
                raise DataError(found, None, "is the file complete? Correct one of them", where=source.annotation)
        self.sources, self._drawn = _weigh(sources, counts), []
        for source, count in zip(self.sources, counts, strict=True):
            check_repeat(source, count)
            self._drawn.append(_draw_fraction(count, source.repeat, seed=f"{seed}:{source.name}"))
        self._ends = np.cumsum([whole * n + len(drawn) for n, (whole, drawn) in zip(counts, self._drawn, strict=True)])
        self.selection = selection  # int64 numbers of the rows that are left, None for all

    def __len__(self):
        return int(self._ends[-1]) if self.selection is None else len(self.selection)

    def place(self, number):
        """(source, row of its file) of a row; numbers count repeated rows each time."""
        if not isinstance(number, (int, np.integer)):
            todo = "rows of your own choice: data.select(numbers)"
            if isinstance(number, slice):
                todo = f"write data.select(range({', '.join(map(str, number.indices(len(self))))}))"
            elif isinstance(number, str):
                todo = f"a part of a meta file: open_data({str(self.path)!r}, split={number!r}); {todo}"
            raise DataError(f"data[{number!r}]", "a row's number", todo, where=self.path)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number = int(number) % len(self)
        number = number if self.selection is None else int(self.selection[number])
        source = int(np.searchsorted(self._ends, number, side="right"))
        number -= int(self._ends[source - 1]) if source else 0
        whole, drawn = self._drawn[source]
        rows = len(self.indexes[source])
        return source, number % rows if number < whole * rows else int(drawn[number - whole * rows])

    def where(self, number):
        """File and line of a row, which may be broken: "train.jsonl:17"."""
        source, row = self.place(number)
        return self.indexes[source].where(row)

    def __getitem__(self, number):
        source, row = self.place(number)
        return self.sources[source].read(*self.indexes[source].line(row))

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    def places(self):
        """(source, row of its file) of every row: two int64 arrays."""
        numbers = np.arange(len(self)) if self.selection is None else np.asarray(self.selection)
        sources = np.searchsorted(self._ends, numbers, side="right")
        rows = numbers - np.concatenate([[0], self._ends])[sources]
        for source, (index, (whole, drawn)) in enumerate(zip(self.indexes, self._drawn, strict=True)):
            is_drawn = (sources == source) & (rows >= whole * len(index))
            rows[is_drawn] = drawn[rows[is_drawn] - whole * len(index)]
            rows[(sources == source) & ~is_drawn] %= len(index)
        return sources, rows

    def rows_in_use(self):
        """The rows of each source that are used at all, once each and in order: an int64 array, or None for all."""
        if self.selection is None:
            return [None if whole else drawn for whole, drawn in self._drawn]
        sources, rows = self.places()
        return [np.unique(rows[sources == source]) for source in range(len(self.sources))]

    def select(self, numbers):
        """The same data with only these rows, in this order: `data.select([0, 5])` has two."""
        numbers, said = np.asarray(numbers), None
        if not numbers.ndim:
            said = f"select({numbers.item()!r})", "a list of row numbers", "write data.select(range(8)) for the first 8"
        elif not len(numbers):
            said = "a selection of no rows", "one row at least"
        elif numbers.dtype.kind not in "iu":  # a mask of bool would give rows 0 and 1 again and again
            said = f"a selection of {numbers.dtype}", "row numbers", "use np.flatnonzero"
        elif numbers.min() < 0 or numbers.max() >= len(self):
            said = f"rows {numbers.min()} to {numbers.max()} selected of {len(self)}", f"0 to {len(self) - 1}"
        if said:
            raise DataError(*said, where=self.path)
        return self._selected(numbers)

    def _selected(self, numbers, *cut):
        kept = numbers if self.selection is None else np.asarray(self.selection)[numbers]
        chosen = Data(self.sources, path=self.path, seed=self.seed, part=self.part, selection=kept)
        chosen._cut = (*self._cut, *cut)
        return chosen

    def split(self, *unnamed, seed=0, group=None, alike=None, file=None, **parts):
        """Cut into parts by picture: `train, validation, test = data.split(train=0.8, validation=0.1, test=0.1)`.

        The first split is kept beside the data, in `labels.csv.split.csv`; later ones move nothing: new pictures fill
        the parts up to their shares, and corrected answers and removed rows change no other row's part. `ivlkit
        convert` uses the same file.

        Rows that share a picture, by its content and also through other rows, stay together, and so do rows without
        pictures that ask the same. Parts are therefore only about as large as asked; the seed decides which rows go
        where. What was found, and what could not be as asked, is said by a `UserWarning`.

        Args:
            group: a field of the rows ("patient", "document"); all rows with one value of it go to one part.
            alike: "together" keeps pictures that look alike (burst shots, augmented copies) in one part, "apart" does
                not look. Default: "together" for up to 10,000 pictures, because each one is decoded; a million photos
                of 12 megapixels take 6 hours of one core, of 1 megapixel half an hour, and comparing them 36 s.
            file: where the split is kept, for a second one of the same data or a folder that can't be written.
        Returns: a named tuple of `Data`, in the order of the arguments; without any, train, validation and test.
        Raises: DataError if the shares don't sum to 1, a picture is missing, a row has no value in `group`, a part gets
        no row, or the kept split has other parts.
        """
        if unnamed:
            todo = "write data.split(train=0.8, validation=0.1, test=0.1)"
            raise DataError(f"split{unnamed}", "names", todo, where=self.path)
        parts = parts or SHARES
        shares = [share if isinstance(share, Real) else math.nan for share in parts.values()]
        if not abs(sum(shares) - 1) < 1e-6 or min(shares) <= 0:
            todo = "write data.split(train=0.8, test=0.2), and seed=, group=, alike=, file= beside them"
            raise DataError(f"shares {parts}", "numbers above 0 that sum to 1", todo)
        kept_in = Path(file) if file else self._split_file()
        how = {"seed": seed, "group": group, "alike": alike, "others": () if file else splits_beside(kept_in)}
        placement = place_rows(row_keys(self, group=group), parts, file=kept_in, where=self.where, **how)
        part_of = placement.part_of
        for number, name in enumerate(parts):
            if why := placement.missing(number):
                got = f"{len(set(part_of.tolist()))} of {len(parts)} parts get rows"
                raise DataError(f"no row for {name!r} ({got})", None, why, where=self.path)
        for said in placement.keep():
            warnings.warn(said, stacklevel=2)
        cut = (self._selected(np.flatnonzero(part_of == number), name) for number, name in enumerate(parts))
        return namedtuple("Split", parts, rename=True)(*cut)

    def _split_file(self):
        """Where the split is kept: beside the data, or beside the table or folder that it was converted from."""
        note = conversion_note(self.path.parent)
        own = self.part if self.path.name == META else self.path.stem
        inner = [own] if len(note.get("rows", ())) > 1 and own != ALL else []
        source = self.path.parent / note["path"] if note.get("path") else self.path
        return default_file(source, *inner, *self._cut)

    @property
    def fingerprint(self):
        """SHA-256 over the files' bytes and what is drawn from them: the same data gives the same string.

        A folder that moves with its pictures keeps it. The bytes were hashed when the file was indexed, so that a large
        file is read once.
        """
        digest = hashlib.sha256()
        for source, index, (whole, drawn) in zip(self.sources, self.indexes, self._drawn, strict=True):
            root = os.path.relpath(source.root.resolve(), source.annotation.resolve().parent)
            said = (source.name, source.augment_jpeg, source.max_tiles, source.repeat, source.format, source.system)
            digest.update(repr((*said, root, index.sha256, whole)).encode())
            digest.update(drawn.tobytes())
        if self.selection is not None:
            digest.update(np.ascontiguousarray(self.selection, np.int64).data)
        return digest.hexdigest()

    def __repr__(self):
        names = ", ".join(f"{source.name} × {source.repeat:g}" for source in self.sources)
        rows = f"{len(self):,} rows" if self.selection is None else f"{len(self):,} of {int(self._ends[-1]):,} rows"
        return f"Data({self.path}: {rows}; {names})"

    _repr_html_ = shown("dataset:gallery_html")

    @shown("dataset:gallery_live")
    def show(self, rows=8, *, start=0, report=None):
        """Rows with their pictures, boxes drawn, under a picker of the first row.

        Args: report: a `DataReport` of this data; its histograms and what it found stand with the rows it is about.
        """

    @shown("tokens:tokens_live")
    def show_tokens(self, processor, *, row=0, max_length=None):
        """The microscope: a row's tiles and every token, coloured by what training does with it, with a row picker.

        Args: processor: of the model (`vlm.processor`, `ivlkit.load_processor`); max_length: as in `ivlkit.encode`.
        """


def _up_to(most):
    return (lambda value: 0 < value <= most), f"more than 0 and at most {most:,}"


_ANY = (lambda value: True), ""
_VALUES = {  # field of an entry → (field of `Source`, types, whether a value is one, what is expected)
    "data_augment": ("augment_jpeg", (bool,), *_ANY),
    "max_dynamic_patch": ("max_tiles", (int,), *_up_to(MOST_TILES)),
    "max_tiles": ("max_tiles", (int,), *_up_to(MOST_TILES)),
    "repeat_time": ("repeat", (int, float), *_up_to(MOST_REPEATS)),
    "length": ("length", (int,), *_ANY),
    "format": ("format", (str,), FORMATS.__contains__, f"one of {', '.join(FORMATS)}"),
    "split": ("split", (str,), lambda name: name.strip() and name != ALL, "a name such as train, validation or test"),
    "weight": ("weight", (int, float), lambda value: 0 < value <= sys.float_info.max, "more than 0"),
    "system": ("system", (str,), *_ANY),
    "about": ("about", (str,), *_ANY),
}


def read_meta(path):
    """`[Source, …]` of a meta file; DataError names the entry at fault."""
    sources = [read_source(name, entry, path) for name, entry in read_entries(path).items()]
    check_weights(sources, path)
    return sources


def check_weights(sources, path):
    """Raise DataError for the only `weight` of a split: it has nothing to share the epoch with."""
    weighted = [source for source in sources if source.weight is not None]
    for source in weighted:
        if [other.split for other in weighted].count(source.split) == 1:
            found = f"{source.name!r}: `weight` of a single set of {source.split} changes nothing"
            raise _fault(path, found, "two sets with one at least", "to draw or repeat its rows use `repeat_time`")


def read_entries(path):
    """`{name: entry as written}` of a meta file."""

    def unique(pairs):
        """JSON keeps the last of two equal keys: the first data set would be lost without a word."""
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise _fault(path, f"{twice[0]!r} twice", "every name once", "rename or remove one")
        return dict(pairs)

    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"broken JSON ({error})", "a meta file") from error
    if not isinstance(entries, dict) or not entries:
        raise _fault(path, "expected an object of data sets, {name: {root, annotation, …}}")
    return entries


def _fault(path, found, expected=None, todo=None):
    return DataError(found, expected, todo, where=path, code="meta")


def read_source(name, entry, meta_path):
    """One entry of a meta file, checked."""
    if not isinstance(entry, dict):
        said = f"{name!r} is a {type(entry).__name__}", "an object with `root` and `annotation`"
        raise _fault(meta_path, *said)
    known = {"root", "annotation", *_VALUES}
    if unknown := sorted(entry.keys() - known):
        raise _fault(meta_path, f"{name!r} has the unknown field {unknown[0]!r}", f"only {', '.join(sorted(known))}")
    for key in ("root", "annotation"):
        if not isinstance(entry.get(key), str):
            raise _fault(meta_path, f"{name!r} has no `{key}`", "a path")
    for one, other in (("max_tiles", "max_dynamic_patch"), ("weight", "repeat_time")):
        if one in entry and other in entry:
            raise _fault(meta_path, f"{name!r} has both `{one}` and `{other}`", "one of them", "remove the other")
    named, folder = [Path(entry[key]) for key in ("annotation", "root")], Path(meta_path).parent
    paths = [in_its_form(path if path.is_absolute() or os.path.exists(path) else folder / path) for path in named]
    values = {"repeat": 1}
    for key in filter(entry.__contains__, _VALUES):
        field, kinds, holds, expected = _VALUES[key]
        value = entry[key]
        if value is getattr(Source, field):
            continue
        is_kind = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not is_kind or not holds(value):
            expected = expected if is_kind else " or ".join(kind.__name__ for kind in kinds)
            raise _fault(meta_path, f"{name!r}: `{key}` is {value!r:.40}", expected)
        values[field] = value
    return Source(name, *paths, **values)


def _check_files(sources):
    """All missing files at once, each with where it comes from."""
    missing = [
        f"{source.annotation}: can't be read (No such file or directory); expected a JSONL file; check the path"
        f"{' or get it: ' + source.about if source.about else ''}"
        for source in sources
        if not os.path.exists(source.annotation)
    ]
    if missing:
        head = f"{len(missing)} of {len(sources)} data sets are missing:\n  " if len(missing) > 1 else ""
        raise DataError(head + "\n  ".join(missing))


def check_repeat(source, num_rows):
    """Raise DataError if the entry takes no row of its file at all."""
    if round(source.repeat * num_rows) < 1:
        found = f"repeat_time {source.repeat} of {num_rows} rows leaves none"
        raise _fault(source.annotation, found, "one row at least", "raise it or remove the entry")


def _weigh(sources, counts):
    """`weight` → `repeat`, such that the weighted sets together keep their rows and share them as they weigh.

    1,000 and 100 rows that both weigh 1 become 550 each: repeat 0.55 and 5.5.
    """
    weighted = [(source, count) for source, count in zip(sources, counts, strict=True) if source.weight is not None]
    rows, total = sum(count for _, count in weighted), sum(source.weight for source, _ in weighted)
    return tuple(
        source if source.weight is None else replace(source, repeat=source.weight / total * rows / count)
        for source, count in zip(sources, counts, strict=True)
    )


def _draw_fraction(num_rows, repeat, *, seed):
    """(times that all rows are taken, seeded draw of the rest in file order): 10 rows × 2.5 → (2, 5 numbers)."""
    whole, part = divmod(repeat, 1)
    count = round(part * num_rows)
    if not count:
        return int(whole), np.empty(0, np.int64)
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(seed.encode()).digest(), np.uint32))
    return int(whole), np.sort(rng.choice(num_rows, size=count, replace=False)).astype(np.int64)
