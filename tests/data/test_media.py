"""Pictures, whatever is in the file: RGB, or an error that names the file and the row."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.media import degrade_jpeg, image_size, open_image
from ivlkit.errors import DataError

WHERE = "train.jsonl:17"


def png_header(width_px, height_px):
    """A PNG that declares this size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, draw_picture, mode):
    image = Image.new("I;16", (12, 8), 300) if mode == "I;16" else draw_picture(12, 8).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    opened = open_image(path, WHERE)
    assert (opened.mode, opened.size) == ("RGB", (12, 8))
    assert image_size(path, WHERE) == (12, 8)


def test_alpha_is_dropped_and_not_blended():
    assert open_image(Image.new("RGBA", (1, 1), (200, 100, 50, 0))).getpixel((0, 0)) == (200, 100, 50)


def test_exif_orientation_is_ignored(tmp_path, draw_picture):
    image = draw_picture(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90°"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (30, 20)


def test_arrays_and_pil_images_are_taken():
    pixels = np.zeros((8, 12, 3), np.uint8)
    assert open_image(pixels).size == image_size(pixels) == (12, 8)
    assert open_image(np.zeros((8, 12), np.uint8)).mode == "RGB"
    assert image_size(Image.new("L", (3, 5))) == (3, 5)


def test_the_callers_picture_is_not_changed(draw_picture):
    image = draw_picture(9, 9).convert("L")
    open_image(image)
    assert image.mode == "L"


@pytest.mark.parametrize("source", [3, None, b"bytes", ["a.png"]])
def test_what_is_no_picture_is_refused(source):
    with pytest.raises(DataError, match=f"{WHERE}: picture of type .*; expected a path, a PIL image or an array"):
        open_image(source, WHERE)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8)])
def test_an_array_that_is_no_picture_is_refused(pixels):
    with pytest.raises(DataError, match=f"{WHERE}: an array .*; expected uint8"):
        open_image(pixels, WHERE)


@pytest.mark.parametrize("read", [open_image, image_size])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; expected a file there; check the row's path and the data set's `root`"),
        (b"", "is not a picture Pillow can read; replace or remove it"),
        (b"<html>not found</html>", "is not a picture Pillow can read"),
        (png_header(12_000, 11_000), "has 12000 x 11000 px; expected at most 120,000,000 pixels; scale it down first"),
        (png_header(60_000, 60_000), "can't be decoded .*exceeds limit"),
    ],
)
def test_a_bad_file_is_named_with_its_row(tmp_path, read, content, message):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=f"^{WHERE}: (picture )?{path} {message}"):
            read(path, WHERE)


def test_a_folder_in_place_of_a_picture_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"^{WHERE}: {tmp_path} can't be decoded"):
        open_image(tmp_path, WHERE)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_a_truncated_file_is_refused(tmp_path, draw_picture, name):
    draw_picture(120, 80).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(DataError, match=f"^{WHERE}: .*{name}"):
        open_image(tmp_path / name, WHERE)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_a_damaged_file_opens_or_is_refused_but_nothing_else(tmp_path, draw_picture, name):
    draw_picture(64, 48).save(tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), random.Random(name)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 10))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / name).write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert open_image(tmp_path / name, WHERE).mode == "RGB"
        except DataError as error:
            assert str(error).startswith(WHERE)


def test_jpeg_degradation_is_one_jpeg_round_trip(draw_picture):
    image = draw_picture(32, 32)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    assert np.array_equal(np.asarray(degrade_jpeg(image, 80)), np.asarray(Image.open(buffer)))
    assert not np.array_equal(np.asarray(degrade_jpeg(image, 80)), np.asarray(image))
