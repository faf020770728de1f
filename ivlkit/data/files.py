"""Files and folders that appear whole or not at all, and what a file holds as one number."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError

PART = ".part"  # ends the name of what is being written, or removed


def check_writable(path):
    """Raise DataError if no file can be written at a path, whose folders may have to be made; nothing is changed."""
    path = Path(path).absolute()
    if os.path.isdir(path):
        raise DataError("is a folder", "a file's name", "add one", where=path)
    above = next(folder for folder in path.parents if os.path.exists(folder))  # Path.exists raises in a closed one
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"can't be written in {above}", "a folder that is open to you", "name another", where=path)


def write_if_changed(path, content):
    """Write bytes in one step, or nothing where they are there already: a run may be reading the file."""
    if path.exists() and path.read_bytes() == content:
        return
    with replacing(path) as aside:
        aside.write_bytes(content)


def write_whole(path, text):
    """Write a file and bring it onto the disk: a reader finds all of it or what was before, even after a crash.

    Half a surrogate pair, which a name of a file may hold, is written as \\udcff, which JSON reads back.

    Returns: its path; folders are made where there are none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        flush(aside)
    flush(path.parent)
    return path


@contextmanager
def replacing(path, *, mark=""):
    """A path to write a file at, beside `path`: it becomes `path` in one step, and is removed if anything is raised.

    If it is not there in the end, `path` stays as it was.

    Args: mark: part of its name, other in every process where several may write `path` at once.
    """
    aside = path.with_name(f"{path.name}{mark}{PART}")
    try:
        yield aside
        if aside.exists():
            os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise


@contextmanager
def appearing(to):
    """A folder beside `to` that becomes `to` in one step if nothing is raised, and is removed otherwise."""
    aside = to.with_name(to.name + PART)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        flush_folder(aside)
        aside.rename(to)
        flush(to.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def vanish(folder):
    """Remove a folder so that nobody finds half of it under its name, even if this is cut short."""
    aside = folder.with_name(f"{folder.name}.old{PART}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def flush_folder(folder):
    """A folder and all that is in it onto the disk; at once, since a disk takes as long for many files as for one."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        list(threads.map(flush, folder.rglob("*")))
    flush(folder)


def flush(path):
    """Onto the disk: a name must not be there before what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path):
    """SHA-256 of a file as 64 hexadecimal digits; it is read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
