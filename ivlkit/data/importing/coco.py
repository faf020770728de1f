"""COCO's instances: a JSON of the lists `images`, `annotations` and `categories`; boxes are [x, y, width, height]."""

import json
from collections import defaultdict

from ...errors import DataError
from .labelled import Labelled, beside


def read_coco(path, name):
    """Yield `Labelled` of every picture, and a DataError of every annotation that belongs to none.

    Args: name: of the file, as messages have it; pictures are looked for beside it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {entry["id"]: str(entry["name"]).strip() for entry in content["categories"]}
        of_image = {entry["id"]: [] for entry in content["images"]}
        if len(of_image) < len(content["images"]):
            raise ValueError("an id twice in `images`")
        if any(names[entry["id"]] != str(entry["name"]).strip() for entry in content["categories"]):
            raise ValueError("an id with two names in `categories`")
        lost = defaultdict(int)
        for entry in content["annotations"]:
            if entry["image_id"] in of_image:
                of_image[entry["image_id"]].append(entry)
            else:
                lost[entry["image_id"]] += 1
        found = [_labelled(entry, of_image[entry["id"]], names, name) for entry in content["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"no COCO file ({type(error).__name__}: {error})", "images, annotations and categories, all with ids"
        todo = "export it again; captions without boxes go in as a table of file names and captions"
        raise DataError(*said, todo, where=name) from error
    for image, number in lost.items():
        said = f"{number} annotations of a picture {image!r}", "an id of `images`", "remove them"
        yield DataError(*said, where=name)
    yield from found


def _labelled(image, entries, names, name):
    boxes = []
    for entry in entries:
        about = entry.get("attributes")  # CVAT keeps a rectangle as it was before it was turned
        turn = about.get("rotation") if isinstance(about, dict) else None
        thing, place = names.get(entry.get("category_id")), f"annotation {entry.get('id')}"
        box = entry.get("bbox")
        if not isinstance(box, list) or [isinstance(number, (int, float)) for number in box] != [True] * 4:
            boxes.append((thing, f"{place} has the bbox {box!r:.60}"))
        elif thing is None:
            boxes.append((None, f"{place} is of category {entry.get('category_id')!r}, which the file does not name"))
        elif entry.get("iscrowd"):
            boxes.append((thing, f"{place} is a crowd"))
        elif turn:
            boxes.append((thing, f"{place} is turned by {turn} degrees"))
        else:
            boxes.append((thing, (box[0], box[1], box[0] + box[2], box[1] + box[3])))
    size = (image.get("width"), image.get("height"))
    picture, size = str(image["file_name"]), size if all(isinstance(side, int) and side for side in size) else None
    return Labelled(f"{name}: {picture}", beside(name, picture), boxes, size=size)
