"""Rows of grounding as COCO's JSON, for every tool that reads it: the truths, and the boxes of a report's replies."""

import json
import os
from pathlib import Path

from ..data.files import write_whole
from ..data.rows.media import image_size
from ..errors import DataError
from .boxes import box_scores_known, boxes_by_class
from .confidence import ScoredReply
from .pictures import files_shown


def save_coco(rows, folder):
    """Write `folder`/ground_truth.json and, of a report, results.json with the scores of its boxes; returns the folder.

    pycocotools computes from them what `ap` and `ap50` do. Rows about one picture become one image; where two of them
    ask for the same thing, a second image of the same file. Boxes without scores get 1, so their order decides: it is
    the one of `ap` if rows about one picture stand together.

    Args: rows: a `Report`, or the rows of a data set (`open_data(…)`), each with one picture file.
    Raises: DataError with the row that has none or several, and if no truth has a box.
    """
    is_report = hasattr(rows, "metric")
    rows = list(rows.rows if is_report else rows)
    truths = [(row.answers or (row.truth,))[0] if is_report else row.answer for row in rows]
    replies = [ScoredReply(row.reply, row.box_scores) if is_report else "" for row in rows]
    classes = boxes_by_class(replies, truths, box_scores_known(replies))
    if not classes:
        raise DataError(f"{folder}: no truth has a box; expected <ref>…</ref><box>[[x1, y1, x2, y2]]</box> in some")
    images, of_row = _images(rows, classes)
    truth = {"images": images, "annotations": [], "categories": []}
    results = []
    for number, (name, pairs) in enumerate(classes.items(), start=1):
        truth["categories"].append({"id": number, "name": name})
        for (found, expected), image in zip(pairs, of_row, strict=True):
            for box in expected:
                entry = _entry(box, image, number) | {"id": len(truth["annotations"]) + 1, "iscrowd": 0}
                truth["annotations"].append(entry)  # ids from 1: pycocotools takes 0 for none
            results += [_entry(box, image, number) | {"score": score} for score, box in found]
    write_whole(Path(folder) / "ground_truth.json", json.dumps(truth, ensure_ascii=False))
    if is_report:
        write_whole(Path(folder) / "results.json", json.dumps(results))
    return Path(folder)


def _images(rows, classes):
    """(entries of the images, the one of each row)."""
    for row in rows:
        if len(row.images) != 1 or not files_shown(row):
            raise DataError(f"{row.where}: {len(row.images)} pictures; expected one file; leave the row out")
    root = os.path.commonpath([os.path.dirname(os.path.abspath(row.images[0])) for row in rows])
    images, of_row, asked = [], [], {}
    for number, row in enumerate(rows):
        path, own = Path(row.images[0]), {name for name, pairs in classes.items() if any(pairs[number])}
        same = asked.setdefault(path, [])
        image, names = next(((image, names) for image, names in same if not names & own), (None, set()))
        if image is None:
            width_px, height_px = image_size(path, row.where)
            name = Path(os.path.relpath(path, root)).as_posix()
            image = {"id": len(images) + 1, "file_name": name, "width": width_px, "height": height_px}
            images.append(image)
            same.append((image, names))
        names |= own
        of_row.append(image)
    return images, of_row


def _entry(box, image, category):
    """A box in thousandths as COCO has it, in pixels of its picture; a side is 0 where corners are swapped."""
    left, top, right, bottom = (
        value * side / 1000 for value, side in zip(box, (image["width"], image["height"]) * 2, strict=True)
    )
    found = [left, top, max(right - left, 0.0), max(bottom - top, 0.0)]  # pycocotools leaves out negative areas
    return {"image_id": image["id"], "category_id": category, "bbox": found, "area": found[2] * found[3]}
