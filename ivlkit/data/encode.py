"""Record → Example: the exact tokens, the exact labels, the tiles as uint8.

The whole rendered text is tokenised once. A token is supervised iff it *starts* inside an answer's span (closing token
included). Overlap would be wrong: a Phi-3 role token swallows the whitespace after it, and with it the start of the
answer's span.
"""

import random
from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..errors import DataError
from .rows.conversation import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from .rows.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from .rows.media import OpenPicture, degrade_jpeg, image_size
from .rows.records import Record
from .rows.video import sample_frames, video_sizes

IGNORE_INDEX = -100
_SHORTEN = "raise max_seq_length or shorten the row"


@dataclass(frozen=True)
class Example:
    """One row, ready to be collated.

    input_ids int64 [L]; labels int64 [L], IGNORE_INDEX where not supervised, not shifted; tiles uint8 [T, S, S, 3].
    `notes` say what was changed to make it fit ("12 → 6 tiles …").
    """

    input_ids: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray
    where: str
    num_tiles: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.input_ids)

    @property
    def num_supervised(self):
        """Tokens the loss is taken on."""
        return int((self.labels != IGNORE_INDEX).sum())

    def __repr__(self):
        found = f"{len(self)} tokens, {self.num_supervised} supervised, {len(self.tiles)} tiles"
        return f"Example({self.where}: {'; '.join([found, *self.notes])})"


def encode(record, processor, *, max_length=None, draw=(0, 0)):
    """Encode a record for training.

    A row longer than `max_length` first gets fewer tiles (its `notes` say so); if it still does not fit it is refused.
    Nothing is ever cut.

    Args:
        record: a `Record`.
        processor: template, tokenizer and tile settings of a model (`ivlkit.load_processor`), or the loaded model.
        max_length: tokens at most; None for no limit. The guide's `max_seq_length`, image tokens included.
        draw: (seed, epoch); with the row's own place it keys every random draw, whichever worker makes it. None takes
            the middle frames of a video, as an evaluation does.
    Returns: `Example`.
    Raises: DataError with file and line if the row is too long, has no supervised token, or types image tokens.
    """
    if not isinstance(record, Record):
        raise DataError(f"encode: a {type(record).__name__} in the record's place; expected one, such as data[0]")
    processor = getattr(processor, "processor", processor)
    rules = processor.picture_rules
    with ExitStack() as files:
        opened = [files.enter_context(OpenPicture(image, record.where, rules=rules)) for image in record.images]
        sizes = picture_sizes(record, processor, draw=draw) if record.video else [one.size_px for one in opened]
        text = encode_text(record, processor, sizes=sizes, max_length=max_length)
        if record.video:
            options = {"num_frames": len(text.num_tiles), "draw": draw, "rules": rules}
            pictures = sample_frames(record.video, record.where, **options)
        else:
            pictures = (one.take_rgb() for one in opened)  # one at a time is held in memory
        cut = [processor.tile(picture, max_tiles=text.budget) for picture in pictures]
    if record.augment_jpeg:
        rng = random.Random(f"{draw}:{record.where}")
        tiles = [Image.fromarray(tile) for tiles in cut for tile in tiles]
        cut = [np.asarray(degrade_jpeg(tile, rng.randint(75, 100)))[None] for tile in tiles]
    notes = (*text.notes, *([f"outer whitespace of {text.stripped} answers stripped"] if text.stripped else []))
    tiles = stack_tiles(cut, processor.tile_px)
    return Example(text.input_ids, text.labels, tiles, record.where, tuple(text.num_tiles), notes)


def picture_sizes(record, processor, *, draw=(0, 0)):
    """(width_px, height_px) of every picture of a row, by headers only: [(640, 480)]; a video gives one a frame.

    Args: draw: (seed, epoch), which decides how many frames a video gives; None for an evaluation.
    Raises: DataError that names row and file if one is missing or unreadable.
    """
    if record.video:
        return video_sizes(record.video, record.where, draw=draw)
    return [image_size(image, record.where, rules=processor.picture_rules) for image in record.images]


def with_frames(turns, num_frames):
    """Turns whose `<video>` is written out: "Frame-1: <image>\\nFrame-2: <image>" for two frames."""
    frames = "\n".join(f"Frame-{number}: {IMAGE_PLACEHOLDER}" for number in range(1, num_frames + 1))
    return tuple(
        replace(turn, text=turn.text.replace(VIDEO_PLACEHOLDER, frames)) if turn.role == "user" else turn
        for turn in turns
    )


@dataclass(frozen=True)
class EncodedText:
    """What a row's text and the sizes of its pictures decide; no pixel is read."""

    input_ids: np.ndarray
    labels: np.ndarray
    stripped: int  # answers whose outer whitespace was removed
    budget: int  # tiles of one picture at most, thumbnail not counted
    num_tiles: list[int]
    full_tiles: int  # of all pictures, were there no limit
    notes: tuple[str, ...]


def encode_text(record, processor, *, sizes, max_length=None):
    """The tokens and labels of a row, checked, such that it has at most `max_length` tokens.

    The text is tokenised once, with empty pictures, and context tokens are put in behind each `<img>`: image tokens are
    whole tokens of their own, so that the length is (tokens without pictures) + num_image_token · tiles. A row that is
    too long gets fewer tiles; a video, which has one tile a frame, fewer frames.

    Args: sizes: (width_px, height_px) of each picture, as `picture_sizes` gives them.
    Raises: DataError as `encode`, also if the row does not fit even with one tile a picture, or one frame.
    """
    input_ids, labels, stripped = _tokenise(record, processor, [0] * len(sizes))
    if record.video:
        budget, full = 1, [1] * len(sizes)
        num_tiles = full[: _fit_frames(record, processor, len(input_ids), len(sizes), max_length)]
        if num_tiles != full:
            input_ids, labels, stripped = _tokenise(record, processor, [0] * len(num_tiles))
    else:
        fitted = fit_tiles(record, processor, len(input_ids), sizes=sizes, max_length=max_length)
        budget, full, num_tiles = fitted
    if processor.splices:
        input_ids, labels = _splice(input_ids, labels, processor, num_tiles)
    else:
        input_ids, labels, stripped = _tokenise(record, processor, num_tiles)
    check_image_tokens(input_ids, processor, num_tiles=num_tiles, where=record.where)
    if (labels == IGNORE_INDEX).all():
        raise DataError("no supervised token", where=record.where, code="no_supervised_token")
    notes = (shrunk_text(sum(full), sum(num_tiles), max_length, video=record.video),) if num_tiles != full else ()
    return EncodedText(input_ids, labels, stripped, budget, num_tiles, sum(full), notes)


def fit_tiles(record, processor, text_tokens, *, sizes, max_length):
    """(budget of a picture, tiles of each at the full budget, tiles of each): (12, [13], [13]) for 640 × 480 px.

    The budget of the row is the largest at which it fits. Raises: DataError if it fits at none.
    """
    budget = record.max_tiles or processor.max_tiles
    full = num_tiles = processor.count_tiles(sizes, max_tiles=budget)
    while max_length is not None and (tokens := text_tokens + processor.num_image_token * sum(num_tiles)) > max_length:
        if budget == 1:
            found = f"{tokens} tokens at the fewest tiles ({text_tokens} of text, {sum(num_tiles)} tiles)"
            raise DataError(found, f"at most {max_length}", _SHORTEN, where=record.where, code="too_long")
        budget -= 1
        num_tiles = processor.count_tiles(sizes, max_tiles=budget)
    return processor.share(budget, len(sizes)), full, num_tiles


def shrunk_text(full, fewer, max_length, *, video=None):
    """What is said of a row that gets fewer tiles, or of a video's frames: "13 → 7 tiles to fit 4096 tokens"."""
    return f"{full} → {fewer} {'frames' if video else 'tiles'} to fit {max_length} tokens"


def _fit_frames(record, processor, text_tokens, num_frames, max_length):
    """The most frames that fit: more frames are always more tokens."""
    if max_length is None or text_tokens + processor.num_image_token * num_frames <= max_length:
        return num_frames

    def length(frames):
        return len(_tokenise(record, processor, [0] * frames)[0]) + processor.num_image_token * frames

    fits = bisect_right(range(1, num_frames), max_length, key=length)
    if not fits:
        found = f"{length(1)} tokens with a single frame"
        raise DataError(found, f"at most {max_length}", _SHORTEN, where=record.where, code="too_long")
    return fits


def stack_tiles(cut, tile_px):
    """The tiles of each picture, uint8 [T, tile_px, tile_px, 3], → those of all; [0, …] for none, no copy of one."""
    if not cut:
        return np.zeros((0, tile_px, tile_px, 3), np.uint8)
    return cut[0] if len(cut) == 1 else np.concatenate(cut)


def _tokenise(record, processor, num_tiles):
    """(input_ids, labels, stripped answers) with pictures of so many tiles: labels start inside an answer."""
    try:
        turns = with_frames(record.turns, len(num_tiles)) if record.video else record.turns
        rendered = processor.render(turns, num_tiles)
    except DataError as error:
        raise error.at(record.where) from error
    encoded = processor.tokenizer(rendered.text, return_offsets_mapping=True)
    input_ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    starts, ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).T
    inside = np.zeros(len(input_ids), dtype=bool)
    for first, last in rendered.answers:
        inside |= (starts >= first) & (starts < last) & (ends > starts)
    return input_ids, np.where(inside, input_ids, IGNORE_INDEX), rendered.stripped


def _splice(input_ids, labels, processor, num_tiles):
    """Both of a text of empty pictures, with the context tokens behind each `<img>`; none of them is supervised."""
    starts = np.flatnonzero(input_ids == processor.token_id(IMAGE_START))[: len(num_tiles)]
    places = np.repeat(starts + 1, processor.num_image_token * np.asarray(num_tiles, np.int64))
    context = processor.token_id(IMAGE_CONTEXT)
    return np.insert(input_ids, places, context), np.insert(labels, places, IGNORE_INDEX)


def check_image_tokens(input_ids, processor, *, num_tiles, where):
    """Raise DataError unless there is one context token a feature, and every picture is opened and closed once."""
    expected = {IMAGE_CONTEXT: processor.num_image_token * sum(num_tiles)}
    expected |= dict.fromkeys((IMAGE_START, IMAGE_END), len(num_tiles))
    for token, count in expected.items():
        found = int((np.asarray(input_ids) == processor.token_id(token)).sum())
        if found != count:
            said = f"{found} {token} tokens but its pictures make {count}"
            todo = f"does the text itself contain {token}? Remove it"
            raise DataError(said, None, todo, where=where, code="image_token")
