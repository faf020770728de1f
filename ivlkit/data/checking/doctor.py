"""Checks a data set before a GPU is paid for: every row is usable or listed, with file, line and what to do.

Rows are examined in blocks by several processes (`examine`); what concerns rows together (repeats, pictures on both
sides of a split, answers that are all equal) is found here, from 8-byte hashes. Memory: about 80 bytes a row.

Sizes of pictures come from their files' headers. Only with pictures="exist" do the declared `width` and `height` count
where a row has them; "header" and "decode" compare them with the file.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import sys
import time
import types
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import DataError
from ...views import shown
from ..datasets.index import CACHE_FOLDER, STORED_FROM_BYTES, LineIndex, load_array, store_array
from ..datasets.mixture import Data, Source, check_repeat, read_entries, read_source
from ..datasets.opening import openable
from ..groups import file_digest
from ..importing.convert import MARKER
from ..rows.records import parse_row
from .examine import BAD, GOOD, MEDIA_SUFFIXES, PICTURE, PICTURES, Examiner, Task, hash_text, light_processor
from .findings import ERROR, INFO, KINDS, LEVELS, Findings, Problem, make_problem

BLOCK_ROWS = 2048
_VIDEO = 1 << 31  # in a stored length
BLOCK_BYTES = 8 << 20
ROWS_PER_PROCESS = 20_000  # fewer rows are done before another process has started
FILES_LOOKED_AT = 200_000  # of a root, when looking for unused ones
SAME_ANSWERS_FROM = 10  # rows; fewer equal answers may be chance


@dataclass
class DataReport:
    """What `check` found. `print(report)` for a summary, `report.problems[0]` for one line."""

    path: str
    problems: list[Problem]  # the first `limit` of each kind, errors first
    counts: dict  # kind → exact number
    stats: dict
    samples: list = field(default_factory=list, repr=False)  # (Problem, Record) of rows with pictures, for the page

    @property
    def ok(self):
        """Whether a run would start: there is no error."""
        return not self.count(ERROR)

    def count(self, level):
        """Problems of a level, also those that are not listed."""
        return sum(number for code, number in self.counts.items() if KINDS[code].level == level)

    def by_code(self, code):
        """The listed problems of one kind."""
        return [problem for problem in self.problems if problem.code == code]

    def to_dict(self):
        """All of it as plain values."""
        return {
            "path": self.path,
            "ok": self.ok,
            "levels": {level: self.count(level) for level in LEVELS},
            "counts": self.counts,
            "stats": self.stats,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def save_json(self, path):
        """Write it for a program; returns the path."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=True), encoding="utf-8")
        return Path(path)

    def save_html(self, path):
        """Write one self-contained page with figures and sample pictures; returns the path."""
        Path(path).write_text(self._page(), encoding="utf-8")
        return Path(path)

    def contact_sheet(self, data, *, rows=24):
        """The first rows of the checked `Data` as pictures beside what was found about each, for a notebook."""
        from IPython.display import HTML

        return HTML(self._sheet(data, rows=rows))

    _repr_html_ = shown("doctor:report_html")
    _page = shown("doctor:report_page")
    _sheet = shown("doctor:contact_sheet_html")

    def __str__(self):
        levels = ", ".join(f"{self.count(level):,} {_plural(level, self.count(level))}" for level in LEVELS)
        head = f"{self.path}: {self.stats['rows']:,} rows, {self.stats['good']:,} usable; {levels}"
        lines = [f"  {problem}" for problem in self.problems[:20]]
        more = sum(self.counts.values()) - len(lines)
        return "\n".join([head, *lines, *([f"  … and {more:,} more"] if more else [])])

    __repr__ = __str__


def _plural(level, number):
    return level if number == 1 or level == INFO else f"{level}s"


def diagnose(
    data,
    processor=None,
    *,
    root=None,
    max_length=4096,
    pictures="header",
    workers=None,
    limit=100,
    problems_to=None,
    progress=False,
):
    """Check a path or `Data`; `ivlkit.check` is this with a model's name.

    Args:
        data: a meta JSON (entries of every split), a JSONL, what `open_data` converts, or `Data` (only its rows).
        processor: of a model, for exact lengths; None checks everything else.
        max_length: tokens a row may have; the guide's `max_seq_length`.
        pictures: "exist" looks whether files are there, "header" reads their sizes, "decode" every pixel.
        workers: processes; default one a core for large data.
        limit: problems of a kind that are listed; the others are counted.
        problems_to: a JSON-lines file for all of them.
    Returns: `DataReport`. Raises: DataError only if there is nothing to check.
    """
    if pictures not in PICTURES:
        raise DataError(f"pictures={pictures!r}; expected one of {', '.join(PICTURES)}")
    began = time.monotonic()
    with open(problems_to, "w", encoding="utf-8") if problems_to else contextlib.nullcontext() as file:
        findings = Findings(limit=limit, file=file)
        sources, rows = _open(data, root, findings)
        described = limit if problems_to is None else None
        task = Task(tuple(sources), light_processor(processor), max_length, pictures=pictures, limit=described)
        overview = _overlook(task, rows, findings, workers=workers, progress=progress)
    if processor is not None and overview.is_whole:
        overview.store_lengths(processor)
    path = data.path if isinstance(data, Data) else data
    stats = overview.stats() | {"seconds": round(time.monotonic() - began, 2)}
    return DataReport(str(path), findings.problems, dict(findings.counts), stats, overview.samples(findings.problems))


def _overlook(task, rows, findings, **options):
    overview = _Overview(task, rows, findings)
    for block in examine_all(task, rows, **options):
        overview.add(block)
    overview.compare_rows()
    return overview


# what is to be checked -----------------------------------------------------------------------------------------------


def _open(data, root, findings):
    """([Source, …] that can be read, [rows to examine or None, …]); the others become problems."""
    if isinstance(data, Data):
        return list(data.sources), data.rows_in_use()
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: does not exist; expected a meta .json or a .jsonl; check the path")
    path, root = openable(path, root)
    if path.suffix != ".json":
        named = [Source(path.stem, path, Path(root) if root else path.parent)]
    elif root is not None:
        raise DataError(f"{path}: a meta file has its own `root`s; leave out root={root!r}")
    else:
        named = _read_meta(path, findings)
    sources = [source for source in named if _can_be_read(source, findings)]
    return sources, [None] * len(sources)


def readable_sources(data, root=None):
    """The sources of a path or `Data` that can be read."""
    return _open(data, root, Findings(limit=0))[0]


def _read_meta(path, findings):
    try:
        entries = read_entries(path)
    except DataError as error:
        findings.add(make_problem("meta", str(path), str(error).removeprefix(f"{path}: ").split("; ")[0]))
        return []
    sources = []
    for name, entry in entries.items():
        try:
            sources.append(read_source(name, entry, path))
        except DataError as error:
            found, _, rest = str(error).removeprefix(f"{path}: ").partition("; expected ")
            expected, _, todo = rest.partition("; ")
            findings.add(
                make_problem("meta", str(path), found, expected=expected or None, todo=todo or None, source=name)
            )
    return sources


def _can_be_read(source, findings):
    where = str(source.annotation)
    if not os.path.exists(source.annotation):
        todo = f"get it: {source.about}" if source.about else None
        findings.add(make_problem("missing_file", where, "no such file", todo=todo, source=source.name))
        return False
    try:
        index = LineIndex(source.annotation)
    except DataError as error:
        code = "no_rows" if "no rows" in str(error) else "missing_file"
        findings.add(
            make_problem(code, where, str(error).removeprefix(f"{where}: ").split("; ")[0], source=source.name)
        )
        return False
    if source.length is not None and source.length != len(index):
        found = f"{len(index):,} rows, `length` says {source.length:,}"
        findings.add(make_problem("declared_length", where, found, source=source.name))
    try:
        check_repeat(source, len(index))
    except DataError as error:
        found, expected, todo = str(error).removeprefix(f"{where}: ").split("; ")
        findings.add(make_problem("meta", where, found, expected=expected, todo=todo, source=source.name))
    if not os.path.isdir(source.root):
        findings.add(make_problem("missing_root", str(source.root), "no such folder", source=source.name))
    return True


# processes -----------------------------------------------------------------------------------------------------------


def examine_all(task, rows, *, workers=None, progress=False):
    """Yield the `Block`s of all sources in the order of the files.

    Args: rows: for each source the rows to examine, int64 in order, or None for all.
    """
    indexes = [LineIndex(source.annotation) for source in task.sources]
    jobs = [job for number, index in enumerate(indexes) for job in _jobs(number, index, rows[number])]
    total = sum(len(index) if wanted is None else len(wanted) for index, wanted in zip(indexes, rows, strict=True))
    workers = workers or max(1, min(_cores(), total // ROWS_PER_PROCESS))
    blocks = _in_processes(task, jobs, workers) if workers > 1 else _here(task, jobs)
    with tqdm(total=total, desc="checking rows", unit="row", disable=not progress) as bar:
        for block in blocks:
            bar.update(len(block.rows))
            yield block


def _jobs(number, index, wanted):
    """(source, start, stop, rows or None) in pieces of at most 2,048 rows and about 8 MB."""
    start, total = 0, len(index)
    while start < total:
        by_size = int(np.searchsorted(index.offsets, index.offsets[start] + BLOCK_BYTES, side="right")) - 1
        stop = min(start + BLOCK_ROWS, max(by_size, start + 1), total)
        chosen = None
        if wanted is not None:
            first, last = np.searchsorted(wanted, [start, stop])
            chosen = np.asarray(wanted[first:last])
        if chosen is None or len(chosen):
            yield number, start, stop, chosen
        start = stop


def _cores():
    """Cores of this process's share of the machine: ranks of one host divide them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _here(task, jobs):
    examiner = Examiner(task)
    for source, start, stop, rows in jobs:
        yield examiner.block(source, start, stop, rows=rows)


_examiner = None  # of a process of the pool


def _start_process(task):
    global _examiner
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _examiner = Examiner(task)
    give_back_memory()


def give_back_memory():
    """Building a tokenizer leaves 60 to 120 MB that glibc keeps for later; there is no later."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _examine(source, start, stop, rows):
    return _examiner.block(source, start, stop, rows=rows)


def _in_processes(task, jobs, workers):
    """Fresh processes: a copy of this one would also copy what its threads and its GPU hold."""
    give_back_memory()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_process, initargs=(task,))
    with pool:
        waiting, jobs = deque(), iter(jobs)
        try:
            with _no_main_module():
                for _, job in zip(range(3 * workers), jobs, strict=False):
                    waiting.append(pool.submit(_examine, *job))
            while waiting:
                yield waiting.popleft().result()
                job = next(jobs, None)
                if job is not None:
                    waiting.append(pool.submit(_examine, *job))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _no_main_module():
    """A new process would import the user's script again, and with it everything that the script does."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


# lengths -------------------------------------------------------------------------------------------------------------


def row_lengths(data, processor, *, max_length=None, workers=None):
    """(tokens, tiles) of every row of `Data` as it is trained, int64 each; 0 tokens for a row that can't be used.

    From the pictures' headers only; videos at draw (0, 0). Kept beside the files and used again for the same file,
    model and max_length; they don't notice a picture that was replaced by one of another size.
    """
    both, _, _ = _stored_lengths(data, processor, max_length, workers)
    return both >> 32, both & (_VIDEO - 1)


def epoch_lengths(data, processor, *, seed, epochs, max_length=None, workers=None):
    """`row_lengths` in the epochs of a run: a video gives another number of frames in each.

    Returns: (tokens, tiles), int64 [rows] each; [epochs, rows] where there are videos, whose headers are read again for
        every epoch.
    """
    both, sources, rows = _stored_lengths(data, processor, max_length, workers)
    lengths, is_video = np.stack([both >> 32, both & (_VIDEO - 1)]), (both & _VIDEO) > 0
    if not is_video.any():
        return lengths[0], lengths[1]
    wanted = [np.unique(rows[is_video & (sources == number)]) for number in range(len(data.sources))]
    drawn = np.repeat(lengths[:, None], epochs, axis=1)  # [2, epochs, rows]
    for epoch in range(epochs):
        task = Task(data.sources, light_processor(processor), max_length, draw=(seed, epoch), wanted=frozenset())
        for block in examine_all(task, wanted, workers=workers):
            places = np.flatnonzero(is_video & (sources == block.source))
            places = places[np.isin(rows[places], block.rows)]
            drawn[:, epoch, places] = block.final[:, np.searchsorted(block.rows, rows[places])]
    return drawn[0], drawn[1]


def _stored_lengths(data, processor, max_length, workers):
    """(tokens, tiles and whether it is a video in one int64, source, row of the source) of every row."""
    stored = [_load_lengths(source, processor, max_length) for source in data.sources]
    missing = [number for number, lengths in enumerate(stored) if lengths is None]
    if missing:
        task = Task(tuple(data.sources[n] for n in missing), light_processor(processor), max_length, wanted=frozenset())
        final = [np.zeros((2, len(data.indexes[number])), np.int64) for number in missing]
        for block in examine_all(task, [None] * len(missing), workers=workers):
            final[block.source][:, block.rows] = block.final
            final[block.source][1, block.videos] |= _VIDEO
        for number, lengths in zip(missing, final, strict=True):
            stored[number] = _store_lengths(data.sources[number], data.indexes[number], lengths, processor, max_length)
    sources, rows = data.places()
    both = np.empty(len(data), np.int64)
    for number, lengths in enumerate(stored):
        both[sources == number] = lengths[rows[sources == number]]
    return both, sources, rows


def _lengths_kind(source, processor, max_length):
    said = (
        processor.fingerprint,
        max_length,
        source.max_tiles,
        source.system,
        source.format,
        str(source.root.resolve()),
    )
    return f"lengths2-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}"


def _load_lengths(source, processor, max_length):
    stored = load_array(source.annotation, _lengths_kind(source, processor, max_length))
    return None if stored is None else stored[3:]


def _store_lengths(source, index, final, processor, max_length):
    """Tokens and tiles share 8 bytes: tokens · 2³² + tiles, whose highest bit marks a video."""
    tokens, tiles = final.astype(np.int64)
    found = source.annotation.stat()
    parts = [np.array([1, found.st_size, found.st_mtime_ns], np.int64), tokens << 32 | tiles]
    if found.st_size < STORED_FROM_BYTES:
        return parts[1]
    return store_array(source.annotation, _lengths_kind(source, processor, max_length), parts)[3:]


# all rows together ---------------------------------------------------------------------------------------------------


class _Overview:
    """What is kept of every row, and what follows from rows together."""

    def __init__(self, task, rows, findings):
        self.task, self.findings = task, findings
        self.is_whole = all(wanted is None for wanted in rows)
        self.indexes = [LineIndex(source.annotation) for source in task.sources]
        self.labels = _labels([source.annotation for source in task.sources])
        counts = [len(index) for index in self.indexes]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = int(self.starts[-1])
        self.state = np.zeros(total, np.uint8)
        self.row_hash, self.id_hash, self.answer_hash, self.asked_hash = np.zeros((4, total), np.uint64)
        self.supervised, self.final = np.zeros(total, np.int32), np.zeros((2, total), np.int32)
        self._pictures = []

    def add(self, block):
        """Take over a block; its problems join the findings."""
        rows = block.rows + self.starts[block.source]
        self.state[rows] = block.state
        self.row_hash[rows], self.id_hash[rows] = block.row_hash, block.id_hash
        self.answer_hash[rows], self.asked_hash[rows] = block.answer_hash, block.asked_hash
        self.supervised[rows], self.final[:, rows] = block.lengths[2], block.final
        pictures = block.pictures
        pictures["row"] += self.starts[block.source]
        self._pictures.append(pictures)
        left = Counter(block.counts)
        for row, code, found, expected, todo in block.problems:
            left[code] -= 1
            self._say(code, row + self.starts[block.source], found, expected=expected, todo=todo)
        for code, number in left.items():
            self.findings.count(code, number)

    def _say(self, code, row, found, *, expected=None, todo=None):
        if not self.findings.wants(code):
            return self.findings.count(code, 1)
        source, own = self._place(row)
        name, origin = self.task.sources[source].name, self._origin(row)
        found = f"{origin}: {found}" if origin else found
        return self.findings.add(
            make_problem(code, self._where(row), found, expected=expected, todo=todo, source=name, row=own)
        )

    def _origin(self, row):
        """Where a converted row came from, "labels.csv:40"; "" for rows that nobody converted."""
        source, own = self._place(row)
        annotation = self.task.sources[source].annotation
        if not (annotation.parent / MARKER).exists():
            return ""
        with contextlib.suppress(DataError):  # a line that was damaged since
            return str(parse_row(*self.indexes[source].line(own)).get("source", ""))
        return ""

    def _place(self, row):
        source = int(np.searchsorted(self.starts, row, side="right")) - 1
        return source, int(row - self.starts[source])

    def _where(self, row):
        source, own = self._place(row)
        return f"{self.labels[source]}:{self.indexes[source].number(own)}"

    def _named(self, row):
        return self._origin(row) or self._where(row)

    def record(self, row):
        """The record of a good row."""
        source, own = self._place(row)
        return self.task.sources[source].read(*self.indexes[source].line(own))

    def compare_rows(self):
        """Everything that no row shows alone."""
        self.pictures = np.concatenate([np.empty(0, PICTURE), *self._pictures])
        self._pictures.clear()
        splits = np.array(sorted({source.split for source in self.task.sources}))
        own = [int(np.searchsorted(splits, source.split)) for source in self.task.sources]
        self.split_of = np.array(own, np.int8) if own else np.empty(0, np.int8)
        self._compare_texts()
        self._compare_asked()
        self._compare_ids()
        self._compare_answers()
        self._compare_pictures()
        if self.is_whole:
            self._find_unused()

    def _splits(self, rows):
        return self.split_of[np.searchsorted(self.starts, rows, side="right") - 1]

    def _compare_texts(self):
        good = np.flatnonzero(self.state == GOOD)
        for rows in _equal_groups(self.row_hash[good]):
            first, *others = good[rows].tolist()
            splits = self._splits(good[rows])
            for row, split in zip(others, splits[1:].tolist(), strict=True):
                if split != splits[0]:
                    self._say("leak", row, f"the row {self._where(first)} of split {self._split_name(first)} again")
                    self.state[row] = BAD
                else:
                    self._say("duplicate_row", row, f"the same as {self._named(first)}")

    def _compare_asked(self):
        good = np.flatnonzero(self.state == GOOD)
        for rows in _equal_groups(self.asked_hash[good]):
            first, *others = good[rows].tolist()
            for row in others:
                if self.answer_hash[row] != self.answer_hash[first]:
                    self._say("contradiction", row, f"another answer than {self._named(first)} gives to the same")

    def _split_name(self, row):
        return repr(self.task.sources[self._place(row)[0]].split)

    def _compare_ids(self):
        for source in range(len(self.indexes)):
            start, stop = self.starts[source], self.starts[source + 1]
            rows = start + np.flatnonzero(self.id_hash[start:stop])
            for group in _equal_groups(self.id_hash[rows]):
                first, *others = rows[group].tolist()
                for row in others:
                    self._say("duplicate_id", row, f"the id of {self._where(first)}")

    def _compare_answers(self):
        for source, index in enumerate(self.indexes):
            own = slice(self.starts[source], self.starts[source + 1])
            answers = self.answer_hash[own][self.state[own] == GOOD]
            if len(answers) >= SAME_ANSWERS_FROM and (answers == answers[0]).all():
                row = int(self.starts[source]) + int(np.flatnonzero(self.state[own] == GOOD)[0])
                found = f"all {len(answers):,} rows have the answer {self.record(row).answer[:60]!r}"
                name = self.task.sources[source].name
                self.findings.add(make_problem("constant_answers", str(index.path), found, source=name))

    def _compare_pictures(self):
        """Equal content under several names; and on several sides of a split."""
        hashes, first, name_of = np.unique(self.pictures["hash"], return_index=True, return_inverse=True)
        self.distinct = first
        contents = self._contents(first)
        for number in np.flatnonzero(contents != np.arange(len(contents))):
            original, copy = self.pictures[first[contents[number]]], self.pictures[first[number]]
            found = f"{self._name(copy)} has the content of {self._name(original)} in {self._named(original['row'])}"
            self._say("duplicate_picture", int(copy["row"]), found)
        if len(set(self.split_of.tolist())) > 1:
            self._find_leaks(contents[name_of], len(hashes))

    def _find_leaks(self, content, count):
        splits = self._splits(self.pictures["row"]).astype(np.int64)
        seen = np.zeros(count, np.int64)
        np.bitwise_or.at(seen, content, 1 << splits)
        leaking = np.flatnonzero((seen[content] & (seen[content] - 1)) != 0)
        first = {}
        for place in leaking.tolist():
            row = int(self.pictures["row"][place])
            other = first.setdefault(int(content[place]), row)
            if splits[place] != self._splits(np.array([other]))[0]:
                name = self._name(self.pictures[place])
                self._say("leak", row, f"{name} is also in {self._where(other)} of split {self._split_name(other)}")
                self.state[row] = BAD

    def _contents(self, first):
        """The first picture of equal content, for each; only files of equal sizes are read."""
        pictures = self.pictures[first]
        contents = np.arange(len(first))
        usable = np.flatnonzero(pictures["size"] > 0)
        sizes = np.stack([pictures[key][usable].astype(np.int64) for key in ("size", "width", "height")], axis=1)
        _, group, count = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
        candidates = usable[count[group.ravel()] > 1]
        candidates = candidates[np.argsort(pictures["row"][candidates], kind="stable")]
        seen = {}
        for number in candidates.tolist():
            with contextlib.suppress(OSError, DataError):  # said already, where its row was examined
                contents[number] = seen.setdefault(file_digest(self._name(pictures[number])), number)
        return contents

    def _name(self, picture):
        return str(self.record(int(picture["row"])).images[int(picture["place"])])

    def _find_unused(self):
        for root in sorted({source.root.resolve() for source in self.task.sources if os.path.isdir(source.root)}):
            roots = {source.root for source in self.task.sources if source.root.resolve() == root}
            named = next(iter(sorted(roots)))
            found = _media_below(named)
            if not found or not len(self.pictures):
                continue
            own = np.array([hash_text(os.path.normpath(name)) for name in found], np.uint64)
            unused = [found[place] for place in np.flatnonzero(~np.isin(own, self.pictures["hash"]))]
            if unused:
                shown = ", ".join(os.path.relpath(name, named) for name in unused[:5])
                more = ", …" if len(unused) > 5 else ""
                said = f"{len(unused):,} pictures that no row names: {shown}{more}"
                self.findings.add(make_problem("unused_files", str(named), said))

    def store_lengths(self, processor):
        """Keep the lengths beside the files, for whoever plans batches."""
        for number, source in enumerate(self.task.sources):
            own = slice(self.starts[number], self.starts[number + 1])
            _store_lengths(source, self.indexes[number], self.final[:, own], processor, self.task.max_length)

    # numbers ---------------------------------------------------------------------------------------------------------

    def stats(self):
        """Counts and histograms of the usable rows."""
        good = self.state == GOOD
        stats = {
            "rows": int((self.state > 0).sum()),
            "good": int(good.sum()),
            "bad": int((self.state == BAD).sum()),
            "pictures": len(self.pictures),
            "distinct_pictures": len(self.distinct),
            "sources": self._source_stats(),
            "answers": self._top_answers(good),
            "aspect_ratios": _histogram(self._aspect_ratios(), edges=_ASPECT_EDGES),
        }
        if self.task.processor is not None:
            tokens, tiles = self.final[:, good]
            stats["tokens"] = _summary(tokens) | {"supervised": int(self.supervised[good].sum(dtype=np.int64))}
            stats["tokens"]["histogram"] = _histogram(tokens, edges=_round_edges(tokens))
            stats["tiles"] = _summary(tiles) | {"histogram": np.bincount(tiles[tiles <= 100]).tolist()}
            stats["max_length"] = self.task.max_length
        return stats

    def _source_stats(self):
        stats = {}
        for number, source in enumerate(self.task.sources):
            state = self.state[self.starts[number] : self.starts[number + 1]]
            counts = {"rows": int((state > 0).sum()), "good": int((state == GOOD).sum())}
            stats[source.name] = {"split": source.split, "file": str(source.annotation), **counts}
        return stats

    def _top_answers(self, good, limit=20):
        """[[text, rows], …] of the most frequent answers."""
        rows = np.flatnonzero(good)
        _, first, counts = np.unique(self.answer_hash[rows], return_index=True, return_counts=True)
        top = np.argsort(-counts, kind="stable")[:limit]
        answers = [[self.record(int(rows[first[one]])).answer[:200], int(counts[one])] for one in top]
        return {"distinct": len(counts), "top": answers}

    def _aspect_ratios(self):
        known = self.pictures[self.distinct]
        known = known[known["height"] > 0]
        return known["width"] / known["height"]

    def samples(self, problems, limit=24):
        """(problem, record) of the first rows with pictures that have a finding."""
        samples, seen = [], set()
        number_of = {source.name: number for number, source in enumerate(self.task.sources)}
        for problem in problems:
            if problem.row is None or len(samples) >= limit or (problem.source, problem.row) in seen:
                continue
            seen.add((problem.source, problem.row))
            with contextlib.suppress(DataError):  # a row that can't be read has no picture to show
                record = self.record(int(self.starts[number_of[problem.source]]) + problem.row)
                if record.images:
                    samples.append((problem, record))
        return samples


def _labels(paths):
    """What a row's place begins with: the file's name, with folders where several files have one name."""
    labels = [path.name for path in paths]
    for depth in (2, 3, 4):
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [
            "/".join(path.parts[-depth:]) if label in twice else label
            for label, path in zip(labels, paths, strict=True)
        ]
    return labels


def _equal_groups(hashes):
    """Yield the places of each hash that occurs more than once, in order of first occurrence."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, len(hashes)))
    several = counts > 1
    groups = [order[start : start + count] for start, count in zip(starts[several], counts[several], strict=True)]
    yield from sorted(groups, key=lambda group: group[0])


def _media_below(root):
    """Paths of pictures below a folder; none if there are too many to look at."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != CACHE_FOLDER)
        found += [os.path.join(folder, name) for name in sorted(files) if Path(name).suffix.lower() in MEDIA_SUFFIXES]
        if len(found) > FILES_LOOKED_AT:
            return []
    return found


_ASPECT_EDGES = [0, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 1e9]


def _round_edges(values, bins=20):
    """Edges of about 20 equal bins, on whole numbers."""
    top = int(values.max()) if len(values) else 1
    width = max(1, -(-top // bins))
    return list(range(0, top + width + 1, width))


def _histogram(values, *, edges):
    counts, _ = np.histogram(values, bins=edges)
    return {"edges": list(edges), "counts": counts.tolist()}


def _summary(values):
    if not len(values):
        return {"total": 0, "min": 0, "median": 0, "p95": 0, "max": 0}
    low, median, high = np.percentile(values, [0, 50, 95], method="nearest").tolist()
    return {
        "total": int(values.sum(dtype=np.int64)),
        "min": int(low),
        "median": int(median),
        "p95": int(high),
        "max": int(values.max()),
    }
