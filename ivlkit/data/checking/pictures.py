"""What is known of the picture that a row names: whether its file is there, its size, what is odd about it."""

import io
import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress

from ...errors import DataError
from ..rows.formats import short
from ..rows.media import UPRIGHT_ON_WHITE, image_size, is_data_uri, open_image, uri_bytes
from ..rows.video import check_end, frame_files

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
_HEAD_BYTES, _TAIL_BYTES = 12, 1024
_PADDING = b"\0\r\n \xff"  # that some programs write behind a picture
_LAST_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b";"}


def hash_text(text):
    """8 bytes that stand for a text; among a million texts two share them once in 37 million data sets."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a picture's file."""

    hash: int
    bytes: int = 0
    size: tuple | None = None  # (width_px, height_px)
    fault: DataError | None = None
    remarks: tuple = ()
    changed_ns: int = 0  # time of change of the file whose header was read


def look_at(name, pictures, processor):
    """Look at a file, or at a data URI: whether it is there, what its header says, whether its end is there."""
    if is_data_uri(name):
        return Look(0) if pictures == "exist" else _look_inside(name, 0, pictures, processor)
    number = hash_text(os.path.normpath(name))
    if _ADDRESS.search(name) and not os.path.exists(name):
        return Look(number, fault=DataError(f"the address {short(name)}", code="remote_media"))
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return Look(number, fault=_missing(name))
    size_bytes = found.st_size
    if not size_bytes:
        return Look(number, fault=DataError(f"{name} has no bytes", code="empty_media"))
    if pictures == "exist":
        return Look(number, size_bytes)
    return _look_inside(name, number, pictures, processor, changed_ns=found.st_mtime_ns)


def _look_inside(name, number, pictures, processor, *, changed_ns=0):
    size_bytes, rules = 0, processor.picture_rules if processor else UPRIGHT_ON_WHITE
    try:
        size = image_size(name, rules=rules)
        head, tail, size_bytes = _ends(name)
        kind = file_kind(head)
        if pictures == "decode" or may_be_cut(kind, head, tail, size_bytes):
            open_image(name, rules=rules)
    except DataError as fault:
        return Look(number, size_bytes, fault=fault)
    remarks = () if is_data_uri(name) else tuple(_remarks(name, kind, *size))
    return Look(number, size_bytes, tuple(size), remarks=remarks, changed_ns=changed_ns)


def _ends(name):
    """(first bytes, last bytes, size) of a file or data URI."""
    with io.BytesIO(uri_bytes(name)) if is_data_uri(name) else open(name, "rb") as file:
        head, size_bytes = file.read(_HEAD_BYTES), file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _TAIL_BYTES))
        return head, file.read(), size_bytes


def may_be_cut(kind, head, tail, size_bytes):
    """Whether a picture's end may be missing: its last bytes are not those of its kind. Only such are decoded whole.

    A motion photo or a picture with a note behind its end is decoded too, and is found to be whole.
    """
    if kind in _LAST_BYTES:
        return not tail.rstrip(_PADDING).endswith(_LAST_BYTES[kind])
    if kind == "webp":
        return int.from_bytes(head[4:8], "little") + 8 > size_bytes
    return kind == "tiff" or kind == "bmp" and int.from_bytes(head[2:6], "little") > size_bytes


def video_faults(video, pictures, processor):
    """[DataError, …] of a video: what is missing or empty, and whether its last frame can be read."""
    looks = [look_at(os.fspath(path), "exist", processor) for path in video.files]
    faults = [_of_video(look.fault, video) for look in looks if look.fault]
    if faults or pictures == "exist":
        return faults
    if frames := frame_files(video):
        looks = [look_at(os.fspath(path), pictures, processor) for path in frames]
        return [look.fault for look in looks if look.fault]
    try:
        check_end(video)
    except DataError as fault:
        return [fault]
    return []


def _of_video(fault, video):
    if video.frames or fault.code != "missing_media":
        return fault
    return DataError(f"video {video.path} does not exist", code=fault.code)


def _missing(name):
    slashed = name.replace("\\", "/")
    if slashed != name and os.path.exists(slashed):
        return DataError(f"backslashes in {short(name)}", code="backslash_path")
    stem = os.path.splitext(name)[0]
    others = [stem + suffix for suffix in (*_SUFFIXES, *map(str.upper, _SUFFIXES)) if stem + suffix != name]
    near = next((other for other in others if os.path.exists(other)), None)
    todo = f"there is {os.path.basename(near)}; write that" if near else None
    return DataError(f"picture {name} does not exist", None, todo, code="missing_media")


def _remarks(name, kind, width_px, height_px):
    said = _SUFFIXES.get(os.path.splitext(name)[1].lower())
    if kind and said and kind != said:
        yield "wrong_extension", f"{name} is a {kind.upper()}"
    if max(width_px, height_px) > 100 * min(width_px, height_px):
        yield "extreme_aspect", f"{name} has {width_px} x {height_px} px"
    elif min(width_px, height_px) < 28:
        yield "tiny_picture", f"{name} has {width_px} x {height_px} px"


def file_kind(head):
    """ "jpeg", "png", "gif", "webp", "bmp", "tiff" or None, from the first bytes of a file."""
    signs = (
        ("jpeg", head[:3] == b"\xff\xd8\xff"),
        ("png", head[:8] == b"\x89PNG\r\n\x1a\n"),
        ("gif", head[:4] == b"GIF8"),
        ("webp", head[:4] == b"RIFF" and head[8:] == b"WEBP"),
        ("bmp", head[:2] == b"BM"),
        ("tiff", head[:4] in (b"II*\0", b"MM\0*")),
    )
    return next((kind for kind, is_it in signs if is_it), None)


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
