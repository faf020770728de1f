"""Diagrams: their sizes are those of real models, rows and plans; their labels fit and stay apart."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image, ImageFont

from ivlkit.data.encode import encode
from ivlkit.data.rows.records import Record, Turn
from ivlkit.models.families import FAMILIES
from ivlkit.models.load import load, meta_copy
from ivlkit.models.processor import load_processor
from ivlkit.models.shapes import config_of
from ivlkit.show import diagrams, inside
from ivlkit.show.figure import BLUE, ShownFigure
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu: wider than what most systems show
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def row():
    """A row of nano: a picture of a number, and the processor."""
    processor = load_processor("nano")
    turns = (Turn("user", "<image>\nRead the number."), Turn("assistant", "2533"))
    return encode(Record(id=0, turns=turns, images=(Image.new("RGB", (224, 112)),), where="a:1"), processor), processor


@pytest.fixture(scope="module")
def drawings(row):
    return {
        "course": diagrams.course_map(),
        **{f"parts {name}": diagrams.parts_diagram(name) for name in ("nano", "2b", "4b", "26b")},
        "shift": diagrams.shift_diagram(*row),
        **{f"lora {name}": diagrams.lora_diagram(recipe(name)) for name in ("nano-lora", "4b-lora", "26b-lora")},
        "packing": diagrams.packing_diagram([300, 80, 0, 120, 90, 110, 500], bin_tokens=512),
        "zero": diagrams.zero_diagram("2b-full"),
        "zero of many": diagrams.zero_diagram("26b-full", gpus=(8, 16, 64)),
    }


NAMES = ["course", "parts nano", "parts 2b", "parts 4b", "parts 26b", "shift", "lora nano-lora", "lora 4b-lora"]
NAMES += ["lora 26b-lora", "packing", "zero", "zero of many"]


def elements(drawing, kind):
    root = ElementTree.fromstring(drawing.to_svg())
    return root.findall(f"{{http://www.w3.org/2000/svg}}{kind}")


def texts(drawing):
    return [each.text for each in elements(drawing, "text")]


def labels(drawing):
    """(text, left, top, right, bottom) of each label, measured."""
    for each in elements(drawing, "text"):
        size = int(each.get("font-size"))
        name = "DejaVuSans-Bold.ttf" if each.get("font-weight") else "DejaVuSans.ttf"
        left, top, right, bottom = ImageFont.truetype(FONTS / name, size).getbbox(each.text, anchor="ms")
        x, y = float(each.get("x")), float(each.get("y"))
        yield each.text, x + left, y + top, x + right, y + bottom


def boxes(drawing):
    """(left, top, right, bottom) of each rectangle, the ground first."""
    for each in elements(drawing, "rect"):
        x, y, width, height = (float(each.get(name) or 0) for name in ("x", "y", "width", "height"))
        yield x, y, x + width, y + height


def test_all_six_are_looked_at_here(drawings):
    assert set(NAMES) == set(drawings)
    drawn = {name for name, value in vars(diagrams).items() if name.endswith(("_diagram", "_map")) and callable(value)}
    assert {f"{name.split()[0]}_{'map' if name == 'course' else 'diagram'}" for name in NAMES} == drawn


@pytest.mark.parametrize("name", NAMES)
class TestLabels:
    def test_none_is_small_or_leaves_the_picture(self, drawings, name):
        assert all(int(each.get("font-size")) >= 12 for each in elements(drawings[name], "text"))
        ground = next(boxes(drawings[name]))
        for text, left, top, right, bottom in labels(drawings[name]):
            assert ground[0] < left and right < ground[2] and ground[1] < top and bottom < ground[3], text

    def test_no_two_overlap(self, drawings, name):
        placed = list(labels(drawings[name]))
        for number, (text, left, top, right, bottom) in enumerate(placed):
            for other, other_left, other_top, other_right, other_bottom in placed[:number]:
                apart = left > other_right or other_left > right or top > other_bottom or other_top > bottom
                assert apart, f"{text} and {other}"

    def test_what_begins_in_a_box_ends_in_it(self, drawings, name):
        for text, left, top, right, bottom in labels(drawings[name]):
            x, y = (left + right) / 2, (top + bottom) / 2
            for box in list(boxes(drawings[name]))[1:]:
                if box[0] < x < box[2] and box[1] < y < box[3]:
                    assert box[0] <= left and right <= box[2] and box[1] <= top and bottom <= box[3], text

    def test_it_is_a_picture_with_words_for_who_does_not_see_it(self, drawings, name):
        html = drawings[name].to_html()
        (source,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
        assert base64.b64decode(source).decode() == drawings[name].to_svg()
        assert len(re.findall(r'alt="([^"]{40,1500})"', html)) == 1
        assert "style" not in drawings[name].to_svg()  # sites strip it


def test_a_dark_theme_turns_charts_over_and_never_photos():
    chart, photo = ShownFigure(alt="a line", figsize=(1, 1)), ShownFigure(alt="a photo", figsize=(1, 1))
    chart.subplots().plot([0, 1])
    photo.subplots().imshow(Image.new("RGB", (4, 4)))
    assert 'class="drawn"' in chart.to_html() and 'class="drawn"' not in photo.to_html()
    assert diagrams.course_map().to_html().startswith("<style>[data-jp-theme-light=false] .drawn")


def test_every_notebook_has_its_place_on_the_map():
    named = [text for text in texts(diagrams.course_map()) if re.fullmatch(r"\d\d|my_project", text)]
    there = [re.match(r"\d\d|my_project", path.stem)[0] for path in NOTEBOOKS.glob("*.ipynb")]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("name", ["nano", "4b"])
def test_the_parts_have_the_shapes_of_the_model_itself(drawings, name):
    steps = inside._steps_of_a_tile(config_of(name)[0])  # of the modules, on torch's meta device
    for part in ("vision tower", "pixel shuffle", "projector"):
        shape = " × ".join(steps[part].strip("[]").split(", ")[1:])
        assert f"{part} gives {shape}, " in drawings[f"parts {name}"].alt and shape in texts(drawings[f"parts {name}"])
    assert steps["language model"].split(" of ")[0] in texts(drawings[f"parts {name}"])  # "5 layers"


class TestShift:
    def test_labels_stand_below_their_own_tokens(self, row):
        drawing = diagrams.shift_diagram(*row)
        places = {each.get("x"): [] for each in elements(drawing, "text")}
        for each in elements(drawing, "text"):
            places[each.get("x")].append(each.text)
        columns = [column for column in places.values() if column[0].startswith("place ")]
        names = ["n", "t", "↵", "2", "5", "3", "3", "<|im_end|>"]
        labels = ["-100"] * 3 + names[3:]
        first = len(row[0]) - 8
        assert columns == [[f"place {first + n}", names[n], labels[n]] for n in range(8)]

    def test_an_arrow_leads_from_each_place_to_the_label_of_the_next_and_is_blue_where_it_is_trained(self, row):
        drawing = diagrams.shift_diagram(*row)
        ends = [each.get("points").split()[0].split(",") for each in elements(drawing, "polygon")]
        starts = [each.get("points").split()[0].split(",") for each in elements(drawing, "polyline")]
        columns = [float(each.get("x")) for each in elements(drawing, "text") if each.text.startswith("place ")]
        assert [float(x) for x, _ in starts] == columns[:-1] and [float(x) for x, _ in ends] == columns[1:]
        colours = [each.get("fill") for each in elements(drawing, "polygon")]
        assert [colour == BLUE for colour in colours] == [False] * 2 + [True] * 5

    def test_a_row_shorter_than_the_picture_is_shown_whole(self, row):
        short = replace(row[0], input_ids=row[0].input_ids[-3:], labels=row[0].labels[-3:])
        assert [text for text in texts(diagrams.shift_diagram(short, row[1])) if text.startswith("place ")] == [
            "place 0",
            "place 1",
            "place 2",
        ]


def test_lora_has_the_matrices_that_training_adds(drawings):
    chosen = recipe("nano-lora")
    model = prepare(meta_copy(load("nano")), chosen)
    sizes = {
        name.split(".down_proj.")[1].split(".")[0]: list(value.shape)
        for name, value in model.named_parameters()
        if "language_model.layers.0.mlp.down_proj" in name
    }
    said = texts(drawings["lora nano-lora"])
    assert f"W of down_proj: {' × '.join(map(str, sizes['base_layer']))}" in said
    assert f"B: {' × '.join(map(str, sizes['lora_B']))}" in said
    assert f"A: {' × '.join(map(str, sizes['lora_A']))}" in said
    assert "11,264 trained: 11.5%" in said and "98,304 frozen" in said  # 192 · 16 + 16 · 512, of 192 · 512
    assert f"x + {chosen.lora_alpha // chosen.lora_rank} ·" in said


class TestPacking:
    def test_every_row_stays_whole_and_what_is_empty_is_said(self):
        drawing = diagrams.packing_diagram([100, 0, 50, 50, 150], bin_tokens=200)
        assert "4 rows of 50 to 150 tokens: padded to the longest 42% empty" in drawing.alt  # 250 of 600
        assert "in 2 bins of 200 tokens, 12% empty" in drawing.alt  # 50 of 400
        widths = [each.get("width") for each in elements(drawing, "rect") if each.get("fill") == BLUE]
        assert sorted(widths) == sorted(2 * [f"{730 * count / 200:.1f}" for count in (50, 50, 100, 150)])
        assert sorted(text for text in texts(drawing) if text.isdigit()) == sorted(2 * ["1", "2", "3", "4"])

    def test_of_many_rows_the_longest_and_the_shortest_are_drawn_and_all_are_counted(self):
        drawing = diagrams.packing_diagram([150] * 10 + [50] * 12, bin_tokens=300)
        assert "22 rows" in drawing.alt and "in 7 bins of 300 tokens, 0% empty" in drawing.alt
        assert "padded to the longest 36% empty" in drawing.alt  # 1,200 of 3,300
        assert "8 of 22 rows drawn, all counted" in texts(drawing)  # 2 of 150 and 6 of 50

    def test_a_row_longer_than_a_bin_has_one_of_its_own(self):
        drawing = diagrams.packing_diagram([300, 75], bin_tokens=200)
        assert "in 2 bins of 200 tokens, 25% empty" in drawing.alt  # 125 of 500


def test_zero_divides_what_its_authors_say(drawings):
    """Rajbhandari et al. 2020: 2 bytes of weights, 2 of gradients, 12 of Adam's state a trained value."""
    tower, *trained = FAMILIES["2b"].parts
    frozen, trained = 2 * tower, sum(trained)
    expected = {
        "ZeRO-1 divides optimizer": [frozen + 4 * trained + 12 * trained / gpus for gpus in (2, 4, 8)],
        "ZeRO-2 divides gradients, optimizer": [frozen + 2 * trained + 14 * trained / gpus for gpus in (2, 4, 8)],
        "ZeRO-3 divides weights, gradients, optimizer": [(frozen + 16 * trained) / gpus for gpus in (2, 4, 8)],
    }
    for said, sizes in expected.items():
        assert f"{said}: {', '.join(f'{size / 2**30:.1f} GiB' for size in sizes)}" in drawings["zero"].alt
    assert "DDP divides nothing" in drawings["zero"].alt
