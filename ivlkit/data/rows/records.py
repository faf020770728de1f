"""Rows of a data set: one line of a JSONL → `Record`.

The released row is `{"id", "image": path or paths, "conversations": [{"from": "human" | "gpt", "value"}, …]}`, or has a
`"video"`, perhaps with `"clip": [start, end]`, in place of `image`. A `<image>` in a user turn says where a picture
goes; in an answer or in a row without pictures it is plain text. `formats` brings other shapes into this one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...views import shown
from .formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, as_released
from .media import is_data_uri, is_remote

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """One message: role is "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Video:
    """A video file, an animation or a folder of frames."""

    path: Path
    clip: tuple[float, float] | None = None  # seconds, [start, end)


@dataclass(frozen=True)
class Record:
    """One row as written: its pictures (not opened yet), its turns, and where it stands ("train.jsonl:17")."""

    id: Any
    turns: tuple[Turn, ...]
    images: tuple = ()  # paths, data URIs or PIL images
    where: str = "record"
    max_tiles: int | None = None  # this data set's own budget; None: the processor's
    augment_jpeg: bool = False  # the meta file's `data_augment`
    extra: Mapping = field(default_factory=dict)  # fields of the row that no reader uses; slices of a report
    video: Video | None = None  # instead of images; one `<video>` in a user turn says where its frames go

    @property
    def question(self):
        """The last user turn, placeholders included."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def answer(self):
        """The last assistant turn, outer whitespace stripped: the truth of an evaluation."""
        return next((turn.text.strip() for turn in reversed(self.turns) if turn.role == "assistant"), "")

    def show_tokens(self, processor, *, max_length=None):
        """This row as the model sees it: its tiles and every token, coloured by what training does with it."""
        from IPython.display import HTML

        return HTML(self._tokens(processor, max_length=max_length))

    _repr_html_ = shown("dataset:record_html")
    _tokens = shown("tokens:tokens_html")


def accepted_truth(record):
    """The truth of an evaluation: the texts of the row's field `answers`, a tuple, or else its last answer, a text."""
    answers = record.extra.get("answers")
    if answers is None:
        return record.answer
    if not isinstance(answers, (list, tuple)) or not answers or not all(isinstance(text, str) for text in answers):
        raise DataError(f"{record.where}: `answers` is {answers!r:.80}; expected a list of texts, one at least")
    return tuple(answers)


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


def parse_line(line, where, root=".", *, format=None):
    """One line (bytes) → Record, by the reader of `format` (a name of `formats.FORMATS`) or of the detected one."""
    return read_released(as_released(parse_row(line, where), where, format=format), where, Path(root))


def parse_row(line, where, *, object_pairs_hook=None):
    """One line (bytes) → the JSON object on it."""
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
    """A row of the released shape: text, single image, multi-image, video, grounding.

    Raises: DataError for whatever the row lacks or has too much, and for a path that leaves `root`.
    """
    video = _read_video(row, where, root)
    images = _image_sources(row.get("image"), where, root)
    if video and images:
        raise DataError(f"{where}: both `image` and `video`; expected one of them; split the row")
    turns = _read_turns(row.get("conversations"), where)
    turns = _place_video(turns, where) if video else _place_images(turns, images, where)
    used = {"id", "image", "conversations", "video", "clip"}
    extra = {key: value for key, value in row.items() if key not in used}
    return Record(id=row.get("id"), turns=turns, images=images, where=where, extra=extra, video=video)


def _image_sources(value, where, root):
    if value is None or value == "" or value == []:
        return ()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: `image` is {_short(value)}; expected a path or a list of paths")
    return tuple(name if is_data_uri(name) else path_inside(root, name, where) for name in names)


def _read_video(row, where, root):
    name, clip = row.get("video"), row.get("clip")
    if name is None or name == "" or name == []:
        return None
    if not isinstance(name, str):
        raise DataError(f"{where}: `video` is {_short(name)}; expected one path; split the row if there are several")
    return Video(path_inside(root, name, where), _read_clip(clip, where) if clip is not None else None)


def _read_clip(clip, where):
    numbers = isinstance(clip, list) and len(clip) == 2 and all(type(second) in (int, float) for second in clip)
    if not numbers or not 0 <= clip[0] < clip[1] < 1e9:  # thirty years; a greater number overflows somewhere
        raise DataError(f"{where}: `clip` is {_short(clip)}; expected [start, end] in seconds, 0 <= start < end")
    return float(clip[0]), float(clip[1])


def path_inside(root, name, where):
    """The path of a picture or video, which has to lie in `root`; links on the way may lead anywhere."""
    if is_remote(name):
        raise DataError(
            f"{where}: {_short(name)} is on another machine; expected a file; fetch it first "
            "(ivlkit convert --fetch does)"
        )
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise DataError(f"{where}: the path {_short(name)} has characters that no file name has; correct it")
    if name[0] not in "/\\" and ".." not in name and not os.path.isabs(name):
        return root / name
    path = os.path.normpath(os.path.join(os.path.abspath(root), name))
    base = os.path.join(os.path.abspath(root), "")
    if not (path + os.sep).startswith(base):
        raise DataError(
            f"{where}: {_short(name)} leaves the folder {root}; expected a path inside it; set `root` to a folder "
            'that holds the pictures ("/" allows every absolute path)'
        )
    return Path(path)


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
        return _prepend(IMAGE_PLACEHOLDER, turns)
    if placeholders != len(images):
        raise DataError(
            f'{where}: {len(images)} pictures but {placeholders} "{IMAGE_PLACEHOLDER}" in user turns; '
            "expected one for each picture; add or remove placeholders"
        )
    return turns


def _place_video(turns, where):
    """One `<video>` in a user turn; without one the video is put before the first question."""
    spoken = [turn.text for turn in turns if turn.role == "user"]
    if any(IMAGE_PLACEHOLDER in text for text in spoken):
        raise DataError(f"{where}: {IMAGE_PLACEHOLDER} in the row of a video; expected {VIDEO_PLACEHOLDER}; replace it")
    found = sum(text.count(VIDEO_PLACEHOLDER) for text in spoken)
    if found > 1:
        raise DataError(f"{where}: {found} {VIDEO_PLACEHOLDER} in user turns; expected one; remove the others")
    return turns if found else _prepend(VIDEO_PLACEHOLDER, turns)


def _prepend(placeholder, turns):
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    opened = replace(turns[first], text=f"{placeholder}\n{turns[first].text}")
    return (*turns[:first], opened, *turns[first + 1 :])


def _short(value, limit=80):
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
