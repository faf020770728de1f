"""Pascal VOC: an XML for each picture, or a table with a line for each box: left, top, right, bottom in pixels.

XML is read without document types, and so without entities: nothing in a file names another one or grows.
"""

from functools import lru_cache
from xml.etree.ElementTree import TreeBuilder
from xml.parsers import expat

from ...errors import DataError
from .labelled import Labelled, beside
from .tables import PART_OF, table_cells

SIDES = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("filename", "width", "height", "class", *SIDES)


def read_voc(path, name):
    """Yield `Labelled` of the picture; its part of the split is that of VOC's ImageSets/Main/train.txt, val.txt, …"""
    try:
        builder, parser = TreeBuilder(), expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, _refuse
        parser.Parse(path.read_bytes(), True)
        root = builder.close()
        if root.tag != "annotation":
            raise ValueError(f"<{root.tag}>")
        size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        boxes = []
        for thing in root.iter("object"):
            box = [float(thing.findtext(f"bndbox/{side}") or "nan") for side in SIDES]
            about = {each.findtext("name"): each.findtext("value") or "" for each in thing.iter("attribute")}
            if (turn := about.get("rotation", "")).strip("0."):  # CVAT keeps the box as it was before it was turned
                box = f"a rectangle turned by {turn} degrees"
            boxes.append((thing.findtext("name") or "", box))
    except (expat.ExpatError, ValueError, OverflowError) as error:
        said = f"no VOC file ({error})", "<annotation> with numbers in <bndbox>", "mend it, or export as Pascal VOC"
        yield DataError(*said, where=name)
        return
    picture = beside(name, (root.findtext("filename") or f"{path.stem}.jpg").strip())
    lists = (path.parent.parent / "ImageSets" / "Main").glob("*.txt")
    lists = ((each, each.stat()) for each in lists if each.stem in PART_OF)
    part = _parts(*((each, found.st_size, found.st_mtime_ns) for each, found in lists)).get(path.stem)
    yield Labelled(name, picture, boxes, size=size if all(size) else None, part=part)


def _refuse(name, *_):
    raise ValueError(f"a document type {name!r}, which labels never need")


@lru_cache(maxsize=1)
def _parts(*lists):
    """{name: part} of lists as they are now: thousands of pictures ask for the same ones."""
    texts = ((path.read_text(encoding="utf-8-sig"), PART_OF[path.stem]) for path, *_ in lists)
    named = {line.strip(): part for text, part in texts for line in text.splitlines() if line.strip()}
    return {line.split()[0]: part for line, part in named.items()} | named  # "a 1" is a, but for a name with a space


def read_box_table(path, name):
    """Yield `Labelled` of every picture of a table that has a line for each box, with the columns COLUMNS."""
    found = {}
    for where, cells in table_cells(path, name)[2]:
        if isinstance(cells, DataError):
            yield cells
            continue
        try:
            row = {column.lower(): cell for column, cell in cells.items()}
            picture, width, height, thing, *box = (row[column] for column in COLUMNS)
            boxes = found.setdefault((picture, int(width), int(height)), [])
            boxes.append((thing, tuple(map(float, box))))
        except (KeyError, ValueError, TypeError) as error:
            said = f"{type(error).__name__}: {error}", f"{', '.join(COLUMNS)}", "correct the line"
            yield DataError(*said, where=where)
    for (picture, *size), boxes in found.items():
        yield Labelled(f"{name}: {picture}", beside(name, picture), boxes, size=tuple(size))
