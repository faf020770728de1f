"""Which rows belong together because they show the same picture; and parts of a data set that share none."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .files import sha256
from .rows.media import is_data_uri, uri_bytes


def group_rows(data):
    """int64 [rows]: rows of equal number share a picture by content, also through other rows, or are equal texts.

    Raises: DataError that names the row whose picture is missing.
    """
    numbers, media, owners = {}, [], []  # key → number; what stands behind it; the row that names it first
    links = []
    for number in range(len(data)):
        record = data[number]
        own = []
        for key, medium in _media(record):
            if key not in numbers:
                numbers[key] = len(numbers)
                media.append(medium)
                owners.append(record.where)
            own.append(numbers[key])
        links.append(own)
    contents = content_numbers(media, owners)
    return group_keys([[contents[number] for number in own] for own in links])


def group_keys(keys):
    """int64 [rows]: rows of equal number share a key, directly or through other rows; a row without keys is alone."""
    parents, first = list(range(len(keys))), {}
    for row, own in enumerate(keys):
        for key in own:
            _join(parents, row, first.setdefault(key, row))
    return np.array([_root(parents, row) for row in range(len(keys))], np.int64)


def _media(record):
    """(key, medium) of everything a row shows; its text stands for a row without."""
    shown = [*record.images, *(record.video.files if record.video else ())]
    if not shown:
        return [(text_key(record.turns), None)]
    return [_key_and_medium(one, record.where) for one in shown]


def _key_and_medium(one, where):
    if is_data_uri(one):  # its bytes are its key; a million of them need not be kept to be compared
        return ("uri", _digest(uri_bytes(one, where))), None
    return str(one) if isinstance(one, (str, os.PathLike)) else _digest(one), one


def text_key(turns):
    """What stands for a row without pictures: equal for equal turns."""
    text = "\0".join(f"{turn.role}\1{turn.text}" for turn in turns)
    return "text", hashlib.blake2b(text.encode(), digest_size=16).digest()


def content_numbers(media, owners):
    """A number for each medium, equal where the content is: the place of the first that is equal.

    A file is read only if another has its size; None is equal to nothing.

    Args: media: paths, PIL images, bytes, arrays or None; owners: the row to name if it can't be read.
    """
    sizes = [_size(medium, owner) for medium, owner in zip(media, owners, strict=True)]
    counts, first, found = Counter(sizes), {}, []
    for number, (medium, size) in enumerate(zip(media, sizes, strict=True)):
        if size is None or counts[size] == 1:
            found.append(number)
        else:
            found.append(first.setdefault((size, _digest(medium)), number))
    return found


def _size(medium, owner):
    if medium is None:
        return None
    if not isinstance(medium, (str, os.PathLike)):
        return -1
    try:
        return Path(medium).stat().st_size
    except OSError as error:
        raise DataError(
            f"{owner}: {medium} can't be read ({error.strerror}); expected a picture there; "
            "check the row's path and the data set's `root`"
        ) from error


def _digest(medium):
    if isinstance(medium, (str, os.PathLike)):
        return sha256(medium) if os.path.isfile(medium) else os.fsencode(medium)
    if isinstance(medium, Image.Image):
        medium = np.asarray(medium)
    content = medium if isinstance(medium, bytes) else repr(medium.shape).encode() + medium.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def part_of_groups(groups, shares, *, seed):
    """The part of each row, such that groups stay whole and parts are as large as asked, as nearly as that allows.

    The largest groups are placed first, each into the part that lacks most rows; equal ones come in a drawn order.

    Args: groups: int64 [rows]; shares: of the rows, summing to 1.
    Returns: int64 [rows]; eight 0, one 1, one 2 for ten groups of one and shares 0.8, 0.1, 0.1.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    missing = [share * len(groups) for share in shares]
    part_of = np.empty(len(sizes), np.int64)
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        part = missing.index(max(missing))
        part_of[group] = part
        missing[part] -= size
    return part_of[group_of]


def _root(parents, number):
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _join(parents, one, other):
    parents[_root(parents, one)] = _root(parents, other)
