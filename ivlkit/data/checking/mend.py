"""Writes mended copies of JSONL files: only what has one right answer, and never into the file itself.

`LINE_MENDERS` and `ROW_MENDERS` name the kinds of problems that are mended, each by one function. All other rows stay
as they are, byte for byte, and none is lost; blank lines are left out.
"""

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from ...errors import DataError
from ..datasets.index import LineIndex
from ..files import replacing
from ..rows.media import AS_REFERENCE, image_size
from ..rows.records import ROLES, parse_row, parse_with_doubles
from .box_units import pictures_of, rescaler, texts_of
from .examine import control_characters
from .spellings import LONGEST, common_spellings

_SPELLINGS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "bot": "gpt", "system": "system"}


def mend(source, spellings=None):
    """Write `train.fixed.jsonl` beside `train.jsonl`.

    Args: source: a `Source`; spellings: {answer: as it is to be written}, default those of the file itself.
    Returns: (path, changed rows), or (None, 0) if nothing is to be mended.
    Raises: DataError if the new file exists already and is another's.
    """
    index = LineIndex(source.annotation)
    path = source.annotation.with_name(f"{source.annotation.stem}.fixed{source.annotation.suffix}")
    if path.exists():
        raise DataError(f"{path}: exists; expected to write it anew; move or remove it")
    spellings = spellings_of([source]) if spellings is None else spellings
    changed, rescale = 0, rescaler(index, source.root)
    with replacing(path) as aside:
        with open(aside, "wb") as file:
            for line in index:
                mended = mend_line(line, source.root, spellings, rescale)
                changed += mended != line
                file.write(mended if mended.endswith(b"\n") else mended + b"\n")
        if not changed:
            aside.unlink()
    return (path, changed) if changed else (None, 0)


def spellings_of(sources):
    """{answer: its most common spelling in these sources}, of those that have several."""
    counts = Counter()
    for line in (line for source in sources for line in LineIndex(source.annotation)):
        with suppress(DataError):
            answers = [turn[key].strip() for _, turn, key in _last_answers(parse_row(line, ""))]
            counts.update(answer for answer in answers if len(answer) <= LONGEST)
    return common_spellings(counts)


def mend_line(line, root, spellings=MappingProxyType({}), rescale=lambda row: None):
    """One line as it should be: b'{…"value": " A "…}\\r\\n' → b'{…"value": "A"…}\\n'."""
    for mend_bytes in LINE_MENDERS.values():
        line = mend_bytes(line)
    try:
        row, twice = parse_with_doubles(line, "")
    except DataError:
        return line
    if twice:  # which of two equal keys was meant is for a person to say
        return line
    before = json.dumps(row)
    for mend_row in ROW_MENDERS.values():
        mend_row(row, Path(root), spellings)
    rescale(row)
    if json.dumps(row) == before:
        return line
    with suppress(UnicodeEncodeError):  # half a surrogate pair: for a person to mend
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    return line


def _is_answer(place):
    return isinstance(place[0], str) and ROLES.get(place[0]) == "assistant"


def _last_answers(row):
    """The place of the last turn's text, if it is an answer."""
    return list(filter(_is_answer, texts_of(row)[-1:]))


def _mend_spelling(row, root, spellings):
    for _, turn, key in _last_answers(row):
        turn[key] = spellings.get(turn[key].strip(), turn[key])


def _mend_roles(row, *_):
    for role, turn, key in texts_of(row):
        if key == "value" and "from" in turn and isinstance(role, str) and role not in ROLES:
            turn["from"] = _SPELLINGS.get(role.strip().lower(), role)


def _mend_characters(row, *_):
    for _, turn, key in texts_of(row):
        turn[key] = control_characters.sub("", turn[key])


def _mend_whitespace(row, *_):
    for _, turn, key in filter(_is_answer, texts_of(row)):
        turn[key] = turn[key].strip()


def _mend_slashes(row, root, _):
    names = pictures_of(row)
    for number, name in enumerate(names):
        slashed = name.replace("\\", "/")
        if slashed != name and not os.path.exists(root / name) and os.path.exists(root / slashed):
            names[number] = slashed
            row["image"] = names if isinstance(row["image"], list) else slashed


def _mend_sizes(row, root, _):
    paths, plural = [root / name for name in pictures_of(row)], "width_list" in row or "height_list" in row
    if not paths or not plural and ("width" not in row and "height" not in row or len(paths) != 1):
        return
    try:
        sizes = [image_size(path, os.fspath(path)) for path in paths]
        if sizes != [image_size(path, os.fspath(path), rules=AS_REFERENCE) for path in paths]:
            return  # turned by EXIF: boxes may be those of the picture that lies on its side
    except DataError:
        return
    if plural:
        row["width_list"], row["height_list"] = [size[0] for size in sizes], [size[1] for size in sizes]
    else:
        row["width"], row["height"] = sizes[0]


# The kinds of problems that have one right answer, in the order of their mending.
LINE_MENDERS = {
    "byte_order_mark": lambda line: line.removeprefix(b"\xef\xbb\xbf"),
    "crlf": lambda line: line[:-2] + b"\n" if line.endswith(b"\r\n") else line,
}
ROW_MENDERS = {
    "unknown_role": _mend_roles,
    "control_character": _mend_characters,
    "outer_whitespace": _mend_whitespace,
    "answer_spelling": _mend_spelling,
    "backslash_path": _mend_slashes,
    "declared_size": _mend_sizes,
}
