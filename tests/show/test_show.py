import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.collate import collate
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import IGNORE_INDEX, encode
from ivlkit.data.rows.records import Record, Turn
from ivlkit.evaluation.evaluate import Report, Row
from ivlkit.models.checkup import check
from ivlkit.models.load import load
from ivlkit.show import diagrams, html
from ivlkit.show.answers import report_page
from ivlkit.show.dataset import record_html
from ivlkit.show.html import STYLE, page_html, picture_html, table_html, text_html
from ivlkit.show.model import folder_html, sizes_figure, tensors_html, vlm_html
from ivlkit.show.tokens import batch_html, tokens_html

HOSTILE = "<script>alert(1)</script></div>\u202eevil\u2066 &amp; \x00"


def visible(html):
    """HTML without its own style block."""
    return re.sub(r"<style>.*?</style>", "", html, flags=re.S)


class TestText:
    def test_markup_bidirectional_and_control_marks_show_as_text(self):
        html = text_html(HOSTILE)
        assert "<script" not in html and "</div>" not in html
        assert "&lt;script&gt;" in html and "&amp;amp;" in html
        assert "[U+202E]evil[U+2066]" in html and "[U+0000]" in html

    def test_a_line_of_a_megabyte_is_cut_with_its_length(self):
        html = text_html("x" * 1_000_000)
        assert len(html) < 2000 and "(1,000,000 characters)" in html

    def test_a_joiner_inside_a_word_stays(self):
        assert "می\u200cخواهم" in text_html("می\u200cخواهم")

    def test_each_line_has_the_direction_of_its_own_script(self):
        """`<image>` before a question in Arabic would else turn the question's order."""
        assert "unicode-bidi:plaintext" in text_html("<image>\nما هو الرقم؟")

    def test_a_table_escapes_every_cell(self):
        assert "<script" not in visible(table_html([(HOSTILE, HOSTILE)], header=(HOSTILE,), title=HOSTILE))

    def test_heads_and_titles_are_as_safe_as_cells(self):
        html = page_html(HOSTILE, table_html([], header=(HOSTILE, "x" * 1_000_000), title=HOSTILE))
        assert "\u202e" not in html and "\x00" not in html and len(html) < 20_000

    def test_half_a_surrogate_pair_can_be_written(self):
        """A file name that is not UTF-8 has it, and a JSON text may name it."""
        html = page_html("a\udcff", text_html("\ud800b") + table_html([("\udfff",)], header=("\udc00",)))
        assert "a[U+DCFF]" in html and "[U+D800]b" in html and html.encode()


def luminance(rgb):
    """Relative luminance as WCAG 2 defines it; rgb: 0 to 1."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(text, ground):
    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def over(colour, ground):
    """#rrggbbaa or #rgba in front of a ground."""
    digits = colour[1:] if len(colour) == 9 else "".join(2 * digit for digit in colour[1:])
    *rgb, alpha = (int(digits[place : place + 2], 16) / 255 for place in range(0, 8, 2))
    return [alpha * mine + (1 - alpha) * behind for mine, behind in zip(rgb, ground, strict=True)]


THEMES = {"light": ((0, 0, 0), (1, 1, 1)), "dark": ((1, 1, 1), (0x11 / 255,) * 3)}  # text, ground
WITHOUT_TEXT = (".bar ", ".share")
BACKGROUNDS = [
    (selector.strip(), colour)
    for selector, rules in re.findall(r"([^{}]+)\{([^}]*)\}", STYLE)
    for colour in re.findall(r"background: ([^;]+);", rules)
]


class TestThemes:
    """Text has the theme's own colour, so what stands behind it has to let the theme's ground through."""

    @pytest.mark.parametrize("theme", THEMES)
    def test_text_is_readable_on_every_background(self, theme):
        text, ground = THEMES[theme]
        behind_text = [colour for selector, colour in BACKGROUNDS if not any(name in selector for name in WITHOUT_TEXT)]
        tinted = [colour for colour in behind_text if colour != "none"]
        assert len(tinted) == 4 and all(contrast(text, over(colour, ground)) >= 4.5 for colour in tinted)

    def test_a_style_that_sets_a_background_on_an_element_sets_the_texts_colour(self):
        sources = [path.read_text(encoding="utf-8") for path in Path(html.__file__).parent.glob("*.py")]
        styles = [style for source in sources for style in re.findall(r'style="([^"]*)"', source)]
        assert len(styles) >= 3
        assert not [style for style in styles if "background" in style and not re.search(r"(^|;)\s*color:", style)]

    @pytest.mark.parametrize("ink", [diagrams.INK, diagrams.QUIET])
    @pytest.mark.parametrize("inverted", [0, 0.93])
    def test_ink_of_a_drawing_is_readable_on_its_ground_and_turned_over_too(self, ink, inverted):
        both = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in (ink, diagrams.GROUND)]
        assert contrast(*[[inverted * (1 - v) + (1 - inverted) * v for v in colour] for colour in both]) >= 4.5


def unstyled(html):
    """As GitHub shows it: no style sheet, no style or class of an element."""
    return re.sub(r' (?:style|class)="[^"]*"', "", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


class TestWithoutStyles:
    """What colour says on a notebook's page is also said by elements and words, for sites that strip styles."""

    def test_every_kind_of_token_looks_another_way(self, processor):
        image = Image.new("RGB", (112, 112), "red")
        turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "Red"))
        long, short = (Record(id=n, turns=turns, images=(image,) * (n == 0), where="a:1") for n in range(2))
        short = replace(short, turns=(Turn("user", "What?"), turns[1]))
        batch = collate([encode(record, processor) for record in (long, short)], pad_token_id=2)
        html = unstyled(batch_html(batch, processor))
        marks = {}  # kind → what stands before a token of it
        for kind, inner in re.findall(r'<span title="places? [^"]*?, (\w+):[^"]*">(.*?)<sub>', html):
            marks.setdefault(kind, set()).add("".join(re.findall(r"^(?:<img [^>]*>)?((?:<\w+>)*)", inner)))
        assert marks == {
            "trained": {"<u><b>"},
            "masked": {""},
            "special": {"<code>"},
            "image": {"<i>"},
            "padding": {"<s>"},
        }
        assert "<i>[tile 1: 16 ×" in html

    def test_a_chip_says_on_hover_what_the_loss_does_with_it(self, processor):
        turns = (Turn("user", "What?"), Turn("assistant", "Red"))
        record = Record(id=0, turns=turns, where="a:1")
        first = int(np.flatnonzero(encode(record, processor).labels != IGNORE_INDEX)[0])
        html = tokens_html(record, processor)
        assert f"place {first}, trained: the loss compares it with what is said at place {first - 1}" in html
        assert f"place {first - 1}, masked: not trained" in html

    def test_right_and_wrong_cards_and_their_ends_are_told(self):
        rows = [Row(f"a:{n}", "What?", "yes", "yes", float(n)) for n in range(2)]
        html = unstyled(report_page(Report("exact_match", tuple(rows), {})))
        cards = html.split("<h3>Examples</h3>")[1].split("<hr>")
        assert ["✗ wrong" in cards[0], "✓ right" in cards[1]] == [True, True] and len(cards) == 3
        assert "✗" not in cards[1] and "✓" not in cards[0]


class TestPictures:
    def test_a_picture_is_embedded_with_its_alternative_text(self):
        html = picture_html(Image.new("RGB", (900, 300), "red"), alt='a "red" strip')
        assert html.startswith('<img src="data:image/png;base64,') and 'alt="a &quot;red&quot; strip"' in html

    def test_a_picture_that_is_gone_is_named_in_its_place(self, tmp_path):
        record = Record(id=0, turns=(Turn("user", "What?"),), images=(tmp_path / "gone.png",), where="train.jsonl:7")
        assert "train.jsonl:7: picture" in record_html(record) and "does not exist" in record_html(record)


class TestPages:
    def page(self, **options):
        image = Image.new("RGB", (64, 64), "white")
        rows = [
            Row(f"test.jsonl:{n}", HOSTILE, "yes", HOSTILE, float(n % 2), images=(image,), extra={"task": f"t{n % 3}"})
            for n in range(60)
        ]
        report = Report("exact_match", tuple(rows), {"model": HOSTILE})
        return report_page(report, before=report if options.get("before") else None)

    def test_a_report_is_one_file_without_links_to_elsewhere(self):
        page = self.page()
        assert page.startswith("<!doctype html>")
        assert not re.findall(r"(?:src|href)=\"(?!data:)", page) and "http" not in page
        assert len(page) < 10_000_000

    def test_a_report_shows_wrong_rows_and_right_ones(self):
        page = self.page()
        assert page.count('class="card bad"') == 24 and page.count('class="card good"') == 24

    def test_before_and_after_stand_in_one_table(self):
        assert "<td>" in self.page(before=True) and ">before<" in self.page(before=True)

    def test_text_of_the_data_cannot_leave_its_place(self):
        assert "<script" not in self.page(before=True)


class TestModels:
    def test_sizes_are_drawn_to_scale_beside_what_the_machine_has(self):
        from ivlkit.hardware import machine

        axes = sizes_figure(replace(machine(), disk_free_gib=50.0, ram_free_gib=200.0, gpus=())).axes[0]
        widths = [round(sum(bar.get_width() for bar in axes.patches[3 * row : 3 * row + 3]), 1) for row in range(3)]
        assert widths == [4.4, 8.3, 51.0]
        assert [text.get_text() for text in axes.texts[3:]] == ["free disk 54 GB", "free RAM 215 GB →"]

    def test_weights_in_4_bits_count_as_many_parameters(self, tiny):
        pytest.importorskip("bitsandbytes")
        whole, small = (vlm_html(load(tiny, quantize=how)) for how in (None, "4bit"))
        counts = re.findall(r"[\d,]+ parameters", whole)
        assert len(counts) == 3 and counts == re.findall(r"[\d,]+ parameters", small)

    def test_a_folder_is_told_file_by_file_and_part_by_part(self, tiny):
        assert "what it holds" in folder_html(tiny) and "a JSON header, then plain numbers" in folder_html(tiny)
        html = tensors_html(tiny)
        assert all(part in html for part in ("vision tower", "projector", "language model", "mlp1.1.weight"))


def test_a_gallery_shows_the_first_rows_and_the_size(tmp_path):
    line = '{"conversations": [{"from": "human", "value": "<b>Hi</b>"}, {"from": "gpt", "value": "Hello"}]}\n'
    (tmp_path / "train.jsonl").write_text(line * 20)
    html = open_data(tmp_path / "train.jsonl")._repr_html_()
    assert "20 rows" in html and html.count('class="card ') == 8 and "&lt;b&gt;Hi" in html


def test_a_contact_sheet_names_a_row_that_can_not_be_read_in_its_place(write_rows, turns):
    path = write_rows([{"conversations": turns("Q", "first")}, {"conversations": turns("Q")}])
    html = check(str(path), progress=False).contact_sheet(open_data(path)).data
    assert re.findall(r'class="card (\w+)"', html) == ["good", "bad"]
    assert html.index("first") < html.index("train.jsonl:2: the row ends with a user turn")


def test_memory_is_a_bar_a_setting_under_the_line_of_the_card():
    from ivlkit.show.charts import MEMORY_COLOURS as COLOURS
    from ivlkit.show.charts import memory_figure

    parts = {"a": dict.fromkeys(COLOURS, 2**30), "b": dict.fromkeys(COLOURS, 2**31)}
    (axes,) = memory_figure(parts, card_gib=8, measured={"b": 9.5}).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert max(ends[:5]) == 5 and max(ends[5:]) == 10
    assert axes.collections[0].get_offsets().tolist() == [[9.5, 1]]
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(words) == sorted([*COLOURS, "measured", "8 GiB card"])
