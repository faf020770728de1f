"""Which pictures a question gets: its own, another row's, or none."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np

from ..data.rows.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from ..data.rows.media import is_data_uri, open_image
from ..errors import DataError

END_BYTES = 1 << 16  # of a file's start and end: another picture differs there, and a long video is not read whole


def shuffled(records, seed):
    """Every row with the pictures of another row that has as many, or a video with another video.

    No row keeps its own where there are others. Each picture is used as often as before, unless it belongs to more than
    half of such rows.
    """
    rng, given, kinds = np.random.default_rng(seed), list(records), {}
    for number, record in enumerate(records):
        if record.images or record.video:
            kinds.setdefault((bool(record.video), len(record.images)), []).append(number)
    for _, rows in sorted(kinds.items()):
        sources = derange([media_key(records[number]) for number in rows], rng)
        for number, source in zip(rows, sources, strict=True):
            other = records[rows[source]]
            given[number] = replace(records[number], images=other.images, video=other.video)
    return given


def without_pictures(record):
    """A row without its pictures or video, and without their places in the text."""
    if not record.images and not record.video:
        return record
    turns = []
    for turn in record.turns:
        text = re.sub(f"(?:{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER})\n?", "", turn.text)
        turns.append(replace(turn, text=text) if turn.role == "user" else turn)
    return replace(record, images=(), video=None, turns=tuple(turns))


def arrange(records, pictures, *, seed):
    """The rows as `pictures` ("right", "shuffled" or "none") has them."""
    if pictures == "right":
        return records
    if pictures == "shuffled":
        return shuffled(records, seed)
    if pictures == "none":
        return list(map(without_pictures, records))
    raise DataError(f"pictures={pictures!r}; expected one of right, shuffled, none")


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


def media_key(row):
    """What tells what one row shows from what another does: () for nothing, else pictures or a clip of a video."""
    return (repr(row.video),) if row.video else tuple(map(picture_key, row.images))


def picture_key(source):
    """What tells one picture from another: a file's path, the pixels of one in memory."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    image = open_image(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def files_shown(row):
    """The files that a row shows; what lies in memory, or in the row itself, is none."""
    sources = row.video.files if row.video else row.images
    return [each for each in sources if isinstance(each, (str, os.PathLike)) and not is_data_uri(each)]


def content_key(row):
    """What the files hold that a row shows: a hash of each one's size and both ends; None for what is no file."""
    sources = row.video.files if row.video else row.images
    paths = [source for source in sources if isinstance(source, (str, os.PathLike))]
    return tuple(_ends_digest(path) if os.path.isfile(path) else None for path in paths)


def _ends_digest(path):
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(f"{size} ".encode() + file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def kept_own(records, given):
    """Numbers of the rows with pictures that still have their own."""
    pairs = enumerate(zip(records, given, strict=True))
    return [number for number, (own, got) in pairs if (key := media_key(own)) and key == media_key(got)]


def not_shuffled(records, given, pictures):
    """What a report says of rows that had to keep their own; {} where there are none or nothing was shuffled."""
    kept = kept_own(records, given) if pictures == "shuffled" else []
    said = f"{len(kept)} rows: no other row has as many pictures, or all show the same"
    return {"not shuffled": said} if kept else {}
