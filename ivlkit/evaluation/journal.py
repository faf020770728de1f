"""Replies of an evaluation on disk, a line each, so that a killed one goes on where it stopped.

A folder holds settings.json (what decides the replies), replies.jsonl, replies.lock, and report.json once it is done.
"""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..data.files import write_whole
from ..errors import DataError
from .confidence import SCORES, ScoredReply, known_scores

SETTINGS_FILE, REPLIES_FILE, LOCK_FILE = "settings.json", "replies.jsonl", "replies.lock"


@contextmanager
def open_journal(folder, settings, places):
    """(known, append): the replies {row number: text} already there, and a function that adds such a dict for good.

    Args:
        folder: None keeps nothing.
        settings: a dict for JSON; a folder with other settings is refused.
        places: `where` of every row, checked against what is there.
    Raises: DataError if the folder is another evaluation's, is written to by another process, or is broken.
    """
    if folder is None:
        yield {}, lambda replies: None
        return
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: can't be a folder of replies ({error.strerror}); expected one that can be made and written; "
            "choose another"
        ) from error
    _settle(folder, settings)
    try:
        held = FileLock(folder / LOCK_FILE).acquire(blocking=False)
    except Timeout as error:
        raise DataError(f"{folder}: another evaluation is writing here; wait for it, or choose another") from error
    with held, open(folder / REPLIES_FILE, "a+b", buffering=0) as file:  # closing it has nothing left to write
        known = _read(file, places)
        yield known, lambda replies: _append(file, replies, places)


def _settle(folder, settings):
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        if (folder / REPLIES_FILE).exists():
            raise DataError(f"{folder}: replies without {SETTINGS_FILE}; expected both; choose another folder")
        write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False))
        return
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}); expected settings; choose another folder") from error
    for key in sorted(found.keys() | settings.keys()):
        if found.get(key) != settings.get(key):
            raise DataError(
                f"{folder}: holds an evaluation with {key} {found.get(key)!r}; now it is {settings.get(key)!r}; "
                "expected the same model, data and settings to go on; choose another folder"
            )


def _read(file, places):
    """The whole lines; a last one that was cut off by the kill is removed from the file."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    file.truncate(len(whole))
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        where = f"{file.name}:{number}"
        try:
            saved = json.loads(line)
            row, text = saved["row"], saved["reply"]
            matches = places[row] == saved["where"] and isinstance(text, str) and row >= 0
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: broken ({error}); expected a row's reply; remove the line") from error
        if not matches:
            raise DataError(
                f"{where}: a reply of another row ({saved['where']}); expected {places[row]}; remove the line"
            )
        known[row] = ScoredReply(text, **{name: saved[name] for name in SCORES if name in saved})
    return known


def _append(file, replies, places):
    lines = []
    for row, text in replies.items():
        saved = {"row": row, "where": places[row], "reply": text} | known_scores(getattr(text, "__dict__", {}))
        lines.append(json.dumps(saved, ensure_ascii=False) + "\n")
    content = "".join(lines).encode("utf-8", "backslashreplace")  # a name of a file may hold half a surrogate pair
    try:
        if file.write(content) < len(content):  # the rest of a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"{file.name}: can't be written ({error.strerror}); expected room for replies; those before are kept: free "
            "some of the disk and evaluate again to go on"
        ) from error
