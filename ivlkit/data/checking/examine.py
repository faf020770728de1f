"""Examines rows: which are usable, what is wrong with the others, how long each is. No row influences another.

What is usable is decided by the readers and the encoder themselves; the looking here only says why, and finds what
trains but is hardly meant. A block of rows comes back as arrays of a few bytes a row, so that processes can share the
work.
"""

import os
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ...errors import DataError, all_faults
from ..datasets.index import LineIndex
from ..encode import encode_text, fit_tiles, picture_sizes, shrunk_text
from ..rows.boxes import BOX, TAGGED, parse_boxes
from ..rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TEMPLATES
from ..rows.fields import FOREIGN_MARK, unused_fields
from ..rows.formats import IMAGE_PLACEHOLDER, short
from ..rows.media import MAX_PIXELS, is_data_uri
from ..rows.records import parse_with_doubles, read_row
from .findings import ERROR, KINDS
from .pictures import declared_sizes, hash_text, look_at, video_faults
from .spellings import spelling_key

GOOD, BAD = 1, 2  # states of a row; 0: not looked at
LONG_LINE_BYTES = 1 << 20
TOKENIZED_AT_ONCE = 256
_CACHED_PICTURES = 100_000  # about 30 MB a process
_IMAGE_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
_GROUNDING = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
_MARK = re.compile(r"<(?!image>)")  # anything that may be a token or a tag
control_characters = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BARE_BOX = re.compile(r"\s*\[\s*\d*\.\d+(?:\s*,\s*\d*\.\d+){3}\s*\]\s*")
_BOXES = re.compile(rf"\s*\[\s*(?:{BOX.pattern}\s*(?:,\s*)?)+\]\s*")
_MISSING_VALUES = {"nan", "na", "n/a", "#n/a", "null", "#ref!", "#value!", "#name?", "#div/0!"}
_MISNAMED = ("image_path", "image_file", "img", "picture", "pictures", "photo")


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


class Block:
    """What was found in some rows of one source. Arrays have a value a row, `pictures` one a picture."""

    def __init__(self, source, rows):
        self.source, self.rows = source, rows  # the source's number; int64, of the file
        self.state = np.zeros(len(rows), np.uint8)  # GOOD or BAD
        self.hashes = np.zeros((4, len(rows)), np.uint64)  # what is asked without its files, id or 0, last answer,
        # its spelling
        self.lengths = np.zeros((4, len(rows)), np.int32)  # tokens without pictures, tiles at the set's budget,
        # supervised ones and the characters of their answers, where the token that closes one counts as a character
        self.final = np.zeros((2, len(rows)), np.int32)  # tokens and tiles as trained, after shrinking
        self.videos = []  # rows of the file whose length depends on the draw
        self.pictures = []  # PICTURE of each file
        self.names = []  # of these files, from `root` on; "\0" between when packed
        self.problems = []  # (row, code, found, expected, todo)
        self.counts = Counter()  # of every problem, also those not described

    def packed(self):
        """The same with arrays in place of lists: little to send to another process."""
        self.videos, self.pictures = np.array(self.videos, np.int64), np.array(self.pictures, PICTURE)
        self.names = "\0".join(self.names)
        self.problems.sort(key=lambda problem: problem[0])  # lengths were counted after the rest
        return self


_PICTURE = "hash <u8, row <i4, size <i8, changed <i8, place <i2, width <i4, height <i4"  # bytes; time of change in ns
PICTURE = np.dtype([tuple(field.split()) for field in _PICTURE.split(", ")])


class Examiner:
    """Examines blocks of rows for a `Task`, one after the other."""

    def __init__(self, task):
        self.task, self.processor = task, task.processor
        self.indexes = [LineIndex(source.annotation) for source in task.sources]
        self._tokens = _token_pattern(task.processor)
        how = {"pictures": task.pictures, "processor": task.processor}
        self._look_at = partial(look_at, **how)
        self._look_at_file = lru_cache(maxsize=_CACHED_PICTURES)(self._look_at)
        self._video_faults = lru_cache(maxsize=20_000)(partial(video_faults, **how))

    def block(self, source, start, stop, rows=None):
        """Examine rows start … stop - 1 of a source, or only those of them in `rows`. Returns: `Block`."""
        index = self.indexes[source]
        lines = index.lines(start, stop)
        wanted = np.arange(start, stop) if rows is None else np.asarray(rows, np.int64)
        lines = lines if rows is None else [lines[row - start] for row in wanted.tolist()]
        self.source, self.found = self.task.sources[source], Block(source, wanted)
        to_measure = []  # (place, record, sizes)
        for place, (row, line) in enumerate(zip(wanted.tolist(), lines, strict=True)):
            to_measure += self._examine(place, line, index.where(row))
        self._measure(to_measure)
        return self.found.packed()

    def _look(self, path):
        """`Look` at a picture; that of a file is remembered, as rows often share pictures."""
        return self._look_at(path) if is_data_uri(path) else self._look_at_file(os.fspath(path))

    def _say(self, place, code, found, *, expected=None, todo=None):
        """Note a problem of a row."""
        counts, task = self.found.counts, self.task
        counts[code] += 1
        if KINDS[code].level == ERROR:
            self.found.state[place] = BAD
        if (task.wanted is None or code in task.wanted) and (task.limit is None or counts[code] <= task.limit):
            self.found.problems.append((int(self.found.rows[place]), code, found, expected, todo))

    def _say_fault(self, place, fault):
        """What a reader or the encoder refuses, in its own words."""
        assert KINDS[fault.code].level == ERROR, fault.code  # what trains is no fault
        self._say(place, fault.code, fault.found, expected=fault.expected, todo=fault.todo)

    def _examine(self, place, line, where):
        """One line, up to the counting of its tokens: [(place, record, sizes)] if they can be counted."""
        self.found.state[place] = GOOD
        if line.endswith(b"\r\n"):
            self._say(place, "crlf", "the line ends with \\r\\n")
        if line.startswith(b"\xef\xbb\xbf"):
            self._say(place, "byte_order_mark", "a byte order mark")
        if len(line) > LONG_LINE_BYTES:
            self._say(place, "long_line", f"a line of {len(line) / 1e6:.1f} MB")
        try:
            parsed, twice = parse_with_doubles(line, where)
        except DataError as fault:
            self._say_fault(place, fault)
            return []
        for key in twice:
            self._say(place, "duplicate_key", f"the key {short(key)} twice")
        (parsed, record), faults = all_faults(read_row(parsed, where, self.source.root, format=self.source.format))
        if not faults:
            return self._check_record(place, parsed, self.source.complete(record))
        for fault in faults:
            self._say_fault(place, fault)
        for look in map(self._look, record.images if record else ()):
            if look.fault and look.fault.code not in {fault.code for fault in faults}:
                self._say_fault(place, look.fault)
        return []

    # good rows -------------------------------------------------------------------------------------------------------

    def _check_record(self, place, parsed, record):
        texts = [turn.text for turn in record.turns]
        whole = "\n".join(texts)
        if _MARK.search(whole):
            self._check_marks(place, parsed, record)
        if found := control_characters.search(whole):
            self._say(place, "control_character", f"the control character {found[0]!r} in a text")
        for name, todo in unused_fields(parsed["conversations"], record.extra):
            self._say(place, "unused_field", f"{name}, which nothing reads", todo=todo)
        self._check_turns(place, record)
        looks = [self._look(image) for image in record.images]
        if looks:
            self._check_pictures(place, parsed, record, looks)
        elif record.video:
            for fault in self._video_faults(record.video):
                self._say_fault(place, fault)
        elif named := [key for key in _MISNAMED if parsed.get(key)]:
            self._say(place, "misnamed_image", f"pictures in the field {named[0]!r}, which nothing reads")
        written = [image for image in record.images if is_data_uri(image)]  # files are told apart by their content
        asked, answer = hash_text("\0".join((*written, str(record.video), *texts[:-1]))), texts[-1].strip()
        number, hashed = 0 if record.id is None else hash_text(repr(record.id)), hash_text(answer)
        spelling = spelling_key(answer)
        self.found.hashes[:, place] = asked, number, hashed, hashed if spelling == answer else hash_text(spelling)
        is_measured = self.found.state[place] == GOOD and self.processor is not None
        return [(place, record, self._sizes(parsed, record, looks))] if is_measured else []

    def _check_turns(self, place, record):
        for turn in record.turns:
            text = turn.text
            if turn.role == "assistant":
                answer = text.strip()
                if not answer:
                    self._say(place, "empty_answer", "an empty answer")
                elif answer.casefold() in _MISSING_VALUES:
                    self._say(place, "missing_value", f"the answer {answer!r}")
                elif len(answer) != len(text):
                    self._say(place, "outer_whitespace", f"outer whitespace in the answer {short(text)}")
                if "[" in text and _BARE_BOX.fullmatch(text):
                    self._say(place, "box_in_fractions", f"the bare box {short(text)} with shares of 1")
                if IMAGE_PLACEHOLDER in text:
                    self._say(place, "literal_placeholder", f'"{IMAGE_PLACEHOLDER}" in an answer')
            elif turn.role == "user":
                if IMAGE_PLACEHOLDER in text and not record.images and not record.video:
                    self._say(place, "literal_placeholder", f'"{IMAGE_PLACEHOLDER}" in a row without pictures')
                if not text.replace(IMAGE_PLACEHOLDER, "").strip():
                    self._say(place, "empty_question", "a user turn without text")

    def _check_marks(self, place, parsed, record):
        """Typed tokens and boxes: only rows with a "<" that opens no <image> come here."""
        image_tokens, others = self._tokens
        kinds = [("image_token", image_tokens, ""), ("special_token", others, "")]
        kinds, declared = [*kinds, ("foreign_mark", FOREIGN_MARK, ", a mark of other models")], declared_sizes(parsed)
        for turn in record.turns:
            for code, pattern, more in kinds:
                if found := pattern.search(turn.text):
                    self._say(place, code, f"{found[0]} in a turn of the {turn.role}{more}")
            for tag in ("ref", "box", "quad"):
                opened, closed = turn.text.count(f"<{tag}>"), turn.text.count(f"</{tag}>")
                if opened != closed:
                    self._say(place, "unclosed_tag", f"{opened} <{tag}> but {closed} </{tag}>")
            for content in TAGGED.findall(turn.text):
                if not _BOXES.fullmatch(content):
                    self._say(place, "box_syntax", f"<box>{short(content)}</box>")
                    continue
                wrong = ((_box_code(box, declared), box) for box in parse_boxes(content))
                if code_and_box := next((one for one in wrong if one[0]), None):
                    self._say(place, code_and_box[0], f"the box {short([*code_and_box[1]])}")

    def _check_pictures(self, place, parsed, record, looks):
        for number, (image, look) in enumerate(zip(record.images, looks, strict=True)):
            if look.fault:
                self._say_fault(place, look.fault)
            for code, found in look.remarks:
                self._say(place, code, found)
            if look.is_turned and any("<box>" in turn.text for turn in record.turns):
                self._say(place, "turned_picture", f"boxes on {short(str(image))}, which its EXIF turns")
            if is_data_uri(image):  # no file that could be compared with others
                continue
            row, size = int(self.found.rows[place]), look.size or (0, 0)
            self.found.pictures.append((look.hash, row, look.bytes, look.changed_ns, number, *size))
            self.found.names.append(os.fspath(image).removeprefix(f"{self.source.root}{os.sep}"))
        declared = declared_sizes(parsed)
        if declared and len(declared) != len(looks):
            self._say(place, "declared_size", f"{len(declared)} declared sizes for {len(looks)} pictures")
            return
        for (width_px, height_px), look in zip(declared, looks, strict=False):
            if look.size and look.size != (width_px, height_px):
                is_turn = look.is_turned and look.size == (height_px, width_px)
                code, why = ("turned_picture", ", as its EXIF turns it") if is_turn else ("declared_size", "")
                real = f"{look.size[0]} x {look.size[1]}{why}"
                self._say(place, code, f"declared {width_px} x {height_px} px, the file has {real}")

    def _sizes(self, parsed, record, looks):
        """Sizes of the pictures, or None where only the encoder's own way finds them.

        Where files are not opened, the declared sizes count.
        """
        if record.video or not self.processor.splices:
            return None
        if all(look.size for look in looks):
            return [look.size for look in looks]
        declared = declared_sizes(parsed)
        credible = all(width_px * height_px <= MAX_PIXELS for width_px, height_px in declared)
        return declared if len(declared) == len(looks) and credible else None

    # lengths ---------------------------------------------------------------------------------------------------------

    def _measure(self, rows):
        """Exact tokens and tiles of (place, record, sizes) of good rows, many texts at a time."""
        for place, record, sizes in rows:
            trained = [turn.text for turn in record.turns if turn.role == "assistant" and turn.trained]
            self.found.lengths[3, place] = sum(len(text.strip()) + 1 for text in trained)
            if sizes is None:
                self._measure_as_trained(place, record)
        quick = [row for row in rows if row[2] is not None]
        for start in range(0, len(quick), TOKENIZED_AT_ONCE):
            self._measure_batch(quick[start : start + TOKENIZED_AT_ONCE])

    def _measure_as_trained(self, place, record):
        """What the encoder itself says; for videos and pictures that are no plain files."""
        try:
            sizes = picture_sizes(record, self.processor, draw=self.task.draw)
            text = encode_text(record, self.processor, sizes=sizes, max_length=self.task.max_length)
        except DataError as fault:
            return self._say_fault(place, fault)
        tiles, tokens = sum(text.num_tiles), len(text.input_ids)
        text_tokens, supervised = tokens - self.processor.num_image_token * tiles, int((text.labels >= 0).sum())
        self.found.lengths[:3, place] = text_tokens, text.full_tiles, supervised
        self.found.final[:, place] = tokens, tiles
        if record.video:
            self.found.videos.append(int(self.found.rows[place]))
        for note in text.notes:
            self._say(place, "fewer_tiles", note)
        return None

    def _measure_batch(self, batch):
        processor, max_length = self.processor, self.task.max_length
        rendered = [processor.render(record.turns, [0] * len(sizes)) for _, record, sizes in batch]
        encodings = processor.tokenizer.backend_tokenizer.encode_batch([one.text for one in rendered])
        for (place, record, sizes), one, encoding in zip(batch, rendered, encodings, strict=True):
            text_tokens, supervised = len(encoding), _count_supervised(encoding.offsets, one.answers)
            if not supervised:
                self._say(place, "no_supervised_token", "no supervised token")
            try:
                _, full, tiles = fit_tiles(record, processor, text_tokens, sizes=sizes, max_length=max_length)
            except DataError as fault:
                self._say_fault(place, fault)
                continue
            self.found.lengths[:3, place] = text_tokens, sum(full), supervised
            self.found.final[:, place] = text_tokens + processor.num_image_token * sum(tiles), sum(tiles)
            if tiles != full:
                self._say(place, "fewer_tiles", shrunk_text(sum(full), sum(tiles), max_length))


def _count_supervised(offsets, answers):
    """Tokens that start inside an answer's span, as `encode` labels them; offsets are in order."""
    count = 0
    for first, last in answers:
        inside = offsets[bisect_left(offsets, (first,)) : bisect_left(offsets, (last,))]
        count += sum(end > start for start, end in inside)
    return count


def _token_pattern(processor):
    """(pattern of image tokens, pattern of every other token of a chat format) typed in a text."""
    if processor is not None:
        added = processor.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        tokens = {token.content for token in added}
    else:
        parts = [(one.system_prefix, one.user_prefix, one.assistant_prefix, one.end) for one in TEMPLATES.values()]
        tokens = {"<s>", "</s>", "<unk>", *re.findall(r"<\|?\w+\|?>", " ".join(map("".join, parts)))}
    tokens -= {*_GROUNDING, *_IMAGE_TOKENS, IMAGE_PLACEHOLDER}
    longest_first = sorted(tokens, key=len, reverse=True)
    patterns = "|".join(map(re.escape, _IMAGE_TOKENS)), "|".join(map(re.escape, longest_first)) or r"(?!)"
    return tuple(map(re.compile, patterns))


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
