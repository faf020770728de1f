"""What was found wrong with a data set. `errors.KINDS` lists the kinds, with level, expectation and remedy.

error: a run refuses the row, or a score would be false. warning: it trains, but hardly as meant. info: worth knowing.
"""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ...errors import KINDS, DataError

ERROR, WARNING, INFO = "error", "warning", "info"
LEVELS = (ERROR, WARNING, INFO)
PLACES = 5  # further places that a line about several findings names
WORDINGS = 3  # lines of one kind, if what was found differs


@dataclass(frozen=True)
class Problem:
    """One finding; as text it is one line."""

    where: str  # "train.jsonl:17", or a file or folder
    level: str
    code: str
    found: str
    expected: str
    todo: str
    source: str = ""  # the entry of the meta file
    row: int | None = None  # of that entry's file, counted from 0
    origin: str = ""  # where `convert` took that row from, "labels.csv:40"

    def __repr__(self):
        return f"{self.where}: {self.level}: {self.found}; expected {self.expected}; {self.todo} [{self.code}]"

    @property
    def message(self):
        """Without level and code, as an exception says it."""
        return f"{self.where}: {self.found}; expected {self.expected}; {self.todo}"


def make_problem(code, where, found, *, expected=None, todo=None, source="", row=None, origin=""):
    """A problem of a kind; what the kind says holds where nothing more exact is given. `origin`: "labels.csv:40"."""
    kind, found = KINDS[code], f"{origin}: {found}" if origin else found
    found = found.encode("utf-8", "backslashreplace").decode()  # half surrogates can't be printed
    return Problem(where, kind.level, code, found, expected or kind.expected, todo or kind.todo, source, row, origin)


def grouped(problems, key):
    """[[problems of an equal key, …], …], in the order of the first of each."""
    groups = {}
    for problem in problems:
        groups.setdefault(key(problem), []).append(problem)
    return list(groups.values())


class Findings:
    """Problems as they come: all are counted and, if asked for, written; the first of each kind are kept."""

    def __init__(self, *, limit, file=None):
        self.limit, self.file = limit, file
        self.counts = Counter()  # also of problems that are not kept
        self._kept = []

    def add(self, problem):
        """Count it, write it, keep it while there are few of its kind."""
        self.counts[problem.code] += 1
        if self.counts[problem.code] <= self.limit:
            self._kept.append(problem)
        if self.file is not None:
            self.file.write(json.dumps(asdict(problem), ensure_ascii=True) + "\n")

    @contextmanager
    def noted(self, *, source=""):
        """A `DataError` that is raised inside becomes a problem of its kind."""
        try:
            yield
        except DataError as fault:
            said = {"expected": fault.expected, "todo": fault.todo, "source": source}
            self.add(make_problem(fault.code, fault.where, fault.found, **said))

    def wants(self, code):
        """Whether another problem of this kind would be kept or written."""
        return self.file is not None or self.counts[code] < self.limit

    @property
    def problems(self):
        """The kept ones: errors first, then in the order of the files."""
        return sorted(self._kept, key=lambda problem: LEVELS.index(problem.level))
