"""Which labelling tool wrote a file or a folder, and all that it says."""

import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from ...errors import DataError
from .coco import read_coco
from .label_studio import read_label_studio
from .labelled import Labelled
from .tables import PART_OF, files_below
from .voc import read_box_table, read_voc
from .yolo import read_yolo

# (tool, its reader, names of its files, what they begin with), in the order in which they are looked for: an export
# often has the same boxes in several forms.
_COCO = rb'\A\s*\{\s*("info"\s*:|"(images|annotations|categories|licenses|videos|type)"\s*:\s*[\["])'  # sets are { … }
TOOLS = (
    ("YOLO", read_yolo, "*.y*ml", rb"(?m)^(names|nc)\s*:"),
    ("YOLO", read_yolo, "classes.txt", rb""),
    ("COCO", read_coco, "instances*.json", _COCO),  # and not captions, keypoints and what else lies beside it
    ("COCO", read_coco, "*.json", _COCO),
    ("Pascal VOC", read_voc, "*.xml", rb"\A[^\0]{,500}<annotation"),
    ("Label Studio", read_label_studio, "*.json", rb'\A\s*\[.*"(result"\s*:\s*\[|annotation_id"\s*:)'),
    ("Label Studio", read_label_studio, "*.csv", rb"\A(?=[^\r\n]*\bannotation_id\b)[^\r\n]*\bannotator\b"),
    ("a table of boxes", read_box_table, "*.csv", rb"\A[^\r\n]*\bfilename\b[^\r\n]*\bxmin\b"),
)
HEAD_BYTES = 1 << 20
_WITHOUT_PICTURES = {"annotations", "labels"}  # folders beside those of the pictures


def find_tool(path):
    """(name of the tool, its reader, its files) of a file or folder; (None, None, []) if it is none's."""
    path = Path(path)
    files = sorted(files_below(path)) if path.is_dir() else [path]
    for name, read, pattern, start in TOOLS:
        found = []
        for file in files:
            if fnmatch(file.name.lower(), pattern):
                with open(file, "rb") as opened:
                    head = opened.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
                found += [file] if re.search(start, head, re.S) else []
        if found:
            return name, read, found
    return None, None, []


def home_of(path, tool="any"):
    """The folder that paths in a file or folder start from; of a tool's `annotations/` the one above."""
    if path.is_dir():
        return path
    return path.parents[bool(tool) and path.parent.name in _WITHOUT_PICTURES]


def read_labelled(path, read, files):
    """Every `Labelled` and DataError of the files, each with its part of the split if the files or folders have one."""
    path, found, parts = Path(path), [], set()
    for file in files:
        name = file.relative_to(home_of(path)).as_posix()
        part = _part(file.relative_to(path)) if path.is_dir() else None
        try:
            for record in read(file, name):
                if isinstance(record, Labelled):
                    record = record if record.part or not part else replace(record, part=part)
                    parts |= {record.part} - {None}
                found.append(record)
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 ({error})", "text", "save it as UTF-8", where=name) from error
    for number, record in enumerate(found):
        if parts and isinstance(record, Labelled) and not record.part:
            said = "in no part of the split", " or ".join(sorted(parts)), "add it to one"
            found[number] = DataError(*said, where=record.where)
    return found


def _part(name):
    """ "train" of train/_annotations.coco.json and of annotations/instances_train2017.json; None of others."""
    words = [*name.parent.parts, *(re.split(r"[^a-z]+", name.stem.lower()) if name.suffix != ".xml" else ())]
    return next((PART_OF[word.lower()] for word in words if word.lower() in PART_OF), None)
