"""Rows of grounding out as COCO: pycocotools computes from the files what our metrics do from the rows."""

import io
import json
import random
from contextlib import redirect_stdout

import pytest
from PIL import Image

import ivlkit as ivl
from ivlkit.data.importing.convert import convert
from ivlkit.errors import DataError
from ivlkit.evaluation.coco import save_coco
from ivlkit.evaluation.report import Report, Row


def by_pycocotools(folder):
    """(AP, AP50) of the two files of a folder."""
    coco = pytest.importorskip("pycocotools.coco").COCO
    cocoeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
    with redirect_stdout(io.StringIO()):
        truth = coco(str(folder / "ground_truth.json"))
        evaluated = cocoeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats[0], evaluated.stats[1]


@pytest.fixture
def report(tmp_path):
    """`report(seed, scored=True)` → a `Report` of rows of several classes and boxes, with replies near the truths."""

    def make(seed, *, scored=True, classes=("cup", "pen", "ink")):
        draw, rows = random.Random(seed), []
        for number in range(12):
            path = tmp_path / f"{number:02}.png"
            Image.new("RGB", (draw.randint(50, 900), draw.randint(50, 900))).save(path)
            for name in draw.sample(classes, draw.randint(1, len(classes))):
                truth = [_box(draw) for _ in range(draw.randint(1, 3))]
                reply = [_near(box, draw) for box in truth if draw.random() < 0.8] + [_box(draw)] * draw.randint(0, 1)
                scores = tuple(draw.random() for _ in reply) if scored else ()
                texts = [f"<ref>{name}</ref><box>{boxes}</box>" for boxes in (truth, reply)]
                rows.append(Row(f"row {number}", "Q", *texts, 0.0, (str(path),), box_scores=scores))
        return Report("ap", tuple(rows), {})

    return make


def _box(draw):
    x1, x2 = sorted(draw.sample(range(1001), 2))
    y1, y2 = sorted(draw.sample(range(1001), 2))
    return [x1, y1, x2, y2]


def _near(box, draw):
    return [value + draw.randint(-40, 40) for value in box]


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_pycocotools_computes_the_same_from_the_files(seed, scored, report, tmp_path):
    made = report(seed, scored=scored)
    folder = save_coco(made, tmp_path / "coco")
    found = made.corpus("ap")
    assert by_pycocotools(folder) == pytest.approx((found["ap"], found["ap50"]), abs=1e-9)
    assert 0.1 < found["ap50"] < 1


def test_rows_of_one_picture_are_one_image_unless_they_ask_for_the_same(report, tmp_path):
    made = report(0, classes=("cup", "pen"))
    truth = json.loads((save_coco(made, tmp_path / "coco") / "ground_truth.json").read_text())
    assert len(truth["images"]) == 12
    assert {entry["file_name"] for entry in truth["images"]} == {f"{number:02}.png" for number in range(12)}
    twice = Report("ap", made.rows[:1] * 2, {})
    truth = json.loads((save_coco(twice, tmp_path / "twice") / "ground_truth.json").read_text())
    assert [entry["file_name"] for entry in truth["images"]] == ["00.png"] * 2


def test_what_is_written_converts_back_to_the_same_rows(report, tmp_path):
    made = report(0)
    folder = save_coco(made, tmp_path / "coco")
    done = convert(folder / "ground_truth.json", tmp_path / "rows", images=tmp_path, shares={"rows": 1})
    back = {(record.images[0].name, record.answer) for record in ivl.open_data(done.meta)}
    assert back == {(row.images[0].rpartition("/")[2], row.truth) for row in made.rows} and done.rejected == 0


def test_rows_without_replies_are_truths_alone(report, tmp_path):
    folder = save_coco(report(0), tmp_path / "coco")
    data = ivl.open_data(folder / "ground_truth.json", root=tmp_path)
    again = save_coco(data, tmp_path / "again")
    truth, same = (json.loads((where / "ground_truth.json").read_text()) for where in (folder, again))
    boxes = [sorted(map(_rounded, found["annotations"])) for found in (truth, same)]
    assert boxes[0] == boxes[1] and not (again / "results.json").exists()


def _rounded(entry):
    return [round(number, 6) for number in entry["bbox"]]


def test_rows_that_are_about_no_one_picture_are_refused(report, tmp_path):
    made = report(0)
    for images in ((), (made.rows[0].images * 2), ("data:image/png;base64,AAAA",)):
        row = Row("here:3", "Q", made.rows[0].truth, "", 0.0, images)
        with pytest.raises(DataError, match=f"here:3: {len(images)} pictures; expected one file; leave the row out"):
            save_coco(Report("ap", (row,), {}), tmp_path / "coco")
    with pytest.raises(DataError, match="no truth has a box"):
        save_coco(Report("ap", (Row("a:1", "Q", "yes", "no", 0.0, made.rows[0].images),), {}), tmp_path / "coco")
