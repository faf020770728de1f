"""Galleries: rows with questions, answers and boxes; the doctor's findings beside the rows they are about."""

import io
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import Record, Turn
from ivlkit.models.checkup import check
from ivlkit.show.dataset import draw_boxes, gallery_html, gallery_live, named_boxes, record_html
from ivlkit.show.doctor import report_html
from ivlkit.show.figure import ShownFigure
from ivlkit.show.findings import _draw_answers

HOSTILE = "<script>alert(1)</script></div>\u202eevil"


def hrefs(html):
    return re.findall(r'href="#([^"]+)"', html)


class TestBoxes:
    def test_names_and_boxes_are_read_in_order(self):
        text = "<ref>cup</ref><box>[[100, 200, 300, 400]]</box> and <box>[[0, 0, 10, 10], [5, 5, 9, 9]]</box>"
        found = [("cup", (100, 200, 300, 400)), ("", (0, 0, 10, 10)), ("", (5, 5, 9, 9))]
        assert named_boxes(text) == found
        assert named_boxes("<ref><5 mm</ref><box>[[0, 0, 10, 10]]</box>") == [("<5 mm", (0, 0, 10, 10))]

    def test_a_box_is_drawn_in_thousandths_of_the_picture(self):
        drawn = np.asarray(draw_boxes(Image.new("RGB", (400, 200), "black"), [("", (250, 500, 750, 1000))]))
        coloured = (drawn == (0xD5, 0x5E, 0x00)).all(axis=-1)
        rows, cols = np.where(coloured)
        assert abs(cols.min() - 100) <= 1 and abs(cols.max() - 299) <= 1
        assert abs(rows.min() - 100) <= 1 and rows.max() >= 198

    def test_a_name_that_cannot_be_drawn_becomes_a_number(self):
        def drawn(name):
            return draw_boxes(Image.new("RGB", (200, 200)), [(name, (0, 0, 900, 900))]).tobytes()

        assert drawn("猫") == drawn("a猫") == drawn("") == drawn("1")
        assert len({drawn("Ä"), drawn("Ö"), drawn("Я"), drawn("1")}) == 4

    def test_swapped_corners_and_numbers_outside_are_drawn_inside(self):
        drawn = draw_boxes(Image.new("RGB", (50, 50), "black"), [("a", (2000, 900, -5, 100))])
        assert drawn.size == (50, 50) and np.asarray(drawn).any()

    def test_the_picture_itself_stays_as_it_was(self):
        image = Image.new("RGB", (50, 50), "black")
        draw_boxes(image, [("", (0, 0, 500, 500))])
        assert not np.asarray(image).any()

    def test_a_row_with_boxes_names_them_in_the_alternative_text(self):
        answer = "<ref>the <cup</ref><ref>cup</ref><box>[[100, 200, 300, 400]]</box>"
        turns = (Turn("user", "<image>\nWhere?"), Turn("assistant", answer))
        html = record_html(Record(id=0, turns=turns, images=(Image.new("RGB", (60, 40)),), where="a:1"))
        assert 'alt="picture of a:1, cup"' in html


class TestFindings:
    @pytest.fixture
    def folder(self, write_rows, turns, tmp_path):
        Image.new("RGB", (64, 64), "red").save(tmp_path / "there.png")
        return write_rows(
            [
                {"image": "there.png", "conversations": turns("Fine?", "Yes")},
                {"image": "gone.png", "conversations": turns("Fine?", "No")},
                {"image": "there.png", "conversations": turns("Nothing?", HOSTILE)[:1]},
            ]
        )

    def test_every_finding_of_a_row_links_to_its_card_and_back(self, folder, tiny):
        report = check(folder, tiny)
        html = gallery_html(open_data(folder), report=report)
        targets = set(re.findall(r'id="([^"]+)"', html))
        about_rows = [problem for problem in report.problems if problem.row is not None]
        assert len(about_rows) >= 2 and set(hrefs(html)) <= targets
        assert len([link for link in hrefs(html) if link.startswith("row-")]) == len(about_rows)

    def test_a_row_that_cannot_be_read_stands_in_its_place(self, folder, tiny):
        html = gallery_html(open_data(folder))
        assert html.count('class="card bad"') == 1 and "ends with a user turn" in html

    def test_histograms_stand_there_with_their_alternative_text(self, folder, tiny):
        report = check(folder, tiny)
        html = gallery_html(open_data(folder), report=report)
        assert re.search(r'alt="1 usable rows, \d+ pictures?; tokens of a row: median \d+', html)
        assert "usable rows" in report_html(report)

    def test_answers_whose_letters_the_font_lacks_are_numbers_that_are_told_below(self, write_rows, turns, tiny):
        report = check(write_rows([{"conversations": turns("Q", answer)} for answer in ("猫", "é", "猫", "か")]), tiny)
        html = report_html(report)
        assert ">#1 猫, #3 か<" in html
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "Glyph 29483 missing"
            figure = ShownFigure(alt="")
            _draw_answers(figure.subplots(), report.stats["answers"])
            figure.savefig(io.BytesIO())
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == ["#1", "é", "#3"] and figure.axes[0].yaxis_inverted()

    def test_nothing_usable_draws_no_empty_axes(self, write_rows, turns, tiny):
        report = check(write_rows([{"image": "gone.png", "conversations": turns("Q", "A")}]), tiny)
        assert "<img" not in report_html(report)


def test_picking_the_first_row_turns_the_page(write_rows, turns):
    pytest.importorskip("ipywidgets")
    data = open_data(write_rows([{"conversations": turns("Q", f"answer-{number}.")} for number in range(30)]))
    live = gallery_live(data, rows=4)
    assert "answer-3." in live.to_html() and "answer-4." not in live.to_html()
    live.controls[0].value = 28
    assert "answer-29." in live.to_html() and "answer-3." not in live.to_html()
    assert "answer-0." in data.show().to_html()


def test_hostile_rows_show_as_text(write_rows, turns):
    data = open_data(write_rows([{"conversations": turns(HOSTILE, HOSTILE)}]))
    html = re.sub(r"<style>.*?</style>", "", gallery_html(data), flags=re.S)
    assert "<script" not in html and "\u202e" not in html and html.count("<div") == html.count("</div>")
