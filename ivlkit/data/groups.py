"""Which rows belong together: they show one picture, have one value in a column, or ask the same without a picture."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from .files import sha256
from .rows.media import is_data_uri, uri_bytes

DIGEST = 32  # hexadecimal digits that stand for a picture, a text or a group


@dataclass
class RowKeys:
    """What ties rows together: rows with a digest in common are one group."""

    own: list = field(default_factory=list)  # of each row, the digests of its pictures or its text, and of its group
    pictures: dict = field(default_factory=dict)  # digest → the file of that picture

    def add(self, record, digest_of, *, group=None):
        """Take in a record. Args: digest_of: function of a file; group: a field; rows with one value of it are tied."""
        shown = {digest_of(file): file for file in files_of(record)}
        written = [_digest(uri_bytes(one, record.where)) for one in record.images if is_data_uri(one)]
        of_text = [] if shown or written else [text_digest(record.turns)]
        of_group = [group_digest(record.extra | {"id": record.id}, group, record.where)] if group else []
        self.own.append((*shown, *written, *of_text, *of_group))
        for digest, file in shown.items() if record.video is None else ():
            self.pictures.setdefault(digest, file)


def files_of(record):
    """The files of its pictures or its video, as texts."""
    files = record.video.files if record.video else record.images
    return [str(one) for one in files if not is_data_uri(one)]


def row_keys(data, *, group=None):
    """`RowKeys` of a data set; every file is read once.

    Args: group: a field of the rows, such as "patient"; rows with one value of it are tied too.
    Raises: DataError that names the row whose picture is missing, or that has no such field.
    """
    keys, owners = RowKeys(), {}  # file → the row that a message names
    for record in data:
        keys.add(record, str, group=group)  # a file stands for itself until it is read
        for file in files_of(record):
            owners.setdefault(file, record.where)

    def digest_of(file):
        try:
            return file_digest(file)
        except OSError as error:
            found, todo = f"{file} can't be read ({error.strerror})", "check the row's path and the data set's `root`"
            raise DataError(found, "a picture there", todo, where=owners[file]) from error

    digests = dict(zip(owners, in_threads(digest_of, owners, "reading pictures"), strict=True))
    read = RowKeys([tuple({digests.get(one, one): None for one in own}) for own in keys.own])
    for file in keys.pictures:
        read.pictures.setdefault(digests[file], file)
    return read


def in_threads(function, items, what):
    """The results of a function that leaves Python while it works; a million are not all queued at once.

    Eight at the most: each may hold a scan of 360 MB. A bar says `what` is done, from two seconds on.
    """
    bar, items = tqdm(total=len(items), desc=what, unit="picture", delay=2, leave=False), iter(items)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while some := list(islice(items, 4096)):
            for result in threads.map(function, some):
                bar.update()
                yield result


def file_digest(path):
    """What stands for a picture or video wherever it lies: of its bytes, or of the files in a folder of frames."""
    if not os.path.isdir(path):
        return sha256(path)[:DIGEST]
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    return _digest("".join(map(sha256, files)).encode())


def text_digest(turns):
    """What stands for a row without pictures: what is asked. A corrected answer is the same row."""
    asked = [turn for turn in turns if turn.role != "assistant"]
    return _digest("\0".join(f"{turn.role}\1{turn.text}" for turn in asked).encode())


def group_digest(fields, name, where):
    """What stands for the value of a field. Raises: DataError if a row has none."""
    value = fields.get(f"row_{name}", fields.get(name))  # `convert` renames a row's own `source`
    if value is None or value == "":
        found = f"no value in {name!r}, by which rows are grouped"
        expected = f"one in every row ({', '.join(map(repr, fields))} are there)"
        raise DataError(found, expected, "fill it, or group by another", where=where)
    return _digest(f"group\0{name}\0{value}".encode())


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:DIGEST]


def group_keys(keys):
    """int64 [rows]: rows of equal number share a key, directly or through other rows; a row without keys is alone."""
    parents, first = list(range(len(keys))), {}
    for row, own in enumerate(keys):
        for key in own:
            join(parents, row, first.setdefault(key, row))
    return np.array([_root(parents, row) for row in range(len(keys))], np.int64)


def part_of_groups(groups, shares, *, seed, known=None):
    """The part of each row, such that groups stay whole and parts are as large as asked, as nearly as that allows.

    The largest groups are placed first, each into the part that lacks most rows; equal ones come in a drawn order.

    Args: groups: int64 [rows]; shares: of the rows, summing to 1; known: int64 [rows], parts that are settled, else -1.
    Returns: int64 [rows]; eight 0, one 1, one 2 for ten groups of one and shares 0.8, 0.1, 0.1.
    """
    part_of = np.full(len(groups), -1) if known is None else known.copy()
    open_rows = np.flatnonzero(part_of < 0)
    missing = [share * len(groups) - int((part_of == part).sum()) for part, share in enumerate(shares)]
    _, group_of, sizes = np.unique(groups[open_rows], return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    placed = np.empty(len(sizes), np.int64)
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        placed[group] = missing.index(max(missing))
        missing[placed[group]] -= size
    part_of[open_rows] = placed[group_of]
    return part_of


def _root(parents, number):
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def join(parents, one, other):
    """Make two one group; `parents` leads from each to another of its group, or to itself."""
    parents[_root(parents, one)] = _root(parents, other)
