"""Pictures that look alike though their bytes differ: burst shots, resized, recompressed and augmented copies.

A picture is kept as 64 bits (dHash: in 9 × 8 grey cells, is a cell brighter than the one to its left?) and as the
colours of 8 × 8 cells. The bits, sorted in eight orders, find candidates, so that a million pictures are not compared
each with each; the colours decide. Filled-in forms of one print look alike too: only who knows the data can tell.
"""

import os
import re

import numpy as np
from PIL import Image

from ..errors import DataError
from .groups import group_keys, in_threads, join
from .rows.media import open_image

MOST_BITS = 7  # of 64 that may differ
MOST_DIFFERENCE = 0.08  # of the colours on average, in standard deviations of the picture
MOST_GAIN, MOST_STRETCH = 1.25, 1.01  # that one may be brighter, or wider at the same height
NEIGHBOURS = 24  # next in each order that a picture is compared with
SIDE_PX = 64  # that a JPEG is decoded to at least
_AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{8,}(\.\w+)?")
_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def alike_groups(pictures, *, compare=True):
    """{digest: number} of pictures that are alike: equal numbers, directly or through others. Others are left out.

    Roboflow's augmented copies, `cat_jpg.rf.0a1b2c3d.jpg`, are known by their names.

    Args: pictures: {digest: file}; compare: whether they are decoded and looked at.
    """
    digests, files = list(pictures), list(pictures.values())
    numbers = np.arange(len(files))
    if compare and files:
        bits, colours, aspects = map(np.array, zip(*in_threads(_look, files, "comparing pictures"), strict=True))
        numbers = _alike_numbers(bits, colours, aspects)
    names = [_AUGMENTED.fullmatch(os.path.basename(file)) for file in files]
    keys = [[number, *([name[1]] if name else [])] for number, name in zip(numbers.tolist(), names, strict=True)]
    numbers = group_keys(keys)
    is_alone = np.bincount(numbers, minlength=len(numbers))[numbers] == 1
    return {digests[place]: int(numbers[place]) for place in np.flatnonzero(~is_alone).tolist()}


def _look(file):
    """(bits uint8 [8], colours uint8 [192], width / height, 0 for a picture that can't be read)."""
    try:
        image = open_image(file, at_least_px=SIDE_PX)
    except DataError:  # the data's check names it, and a run refuses it
        return np.zeros(8, np.uint8), np.zeros(192, np.uint8), 0.0
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    colours = np.asarray(image.resize((8, 8), Image.Resampling.BOX))
    return np.packbits(grey[:, 1:] > grey[:, :-1]), colours.ravel(), image.width / image.height


def _alike_numbers(bits, colours, aspects):
    """int64 [n]: equal for pictures that are alike, directly or through others; of arrays of what `_look` gives."""
    numbers = np.arange(len(aspects))
    readable = np.flatnonzero(aspects > 0)
    for first in range(8):
        order = readable[np.lexsort(np.roll(bits[readable], -first, axis=1).T[::-1])]
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            one, other = order[:-step], order[step:]
            is_near = _ONES[bits[one] ^ bits[other]].sum(axis=1) <= MOST_BITS
            is_near &= numbers[one] != numbers[other]
            one, other = one[is_near], other[is_near]
            same = _same_colours(colours[one], colours[other]) & _same_ratio(aspects[one], aspects[other], MOST_STRETCH)
            for pair in zip(one[same].tolist(), other[same].tolist(), strict=True):
                join(numbers, *pair)
            while (numbers[numbers] != numbers).any():
                numbers = numbers[numbers]
    return numbers


def _same_colours(one, other):
    """bool [n] of colours uint8 [n, 192]; one may be the brighter."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    means = one.mean(axis=1) + 1, other.mean(axis=1) + 1
    difference = np.abs(other * (means[0] / means[1])[:, None] - one).mean(axis=1)
    return _same_ratio(*means, MOST_GAIN) & (difference <= MOST_DIFFERENCE * (one.std(axis=1) + 8))


def _same_ratio(one, other, most):
    return (one <= other * most) & (other <= one * most)
