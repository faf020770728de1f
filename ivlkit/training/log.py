"""The logs of a run: JSON lines, each of a step, that survive being cut short and being done again."""

import json
import os
from contextlib import suppress

from ..errors import TrainingError


class Steps(list):
    """Dicts, one a step."""

    def __call__(self):
        raise TrainingError("run.history() calls a list; expected no brackets; write run.history")


def read_steps(path):
    """The lines that hold: a step done again from a checkpoint counts once, a half line not at all."""
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: a reply may hold a U+2028
    except FileNotFoundError:
        return Steps()
    found = Steps()
    for line in lines:
        with suppress(ValueError):  # a line that is being written, or was when the machine died, within a letter too
            entry = json.loads(line)
            while found and found[-1]["step"] >= entry["step"]:
                found.pop()
            found.append(entry)
    return found


def append_step(path, entry):
    """Append a step's numbers."""
    append_line(path, json.dumps(entry, ensure_ascii=False))


def append_line(path, text):
    """Append a line; what a dying machine left of the one before does not spoil it."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        is_cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * is_cut + text.encode() + b"\n")
