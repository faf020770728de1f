"""Pictures, whatever is in the file: RGB, or an error that names the file and the row."""

import base64
import io
import os
import random
import struct
import sys
import warnings
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image

from ivlkit.data.rows.media import AS_REFERENCE, degrade_jpeg, image_size, open_image, written_out
from ivlkit.errors import DataError

WHERE = "train.jsonl:17"
SEVERAL = ("a.gif", "a.tif", "a.mpo", "a.webp")  # frames in one file


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


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.mpo", "a.webp", "a.bmp"])
def test_pixels_outlive_their_file_which_is_closed(tmp_path, draw_picture, name):
    frames = {"save_all": True, "append_images": [draw_picture(12, 8, seed=1)]} if name in SEVERAL else {}
    draw_picture(12, 8).save(tmp_path / name, **frames)
    with open(tmp_path / name, "rb") as file, Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    before = psutil.Process().num_fds()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        opened = open_image(tmp_path / name)
        assert image_size(tmp_path / name) == (12, 8)
    assert psutil.Process().num_fds() == before
    (tmp_path / name).unlink()
    assert np.array_equal(np.asarray(opened), expected)


def test_a_picture_in_memory_stays_the_callers_own(draw_picture):
    image, pixels = draw_picture(12, 8), np.zeros((8, 12, 3), np.uint8)
    for source in (image, pixels):
        open_image(source).putpixel((0, 0), (1, 2, 3))
    assert image == draw_picture(12, 8) and not pixels.any()


def transparent(mode):
    """1 × 2 px: red that nobody sees, blue that everybody does."""
    image = Image.new("RGBA", (1, 2), (200, 0, 0, 0))
    image.putpixel((0, 1), (0, 0, 255, 255))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "PA", "RGBa"])
def test_what_is_transparent_is_white(mode):
    opened = open_image(transparent(mode))
    assert [opened.getpixel((0, y)) for y in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_transparent_grey_is_white(mode):
    grey = Image.new("LA", (1, 1), (10, 0))
    assert open_image(grey.convert(mode)).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_is_half_white():
    assert open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(("mode", "key"), [("P", 1), ("RGB", (1, 2, 3)), ("L", 1)])
def test_a_transparent_colour_of_a_png_is_white(tmp_path, mode, key):
    image = Image.new(mode, (2, 2), key)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=key)
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_reference_drops_alpha():
    assert open_image(Image.new("RGBA", (1, 1), (200, 100, 50, 0)), rules=AS_REFERENCE).getpixel((0, 0)) == (
        *(200, 100, 50),
    )


def corners(image):
    """Which of four colours lies where: "RG/BW" is red, green above blue, white."""
    width_px, height_px = image.size
    places = [(2, 2), (width_px - 3, 2), (2, height_px - 3), (width_px - 3, height_px - 3)]
    names = ["".join("1" if value > 127 else "0" for value in image.getpixel(place)) for place in places]
    letters = [{"100": "R", "010": "G", "001": "B", "111": "W"}[name] for name in names]
    return f"{letters[0]}{letters[1]}/{letters[2]}{letters[3]}"


@pytest.fixture
def four_colours():
    image = Image.new("RGB", (48, 32), (255, 0, 0))
    image.paste((0, 255, 0), (24, 0, 48, 16))
    image.paste((0, 0, 255), (0, 16, 24, 32))
    image.paste((255, 255, 255), (24, 16, 48, 32))
    return image


# What a viewer shows, worked out from the standard: 6 is "turn clockwise to see it upright".
UPRIGHT = {1: "RG/BW", 2: "GR/WB", 3: "WB/GR", 4: "BW/RG", 5: "RB/GW", 6: "BR/WG", 7: "WG/BR", 8: "GW/RB"}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path, four_colours, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    four_colours.save(tmp_path / name, exif=exif)
    opened = open_image(tmp_path / name)
    assert corners(opened) == UPRIGHT[orientation]
    assert opened.size == image_size(tmp_path / name) == ((48, 32) if orientation < 5 else (32, 48))


@pytest.mark.parametrize("orientation", [3, 6])
def test_the_reference_leaves_a_photo_on_its_side(tmp_path, four_colours, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    four_colours.save(tmp_path / "a.jpg", exif=exif)
    assert corners(open_image(tmp_path / "a.jpg", rules=AS_REFERENCE)) == "RG/BW"
    assert image_size(tmp_path / "a.jpg", rules=AS_REFERENCE) == (48, 32)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, four_colours, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    four_colours.save(tmp_path / "a.jpg", exif=exif)
    assert corners(open_image(tmp_path / "a.jpg")) == "RG/BW"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_none(tmp_path, four_colours):
    four_colours.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert corners(open_image(tmp_path / "a.jpg")) == "RG/BW"
    assert image_size(tmp_path / "a.jpg") == (48, 32)


def test_a_picture_made_in_memory_is_not_turned_again(tmp_path, four_colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    four_colours.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as file:
        assert corners(open_image(file)) == UPRIGHT[6]
        assert corners(open_image(file.rotate(-90, expand=True))) == UPRIGHT[6]


def test_grey_of_16_bits_is_scaled(tmp_path):
    """Pillow's own conversion makes everything above 255 white."""
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(open_image(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(open_image(tmp_path / "a.png", rules=AS_REFERENCE))[0, :, 0].tolist() == [0, 255, 255, 255]


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000)])
def test_pixels_of_more_than_16_bits_are_refused(tmp_path, mode, value):
    Image.new(mode, (2, 2), value).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"^{WHERE}: .*a.tif can't be decoded .*; expected "):
        open_image(tmp_path / "a.tif", WHERE)


def test_floating_point_pixels_are_refused_by_the_header(tmp_path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"^{WHERE}: .*a.tif can't be decoded .*; expected 8 or 16 bits"):
        image_size(tmp_path / "a.tif", WHERE)
    assert image_size(tmp_path / "a.tif", rules=AS_REFERENCE) == (2, 2)


def test_a_cmyk_jpeg_has_its_colours(tmp_path):
    """Adobe's files hold inverted inks."""
    Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    red, green, blue = open_image(tmp_path / "a.jpg").getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    red, green, blue = open_image(tmp_path / name).getpixel((5, 5))
    assert red > 240 and blue < 15


def data_uri(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_data_uri_is_a_picture(draw_picture):
    uri = data_uri(draw_picture(30, 20))
    assert np.array_equal(np.asarray(open_image(uri)), np.asarray(draw_picture(30, 20)))
    assert image_size(uri) == (30, 20)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png,abc", "data URI 'data:image/png'; expected data:image/png;base64,…; encode it"),
        ("data:image/png;base64,a!b", "a data URI that is no base64"),
        ("data:image/png;base64,YWJj", "its data is not a picture Pillow can read"),
        ("data:", "data URI 'data:'; expected"),
    ],
)
def test_a_broken_data_uri_is_refused(uri, message):
    with pytest.raises(DataError, match=f"^{WHERE}: {message}"):
        open_image(uri, WHERE)


def test_a_data_uri_has_a_limit(monkeypatch, draw_picture):
    monkeypatch.setattr("ivlkit.data.rows.media.MAX_URI_CHARACTERS", 50)
    with pytest.raises(DataError, match="characters; expected at most 50; put the picture into a file"):
        open_image(data_uri(draw_picture()), WHERE)


@pytest.mark.parametrize("read", [open_image, image_size])
def test_a_remote_picture_is_not_fetched(read):
    with pytest.raises(DataError, match=f"{WHERE}: https://example.org/a.png is a remote picture; expected a file"):
        read("https://example.org/a.png", WHERE)


def test_a_pipe_is_refused_at_once(tmp_path):
    """Opening one waits for a writer."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png is a device or pipe; expected a picture file"):
        open_image(tmp_path / "a.png", WHERE)


def test_a_link_may_lead_anywhere(tmp_path, draw_picture):
    draw_picture(30, 20).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert image_size(tmp_path / "b.png") == (30, 20)


def test_drawing_programs_are_never_started(tmp_path):
    """Pillow would hand EPS to Ghostscript."""
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="a.eps is not a picture Pillow can read"):
        open_image(tmp_path / "a.eps", WHERE)


def test_heic_is_read_with_its_library(tmp_path, four_colours):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(four_colours.resize((96, 64))).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "phone.jpg").write_bytes((tmp_path / "a.heic").read_bytes())  # some phones name it so
    for name in ("a.heic", "phone.jpg"):
        assert corners(open_image(tmp_path / name)) == "RG/BW"
        assert image_size(tmp_path / name) == (96, 64)


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(
        "ivlkit.data.rows.media.Image.OPEN", {key: Image.OPEN[key] for key in Image.OPEN if key != "HEIF"}
    )
    with pytest.raises(DataError, match="a.heic can't be decoded .*pip install pillow-heif"):
        open_image(tmp_path / "a.heic", WHERE)


def test_opaque_pictures_are_those_of_the_reference(reference):
    for path in sorted((reference / "pixels").glob("0*")):
        ours, theirs = open_image(path), open_image(path, rules=AS_REFERENCE)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_arrays_and_pil_images_are_taken():
    pixels = np.zeros((8, 12, 3), np.uint8)
    assert open_image(pixels).size == image_size(pixels) == (12, 8)
    assert open_image(np.zeros((8, 12), np.uint8)).mode == "RGB"
    assert image_size(Image.new("L", (3, 5))) == (3, 5)


def test_a_transparent_array_is_white_as_its_picture_is():
    pixels = np.zeros((2, 2, 4), np.uint8)
    assert open_image(pixels).getpixel((0, 0)) == open_image(Image.fromarray(pixels)).getpixel((0, 0)) == (255,) * 3
    assert open_image(pixels, rules=AS_REFERENCE).getpixel((0, 0)) == (0, 0, 0)


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


def test_a_video_in_a_picture_s_place_is_said(tmp_path):
    (tmp_path / "a.MP4").write_bytes(b"\0\0\0\x1cftypmp42")
    with pytest.raises(DataError, match="a.MP4 is not a picture Pillow can read; name it in `video`"):
        open_image(tmp_path / "a.MP4")


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


def test_base64_in_lines_is_a_picture_and_what_only_begins_like_one_is_seen_through_at_once():
    assert written_out("iVBORw0KGgo=\n") == "data:;base64,iVBORw0KGgo=\n"
    blanks = f"iVBORw0KGgo{' ' * 1_000_000}!"
    assert written_out(blanks) == blanks  # hours, where each division of the blanks is tried
