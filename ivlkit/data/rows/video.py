"""Videos as a few frames: files (PyAV), animated pictures (Pillow) and folders of frames.

The released sampling: a number of frames between 8 and 32, the clip cut into that many equal intervals, one frame of
each: drawn in training, the middle one in evaluation. How many there are follows from the file's header and the draw,
so that a row's tokens can be counted without decoding. A clip of fewer frames gives each of them once; the reference
repeats the last one, at the price of a tile each.
"""

import os
import random
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from .media import FRAME_SUFFIXES, UPRIGHT_ON_WHITE, check_pixels, image_size, known_formats, open_image, unreadable

MIN_FRAMES, MAX_FRAMES = 8, 32
EVALUATION_FRAMES = 16  # what the reference's video benchmark asks with
ANIMATIONS = {".gif", ".webp", ".png", ".apng"}
SEEK_SECONDS = 4  # a frame further ahead is sought, a nearer one decoded up to
END_SHARE = 0.05  # of the duration that a header may promise too much
_QUARTER_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


@dataclass(frozen=True)
class VideoHeader:
    """What is known before a frame is decoded; `first` and `last` are the clip's frame numbers, [first, last)."""

    first: int
    last: int
    width_px: int
    height_px: int
    fps: float | None = None  # None: a folder of frames, an animation

    @property
    def num_frames(self):
        """Frames of the clip."""
        return self.last - self.first


def video_sizes(video, where="video", *, draw=None):
    """(width_px, height_px) of every frame that will be taken, by the header alone.

    Args: draw: (seed, epoch), which with `where` decides the number, 8 to 32; None for an evaluation, 16.
    Raises: DataError that names the file if it is missing, unreadable, empty or too large.
    """
    header = read_header(video, where)
    wanted = random.Random(f"{draw}:{where}:frames").randint(MIN_FRAMES, MAX_FRAMES) if draw else EVALUATION_FRAMES
    return [(header.width_px, header.height_px)] * min(wanted, header.num_frames)


def sample_frames(video, where="video", *, num_frames=EVALUATION_FRAMES, draw=None, rules=UPRIGHT_ON_WHITE):
    """The frames themselves, RGB, in order, one from each of `num_frames` equal intervals of the clip.

    Args: draw: (seed, epoch) draws a frame of every interval; None takes the middle one.
    Raises: DataError that names the file if a frame can't be decoded or the file ends before it.
    """
    rng = random.Random(f"{draw}:{where}:places") if draw else None
    with _opened(video, where, rules) as (header, frames):
        yield from frames(frame_numbers(header.first, header.last, num_frames=num_frames, rng=rng))


def check_end(video, where="video"):
    """Decode the last frame of a clip. Raises: DataError if the file ends before it, as `sample_frames` does."""
    with _opened(video, where) as (header, frames):
        list(frames([header.last - 1]))


def frame_numbers(first, last, *, num_frames, rng=None):
    """One frame number of each interval of [first, last): [1, 4, 7] for 9 frames in 3; with `rng` a drawn one."""
    bounds = np.linspace(first, last, min(num_frames, last - first) + 1).astype(int).tolist()
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    return [rng.randrange(start, end) if rng else (start + end - 1) // 2 for start, end in pairs]


def read_header(video, where="video"):
    """The `VideoHeader` of a clip; no frame is decoded."""
    with _opened(video, where) as (header, _):
        return header


@contextmanager
def _opened(video, where, rules=UPRIGHT_ON_WHITE):
    """(`VideoHeader`, function of frame numbers in order that decodes these: RGB) of a clip."""
    missing = next((path for path in video.files if not os.path.exists(path)), None)
    if missing:
        found, expected = f"video {missing} does not exist", "a file or a folder of frames there"
        raise DataError(
            found, expected, "check the row's path and the data set's `root`", where=where, code="missing_media"
        )
    path = Path(video.path)
    is_animation = path.suffix.lower() in ANIMATIONS
    kind = _folder if video.frames or path.is_dir() else _animation if is_animation else _file
    try:
        with kind(video, where, rules) as opened:
            yield opened
    except DataError:
        raise
    except Exception as error:
        raise unreadable(f"{video.path} can't be decoded ({error})", where=where) from error


@contextmanager
def _folder(video, where, rules):
    files = frame_files(video)
    if not files:
        expected = f"{', '.join(sorted(FRAME_SUFFIXES))} files named by number"
        raise unreadable(f"{video.path} holds no frames", expected, None, where=where)
    if video.clip:
        kind = "the first of a list" if video.frames else "a folder"
        found = f"{video.path} is {kind} of frames, which have no times"
        raise DataError(found, None, "remove `clip`", where=where, code="clip")
    header = VideoHeader(0, len(files), *image_size(files[0], where))
    yield header, lambda numbers: (open_image(files[number], where, rules=rules) for number in numbers)


def frame_files(video):
    """Those of a list as they stand; those of a folder by the numbers in their names: frame_2 before frame_10.

    () for a video that is one file.
    """
    if video.frames or not os.path.isdir(video.path):
        return video.frames
    files = [path for path in Path(video.path).iterdir() if path.suffix.lower() in FRAME_SUFFIXES]

    def in_order(path):
        parts = [part for part in re.split(r"([0-9]+)", path.stem) if part]
        return [(int(part), "") if part.isdigit() else (-1, part) for part in (*parts, path.suffix)]

    return sorted((path for path in files if path.name[0] != "."), key=in_order)


@contextmanager
def _animation(video, where, rules):
    with Image.open(video.path, formats=known_formats()) as image:
        check_pixels(*image.size, name=video.path, where=where)
        total, begins = getattr(image, "n_frames", 1), [0.0]  # the second of each frame, and the end
        for number in range(total) if video.clip else ():
            image.seek(number)
            image.load()  # only then WebP says how long a frame is shown
            begins.append(begins[-1] + (image.info.get("duration") or 100) / 1000)  # 0.1 s unsaid, as viewers do
        ends = np.interp(video.clip or (), begins, range(len(begins)))

        def frames(numbers):
            for number in numbers:
                image.seek(number)
                frame = image.convert("RGBA" if image.has_transparency_data else "RGB")
                yield open_image(frame, where, rules=rules)

        yield VideoHeader(*_clip_frames(video, total, ends, begins[-1], where), *image.size), frames


# Files of frames over time


@contextmanager
def _file(video, where, rules):
    try:
        import av
    except ImportError as error:
        found = f"{video.path} needs a library that reads videos: pip install av"
        raise DataError(found, None, "or put its frames into a folder", where=where) from error
    with av.open(str(video.path)) as container:
        if not container.streams.video:
            raise unreadable(f"{video.path} has no pictures", "a video", where=where)
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        check_pixels(*size, name=video.path, where=where)
        fps, total = _rate_and_frames(container, stream)
        if not total:
            with av.open(str(video.path)) as other:  # the header does not know: the packets are counted
                total = sum(1 for packet in other.demux(video=0) if packet.size)
        if not total:
            raise unreadable(f"{video.path} has no frames", where=where)
        ends = [second * fps for second in video.clip or ()]
        header = VideoHeader(*_clip_frames(video, total, ends, total / fps, where), *size, fps=fps)
        yield header, partial(_file_frames, container, stream, header, video.path, where, rules)


def _rate_and_frames(container, stream):
    """(frames a second, frames) as the header says, 0 frames where it does not know."""
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else 25.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    else:
        counts_from_zero = "matroska" in container.format.name  # other formats count from their first frame
        late = max(container.start_time or 0, 0) if counts_from_zero else 0
        seconds = max((container.duration or 0) - late, 0) / 1_000_000
    if stream.frames or (seconds and rate):
        return fps, stream.frames or max(1, int(seconds * fps))
    return fps, 0


def _clip_frames(video, total, ends, seconds, where):
    """(first, last) of the clip. Args: ends: its own, counted in frames; seconds: of the whole video."""
    if video.clip is None:
        return 0, total
    first, last = (min(total, round(end)) for end in ends)
    if first >= last:
        has = f"{total} frames in {seconds:.2f} s"
        found = f"clip {list(video.clip)} of {video.path}, which has {has}, holds none"
        raise DataError(found, None, "correct `clip`", where=where, code="clip")
    return first, last


def _file_frames(container, stream, header, path, where, rules, numbers):
    start = float((stream.start_time or 0) * stream.time_base)
    reader = _Reader(container, stream, header.fps)
    slack = max(2 / header.fps, END_SHARE * header.last / header.fps)
    for number in numbers:
        seconds = start + number / header.fps
        frame, found = reader.at(seconds)
        if frame is None or found < seconds - slack:
            found = f"{path} ends after {reader.last_seconds:.2f} s"
            expected = f"a frame at {seconds:.2f} s, as its header says"
            raise unreadable(found, expected, "is the file complete?", where=where)
        check_pixels(frame.width, frame.height, name=path, where=where)
        quarters = round(getattr(frame, "rotation", 0) / 90) % 4 if rules.apply_orientation else 0
        image = frame.to_image()
        yield image.transpose(_QUARTER_TURNS[quarters]) if quarters else image


class _Reader:
    """Decodes forwards; `at` gives the first frame at or after a moment, or the last one."""

    def __init__(self, container, stream, fps):
        self.container, self.stream, self.fps = container, stream, fps
        self.frame, self.seconds, self.last_seconds = None, float("-inf"), 0.0
        self.seekable = True
        self._frames = container.decode(stream)

    def __next__(self):
        self.frame = next(self._frames)
        known = self.frame.time
        self.seconds = known if known is not None else max(self.seconds, -1 / self.fps) + 1 / self.fps
        self.last_seconds = max(self.last_seconds, self.seconds)
        return self.frame

    def at(self, seconds):
        """(frame, its second)."""
        early = seconds - 0.25 / self.fps  # a container rounds its times
        if self.seekable and seconds - max(self.seconds, 0) > SEEK_SECONDS:
            self._seek(seconds)
            if next(self, None) is None or self.seconds > seconds + 1 / self.fps:
                self._seek(0)  # the file's index is wrong: decode up to every place, once through the file
                self.seekable, self.seconds = False, float("-inf")
        while self.seconds < early and next(self, None) is not None:
            pass
        return self.frame, self.seconds

    def _seek(self, seconds):
        self.container.seek(int(seconds / self.stream.time_base), stream=self.stream, backward=True)
        self._frames = self.container.decode(self.stream)
