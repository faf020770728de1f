"""Pictures, opened safely: every failure names the file and the row that asked for it.

By default a picture looks as every viewer shows it: turned as its EXIF says, white behind what is transparent, 16-bit
grey scaled to 8 (as one of 12 bits, if no value needs more). The reference does none of the three (`AS_REFERENCE`);
pictures that need none come out bit-equal.
"""

import base64
import io
import os
import re
import stat
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import DataError

MAX_PIXELS = 120_000_000  # a 10,000 × 12,000 scan; more is refused before decoding
MAX_URI_CHARACTERS = 200_000_000  # a data URI of 150 MB
# Formats that describe pixels. Pillow would start Ghostscript for EPS and read Windows' drawing commands for WMF.
FILE_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
TWELVE_BITS = 4096
DARK = 16_384  # a picture of 16 bits that stays below has no brighter value than 63 of 255
_DEEP = re.compile(r"\b(I|L|LA|RGB|RGBA|RGBX);16")  # how Pillow names the pixels of such files
DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}  # of a video's frames
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
LONGEST_PATH = 4096  # characters
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # of PNG, JPEG, GIF, WebP
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{8,}(?:=\s*){0,2}")
_HEAD_BYTES, _TAIL_BYTES = 12, 1024
_LAST_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b";"}
_PADDING = b"\0\r\n \xff"  # that some programs write behind a picture
SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations whose picture is turned by a quarter
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PictureRules:
    """How a picture file becomes RGB."""

    apply_orientation: bool = True  # turn by EXIF; a photo that lies on its side otherwise
    background: tuple[int, int, int] | None = (255, 255, 255)  # RGB behind transparency; None: alpha is dropped
    scale_16_bit: bool = True  # grey of 16 bits / 257, of 12 in them / 16; otherwise all above 255 becomes white


UPRIGHT_ON_WHITE = PictureRules()
AS_REFERENCE = PictureRules(apply_orientation=False, background=None, scale_16_bit=False)
PICTURE_RULES = {"upright-on-white": UPRIGHT_ON_WHITE, "reference": AS_REFERENCE}


def open_image(source, where="picture", *, rules=UPRIGHT_ON_WHITE, at_least_px=None):
    """A path, data URI, file in memory, PIL image or uint8 array [H, W, 3] → PIL image in RGB, fully decoded.

    Of an animation the first frame is taken. A PIL image that was made in memory is not turned: its maker saw it so.
    Of a JPEG that only needs sides of `at_least_px` libjpeg decodes a half, a quarter or an eighth of each.

    Raises: DataError that names `where` and the file if it is missing, unreadable, truncated or larger than
    MAX_PIXELS.
    """
    with OpenPicture(source, where, rules=rules) as picture:
        if at_least_px:
            picture.image.draft("RGB", (at_least_px, at_least_px))
        return picture.take_rgb()


def image_size(source, where="picture", *, rules=UPRIGHT_ON_WHITE):
    """(width_px, height_px) of what `open_image` gives; a file's header is read, not its pixels."""
    with OpenPicture(source, where, rules=rules) as picture:
        return picture.size_px


def check_picture(source, where="picture", *, rules=UPRIGHT_ON_WHITE, decode=False):
    """Raise DataError unless a picture is whole; only its header and its end are read.

    Where its last bytes are not those of its kind, its end may be missing and it is decoded. A motion photo or a
    picture with a note behind its end is decoded too, and is found to be whole; so is a picture of 16 bits.

    Args: source: a path, a data URI or a file in memory; decode: whether every picture is decoded.
    Returns: (kind, (width_px, height_px), whether its EXIF turns it, what is odd): ("jpeg", (640, 480), False, {}).
    """
    with OpenPicture(source, where, rules=rules) as picture:
        size_px, (head, tail, size_bytes) = picture.size_px, picture.ends()
        is_turned = picture.orientation in TURNS
        odd, kind = picture.darkness(), picture.image.format.lower()
        if kind == "tiff" and picture.num_pages > 1:
            odd["several_pages"] = f"has {picture.num_pages} pages"
    kind = "jpeg" if kind == "mpo" else kind  # a JPEG with more pictures behind the first
    if decode or _may_be_cut(kind, head, tail, size_bytes):
        open_image(source, where, rules=rules)
    if kind in ("jpeg", "webp") and not any(tail):  # they decode to grey, as if nothing were wrong
        odd["zeros_at_end"] = f"ends with {len(tail):,} bytes of zero"
    return kind, size_px, is_turned, odd


def _may_be_cut(kind, head, tail, size_bytes):
    if kind in _LAST_BYTES:
        return not tail.rstrip(_PADDING).endswith(_LAST_BYTES[kind])
    if kind == "webp":
        return int.from_bytes(head[4:8], "little") + 8 > size_bytes
    return kind == "tiff" or kind == "bmp" and int.from_bytes(head[2:6], "little") > size_bytes


def upright_size(source, where="picture"):
    """((width_px, height_px), whether its EXIF turns or mirrors the file: nothing says how boxes on it were drawn)."""
    with OpenPicture(source, where) as picture:
        return picture.size_px, picture.orientation in TURNS


def degrade_jpeg(image, quality):
    """Encode as JPEG at `quality` (75–100 in the released augmentation) and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def is_data_uri(source):
    """Whether this is a picture written out in the row itself, `data:image/png;base64,…`."""
    return isinstance(source, str) and source[:5].lower() == "data:"


def written_out(source):
    """A picture that is written into its row as base64, plain or as `{"bytes": …}`, as a data URI; else as it is.

    Of a list each one.
    """
    if isinstance(source, list):
        return [written_out(one) for one in source]
    text = source
    if isinstance(source, Mapping) and "bytes" in source:
        if source["bytes"] is None:
            return source.get("path")
        text = source["bytes"]
    elif isinstance(source, str) and not source.startswith(_BASE64_STARTS) and len(source) <= LONGEST_PATH:
        return source
    return f"data:;base64,{text}" if isinstance(text, str) and _BASE64.fullmatch(text) else source


def is_remote(source):
    """Whether this names a picture on another machine."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def remote(found, where):
    """The DataError of a picture on another machine."""
    todo = "fetch it first (ivlkit convert --fetch does)"
    return DataError(found, "a file", todo, where=where, code="remote_media")


def uri_bytes(uri, where="picture"):
    """The bytes of a base64 data URI. Raises: DataError if it is none or longer than MAX_URI_CHARACTERS."""
    head, _, body = uri.partition(",")
    if not head.lower().endswith(";base64"):
        raise unreadable(f"data URI {head[:40]!r}", "data:image/png;base64,…", "encode it as base64", where=where)
    if len(body) > MAX_URI_CHARACTERS:
        found, expected = f"a data URI of {len(body):,} characters", f"at most {MAX_URI_CHARACTERS:,}"
        raise unreadable(found, expected, "put the picture into a file", where=where)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        found = f"a data URI that is no base64 ({error})"
        raise unreadable(found, None, "encode the picture again", where=where) from error


def check_pixels(width_px, height_px, *, name, where):
    """Raise DataError if a picture of this size is not to be decoded."""
    if width_px * height_px > MAX_PIXELS:
        found = f"{name} has {width_px} x {height_px} px"
        raise unreadable(found, f"at most {MAX_PIXELS:,} pixels", "scale it down first", where=where)


def unreadable(found, expected=None, todo="replace or remove it", *, where):
    """The DataError of a file whose content is at fault."""
    return DataError(found, expected, todo, where=where, code="unreadable_media")


def known_formats():
    """Those of FILE_FORMATS that this Pillow can open."""
    Image.init()
    return [name for name in FILE_FORMATS if name in Image.OPEN]


def _to_rgb(image, rules):
    if rules.scale_16_bit and image.mode in DEEP_GREY:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey from {values.min()} to {values.max()}; expected 0 to 65535; save it with 16 bits")
        steps = 257 if values.max() >= TWELVE_BITS else 16  # medical and industrial cameras put 12 bits into 16
        return Image.fromarray((values // steps).astype(np.uint8)).convert("RGB")
    _check_mode(image, rules)
    if rules.background is None or not image.has_transparency_data:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    whole = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGBA", whole.size, (*rules.background, 255))
    return Image.alpha_composite(canvas, whole).convert("RGB")


def _check_mode(image, rules):
    """The one mode that a header gives away as unusable."""
    if rules.scale_16_bit and image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; expected 8 or 16 bits; scale and save it as PNG")


class OpenPicture:
    """A picture whose header was read: its size, and its pixels if they are asked for. Arguments as in `open_image`.

    Any failure, also a late one while decoding, is a DataError with its place.
    """

    def __init__(self, source, where="picture", *, rules=UPRIGHT_ON_WHITE):
        self.source, self.where, self.rules = source, where, rules
        self.name = "its data" if is_data_uri(source) or isinstance(source, io.BytesIO) else source
        self._files = ExitStack()
        with self._explained():
            self.image = self._open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._files.close()

    @cached_property
    def orientation(self):
        """EXIF orientation still to be applied, 1 for none; read from the header only.

        Pillow turns TIFF by itself. A damaged EXIF block counts as none, as in every viewer.
        """
        if not self.rules.apply_orientation or self.image.format in (None, "TIFF"):
            return 1
        try:
            return Image.Image.getexif(self.image).get(0x0112, 1)  # a PNG's own getexif would decode its pixels
        except Exception:  # Pillow's parser has no one error of its own
            return 1

    @property
    def size_px(self):
        """(width_px, height_px), turned as the pixels will be."""
        with self._explained():
            _check_mode(self.image, self.rules)
            width_px, height_px = self.image.size
            turned = self.orientation in SWAPS_SIDES
            return (height_px, width_px) if turned else (width_px, height_px)

    def take_rgb(self):
        """The pixels, which are then the caller's alone: a row of many pictures holds those of one at a time."""
        with self._explained():
            turn = TURNS.get(self.orientation)
            image, self.image = self.image, None
            flat = _to_rgb(image, self.rules)
            if turn is not None:
                return flat.transpose(turn)
            return flat.copy() if flat is self.source else flat

    def darkness(self):
        """{"dark_depth": what is found} of a picture of 16 bits that hardly uses them; else {}."""
        parts = [tile[3] if isinstance(tile[3], str) else str(tile[3][:1]) for tile in self.image.tile]
        if not any(map(_DEEP.search, parts)):
            return {}
        with self._explained():
            values = np.asarray(self.image)
            brightest = int(values.max()) * (257 if values.dtype == np.uint8 else 1)  # Pillow keeps 8 bits of colours
            return {"dark_depth": f"has values up to {brightest:,} of 65,535"} if brightest < DARK else {}

    @property
    def num_pages(self):
        """Pages of a TIFF, smaller copies of a page included; 1 of other pictures, but for animations."""
        with self._explained():
            return getattr(self.image, "n_frames", 1)

    def ends(self):
        """(first bytes, last bytes, bytes in all) of a file."""
        file = self._file()
        with file if isinstance(file, io.BytesIO) else open(file, "rb") as opened:
            head, size_bytes = opened.read(_HEAD_BYTES), opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size_bytes - _TAIL_BYTES))
            return head, opened.read(), size_bytes

    def _open(self):
        if isinstance(self.source, np.ndarray):
            kind, shape = self.source.dtype, self.source.shape
            if kind != np.uint8 or shape[2:] not in ((), (3,), (4,)) or len(shape) < 2 or 0 in shape:
                found = f"an array of {kind} {list(shape)}"
                raise unreadable(found, "uint8 [H, W, 3]", "convert it first", where=self.where)
            return Image.fromarray(self.source)
        if isinstance(self.source, Image.Image):
            self.name = f"{type(self.source).__name__} {self.source.mode}"
            return self.source
        if is_remote(self.source):
            raise remote(f"{self.source} is a remote picture", self.where)
        image = self._files.enter_context(self._open_file())  # whose exit closes the file and keeps the pixels
        check_pixels(*image.size, name=self.name, where=self.where)
        return image

    def _open_file(self):
        try:
            return Image.open(self._file(), formats=known_formats())
        except UnidentifiedImageError:
            head = self.ends()[0]
            if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS:
                raise
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise ValueError("HEIC needs a library of its own: pip install pillow-heif, or save it as JPEG") from error
        register_heif_opener()
        return Image.open(self._file(), formats=known_formats())

    @contextmanager
    def _explained(self):
        try:
            yield
        except Exception as error:
            self._files.close()
            if isinstance(error, DataError):
                raise
            if isinstance(error, FileNotFoundError):
                found = f"picture {self.name} does not exist"
                raise DataError(found, where=self.where, code="missing_media") from error
            is_known = not isinstance(error, UnidentifiedImageError)
            found = f"can't be decoded ({error})" if is_known else "is not a picture Pillow can read"
            todo = "name it in `video`" if str(self.name).lower().endswith(VIDEO_SUFFIXES) else "replace or remove it"
            raise unreadable(f"{self.name} {found}", None, todo, where=self.where) from error

    def _file(self):
        if is_data_uri(self.source):
            return io.BytesIO(uri_bytes(self.source, self.where))
        if isinstance(self.source, io.BytesIO):
            return io.BytesIO(self.source.getvalue())  # the caller's stays open
        if not isinstance(self.source, (str, os.PathLike)):
            found = f"picture of type {type(self.source).__name__}"
            raise unreadable(found, "a path, a PIL image or an array", None, where=self.where)
        kind = os.stat(self.source).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # opening a pipe would wait for ever
            raise unreadable(f"{self.source} is a device or pipe", "a picture file", None, where=self.where)
        return Path(self.source)
