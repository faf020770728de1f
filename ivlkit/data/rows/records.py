"""Rows of a data set: one line of a JSONL → `Record`.

The released row is `{"id", "image": path or paths, "conversations": [{"from": "human" | "gpt", "value"}, …]}`, or has a
`"video"`, perhaps with `"clip": [start, end]`, in place of `image`. A `<image>` in a user turn says where a picture
goes; in an answer or in a row without pictures it is plain text. `formats` brings other shapes into this one.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import DataError, first_raised
from ...views import shown
from .fields import REFUSED_IN_TURN, read_trained, refused
from .formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, are_frames, no_turns, release, short, with_places
from .media import is_data_uri, is_remote, remote
from .objects import fill_objects

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_USED = {"id", "image", "conversations", "video", "clip", "system", "objects"}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # half a surrogate pair: valid JSON and no character


@dataclass(frozen=True)
class Turn:
    """One message: role is "system", "user" or "assistant"."""

    role: str
    text: str
    trained: bool = True  # an answer that is not trained is read, and no loss is taken on it


@dataclass(frozen=True)
class Video:
    """A video file, an animation, a folder of frames or a list of them."""

    path: Path  # of a list of frames the first
    clip: tuple[float, float] | None = None  # seconds, [start, end)
    frames: tuple[Path, ...] = ()

    @property
    def files(self):
        """The path, or those of all frames of a list."""
        return self.frames or (self.path,)


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
    records = []
    for where, row in numbered_rows(path):
        if isinstance(row, DataError):
            raise row
        records.append(first_raised(read_row(row, where, Path(root)), where)[1])
    if not records:
        raise DataError(f"{path}: no rows; expected one JSON object a line; check that the file was written completely")
    return records


def numbered_rows(path):
    """Yield ("train.jsonl:17", the JSON object or the DataError of that line) of each line that is not blank."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{Path(path).name}:{number}"
                try:
                    if line.strip():
                        yield where, parse_row(line, where)
                except DataError as error:
                    yield where, error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); expected a JSONL file; check the path") from error


def parse_line(line, where, root=".", *, format=None):
    """One line (bytes) → Record, by the reader of `format` (a name of `formats.FORMATS`) or of the detected one."""
    return first_raised(read_row(parse_row(line, where), where, Path(root), format=format), where)[1]


def parse_row(line, where, *, object_pairs_hook=None):
    """One line (bytes) → the JSON object on it."""
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=object_pairs_hook)
    except UnicodeDecodeError as error:
        found = f"not UTF-8 ({error.reason} at byte {error.start})"
        raise DataError(found, None, "save the file as UTF-8", where=where, code="not_utf8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON ({error})", where=where, code="broken_json") from error
    if isinstance(row, dict):
        return row
    raise DataError(f"a {type(row).__name__}", where=where, code="not_an_object")


def parse_with_doubles(line, where):
    """(the JSON object on one line, the keys that stand twice in it or in what it holds)."""
    twice = []

    def made(pairs):
        kept = dict(pairs)
        if len(kept) != len(pairs):
            twice.extend(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        return kept

    return parse_row(line, where, object_pairs_hook=made), twice


def read_row(row, where, root, *, format=None):
    """Yield every fault of a row of any format; returns (the row in the released shape, its `Record`).

    With faults the record holds what could be read, and is None where the row has no released shape.
    """
    released = yield from release(row, format=format)
    return released, None if released is None else (yield from read_released(released, where, root))


def read_released(row, where, root):
    """Yield whatever a row of the released shape lacks or has too much, and each path that leaves `root`.

    Returns: its `Record`: text, single image, multi-image, video, grounding.
    """
    video = (yield from _read_video(row, root)) if "video" in row else None
    images = yield from _image_sources(row.get("image"), root)
    if video and images:
        yield DataError("both `image` and `video`", "one of them", "split the row")
    turns, system = (yield from _read_turns(row)), row.get("system")
    if row.get("objects") and turns and None not in images:
        turns = yield from fill_objects(row["objects"], turns, images)
    if system and (not isinstance(system, str) or _HALF_CHARACTER.search(system)):
        yield DataError(f"`system` is {short(system)}", "a text", "correct it")
    elif system and turns and turns[0].role == "system":
        yield DataError("both `system` and a system turn", "one of them", "remove the other")
    elif system and turns:
        turns = (Turn("system", system), *turns)
    if turns and (video or images):
        turns = yield from _place_media(turns, images, video)
    extra = {key: value for key, value in row.items() if key not in _USED}
    images = tuple(image for image in images if image is not None)
    return Record(id=row.get("id"), turns=turns, images=images, where=where, extra=extra, video=video)


def _image_sources(value, root):
    """Paths and data URIs in the order of the row; None for one that can't be taken."""
    if value is None or value == "" or value == []:
        return ()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        yield DataError(f"`image` is {short(value)}", code="image_field")
        return ()
    return tuple((yield from _paths(names, root)))


def _paths(names, root):
    """[the path of each, a data URI as it is, None for one that can't be taken]."""
    paths = []
    for name in names:
        try:
            paths.append(name if is_data_uri(name) else path_inside(root, name, ""))
        except DataError as fault:
            yield fault
            paths.append(None)
    return paths


def _read_video(row, root):
    name, clip = row.get("video"), row.get("clip")
    if name is None or name == "" or name == []:
        return None
    names = name if isinstance(name, list) and are_frames(name) else [name]
    if not isinstance(names[0], str):
        yield DataError(f"`video` is {short(name)}", "one path", "split the row if there are several")
        return None
    paths = yield from _paths(names, root)
    numbers = isinstance(clip, list) and len(clip) == 2 and all(type(second) in (int, float) for second in clip)
    if numbers and 0 <= clip[0] < clip[1] < 1e9:  # thirty years; a greater number overflows somewhere
        clip = float(clip[0]), float(clip[1])
    elif clip is not None:
        yield DataError(f"`clip` is {short(clip)}", "[start, end] in seconds, 0 <= start < end", code="clip")
    return None if None in paths else Video(paths[0], clip, tuple(paths) if names is name else ())


def path_inside(root, name, where):
    """The path of a picture or video, which has to lie in `root`; links on the way may lead anywhere."""
    if is_remote(name):
        raise remote(f"{short(name)} is on another machine", where)
    if "\0" in name or _HALF_CHARACTER.search(name):
        found = f"the path {short(name)} has characters that no file name has"
        raise DataError(found, None, "correct it", where=where, code="image_field")
    if name[0] not in "/\\" and ".." not in name and not os.path.isabs(name):
        return root / name if name.isascii() else in_its_form(root / name)
    path = os.path.normpath(os.path.join(os.path.abspath(root), name))
    base = os.path.join(os.path.abspath(root), "")
    if not (path + os.sep).startswith(base):
        found, expected = f"{short(name)} leaves the folder {root}", "a path inside it"
        todo = 'set `root` to a folder that holds the pictures ("/" allows every absolute path)'
        raise DataError(found, expected, todo, where=where, code="outside_root")
    return in_its_form(Path(path))


def in_its_form(path):
    """The path in the Unicode form that the disk has it in: a Mac's archive writes "é" as "e" and an accent."""
    if os.fspath(path).isascii() or os.path.exists(path):
        return path
    found = Path()
    for part in path.parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / form for form in forms if os.path.exists(found / form)), found / part)
    return found


def _read_turns(row):
    conversations = row.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        yield no_turns(row)
        return ()
    turns = []
    for number, turn in enumerate(conversations, start=1):
        turns.append(_plain_turn(turn) or (yield from _read_turn(turn, number)))
    if None in turns:
        return ()
    yield from _order_faults(turns)
    return tuple(turns)


def _plain_turn(turn):
    """The `Turn` of two fields in which nothing is wrong, as nearly all are; else None."""
    if type(turn) is dict and len(turn) == 2:
        role, text = turn.get("from"), turn.get("value")
        if type(role) is str and type(text) is str and role in ROLES and not _HALF_CHARACTER.search(text):
            return Turn(ROLES[role], text)
    return None


def _read_turn(turn, number):
    """The `Turn`, or None."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        found = f"turn {number}: expected {{'from': 'human' or 'gpt', 'value': text}}, found {short(turn)}"
        yield DataError(found, None, "write the turn like this", code="bad_turn")
        return None
    role = ROLES.get(turn.get("from")) if isinstance(turn.get("from"), str) else None
    if role is None:
        yield DataError(f"turn {number}: unknown role {turn.get('from')!r}", code="unknown_role")
        return None
    if _HALF_CHARACTER.search(turn["value"]):
        found = f"turn {number}: half a surrogate pair in {short(turn['value'])}"
        yield DataError(found, code="half_surrogate")
        return None
    yield from refused(turn, REFUSED_IN_TURN, f"turn {number}: ")
    return Turn(role, turn["value"], (yield from read_trained(turn, role, number)))


def _order_faults(turns):
    """An optional first system turn, then user and assistant in turn, an answer last."""
    first = int(turns[0].role == "system")
    for number, turn in enumerate(turns[first:]):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            found = f"turn {number + 1 + first} is {turn.role}, expected {expected}"
            yield DataError(found, None, "user and assistant take turns, the user begins", code="role_order")
            return
    if len(turns) == first:
        yield DataError("only a system turn", "a question and its answer", code="no_answer")
    elif turns[-1].role != "assistant":
        yield DataError("the row ends with a user turn", code="no_answer")


def _place_media(turns, images, video):
    """Count placeholders in user turns; a video or a single picture without one is put before the first question."""
    spoken = [number for number, turn in enumerate(turns) if turn.role == "user"]
    asked, said = "\n".join(turns[number].text for number in spoken), []
    pictures, videos = asked.count(IMAGE_PLACEHOLDER), asked.count(VIDEO_PLACEHOLDER)
    if video and pictures:
        said.append((f"{IMAGE_PLACEHOLDER} in the row of a video", VIDEO_PLACEHOLDER, "replace it"))
    if video and videos > 1:
        said.append((f"{videos} {VIDEO_PLACEHOLDER} in user turns", "one", "remove the others"))
    if not video and pictures != len(images) and (pictures or len(images) > 1):
        found = f'{len(images)} pictures but {pictures} "{IMAGE_PLACEHOLDER}" in user turns'
        said.append((found, "one for each picture", "add or remove placeholders"))
    yield from (DataError(*one, code="placeholder_count") for one in said)
    if (videos if video else pictures) or said or not spoken:  # no question: the order of its turns is wrong
        return turns
    place, first = VIDEO_PLACEHOLDER if video else IMAGE_PLACEHOLDER, spoken[0]
    opened = replace(turns[first], text=with_places(turns[first].text, place=place))
    return (*turns[:first], opened, *turns[first + 1 :])
