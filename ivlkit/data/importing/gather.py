"""The pictures of rows as files: found, fetched, or written once under a name that is made from their bytes."""

import hashlib
import io
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from ...errors import DataError
from ..files import write_if_changed
from ..groups import file_digest
from ..rows.formats import are_frames, is_nothing
from ..rows.media import OpenPicture, check_picture, check_pixels, is_data_uri, is_remote, open_image, remote, uri_bytes
from ..rows.records import path_inside
from ..rows.video import check_end, frame_files
from .tables import PICTURE_SUFFIXES

PDF_DPI = 150
MAX_FETCHED_BYTES = 100_000_000
FETCH_SECONDS = 20
# What a picture's own bytes are kept as; every other kind becomes PNG.
SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "gif": ".gif", "bmp": ".bmp"}


class PictureTaker:
    """Turns what rows say of their pictures into absolute paths, and looks at every file once, as a run's start does.

    Args:
        root: folder that relative names start from; names may not leave it.
        folder: where pictures without a file of their own are written, in `images/`.
        fetch: function of an address that gives bytes; None refuses remote pictures.
    """

    def __init__(self, root, folder, *, fetch=None):
        self.root, self.folder, self.fetch = Path(os.path.abspath(root)), Path(os.path.abspath(folder)), fetch
        self._has_written, self._listings, self._looked_at = False, {}, set()
        self.digest_of = cache(file_digest)

    @property
    def base(self):
        """The folder that holds every taken picture: `root`, or what it shares with `folder` if any was written."""
        return Path(os.path.commonpath([self.root, self.folder])) if self._has_written else self.root

    def take(self, row, where):
        """The released row with absolute paths. Raises: DataError if one is missing, unreadable, remote or outside."""
        taken = dict(row)
        for field, find in (("image", self._picture), ("video", self.find)):
            value = row.get(field)
            is_list = isinstance(value, (list, tuple))
            if is_nothing(value) or field == "video" and not (are_frames(value) if is_list else isinstance(value, str)):
                continue  # what is no video is said where the row is read
            paths = [find(one, where) for one in (value if is_list else [value])]
            for path in paths if field == "image" or is_list else ():
                if path not in self._looked_at:
                    check_picture(path, where)
                    self._looked_at.add(path)
            taken[field] = [str(path) for path in paths] if is_list else str(paths[0])
        return taken

    def check_video(self, video, where):
        """Raise DataError if a picture of a folder, or the last frame of the clip, can't be read."""
        if video not in self._looked_at:
            for frame in () if video.frames else frame_files(video):
                check_picture(frame, where)
            check_end(video, where)
            self._looked_at.add(video)

    def _picture(self, value, where):
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (bytes, bytearray, memoryview)):
            value = io.BytesIO(value)
        if is_data_uri(value):
            value = io.BytesIO(uri_bytes(value, where))
        if is_remote(value):
            if self.fetch is None:
                raise remote(f"{value[:80]} is on another machine", where)
            try:
                value = io.BytesIO(self.fetch(value))
            except DataError as error:
                raise error.at(where) from error
        if isinstance(value, io.BytesIO):  # its own bytes, or PNG for a format that not everything reads
            suffix = SUFFIX_OF.get(check_picture(value, where)[0])
            return self._write(value.getvalue(), suffix) if suffix else self._write_png(open_image(value, where))
        if isinstance(value, (str, os.PathLike)) and str(value):
            return self._page_or_file(str(value), where)
        if hasattr(value, "size") and hasattr(value, "__array_interface__"):
            return self._write_png(open_image(value, where))
        raise DataError(f"{where}: a picture of type {type(value).__name__}; expected a path, bytes or a PIL image")

    def _write_png(self, image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return self._write(buffer.getvalue(), ".png")

    def _write(self, content, suffix):
        path = self.folder / "images" / (hashlib.sha256(content).hexdigest()[:20] + suffix)
        path.parent.mkdir(exist_ok=True)
        write_if_changed(path, content)  # an earlier conversion may have been killed within it
        self._has_written = True
        return path

    def _page_or_file(self, name, where):
        name, _, page = name.partition("#page=")
        path = self.find(name, where)
        if path.suffix.lower() == ".pdf":
            return self._write_png(render_page(path, page, where))
        if page and path.suffix.lower() in (".tif", ".tiff"):
            with OpenPicture(path, where) as picture:
                picture.image.seek(_page_number(page, picture.num_pages, path, where) - 1)
                return self._write_png(picture.take_rgb())
        if page:
            raise DataError(f"{where}: page {page!r} of {path}, which is no PDF; remove #page=")
        return path

    def find(self, name, where):
        """The file of this name below the root; backslashes, another case and a missing suffix are seen through."""
        name = url2pathname(urlsplit(name).path) if name.startswith("file:/") else name.strip()
        if not name:
            raise DataError(f"{where}: a picture without a name; expected a path; fill it or remove the row")
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            path = path_inside(self.root, written, where)
            if os.path.exists(path):  # Path.exists raises where a name is too long
                return Path(os.path.abspath(path))
        names, wanted = self._listing(path.parent), path.name.casefold()
        found = names.get(wanted, names.get((wanted,), []))  # in another case, or else with a picture's suffix more
        if len(found) > 1:
            raise DataError(f"{name} may be {found[0]} or {found[1]}", "one", "add the suffix", where=where)
        if not found:
            todo = f"check the name and the folder that names start from ({self.root})"
            raise DataError(f"picture {path} does not exist", "a file there", todo, where=where)
        return path.parent / found[0]

    def _listing(self, folder):
        """{name: files, (name without suffix,): pictures}, in folded case."""
        if folder not in self._listings:
            listing = {}
            for entry in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
                listing.setdefault(entry.name.casefold(), []).append(entry.name)
                if entry.suffix.lower() in PICTURE_SUFFIXES:
                    listing.setdefault((entry.stem.casefold(),), []).append(entry.name)
            self._listings[folder] = listing
        return self._listings[folder]


def fetch_url(url):
    """The bytes of a remote picture: for `convert(…, fetch=fetch_url)`. Raises: DataError naming the address."""
    try:
        with urlopen(url, timeout=FETCH_SECONDS) as response:
            content = response.read(MAX_FETCHED_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{url} can't be fetched ({error}); fetch it yourself or remove the row") from error
    if len(content) > MAX_FETCHED_BYTES:
        raise DataError(f"{url} is larger than {MAX_FETCHED_BYTES:,} bytes; fetch it yourself or remove the row")
    return content


def render_page(path, page, where):
    """A page of a PDF (counted from 1, "" for the only one) as a PIL image at 150 dots an inch.

    Raises: DataError if the page is not there, none is named of several, or the library is missing.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise DataError(f"{where}: {path} needs a library: pip install pypdfium2; or save its pages as PNG") from error
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise DataError(f"{where}: {path} can't be read ({error}); replace or remove it") from error
    with document:
        count, scale = len(document), PDF_DPI / 72
        if not page and count > 1:
            raise DataError(f"{path} has {count} pages", f"the page, {path.name}#page=1", where=where)
        chosen = document[_page_number(page or "1", count, path, where) - 1]
        size_px = (round(side_pt * scale) for side_pt in chosen.get_size())
        check_pixels(*size_px, name=f"page {page or 1} of {path}", where=where)
        return chosen.render(scale=scale).to_pil().convert("RGB")


def _page_number(page, count, path, where):
    if page.isdecimal() and 1 <= int(page) <= count:
        return int(page)
    raise DataError(f"page {page!r} of {path}, which has {count}", f"1 to {count}", where=where)
