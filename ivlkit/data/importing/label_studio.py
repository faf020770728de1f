"""Label Studio's exports: JSON (tasks with annotations), JSON_MIN and CSV (a row an annotation); boxes in percent."""

import json
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit

from ...errors import DataError
from .labelled import Labelled
from .tables import PICTURE_SUFFIXES, table_cells

_OWN = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
_SIDES, _SIZE = ("x", "y", "width", "height"), ("original_width", "original_height")
_OF_REGIONS = (*_SIZE, "to_name", "image_rotation")  # what stands beside the `value` of a region


def read_label_studio(path, name):
    """Yield `Labelled` of every annotation, and a DataError of every task without one, or with another one."""
    for where, row in _csv_rows(path, name) if path.suffix.lower() == ".csv" else _json_rows(path, name):
        if isinstance(row, DataError):
            yield row
            continue
        try:
            if "annotations" in row:  # of a task; the others are rows of JSON_MIN
                done = [each for each in row["annotations"] if not each.get("was_cancelled")]
                if not done:
                    raise ValueError("no annotation")
                done.sort(key=lambda each: not each.get("ground_truth"))  # the truth first
                row, *others = [row["data"] | _values(each["result"]) for each in done]
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
    for where, row in table_cells(path, name)[2]:
        for key, text in row.items() if isinstance(row, dict) else ():  # a cell of several values holds JSON
            with suppress(ValueError, TypeError):
                row[key] = json.loads(text) if text[:1] in ("[", "{") else text
        yield where, row


def _values(result):
    """{field: what was chosen or typed, or its regions}."""
    row = {}
    for found in (each for each in result if each.get("type") != "relation"):  # of two regions
        value = found["value"] | {key: found[key] for key in _OF_REGIONS if key in found}
        is_region = "x" in value or any(key.endswith("labels") for key in value)
        row.setdefault(found["from_name"], []).extend([value] if is_region else _listed(found["value"]))
    return row


def _listed(value):
    """["day", "warm"] of {"choices": ["day", "warm"]}, of a list, and of "day, warm"."""
    value = next(iter(value.values()), []) if isinstance(value, dict) else value
    return value if isinstance(value, list) else [value]


def _labelled(row, where):
    picture, texts, regions = None, {}, []
    for key, value in row.items():
        if picture is None and isinstance(value, str) and (found := _picture(value)):
            picture = found
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            regions += value
        elif key not in _OWN and value not in (None, "", [], {}):  # 0 is a number that was typed
            several = (one if isinstance(one, list) else [one] for one in _listed(value))  # a taxonomy's are paths
            texts[str(key)] = ", ".join(" / ".join(map(str, one)) for one in several)
    shown = {region["to_name"] for region in regions if "to_name" in region}
    if len(shown) > 1:
        raise ValueError(f"regions of several pictures ({', '.join(sorted(shown))})")
    picture = next((found for name in shown if (found := _picture(str(row.get(name))))), picture)
    if picture is None:
        raise ValueError("no field that names a picture")
    size = next((tuple(region[key] for key in _SIZE) for region in regions if region.keys() >= {*_SIZE}), None)
    return Labelled(where, picture, _boxes(regions), per=100, size=size, texts=texts)


def _boxes(regions):
    """The boxes; a rectangle, its label and its text may be regions of their own in the same place."""
    names_at, boxes = {}, []
    for region in regions:
        names = [name for key, found in region.items() if key.endswith("labels") for name in found]
        if region.keys() >= {*_SIDES} and not region.get("rotation") and not region.get("image_rotation"):
            names_at.setdefault(tuple(float(region[side]) for side in _SIDES), []).extend(names)
        else:
            found = f"a region of {', '.join(map(str, names))} that is no upright rectangle"
            boxes.append((names[0] if names else None, found))
    for (x, y, w, h), names in names_at.items():
        boxes += [(name, (x, y, x + w, y + h)) for name in names]
        boxes += [] if names else [(None, f"a rectangle without a label at {x, y, w, h}")]
    return boxes


def _picture(address):
    """The path in "/data/upload/7/0a1b2c3d-dog.png", "/data/local-files/?d=media/dog.png" or "s3://bucket/dog.png"."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    is_picture = path.lower().endswith(tuple(PICTURE_SUFFIXES))
    return (address if parts.scheme in ("http", "https") else path) if is_picture else None
