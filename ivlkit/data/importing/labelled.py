"""What a labelling tool says of one picture, whichever tool it was, and the rows that are made of it.

The readers of the tools (`coco`, `yolo`, `voc`, `label_studio`) give `Labelled`; here it becomes questions and answers.
A box that can't be used is listed, and nothing is asked that it would belong to: an answer is whole or it is not there.
"""

import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

from ...errors import DataError
from ..rows.boxes import box_text
from ..rows.formats import with_places
from ..rows.media import AS_REFERENCE, image_size, is_remote, upright_size
from .tables import PICTURE_SUFFIXES, choose_columns, files_below, row_from_cells

# What may be asked, and the words: the released models' own for a thing and for all of them.
QUESTIONS = {
    "class": "Please provide the bounding box coordinate of the region this sentence describes: <ref>{name}</ref>",
    "all": "Please detect and label all objects in the following image and mark their positions.",
    "count": "How many objects of the kind {name} are there?",
}
OF_BOXES = ("labels", "count")  # fields beside the typed ones: "cup, pen" and the number of all boxes
SLACK = 0.002  # of a side, by which rounded boxes may leave their picture; they are cut at its edge
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio writes before the name of an uploaded file


@dataclass(frozen=True)
class Labelled:
    """What is known of one picture."""

    where: str  # "train/_annotations.coco.json: a.jpg"
    picture: str  # its path as the tool has it, or only its name
    boxes: Sequence = ()  # (name, (left, top, right, bottom)) each, or (name or None for any, what makes it unusable)
    per: int | None = None  # what a side of the picture counts in them: 1 or 100; None: its pixels
    size: tuple | None = None  # (width_px, height_px) of the picture that was labelled, if it is said
    texts: dict = field(default_factory=dict)  # {field: what was chosen or typed}
    part: str | None = None  # of the split: "train"


def beside(name, picture):
    """The path of a picture that is named from the folder of a file: "train/a.jpg" for "train/labels.json", "a.jpg"."""
    return f"{name.rpartition('/')[0]}/{picture}".removeprefix("/")


class Pictures:
    """Finds the pictures below a folder by as much of their paths as a tool's file has right."""

    def __init__(self, root):
        self.root = Path(os.path.abspath(root))

    @cached_property
    def _by_name(self):
        """{name: [parts of its path, …], (name without its suffix,): …}."""
        found = defaultdict(list)
        for path in files_below(self.root):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                for key in (_folded(path.name), (_folded(path.stem),)):
                    found[key].append(path.relative_to(self.root).parts)
        return found

    def find(self, name, where):
        """The path, from the root on, of the picture that shares most of this path's end, then most of its folders.

        The name as it is if there is none. Raises: DataError if several fit equally well.
        """
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
        if not parts or name == "/".join(parts) and (self.root / name).is_file():
            return name
        plain = _folded(parts[-1])
        keys = (plain, _UPLOAD.sub("", plain), (plain,))
        found = next((self._by_name[key] for key in keys if key in self._by_name), [])

        def rank(each):
            return len(os.path.commonprefix([parts[::-1], each[::-1]])), len({*parts} & {*each})

        ranks = sorted((rank(each), each) for each in found)
        if len(ranks) > 1 and ranks[-1][0] == ranks[-2][0]:
            both = " or ".join("/".join(each) for _, each in ranks[-2:])
            todo = "name the folder of the pictures: images=…"
            raise DataError(f"{name} may be {both}", "one", todo, where=where)
        return "/".join(ranks[-1][1]) if ranks else name if is_remote(name) else "/".join(parts)


def _folded(name):
    return unicodedata.normalize("NFC", name).casefold()


def labelled_rows(records, root, *, ask=None, question=None, answer=None):
    """Yield (where, released row or DataError, part of the split or None) of a list of `Labelled` and DataErrors.

    Args:
        ask: names of QUESTIONS, perhaps with other words: ("class=Where is the {name}?", "count"). Default: "class", or
            nothing where an answer is named.
        question: words for all that is asked and has none of its own; beside `answer` the question of that.
        answer: a field, as a table's column: of `texts`, or "labels" or "count"; several make one JSON answer.
    """
    asked, columns, pictures, numbers = _asked(ask, question, answer), None, Pictures(root), count()
    if answer:
        header = dict.fromkeys(name for record in records for name in getattr(record, "texts", ()))
        columns = choose_columns([*header, "image", *OF_BOXES], "labels", question=question, answer=answer)
    for record in records:
        part = getattr(record, "part", None)
        try:
            if isinstance(record, DataError):
                raise record
            name = pictures.find(record.picture, record.where)
            for row in _rows(record, name, pictures.root / name, asked, columns):
                row = row if isinstance(row, DataError) else {"image": name, **row, "id": next(numbers)}
                yield record.where, row, part
        except DataError as error:
            yield record.where, error, part


def _asked(ask, question, answer):
    """{kind: words}."""
    ask = (() if answer else ("class",)) if ask is None else (ask,) if isinstance(ask, str) else ask
    asked = {kind: words for kind, _, words in (each.partition("=") for each in ask)}
    for kind, words in asked.items():
        if kind not in QUESTIONS:
            raise DataError(f"ask={kind!r}; expected one of {', '.join(QUESTIONS)}; choose one")
        asked[kind] = words or (not answer and question) or QUESTIONS[kind]
        if "{name}" in QUESTIONS[kind] and "{name}" not in asked[kind]:
            raise DataError(f"the words {asked[kind]!r} for {kind}; expected {{name}} where the thing's name goes")
    return asked


def _rows(record, name, path, asked, columns):
    """Yield every row about a picture, and a DataError of what can't be asked about it."""
    needs_boxes = asked or {*OF_BOXES} & {*columns.answer}
    boxes, faults = _usable(record, path) if needs_boxes else ({}, [])
    for thing, found in faults:
        left = f"{thing!r} of this picture" if thing else "this picture's boxes"
        expected = "all of its boxes whole, with an area, and inside"
        yield DataError(f"{found}; {left} can't be asked about", expected, "correct it", where=record.where)
    incomplete = {thing for thing, _ in faults}  # nothing is asked about things of which a box can't be used
    written = {thing: box_text(thing, *found) for thing, found in boxes.items()}
    if "all" in asked and boxes and not incomplete:
        yield _row(asked["all"], "\n".join(written.values()))
    for thing in boxes if None not in incomplete else ():
        for kind, said in (("class", written[thing]), ("count", str(len(boxes[thing])))):
            if kind in asked and thing not in incomplete:
                yield _row(asked[kind].replace("{name}", thing), said) | {"label": thing}
    if columns:
        counted = {"labels": ", ".join(boxes), "count": sum(map(len, boxes.values()))} if needs_boxes else {}
        cells = record.texts | {"image": name} | (counted if not faults else {})
        yield row_from_cells(cells, columns, record.where)
    elif not boxes and not faults:
        others = f"; or name a field, answer=… ({', '.join(record.texts)})" if record.texts else ""
        raise DataError(f"{record.where}: no box; nothing is asked about it; expected one at least{others}")


def _row(question, answer):
    return {"conversations": [{"from": "human", "value": with_places(question)}, {"from": "gpt", "value": answer}]}


def _usable(record, path):
    """({name: [[x1, y1, x2, y2] in thousandths, …]}, [(name, what was found) of the others])."""
    boxes, faults = defaultdict(list), [each for each in record.boxes if isinstance(each[1], str)]
    whole = [each for each in record.boxes if not isinstance(each[1], str)]
    sides = _sides(record, path) if whole else None
    for name, box in whole:
        name = name.strip() if isinstance(name, str) else ""
        shares = [number / side for number, side in zip(box, sides * 2, strict=True)]
        is_inside = all(math.isfinite(share) and -SLACK <= share <= 1 + SLACK for share in shares)
        corners = [round(1000 * min(max(share, 0), 1)) for share in shares] if is_inside else [0] * 4
        is_share = not record.per and max(box) <= 1  # in pixels it would be within the first one
        if name and not is_share and corners[0] < corners[2] and corners[1] < corners[3]:  # left of right, above
            boxes[name].append(corners)
        else:
            said = [round(number, 4) for number in box]
            unit = " pixels; it looks like shares of 1" if is_share else ""
            faults.append((name or None, f"the box {said} of {name!r} in a picture of {sides[0]} x {sides[1]}{unit}"))
    return boxes, faults


def _sides(record, path):
    """What the sides count in a record's boxes. A declared size has to be the file's; EXIF may not turn it unsaid.

    A file that is not there is said where its row is read, or here if nothing else tells its size.
    """
    sides = (record.per,) * 2 if record.per else record.size
    if sides and not path.is_file():
        return sides
    size, is_turned = upright_size(path, record.where)
    if is_turned and not (record.size == size != image_size(path, record.where, rules=AS_REFERENCE)):
        said = f"{path.name}: EXIF turns it, and nothing says which way up it was labelled"
        todo = "save it turned, and correct its boxes"
        raise DataError(said, "a picture that is stored upright", todo, where=record.where)
    if record.size and record.size != size:
        said = "labelled as {} x {} px, the file has {} x {}".format(*record.size, *size)
        raise DataError(f"{path.name}: {said}", "the picture that was labelled", "get that one", where=record.where)
    return sides or size
