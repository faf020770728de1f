"""Videos → the released frames: as many as the draw says, one from each interval, exactly the frame that is meant."""

import random
import struct

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.encode import encode, picture_sizes, with_frames
from ivlkit.data.rows.media import AS_REFERENCE, open_image
from ivlkit.data.rows.records import Record, Turn, Video
from ivlkit.data.rows.video import frame_numbers, read_header, sample_frames, video_sizes
from ivlkit.errors import DataError

av = pytest.importorskip("av")
WHERE = "train.jsonl:17"


def numbered(number, size=(64, 48)):
    """A picture that shows its number: a bright bar in one of 8 columns for each of its octal digits (3 rows)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for row in range(3):
        column = number // 8**row % 8
        pixels[row * 16 : row * 16 + 16, column * 8 : column * 8 + 8] = 255
    return Image.fromarray(pixels)


def number_of(image):
    grey = np.asarray(image.convert("L"), float)
    bars = grey.reshape(3, 16, 8, 8).mean(axis=(1, 3))  # [row, column]
    return sum(int(bars[row].argmax()) * 8**row for row in range(3))


@pytest.fixture(scope="module")
def write_video(tmp_path_factory):
    """`write_video("a.mp4", 100, fps=25)` → a video whose frames show their numbers."""
    folder = tmp_path_factory.mktemp("videos")

    def write(name, frames, *, fps=25, codec="libx264", gop=12, times=None):
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps, options={"g": str(gop)})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                frame = av.VideoFrame.from_image(numbered(number))
                frame.pts = number if times is None else times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


def shown(path, **options):
    return [number_of(frame) for frame in sample_frames(Video(path), WHERE, **options)]


def test_intervals_are_equal_and_their_middles_taken():
    assert frame_numbers(0, 9, num_frames=3) == [1, 4, 7]
    assert frame_numbers(0, 100, num_frames=8) == [5, 18, 30, 43, 55, 68, 80, 93]
    assert frame_numbers(10, 20, num_frames=5) == [10, 12, 14, 16, 18]
    assert frame_numbers(0, 1, num_frames=8) == [0]
    assert frame_numbers(0, 5, num_frames=8) == [0, 1, 2, 3, 4]


def test_a_draw_stays_in_its_interval():
    for seed in range(50):
        numbers = frame_numbers(0, 100, num_frames=8, rng=random.Random(seed))
        bounds = [0, 12, 25, 37, 50, 62, 75, 87, 100]
        assert all(low <= number < high for low, number, high in zip(bounds, numbers, bounds[1:], strict=False))
    drawn = {tuple(frame_numbers(0, 16, num_frames=8, rng=random.Random(seed))) for seed in range(200)}
    assert {number for numbers in drawn for number in numbers} == set(range(16))  # the last of an interval, too


def test_8_to_32_frames_are_drawn_and_16_asked_about(write_video):
    path = write_video("long.mp4", 100)
    counts = {len(video_sizes(Video(path), f"a:{row}", draw=(0, 0))) for row in range(300)}
    assert counts == set(range(8, 33))
    assert video_sizes(Video(path), WHERE) == [(64, 48)] * 16


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")]
)
def test_exactly_the_frame_that_is_meant_is_decoded(write_video, name, codec):
    path = write_video(name, 60, codec=codec)
    assert read_header(Video(path)).num_frames == 60
    assert shown(path, num_frames=8) == frame_numbers(0, 60, num_frames=8)
    assert shown(path, num_frames=60) == list(range(60))


def test_a_long_video_is_sought_and_not_decoded_through(write_video, monkeypatch):
    from ivlkit.data.rows import video

    path, decoded = write_video("seek.mp4", 1200, fps=10), []  # 2 minutes, a keyframe every 1.2 s
    step = video._Reader.__next__
    monkeypatch.setattr(video._Reader, "__next__", lambda self: decoded.append(1) or step(self))
    assert shown(path, num_frames=8) == [number % 512 for number in frame_numbers(0, 1200, num_frames=8)]
    assert len(decoded) <= 8 * 13


@pytest.mark.parametrize("fps", [1, 24, 30, 60])
def test_any_rate(write_video, fps):
    path = write_video(f"rate{fps}.mp4", 40, fps=fps)
    assert shown(path, num_frames=10) == frame_numbers(0, 40, num_frames=10)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_video_that_begins_late_has_its_own_frames_only(write_video, suffix):
    path = write_video(f"late.{suffix}", 50, times=range(125, 175))  # 2 seconds, from the fifth on
    header = read_header(Video(path), WHERE)
    assert abs(header.num_frames - 50) <= 1
    assert shown(path, num_frames=5) == [4, 14, 24, 34, 44]


def test_a_clip_is_cut_in_seconds(write_video):
    path = write_video("clip.mp4", 100)
    header = read_header(Video(path, (1.0, 2.0)))
    assert (header.first, header.last, header.fps) == (25, 50, 25.0)
    frames = [number_of(frame) for frame in sample_frames(Video(path, (1.0, 2.0)), num_frames=5)]
    assert frames == [27, 32, 37, 42, 47]
    assert read_header(Video(path, (3.0, 60.0))).num_frames == 25


def test_a_clip_beyond_the_end_is_refused(write_video):
    path = write_video("clip.mp4", 100)
    with pytest.raises(
        DataError, match=r"clip \[9.0, 10.0\] of .*clip.mp4, which has 100 frames in 4.00 s, holds none"
    ):
        read_header(Video(path, (9.0, 10.0)), WHERE)


def test_few_frames_are_taken_once_each(write_video):
    path = write_video("short.mp4", 3)
    assert video_sizes(Video(path), WHERE, draw=(0, 0)) == [(64, 48)] * 3
    assert shown(path, num_frames=8) == [0, 1, 2]


def test_a_video_without_length_in_its_header_is_counted(write_video, tmp_path):
    """As a browser records it: the stream is written before its end is known."""
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_image(numbered(number))
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_header(Video(path)).num_frames == 30
    assert shown(path, num_frames=10) == frame_numbers(0, 30, num_frames=10)


def test_a_gif_and_other_animations(tmp_path):
    frames = [numbered(number) for number in range(20)]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **options)
        header = read_header(Video(tmp_path / name))
        assert (header.num_frames, header.width_px, header.height_px) == (20, 64, 48)
        assert shown(tmp_path / name, num_frames=5) == [1, 5, 9, 13, 17]
        clipped = sample_frames(Video(tmp_path / name, (0.5, 1.0)), num_frames=5)
        assert [number_of(frame) for frame in clipped] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_a_clip_of_an_animation_goes_by_the_time_of_each_frame(tmp_path, name):
    first, *others = [numbered(number) for number in range(6)]
    times = [5000, *[200] * 5]
    first.save(tmp_path / name, save_all=True, append_images=others, duration=times, lossless=True)
    for clip, numbers in (((0.0, 5.0), [0]), ((5.0, 5.4), [1, 2]), ((5.6, 60.0), [4, 5])):
        assert [number_of(frame) for frame in sample_frames(Video(tmp_path / name, clip))] == numbers
    with pytest.raises(DataError, match=r"which has 6 frames in 6.00 s, holds none"):
        read_header(Video(tmp_path / name, (6.0, 7.0)), WHERE)


def test_a_folder_of_frames_goes_by_number(tmp_path):
    for number in (0, 1, 2, 9, 10, 11, 100):
        numbered(number).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert video_sizes(Video(tmp_path), WHERE) == [(64, 48)] * 7
    assert shown(tmp_path, num_frames=16) == [0, 1, 2, 9, 10, 11, 100]


def test_what_is_no_video_is_refused(tmp_path, write_video, draw_picture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 100)
    (tmp_path / "c.gif").write_bytes(b"GIF89a")
    draw_picture().save(tmp_path / "one.png")
    numbered(0).save(tmp_path / "empty" / "0.txt", format="PNG")
    for name, said in {
        "gone.mp4": "video .*gone.mp4 does not exist; expected a file or a folder of frames there",
        "empty": "empty holds no frames; expected",
        "a.mp4": "a.mp4 can't be decoded",
        "b.mp4": "b.mp4 can't be decoded",
        "c.gif": "c.gif can't be decoded",
    }.items():
        with pytest.raises(DataError, match=f"^{WHERE}: .*{said}"):
            video_sizes(Video(tmp_path / name), WHERE)
    with pytest.raises(DataError, match="is a folder of frames, which have no times; remove `clip`"):
        numbered(0).save(tmp_path / "empty" / "0.png")
        read_header(Video(tmp_path / "empty", (0.0, 1.0)), WHERE)
    assert video_sizes(Video(tmp_path / "one.png"), WHERE) == [(224, 112)]


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(DataError, match="a.wav has no pictures; expected a video"):
        read_header(Video(tmp_path / "a.wav"), WHERE)


def test_a_file_that_ends_before_its_header_says_is_refused(write_video, tmp_path):
    whole = write_video("whole.mkv", 200).read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"half.mkv ends after \d\.\d\d s; expected a frame at \d\.\d\d s, as its header"
    ):
        shown(tmp_path / "half.mkv", num_frames=8)


def test_a_video_larger_than_the_limit_is_refused(write_video, monkeypatch):
    path = write_video("large.mp4", 3)
    monkeypatch.setattr("ivlkit.data.rows.media.MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="large.mp4 has 64 x 48 px; expected at most 1,000 pixels"):
        read_header(Video(path), WHERE)


def test_without_the_library_the_message_says_what_to_install(write_video, monkeypatch):
    import sys

    path = write_video("long.mp4", 100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        DataError, match="long.mp4 needs a library that reads videos: pip install av; or put its frames"
    ):
        read_header(Video(path), WHERE)


def record(path, question="<video>\nWhat happens?", **fields):
    return Record(
        id=0, turns=(Turn("user", question), Turn("assistant", "A")), where=WHERE, video=Video(path), **fields
    )


def test_frames_are_numbered_as_released():
    turns = (Turn("user", "<video>\nQ"), Turn("assistant", "<video>"))
    assert with_frames(turns, 2) == (
        Turn("user", "Frame-1: <image>\nFrame-2: <image>\nQ"),
        Turn("assistant", "<video>"),
    )


def test_a_video_is_one_tile_a_frame(write_video, processor):
    path = write_video("long.mp4", 100)
    sizes = picture_sizes(record(path), processor, draw=(0, 0))
    example = encode(record(path), processor)
    assert example.num_tiles == (1,) * len(sizes)
    assert example.tiles.shape == (len(sizes), 112, 112, 3)
    text = processor.tokenizer.decode(example.input_ids).replace("<IMG_CONTEXT>" * 16, "·")
    assert "<|im_start|>user\nFrame-1: <img>·</img>\nFrame-2: <img>·</img>\n" in text
    assert f"Frame-{len(sizes)}: <img>·</img>\nWhat happens?<|im_end|>" in text


def test_the_tiles_are_the_frames(write_video, processor):
    path = write_video("long.mp4", 100)
    example = encode(record(path), processor, draw=None)
    stretched = [number_of(Image.fromarray(tile).resize((64, 48))) for tile in example.tiles]
    assert stretched == frame_numbers(0, 100, num_frames=16)


def test_frames_are_drawn_for_seed_epoch_and_row_only(write_video, processor):
    path = write_video("long.mp4", 100)

    def tiles(draw, where=WHERE):
        row = record(path)
        return encode(Record(**{**vars(row), "where": where}), processor, draw=draw).tiles.tobytes()

    assert tiles((0, 0)) == tiles((0, 0))
    assert len({tiles((0, 0)), tiles((0, 1)), tiles((1, 0)), tiles((0, 0), "b:1"), tiles(None)}) == 5
    assert tiles(None) == tiles(None, "b:1")


def test_a_budget_does_not_cut_frames_into_tiles(write_video, processor):
    path = write_video("short.mp4", 3)
    assert encode(record(path, max_tiles=12), processor).num_tiles == (1, 1, 1)


def test_a_video_too_long_gets_fewer_frames_and_says_so(write_video, processor):
    path = write_video("long.mp4", 100)
    full = encode(record(path), processor, draw=None)
    example = encode(record(path), processor, draw=None, max_length=len(full) - 1)
    assert len(example) < len(full) and len(example.num_tiles) == 15
    assert example.notes == (f"16 → 15 frames to fit {len(full) - 1} tokens",)
    assert encode(record(path), processor, draw=None, max_length=len(full)).notes == ()


def test_a_video_that_never_fits_is_refused(write_video, processor):
    path = write_video("long.mp4", 100)
    with pytest.raises(DataError, match=f"^{WHERE}: \\d+ tokens with a single frame; expected at most 40; raise"):
        encode(record(path), processor, max_length=40)


def test_chat_shows_a_video_as_its_frames(write_video, tiny_vlm):
    path = write_video("long.mp4", 100)
    reply = tiny_vlm.chat("What happens?", video=path, max_new_tokens=2)
    assert reply.num_tiles == (1,) * 16
    assert reply.turns[0].text.startswith("Frame-1: <image>\nFrame-2: <image>\n")
    assert reply.turns[0].text.endswith("Frame-16: <image>\nWhat happens?")
    again = tiny_vlm.chat("And then?", history=reply, max_new_tokens=2)
    assert again.num_tiles == (1,) * 16
    both = tiny_vlm.chat("And in <video>?", video=Video(path, (0.0, 0.2)), history=reply, max_new_tokens=2)
    assert both.num_tiles == (1,) * 21
    with pytest.raises(DataError, match="chat: pictures and a video; expected one of them"):
        tiny_vlm.chat("Q", numbered(1), video=path)


def test_evaluation_asks_about_the_middle_frames(write_video, tiny_vlm):
    from ivlkit.evaluation.evaluate import evaluate

    path = write_video("long.mp4", 100)
    report = evaluate(tiny_vlm, [record(path)], max_new_tokens=2, progress=False)
    alone = tiny_vlm.chat("What happens?", video=path, max_new_tokens=2)
    assert report.rows[0].reply == alone.text


def test_a_row_with_a_video_shows_a_few_frames(write_video, tmp_path):
    html = record(write_video("long.mp4", 100))._repr_html_()
    assert html.count("<img") == 4
    assert "gone.mp4 does not exist" in record(tmp_path / "gone.mp4")._repr_html_()


def test_a_phone_video_is_turned(write_video, tmp_path):
    """A phone held upright writes this matrix: turn by 90 degrees clockwise to see it."""
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    whole = bytearray(write_video("short.mp4", 3).read_bytes())
    place = whole.index(b"tkhd") + 44
    assert whole[place : place + 4] == struct.pack(">i", 1 << 16)
    whole[place : place + 36] = matrix
    (tmp_path / "phone.mp4").write_bytes(whole)
    (upright,) = sample_frames(Video(tmp_path / "phone.mp4"), num_frames=1)
    (as_stored,) = sample_frames(Video(tmp_path / "phone.mp4"), num_frames=1, rules=AS_REFERENCE)
    assert (upright.size, as_stored.size) == ((48, 64), (64, 48))
    assert np.array_equal(np.asarray(upright), np.asarray(as_stored.rotate(-90, expand=True)))


def test_a_frame_is_opened_like_a_picture(tmp_path):
    numbered(5).save(tmp_path / "frame_0.png")
    (frame,) = sample_frames(Video(tmp_path), num_frames=1)
    assert np.array_equal(np.asarray(frame), np.asarray(open_image(tmp_path / "frame_0.png")))
