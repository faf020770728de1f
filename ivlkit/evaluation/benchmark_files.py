"""Annotation files of public benchmarks, as their makers give them out → questions, each with its picture's file name.

One reader a benchmark: content of a file → `Question`s. Nothing is downloaded, and no file that has to be unpickled is
read: RefCOCO comes as the JSON lines of the released evaluation guide.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..data.rows.records import parse_row, path_inside
from ..errors import DataError


@dataclass(frozen=True)
class Question:
    """One row of a benchmark, before its prompt."""

    where: str  # "val_v1.0.json: data[12]"
    id: object  # the benchmark's own, for a submission
    picture: str  # file name, perhaps with folders
    text: str
    truth: str | None  # None: only the benchmark's server knows it
    extra: dict = field(default_factory=dict)  # other fields; `answers` are all accepted ones


def _question(where, entry, number, picture, text, truth):
    """A question by the names of its fields; without one of its number, its place is its id."""
    number = where if number is None else _field(entry, number, (int, str), where)
    return Question(where, number, _field(entry, picture, str, where), _field(entry, text, str, where), truth)


def read_textvqa(path):
    """TextVQA_0.5.1_*.json: `data` with question, image_id, and ten answers, none in the test file."""
    for where, entry in _entries(_load(path, dict), "data", path):
        answers = _texts(entry, "answers", where) if "answers" in entry else None
        truth = Counter(answers).most_common(1)[0][0] if answers else None
        asked = _question(where, entry, "question_id", "image_id", "question", truth)
        yield replace(asked, picture=f"{asked.picture}.jpg", extra={"answers": answers} if answers else {})


def read_rrc(path, *, picture, kinds):
    """DocVQA's and InfographicVQA's *_v1.0.json and *_v1.0_withQT.json: `data` with questionId and, if given, answers.

    Args: picture, kinds: names of the fields of the picture and of the kinds of question or answer.
    """
    for where, entry in _entries(_load(path, dict), "data", path):
        answers = _texts(entry, "answers", where) if entry.get("answers") else None
        extra = {kinds: entry[kinds]} if kinds in entry else {}
        asked = _question(where, entry, "questionId", picture, "question", answers[0] if answers else None)
        yield replace(asked, extra=extra | ({"answers": answers} if answers else {}))


def read_chartqa(path):
    """ChartQA's *_human.json and *_augmented.json: a list of imgname, query, label."""
    for where, entry in _numbered(_load(path, list), f"{path.name}: "):
        yield _question(where, entry, None, "imgname", "query", str(_field(entry, "label", (str, int, float), where)))


def read_pope(path):
    """POPE's coco_pope_*.json: JSON lines of question_id, image, text, label."""
    for where, entry in _lines(path):
        label = _field(entry, "label", str, where)
        if label not in ("yes", "no"):
            raise DataError(f"{where}: `label` is {label!r}; expected yes or no")
        yield _question(where, entry, "question_id", "image", "text", label)


def read_refcoco(path):
    """The guide's refcoco*_*.jsonl: image, sent, bbox [x1, y1, x2, y2] in pixels, width, height.

    The truth is the box in thousandths of width and height, as the models answer; an overlap does not change by that.
    """
    for where, entry in _lines(path):
        box = _field(entry, "bbox", list, where)
        if len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            raise DataError(f"{where}: `bbox` is {box!r:.80}; expected [x1, y1, x2, y2] in pixels")
        sides = [_field(entry, name, (int, float), where) for name in ("width", "height")]
        if min(sides) <= 0:
            raise DataError(f"{where}: a picture of {sides[0]} x {sides[1]} px; expected the benchmark's own numbers")
        shares = [1000 * value / side for value, side in zip(box, sides * 2, strict=True)]
        truth = f"[{', '.join(f'{share:.6f}' for share in shares)}]"
        yield _question(where, entry, None, "image", "sent", truth)


def read_coco_captions(path):
    """COCO's captions_*.json and image_info_*.json, or coco_karpathy_test.json, a list of image and five captions."""
    content, captions = _load(path, (dict, list)), {}
    if isinstance(content, list):
        for where, entry in _numbered(content, f"{path.name}: "):
            name = _field(entry, "image", str, where)
            number = Path(name).stem.rpartition("_")[2]
            if not number.isdecimal():
                raise DataError(f"{where}: `image` is {name!r}; expected a name that ends in the picture's number")
            yield _caption(where, int(number), name, _texts(entry, "caption", where))
        return
    for where, entry in _entries(content, "annotations", path) if "annotations" in content else ():
        image_id = _field(entry, "image_id", int, where)
        captions.setdefault(image_id, []).append(_field(entry, "caption", str, where).strip())
    for where, entry in _entries(content, "images", path):
        image_id = _field(entry, "id", int, where)
        if captions and image_id not in captions:
            raise DataError(f"{where}: no caption of picture {image_id}; expected one at least; is the file whole?")
        yield _caption(where, image_id, _field(entry, "file_name", str, where), captions.get(image_id))


def _caption(where, image_id, name, captions):
    extra = {"answers": tuple(captions)} if captions else {}
    return Question(where, image_id, name, "", captions[0] if captions else None, extra)


READERS = {
    "textvqa": read_textvqa,
    "docvqa": partial(read_rrc, picture="image", kinds="question_types"),
    "infovqa": partial(read_rrc, picture="image_local_name", kinds="answer_type"),
    "chartqa": read_chartqa,
    "pope": read_pope,
    "refcoco": read_refcoco,
    "coco_captions": read_coco_captions,
}


# files and fields -----------------------------------------------------------------------------------------------------


def find_file(folders, names, *, name, get):
    """The first of these file names in the first of these folders that has one; an error says what to `get`."""
    found = next((path for folder in folders for each in names if (path := folder / each).is_file()), None)
    if found is None:
        looked = ", ".join(map(str, folders))
        raise DataError(f"{name}: no {' or '.join(names)} in {looked}; get {get}")
    return found


def find_pictures(questions, folders, *, name, get):
    """The path of every question's picture, in the first folder that has it, with or without its own folders."""
    found = {}
    for question in questions:
        if question.picture not in found:
            names = (question.picture, os.path.basename(question.picture))
            paths = (path_inside(folder, each, question.where) for folder in folders for each in names)
            found[question.picture] = next((path for path in paths if path.is_file()), None)
    missing = [picture for picture, path in found.items() if path is None]
    if missing:
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(
            f"{name}: {len(missing):,} of {len(found):,} pictures are missing, first {missing[0]}; looked in {looked}; "
            f"expected all; get {get}; or name their folder (images=, --images)"
        )
    return [found[question.picture] for question in questions]


def _load(path, kinds):
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({error}); expected the benchmark's file; fetch it again") from error
    if not isinstance(content, kinds):
        raise DataError(f"{path}: a {type(content).__name__}; expected the benchmark's file as it was given out")
    return content


def _lines(path):
    """(where, row) of a file of JSON lines."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            yield where, parse_row(line, where)


def _entries(content, key, path):
    """(where, entry) of the list under a key."""
    if not isinstance(content.get(key), list):
        raise DataError(f"{path}: no list `{key}`; expected the benchmark's file as it was given out")
    return _numbered(content[key], f"{path.name}: {key}")


def _numbered(entries, start):
    for number, entry in enumerate(entries):
        where = f"{start}[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: a {type(entry).__name__}; expected an object")
        yield where, entry


def _field(entry, key, kinds, where):
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise DataError(f"{where}: `{key}` is {value!r:.80}; expected the benchmark's file as it was given out")
    return value


def _texts(entry, key, where):
    values = _field(entry, key, list, where)
    if not values or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: `{key}` is {values!r:.80}; expected a list of texts, one at least")
    return tuple(values)
