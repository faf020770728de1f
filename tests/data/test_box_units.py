"""The unit and order of boxes are found from the whole file; --fix rescales what is known and leaves what is not."""

import json
import random

import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.checking.mend import mend
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import read_records
from ivlkit.evaluation.boxes import parse_boxes

SIZES = [(640, 480), (480, 640), (300, 200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a picture of each size, one of them turned too."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(SIZES):
        Image.new("RGB", size).save(folder / f"{number}.png")
    Image.new("RGB", (500, 500)).save(folder / "square.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (480, 640)).save(folder / "turned.jpg", exif=exif)
    return folder


def truths(count, *, seed=0, on_edge=True):
    """[(number of the picture, box in thousandths)], some of which end on the edge of their pictures."""
    draw, found = random.Random(seed), []
    for number in range(count):
        x1, x2 = sorted(draw.sample(range(10, 990, 10), 2))
        y1, y2 = sorted(draw.sample(range(10, 990, 10), 2))
        box = (x1, y1, 1000, y2) if on_edge and number % 5 == 0 else (x1, y1, x2, y2)
        found.append((number % len(SIZES), box))
    return found


def written(box, size, unit, order):
    sides = {"pixels": size * 2, "percent": (100,) * 4, "fractions": (1,) * 4, "shares of 1000": (1000,) * 4}[unit]
    x1, y1, x2, y2 = (value * side / 1000 for value, side in zip(box, sides, strict=True))
    numbers = {"xyxy": [x1, y1, x2, y2], "xywh": [x1, y1, x2 - x1, y2 - y1], "yxyx": [y1, x1, y2, x2]}[order]
    return [round(number, 4) if unit != "pixels" else round(number) for number in numbers]


@pytest.fixture
def save(tmp_path, root):
    def write(answers, *, pictures=None, **fields):
        pictures = pictures or [f"{number}.png" for number, _ in truths(len(answers))]
        rows = [
            {"image": picture, "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": answer}]}
            for picture, answer in zip(pictures, answers, strict=True)
        ]
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row | fields) + "\n" for row in rows))
        return path

    return write


def units_of(path, root):
    return [problem.found for problem in diagnose(path, root=root, limit=100).by_code("box_unit")]


def boxes_after(path, root):
    fixed, _ = mend(open_data(path, root=root).sources[0])
    return fixed and [parse_boxes(record.answer)[0] for record in read_records(fixed, root)]


NAMES = {"xyxy": "[x1, y1, x2, y2]", "xywh": "[x, y, width, height]", "yxyx": "[y1, x1, y2, x2]"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("unit", "order"),
    [
        ("pixels", "xyxy"),
        ("pixels", "xywh"),
        ("pixels", "yxyx"),
        ("percent", "xyxy"),
        ("percent", "xywh"),
        ("fractions", "xyxy"),
        ("fractions", "xywh"),
        ("shares of 1000", "xywh"),
    ],
)
def test_each_unit_and_order_is_found_with_its_evidence_and_rescaled(unit, order, seed, save, root):
    expected = truths(40, seed=seed)
    path = save([f"<ref>a</ref><box>[{written(box, SIZES[n], unit, order)}]</box>" for n, box in expected])
    (found,) = units_of(path, root)
    assert f"{unit} as {NAMES[order]}; none leaves its own picture, 8 end on its edge" in found
    assert "40 boxes as <box>, none over" in found
    for (number, box), mended in zip(expected, boxes_after(path, root), strict=True):
        slack = 1000 / min(SIZES[number]) if unit == "pixels" else 1
        assert mended == pytest.approx(box, abs=slack)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_boxes_in_shares_of_1000_are_left_alone(count, seed, save, root):
    path = save([f"<ref>a</ref><box>[{list(box)}]</box>" for _, box in truths(count, seed=seed)])
    assert (units_of(path, root), boxes_after(path, root)) == ([], None)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["<box>[[25, 20, 50, 80]]</box>"], "1 boxes as <box>, none over 80: they may be pixels or percent"),
        (["<box>[[0.1, 0.1, 0.2, 0.3]]</box>"], "they may be fractions as [x1, y1, x2, y2] or fractions as [x, y, w"),
        (
            ['[{"bbox_2d": [5, 6, 70, 80], "label": "a"}]'],
            "1 boxes as Qwen's bbox_2d, none over 80: they may be pixels",
        ),
        (
            ["<box>[[1, 2, 3, 4]]</box>", "<loc0001><loc0002><loc0003><loc0004> a"],
            "boxes in several notations: <box>, P",
        ),
    ],
)
def test_where_it_may_be_several_it_is_said_and_nothing_is_changed(answers, said, save, root):
    path = save(answers)
    (found,) = units_of(path, root)
    assert said in found
    assert boxes_after(path, root) is None


def test_pixels_of_pictures_that_show_no_difference_are_left_alone(save, root):
    Image.new("RGB", (1000, 1000)).save(root / "large.png")
    answers = [f"<box>[{list(box)}]</box>" for _, box in truths(40)]
    path = save(answers, pictures=["large.png"] * 40)
    assert units_of(path, root) == []


def test_one_box_that_leaves_its_picture_speaks_against_pixels(save, root):
    answers = [f"<box>[{written(box, SIZES[n], 'pixels', 'xyxy')}]</box>" for n, box in truths(40)]
    path = save([*answers, "<box>[[10, 10, 700, 20]]</box>"])
    assert (units_of(path, root), boxes_after(path, root)) == ([], None)


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "{}"])
def test_qwens_notation_is_written_as_ours(fence, save, root):
    expected = truths(40)
    answers = [
        fence.format(json.dumps([{"bbox_2d": written(box, SIZES[n], "pixels", "xyxy"), "label": "cup"}]))
        for n, box in expected
    ]
    path = save(answers)
    assert "40 boxes as Qwen's bbox_2d, none over 640: pixels as [x1, y1, x2, y2]" in units_of(path, root)[0]
    fixed, changed = mend(open_data(path, root=root).sources[0])
    first = next(iter(read_records(fixed, root))).answer
    assert (changed, first[: first.index("[[")]) == (40, "<ref>cup</ref><box>")
    assert parse_boxes(first)[0] == pytest.approx(expected[0][1], abs=2)


@pytest.mark.parametrize(
    "answer",
    [
        '[{"bbox_2d": [1, 2, 3], "label": "cup"}]',
        '[{"bbox_2d": [1, 2, 3, 4], "label": 3}]',
        '[{"bbox_2d": [1, 2, 3, 4]}, 3, {}]',
        '[{"bbox_2d": ' + "[" * 100_000 + "}]",
    ],
)
def test_what_only_looks_like_qwens_notation_is_no_box(answer, save, root):
    boxes = [json.dumps([{"bbox_2d": written(box, SIZES[n], "pixels", "xyxy")}]) for n, box in truths(40)]
    path = save([*boxes, answer])
    assert "40 boxes as Qwen's bbox_2d, none over 640: pixels as [x1, y1, x2, y2]" in units_of(path, root)[0]


def test_paligemmas_notation_is_written_as_ours(save, root):
    path = save(["<loc0256><loc0128><loc0512><loc1023> cup ; <loc0000><loc0000><loc0512><loc0512> big pen", "none"])
    assert units_of(path, root) == ["2 boxes as <locdddd>, PaliGemma's shares of 1024"]
    fixed, changed = mend(open_data(path, root=root).sources[0])
    answers = [record.answer for record in read_records(fixed, root)]
    assert changed == 1
    assert answers == [
        "<ref>cup</ref><box>[[125, 250, 999, 500]]</box>\n<ref>big pen</ref><box>[[0, 0, 500, 500]]</box>",
        "none",
    ]


def test_boxes_of_turned_pictures_in_pixels_are_said_and_not_mended(save, root):
    answers = [f"<box>[{written(box, SIZES[n], 'pixels', 'xyxy')}]</box>" for n, box in truths(40)]
    pictures = [f"{number}.png" for number, _ in truths(40)]
    pictures[3] = "turned.jpg"  # of 640 x 480 when it is turned, as 0.png
    path = save(answers, pictures=pictures)
    assert "1 of the pictures are turned by EXIF, and boxes may be drawn on either" in units_of(path, root)[0]
    assert boxes_after(path, root) is None


def test_rows_of_several_pictures_do_not_tell_whose_pixels_they_are(save, root):
    answers = [f"<box>[{written(box, SIZES[0], 'pixels', 'xyxy')}]</box>" for _, box in truths(40)]
    path = save(answers, pictures=[["0.png", "1.png"]] * 40)
    assert boxes_after(path, root) is None


def test_a_text_between_box_tags_that_is_no_box_stays(save, root):
    path = save([*(f"<box>[{[v / 1000 for v in box]}]</box>" for _, box in truths(20)), "<box>left</box>"])
    fixed, _ = mend(open_data(path, root=root).sources[0])
    assert [record.answer for record in read_records(fixed, root)][-1] == "<box>left</box>"


def test_the_command_says_it_once_and_mends_it(save, root, capsys):
    path = save([f"<box>[{written(box, SIZES[n], 'percent', 'xyxy')}]</box>" for n, box in truths(40)])
    assert main(["check", str(path), "--root", str(root), "--fix"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("[box_unit]") == 1 and "--fix rescales them" in printed.out
    assert "train.fixed.jsonl: 40 rows mended" in printed.err
    assert units_of(path.with_name("train.fixed.jsonl"), root) == []


def test_a_row_with_half_a_character_stays_and_the_others_are_mended(save, root):
    answers = [f"<box>[{written(box, SIZES[n], 'percent', 'xyxy')}]</box>" for n, box in truths(40)]
    path = save([*answers, "<box>[[10, 10, 20, 20]]</box> \ud83d"])
    fixed, changed = mend(open_data(path, root=root).sources[0])
    assert changed == 40
    assert fixed.read_bytes().splitlines()[-1] == path.read_bytes().splitlines()[-1]


@pytest.mark.parametrize("as_parts", [False, True], ids=["texts", "parts"])
def test_boxes_in_messages_are_found_and_mended(as_parts, save, root):
    count = 12
    boxes = [written(box, SIZES[number], "pixels", "xyxy") for number, box in truths(count)]
    path = save(["A"] * count)
    rows = []
    for (number, _), box in zip(truths(count), boxes, strict=True):
        answer, name = json.dumps([{"bbox_2d": box, "label": "cup"}]), f"{number}.png"
        content = [{"type": "text", "text": answer}] if as_parts else answer
        parts = [{"type": "image", "image": name}, {"type": "text", "text": "Where?"}]
        row = {"messages": [{"role": "user", "content": parts}]}
        if not as_parts:
            row = {"messages": [{"role": "user", "content": "<image>Where?"}], "images": [name]}
        row["messages"].append({"role": "assistant", "content": content})
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = diagnose(path, root=root).by_code("box_unit")
    assert "12 boxes as Qwen's bbox_2d" in found.found and "pixels as [x1, y1, x2, y2]" in found.found
    (source,) = open_data(path, root=root).sources
    mended, changed = mend(source)
    assert changed == count and not diagnose(mended, root=root).by_code("box_unit")
    answers = [record.answer for record in read_records(mended, root)]
    assert answers[0].startswith("<ref>cup</ref><box>[[") and parse_boxes(answers[0])[0][2] == 1000


@pytest.mark.parametrize("answer", [" Yes ", [{"type": "text", "text": " Yes "}]], ids=["text", "part"])
def test_answers_in_messages_are_mended(answer, save, root):
    path = save(["Yes"] * 3)
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    (source,) = open_data(path, root=root).sources
    mended, changed = mend(source)
    assert changed == 1 and " Yes" not in mended.read_text().splitlines()[3]
