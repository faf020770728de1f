"""The unit and the order of a file's boxes, found from all of them together: those of one file are of one kind.

A reading of the numbers, such as pixels as [x, y, width, height], holds if no box leaves its own picture and every one
has an area. It is taken if no other one holds, or if many boxes support it: some end on the edge of their pictures.
Otherwise what may be is said, and nothing is changed.
"""

import json
import re
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from ..rows.media import image_size, is_turned
from ..rows.records import parse_row, path_inside

MANY = 10  # boxes; fewer may be as they are by chance
SMALL_PX = 900  # a side from which on pixels and shares of 1000 can't be told apart
EDGE, SLACK = 0.995, 0.002  # of a side: from where on a box ends on the edge; by how much a rounded one may leave
ORDERS = {
    "[x1, y1, x2, y2]": lambda box: box,
    "[x, y, width, height]": lambda box: np.concatenate([box[..., :2], box[..., :2] + box[..., 2:]], axis=-1),
    "[y1, x1, y2, x2]": lambda box: box[..., [1, 0, 3, 2]],
}
OURS, PIXELS, PALIGEMMA = "shares of 1000", "pixels", "PaliGemma's shares of 1024"
SIDES = {"fractions": 1, "percent": 100, OURS: 1000, PALIGEMMA: 1024}  # what a whole side counts; of pixels its own
XYXY, _, YXYX = ORDERS
_MARKS = (b"<box>", b"bbox_2d", b"<loc")
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_NUMBERS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_TAGGED = re.compile(r"<box>(\s*\[.*?\]\s*)</box>", re.S)
_QWEN = re.compile(r"\s*(?:```json)?\s*(\[\s*\{.*\}\s*\])\s*(?:```)?\s*", re.S)
_LOCATED = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*([^<;]*)(?:\s*;\s*)?")


class Units(NamedTuple):
    """What was found: `unit` and `order` are None where several may be."""

    found: str
    unit: str | None = None
    order: str | None = None

    @property
    def todo(self):
        """What a person may do about it."""
        return "--fix rescales them" if self.unit else "find out which they are; --fix leaves them"


def with_boxes(text, change):
    """A text with all its boxes written in our notation: `change(box, notation)` gives the numbers of each."""
    read = json.JSONDecoder().decode
    if found := "bbox_2d" in text and _QWEN.fullmatch(text):
        with suppress(ValueError, TypeError, KeyError):
            things = [(one.get("label"), [float(number) for number in one["bbox_2d"]]) for one in read(found[1])]
            return "\n".join(_written(name, change(box, "Qwen's bbox_2d")) for name, box in things)
    if "<loc" in text:
        return _LOCATED.sub(
            lambda m: _written(m[5], change([*map(float, m.groups()[:4])], PALIGEMMA)) + "\n", text
        ).strip()
    return _TAGGED.sub(lambda found: _tagged(found, change), text)


def _tagged(found, change):
    boxes = [change([*map(float, numbers)], "<box>") for numbers in _NUMBERS.findall(found[1])]
    return f"<box>{boxes}</box>" if boxes else found[0]


def _written(name, box):
    return f"{f'<ref>{name.strip()}</ref>' if name else ''}<box>{[box]}</box>"


def guess_units(index, root):
    """`Units` of a file's boxes; None if they are in shares of 1000, or too few to say. Args: index: a `LineIndex`."""
    boxes, sizes, notations, turned = [], [], Counter(), 0
    for row, size, is_turn in _rows_with_boxes(index, root):
        for turn in row["conversations"]:
            before = len(boxes)
            with_boxes(turn["value"], lambda box, notation: notations.update([notation]) or boxes.append(box) or box)
            sizes += [size] * (len(boxes) - before)
        turned += is_turn
    if not boxes:
        return None
    boxes, sizes = np.array(boxes), np.array(sizes, float)
    if len(notations) > 1:
        return Units(f"boxes in several notations: {', '.join(notations)}") if len({*notations} - {"<box>"}) else None
    found = _decide(boxes, sizes, *notations)
    if found and found.unit == PIXELS and turned:
        return Units(f"{found.found}; {turned:,} of the pictures are turned by EXIF, and boxes may be drawn on either")
    return found


def _rows_with_boxes(index, root):
    """(row, (width_px, height_px) or NaNs of its one picture, whether EXIF turns it)."""
    look = lru_cache(100_000)(_look)
    for start in range(0, len(index), 1000):
        for line in index.lines(start, min(start + 1000, len(index))):
            if any(mark in line for mark in _MARKS):
                with suppress(DataError):
                    row = parse_row(line, "")
                    if _has_texts(row):
                        yield row, *look(root, _picture(row))


def _has_texts(row):
    turns = row.get("conversations")
    return isinstance(turns, list) and all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns)


def _picture(row):
    """The name of a row's only picture, or None."""
    names = row.get("image")
    names = names if isinstance(names, list) else [names]
    return names[0] if len(names) == 1 and isinstance(names[0], str) and names[0] else None


def _look(root, name):
    """((width_px, height_px), whether EXIF turns it); NaNs where it can't be read."""
    with suppress(DataError, OSError):
        if name:
            path = path_inside(root, name, "")
            return image_size(path), is_turned(path)
    return (np.nan, np.nan), False


def _decide(boxes, sizes, notation):
    if notation == PALIGEMMA:
        return Units(f"{len(boxes):,} boxes as <locdddd>, {PALIGEMMA}", PALIGEMMA, YXYX)
    top, many = boxes.max(), len(boxes) >= MANY
    held = _readings(boxes, sizes, top, many)
    as_ours = held.pop((OURS, XYXY), None)
    if as_ours is not None or top <= 100:
        held = {key: edges for key, edges in held.items() if key[0] != OURS}
    if as_ours is not None and top > 100:  # then only pixels that would leave their pictures were they shares of 1000
        small = int((sizes.min(axis=1) < SMALL_PX).sum())
        held = {key: edges for key, edges in held.items() if key[0] == PIXELS and edges and small >= MANY}
        if not held and notation != "<box>" and many and as_ours:
            held = {(OURS, XYXY): as_ours}
    if not held or top > 1 and not many and as_ours is None:
        return Units(f"{len(boxes):,} boxes as {notation}, of unknown unit") if notation != "<box>" else None
    said = f"{len(boxes):,} boxes as {notation}, none over {top:g}"
    best = [key for key, edges in held.items() if edges or len(held) == 1 and (top > 1000 or key[0] != PIXELS)]
    if len(best) == 1 and (many or top <= 1 and len(held) == 1):
        (unit, order), edges = best[0], held[best[0]]
        return Units(f"{said}: {unit} as {order}; none leaves its own picture, {edges:,} end on its edge", unit, order)
    several = len({unit for unit, _ in held}) > 1
    may_be = dict.fromkeys(unit if several else f"{unit} as {order}" for unit, order in held)
    return Units(f"{said}: they may be {' or '.join(may_be)}")


def _readings(boxes, sizes, top, many):
    """{(unit, order): boxes that end on an edge} of what no box speaks against."""
    held = {}
    units = (
        ["fractions"] if top <= 1 and (boxes % 1).any() else [PIXELS, "percent", OURS] if top <= 100 else [PIXELS, OURS]
    )
    for unit in units:
        for order in ORDERS if unit == PIXELS else [*ORDERS][:2]:  # the others show no difference between x and y
            shares = to_shares(boxes, sizes, unit, order)
            if many and (unit, XYXY) in held and (order != YXYX or (sizes[:, 0] == sizes[:, 1]).all()):
                continue  # it holds by chance, or in squares, which show no difference
            if _fits(shares):
                held[unit, order] = int((shares[:, 2:].max(axis=1) >= EDGE).sum())
    return held


def _fits(shares):
    inside = (shares >= -SLACK).all() and (shares <= 1 + SLACK).all()  # false for NaN too
    return bool(inside and (shares[:, :2] < shares[:, 2:]).all())


def to_shares(boxes, sizes, unit, order):
    """Boxes [N, 4] of pictures of these sizes [N, 2] → left, top, right, bottom in shares of 1 [N, 4]."""
    sides = np.tile(sizes, (1, 2)) if unit == PIXELS else SIDES[unit]
    return ORDERS[order](boxes) / sides


def rescaler(index, root):
    """A function of a line of a file that gives the line with its boxes in shares of 1000, if their unit is known."""
    units, look = guess_units(index, root), lru_cache(100_000)(_look)

    def rescale(line):
        if not any(mark in line for mark in _MARKS):
            return line
        with suppress(DataError):
            row = parse_row(line, "")
            if _has_texts(row):
                size = look(root, _picture(row))[0]
                for turn in row["conversations"]:
                    turn["value"] = with_boxes(turn["value"], lambda box, _: _thousandths(box, size, units))
                return json.dumps(row, ensure_ascii=False).encode() + b"\n"
        return line

    return rescale if units and units.unit else lambda line: line


def _thousandths(box, size, units):
    shares = to_shares(np.array([box]), np.array([size], float), units.unit, units.order)[0]
    return [round(1000 * min(max(share, 0.0), 1.0)) for share in shares.tolist()]
