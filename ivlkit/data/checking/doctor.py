"""Checks a data set before a GPU is paid for: every row is usable or listed, with file, line and what to do.

Rows are examined in blocks by several processes (`examine`); what concerns rows together (repeats, pictures on both
sides of a split, answers that are all equal) is found here, from 8-byte hashes. Memory: about 80 bytes a row.

Sizes of pictures come from their files' headers. Only with pictures="exist" do the declared `width` and `height` count
where a row has them; "header" and "decode" compare them with the file.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from ...errors import DataError
from ...views import shown
from ..datasets.index import LineIndex
from ..datasets.mixture import Data, Source, check_repeat, check_weights, read_entries, read_source
from ..datasets.opening import openable
from ..processor import light_processor
from .examine import Task
from .findings import ERROR, INFO, KINDS, LEVELS, PLACES, WORDINGS, Findings, Problem, grouped
from .overview import Overview
from .pictures import PICTURES
from .processes import examine_all


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
        counts = {level: self.count(level) for level in LEVELS}
        levels = (f"{n:,} {level}{'' if n == 1 or level == INFO else 's'}" for level, n in counts.items())
        head = f"{self.path}: {self.stats['rows']:,} rows, {self.stats['good']:,} usable; {', '.join(levels)}"
        kinds = grouped(self.problems, lambda problem: problem.code)
        lines = [f"  {line}" for same in kinds for line in self._kind_lines(same)]
        more = sum(self.counts.values()) - sum(self.counts[same[0].code] for same in kinds)
        return "\n".join([head, *lines, *([f"  … and {more:,} more"] if more else [])])

    __repr__ = __str__

    def _kind_lines(self, same):
        """One kind in its first wordings; behind them how many more there are, and the first places of those."""
        shown = [equal[0] for equal in grouped(same, lambda problem: problem.found)[:WORDINGS]]
        more = self.counts[same[0].code] - len(shown)
        places = ", ".join(problem.where for problem in [one for one in same if one not in shown][:PLACES])
        *lines, last = map(str, shown)
        last += f" and {more:,} more: {places}{', …' if more > PLACES else ''}" if more and places else ""
        return [*lines, last]


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
        pictures: "exist" looks whether files are there, "header" reads their sizes and looks at their ends (of a video
            at the last frame), "decode" reads every pixel of every picture.
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
        overview = Overview(task, rows, findings)
        for block in examine_all(task, rows, workers=workers, progress=progress):
            overview.add(block)
        overview.compare_rows()
    path = data.path if isinstance(data, Data) else data
    stats = overview.stats() | {"seconds": round(time.monotonic() - began, 2)}
    return DataReport(str(path), findings.problems, dict(findings.counts), stats, overview.samples(findings.problems))


def check_converted(done):
    """The `DataReport` of what `convert` wrote; a problem stands at "labels.csv:17" where its row came from there."""
    report = diagnose(done.meta)
    for number, one in enumerate(report.problems):
        if one.origin:
            found = one.found.removeprefix(f"{one.origin}: ")
            report.problems[number] = replace(one, where=one.origin, found=found)
    return report


# what is to be checked -----------------------------------------------------------------------------------------------


def _open(data, root, findings):
    """([Source, …] that can be read, [rows to examine or None, …]); the others become problems."""
    if isinstance(data, Data):
        return list(data.sources), data.rows_in_use()
    path, root = openable(data, root)
    named, entries = [], {}
    if path.suffix != ".json":
        named = [Source(path.stem, path, root)]
    else:
        with findings.noted():
            entries = read_entries(path)
        for name, entry in entries.items():
            with findings.noted(source=name):
                named.append(read_source(name, entry, path))
        with findings.noted():
            check_weights(named, path)
    sources = [source for source in named if _can_be_read(source, findings)]
    return sources, [None] * len(sources)


def readable_sources(data, root=None):
    """The sources of a path or `Data` that can be read."""
    return _open(data, root, Findings(limit=0))[0]


def _can_be_read(source, findings):
    noted = partial(findings.noted, source=source.name)
    with noted():
        if not os.path.exists(source.annotation):
            todo = f"get it: {source.about}" if source.about else None
            raise DataError("no such file", None, todo, where=source.annotation, code="missing_file")
        index = LineIndex(source.annotation)
        check_repeat(source, len(index))
        with noted():
            if source.length not in (None, len(index)):
                found = f"{len(index):,} rows, `length` says {source.length:,}"
                raise DataError(found, where=source.annotation, code="declared_length")
        with noted():
            if not os.path.isdir(source.root):
                raise DataError("no such folder", where=source.root, code="missing_root")
        return True
    return False
