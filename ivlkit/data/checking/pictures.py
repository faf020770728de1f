"""What is known of the picture that a row names: whether its file is there, its size, what is odd about it."""

import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress

from ...errors import DataError
from ..encode import picture_sizes
from ..rows.media import image_size, open_image
from ..rows.records import Record
from .findings import in_three, short

PICTURES = ("exist", "header", "decode")
_ADDRESS = re.compile(r"(?:^|/)(?:https?|s3|gs|ftp):/")  # a Path writes // as /
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


def hash_text(text):
    """8 bytes that stand for a text; among a million texts two share them once in 37 million data sets."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a picture's file."""

    hash: int
    bytes: int = 0
    size: tuple | None = None  # (width_px, height_px)
    code: str | None = None
    found: str = ""
    expected: str | None = None
    todo: str | None = None
    remarks: tuple = ()
    changed_ns: int = 0  # time of change of the file whose header was read


def look_at(name, pictures, processor):
    """Look at a file: whether it is there, what its header says, whether it decodes."""
    number = hash_text(os.path.normpath(name))
    if _ADDRESS.search(name) and not os.path.exists(name):
        return Look(number, code="remote_media", found=f"the address {short(name)}")
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return _missing(name, number)
    size_bytes = found.st_size
    if not size_bytes:
        return Look(number, code="empty_media", found=f"{name} has no bytes")
    if pictures == "exist":
        return Look(number, size_bytes)
    try:
        size = _header_size(name, processor)
        if pictures == "decode":
            open_image(name, "row")
    except DataError as error:
        found, expected, todo = in_three(str(error).removeprefix("row: "))
        return Look(number, size_bytes, code="unreadable_media", found=found, expected=expected, todo=todo)
    remarks = tuple(_remarks(name, *size))
    return Look(number, size_bytes, tuple(size), remarks=remarks, changed_ns=found.st_mtime_ns)


def _header_size(name, processor):
    """As the encoder reads it, which may depend on the model."""
    if processor is None:
        return image_size(name, "row")
    return picture_sizes(Record(None, (), (name,), "row"), processor)[0]


def _missing(name, number):
    slashed = name.replace("\\", "/")
    if slashed != name and os.path.exists(slashed):
        return Look(number, code="backslash_path", found=f"backslashes in {short(name)}")
    stem = os.path.splitext(name)[0]
    others = [stem + suffix for suffix in (*_SUFFIXES, *map(str.upper, _SUFFIXES)) if stem + suffix != name]
    near = next((other for other in others if os.path.exists(other)), None)
    todo = f"there is {os.path.basename(near)}; write that" if near else None
    return Look(number, code="missing_media", found=f"picture {name} does not exist", todo=todo)


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


def escapes(name, root):
    """Whether a path leaves the folder of the pictures."""
    if name.startswith(f"{root}{os.sep}") and ".." not in name:
        return False
    return os.path.relpath(name, root).startswith(os.pardir)


def declared_sizes(parsed):
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
