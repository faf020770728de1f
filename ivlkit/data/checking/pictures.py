"""What is known of the picture that a row names: whether its file is there, its size, what is odd about it."""

import os
import re
from dataclasses import dataclass, replace
from hashlib import blake2b

from ...errors import DataError
from ..rows.formats import short
from ..rows.media import UPRIGHT_ON_WHITE, check_picture, is_data_uri
from ..rows.video import check_end, frame_files

PICTURES = ("exist", "header", "decode")
_ADDRESS = re.compile(r"(?:^|/)(?:https?|s3|gs|ftp):/")  # a Path writes // as /
SUFFIXES = {".jpg": "jpeg", ".tif": "tiff"}  # of pictures → their kind; and those that are named as the kind
SUFFIXES |= {f".{kind}": kind for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff")}


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
    is_turned: bool = False  # by its EXIF
    changed_ns: int = 0  # time of change of the file whose header was read


def look_at(name, pictures, processor):
    """Look at a file, or at a data URI: whether it is there, what its header says, whether its end is there."""
    if is_data_uri(name):
        return Look(0) if pictures == "exist" else _look_inside(name, Look(0), pictures, processor)
    number = hash_text(os.path.normpath(name))
    if _ADDRESS.search(name) and not os.path.exists(name):
        return Look(number, fault=DataError(f"the address {short(name)}", code="remote_media"))
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        slashed, stem = name.replace("\\", "/"), os.path.splitext(name)[0]
        if slashed != name and os.path.exists(slashed):
            return Look(number, fault=DataError(f"backslashes in {short(name)}", code="backslash_path"))
        others = (stem + suffix for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)) if stem + suffix != name)
        near = next(filter(os.path.exists, others), None)
        todo = f"there is {os.path.basename(near)}; write that" if near else None
        fault = DataError(f"picture {name} does not exist", None, todo, code="missing_media")
        return Look(number, fault=fault)
    if not found.st_size:
        return Look(number, fault=DataError(f"{name} has no bytes", code="empty_media"))
    look = Look(number, found.st_size, changed_ns=found.st_mtime_ns)
    return look if pictures == "exist" else _look_inside(name, look, pictures, processor)


def _look_inside(name, look, pictures, processor):
    rules = processor.picture_rules if processor else UPRIGHT_ON_WHITE
    try:
        kind, size, is_turned, odd = check_picture(name, rules=rules, decode=pictures == "decode")
    except DataError as fault:
        return replace(look, fault=fault)
    name = "its data" if is_data_uri(name) else name
    remarks = (*_remarks(name, kind, *size), *((code, f"{name} {found}") for code, found in odd.items()))
    return replace(look, size=size, remarks=remarks, is_turned=is_turned)


def video_faults(video, pictures, processor):
    """[DataError, …] of a video: what is missing or empty, and whether its last frame can be read."""

    def faults_of(paths, pictures):
        return [fault for path in paths if (fault := look_at(os.fspath(path), pictures, processor).fault)]

    faults = faults_of(video.files, "exist")
    if faults and not video.frames and faults[0].code == "missing_media":
        faults = [DataError(f"video {video.path} does not exist", code="missing_media")]
    if faults or pictures == "exist":
        return faults
    if frames := frame_files(video):
        return faults_of(frames, pictures)
    try:
        check_end(video)
    except DataError as fault:
        return [fault]
    return []


def _remarks(name, kind, width_px, height_px):
    said = SUFFIXES.get(os.path.splitext(name)[1].lower())
    if said and kind != said:
        yield "wrong_extension", f"{name} is a {kind.upper()}"
    if max(width_px, height_px) > 100 * min(width_px, height_px):
        yield "extreme_aspect", f"{name} has {width_px} x {height_px} px"
    elif min(width_px, height_px) < 28:
        yield "tiny_picture", f"{name} has {width_px} x {height_px} px"


def declared_sizes(parsed):
    """[(width_px, height_px), …] of `width`, `height` or the lists of them; [] if none are declared."""
    sides = [parsed.get(f"{side}_list", parsed.get(side)) for side in ("width", "height")]
    widths, heights = (values if isinstance(values, list) else [values] for values in sides)
    numeric = all(isinstance(side, int) and side > 0 for side in (*widths, *heights))
    return list(zip(widths, heights, strict=True)) if numeric and len(widths) == len(heights) else []
