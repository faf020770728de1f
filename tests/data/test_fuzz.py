"""Random rows, damaged pictures and videos: a result or a DataError with its place, soon and in little memory."""

import json
import random
import resource
import string
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ivlkit.data.encode import encode
from ivlkit.data.importing.tables import table_rows
from ivlkit.data.rows.formats import FORMATS
from ivlkit.data.rows.media import image_size, open_image
from ivlkit.data.rows.records import Video, parse_line
from ivlkit.data.rows.video import sample_frames, video_sizes
from ivlkit.errors import DataError

WHERE = "train.jsonl:17"
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MAX_GROWTH_MIB = 600
MAX_SECONDS_EACH = 5

TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "<image>", "<video>", "Q", "<image>\n<image>", "<IMG_CONTEXT>", "../a.png", "/a.png", "data:"]
    ),
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
ANY = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
ROLE = st.sampled_from(["human", "gpt", "system", "user", "assistant", "tool", "observation", None, 3])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "video", "audio", None])},
    optional={"text": TEXT, "image": TEXT, "image_url": TEXT | ANY, "video": TEXT},
)
TURN = st.one_of(
    st.fixed_dictionaries({"from": ROLE, "value": TEXT}),
    st.fixed_dictionaries(
        {"role": ROLE, "content": TEXT | st.lists(PART | ANY, max_size=3)}, optional={"tool_calls": ANY}
    ),
    ANY,
)
PAIR = st.tuples(TEXT, TEXT).map(lambda pair: [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}])
ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": ANY,
        "image": TEXT | st.lists(TEXT, max_size=3) | ANY,
        "images": TEXT | st.lists(TEXT, max_size=3) | ANY,
        "video": TEXT | ANY,
        "videos": ANY,
        "clip": st.lists(st.floats() | st.integers(), max_size=3) | ANY,
        "conversations": PAIR | st.lists(TURN, max_size=4) | ANY,
        "messages": st.lists(TURN, max_size=4) | ANY,
        "system": ANY,
        "tools": ANY,
        "width": ANY,
        "width_list": ANY,
    },
)


@pytest.fixture(autouse=True)
def bounded():
    """No test here may grow the process by more than MAX_GROWTH_MIB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < MAX_GROWTH_MIB


def survives(function, *arguments, **options):
    """Call it: a value or a DataError with the place; anything else is raised. At most MAX_SECONDS_EACH of CPU time."""
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **options)
    except DataError as error:
        assert str(error).startswith(WHERE), error
        return None
    finally:
        assert time.process_time() - started < MAX_SECONDS_EACH


@settings(FIXED, max_examples=1500)
@given(row=ROW, name=st.sampled_from([None, *FORMATS]))
def test_random_rows(row, name, processor, tmp_path):
    record = survives(parse_line, json.dumps(row).encode(), WHERE, tmp_path, format=name)
    if record is not None:
        assert record.turns[-1].role == "assistant"
        survives(encode, record, processor, max_length=512)


@settings(FIXED, max_examples=500)
@given(line=st.one_of(st.binary(max_size=60), st.text(alphabet='{}[]":,0e-\\u ' + string.hexdigits, max_size=60)))
def test_random_lines(line):
    survives(parse_line, line if isinstance(line, bytes) else line.encode(), WHERE)


@settings(FIXED, max_examples=200)
@given(content=st.binary(max_size=80) | st.text(alphabet='a;,\t|"\n\r\0é ', max_size=80).map(str.encode))
def test_random_tables(content, tmp_path):
    """Every row comes out, as a row or as the reason why not."""
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    try:
        _, rows = table_rows(path, image="a", question="What is it?", answer="a")
        assert all(isinstance(row, (dict, DataError)) for _, row in rows)
    except DataError as error:
        assert "labels.csv" in str(error)


def damage(whole, rng):
    """Some bytes changed, a piece cut out, put in twice, or the end missing."""
    damaged = bytearray(whole)
    for _ in range(rng.choice((0, 1, 3, 10, 100))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 255, rng.randrange(256)))
    start = rng.randrange(len(damaged))
    end = min(len(damaged), start + rng.randrange(1, 200))
    kind = rng.choice(("keep", "keep", "cut", "double", "truncate"))
    piece = {"keep": damaged[start:end], "cut": b"", "double": damaged[start:end] * 2, "truncate": damaged[start:end]}
    return bytes(damaged[:start] + piece[kind] + (b"" if kind == "truncate" else damaged[end:]))


def all_frames(video, epoch):
    return list(sample_frames(video, WHERE, num_frames=8, draw=(0, epoch)))


PICTURES = ("a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp", "a.ppm", "a.avif", "a.jp2", "a.ico")


@pytest.mark.parametrize("name", PICTURES)
def test_damaged_pictures(tmp_path, draw_picture, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if name in ("a.png", "a.jpg", "a.webp", "a.avif") else {}
    draw_picture(64, 48).save(tmp_path / name, **options)
    whole, rng = (tmp_path / name).read_bytes(), random.Random(name)
    for _ in range(40):
        (tmp_path / name).write_bytes(damage(whole, rng))
        size = survives(image_size, tmp_path / name, WHERE)
        image = survives(open_image, tmp_path / name, WHERE)
        assert image is None or (image.mode, image.size) == ("RGB", size)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "b.gif", "b.webp"])
def test_damaged_videos(tmp_path, name):
    av = pytest.importorskip("av")
    frames = [Image.fromarray(np.full((48, 64, 3), 8 * number, np.uint8)) for number in range(24)]
    if name.startswith("b"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    else:
        codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
            container.mux(stream.encode(None))
    whole, rng = (tmp_path / name).read_bytes(), random.Random(name)
    for number in range(20):
        (tmp_path / name).write_bytes(damage(whole, rng))
        video = Video(tmp_path / name, (0.1, 0.5) if number % 3 == 0 else None)
        sizes = survives(video_sizes, video, WHERE, draw=(0, number))
        shown = survives(all_frames, video, number)
        assert shown is None or 1 <= len(shown) <= min(8, len(sizes))
