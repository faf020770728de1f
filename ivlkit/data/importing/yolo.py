"""YOLO: data.yaml (or classes.txt) and for each picture a .txt, a line a box: class, centre x and y, width, height."""

from pathlib import Path

import yaml

from ...errors import DataError
from .labelled import Labelled
from .tables import PART_OF, PICTURE_SUFFIXES, files_below


def read_yolo(path, name):
    """Yield `Labelled` of every picture, and a DataError of every label file without one."""
    text = path.read_text(encoding="utf-8-sig")
    try:  # a class "off" is no False: names are read as they are written
        config = yaml.safe_load(text) if path.suffix != ".txt" else {"names": text.split("\n")}
        listed = yaml.load(text, Loader=yaml.BaseLoader)["names"] if path.suffix != ".txt" else config["names"]
        names = listed if isinstance(listed, dict) else {str(number): name for number, name in enumerate(listed)}
    except (yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        said = f"no `names` ({type(error).__name__})", "a name for each class", "add them"
        raise DataError(*said, where=name) from error
    used = set()
    for part, picture in _pictures(path, config, name):
        if isinstance(picture, DataError):
            yield picture
            continue
        used.add(label := _label_of(picture))
        boxes = list(_boxes(label, names, is_pose="kpt_shape" in config))
        yield Labelled(_named(picture, path), str(picture), boxes, per=1, part=part)
    for folder in sorted({label.parent for label in used}):
        for label in sorted({*folder.glob("*.txt")} - used):
            if folder.name == "labels" or folder.parent.name == "labels":
                said = "labels of a picture that is not there", None, "add it or remove them"
                yield DataError(*said, where=_named(label, path))


def _named(file, path):
    return str(file.relative_to(path.parent) if file.is_relative_to(path.parent) else file)


def _pictures(path, config, name):
    """(part or None, path or DataError) of every picture that is named, by folders or lists of files."""
    named = [(PART_OF[key], entry) for key, entry in config.items() if key in PART_OF and entry] or [(None, ".")]
    entries = [(part, one) for part, some in named for one in (some if isinstance(some, list) else [some])]
    for part, entry in ((part, str(one)) for part, one in entries):
        folders = (path.parent / str(config.get("path") or ""), path.parent)
        places = [folder / start for folder in folders for start in (entry, entry.removeprefix("../"))]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            yield part, DataError(f"{part}: {entry} is not there", "a folder", "correct the path", where=name)
        elif place.is_dir():
            pictures = sorted(file for file in files_below(place) if file.suffix.lower() in PICTURE_SUFFIXES)
            yield from ((part, picture) for picture in pictures)
        else:
            lines = place.read_text(encoding="utf-8-sig").split("\n")
            yield from ((part, place.parent / line.strip()) for line in lines if line.strip())


def _label_of(picture):
    """images/train/a.jpg → labels/train/a.txt; or else a.txt beside a.jpg."""
    head, found, tail = str(picture.with_suffix(".txt")).rpartition("/images/")
    label = Path(f"{head}/labels/{tail}") if found else picture.with_suffix(".txt")
    return label if label.exists() or not picture.with_suffix(".txt").exists() else picture.with_suffix(".txt")


def _boxes(label, names, *, is_pose):
    """Yield (name, box) of each line, or what is wrong with it; of an outline the box around it, of a pose its own."""
    lines = label.read_text(encoding="utf-8-sig", errors="replace").splitlines() if label.exists() else ()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            thing, *values = map(float, line.split())
            values = values[:4] if is_pose else values
            thing, xs, ys = str(names[str(int(thing))]), values[::2], values[1::2]
            if len(values) == 4:
                x, y, width, height = values
                yield thing, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            elif len(values) < 6 or len(values) % 2:
                raise ValueError
            else:
                yield thing, (min(xs), min(ys), max(xs), max(ys))
        except (ValueError, LookupError, OverflowError):
            yield None, f"{label.name}:{number}: {line[:60]!r}, which is no class and box"
