"""What labelling tools write → rows: one set of boxes in every tool's words, and whatever can't be used is listed."""

import csv
import json
import random
import re
from contextlib import suppress

import pytest
from PIL import Image

import ivlkit as ivl
from ivlkit.cli import main
from ivlkit.data.importing.convert import convert
from ivlkit.errors import DataError

SIZE = (200, 100)
# {picture: [(name, left, top, width, height) in pixels]}
BOXES = {
    "a.jpg": [("cup", 50, 20, 50, 60), ("pen", 0, 0, 20, 10), ("cup", 150, 50, 50, 50)],
    "b.jpg": [("pen", 10, 10, 100, 40)],
}
WHERE = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
ROWS = [
    ("a.jpg", WHERE.format("cup"), "<ref>cup</ref><box>[[250, 200, 500, 800], [750, 500, 1000, 1000]]</box>"),
    ("a.jpg", WHERE.format("pen"), "<ref>pen</ref><box>[[0, 0, 100, 100]]</box>"),
    ("b.jpg", WHERE.format("pen"), "<ref>pen</ref><box>[[50, 100, 550, 500]]</box>"),
]


@pytest.fixture
def save(tmp_path):
    """`save("images/a.jpg", text=None)` writes a text, or a picture of 200 x 100."""

    def write(name, text=None, size=SIZE, exif=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            image = Image.new("RGB", size, (sum(map(ord, name)) % 255, 90, 60))
            options = {"exif": Image.Exif()} if exif else {}
            if exif:
                options["exif"][0x0112] = exif
            image.save(path, **options)
        else:
            path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


def coco(boxes=BOXES, **changes):
    names = sorted({box[0] for found in boxes.values() for box in found})
    images = [{"id": n, "file_name": p, "width": SIZE[0], "height": SIZE[1]} for n, p in enumerate(boxes, start=7)]
    annotations = [
        {"image_id": n, "category_id": names.index(name), "bbox": box, "iscrowd": 0}
        for n, found in enumerate(boxes.values(), start=7)
        for name, *box in found
    ]
    numbered = [{"id": number} | annotation for number, annotation in enumerate(annotations)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"info": {}, "images": images, "annotations": numbered, "categories": categories} | changes


def voc(picture, boxes, head=""):
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        "</bndbox></object>"
        for name, x, y, w, h in boxes
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>{picture}</filename>{size}{things}</annotation>"


def percent(box):
    return {"x": box[0] / 2, "y": box[1], "width": box[2] / 2, "height": box[3], "rotation": 0}


def studio(boxes=BOXES, **value):
    def region(name, *box):
        about = {"from_name": "box", "type": "rectanglelabels", "original_width": 200, "original_height": 100}
        return about | {"value": percent(box) | {"rectanglelabels": [name]} | value}

    tasks = []
    for number, (picture, found) in enumerate(boxes.items(), start=1):
        result = [region(*box) for box in found]
        result.append({"from_name": "light", "type": "choices", "value": {"choices": ["day", "warm"]}})
        result.append({"from_name": "note", "type": "textarea", "value": {"text": [f"text of {picture}"]}})
        data = {"image": f"/data/upload/7/0a1b2c3d-{picture}"}
        annotations = [{"id": number, "result": result, "was_cancelled": False}]
        tasks.append({"id": number, "data": data, "annotations": annotations})
    return tasks


def studio_rows():
    regions = {
        picture: [
            percent(box) | {"rectanglelabels": [name], "original_width": 200, "original_height": 100}
            for name, *box in found
        ]
        for picture, found in BOXES.items()
    }
    about = {"annotator": 1, "annotation_id": 3, "lead_time": 2.5}
    return [
        {"id": n, "image": f"/data/local-files/?d=photos/{p}", "box": found, "light": {"choices": ["day", "warm"]}}
        | about
        for n, (p, found) in enumerate(regions.items())
    ]


def yolo_lines(boxes):
    return "\n".join(
        f"{['cup', 'pen'].index(name)} {(x + w / 2) / 200} {(y + h / 2) / 100} {w / 200} {h / 100}"
        for name, x, y, w, h in boxes
    )


def write_coco(save):
    save("annotations/instances.json", coco())
    return [save(f"photos/{name}") for name in BOXES][0].parents[1] / "annotations" / "instances.json"


def write_yolo(save):
    for name, boxes in BOXES.items():
        save(f"set/images/{name}")
        save(f"set/labels/{name[0]}.txt", "\ufeff" + yolo_lines(boxes))  # a mark as Windows' editors write it
    return save("set/classes.txt", "cup\npen\n").parent


def write_voc(save):
    for name, boxes in BOXES.items():
        save(f"set/JPEGImages/{name}")
        save(f"set/Annotations/{name[0]}.xml", voc(name, boxes))
    return save("set/README.txt", "").parent


def write_table(save):
    lines = [
        ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"],
        *([p, 200, 100, name, x, y, x + w, y + h] for p, found in BOXES.items() for name, x, y, w, h in found),
    ]
    for name in BOXES:
        save(name)
    return save("_annotations.csv", "\n".join(",".join(map(str, line)) for line in lines))


def write_studio(save):
    for name in BOXES:
        save(f"photos/{name}")
    return save("project-1.json", studio())


def write_studio_min(save):
    for name in BOXES:
        save(f"photos/{name}")
    return save("min.json", studio_rows())


def write_studio_csv(save):
    path = write_studio_min(save).with_name("export.csv")
    rows = studio_rows()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return path


TOOLS = {
    "COCO": write_coco,
    "YOLO": write_yolo,
    "Pascal VOC in 2 files": write_voc,
    "a table of boxes": write_table,
    "Label Studio": write_studio,
    "Label Studio as JSON_MIN": write_studio_min,
    "Label Studio as CSV": write_studio_csv,
}


def rows_of(data):
    return [(r.images[0].name, r.turns[0].text.removeprefix("<image>\n"), r.answer) for r in data]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_gives_the_same_rows_and_is_found_by_itself(tool, save):
    data = ivl.open_data(TOOLS[tool](save))
    assert rows_of(data) == ROWS
    assert f"(labels of {tool.partition(' as ')[0]})" in repr(data)
    assert [record.extra["label"] for record in data] == ["cup", "pen", "pen"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"ask": ["all"]},
            [
                (
                    "a.jpg",
                    "Please detect and label all objects in the following image and mark their positions.",
                    f"{ROWS[0][2]}\n{ROWS[1][2]}",
                ),
                (
                    "b.jpg",
                    "Please detect and label all objects in the following image and mark their positions.",
                    ROWS[2][2],
                ),
            ],
        ),
        (
            {"ask": ["count=How many {name}s?"]},
            [("a.jpg", "How many cups?", "2"), ("a.jpg", "How many pens?", "1"), ("b.jpg", "How many pens?", "1")],
        ),
        (
            {"question": "Find the <ref>{name}</ref>."},
            [(picture, f"Find the {found[: found.index('<box>')]}.", found) for picture, _, found in ROWS],
        ),
        (
            {"question": "What is noted?", "answer": "note"},
            [(p, "What is noted?", f"text of {p}") for p in BOXES],
        ),
        (
            {"question": "Light and things?", "answer": ["light", "labels", "count"]},
            [
                ("a.jpg", "Light and things?", '{"light": "day, warm", "labels": "cup, pen", "count": 3}'),
                ("b.jpg", "Light and things?", '{"light": "day, warm", "labels": "pen", "count": 1}'),
            ],
        ),
        (
            {"question": "What is noted?", "answer": "note", "ask": ["count=How many {name}s?"]},
            [
                ("a.jpg", "How many cups?", "2"),
                ("a.jpg", "How many pens?", "1"),
                ("a.jpg", "What is noted?", "text of a.jpg"),
                ("b.jpg", "How many pens?", "1"),
                ("b.jpg", "What is noted?", "text of b.jpg"),
            ],
        ),
    ],
)
def test_what_is_asked_and_its_words_are_the_users_to_choose(options, expected, save, tmp_path):
    done = convert(write_studio(save), tmp_path / "out", shares={"rows": 1}, **options)
    assert (rows_of(ivl.open_data(done.meta)), done.rejected) == (expected, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ask": "polygons"}, "ask='polygons'; expected one of class, all, count"),
        (
            {"ask": "class=Where is it?"},
            "the words 'Where is it?' for class; expected {name} where the thing's name goes",
        ),
        ({"answer": "colour"}, "no column 'colour'; expected one of 'light', 'note', 'image', 'labels', 'count'"),
        ({"image": "image"}, "image='image' beside Label Studio; expected it with a table only; leave it out"),
    ],
)
def test_what_cannot_be_asked_is_said(options, said, save, tmp_path):
    with pytest.raises(DataError) as refused:
        convert(write_studio(save), tmp_path / "out", **({"question": "Q?"} if "answer" in options else {}), **options)
    assert said in str(refused.value)


def test_a_table_has_no_things_to_ask_about(save, tmp_path):
    with pytest.raises(
        DataError, match="ask='all' beside a table; expected it with labels of things only; leave it out"
    ):
        convert(save("labels.csv", "image,label\na.jpg,x\n"), tmp_path / "out", ask="all")


# Parts of a split


def test_folders_of_a_split_are_its_parts(save, tmp_path):
    for part in ("train", "valid", "test"):
        for name in BOXES:
            save(f"set/{part}/{name}", size=SIZE)
        save(f"set/{part}/_annotations.coco.json", coco())
    done = convert(tmp_path / "set", tmp_path / "out", shares={"train": 0.5, "test": 0.5})
    assert done.rows == {"train": 3, "validation": 3, "test": 3}
    test = ivl.open_data(done.meta, split="test")
    assert {record.images[0].parent.name for record in test} == {"test"}
    assert test[0].extra["source"] == "test/_annotations.coco.json: a.jpg"


def test_coco_files_that_are_named_by_parts_are_its_parts(save, tmp_path):
    for part, name in (("train", "a.jpg"), ("val", "b.jpg")):
        save(f"set/{part}2017/{name}")
        save(f"set/annotations/instances_{part}2017.json", coco({name: BOXES[name]}))
    assert convert(tmp_path / "set", tmp_path / "out").rows == {"train": 2, "validation": 1}


def test_captions_beside_the_instances_are_left_where_they_are(save, tmp_path):
    save("set/annotations/captions_train2017.json", {"info": {}, "images": [], "annotations": [{"caption": "a cup"}]})
    for name in BOXES:
        save(f"set/train2017/{name}")
    save("set/annotations/instances_train2017.json", coco())
    assert convert(tmp_path / "set", tmp_path / "out").rows == {"train": 3}
    with pytest.raises(DataError, match="captions_train2017.json: no COCO file .KeyError: 'categories'."):
        convert(tmp_path / "set" / "annotations" / "captions_train2017.json", tmp_path / "more")


@pytest.mark.parametrize("lists", [False, True])
def test_the_parts_of_yolo_are_those_of_its_yaml(lists, save, tmp_path):
    for part, name in (("train", "a.jpg"), ("val", "b.jpg")):
        save(f"set/images/{part}/{name}")
        save(f"set/labels/{part}/{name[0]}.txt", yolo_lines(BOXES[name]))
        save(f"set/{part}.txt", f"./images/{part}/{name}\n")
    places = "train: train.txt\nval: val.txt\n" if lists else "train: ../images/train\nval: images/val\ntest:\n"
    save("set/data.yaml", f"path: /somewhere/else\n{places}nc: 2\nnames:\n  0: cup\n  1: pen\n")
    assert convert(tmp_path / "set", tmp_path / "out").rows == {"train": 2, "validation": 1}


def test_voc_has_the_parts_of_its_image_sets_and_all_pictures_have_one_or_are_listed(save, tmp_path):
    folder = write_voc(save)
    save("set/ImageSets/Main/train.txt", "a\n")
    save("set/ImageSets/Main/trainval.txt", "a\nb\n")
    done = convert(folder, tmp_path / "out")
    assert (done.rows, done.rejected) == ({"train": 2}, 1)
    assert "Annotations/b.xml: in no part of the split; expected train" in done.first_rejects[0]
    save("set/ImageSets/Main/train.txt", "a\nb\n")
    assert convert(folder, tmp_path / "out").rejected == 0
    save("set/JPEGImages/a ü.jpg")
    save("set/Annotations/a ü.xml", voc("a ü.jpg", BOXES["a.jpg"]))
    save("set/ImageSets/Main/val.txt", "a ü\n")
    assert convert(folder, tmp_path / "out").rows == {"train": 3, "validation": 2}


def test_a_single_file_is_split_like_any_other_source(save, tmp_path):
    boxes = {f"{number}.jpg": [("cup", 10 * number, 0, 10, 10)] for number in range(10)}
    for number, name in enumerate(boxes):
        save(f"train/{name}", size=(200 + number, 100))
    images = [image | {"width": 200 + n} for n, image in enumerate(coco(boxes)["images"])]
    path = save("train/_annotations.coco.json", coco(boxes, images=images))
    assert convert(path, tmp_path / "out").rows == {"train": 8, "validation": 1, "test": 1}


# Pictures


def test_pictures_are_found_by_what_their_paths_share(save, tmp_path):
    for part in ("train", "valid"):
        for name in BOXES:
            save(f"set/{part}/images/{name}", size=SIZE)
        save(f"set/{part}/_annotations.coco.json", coco())
    data = ivl.open_data(tmp_path / "set")
    assert [record.images[0].parts[-3] for record in data] == ["train"] * 3


def test_a_picture_that_may_be_two_is_listed(save, tmp_path):
    for folder in ("one", "two"):
        for name in BOXES:
            save(f"set/{folder}/{name}")
    path = save("set/labels.json", coco())
    with pytest.raises(DataError, match="labels.json: a.jpg: a.jpg may be one/a.jpg or two/a.jpg; expected one"):
        convert(path, tmp_path / "out")
    assert convert(path, tmp_path / "out", images=tmp_path / "set" / "two").rejected == 0


def test_a_picture_that_is_not_there_is_listed(save, tmp_path):
    path = save("set/labels.json", coco())
    sizeless = save("set/more.json", coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]))
    for source in (path, sizeless):
        with pytest.raises(DataError, match=r"(labels|more)\.json: a.jpg: .*a.jpg does not exist; expected a file"):
            convert(source, tmp_path / "out")


def test_a_name_is_found_whatever_unicode_form_and_upload_prefix_it_has(save, tmp_path):
    save("set/pictures/cafe\u0301.jpg")
    boxes = {"caf\xe9.jpg": BOXES["b.jpg"]}
    path = save("set/project.json", studio(boxes))
    assert convert(path, tmp_path / "out", shares={"rows": 1}).rows == {"rows": 1}


@pytest.mark.parametrize(
    ("exif", "declared", "said"),
    [
        (6, (100, 200), None),
        (6, (200, 100), "a.jpg: EXIF turns it, and nothing says which way up it was labelled"),
        (3, (200, 100), "a.jpg: EXIF turns it, and nothing says which way up it was labelled"),
        (1, (200, 100), None),
        (
            1,
            (400, 200),
            "a.jpg: labelled as 400 x 200 px, the file has 200 x 100; expected the picture that was labelled",
        ),
    ],
)
def test_boxes_of_a_picture_that_is_turned_or_resized_are_listed_unless_its_size_tells(
    exif, declared, said, save, tmp_path
):
    save("set/a.jpg", exif=exif)
    images = [{"id": 7, "file_name": "a.jpg", "width": declared[0], "height": declared[1]}]
    path = save("set/labels.json", coco({"a.jpg": [("cup", 0, 0, 50, 50)]}, images=images))
    if said:
        with pytest.raises(DataError, match=said):
            convert(path, tmp_path / "out")
    else:
        (row,) = ivl.open_data(path)
        assert row.answer.endswith({(100, 200): "[[0, 0, 500, 250]]</box>"}.get(declared, "[[0, 0, 250, 500]]</box>"))


# What can't be used


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iscrowd": 1}, "annotation 0 is a crowd; 'cup' of this picture can't be asked about"),
        ({"bbox": [50, 20, 0, 60]}, r"the box \[50, 20, 50, 80\] of 'cup' in a picture of 200 x 100; 'cup'"),
        (
            {"bbox": [150, 20, 60, 60]},
            r"the box \[150, 20, 210, 80\] of 'cup' in a picture of 200 x 100; 'cup'",
        ),
        ({"bbox": [-5, 20, 60, 60]}, r"the box \[-5, 20, 55, 80\] of 'cup'"),
        ({"bbox": []}, r"annotation 0 has the bbox \[\]; 'cup' of this picture can't be asked about"),
        ({"bbox": [1, 2, 3, float("nan")]}, "of 'cup' in a picture of 200 x 100"),
        ({"category_id": 9}, "annotation 0 is of category 9, which the file does not name; this picture's boxes"),
        ({"attributes": {"rotation": 30.0}}, "annotation 0 is turned by 30.0 degrees; 'cup' of this picture"),
        ({"bbox": [0.25, 0.2, 0.25, 0.6]}, "in a picture of 200 x 100 pixels; it looks like shares of 1; 'cup'"),
    ],
)
def test_a_box_that_cannot_be_used_is_listed_and_what_it_belongs_to_is_not_asked(change, said, save, tmp_path):
    for name in BOXES:
        save(f"set/{name}")
    content = coco()
    content["annotations"][0] |= change
    done = convert(save("set/labels.json", content), tmp_path / "out", shares={"rows": 1})
    assert (done.rejected, done.rows) == (1, {"rows": 1 if "category_id" in change else 2})
    assert re.search(said, done.first_rejects[0])
    assert all(record.extra["label"] == "pen" for record in ivl.open_data(done.meta))
    done = convert(tmp_path / "set" / "labels.json", tmp_path / "all", shares={"rows": 1}, ask="all")
    assert rows_of(ivl.open_data(done.meta))[0][0] == "b.jpg"


def test_a_box_that_rounding_puts_beyond_the_edge_is_cut_there(save):
    save("set/a.jpg")
    (row,) = ivl.open_data(save("set/labels.json", coco({"a.jpg": [("cup", -0.2, 0, 200.3, 100.1)]})))
    assert row.answer == "<ref>cup</ref><box>[[0, 0, 1000, 1000]]</box>"


def test_a_picture_without_boxes_and_annotations_without_a_picture_are_listed(save, tmp_path):
    for name in (*BOXES, "c.jpg"):
        save(f"set/{name}")
    content = coco(BOXES | {"c.jpg": []})
    content["annotations"].append({"id": 9, "image_id": 99, "category_id": 0, "bbox": [1, 1, 5, 5]})
    path = save("set/labels.json", content)
    done = convert(path, tmp_path / "out")
    assert done.rejected == 2
    assert "labels.json: 1 annotations of a picture 99; expected an id of `images`" in done.first_rejects[0]
    assert "labels.json: c.jpg: no box; nothing is asked about it" in done.first_rejects[1]
    with pytest.raises(DataError, match="2 of 5 rows can't be used, all in"):
        ivl.open_data(path)


def test_labels_of_yolo_are_read_or_listed_line_by_line(save, tmp_path):
    folder = write_yolo(save)
    save("set/labels/a.txt", "0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.1 0.3 0.3 0.3\n0 0.1 0.2 0.3\n")
    save("set/labels/z.txt", "0 0.5 0.5 0.5 0.5\n")
    done = convert(folder, tmp_path / "out", shares={"rows": 1})
    assert (done.rows, done.rejected) == ({"rows": 1}, 2)
    assert "images/a.jpg: a.txt:3: '0 0.1 0.2 0.3', which is no class and box" in done.first_rejects[0]
    assert "labels/z.txt: labels of a picture that is not there" in done.first_rejects[1]
    save("set/labels/a.txt", "1 0.1 0.1 0.1 0.3 0.3 0.3\n")
    done = convert(folder, tmp_path / "out", shares={"rows": 1})
    assert rows_of(ivl.open_data(done.meta))[0][2] == "<ref>pen</ref><box>[[100, 100, 300, 300]]</box>"


def test_a_crowd_of_a_category_with_a_space_behind_its_name_is_not_asked_about(save, tmp_path):
    save("set/a.jpg")
    content = coco({"a.jpg": BOXES["a.jpg"]})
    content["categories"] = [each | {"name": f"{each['name']} "} for each in content["categories"]]
    content["annotations"][0]["iscrowd"] = 1
    done = convert(save("set/labels.json", content), tmp_path / "out", shares={"rows": 1})
    assert done.rejected == 1 and rows_of(ivl.open_data(done.meta)) == [ROWS[1]]


def test_a_picture_named_without_its_suffix_is_looked_at(save, tmp_path):
    save("set/JPEGImages/a.jpg")
    save("set/Annotations/a.xml", voc("a", BOXES["a.jpg"]).replace("<width>200", "<width>400"))
    with pytest.raises(DataError, match="a.jpg: labelled as 400 x 100 px, the file has 200 x 100"):
        convert(tmp_path / "set", tmp_path / "out")
    save("set/Annotations/a.xml", voc("a", BOXES["a.jpg"]))
    assert convert(tmp_path / "set", tmp_path / "out").rejected == 0


@pytest.mark.parametrize(
    ("value", "answer"), [(0, "0"), ([["animal", "dog"], ["animal", "cat"]], "animal / dog, animal / cat")]
)
def test_a_zero_and_a_taxonomy_of_label_studio_are_answers(value, answer, save, tmp_path):
    save("photos/a.jpg")
    path = save("min.json", [studio_rows()[0] | {"kind": value}])
    done = convert(path, tmp_path / "out", question="Q?", answer="kind", shares={"rows": 1})
    assert rows_of(ivl.open_data(done.meta))[0][2] == answer


@pytest.mark.parametrize("names", ["[off, pen]", "{0: off, 1: pen}"])
def test_a_pose_of_yolo_is_its_box_and_a_name_is_what_is_written(names, save, tmp_path):
    save("set/images/a.jpg")
    points = " 0.2 0.2 2" * 4  # eighteen numbers with the class: an outline would be read from as many
    save("set/labels/a.txt", f"1 0.5 0.5 0.5 0.5{points}\n0 0.5 0.5 0.2 0.2{points}\n")
    path = save("set/data.yaml", f"train: images\ntest: null\nkpt_shape: [4, 3]\nnames: {names}\n")
    answers = sorted(answer for _, _, answer in rows_of(ivl.open_data(path)))
    assert answers[0] == "<ref>off</ref><box>[[400, 400, 600, 600]]</box>"
    assert answers[1] == "<ref>pen</ref><box>[[250, 250, 750, 750]]</box>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rotation": 30},
            "a region of cup that is no upright rectangle; 'cup' of this picture can't be asked about",
        ),
        ({"rectanglelabels": []}, r"a rectangle without a label at \(25.0, 20.0, 25.0, 60.0\); this picture's boxes"),
    ],
)
def test_regions_of_label_studio_that_are_no_upright_boxes_are_listed(change, said, save, tmp_path):
    save("photos/a.jpg")
    path = save("project.json", studio({"a.jpg": BOXES["a.jpg"][:1]}, **change))
    with pytest.raises(DataError, match=said):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", question="Q?", answer="note")
    assert (done.rows, done.rejected) == ({"train": 1}, 0)  # boxes are not asked about
    with pytest.raises(DataError, match="the cell 'count' is empty"):
        convert(path, tmp_path / "out", question="Q?", answer="count")


def test_a_region_of_label_studio_belongs_to_the_picture_that_it_was_drawn_on(save, tmp_path):
    for picture in ("a.jpg", "b.jpg"):
        save(f"photos/{picture}")
    (task,) = studio({"b.jpg": [("cup", 50, 20, 50, 60), ("pen", 0, 0, 20, 20)]})
    task["data"] = {"left": "/data/upload/a.jpg", "right": "/data/upload/b.jpg"}
    cup, pen, *_ = result = task["annotations"][0]["result"]
    cup["to_name"] = pen["to_name"] = "right"
    result.append({"type": "relation", "from_id": "1", "to_id": "2", "direction": "right"})
    data = ivl.open_data(save("project.json", [task]))
    assert [record.images[0].name for record in data] == ["b.jpg", "b.jpg"]
    pen["to_name"] = "left"
    with pytest.raises(DataError, match=r"project.json: task 1: regions of several pictures \(left, right\)"):
        ivl.open_data(save("project.json", [task]))
    del cup["to_name"], pen["to_name"]
    cup["image_rotation"] = pen["image_rotation"] = 90
    with pytest.raises(DataError, match="a region of cup that is no upright rectangle"):
        ivl.open_data(save("project.json", [task]))


def test_a_label_or_a_text_of_its_own_in_the_same_place_belongs_to_the_rectangle(save):
    path = write_studio(save)
    tasks = studio()
    for task in tasks:
        result = task["annotations"][0]["result"]
        for region in [each for each in result if each["type"] == "rectanglelabels"]:
            sides = dict(region["value"])
            names = sides.pop("rectanglelabels")
            region |= {"type": "rectangle", "from_name": "bbox", "value": sides}
            result.append({"from_name": "kind", "type": "labels", "value": sides | {"labels": names}})
            result.append({"from_name": "said", "type": "textarea", "value": sides | {"text": ["written here"]}})
    save("project-1.json", tasks)
    assert rows_of(ivl.open_data(path)) == ROWS


def test_an_outline_of_label_studio_and_a_number_that_was_chosen(save, tmp_path):
    path = write_studio(save)
    tasks = studio()
    outline = {"points": [[1, 1], [9, 9], [1, 9]], "polygonlabels": ["pen"]}
    tasks[0]["annotations"][0]["result"] += [
        {"from_name": "shape", "type": "polygonlabels", "value": outline},
        {"from_name": "stars", "type": "rating", "value": {"rating": 4}},
    ]
    save("project-1.json", tasks)
    done = convert(path, tmp_path / "out", shares={"rows": 1})
    assert "task 1: a region of pen that is no upright rectangle; 'pen' of this picture" in done.first_rejects[0]
    assert rows_of(ivl.open_data(done.meta)) == [ROWS[0], ROWS[2]]
    done = convert(path, tmp_path / "out", shares={"rows": 1}, question="How many stars?", answer="stars")
    assert (done.rows, done.rejected) == ({"rows": 1}, 1)


def test_tasks_of_label_studio_without_an_annotation_or_with_several_are_listed(save, tmp_path):
    path = write_studio(save)
    tasks = studio()
    tasks[0]["annotations"].append({"id": 77, "result": [], "ground_truth": True})
    tasks[1]["annotations"][0]["was_cancelled"] = True
    save("project-1.json", tasks)
    with pytest.raises(DataError) as refused:
        convert(path, tmp_path / "out")
    for said in ("task 1: no box", "task 1: another annotation of the task; expected one", "task 2: no annotation"):
        assert said in str(refused.value)


def test_a_field_that_only_some_pictures_have_is_listed_where_it_is_missing(save, tmp_path):
    path = write_studio(save)
    tasks = studio()
    del tasks[0]["annotations"][0]["result"][-1]
    save("project-1.json", tasks)
    done = convert(path, tmp_path / "out", shares={"rows": 1}, question="Q?", answer="note", ask=["count"])
    assert "task 1: the cell 'note' is empty; expected a value" in done.first_rejects[0]
    assert (done.rows, done.rejected) == ({"rows": 4}, 1)


def test_a_picture_of_an_address_is_taken_from_this_machine_where_it_is_there(save, tmp_path):
    save("photos/b.jpg")
    tasks = studio({"b.jpg": BOXES["b.jpg"]})
    tasks[0]["data"]["image"] = "https://example.org/bucket/b.jpg"
    path = save("project-1.json", tasks)
    assert convert(path, tmp_path / "out", shares={"rows": 1}).rows == {"rows": 1}
    (tmp_path / "photos" / "b.jpg").unlink()
    with pytest.raises(DataError, match="https://example.org/bucket/b.jpg is on another machine"):
        convert(path, tmp_path / "out")


def test_an_xml_with_a_document_type_is_refused_before_it_is_expanded(save, tmp_path):
    folder = write_voc(save)
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    save("set/Annotations/a.xml", voc("&b;", BOXES["a.jpg"], head=bomb))
    done = convert(folder, tmp_path / "out", shares={"rows": 1})
    assert (done.rows, done.rejected) == ({"rows": 1}, 1)
    assert "Annotations/a.xml: no VOC file (a document type 'a', which labels never need)" in done.first_rejects[0]


@pytest.mark.parametrize(("turn", "rows"), [("0.0", 3), ("30.0", 2)])
def test_a_turned_rectangle_of_an_xml_is_listed(turn, rows, save, tmp_path):
    folder = write_voc(save)
    about = f"<attributes><attribute><name>rotation</name><value>{turn}</value></attribute></attributes></object>"
    path = folder / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("</object>", about, 1))
    done = convert(folder, tmp_path / "out", shares={"rows": 1})
    assert (done.rows, done.rejected) == ({"rows": rows}, 3 - rows)
    assert all("a rectangle turned by 30.0 degrees; 'cup' of" in said for said in done.first_rejects)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '{"images": [], "annotations": 3', "a.json: no COCO file"),
        (
            "a.json",
            '{"images": [], "annotations": [{"caption": "A cup."}]}',
            "KeyError: 'categories'.*a table of file names and captions",
        ),
        (
            "a.json",
            coco(categories=[{"id": 0, "name": "cup"}, {"id": 0, "name": "pen"}]),
            "an id with two names in `categories`",
        ),
        ("a.json", '{"images": [{}], "annotations": [], "categories": []}', r"a.json: no COCO file \(KeyError: 'id'\)"),
        ("data.yaml", "nc: 2\n", "data.yaml: no `names` .KeyError.; expected a name for each class"),
        ("data.yaml", "names: [a]\ntrain: nowhere\n", "data.yaml: train: nowhere is not there; expected a folder"),
        ("a.xml", "<annotation><object>", r"a.xml: no VOC file \(no element found"),
        (
            "a.xml",
            "<annotations><image/></annotations>",
            r"a.xml: no VOC file \(<annotations>\); expected <annotation>",
        ),
    ],
)
def test_a_damaged_file_is_said(name, content, said, save, tmp_path):
    with pytest.raises(DataError, match=said):
        convert(save(name, content), tmp_path / "out")


JUNK = (
    None,
    3,
    -1,
    "x",
    "",
    [],
    {},
    [1],
    {"a": 1},
    True,
    float("nan"),
    1e400,
    "../../a.jpg",
    "a.jpg\0",
    [None],
    "\ud800",
)


def damaged(value, draw):
    """A copy in which one value, somewhere, is another one or is gone."""
    if not isinstance(value, (list, dict)) or not value or draw.random() < 0.15:
        return draw.choice(JUNK)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    changed[key] = damaged(value[key], draw)
    if draw.random() < 0.1:
        del changed[key]
    return changed


@pytest.mark.parametrize("seed", range(20))
def test_no_damaged_export_ends_in_another_error_than_ours(seed, save, tmp_path):
    draw = random.Random(seed)
    for name in BOXES:
        save(name)
    text = bytearray(voc("a.jpg", BOXES["a.jpg"]).encode())
    text[draw.randrange(len(text))] = draw.randrange(256)
    (tmp_path / "a.xml").write_bytes(text)
    save(
        "data.yaml",
        draw.choice(["train: .", "val: [3, x]", "train: {}", ""]) + draw.choice(["\nnames: 3", "\nnames: [a]"]),
    )
    save("a.txt", draw.choice(["inf 0 0 1 1", "0 nan 0 1 1", "0 1e400 0 1 1", "-1 0.5 0.5 1 1", "0 0.5 0.5 1 1 x"]))
    for number, content in enumerate((coco(), studio(), studio_rows())):
        save(f"{number}.json", json.dumps(damaged(content, draw)))
    for name in ("0.json", "1.json", "2.json", "a.xml", "data.yaml"):
        for options in ({}, {"question": "Q?", "answer": "note"}):
            with suppress(DataError):
                convert(tmp_path / name, tmp_path / "out", shares={"rows": 1}, **options)


# JSON with the columns of a table


@pytest.mark.parametrize("as_list", [False, True])
def test_json_rows_with_columns_are_a_table(as_list, save, tmp_path):
    save("set/a.jpg")
    rows = [{"file_name": "a.jpg", "prefix": "Q?", "suffix": "A"}, {"file_name": "a.jpg", "prefix": "", "suffix": "B"}]
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    path = save(f"set/rows.json{'' if as_list else 'l'}", text)
    arguments = ["convert", str(path), "--to", str(tmp_path / "out"), "--question", "prefix", "--answer", "suffix"]
    assert main([*arguments, "--split", "none"]) == 0
    data = ivl.open_data(tmp_path / "out" / "meta.json")
    assert rows_of(data) == [("a.jpg", "Q?", "A")]
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "the cell 'prefix' is empty" in rejects and ("row 2" if as_list else "rows.jsonl:2") in rejects


def test_json_rows_without_turns_say_their_fields(save, tmp_path):
    path = save("rows.jsonl", '{"file_name": "a.jpg", "text": "x"}\n')
    with pytest.raises(DataError, match="no question column among 'file_name', 'text'; name it: question=…"):
        convert(path, tmp_path / "out")


def test_the_command_asks_what_it_is_told_and_says_what_it_took(save, tmp_path, capsys):
    path, to = write_coco(save), tmp_path / "out"
    asked = ["--ask", "class=Where is the <ref>{name}</ref>?", "--ask", "count"]
    assert main(["convert", str(path), "--to", str(to), "--split", "none", *asked]) == 0
    assert "instances.json as labels of COCO" in capsys.readouterr().out
    questions = [question for _, question, _ in rows_of(ivl.open_data(to / "meta.json"))]
    assert questions[:2] == ["Where is the <ref>cup</ref>?", "How many objects of the kind cup are there?"]
    assert (questions[2], len(questions)) == ("Where is the <ref>pen</ref>?", 6)


def test_a_table_with_an_annotator_and_a_meta_with_a_set_named_images_are_no_tools(save):
    save("photos/a.jpg")
    table = save("labels.csv", "image,question,answer,annotator\nphotos/a.jpg,Q,A,Anna\n")
    assert ivl.open_data(table)[0].extra["annotator"] == "Anna"
    rows = table.with_name("labels_ivlkit") / "rows.jsonl"
    meta = save("meta.json", {"images": {"root": str(table.parent), "annotation": str(rows)}})
    assert ivl.open_data(meta)[0].answer == "A"
