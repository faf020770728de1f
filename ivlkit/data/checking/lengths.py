"""One look at the rows before training: which can't be used, and how many tokens and tiles the others have."""

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import numpy as np

from ...errors import DataError
from ..encode import encode_text, picture_sizes, shrunk_text
from ..processor import light_processor
from .examine import BAD, Task
from .findings import as_problem, make_problem
from .known import ERRORS, kind_of, load_known
from .pictures import look_at, video_faults
from .processes import examine_all

LISTED = 10  # problems that are kept


@dataclass
class Measured:
    """What a look at the rows in use found. Of each source: its `KnownRows`, and which of its rows were looked at."""

    asked: tuple  # digest of the processor, max_length, draw
    known: list
    rows: list  # int64 [rows in use], in order
    problems: list  # the first `LISTED` things that make a row unusable, a `Problem` each
    more: int  # others
    broken: int  # rows that can't be used

    def refusal(self, name):
        """The DataError of data of this name; None if every row can be used."""
        errors = [problem.message for problem in self.problems]
        return _refusal(name, errors, self.more, self.broken, sum(map(len, self.rows))) if errors else None

    def notes(self, data):
        """What is said of rows that get fewer tiles or frames: [("train.jsonl:2", "13 → 7 tiles to fit …"), …]."""
        found = []
        for known, rows, index in zip(self.known, self.rows, data.indexes, strict=True):
            _, tiles, full = known.lengths[:, rows]
            for row in rows[tiles < full].tolist():
                _, fewer, all_of_them = known.lengths[:, row].tolist()
                note = shrunk_text(all_of_them, fewer, self.asked[1], video=known.is_video[row])
                found.append((index.where(row), note))
        return found


def measure(data, processor, *, max_length=None, draw=(0, 0), workers=None, progress=False):
    """Look at every row in use once, at its pictures' headers only: `Measured`.

    What was found is kept beside the files (`known`) and used again for rows that are unchanged, for the same model and
    max_length. Videos are looked at each time.

    Args: draw: (seed, epoch) that decides how many frames a video gives; progress: whether a bar shows it, from two
        seconds on.
    """
    kinds = [kind_of(source, processor, max_length) for source in data.sources]
    files = list(zip(data.sources, data.indexes, kinds, strict=True))
    known = [load_known(*file) for file in files]
    rows = [
        np.arange(len(index)) if used is None else np.asarray(used)
        for used, index in zip(data.rows_in_use(), data.indexes, strict=True)
    ]
    unknown = [used[one.lengths[0, used] == 0] for used, one in zip(rows, known, strict=True)]
    problems, found_in_all, broken = [], 0, 0
    for block in _look(data, processor, unknown, max_length, draw, workers=workers, progress=progress):
        known[block.source].add(block)
        broken += int((block.state == BAD).sum())
        found_in_all += sum(count for code, count in block.counts.items() if code in ERRORS)
        for row, code, found, expected, todo in block.problems[: LISTED - len(problems)]:
            line, where = data.indexes[block.source].line(row)
            said = {"expected": expected, "todo": todo, "origin": data.sources[block.source].origin(line)}
            problems.append(make_problem(code, where, found, **said))
    for one, file in zip(known, files, strict=True):
        one.store(*file)
    asked, more = (processor.fingerprint, max_length, draw), found_in_all - len(problems)
    return Measured(asked, known, rows, problems, more, broken)


def _refusal(name, errors, more, broken, rows):
    shown = "".join(f"\n  {error}" for error in errors) + (f"\n  … and {more} more" if more else "")
    return DataError(f"{name}: {broken} of {rows} rows can't be used; mend or remove them:{shown}")


def check_records(records, processor, *, name, named):
    """Look at rows that were read, as `measure` does at those of a file, without a limit of tokens.

    Args: name: of the data, for the message; named: function of a row's number that gives its file and line.
    Raises: DataError that names the first rows that can't be used.
    """
    look = lru_cache(maxsize=100_000)(partial(look_at, pictures="header", processor=processor))
    broken, said = 0, []
    for number, record in enumerate(records):
        faults = _faults(record, processor, look)
        broken += bool(faults)
        said += [as_problem(fault.at(named(number))).message for fault in faults]
    if broken:
        raise _refusal(name, said[:LISTED], len(said[LISTED:]), broken, len(records))


def _faults(record, processor, look):
    """What makes a row unusable: its files, or else its text."""
    files = [os.fspath(image) for image in record.images if isinstance(image, (str, os.PathLike))]
    looked = video_faults(record.video, "header", processor) if record.video else [look(file).fault for file in files]
    if any(looked):
        return [fault for fault in looked if fault]
    try:
        encode_text(record, processor, sizes=picture_sizes(record, processor, draw=None))
    except DataError as fault:
        return [fault]
    return []


def _look(data, processor, rows, max_length, draw, **options):
    """Yield the blocks of an examination of these rows of each source: what can't be used is described, no more."""
    if any(map(len, rows)):
        task = Task(data.sources, light_processor(processor), max_length, draw=draw, limit=None, wanted=ERRORS)
        yield from examine_all(task, rows, **options)


def row_lengths(data, processor, *, max_length=None, workers=None):
    """(tokens, tiles) of every row of `Data` as it is trained, int64 each; 0 tokens for a row that can't be used.

    From the pictures' headers only; videos at draw (0, 0).
    """
    lengths, _ = _spread(data, measure(data, processor, max_length=max_length, workers=workers).known)
    return lengths[0], lengths[1]


checked = WeakKeyDictionary()  # Data → what a run's check measured, until its plan takes it: nothing is looked at twice


def epoch_lengths(data, processor, *, seed, epochs, max_length=None, workers=None):
    """`row_lengths` in the epochs of a run: a video gives another number of frames in each.

    Returns: (tokens, tiles), int64 [rows] each; [epochs, rows] where there are videos, whose headers are read again for
        every epoch.
    """
    measured, asked = checked.pop(data, None), (processor.fingerprint, max_length, (seed, 0))
    if measured is None or measured.asked != asked:
        options = {"max_length": max_length, "draw": (seed, 0), "workers": workers, "progress": True}
        measured = measure(data, processor, **options)
    lengths, is_video = _spread(data, measured.known)
    if not is_video.any():
        return lengths[0], lengths[1]
    drawn = np.repeat(lengths[:2, None], epochs, axis=1)  # [2, epochs, rows]
    videos = [rows[known.is_video[rows]] for rows, known in zip(measured.rows, measured.known, strict=True)]
    for epoch in range(1, epochs):
        for block in _look(data, processor, videos, max_length, (seed, epoch), workers=workers):
            measured.known[block.source].add(block)
        drawn[:, epoch] = _spread(data, measured.known)[0][:2]
    return drawn[0], drawn[1]


def _spread(data, known):
    """(int64 [3, rows], bool [rows]) of `KnownRows` of each source, for every row of `Data`."""
    sources, rows = data.places()
    lengths, is_video = np.empty((3, len(data)), np.int64), np.empty(len(data), bool)
    for number, one in enumerate(known):
        own = sources == number
        lengths[:, own], is_video[own] = one.lengths[:, rows[own]], one.is_video[rows[own]]
    return lengths, is_video
