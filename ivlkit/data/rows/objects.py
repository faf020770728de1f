"""`objects` of a row, as ms-swift writes them: names and boxes beside the text, filled into <ref-object> and <bbox>.

`{"ref": ["cat"], "bbox": [[50, 20, 100, 80]]}` fills the first `<ref-object>` with `<ref>cat</ref>` and the first
`<bbox>` with `<box>[[x1, y1, x2, y2]]</box>`, in shares of 1000 of the picture's width and height.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from ...errors import DataError
from .boxes import box_text
from .formats import short
from .media import upright_size

MARKS = {"ref": "<ref-object>", "bbox": "<bbox>"}
_MARK = re.compile("|".join(MARKS.values()))


def fill_objects(objects, turns, images):
    """Yield the faults of `objects`; returns the turns with them written out."""
    if not isinstance(objects, Mapping) or not all(isinstance(objects.get(key) or [], list) for key in MARKS):
        yield _fault(f"`objects` is {short(objects)}", '{"ref": [names], "bbox": [[x1, y1, x2, y2], …]}')
        return turns
    texts = "".join(turn.text for turn in turns)
    for key, mark in MARKS.items():
        if len(objects.get(key) or []) != texts.count(mark):
            found = f"{len(objects.get(key) or [])} in `{key}` of `objects` but {texts.count(mark)} {mark}"
            yield _fault(found, "one for each")
            return turns
    names = objects.get("ref") or []
    try:
        if not all(isinstance(name, str) and name for name in names):
            raise _fault(f"`ref` of `objects` is {short(names)}", "names")
        written = {"<ref-object>": (f"<ref>{name}</ref>" for name in names), "<bbox>": iter(_boxes(objects, images))}
    except DataError as fault:
        yield fault
        return turns
    return tuple(replace(turn, text=_MARK.sub(lambda found: next(written[found[0]]), turn.text)) for turn in turns)


def _fault(found, expected, todo="correct `objects`"):
    return DataError(found, expected, todo, code="objects")


def _boxes(objects, images):
    boxes, numbers = objects.get("bbox") or [], objects.get("image_id")
    if not boxes:
        return []
    numbers = [0] * len(boxes) if numbers is None and len(images) == 1 else numbers
    known = isinstance(numbers, list) and all(type(number) is int and 0 <= number < len(images) for number in numbers)
    if not known or len(numbers) != len(boxes):
        found = f"{len(boxes)} boxes of {len(images)} pictures, `image_id` is {short(numbers)}"
        raise _fault(found, "the number of its picture for each box, counted from 0")
    sizes = [_size(images, number) for number in numbers]
    if objects.get("bbox_type") == "norm1":
        sizes = [(1, 1)] * len(boxes)
    elif (objects.get("bbox_type") or "real") != "real":
        raise _fault(f"`bbox_type` is {short(objects['bbox_type'])}", "real (pixels) or norm1 (shares of 1)")
    return [_box(box, size) for box, size in zip(boxes, sizes, strict=True)]


def _size(images, number):
    """(width_px, height_px). Of a picture that EXIF turns nothing says which way up the box was drawn."""
    size, is_turned = upright_size(images[number])
    if is_turned:
        found = f"a box on {short(str(images[number]))}, which its EXIF turns or mirrors"
        raise _fault(found, "a picture that is stored upright", "save it turned, and correct its boxes")
    return size


def _box(box, size):
    numbers = isinstance(box, list) and len(box) == 4 and all(type(number) in (int, float) for number in box)
    if not numbers or not all(math.isfinite(number) for number in box):
        raise _fault(f"the box {short(box)}", "[x1, y1, x2, y2]")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]):
        raise _fault(f"the box {short(box)}", f"x1 < x2 and y1 < y2 inside {size[0]} x {size[1]}")
    shares = [round(number * 1000 / side) for number, side in zip(box, size * 2, strict=True)]
    return box_text("", shares)
