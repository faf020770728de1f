"""Where each row of a JSONL begins: 8 bytes a row, memory-mapped, so that ranks and workers share one copy.

The index of a file of 1 MiB or more is written once, into `.ivlkit/` beside it or, where that folder is read-only, into
the user's cache (`IVLKIT_CACHE`, else `~/.cache/ivlkit`). It is used again while the file keeps its size and its time
of change. Nothing is pickled: the file is a plain `.npy` of int64.
"""

import contextlib
import hashlib
import os
import secrets
import stat
from array import array
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..files import replacing

CACHE = "IVLKIT_CACHE"
CACHE_FOLDER = ".ivlkit"
STORED_FROM_BYTES = 1 << 20  # a smaller file is indexed in the time that it takes to look for its index
_VERSION = 1


class LineIndex:
    """Byte offsets of the non-blank lines of a file, and the SHA-256 of its bytes; reads a row at a time.

    Raises: DataError if the file can't be read, has no rows, or changes while it is read.
    """

    def __init__(self, path):
        self.path = Path(path)
        size, changed_ns = self._stat()
        known = stored_arrays(self.path, "index") if size >= STORED_FROM_BYTES else ()
        stored = next((one for one in known if one[1:3].tolist() == [size, changed_ns] and _is_whole(one)), None)
        stored = self._build(size, changed_ns) if stored is None else stored
        rows = int(stored[3])
        self.sha256 = stored[4:8].tobytes().hex()
        self.offsets = stored[8 : 9 + rows]  # the last is the end of the file
        self._blanks = stored[9 + rows :]  # blank line k stands after this many rows
        self.size_bytes = int(stored[1])
        self._seen = size, changed_ns

    def __len__(self):
        return len(self.offsets) - 1

    def __iter__(self):
        """All lines, a thousand read at once."""
        for start in range(0, len(self), 1000):
            yield from self.lines(start, min(start + 1000, len(self)))

    def __reduce__(self):
        return LineIndex, (self.path,)  # a worker maps the same file instead of receiving a copy of it

    def _stat(self):
        try:
            found = self.path.stat()
        except OSError as error:
            raise self._fault(f"can't be read ({error.strerror})") from error
        if stat.S_ISDIR(found.st_mode):
            raise self._fault("a folder")
        return found.st_size, found.st_mtime_ns

    def _fault(self, *said, code="missing_file"):
        return DataError(*said, where=self.path, code=code)

    def _build(self, size, changed_ns):
        try:
            offsets, blanks, digest = _scan(self.path)
        except OSError as error:
            raise self._fault(f"can't be read ({error.strerror})") from error
        if self._stat() != (size, changed_ns):
            raise self._fault("changed while it was read", "a finished file", "try again later")
        if len(offsets) == 1:
            raise self._fault("no rows", code="no_rows")
        if self.path.suffix.lower() not in (".jsonl", ".ndjson") and not _begins_with_an_object(self.path):
            raise self._fault("no JSON lines", "one object a line", "write them: ivlkit convert", code="not_an_object")
        head = np.array([_VERSION, size, changed_ns, len(offsets) - 1], np.int64)
        parts = [head, np.frombuffer(digest, np.int64), offsets, blanks]
        return store_array(self.path, "index", parts) if size >= STORED_FROM_BYTES else np.concatenate(parts)

    def number(self, row):
        """The row's line, counted from 1."""
        return int(row) + 1 + int(np.searchsorted(self._blanks, row, side="right"))

    def where(self, row):
        """ "train.jsonl:17"."""
        return f"{self.path.name}:{self.number(row)}"

    def line(self, row):
        """(bytes of the row's line, "file:line")."""
        return self.lines(row, row + 1)[0], self.where(row)

    def lines(self, start, stop):
        """The lines of rows start … stop - 1, read at once: [bytes, …]."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        with open(self.path, "rb") as file:
            self._check_unchanged(file)
            file.seek(first)
            block = file.read(last - first)
        edges = (np.asarray(self.offsets[start : stop + 1]) - first).tolist()
        ends = [block.find(b"\n", begin) + 1 or len(block) for begin in edges[:-1]]  # blank lines may follow a row
        return [block[begin:end] for begin, end in zip(edges[:-1], ends, strict=True)]

    def _check_unchanged(self, file):
        """Refuse a file whose rows are others than when it was indexed; more may stand behind them."""
        found = os.fstat(file.fileno())
        seen = found.st_size, found.st_mtime_ns
        if seen != self._seen and hashlib.sha256(file.read(self.size_bytes)).hexdigest() != self.sha256:
            todo = "open it again; give each conversion of a table a folder of its own, to=…"
            raise self._fault("changed since it was opened", "the rows that it had", todo)
        self._seen = seen


def _is_whole(stored):
    """Whether an index that was found is complete: its length and its last offset say so."""
    rows = int(stored[3]) if len(stored) > 8 else 0
    return rows > 0 and stored[0] == _VERSION and len(stored) >= 9 + rows and stored[8 + rows] == stored[1]


def _begins_with_an_object(path):
    with open(path, "rb") as file:
        return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"")


def _scan(path):
    """([row offsets …, size], [after how many rows each blank line stands], SHA-256) of a file."""
    digest, starts, blanks, position = hashlib.sha256(), array("q"), array("q"), 0
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            if line.isspace():
                blanks.append(len(starts))
            else:
                starts.append(position)
            position += len(line)
    starts.append(position)
    return np.array(starts, np.int64), np.array(blanks, np.int64), digest.digest()


# arrays beside a file, or in the user's cache ------------------------------------------------------------------------


def stored_arrays(path, kind):
    """Yield the memory-mapped int64 arrays stored of this kind, though the file may have changed since."""
    for place in _places(path, kind):
        with contextlib.suppress(OSError, ValueError, EOFError):
            stored = np.load(place, mmap_mode="r", allow_pickle=False)
            if stored.dtype == np.int64 and stored.ndim == 1 and len(stored) >= 3:
                yield stored


def store_array(path, kind, parts):
    """Write int64 arrays as one `.npy`; returns it memory-mapped, or joined in memory if no place can be written.

    The second and third value are the size and the time of change of `path`. It is written aside and renamed, so that
    another process sees all of it or nothing.
    """
    for place in _places(path, kind):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place, mark=f".{secrets.token_hex(8)}") as aside, open(aside, "wb") as file:
                header = {"descr": "<i8", "fortran_order": False, "shape": (sum(map(len, parts)),)}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:  # without joining them in memory
                    file.write(np.ascontiguousarray(part, "<i8").data)
            return np.load(place, mmap_mode="r", allow_pickle=False)
    return np.concatenate(parts)


def _places(path, kind):
    path = Path(path).resolve()
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "ivlkit")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return path.parent / CACHE_FOLDER / f"{path.name}.{kind}.npy", cache / f"{path.name}.{digest}.{kind}.npy"
