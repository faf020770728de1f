"""Tokens and tiles of every row, kept beside the files: what batches are planned from."""

import hashlib

import numpy as np

from ..datasets.index import STORED_FROM_BYTES, load_array, store_array
from ..processor import light_processor
from .examine import Task
from .processes import examine_all

_VIDEO = 1 << 31  # in a stored length


def row_lengths(data, processor, *, max_length=None, workers=None):
    """(tokens, tiles) of every row of `Data` as it is trained, int64 each; 0 tokens for a row that can't be used.

    From the pictures' headers only; videos at draw (0, 0). Kept beside the files and used again for the same file,
    model and max_length; they don't notice a picture that was replaced by one of another size.
    """
    both, _, _ = _stored_lengths(data, processor, max_length, workers)
    return both >> 32, both & (_VIDEO - 1)


def epoch_lengths(data, processor, *, seed, epochs, max_length=None, workers=None):
    """`row_lengths` in the epochs of a run: a video gives another number of frames in each.

    Returns: (tokens, tiles), int64 [rows] each; [epochs, rows] where there are videos, whose headers are read again for
        every epoch.
    """
    both, sources, rows = _stored_lengths(data, processor, max_length, workers)
    lengths, is_video = np.stack([both >> 32, both & (_VIDEO - 1)]), (both & _VIDEO) > 0
    if not is_video.any():
        return lengths[0], lengths[1]
    wanted = [np.unique(rows[is_video & (sources == number)]) for number in range(len(data.sources))]
    drawn = np.repeat(lengths[:, None], epochs, axis=1)  # [2, epochs, rows]
    for epoch in range(epochs):
        task = Task(data.sources, light_processor(processor), max_length, draw=(seed, epoch), wanted=frozenset())
        for block in examine_all(task, wanted, workers=workers):
            places = np.flatnonzero(is_video & (sources == block.source))
            places = places[np.isin(rows[places], block.rows)]
            drawn[:, epoch, places] = block.final[:, np.searchsorted(block.rows, rows[places])]
    return drawn[0], drawn[1]


def _stored_lengths(data, processor, max_length, workers):
    """(tokens, tiles and whether it is a video in one int64, source, row of the source) of every row."""
    stored = [_load_lengths(source, processor, max_length) for source in data.sources]
    missing = [number for number, lengths in enumerate(stored) if lengths is None]
    if missing:
        task = Task(tuple(data.sources[n] for n in missing), light_processor(processor), max_length, wanted=frozenset())
        final = [np.zeros((2, len(data.indexes[number])), np.int64) for number in missing]
        for block in examine_all(task, [None] * len(missing), workers=workers):
            final[block.source][:, block.rows] = block.final
            final[block.source][1, block.videos] |= _VIDEO
        for number, lengths in zip(missing, final, strict=True):
            stored[number] = store_lengths(data.sources[number], data.indexes[number], lengths, processor, max_length)
    sources, rows = data.places()
    both = np.empty(len(data), np.int64)
    for number, lengths in enumerate(stored):
        both[sources == number] = lengths[rows[sources == number]]
    return both, sources, rows


def _lengths_kind(source, processor, max_length):
    said = (
        processor.fingerprint,
        max_length,
        source.max_tiles,
        source.system,
        source.format,
        str(source.root.resolve()),
    )
    return f"lengths2-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}"


def _load_lengths(source, processor, max_length):
    stored = load_array(source.annotation, _lengths_kind(source, processor, max_length))
    return None if stored is None else stored[3:]


def store_lengths(source, index, final, processor, max_length):
    """Tokens and tiles share 8 bytes: tokens · 2³² + tiles, whose highest bit marks a video."""
    tokens, tiles = final.astype(np.int64)
    found = source.annotation.stat()
    parts = [np.array([1, found.st_size, found.st_mtime_ns], np.int64), tokens << 32 | tiles]
    if found.st_size < STORED_FROM_BYTES:
        return parts[1]
    return store_array(source.annotation, _lengths_kind(source, processor, max_length), parts)[3:]
