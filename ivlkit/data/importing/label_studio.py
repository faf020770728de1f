"""Label Studio's exports: JSON (tasks with annotations), JSON_MIN and CSV (a row an annotation); boxes in percent."""

import json
from urllib.parse import parse_qs, unquote, urlsplit

from ...errors import DataError
from .labelled import Labelled
from .tables import PICTURE_SUFFIXES, text_table

_OWN = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
_SIDES = ("x", "y", "width", "height")


def read_label_studio(path, name):
    """Yield `Labelled` of every annotation, and a DataError of every task without one, or with another one."""
    for where, row in _csv_rows(path, name) if path.suffix.lower() == ".csv" else _json_rows(path, name):
        try:
            if "annotations" in row:
                row, *others = _annotations(row)
                said = "another annotation of the task", "one", "the first one is taken, or the one that is the truth"
                yield from (DataError(*said, where=where) for _ in others)
            yield _labelled(row, where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield DataError(f"{error or type(error).__name__}", "an annotation as it is exported", where=where)


def _json_rows(path, name):
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        return [(f"{name}: task {row.get('id', number)}", row) for number, row in enumerate(rows, start=1)]
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"broken JSON ({error})", "a list of tasks", "export it again", where=name) from error


def _csv_rows(path, name):
    header, lines, _ = text_table(path)
    for number, cells in lines:
        cells = () if isinstance(cells, Exception) else map(_cell, cells)
        yield f"{name}:{number}", dict(zip(header, cells, strict=False))


def _cell(text):
    """A cell of several values holds JSON."""
    try:
        return json.loads(text) if text[:1] in ("[", "{") else text
    except ValueError:
        return text


def _annotations(task):
    """The annotations of a task as rows of JSON_MIN, the truth first. Raises: ValueError if there is none."""
    done = [each for each in task["annotations"] if not each.get("was_cancelled")]
    if not done:
        raise ValueError("no annotation")
    return [
        task["data"] | _values(each["result"]) for each in sorted(done, key=lambda each: not each.get("ground_truth"))
    ]


def _values(result):
    """{field: its values}; what belongs to a region has the region's sides."""
    row = {}
    for found in result:
        value, about = (
            found["value"],
            {key: found[key] for key in ("original_width", "original_height") if key in found},
        )
        values = value if "x" in value else next(iter(value.values()))
        row.setdefault(found["from_name"], []).extend([value | about] if "x" in value else values)
    return row


def _labelled(row, where):
    picture, texts, boxes, faults, size = None, {}, [], [], None
    for key, value in row.items():
        if picture is None and isinstance(value, str) and (found := _picture(value)):
            picture = found
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            size = size or (value[0].get("original_width"), value[0].get("original_height"))
            for region in value:
                names, kinds = region.get("rectanglelabels"), ", ".join(region.keys() - {*_SIDES})
                if names and not region.get("rotation") and region.keys() >= {*_SIDES}:
                    left, top, width, height = (float(region[side]) for side in _SIDES)
                    boxes += [(name, (left, top, left + width, top + height)) for name in names]
                else:
                    faults.append(
                        ((names or [None])[0], f"a region of {key} ({kinds:.60}) is no upright box with a label")
                    )
        elif key not in _OWN and value:
            values = next(iter(value.values())) if isinstance(value, dict) else value
            texts[key] = ", ".join(map(str, values)) if isinstance(values, list) else str(values)
    if picture is None:
        raise ValueError("no field that names a picture")
    size = size if size and all(size) else None
    return Labelled(where, picture, boxes, per=100, size=size, texts=texts, faults=faults)


def _picture(address):
    """The path in "/data/upload/7/0a1b2c3d-dog.png", "/data/local-files/?d=media/dog.png" or "s3://bucket/dog.png"."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    is_picture = path.lower().endswith(tuple(PICTURE_SUFFIXES))
    return (address if parts.scheme in ("http", "https") else path) if is_picture else None
