"""Pictures, opened safely: every failure names the file and the row that asked for it."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DataError

MAX_PIXELS = 120_000_000  # a 10,000 × 12,000 scan; more is refused before decoding


def open_image(source, where="picture"):
    """A path, PIL image or uint8 array [H, W, 3] → PIL image in RGB, fully decoded.

    Alpha is dropped and EXIF orientation ignored, as the reference does.

    Raises: DataError that names `where` and the file if it is missing, unreadable, truncated or larger than
    MAX_PIXELS.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, np.ndarray):
        _check_array(source, where)
        return Image.fromarray(source).convert("RGB")
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{where}: picture of type {type(source).__name__}; expected a path, a PIL image or an array")
    with _opened(source, where) as image:
        return image.convert("RGB")


def image_size(source, where="picture"):
    """(width_px, height_px) of a picture; a file's header is read, not its pixels."""
    if isinstance(source, Image.Image):
        return source.size
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    with _opened(source, where) as image:
        return image.size


def _check_array(pixels, where):
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,), (4,)) or pixels.ndim < 2:
        raise DataError(
            f"{where}: an array of {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3]; convert it first"
        )


def degrade_jpeg(image, quality):
    """Encode as JPEG at `quality` (75–100 in the released augmentation) and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


class _opened:
    """Open a picture file; any failure, also a late one while decoding, becomes a DataError with its place."""

    def __init__(self, path, where):
        self.path, self.where = Path(path), where

    def __enter__(self):
        try:
            self.image = Image.open(self.path)
        except Exception as error:
            raise self._explain(error) from error
        width_px, height_px = self.image.size
        if width_px * height_px > MAX_PIXELS:
            self.image.close()
            raise DataError(
                f"{self.where}: {self.path} has {width_px} x {height_px} px; expected at most {MAX_PIXELS:,} "
                "pixels; scale it down first"
            )
        return self.image

    def __exit__(self, kind, error, trace):
        self.image.close()
        if isinstance(error, (OSError, ValueError, SyntaxError)) and not isinstance(error, DataError):
            raise self._explain(error) from error

    def _explain(self, error):
        if isinstance(error, FileNotFoundError):
            return DataError(
                f"{self.where}: picture {self.path} does not exist; expected a file there; "
                "check the row's path and the data set's `root`"
            )
        if isinstance(error, UnidentifiedImageError):
            return DataError(f"{self.where}: {self.path} is not a picture Pillow can read; replace or remove it")
        return DataError(f"{self.where}: {self.path} can't be decoded ({error}); replace or remove it")
