"""The errors a user can mend. Each message reads: where - found; expected; what to do.

The command line prints them as one line and exits with code 2, and so it does where a disk or a terminal does not take
what is written; everything else is a defect of ours and keeps its traceback.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

BROKEN_PIPE = 141  # as a shell counts a program that wrote to a closed pipe
_TODO = {errno.ENOSPC: "free some of the disk, or choose another"} | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may write, or change its permissions"
)


class Kind(NamedTuple):
    """A kind of fault in data: its level, "error", "warning" or "info", what is expected, and what to do."""

    level: str
    expected: str
    todo: str


def _read_kinds():
    """{code: `Kind`} of kinds.tsv: first of the meta file, then of the line, the row, boxes, pictures, lengths."""
    _, *lines = Path(__file__).with_name("kinds.tsv").read_text(encoding="utf-8").splitlines()
    return {code: Kind(*said) for code, *said in (line.split("\t") for line in lines)}


KINDS = _read_kinds()


class IvlkitError(Exception):
    """Base of every error that is about the user's input, not about our code."""


class DataError(IvlkitError, ValueError):
    """A row, a picture or a meta file that can't be used as it is: a value with its parts, and as text their sentence.

    `DataError("no answer", "one last", "add it", where="a.jsonl:3")` reads "a.jsonl:3: no answer; expected one last;
    add it". Readers yield such values; training raises the first, the doctor keeps all.

    Args:
        found: what was found; alone it is the whole sentence.
        expected, todo: what was expected, and what to do; None where nothing is to be added. Without both, a fault of
            a named kind has those of its kind.
        where: file and line, or a file. code: its kind, of `ivlkit/kinds.tsv`.
    """

    def __init__(self, found, expected=None, todo=None, *, where="", code="unusable"):
        if (expected, todo) == (None, None) and code != "unusable":
            _, expected, todo = KINDS[code]
        sentence = "; ".join(part for part in (found, expected and f"expected {expected}", todo) if part)
        super().__init__(f"{where}: {sentence}" if where else sentence)
        self.code, self.where, self.found, self.expected, self.todo = code, str(where), found, expected, todo

    def at(self, where):
        """The same fault of a row or file, which a reader of its parts does not know."""
        return DataError(self.found, self.expected, self.todo, where=where, code=self.code)


def first_raised(reading, where):
    """What a reader returns; the first fault that it yields is raised, as one of `where`."""
    try:
        fault = next(reading)
    except StopIteration as done:
        return done.value
    raise fault.at(where)


def all_faults(reading):
    """(what a reader returns, every fault that it yields)."""
    faults = []
    while True:
        try:
            faults.append(next(reading))
        except StopIteration as done:
            return done.value, faults


class CheckpointError(IvlkitError, ValueError):
    """A model folder that can't be loaded or written as asked."""


class RecipeError(IvlkitError, ValueError):
    """A training recipe whose numbers contradict each other or the machine."""


class TrainingError(IvlkitError, RuntimeError):
    """A run that had to stop."""


class ExportError(IvlkitError, RuntimeError):
    """An export that did not prove equal to the model it came from."""


def ended(run, arguments):
    """The exit code of run(arguments), all of its output written: disks, pipes and terminals may refuse that."""
    if getattr(sys.stdout, "errors", None) == "strict":  # a terminal of another encoding shows \\xe9
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, such as `head`, has seen enough
        _drop_output()
        return BROKEN_PIPE
    except (OSError, UnicodeError) as error:
        _drop_output()
        print(f"ivlkit: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _drop_output():
    """What could not be written is not tried again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error):
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split())
    place = error.filename or "the output"
    todo = _TODO.get(error.errno, "check the path")
    return f"{place}: {error.strerror}; expected a file or folder that can be read and written; {todo}"
