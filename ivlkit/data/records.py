"""Rows of a data set: one line of the released JSONL → `Record`.

A row is `{"id", "image" | "images in a list", "conversations": [{"from": "human" | "gpt", "value"}, …]}`. A `<image>`
in a user turn says where a picture goes; in an answer or in a row without pictures it is plain text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError

IMAGE_PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """One message: role is "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """One row as written: its pictures (not opened yet), its turns, and where it stands ("train.jsonl:17")."""

    id: Any
    turns: tuple[Turn, ...]
    images: tuple = ()  # paths or PIL images
    where: str = "record"
    max_tiles: int | None = None  # this data set's own budget; None: the processor's
    augment_jpeg: bool = False  # the meta file's `data_augment`
    extra: Mapping = field(default_factory=dict)  # fields of the row that no reader uses; slices of a report

    @property
    def question(self):
        """The last user turn, placeholders included."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def answer(self):
        """The last assistant turn, outer whitespace stripped: the truth of an evaluation."""
        return next((turn.text.strip() for turn in reversed(self.turns) if turn.role == "assistant"), "")

    def _repr_html_(self):
        from ..show.dataset import record_html

        return record_html(self)


def read_records(path, root="."):
    """Read a whole JSONL file: `[Record, …]` in the order of its lines.

    Args: path: the JSONL; root: folder that the rows' picture paths start from.
    Raises: DataError at the first broken line, with file, line, what was expected and what to do.
    """
    path = Path(path)
    records = [parse_line(line, f"{path.name}:{number}", root) for number, line in _numbered_lines(path)]
    if not records:
        raise DataError(f"{path}: no rows; expected one JSON object a line; check that the file was written completely")
    return records


def _numbered_lines(path):
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); expected a JSONL file; check the path") from error


def parse_line(line, where, root=".", *, format="released"):
    """One line (bytes) → Record, by the reader of its format."""
    return FORMATS[format](parse_row(line, where), where, Path(root))


def parse_row(line, where, *, object_pairs_hook=None):
    """One line (bytes) → the object on it."""
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=object_pairs_hook)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: broken JSON ({error}); expected one object on one line; mend or remove it"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}; expected a JSON object with `conversations`")
    return row


def read_released(row, where, root):
    """The released JSONL: text, single image, multi-image."""
    if row.get("video"):
        raise DataError(f"{where}: a video; this version reads text and pictures; turn it into frames first")
    images = _image_paths(row.get("image"), where, root)
    turns = _place_images(_read_turns(row.get("conversations"), where), images, where)
    used = {"id", "image", "conversations", "video"}
    extra = {key: value for key, value in row.items() if key not in used}
    return Record(id=row.get("id"), turns=turns, images=images, where=where, extra=extra)


FORMATS = {"released": read_released}


def _image_paths(value, where, root):
    if value is None or value == "" or value == []:
        return ()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: `image` is {value!r}; expected a path or a list of paths")
    return tuple(root / name for name in names)


def _read_turns(conversations, where):
    if not isinstance(conversations, list) or not conversations:
        raise DataError(f"{where}: no `conversations`; expected a list of turns, a question and its answer at least")
    turns = tuple(_read_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(conversations, start=1))
    check_turn_order(turns, where)
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: ends with a user turn; expected an answer last; add it or remove the question")
    return turns


def _read_turn(turn, where):
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError(f"{where}: expected {{'from': 'human' or 'gpt', 'value': text}}, found {_short(turn)}")
    role = ROLES.get(turn.get("from")) if isinstance(turn.get("from"), str) else None
    if role is None:
        raise DataError(f"{where}: unknown role {turn.get('from')!r}; expected 'human' or 'gpt' (or a first 'system')")
    if any("\ud800" <= character <= "\udfff" for character in turn["value"]):
        raise DataError(
            f"{where}: half a surrogate pair in {_short(turn['value'])}; expected characters; mend the text"
        )
    return Turn(role, turn["value"])


def check_turn_order(turns, where):
    """Raise DataError unless an optional first system turn is followed by user and assistant in turn."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise DataError(
                f"{where}: turn {number + 1 + len(turns) - len(spoken)} is {turn.role}, expected {expected}; "
                "user and assistant take turns, the user begins"
            )
    if not spoken:
        raise DataError(f"{where}: only a system turn; expected a question and its answer")


def _place_images(turns, images, where):
    """Count placeholders in user turns; a single picture without one is put before the first question."""
    if not images:
        return turns
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "user")
    if len(images) == 1 and placeholders == 0:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        opened = replace(turns[first], text=f"{IMAGE_PLACEHOLDER}\n{turns[first].text}")
        return (*turns[:first], opened, *turns[first + 1 :])
    if placeholders != len(images):
        raise DataError(
            f'{where}: {len(images)} pictures but {placeholders} "{IMAGE_PLACEHOLDER}" in user turns; '
            "expected one for each picture; add or remove placeholders"
        )
    return turns


def _short(value, limit=80):
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
