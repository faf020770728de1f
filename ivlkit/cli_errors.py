"""How a command ends when something is wrong: in one line, spelt as the command line is, without a traceback."""

import errno
import os
import re
import sys
from contextlib import suppress
from dataclasses import fields

from .cli_options import declared

BROKEN_PIPE = 141  # as a shell counts a program that wrote to a closed pipe
_TODO = {errno.ENOSPC: "free some of the disk, or choose another"} | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may write, or change its permissions"
)


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
        print(f"ivlkit: {_said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _drop_output():
    """What could not be written is not tried again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error):
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split())
    place = error.filename or "the output"
    todo = _TODO.get(error.errno, "check the path")
    return f"{place}: {error.strerror}; expected a file or folder that can be read and written; {todo}"


def as_typed(text, command, names):
    """An error's Python spelling as it is typed: "seed=-1" → "--seed -1", and of a recipe "--set packing=true".

    Args: names: of the command's options, as COMMANDS has them.
    """
    options = {_destination(command, name): f"{name} " for name in names.split() if name.startswith("--")}
    typed = _settings() | options if "set" in options else options
    return re.sub(r"(?<![\w-])(?<!--set )(\w+)=(?=\S)", lambda found: typed.get(found[1], found[0]), text)


def _destination(command, name):
    return declared(command, name).get("dest", name.lstrip("-").replace("-", "_"))


def _settings():
    from .training.recipes import Recipe

    return {field.name: f"--set {field.name}=" for field in fields(Recipe)}
