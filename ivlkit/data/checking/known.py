"""What an earlier look found of a file's rows, kept beside it, so that only what changed is looked at again.

A row is known as long as its line is the same, wherever in the file it stands, and every picture it names has the size
in bytes and the time of change that it had. Rows that can't be used are not kept, nor videos, whose length depends on
the draw. It is a plain `.npy` of int64 with a checksum; one that is damaged counts as none.
"""

import contextlib
import glob
import hashlib
import os
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..datasets.index import STORED_FROM_BYTES, store_array, stored_arrays
from .examine import GOOD
from .findings import ERROR, KINDS

ERRORS = frozenset(code for code, kind in KINDS.items() if kind.level == ERROR)  # what makes a row unusable
_GONE = (-1, -1)  # size and time of change of a file that is not there
_FILE = ("row", "size", "changed")  # of a `PICTURE`
_HEAD = 7  # version, size and time of change of the JSONL, checksum, rows, files, bytes of names
_VERSION = 1  # another one when rows are counted or refused otherwise than before
_KIND = "measured-"  # begins the kind of these arrays
_MOST_FILES = 16  # of one JSONL: a plan tries every tile budget up to 12


class KnownRows:
    """Tokens and tiles of the rows of one file, and the pictures that they were read from."""

    def __init__(self, rows, state=_GONE):
        self.state = state  # size and time of change of the file
        self.lengths = np.zeros((3, rows), np.int64)  # tokens, tiles, tiles were there no limit; 0 tokens: not known
        self.is_video = np.zeros(rows, bool)
        self.media = np.zeros((3, 0), np.int64)  # of each picture: its row, bytes, time of change
        self.names = []  # of each picture, from `root` on
        self._added = []  # (media, names) of each block
        self._is_stored = True

    def add(self, block):
        """Take over what was found in a block."""
        good = block.state == GOOD
        self.lengths[:, block.rows] = np.stack([*block.final, block.lengths[1]]) * good
        self.is_video[block.videos] = True
        self._added.append((np.stack([block.pictures[key].astype(np.int64) for key in _FILE]), block.names))
        self._is_stored &= not (good & ~self.is_video[block.rows]).any()

    def store(self, source, index, kind):
        """Keep it beside the file, if that holds anything else and the file is still the one that was read."""
        if self._is_stored or index.size_bytes < STORED_FROM_BYTES:
            return
        self.media = np.concatenate([self.media, *(media for media, _ in self._added)], axis=1)
        self.names = [*self.names, *(name for _, names in self._added if names for name in names.split("\0"))]
        self._keep(self.lengths[0, self.media[0]] > 0)
        lengths, names = self.lengths * ~self.is_video, "\0".join(self.names).encode()
        padded = names + b"\0" * (-len(names) % 8)
        body = [_hash_lines(index), lengths.ravel(), self.media.ravel(), np.frombuffer(padded, np.int64)]
        head = [_VERSION, *self.state, _checksum(body), lengths.shape[1], len(self.names), len(names)]
        if _state(source.annotation) == self.state:
            stored = store_array(source.annotation, kind, [np.array(head, np.int64), *body])
            if isinstance(stored, np.memmap):  # else nothing could be written
                _tidy(stored, kind)

    def forget_changed(self, root):
        """Forget the rows of which a picture changed or is gone."""
        now = (number for name in self.names for number in _state(os.path.join(root, name)))
        now = np.fromiter(now, np.int64, 2 * len(self.names)).reshape(-1, 2).T
        lost = self.media[0, (now != self.media[1:]).any(axis=0)]
        self.lengths[:, lost] = 0
        self._keep(self.lengths[0, self.media[0]] > 0)

    def move(self, lines_then, lines_now):
        """The same for the lines of the file as it is now, found by their hashes; equal lines are known once."""
        order = np.argsort(lines_then, kind="stable")
        places = np.minimum(np.searchsorted(lines_then[order], lines_now), len(order) - 1)
        rows = np.flatnonzero(lines_then[order[places]] == lines_now)
        then, first = np.unique(order[places[rows]], return_index=True)
        moved = KnownRows(len(lines_now))
        moved._is_stored = False
        moved.lengths[:, rows[first]] = self.lengths[:, then]
        row_now = np.full(len(lines_then), -1)
        row_now[then] = rows[first]
        moved.media, moved.names = self.media.copy(), self.names
        moved.media[0] = row_now[self.media[0]]
        moved._keep(moved.media[0] >= 0)
        return moved

    def _keep(self, kept):
        """Of the pictures only these."""
        self.media = self.media[:, kept]
        self.names = [name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep]


def load_known(source, index, kind):
    """`KnownRows` of a file: what was stored of it and is still so."""
    state = _state(source.annotation)
    for stored in stored_arrays(source.annotation, kind):
        if known := _unpack(stored):
            if tuple(stored[1:3].tolist()) != state:
                known = known.move(stored[_HEAD : _HEAD + stored[4]], _hash_lines(index))
            known.forget_changed(source.root)
            known.state = state
            return known
    return KnownRows(len(index), state)


def _tidy(stored, kind):
    """Remove the oldest files of one JSONL: each model, tile budget and max_length has one of its own."""
    place = Path(stored.filename)
    others = place.parent.glob(glob.escape(place.name.removesuffix(f"{kind}.npy")) + f"{_KIND}*.npy")
    with contextlib.suppress(OSError):  # another process tidies too
        for old in sorted(others, key=lambda one: one.stat().st_mtime_ns)[:-_MOST_FILES]:
            old.unlink()


def kind_of(source, processor, max_length):
    """Names all that decides a row's length but its line and its pictures."""
    told = (source.max_tiles, source.system, source.format, str(source.root.resolve()))
    said = repr((processor.fingerprint, max_length, *told, *sorted(ERRORS)))  # a new kind of error looks at all again
    return f"{_KIND}{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _unpack(stored):
    """`KnownRows` of all that is stored; None unless all of it is there as it was written."""
    if len(stored) < _HEAD or stored[0] != _VERSION:
        return None
    rows, files, name_bytes = stored[4:_HEAD].tolist()
    expected = _HEAD + 4 * rows + 3 * files - (-name_bytes // 8)
    if len(stored) != expected or stored[3] != _checksum([stored[_HEAD:]]):
        return None
    known = KnownRows(rows)
    _, lengths, media, names = np.split(stored[_HEAD:], np.cumsum([rows, 3 * rows, 3 * files]))
    known.lengths, known.media = lengths.reshape(3, rows).copy(), media.reshape(3, files)
    known.names = names.tobytes()[:name_bytes].decode().split("\0") if files else []
    return known


def _checksum(parts):
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _hash_lines(index):
    """8 bytes that stand for each line, int64 [rows]; the last line may lack its end."""
    digests = bytearray()
    for line in index:
        digests += blake2b(line.rstrip(b"\n"), digest_size=8).digest()
    return np.frombuffer(digests, np.int64)


def _state(path):
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return _GONE
    return found.st_size, found.st_mtime_ns
