"""Examines rows: which are usable, what is wrong with the others, how long each is. No row influences another.

What is usable is decided by the readers and the encoder themselves; the looking here only says why, and finds what
trains but is hardly meant. A block of rows comes back as arrays of a few bytes a row, so that processes can share the
work.
"""

import os
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import compress
from typing import Any

import numpy as np

from ...errors import DataError
from ..datasets.index import LineIndex
from ..encode import encode_text, picture_sizes, shrink_to_fit, shrunk_text, too_long_text
from ..rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TEMPLATES, render
from ..rows.formats import IMAGE_PLACEHOLDER, as_released
from ..rows.media import MAX_PIXELS, image_size, is_data_uri, is_remote, open_image
from ..rows.records import ROLES, Record, parse_row, read_released
from .findings import ERROR, KINDS

GOOD, BAD = 1, 2  # states of a row; 0: not looked at
PICTURES = ("exist", "header", "decode")
LONG_LINE_BYTES = 1 << 20
TOKENIZED_AT_ONCE = 256
_CACHED_PICTURES = 100_000  # about 30 MB a process
_IMAGE_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
_MARK = re.compile(r"<(?!image>)")  # anything that may be a token or a tag
control_characters = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_TOO_LONG = re.compile(" tokens (at the fewest tiles|with a single frame)")  # the encoder's words
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOX = re.compile(r"<box>(.*?)</box>", re.S)
_ADDRESS = re.compile(r"(?:^|/)(?:https?|s3|gs|ftp):/")  # a Path writes // as /
_BARE_BOX = re.compile(r"\s*\[\s*\d*\.\d+(?:\s*,\s*\d*\.\d+){3}\s*\]\s*")
_BOXES = re.compile(r"\s*\[\s*(?:\[[^\[\]]*\]\s*,?\s*)+\]\s*")
_NUMBERS = re.compile(r"\[([^\[\]]*)\]")
_MISSING_VALUES = {"nan", "na", "n/a", "#n/a", "null", "#ref!", "#value!", "#name?", "#div/0!"}
_MISNAMED = ("image_path", "image_file", "img", "picture", "pictures", "photo")
_SUFFIXES = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".png": "png",
    ".gif": "gif",
    ".webp": "webp",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
MEDIA_SUFFIXES = frozenset(_SUFFIXES)


@dataclass(frozen=True)
class Task:
    """What to look for, and in what: all that a process needs."""

    sources: tuple
    processor: Any = None  # None: no lengths
    max_length: int | None = None
    pictures: str = "header"
    draw: tuple = (0, 0)  # (seed, epoch) that decides how many frames a video gives
    limit: int | None = 100  # problems of a kind that a block describes; the rest is counted; None: all
    wanted: frozenset | None = None  # kinds that are described; None: all


@dataclass
class Block:
    """What was found in some rows of one source. Arrays have a value a row, `pictures` one a picture."""

    source: int
    rows: np.ndarray  # int64, of the file
    state: np.ndarray  # uint8: GOOD or BAD
    row_hash: np.ndarray  # uint64, of pictures and turns
    id_hash: np.ndarray  # uint64, 0 without an id
    answer_hash: np.ndarray  # uint64, of the last answer
    asked_hash: np.ndarray  # uint64, of all that stands before it, and the pictures
    lengths: np.ndarray  # int32 [3, rows]: tokens without pictures, tiles at the set's budget, supervised tokens
    final: np.ndarray  # int32 [2, rows]: tokens and tiles as trained, after shrinking
    videos: np.ndarray  # int64, rows of the file whose length depends on the draw
    pictures: np.ndarray  # PICTURE [pictures]
    problems: list  # (row, code, found, expected, todo)
    counts: Counter  # of every problem, also those not described


PICTURE = np.dtype(
    [("hash", "<u8"), ("size", "<i8"), ("row", "<i4"), ("place", "<i2"), ("width", "<i4"), ("height", "<i4")]
)


@dataclass(frozen=True)
class FastTokenizer:
    """The part of a tokenizer that encoding needs, without the library around it: small to send, quick to start."""

    backend: Any  # tokenizers.Tokenizer
    unk_token_id: int | None

    def __call__(self, text, *, return_offsets_mapping=False):
        encoded = self.backend.encode(text)
        return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets}

    def convert_tokens_to_ids(self, token):
        """Id of a token, None if there is none."""
        return self.backend.token_to_id(token)


def light_processor(processor):
    """The same processor around a `FastTokenizer`; None stays None."""
    if processor is None or isinstance(processor.tokenizer, FastTokenizer):
        return processor
    tokenizer = processor.tokenizer
    return replace(processor, tokenizer=FastTokenizer(tokenizer.backend_tokenizer, tokenizer.unk_token_id))


class Examiner:
    """Examines blocks of rows for a `Task`."""

    def __init__(self, task):
        self.task, self.processor = task, task.processor
        self.indexes = [LineIndex(source.annotation) for source in task.sources]
        self._tokens = _token_pattern(task.processor)
        self._looked = {}
        self._count_tiles = lru_cache(maxsize=20_000)(self._count_tiles_of)

    def block(self, source, start, stop, *, rows=None):
        """Examine rows start … stop - 1 of a source, or only those of them in `rows`. Returns: `Block`."""
        index = self.indexes[source]
        lines = index.lines(start, stop)
        wanted = np.arange(start, stop) if rows is None else np.asarray(rows, np.int64)
        lines = lines if rows is None else [lines[row - start] for row in wanted.tolist()]
        state = _BlockState(self, source, wanted)
        for place, (row, line) in enumerate(zip(wanted.tolist(), lines, strict=True)):
            state.examine(place, row, line)
        state.measure()
        return state.result()

    def look(self, path):
        """`_Look` at a picture's file; remembered, as rows often share pictures."""
        key = os.fspath(path)
        found = self._looked.get(key)
        if found is None:
            if len(self._looked) >= _CACHED_PICTURES:
                self._looked.clear()
            found = self._looked[key] = _look(key, self.task.pictures, self.processor)
        return found

    def _count_tiles_of(self, sizes, wanted):
        return self.processor.count_tiles(list(sizes), max_tiles=wanted)


class _BlockState:
    """A block while it is worked on."""

    def __init__(self, examiner, source, rows):
        self.examiner, self.number, self.rows = examiner, source, rows
        self.source, self.index = examiner.task.sources[source], examiner.indexes[source]
        count = len(rows)
        self.state = np.zeros(count, np.uint8)
        self.hashes = np.zeros((4, count), np.uint64)
        self.lengths = np.zeros((3, count), np.int32)
        self.final = np.zeros((2, count), np.int32)
        self.videos, self.pictures, self.problems, self.counts = [], [], [], Counter()
        self.to_measure = []  # (place, record, sizes)
        self.duplicate_keys = []

    def result(self):
        pictures = np.array(self.pictures, PICTURE)
        return Block(
            self.number,
            self.rows,
            self.state,
            *self.hashes,
            self.lengths,
            self.final,
            np.array(self.videos, np.int64),
            pictures,
            sorted(self.problems, key=lambda problem: problem[0]),  # lengths were counted after the rest
            self.counts,
        )

    def say(self, place, code, found, *, expected=None, todo=None):
        """Note a problem of a row."""
        self.counts[code] += 1
        if KINDS[code].level == ERROR:
            self.state[place] = BAD
        task = self.examiner.task
        if (task.wanted is None or code in task.wanted) and (task.limit is None or self.counts[code] <= task.limit):
            self.problems.append((int(self.rows[place]), code, found, expected, todo))

    def examine(self, place, row, line):
        """One line, up to the counting of its tokens."""
        self.state[place] = GOOD
        self._check_line(place, row, line)
        where = self.index.where(row)
        try:
            parsed = parse_row(line, where, object_pairs_hook=self._pairs)
        except DataError as error:
            self.duplicate_keys.clear()
            return self._say_error(place, _line_code(line, error), error, where)
        for key in self.duplicate_keys:
            self.say(place, "duplicate_key", f"the key {_short(key)} twice")
        self.duplicate_keys.clear()
        try:
            parsed = as_released(parsed, where, format=self.source.format)
        except DataError as error:
            return self._say_error(place, "unusable", error, where)
        try:
            record = self.source.complete(read_released(parsed, where, self.source.root))
        except DataError as error:
            return self._diagnose(place, parsed, error, where)
        self._check_record(place, parsed, record)
        return None

    def _pairs(self, pairs):
        made = dict(pairs)
        if len(made) != len(pairs):
            self.duplicate_keys += [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
        return made

    def _say_error(self, place, code, error, where):
        """A DataError of a reader or the encoder as a problem of this row, in its own words."""
        found, expected, todo = _in_three(str(error).removeprefix(f"{where}: "))
        self.say(place, code, found, expected=expected, todo=todo)

    def _check_line(self, place, row, line):
        if line.endswith(b"\r\n"):
            self.say(place, "crlf", "the line ends with \\r\\n")
        if line.startswith(b"\xef\xbb\xbf"):
            self.say(place, "byte_order_mark", "a byte order mark")
        if len(line) > LONG_LINE_BYTES:
            self.say(place, "long_line", f"a line of {len(line) / 1e6:.1f} MB")

    # good rows -------------------------------------------------------------------------------------------------------

    def _check_record(self, place, parsed, record):
        texts = [turn.text for turn in record.turns]
        whole = "\n".join(texts)
        if _MARK.search(whole):
            self._check_marks(place, parsed, record)
        if control_characters.search(whole):
            self.say(
                place, "control_character", f"the control character {control_characters.search(whole)[0]!r} in a text"
            )
        answer = self._check_turns(place, record)
        looks = [None if is_data_uri(image) else self.examiner.look(image) for image in record.images]
        if looks:
            self._check_pictures(place, parsed, record, looks)
        elif record.video:
            self._check_video(place, record.video.path)
        else:
            self._check_text_row(place, parsed)
        self._hash(place, parsed, record, texts, answer)
        if self.state[place] == GOOD and self.examiner.processor is not None:
            self.to_measure.append((place, record, self._sizes(parsed, record, looks)))

    def _check_turns(self, place, record):
        """Returns the last answer."""
        answer = ""
        for turn in record.turns:
            text = turn.text
            if turn.role == "assistant":
                answer = text.strip()
                if not answer:
                    self.say(place, "empty_answer", "an empty answer")
                elif answer.casefold() in _MISSING_VALUES:
                    self.say(place, "missing_value", f"the answer {answer!r}")
                elif len(answer) != len(text):
                    self.say(place, "outer_whitespace", f"outer whitespace in the answer {_short(text)}")
                if "[" in text and _BARE_BOX.fullmatch(text):
                    self.say(place, "box_in_fractions", f"the bare box {_short(text)} with shares of 1")
                if IMAGE_PLACEHOLDER in text:
                    self.say(place, "literal_placeholder", f'"{IMAGE_PLACEHOLDER}" in an answer')
            elif turn.role == "user":
                if IMAGE_PLACEHOLDER in text:
                    if not record.images and not record.video:
                        self.say(place, "literal_placeholder", f'"{IMAGE_PLACEHOLDER}" in a row without pictures')
                    text = text.replace(IMAGE_PLACEHOLDER, "")
                if not text.strip():
                    self.say(place, "empty_question", "a user turn without text")
        return answer

    def _check_video(self, place, path):
        if not os.path.exists(path):
            self.say(place, "missing_media", f"video {path} does not exist")
        elif os.path.isfile(path) and not os.path.getsize(path):
            self.say(place, "empty_media", f"{path} has no bytes")

    def _check_text_row(self, place, parsed):
        named = [key for key in _MISNAMED if parsed.get(key)]
        if named:
            self.say(place, "misnamed_image", f"pictures in the field {named[0]!r}, which nothing reads")

    def _check_marks(self, place, parsed, record):
        """Typed tokens and boxes: only rows with a "<" that opens no <image> come here."""
        image_tokens, others = self.examiner._tokens
        for turn in record.turns:
            found = image_tokens.search(turn.text)
            if found:
                self.say(place, "image_token", f"{found[0]} in a turn of the {turn.role}")
            found = others.search(turn.text)
            if found:
                self.say(place, "special_token", f"{found[0]} in a turn of the {turn.role}")
            self._check_tags(place, turn.text)
            for content in _BOX.findall(turn.text):
                self._check_box(place, parsed, content)

    def _check_tags(self, place, text):
        for tag in ("ref", "box", "quad"):
            opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
            if opened != closed:
                self.say(place, "unclosed_tag", f"{opened} <{tag}> but {closed} </{tag}>")

    def _check_box(self, place, parsed, content):
        boxes = [_numbers(box) for box in _NUMBERS.findall(content)] if _BOXES.fullmatch(content) else []
        if not boxes or any(box is None or len(box) != 4 for box in boxes):
            return self.say(place, "box_syntax", f"<box>{_short(content)}</box>")
        for box in boxes:
            code = _box_code(box, _declared_sizes(parsed))
            if code:
                return self.say(place, code, f"the box {_short(list(box))}")
        return None

    def _check_pictures(self, place, parsed, record, looks):
        for number, look in enumerate(looks):
            if look is None:
                continue
            if look.code:
                self.say(place, look.code, look.found, expected=look.expected, todo=look.todo)
            for code, found in look.remarks:
                self.say(place, code, found)
            width_px, height_px = look.size or (0, 0)
            row = int(self.rows[place])
            self.pictures.append((look.hash, look.bytes, row, number, width_px, height_px))
        self._check_declared(place, parsed, looks)

    def _check_declared(self, place, parsed, looks):
        declared = _declared_sizes(parsed)
        if not declared:
            return
        if len(declared) != len(looks):
            self.say(place, "declared_size", f"{len(declared)} declared sizes for {len(looks)} pictures")
            return
        for (width_px, height_px), look in zip(declared, looks, strict=True):
            if look and look.size and look.size != (width_px, height_px):
                real = f"{look.size[0]} x {look.size[1]}"
                self.say(place, "declared_size", f"declared {width_px} x {height_px} px, the file has {real}")

    def _sizes(self, parsed, record, looks):
        """Sizes of the pictures, or None where only the encoder's own way finds them.

        Where files are not opened, the declared sizes count.
        """
        if record.video or any(look is None for look in looks):
            return None
        if all(look.size for look in looks):
            return [look.size for look in looks]
        declared = _declared_sizes(parsed)
        credible = all(width_px * height_px <= MAX_PIXELS for width_px, height_px in declared)
        return declared if len(declared) == len(looks) and credible else None

    def _hash(self, place, parsed, record, texts, answer):
        names = [str(image) for image in record.images]
        self.hashes[0, place] = hash_text("\0".join((*names, str(record.video), *texts)))
        if record.id is not None:
            self.hashes[1, place] = hash_text(repr(record.id))
        self.hashes[2, place] = hash_text(answer)
        self.hashes[3, place] = hash_text("\0".join((*names, str(record.video), *texts[:-1])))

    # lengths ---------------------------------------------------------------------------------------------------------

    def measure(self):
        """Exact tokens and tiles of the good rows, many texts at a time."""
        quick = []
        for place, record, sizes in self.to_measure:
            if sizes is None:
                self._measure_as_trained(place, record)
            else:
                quick.append((place, record, sizes))
        for start in range(0, len(quick), TOKENIZED_AT_ONCE):
            self._measure_batch(quick[start : start + TOKENIZED_AT_ONCE])

    def _measure_as_trained(self, place, record):
        """What the encoder itself says; for videos and pictures that are no plain files."""
        processor, max_length = self.examiner.processor, self.examiner.task.max_length
        try:
            sizes = picture_sizes(record, processor, draw=self.examiner.task.draw)
            text = encode_text(record, processor, sizes=sizes, max_length=max_length)
        except DataError as error:
            code = "too_long" if _TOO_LONG.search(str(error)) else "unusable"
            return self._say_error(place, code, error, record.where)
        tiles, tokens = sum(text.num_tiles), len(text.input_ids)
        supervised = int((text.labels >= 0).sum())
        self.lengths[:, place] = tokens - processor.num_image_token * tiles, tiles, supervised
        self.final[:, place] = tokens, tiles
        if record.video:
            self.videos.append(int(self.rows[place]))
        for note in text.notes:
            self.say(place, "fewer_tiles", note)
        return None

    def _measure_batch(self, batch):
        processor = self.examiner.processor
        rendered = [
            render(
                record.turns,
                processor.template,
                num_tiles=[0] * len(sizes),
                num_image_token=processor.num_image_token,
                system_message=processor.system_message,
            )
            for _, record, sizes in batch
        ]
        encodings = processor.tokenizer.backend.encode_batch([one.text for one in rendered])
        for (place, record, sizes), one, encoding in zip(batch, rendered, encodings, strict=True):
            supervised = count_supervised(encoding.offsets, one.answers)
            self._note_length(place, record, sizes, len(encoding), supervised)

    def _note_length(self, place, record, sizes, text_tokens, supervised):
        processor, max_length = self.examiner.processor, self.examiner.task.max_length
        wanted = record.max_tiles or processor.max_tiles
        full = self.examiner._count_tiles(tuple(sizes), wanted)
        tiles = sum(full)
        tokens = text_tokens + processor.num_image_token * tiles
        self.lengths[:, place] = text_tokens, tiles, supervised
        if not supervised:
            self.say(place, "no_supervised_token", "no supervised token")
        if max_length is not None and tokens > max_length:
            _, fewer, tokens = shrink_to_fit(text_tokens, processor, sizes=sizes, wanted=wanted, max_length=max_length)
            if tokens > max_length:
                found, expected, todo = _in_three(too_long_text(text_tokens, fewer, tokens, max_length))
                return self.say(place, "too_long", found, expected=expected, todo=todo)
            self.say(place, "fewer_tiles", shrunk_text(full, fewer, max_length))
            tiles = sum(fewer)
        self.final[:, place] = tokens, tiles
        return None

    # rows that a reader refused --------------------------------------------------------------------------------------

    def _diagnose(self, place, parsed, error, where):
        """Everything that is wrong with a refused row; the reader's own words where nothing else explains them."""
        if not parsed.get("video"):
            for code, found in self._find_faults(parsed):
                self.say(place, code, found)
            self._find_missing(place, parsed)
        if self.state[place] != BAD:
            self._say_error(place, "unusable", error, where)

    def _find_faults(self, parsed):
        names, turns = parsed.get("image"), parsed.get("conversations")
        names = [names] if isinstance(names, str) and names else names or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            yield "image_field", f"`image` is {_short(parsed.get('image'))}"
            names = []
        if not isinstance(turns, list) or not turns:
            yield "no_conversations", "no `conversations`" if turns is None else f"`conversations` is {_short(turns)}"
            return
        yield from _turn_faults(turns)
        texts = [(_role(turn), turn["value"]) for turn in turns if _is_turn(turn)]
        placeholders = sum(text.count(IMAGE_PLACEHOLDER) for role, text in texts if role == "user")
        if names and placeholders != len(names) and not (len(names) == 1 and placeholders == 0):
            yield "placeholder_count", f'{len(names)} pictures but {placeholders} "{IMAGE_PLACEHOLDER}" in user turns'

    def _find_missing(self, place, parsed):
        names = parsed.get("image")
        for name in [names] if isinstance(names, str) else names if isinstance(names, list) else []:
            if not isinstance(name, str) or not name or is_data_uri(name):
                continue
            if is_remote(name):
                self.say(place, "remote_media", f"the address {_short(name)}")
                continue
            look = self.examiner.look(self.source.root / name)
            if look.code:
                self.say(place, look.code, look.found, expected=look.expected, todo=look.todo)
            elif _escapes(os.fspath(self.source.root / name), self.source.root):
                self.say(place, "outside_root", f"the picture {_short(name)} outside {self.source.root}")


def _turn_faults(turns):
    roles = []
    for number, turn in enumerate(turns, start=1):
        if not _is_turn(turn):
            yield "bad_turn", f"turn {number} is {_short(turn)}"
        elif _role(turn) is None:
            yield "unknown_role", f"turn {number} has the role {_short(turn.get('from'))}"
        elif _SURROGATE.search(turn["value"]):
            yield "half_surrogate", f"half a surrogate pair in turn {number}, {_short(turn['value'])}"
        roles.append(_role(turn) if _is_turn(turn) else None)
    if None in roles:
        return
    spoken = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            yield "role_order", f"turn {number + 1 + len(roles) - len(spoken)} is {role}, expected {expected}"
            return
    if not spoken or spoken[-1] != "assistant":
        yield "no_answer", "the row ends with a user turn" if spoken else "only a system turn"


def _is_turn(turn):
    return isinstance(turn, dict) and isinstance(turn.get("value"), str)


def _role(turn):
    role = turn.get("from")
    return ROLES.get(role) if isinstance(role, str) else None


def _line_code(line, error):
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "not_utf8"
    return "broken_json" if error.__cause__ is not None else "not_an_object"


def _in_three(message):
    """ "found; expected …; do" → its three parts; None for those it lacks."""
    found, *rest = message.split("; ", 2)
    expected = rest.pop(0).removeprefix("expected ") if rest and rest[0].startswith("expected ") else None
    return found, expected, "; ".join(rest) or None


# texts ---------------------------------------------------------------------------------------------------------------


def hash_text(text):
    """8 bytes that stand for a text; among a million texts two share them once in 37 million data sets."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def count_supervised(offsets, answers):
    """Tokens that start inside an answer's span, as `encode` labels them; offsets are in order."""
    count = 0
    for first, last in answers:
        inside = offsets[bisect_left(offsets, (first,)) : bisect_left(offsets, (last,))]
        count += sum(end > start for start, end in inside)
    return count


def _token_pattern(processor):
    """(pattern of image tokens, pattern of every other token of a chat format) typed in a text."""
    if processor is not None:
        added = processor.tokenizer.backend.get_added_tokens_decoder().values()
        tokens = {token.content for token in added}
    else:
        templates = TEMPLATES.values()
        marks = {mark for template in templates for mark in re.findall(r"<\|?\w+\|?>", "".join(_parts(template)))}
        tokens = marks | {"<s>", "</s>", "<unk>"}
    tokens -= {*_GROUNDING, *_IMAGE_TOKENS, IMAGE_PLACEHOLDER}
    longest_first = sorted(tokens, key=len, reverse=True)
    return (
        re.compile("|".join(map(re.escape, _IMAGE_TOKENS))),
        re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
    )


def _parts(template):
    return template.system_prefix, template.user_prefix, template.assistant_prefix, template.end


def _numbers(text):
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _box_code(box, declared):
    """What is wrong with [x1, y1, x2, y2], or None."""
    if max(box) <= 1 and any(number % 1 for number in box):
        return "box_in_fractions"
    if min(box) < 0 or max(box) > 1000:
        width_px, height_px = declared[0] if len(declared) == 1 else (0, 0)
        fits = min(box) >= 0 and max(box[0], box[2]) <= width_px and max(box[1], box[3]) <= height_px
        return "box_in_pixels" if fits or (min(box) >= 0 and not declared) else "box_range"
    if any(number % 1 for number in box):
        return "box_syntax"
    return None if box[0] < box[2] and box[1] < box[3] else "box_order"


def _short(value, limit=80):
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(text) if isinstance(value, str) else text


# pictures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of a picture's file."""

    hash: int
    bytes: int = 0
    size: tuple | None = None  # (width_px, height_px)
    code: str | None = None
    found: str = ""
    expected: str | None = None
    todo: str | None = None
    remarks: tuple = ()


def _look(name, pictures, processor):
    """Look at a file: whether it is there, what its header says, whether it decodes."""
    number = hash_text(os.path.normpath(name))
    if _ADDRESS.search(name) and not os.path.exists(name):
        return _Look(number, code="remote_media", found=f"the address {_short(name)}")
    try:
        size_bytes = os.stat(name).st_size
    except (OSError, ValueError):
        return _missing(name, number)
    if not size_bytes:
        return _Look(number, code="empty_media", found=f"{name} has no bytes")
    if pictures == "exist":
        return _Look(number, size_bytes)
    try:
        size = _header_size(name, processor)
        if pictures == "decode":
            open_image(name, "row")
    except DataError as error:
        found, expected, todo = _in_three(str(error).removeprefix("row: "))
        return _Look(number, size_bytes, code="unreadable_media", found=found, expected=expected, todo=todo)
    return _Look(number, size_bytes, tuple(size), remarks=tuple(_remarks(name, *size)))


def _header_size(name, processor):
    """As the encoder reads it, which may depend on the model."""
    if processor is None:
        return image_size(name, "row")
    return picture_sizes(Record(None, (), (name,), "row"), processor)[0]


def _missing(name, number):
    slashed = name.replace("\\", "/")
    if slashed != name and os.path.exists(slashed):
        return _Look(number, code="backslash_path", found=f"backslashes in {_short(name)}")
    stem = os.path.splitext(name)[0]
    others = [stem + suffix for suffix in (*_SUFFIXES, *map(str.upper, _SUFFIXES)) if stem + suffix != name]
    near = next((other for other in others if os.path.exists(other)), None)
    todo = f"there is {os.path.basename(near)}; write that" if near else None
    return _Look(number, code="missing_media", found=f"picture {name} does not exist", todo=todo)


def _remarks(name, width_px, height_px):
    kind, said = file_kind(name), _SUFFIXES.get(os.path.splitext(name)[1].lower())
    if kind and said and kind != said:
        yield "wrong_extension", f"{name} is a {kind.upper()}"
    if max(width_px, height_px) > 100 * min(width_px, height_px):
        yield "extreme_aspect", f"{name} has {width_px} x {height_px} px"
    elif min(width_px, height_px) < 28:
        yield "tiny_picture", f"{name} has {width_px} x {height_px} px"


def file_kind(name):
    """ "jpeg", "png", "gif", "webp", "bmp", "tiff" or None, from the first bytes of a file."""
    with open(name, "rb") as file:
        head = file.read(12)
    signs = (
        ("jpeg", head[:3] == b"\xff\xd8\xff"),
        ("png", head[:8] == b"\x89PNG\r\n\x1a\n"),
        ("gif", head[:4] == b"GIF8"),
        ("webp", head[:4] == b"RIFF" and head[8:] == b"WEBP"),
        ("bmp", head[:2] == b"BM"),
        ("tiff", head[:4] in (b"II*\0", b"MM\0*")),
    )
    return next((kind for kind, is_it in signs if is_it), None)


def _escapes(name, root):
    """Whether a path leaves the folder of the pictures."""
    if name.startswith(f"{root}{os.sep}") and ".." not in name:
        return False
    return os.path.relpath(name, root).startswith(os.pardir)


def _declared_sizes(parsed):
    """[(width_px, height_px), …] of `width`, `height` or the lists of them; [] if none are declared."""
    widths = parsed.get("width_list", parsed.get("width"))
    if widths is None:
        return []
    heights = parsed.get("height_list", parsed.get("height"))
    widths = widths if isinstance(widths, list) else [widths]
    heights = heights if isinstance(heights, list) else [heights]
    if len(widths) != len(heights):
        return []
    pairs = list(zip(widths, heights, strict=True))
    numeric = [all(isinstance(side, int) and side > 0 for side in pair) for pair in pairs]
    return list(compress(pairs, numeric)) if all(numeric) else []
