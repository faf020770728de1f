"""One look at the rows before training: which can't be used, and how many tokens and tiles the others have."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from ...errors import DataError
from ..encode import shrunk_text
from ..importing.convert import LISTED, listed_text
from ..processor import light_processor
from .examine import BAD, Task
from .findings import make_problem
from .known import ERRORS, kind_of, load_known
from .processes import examine_all


@dataclass
class Measured:
    """What a look at the rows in use found. Of each source: its `KnownRows`, and which of its rows were looked at."""

    asked: tuple  # digest of the processor, max_length, draw
    known: list
    rows: list  # int64 [rows in use], in order
    problems: list  # the first LISTED things that make a row unusable, a `Problem` each
    more: int  # others
    broken: int  # rows that can't be used

    def check(self, name):
        """Raise DataError that names the first rows of this data that can't be used; nothing is dropped."""
        if self.problems:
            listed = listed_text([problem.message for problem in self.problems], len(self.problems) + self.more)
            found = f"{self.broken} of {sum(map(len, self.rows))} rows can't be used"
            raise DataError(found, None, f"mend or remove them:{listed}", where=name)

    def notes(self, data):
        """What is said of rows that get fewer tiles or frames: [("train.jsonl:2", "13 → 7 tiles to fit …"), …]."""
        found = []
        for known, rows, index in zip(self.known, self.rows, data.indexes, strict=True):
            for row in rows[known.lengths[1, rows] < known.lengths[2, rows]].tolist():
                _, fewer, full = known.lengths[:, row].tolist()
                note = shrunk_text(full, fewer, self.asked[1], video=known.is_video[row])
                found.append((index.where(row), note))
        return found


def measure(data, processor, *, max_length=None, draw=(0, 0), progress=False):
    """Look at every row in use once, at its pictures' headers only: `Measured`.

    What was found is kept beside the files (`known`) and used again for rows that are unchanged, for the same model and
    max_length. Videos are looked at each time.

    Args: draw: (seed, epoch) that decides how many frames a video gives; progress: whether a bar shows it, from two
        seconds on.
    """
    kinds = (kind_of(source, processor, max_length) for source in data.sources)
    files = list(zip(data.sources, data.indexes, kinds, strict=True))
    known = [load_known(*file) for file in files]
    in_use = zip(data.rows_in_use(), data.indexes, strict=True)
    rows = [np.arange(len(index)) if used is None else np.asarray(used) for used, index in in_use]
    unknown = [used[one.lengths[0, used] == 0] for used, one in zip(rows, known, strict=True)]
    problems, found_in_all, broken = [], 0, 0
    for block in _look(data, processor, unknown, max_length, draw, progress=progress):
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


def _look(data, processor, rows, max_length, draw, *, progress=False):
    """Yield the blocks of an examination of these rows of each source: what can't be used is described, no more."""
    if any(map(len, rows)):
        task = Task(data.sources, light_processor(processor), max_length, draw=draw, limit=None, wanted=ERRORS)
        yield from examine_all(task, rows, progress=progress)


checked = WeakKeyDictionary()  # Data → what a run's check measured, until its plan takes it: nothing is looked at twice


def epoch_lengths(data, processor, *, seed, epochs, max_length=None):
    """(tokens, tiles) of every row of `Data` as it is trained; 0 tokens for a row that can't be used.

    Returns: int64 [rows] each; [epochs, rows] where there are videos, which give another number of frames in each epoch
        of a run, and whose headers are read again for it.
    """
    measured, asked = checked.pop(data, None), (processor.fingerprint, max_length, (seed, 0))
    if measured is None or measured.asked != asked:
        measured = measure(data, processor, max_length=max_length, draw=(seed, 0), progress=True)
    lengths, is_video = _spread(data, measured.known)
    if not is_video.any():
        return lengths[0], lengths[1]
    drawn = np.repeat(lengths[:2, None], epochs, axis=1)  # [2, epochs, rows]
    videos = [rows[known.is_video[rows]] for rows, known in zip(measured.rows, measured.known, strict=True)]
    for epoch in range(1, epochs):
        for block in _look(data, processor, videos, max_length, (seed, epoch)):
            measured.known[block.source].add(block)
        drawn[:, epoch] = _spread(data, measured.known)[0][:2]
    return drawn[0], drawn[1]


def row_lengths(data, processor, *, max_length=None):
    """(tokens, tiles) of every row as the first epoch of a run has it, int64 [rows] each."""
    tokens, tiles = epoch_lengths(data, processor, seed=0, epochs=1, max_length=max_length)
    return tokens.reshape(-1), tiles.reshape(-1)


def _spread(data, known):
    """(int64 [3, rows], bool [rows]) of `KnownRows` of each source, for every row of `Data`."""
    sources, rows = data.places()
    lengths, is_video = np.empty((3, len(data)), np.int64), np.empty(len(data), bool)
    for number, one in enumerate(known):
        own = sources == number
        lengths[:, own], is_video[own] = one.lengths[:, rows[own]], one.is_video[rows[own]]
    return lengths, is_video
