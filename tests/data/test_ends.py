"""What is found about a file before it is trained on: its end is there, whatever its header says."""

import base64
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import ivlkit.data.checking.pictures as pictures_module
import ivlkit.data.rows.media as media_module
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.pictures import look_at
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Video
from ivlkit.data.rows.video import check_end
from ivlkit.errors import DataError
from ivlkit.training.loop.schedule import check_rows
from ivlkit.training.recipes import recipe

KINDS = ("png", "jpg", "webp", "gif", "bmp", "tif")
FRAMES = 40


@pytest.fixture
def noise():
    """A picture that no format makes small."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def rows_about(path, *names, field="image"):
    """A JSONL with a row for each name."""
    turns = [{"from": "human", "value": f"<{field}>\nQ"}, {"from": "gpt", "value": "A"}]
    path.write_text("".join(json.dumps({field: name, "conversations": turns}) + "\n" for name in names))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_cut_picture_is_an_error_where_encoding_refuses_it(tmp_path, noise, processor, kind, share):
    noise.save(tmp_path / f"a.{kind}")
    noise.save(tmp_path / f"whole.{kind}")
    cut(tmp_path / f"a.{kind}", share)
    path = rows_about(tmp_path / "train.jsonl", f"whole.{kind}", f"a.{kind}")
    found = [problem.where for problem in diagnose(path, processor).problems if problem.level == "error"]
    refused = []
    data = open_data(path)
    for number in range(2):
        try:
            encode(data[number], processor)
        except DataError as fault:
            refused.append(fault.where)
    assert found == refused == ["train.jsonl:2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_is_no_error_whatever_follows_its_end(tmp_path, noise, kind):
    noise.save(tmp_path / f"a.{kind}")
    for end in (b"", b"\0" * 500, b"\r\n", b"SAMSUNG " * 3000):
        (tmp_path / f"b.{kind}").write_bytes((tmp_path / f"a.{kind}").read_bytes() + end)
        assert look_at(str(tmp_path / f"b.{kind}"), "header", None).fault is None


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_whole_picture_is_not_decoded(tmp_path, noise, kind, monkeypatch):
    noise.save(tmp_path / f"a.{kind}")
    monkeypatch.setattr(media_module, "open_image", None)
    assert look_at(str(tmp_path / f"a.{kind}"), "header", None).size == (120, 90)


def test_a_cut_picture_inside_the_row_is_found(tmp_path, noise):
    noise.save(tmp_path / "a.png")
    cut(tmp_path / "a.png", 0.5)
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    path = rows_about(tmp_path / "train.jsonl", f"data:image/png;base64,{text}")
    assert [problem.code for problem in diagnose(path).problems][:1] == ["unreadable_media"]


def test_training_does_not_begin_with_a_cut_picture(tmp_path, noise, processor):
    noise.save(tmp_path / "a.jpg")
    noise.save(tmp_path / "b.jpg")
    cut(tmp_path / "b.jpg", 0.8)
    data = open_data(rows_about(tmp_path / "train.jsonl", "a.jpg", "b.jpg", "gone.jpg"))
    with pytest.raises(DataError) as caught:
        check_rows(data, processor, recipe("nano-lora"))
    head, cut_row, missing = str(caught.value).splitlines()
    assert "2 of 3 rows can't be used" in head
    assert cut_row.startswith("  train.jsonl:2: ") and "b.jpg can't be decoded" in cut_row
    assert missing.startswith("  train.jsonl:3: ") and "gone.jpg does not exist" in missing


# videos


@pytest.fixture
def film(tmp_path):
    """`film("a.mkv")` → a video of 40 frames of noise, whose header is at its start."""
    av = pytest.importorskip("av")
    pixels = np.random.default_rng(0).integers(0, 255, (FRAMES, 64, 96, 3), np.uint8)

    def make(name):
        codec = "mpeg4" if name.endswith(".avi") else "libx264"
        options = {"movflags": "faststart"} if name.endswith(".mp4") else {}  # an index at the start
        with av.open(str(tmp_path / name), "w", options=options) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            container.mux(stream.encode(None))
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_a_video_is_read_to_its_last_frame(tmp_path, film, processor, name):
    film(name)
    shutil.copy(tmp_path / name, tmp_path / f"half_{name}")
    cut(tmp_path / f"half_{name}", 0.55)
    path = rows_about(tmp_path / "train.jsonl", name, f"half_{name}", field="video")
    for model in (processor, None):
        errors = [problem for problem in diagnose(path, model).problems if problem.level == "error"]
        assert [(problem.where, problem.code) for problem in errors] == [("train.jsonl:2", "unreadable_media")]
    with pytest.raises(DataError, match="train.jsonl:2: .*half_a"):
        check_rows(open_data(path), processor, recipe("nano-lora"))
    with pytest.raises(DataError, match="train.jsonl:2: .*half_a"):
        encode(open_data(path)[1], processor)
    assert encode(open_data(path)[0], processor).num_tiles


def test_a_clip_needs_its_own_last_frame_only(film):
    path = film("a.mkv")
    cut(path, 0.55)
    check_end(Video(path, (0.0, 1.0)))
    with pytest.raises(DataError, match=r"a.mkv ends after [12]\.\d\d s; expected a frame at 3.90 s"):
        check_end(Video(path))


@pytest.mark.parametrize("listed", [True, False])
def test_every_frame_of_a_list_or_folder_is_looked_at(tmp_path, noise, listed):
    (tmp_path / "clip").mkdir()
    names = [f"clip/{number}.png" for number in range(12)]
    for name in names:
        noise.save(tmp_path / name)
    path = rows_about(tmp_path / "train.jsonl", names if listed else "clip", field="video")
    assert diagnose(path).ok
    cut(tmp_path / "clip" / "7.png", 0.5)
    (problem,) = [problem for problem in diagnose(path).problems if problem.level == "error"]
    assert problem.code == "unreadable_media" and f"clip{os.sep}7.png can't be decoded" in problem.found


def test_a_video_that_many_rows_ask_about_is_read_once(tmp_path, film, monkeypatch):
    film("a.mp4")
    read = []
    monkeypatch.setattr(pictures_module, "check_end", read.append)
    assert diagnose(rows_about(tmp_path / "train.jsonl", *["a.mp4"] * 5, field="video")).ok
    assert read == [Video(tmp_path / "a.mp4")]
