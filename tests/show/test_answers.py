"""Replies beside the truth, picked by kind; bars a slice; asking one's own."""

import base64
import io
import re
from dataclasses import replace

import pytest
from PIL import Image, ImageCms

from ivlkit.errors import DataError
from ivlkit.evaluation.report import Report, Row
from ivlkit.show.answers import answers_live, report_page, slices_figure
from ivlkit.show.ask import ask_live

HOSTILE = "<script>alert(1)</script></div>\u202eevil"


def make_report(scores, *, reply="reply", tasks="ab"):
    rows = tuple(
        Row(f"test.jsonl:{n + 1}", "What?", "yes", f"{reply}-{n}.", float(score), extra={"task": tasks[n % len(tasks)]})
        for n, score in enumerate(scores)
    )
    return Report("exact_match", rows, {"model": "tiny"})


class TestSlices:
    def test_a_bar_is_the_score_of_its_value(self):
        figure = slices_figure(make_report([1, 0, 1, 0, 0, 0]), "task")
        assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([2 / 3, 0])
        assert "a 66.7% (" in figure.alt and "b 0.0% (" in figure.alt

    def test_before_and_after_have_a_bar_each(self):
        figure = slices_figure(make_report([1, 1]), "task", before=make_report([0, 1]))
        assert [bar.get_width() for bar in figure.axes[0].patches] == [0, 1, 1, 1]
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["before", "after"]

    def test_a_value_with_a_dollar_starts_no_formula(self):
        assert slices_figure(make_report([1, 0], tasks=["$x$", "日本"]), "task").to_image().width > 100

    def test_a_value_whose_letters_the_font_lacks_is_a_number_that_is_told_below(self):
        figure = slices_figure(make_report([1, 0], tasks=["é", "日本"]), "task")
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["é (1)", "#2 (1)"]
        assert ">#2 日本<" in figure.to_html()


class TestPageOfTwoReports:
    def test_rows_won_come_first_then_lost_then_wrong_in_both(self):
        before, after = make_report([0, 1, 0, 1], reply="before"), make_report([0, 1, 1, 0], reply="after")
        page = report_page(after, before=before)
        assert re.findall(r"after-\d", page) == ["after-2", "after-3", "after-0", "after-1"]
        assert re.findall(r"before-\d", page) == ["before-2", "before-3", "before-0", "before-1"]

    def test_a_group_says_how_many_rows_it_has_and_shows(self):
        page = report_page(make_report([1] * 50), before=make_report([0] * 50))
        assert "only the reply after is right (50 rows, 40 shown)" in page and page.count('class="card good"') == 40


@pytest.mark.parametrize(("rights", "wrongs_shown"), [(0, 48), (10, 38), (40, 24), (60, 24)])
def test_half_of_the_examples_are_wrong_and_more_where_few_are_right(rights, wrongs_shown):
    page = report_page(make_report([1] * rights + [0] * 60))
    assert page.count('class="card bad"') == wrongs_shown
    assert page.count('class="card good"') == 48 - wrongs_shown


class TestPicker:
    @pytest.fixture(autouse=True)
    def widgets(self):
        return pytest.importorskip("ipywidgets")

    def test_the_worst_rows_come_first(self):
        html = answers_live(make_report([1, 0.2, 0, 1]), rows=2).to_html()
        assert html.index("reply-2.") < html.index("reply-1.") and "reply-0." not in html
        assert "4 of 4 rows, 2 shown" in html

    def test_rows_that_turned_right_are_told_from_those_that_were(self):
        live = answers_live(make_report([1, 1, 0, 0], reply="after"), before=make_report([0, 1, 1, 0], reply="before"))
        live.controls[0].value = "turned right"
        assert "after-0." in live.to_html() and "before-0." in live.to_html() and "after-1." not in live.to_html()
        live.controls[0].value = "turned wrong"
        assert "after-2." in live.to_html() and "after-0." not in live.to_html()

    def test_a_slice_is_picked_by_its_value(self):
        live = answers_live(make_report([1, 0, 1, 0]))
        live.controls[0].value = "task: b"
        assert "reply-1." in live.to_html() and "reply-0." not in live.to_html()

    def test_values_that_read_alike_share_a_slice(self):
        live = answers_live(make_report([0, 0, 0, 0], tasks=[1, "1", None, "None"]))
        for name, numbers in {"task: 1": "01", "task: None": "23"}.items():
            live.controls[0].value = name
            assert re.findall(r"reply-(\d)", live.to_html()) == [*numbers]

    def test_reports_of_other_rows_are_refused(self):
        with pytest.raises(DataError, match="different rows"):
            make_report([1, 0]).show(before=make_report([1]))

    def test_hostile_replies_show_as_text(self):
        report = make_report([0, 1])
        report = replace(report, rows=tuple(replace(row, reply=HOSTILE, truth=HOSTILE) for row in report.rows))
        html = report.show().to_html()
        assert "<script" not in html and "\u202e" not in html and html.count("<div") == html.count("</div>")


class TestAsking:
    def test_a_given_question_is_answered_as_chat_does(self, tiny_vlm, draw_picture):
        picture = draw_picture()
        html = ask_live(tiny_vlm, "What number?", picture).to_html()
        reply = tiny_vlm.chat("What number?", images=picture).text
        assert reply[:8].strip() and "What number?" in html and 'alt="your picture"' in html
        assert ask_live(tiny_vlm, "What number?", picture).answers["nano"].strip() == reply

    def test_the_button_asks_what_was_typed_and_uploaded(self, tiny_vlm, draw_picture, upload):
        pytest.importorskip("ipywidgets")
        live = ask_live(tiny_vlm, "First?")
        chosen, question, button = live.controls
        buffer = io.BytesIO()
        draw_picture(64, 64).save(buffer, "png")
        question.value, chosen.value = "Second?", upload(buffer.getvalue())
        live.redraw = lambda: None
        button.click()
        assert "Second?" in live.to_html() and "<img" in live.to_html() and not button.disabled

    def test_an_upload_that_is_no_picture_is_named_in_the_answers_place(self, tiny_vlm):
        html = ask_live(tiny_vlm, "What?", io.BytesIO(b"<script>")).to_html()
        assert "your picture" in html and "<script>" not in html

    def test_without_a_question_nothing_is_asked(self, tiny_vlm, monkeypatch):
        monkeypatch.setattr(type(tiny_vlm), "chat", lambda *_, **__: pytest.fail("asked"))
        assert "press ask" in tiny_vlm.ask().to_html()


class TestPrivacy:
    SECRETS = (b"Secret", b"Exif", b"http://ns.adobe.com", "Secret".encode("utf-16-le"))

    @pytest.fixture
    def picture(self, tmp_path):
        """A phone's photo: who, where and what with, in EXIF, XMP, a comment and a colour profile's description."""
        exif = Image.Exif()
        exif[0x010F], exif[0x9286], exif[0x0112] = "SecretMaker", "Secret note", 6  # turned by 90 degrees
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 1.0), 29: "Secret date"})
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">Secret</x:xmpmeta>'
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"SecretProfile"
        noise = Image.effect_noise((320, 240), 90).convert("RGB")  # smaller as a JPEG
        path = tmp_path / "photo.jpg"
        noise.save(path, exif=exif, xmp=xmp, comment=b"Secret comment", icc_profile=profile)
        assert all(secret in path.read_bytes() for secret in self.SECRETS[:3])
        return path

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_nothing_of_a_photo_but_its_pixels_reaches_a_report(self, picture, tmp_path, in_memory):
        image = Image.open(picture) if in_memory else picture
        report = Report("m", (Row("a.jsonl:1", "What?", "x", "x", 1.0, images=(image,)),), {})
        page, saved = report.save_html(tmp_path / "page.html"), report.save_json(tmp_path / "report.json")
        html = page.read_text(encoding="utf-8")
        embedded = [base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", html)]
        assert embedded
        for content in (page.read_bytes(), saved.read_bytes(), *embedded):
            assert not any(secret in content for secret in self.SECRETS)
        for content in embedded:
            kept = set(Image.open(io.BytesIO(content)).info)
            assert kept <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}, kept
