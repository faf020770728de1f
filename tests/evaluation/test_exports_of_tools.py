"""From what a labelling tool exported to a trained model in three commands: convert, train, evaluate.

How good the model becomes is not tested: it is no property of the code alone. That pycocotools finds the same AP is.
"""

import json
import random
import re

import pytest
from test_coco import by_pycocotools

import ivlkit as ivl
from ivlkit.cli import main
from ivlkit.nano.scene import material_of
from ivlkit.nano.shapes import find_box

ASKED = "class=Where is the <ref>{name}</ref>?"


def draw_set(folder, numbers):
    """Draw pictures of one to three shapes: [(file, (width_px, height_px), [(name, box in pixels), …]), …]."""
    folder.mkdir(parents=True)
    drawn = []
    for number in numbers:
        scene = find_box(random.Random(f"exports/{number}"), material_of("train"))
        (picture,) = scene.pictures
        picture.save(folder / f"{number:04}.png")
        found = re.findall(r"([a-z]+ [a-z]+) at \[\[([^\]]*)\]\]", scene.in_words)
        boxes = [(name, [int(v) * side / 1000 for v, side in zip(text.split(","), picture.size * 2, strict=True)])
                 for name, text in found]  # fmt: skip
        drawn.append((f"{number:04}.png", picture.size, boxes))
    return drawn


def write_coco(folder, count):
    drawn = draw_set(folder / "images", range(count))
    names = sorted({name for _, _, boxes in drawn for name, _ in boxes})
    content = {"info": {}, "images": [], "annotations": []}
    for number, (file, (width, height), boxes) in enumerate(drawn):
        content["images"].append({"id": number, "file_name": file, "width": width, "height": height})
        for name, (x1, y1, x2, y2) in boxes:
            about = {"id": len(content["annotations"]), "image_id": number, "category_id": names.index(name)}
            content["annotations"].append(about | {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def write_yolo(folder, count):
    names, kept = [], 4 * count // 5
    for part, numbers in {
        "train": range(kept),
        "valid": range(kept, count),
        "test": range(count, 6 * count // 5),
    }.items():
        (folder / part / "labels").mkdir(parents=True)
        for file, (width, height), boxes in draw_set(folder / part / "images", numbers):
            lines = []
            for name, (x1, y1, x2, y2) in boxes:
                names += [name] if name not in names else []
                centre = f"{(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
                lines.append(f"{names.index(name)} {centre} {(x2 - x1) / width} {(y2 - y1) / height}")
            (folder / part / "labels" / f"{file[:4]}.txt").write_text("\n".join(lines))
    places = "".join(
        f"{key}: ../{part}/images\n" for key, part in (("train", "train"), ("val", "valid"), ("test", "test"))
    )
    (folder / "data.yaml").write_text(f"{places}nc: {len(names)}\nnames: {names}\n")
    return folder


def write_label_studio(folder, count):
    tasks = []
    for number, (file, (width, height), boxes) in enumerate(draw_set(folder / "upload", range(count))):
        size = {"original_width": width, "original_height": height}
        result = [
            {"type": "rectanglelabels", "from_name": "label", "to_name": "image", **size}
            | {"value": {"x": 100 * x1 / width, "y": 100 * y1 / height, "width": 100 * (x2 - x1) / width,
                         "height": 100 * (y2 - y1) / height, "rotation": 0, "rectanglelabels": [name]}}
            for name, (x1, y1, x2, y2) in boxes
        ]  # fmt: skip
        annotations = [{"id": number, "was_cancelled": False, "result": result}]
        tasks.append({"id": number, "data": {"image": f"/data/upload/3/9c0ffee1-{file}"}, "annotations": annotations})
    (folder / "project-3-at-2025.json").write_text(json.dumps(tasks))
    return folder / "project-3-at-2025.json"


@pytest.mark.parametrize(
    ("write", "count", "rows"), [(write_coco, 40, None), (write_yolo, 10, (8, 2, 2)), (write_label_studio, 50, None)]
)
def test_an_export_becomes_a_model_and_a_score_in_three_commands(write, count, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "set", count)
    assert main(["convert", str(source), "--ask", ASKED, "--to", "rows"]) == 0
    assert main(["train", "nano-lora", "--data", "rows/meta.json", "--epochs", "0.2", "--to", "run"]) == 0
    assert main(["evaluate", "run", "rows/test.json", "--metric", "ap", "--to", "replies", "--coco", "out"]) == 0
    if rows:
        parts = [ivl.open_data("rows/meta.json", split=part) for part in ("train", "validation", "test")]
        assert tuple(len({record.images[0] for record in part}) for part in parts) == rows
    report = ivl.Report.load("replies/report.json")
    assert report.details["model"] != "nano" and report.numbers["scored"] == 1
    assert by_pycocotools(tmp_path / "out") == pytest.approx((report.numbers["ap"], report.numbers["ap50"]), abs=1e-9)
