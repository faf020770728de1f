"""The unit and the order of a file's boxes, found from all of them together: those of one file are of one kind.

A reading of the numbers, such as pixels as [x, y, width, height], holds if no box leaves its own picture and every one
has an area. It is taken if many boxes support it: some end on the edge of their pictures, or no other one holds.
Otherwise what may be is said, and nothing is changed. In square pictures [y1, x1, y2, x2] is not looked for.
"""

import json
import re
from contextlib import suppress
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from ...errors import DataError, all_faults
from ..rows.boxes import TAGGED, box_text, parse_boxes
from ..rows.formats import release
from ..rows.media import upright_size
from ..rows.records import parse_row, path_inside

MANY = 10  # boxes; fewer may be as they are by chance
SMALL_PX = 900  # a side from which on pixels and shares of 1000 can't be told apart
EDGE, SLACK = 0.995, 0.002  # of a side: from where on a box ends on the edge; by how much a rounded one may leave
ORDERS = {
    "[x1, y1, x2, y2]": lambda box: box,
    "[x, y, width, height]": lambda box: np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1),
    "[y1, x1, y2, x2]": lambda box: box[:, [1, 0, 3, 2]],
}
XYXY, XYWH, YXYX = ORDERS
PIXELS, PERCENT, OURS, PALIGEMMA = "pixels", "percent", "shares of 1000", "PaliGemma's shares of 1024"
SIDES = {"fractions": 1, PERCENT: 100, OURS: 1000, PALIGEMMA: 1024}  # what a whole side counts; of pixels its own
_MARKS = (b"<box>", b"bbox_2d", b"<loc")
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


def guess_units(index, root):
    """`Units` of a file's boxes; None if they are in shares of 1000, or too few to say. Args: index: a `LineIndex`."""
    boxes, sizes, notations, turned = [], [], set(), 0
    look = lru_cache(100_000)(partial(_look, root))
    for line in index:
        row = {}
        if any(mark in line for mark in _MARKS):
            with suppress(DataError):
                row = parse_row(line, "")
        size, is_turn = look(_only_picture(row))
        found = [each for _, turn, key in texts_of(row) for each in boxes_in(turn[key])]
        boxes += [box for _, box in found]
        sizes += [size] * len(found)
        notations |= {notation for notation, _ in found}
        turned += bool(found) and is_turn
    if len(notations) != 1:
        return Units(f"boxes in several notations: {', '.join(sorted(notations))}") if notations else None
    found = _decide(np.array(boxes), np.array(sizes, float), *notations)
    if found and found.unit == PIXELS and turned:
        return Units(f"{found.found}; {turned:,} of the pictures are turned by EXIF, and boxes may be drawn on either")
    return found


def rescaler(index, root):
    """A function of a file's row that brings its boxes into shares of 1000, if their unit is known."""
    units, look = guess_units(index, root), lru_cache(100_000)(partial(_look, root))

    def thousandths(box, size):
        (shares,) = to_shares(np.array([box]), np.array([size], float), units.unit, units.order).tolist()
        return [round(1000 * min(max(share, 0.0), 1.0)) for share in shares]

    def rescale(row):
        size, _ = look(_only_picture(row))
        for _, turn, key in texts_of(row):
            turn[key] = with_boxes(turn[key], lambda _, box: thousandths(box, size))

    return rescale if units and units.unit else lambda row: None


# rows and texts ------------------------------------------------------------------------------------------------------


def texts_of(row):
    """[(role, what holds a text, its key there), …] of a row as it was parsed; one of several parts has no role."""
    turns, places = row.get("conversations") or row.get("messages"), []
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for turn in turns:
        role, parts = turn.get("from", turn.get("role")), turn.get("content")
        parts = parts if isinstance(parts, list) else ()
        places += [(role, turn, "value"), (role, turn, "content")]
        places += [(role if len(parts) == 1 else None, part, "text") for part in parts]
    return [place for place in places if isinstance(place[1], dict) and isinstance(place[1].get(place[2]), str)]


def pictures_of(row):
    """The pictures' paths; [] where the row has none, or something else in their place."""
    names = row.get("image") or []
    names = names if isinstance(names, list) else [names]
    return names if all(isinstance(name, str) for name in names) else []


def _only_picture(row):
    names = pictures_of(all_faults(release(row))[0] or {})
    return names[0] if len(names) == 1 else ""


def _look(root, name):
    """((width_px, height_px), whether EXIF turns it); NaNs where it can't be read."""
    with suppress(DataError, OSError):
        if name:
            return upright_size(path_inside(root, name, ""))
    return (np.nan, np.nan), False


def boxes_in(text):
    """[(notation, [four numbers])] of a text, in its order."""
    found = []
    with_boxes(text, lambda notation, box: found.append((notation, box)))
    return found


def with_boxes(text, change):
    """A text with all its boxes in our notation: `change(notation, [four numbers])` gives those of each."""
    if "bbox_2d" in text and (found := _QWEN.fullmatch(text)):
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # some other JSON
            things = [((one.get("label") or "").strip(), _four(one["bbox_2d"])) for one in json.loads(found[1])]
            return "\n".join(box_text(name, change("Qwen's bbox_2d", box)) for name, box in things)
    if _LOCATED.search(text):
        numbers = [(found[5], [float(found[place]) for place in range(1, 5)]) for found in _LOCATED.finditer(text)]
        written = iter([box_text(name.strip(), change(PALIGEMMA, box)) + "\n" for name, box in numbers])
        return _LOCATED.sub(lambda _: next(written), text).strip()

    def tagged(found):
        boxes = [change("<box>", box) for box in parse_boxes(found[1])]
        return box_text("", *boxes) if boxes else found[0]

    return TAGGED.sub(tagged, text)


def _four(numbers):
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


# numbers -------------------------------------------------------------------------------------------------------------


def _decide(boxes, sizes, notation):
    if notation == PALIGEMMA:
        return Units(f"{len(boxes):,} boxes as <locdddd>, {PALIGEMMA}", PALIGEMMA, YXYX)
    top, many = boxes.max(), len(boxes) >= MANY
    held = _readings(boxes, sizes, top, many)
    as_ours = held.pop((OURS, XYXY), None)
    if as_ours is not None or top <= 100:
        held.pop((OURS, XYWH), None)
    if as_ours is not None and top > 100:  # then only pixels that would leave their pictures were they shares of 1000
        small = int((sizes.min(axis=1) < SMALL_PX).sum())
        held = {key: edges for key, edges in held.items() if edges and small >= MANY}
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
    if top <= 1 and (boxes % 1).any():
        units = ["fractions"]
    else:
        units = [PIXELS, PERCENT, OURS] if top <= 100 else [PIXELS, OURS]
    held, is_square = {}, (sizes[:, 0] == sizes[:, 1]).all()
    for unit in units:
        for order in ORDERS if unit == PIXELS else (XYXY, XYWH):  # only pixels differ between x and y
            shares = to_shares(boxes, sizes, unit, order)
            inside = (shares >= -SLACK).all() and (shares <= 1 + SLACK).all()  # false for NaN too
            by_chance = many and (unit, XYXY) in held and (order != YXYX or is_square)
            if inside and (shares[:, :2] < shares[:, 2:]).all() and not by_chance:
                held[unit, order] = int((shares[:, 2:].max(axis=1) >= EDGE).sum())
    return held


def to_shares(boxes, sizes, unit, order):
    """Boxes [N, 4] of pictures of these sizes [N, 2] → left, top, right, bottom in shares of 1 [N, 4]."""
    return ORDERS[order](boxes) / (np.tile(sizes, (1, 2)) if unit == PIXELS else SIDES[unit])
