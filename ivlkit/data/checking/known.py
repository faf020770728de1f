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
_NO_MEDIA = np.zeros((3, 0), np.int64)
_FILE = ("row", "size", "changed")  # of a `PICTURE`
_HEAD = 7  # version, size and time of change of the JSONL, checksum, rows, files, bytes of names
_VERSION = 1  # another one when rows are counted or refused otherwise than before
_KIND = "measured-"  # begins the kind of these arrays
_MOST_FILES = 16  # of one JSONL: a plan tries every tile budget up to 12


class KnownRows:
    """Tokens and tiles of the rows of one file, and the pictures that they were read from."""

    def __init__(self, lengths, *, media=_NO_MEDIA, names=(), is_stored=True):
        self.lengths = lengths  # int64 [3, rows]: tokens, tiles, tiles were there no limit; 0 tokens: not known
        self.media, self.names = media, names  # of each picture: row, bytes, time of change; path from `root` on
        self.is_video = np.zeros(lengths.shape[1], bool)
        self.state = _GONE  # size and time of change of the file
        self._added = []  # (media, names) of each block
        self._is_stored = is_stored

    def add(self, block):
        """Take over what was found in a block."""
        good = block.state == GOOD
        self.lengths[:, block.rows] = np.stack([*block.final, block.lengths[1]]) * good
        self.is_video[block.videos] = True
        self._added.append((np.stack([block.pictures[key].astype(np.int64) for key in _FILE]), block.names))
        self._is_stored &= not (good & ~self.is_video[block.rows]).any()

    def store(self, source, index, kind):
        """Keep it beside the file, if that holds anything else and the file is still the one that was read."""
        if self._is_stored or index.size_bytes < STORED_FROM_BYTES or _state(source.annotation) != self.state:
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
        _, then, now = np.intersect1d(lines_then, lines_now, return_indices=True)
        row_now = np.full(len(lines_then), -1)
        row_now[then] = now
        lengths, media = np.zeros((3, len(lines_now)), np.int64), np.stack([row_now[self.media[0]], *self.media[1:]])
        lengths[:, now] = self.lengths[:, then]
        moved = KnownRows(lengths, media=media, names=self.names, is_stored=False)
        moved._keep(media[0] >= 0)
        return moved

    def _keep(self, kept):
        """Of the pictures only these."""
        self.media = self.media[:, kept]
        self.names = [name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep]


def load_known(source, index, kind):
    """`KnownRows` of a file: what was stored of it and is still so."""
    known, state = KnownRows(np.zeros((3, len(index)), np.int64)), _state(source.annotation)
    for stored in stored_arrays(source.annotation, kind):
        if found := _unpack(stored):
            known = found
            if tuple(stored[1:3].tolist()) != state:
                known = known.move(stored[_HEAD : _HEAD + stored[4]], _hash_lines(index))
            known.forget_changed(source.root)
            break
    known.state = state
    return known


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
    _, lengths, media, names = np.split(stored[_HEAD:], np.cumsum([rows, 3 * rows, 3 * files]))
    names = names.tobytes()[:name_bytes].decode().split("\0") if files else []
    return KnownRows(lengths.reshape(3, rows).copy(), media=media.reshape(3, files), names=names)


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
