"""Which pictures a question gets: its own, another row's, or none."""

import hashlib
import os
from collections import Counter
from dataclasses import replace

import numpy as np

from ..data.media import open_image
from ..data.records import IMAGE_PLACEHOLDER
from ..errors import DataError


def right(records, seed):
    """The rows as they are."""
    return records


def shuffled(records, seed):
    """Every row with the pictures of another row that has as many, and never with its own where another exists.

    All pictures are used as often as before, unless one belongs to more than half of such rows.
    """
    rng, given = np.random.default_rng(seed), list(records)
    for count in sorted({len(record.images) for record in records} - {0}):
        rows = [number for number, record in enumerate(records) if len(record.images) == count]
        sets = [records[number].images for number in rows]
        for number, source in zip(rows, derange([_key(images) for images in sets], rng), strict=True):
            given[number] = replace(records[number], images=sets[source])
    return given


def none(records, seed):
    """Every row without its pictures and their places in the text."""
    return [
        replace(record, images=(), turns=tuple(_without_placeholders(turn) for turn in record.turns))
        if record.images
        else record
        for record in records
    ]


PICTURES = {"right": right, "shuffled": shuffled, "none": none}


def arrange(records, pictures, *, seed):
    """The rows as `pictures` ("right", "shuffled" or "none") has them."""
    if pictures not in PICTURES:
        raise DataError(f"pictures={pictures!r}; expected one of {', '.join(PICTURES)}")
    return PICTURES[pictures](records, seed)


def derange(keys, rng):
    """For each place another place with another key, a permutation if there is one: [1, 2, 0] for a, b, c.

    Equal keys stand side by side in a random order and all move on by the length of the longest run, which carries
    every one of them past its own kind. Where one key has more than half of the places, some keep theirs after that:
    these take any other. With a single key all stay.
    """
    distinct = list(dict.fromkeys(keys))
    rank = dict(zip(distinct, rng.permutation(len(distinct)).tolist(), strict=True))
    order = sorted(rng.permutation(len(keys)).tolist(), key=lambda place: rank[keys[place]])
    longest = max(Counter(keys).values())
    source = [0] * len(keys)
    for position, place in enumerate(order):
        source[place] = order[(position + longest) % len(order)]
    kept = [place for place, taken in enumerate(source) if keys[taken] == keys[place]]  # all of the one commonest key
    others = [place for place in order if kept and keys[place] != keys[kept[0]]]
    for place in kept if others else []:
        source[place] = others[rng.integers(len(others))]
    return source


def picture_key(source):
    """What tells one picture from another: a file's path, the pixels of one in memory."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    image = open_image(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def kept_own(records, given):
    """Numbers of the rows with pictures that still have their own."""
    pairs = enumerate(zip(records, given, strict=True))
    return [number for number, (own, got) in pairs if own.images and _key(own.images) == _key(got.images)]


def _key(images):
    return tuple(map(picture_key, images))


def _without_placeholders(turn):
    if turn.role != "user":
        return turn
    return replace(turn, text=turn.text.replace(f"{IMAGE_PLACEHOLDER}\n", "").replace(IMAGE_PLACEHOLDER, ""))
