"""The drawn curriculum: what a row holds, and that the splits differ."""

import itertools
import json
import random
import re
from functools import cache
from string import ascii_lowercase

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageColor, ImageDraw
from train import SEEN_SHARES, TEXT_SHARES

from ivlkit.data.encode import encode
from ivlkit.data.tiling import choose_grid
from ivlkit.evaluation.boxes import parse_boxes
from ivlkit.nano import drawing, scene, vocabulary
from ivlkit.nano.curriculum import TASK_SHARES, TASKS, Curriculum, make_sample, write_curriculum
from ivlkit.nano.printed import ITEMS
from ivlkit.nano.scene import MATERIAL
from ivlkit.nano.texts import OPPOSITES
from ivlkit.nano.vocabulary import split_of, ways_to_write

TEXT_TASKS = {"name", "simple_sum", "repeat_word", "opposite", "from_text"}


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def samples(task, count, *, split="train"):
    """(sample, question, answer) of the first turn."""
    drawn = [make_sample(task, random.Random(seed), split=split) for seed in range(count)]
    return [(sample, *sample.turns[0]) for sample in drawn]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", MATERIAL)
def test_a_sample_has_its_pictures_questions_and_answers_and_the_tiles_it_was_drawn_for(task, split):
    for sample, _, _ in samples(task, 25, split=split):
        expected = {0} if task in TEXT_TASKS else {2} if task == "two_pictures" else {1, 2}
        assert len(sample.pictures) in expected
        for picture in sample.pictures:
            assert picture.mode == "RGB"
            assert 98 <= picture.width <= 672
            assert 98 <= picture.height <= 448
            assert len(picture.getcolors(1 << 20)) > 1  # something is drawn
            columns, rows = choose_grid(*picture.size, max_tiles=12, tile_px=112)
            assert picture.width / columns == pytest.approx(picture.height / rows, rel=0.02)
            assert picture.width <= 112 * columns
        for question, answer in sample.turns:
            assert question and answer
            assert "{" not in question + answer


def test_every_task_has_a_share():
    assert TASK_SHARES.keys() == TASKS.keys()
    assert SEEN_SHARES.keys() <= TASKS.keys()
    assert TEXT_SHARES.keys() == TEXT_TASKS


def test_splits_share_neither_words_nor_fonts():
    train, validation = MATERIAL["train"], MATERIAL["validation"]
    assert len(train.words) == len(set(train.words)) >= 150
    assert not set(train.words) & set(validation.words)
    assert not set(train.fonts) & set(validation.fonts)


def word_of(question, answer):
    """The word that is read, repeated or spelt, in small letters."""
    return re.sub(r'.* is "(\w+)"\.', r"\1", answer).replace("-", "").replace("İ", "i").lower()


@pytest.mark.parametrize("task", ["unknown_word", "repeat_word"])
def test_splits_share_no_made_up_word(task):
    train, validation = ({word_of(*turn) for _, *turn in samples(task, 1500, split=split)} for split in MATERIAL)
    assert min(len(train), len(validation)) > 900  # so that many are made up
    assert not train & validation
    assert {split_of(word) for word in train} == {"train"}
    assert {split_of(word) for word in validation} == {"validation"}


def test_real_words_are_in_the_split_that_lists_them():
    assert split_of("garden") == "train"
    assert split_of("candle") == "validation"


def test_an_eighth_of_more_than_a_hundred_thousand_made_up_words_is_held_out():
    rng = random.Random(0)
    words = {vocabulary._made_up_word(rng) for _ in range(200_000)}
    assert len(words) > 100_000
    assert sum(split_of(word) == "validation" for word in words) / len(words) == pytest.approx(1 / 8, abs=0.01)
    assert {len(word) for word in words} == {3, 4, 5, 6}


def test_no_word_of_the_other_split_is_sold_or_told():
    shown = {*ITEMS, *(word for pair in OPPOSITES for word in pair)}
    assert not shown & set(vocabulary.HELD_OUT_WORDS)


def test_a_word_is_never_written_so_that_its_print_could_be_another():
    assert ways_to_write("lamp") == [str.lower, str.title, str.upper]
    assert ways_to_write("sun") == [str.lower, str.upper]  # Sun may be sun
    assert ways_to_write("ice") == [str.lower]  # Ice may be lce, ICE may be lCE
    assert ways_to_write("cow") == []
    for words in (vocabulary.WORDS, vocabulary.HELD_OUT_WORDS):
        assert all(str.lower in ways_to_write(word) for word in words)


@pytest.mark.parametrize("split", MATERIAL)
def test_print_has_no_capital_that_could_be_a_small_letter_and_no_letter_that_could_be_a_digit(split):
    for task in ("printed_word", "unknown_word", "printed_lines"):
        for _, _, answer in samples(task, 300, split=split):
            for word in re.findall(r"\w+", answer.removeprefix("The word is ")):
                assert word.isdigit() or (word.isalpha() and len(word) >= 3)
                assert "I" not in word
                assert word.isdigit() or set(word) - set("cosuvwxzCOSUVWXZ"), word


def test_the_letters_said_to_grow_are_those_whose_capital_is_a_larger_copy_in_some_font():
    fonts = scene.FONTS + scene.HELD_OUT_FONTS
    alike = {letter for letter in ascii_lowercase for name in fonts if unlike(letter, letter.upper(), name) < 0.095}
    assert alike == vocabulary.GROWING | set("ij")  # which have a dot


def test_a_letter_with_an_accent_grows_only_if_it_does_without():
    fonts = drawing.fonts_for("é", scene.FONTS + scene.HELD_OUT_FONTS)
    pairs = [(letter, letter.upper()) for letter in vocabulary.SMALL_ACCENTED if letter not in "ßı"]
    alike = {small for small, capital in pairs for name in fonts if unlike(small, capital, name) < 0.095}
    assert set(vocabulary.without_accents("".join(alike))) <= vocabulary.GROWING | set("i")


def test_every_accent_is_printed_on_its_capital_too():
    small = vocabulary.SMALL_ACCENTED
    written = {letter: {way(f"b{letter}d") for way in ways_to_write(f"b{letter}d")} for letter in small}
    assert written["ö"] == {"böd", "Böd", "BÖD"}
    assert written["ı"] == {"bıd", "Bıd"}  # BID may be BlD
    assert written["ß"] == {"bßd", "Bßd"}  # BSSD may be bssd
    assert all(f"B{letter.upper()}D" in words for letter, words in written.items() if letter not in "ıß")
    assert [way("değil") for way in ways_to_write("değil")] == ["değil", "Değil", "DEĞİL"]


def test_an_i_in_capitals_looks_like_a_small_l_and_is_never_printed():
    assert unlike("I", "l", "DejaVuSans-Bold") == 0


@pytest.mark.parametrize("font_name", scene.FONTS + scene.HELD_OUT_FONTS)
def test_letters_in_words_do_not_look_like_digits_of_numbers(font_name):
    for letter, digit in (("l", "1"), ("B", "8"), ("S", "5"), ("Z", "2"), ("b", "6"), ("g", "9")):
        assert unlike(letter, digit, font_name) > 0.08, (letter, digit)


def unlike(one, other, font_name):
    """Share of ink that differs when both are cut out and brought to one size."""
    masks = []
    for character in (one, other):
        mask = Image.new("L", (160, 160))
        ImageDraw.Draw(mask).text((30, 10), character, fill=255, font=drawing.font_of(font_name, 100))
        masks.append(np.asarray(mask.crop(mask.getbbox()).resize((40, 40))) > 127)
    return (masks[0] != masks[1]).mean()


@pytest.mark.parametrize("split", MATERIAL)
def test_unknown_words_are_printed_in_letters_of_one_and_a_half_patches(split):
    for sample, question, answer in samples("unknown_word", 200, split=split):
        picture, word = sample.pictures[0], word_of(question, answer)
        tiles, _ = choose_grid(*picture.size, max_tiles=12, tile_px=112)
        pixels = np.asarray(picture).astype(int)
        columns = np.where((abs(pixels - pixels[0, 0]).sum(2) > 60).any(0))[0]
        width_px = (columns.max() - columns.min()) * 112 * tiles / picture.width
        height_px = np.ptp(np.where((abs(pixels - pixels[0, 0]).sum(2) > 60).any(1))[0])
        assert width_px / len(word) >= 1.5 * 14 or height_px >= 3 * 14, answer  # "lie" is narrow, but then tall


@pytest.fixture
def letters_and_fonts(monkeypatch):
    """What every text that is drawn consists of: (text, path of its font)."""
    found, text = [], ImageDraw.ImageDraw.text

    def note(self, xy, drawn, *given, font, **named):
        found.append((drawn, font.path))
        text(self, xy, drawn, *given, font=font, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return found


@pytest.mark.parametrize("task", ["printed_word", "unknown_word", "printed_lines"])
@pytest.mark.parametrize("split", MATERIAL)
def test_no_letter_is_missing_in_the_font_that_draws_it(task, split, letters_and_fonts):
    samples(task, 300, split=split)
    assert sum(not text.isascii() for text, _ in letters_and_fonts) > 50
    for text, path in letters_and_fonts:
        assert not {*map(ord, text)} - glyphs(path).keys(), path
        assert text.isascii() or not path.name.startswith(
            "cm"
        )  # their table says that they have an "Ä", and it is another sign


@cache
def glyphs(path):
    return TTFont(path).getBestCmap()


def test_every_font_for_accents_has_every_letter_and_no_two_are_drawn_alike():
    for name in drawing.fonts_for("é", scene.FONTS + scene.HELD_OUT_FONTS):
        font = drawing.font_of(name, 40)
        assert not {*map(ord, vocabulary.ACCENTED)} - glyphs(font.path).keys(), name
        drawn = {bytes(font.getmask(letter)) for letter in vocabulary.ACCENTED}
        assert len(drawn) == len(vocabulary.ACCENTED) == 105


def test_three_in_ten_made_up_words_have_one_accent():
    rng, no_words = random.Random(0), scene.Material("train", ("-",), scene.FONTS)
    made_up = [word for word in (vocabulary.new_word(rng, no_words) for _ in range(4000)) if word != "-"]
    accents = [sum(letter in vocabulary.ACCENTED for letter in word) for word in made_up]
    assert set(accents) == {0, 1}
    assert sum(accents) / len(made_up) == pytest.approx(0.3, abs=0.03)
    assert {letter for word in made_up for letter in word if not letter.isascii()} == set(vocabulary.SMALL_ACCENTED)


def test_words_with_accents_are_in_both_splits():
    counts = [sum(not word.isascii() for word in MATERIAL[split].words) for split in ("train", "validation")]
    assert counts == [66, 16]
    assert vocabulary.without_accents("Łódź weiß cœur") == "Lodz weis cour"


def test_splits_share_no_picture(tmp_path):
    for split in MATERIAL:
        write_curriculum(tmp_path / split, 100, split)
    train, validation = ({path.read_bytes() for path in (tmp_path / split / "images").iterdir()} for split in MATERIAL)
    assert not train & validation


@pytest.mark.parametrize("font_name", scene.FONTS + scene.HELD_OUT_FONTS)
def test_print_never_leaves_its_box(font_name):
    words = [*vocabulary.WORDS, *vocabulary.HELD_OUT_WORDS, "0", "888888"]
    for text in [*words, *map(str.upper, words), *map(str.title, words)]:
        font = drawing.font_of(font_name, int(drawing.largest_print_px(text, font_name, 250, 100)))
        left, top, right, bottom = font.getbbox(text)
        assert right - left <= 250 + drawing.EDGE_PX  # the box has one more on each side; Pillow builds differ by 2 px
        assert bottom - top <= 100 + drawing.EDGE_PX


@pytest.mark.parametrize("task", ["printed_word", "unknown_word", "printed_rows", "printed_lines", "receipt", "chart"])
@pytest.mark.parametrize("split", MATERIAL)
def test_print_does_not_touch_the_edge_of_its_picture(task, split):
    for sample, question, _ in samples(task, 60, split=split):
        pixels = np.asarray(sample.pictures[0])
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == pixels[0, 0]).all(), question


@pytest.fixture
def printed(monkeypatch):
    """What was printed or filled last, as boxes (left, top, right, bottom) in px: (texts, bars)."""
    texts, bars = [], []
    print_small, draw_bar = drawing.print_small, drawing.draw_bar

    def note_text(picture, x, y, text, *, ink, font, anchor="lm"):
        texts.append(font.getbbox(text, anchor=anchor))
        texts[-1] = tuple(edge + (x, y)[place % 2] for place, edge in enumerate(texts[-1]))
        print_small(picture, x, y, text, ink=ink, font=font, anchor=anchor)
        assert font.size >= 14

    def note_bar(picture, box, fill):
        bars.append(box)
        draw_bar(picture, box, fill)

    monkeypatch.setattr("ivlkit.nano.printed.print_small", note_text)
    monkeypatch.setattr("ivlkit.nano.printed.draw_bar", note_bar)
    return texts, bars


@pytest.mark.parametrize("task", ["receipt", "chart", "printed_lines"])
@pytest.mark.parametrize("split", MATERIAL)
def test_names_numbers_lines_and_bars_never_overlap(task, split, printed):
    for seed in range(150):
        for found in printed:
            found.clear()
        picture = make_sample(task, random.Random(seed), split=split).pictures[0]
        boxes = [box for found in printed for box in found]
        assert len(boxes) >= (1 if task == "printed_lines" else 7)
        for one, other in itertools.combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (seed, one, other)
        for left, top, right, bottom in boxes:
            assert left >= 0 and top >= 0 and right <= picture.width and bottom <= picture.height


def test_a_line_of_fine_print_is_not_cut_by_tiles(printed):
    for task in ("receipt", "chart", "printed_lines"):
        for seed in range(60):
            printed[0].clear()
            picture = make_sample(task, random.Random(seed)).pictures[0]
            columns, rows = choose_grid(*picture.size, max_tiles=12, tile_px=112)
            tile_px = picture.height / rows
            for _, top, _, bottom in printed[0]:
                assert top // tile_px == (bottom - 0.01) // tile_px


def test_fine_print_in_a_single_tile_is_at_most_7_px_high(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "ivlkit.nano.printed.print_small", lambda picture, *_, font, **__: sizes.append((picture, font.size))
    )
    for seed in range(60):
        make_sample("whole_print", random.Random(seed))
    assert max(112 / picture.height * size for picture, size in sizes) <= 7.4


def test_print_stands_out_from_its_paper():
    for sample, _, _ in samples("printed_number", 10):
        assert np.ptp(np.asarray(sample.pictures[0].convert("L"))) > 80


def test_shapes_are_counted_with_their_plural():
    questions = {question for _, question, _ in samples("count_shapes", 300)}
    assert "Count the crosses." in questions
    assert "Count the stars." in questions


def test_sums_are_right():
    for _, question, answer in samples("simple_sum", 50):
        assert sum(map(int, re.findall(r"\d+", question))) == int(re.findall(r"\d+", answer)[-1])


def test_what_is_left_of_the_other_is_there():
    for sample, question, answer in samples("side_of_shapes", 300):
        if question == "What is left of the other?":
            picture = sample.pictures[0]
            colour = ImageColor.getrgb(drawing.COLOURS[answer.split()[1]])
            columns = np.where((np.asarray(picture) == colour).all(2))[1]
            assert columns.max() <= picture.width * 2 / 3 + 1


def test_two_shapes_stand_in_one_row_or_one_column():
    for sample, question, answer in samples("side_of_shapes", 200):
        if question == "Describe where they are.":
            first, side, second = re.fullmatch(r"The (\w+) \w+ is (.+) the (\w+) \w+\.", answer).groups()
            (left, top), (other_left, other_top) = (middle_of(sample.pictures[0], name) for name in (first, second))
            if side == "left of":
                assert other_left - left > abs(other_top - top)
            else:
                assert (side, other_top - top > abs(other_left - left)) == ("above", True)


def middle_of(picture, colour):
    """(x, y) in px of what has a colour."""
    found = (np.asarray(picture) == ImageColor.getrgb(drawing.COLOURS[colour])).all(2)
    return np.argwhere(found).mean(0)[::-1]


def test_which_picture_is_asked_only_of_shapes_that_differ_in_colour_and_name():
    asked = [turn for turn in samples("two_pictures", 400) if turn[1].startswith("Which picture")]
    assert len(asked) > 15
    for sample, question, answer in asked:
        colour = ImageColor.getrgb(drawing.COLOURS[question.split()[4]])
        shown = [(np.asarray(picture) == colour).all(2).any() for picture in sample.pictures]
        assert shown == [answer == "the first", answer == "the second"]


def test_the_longest_bar_is_longer_than_others_by_what_can_be_seen():
    for _, question, _ in samples("from_text", 400):
        values = sorted(map(int, re.findall(r"[A-Z]\w\w (\d+)", question))) if "Values:" in question else []
        assert all(later - earlier >= 6 for earlier, later in itertools.pairwise(values))


def test_what_is_told_is_short():
    for _, question, _ in samples("from_text", 300):
        assert re.sub(r"\[\[.*?\]\]", "", question).count(",") <= 3


def test_a_box_is_drawn_around_what_is_asked_for():
    for sample, question, answer in samples("find_box", 60):
        picture = sample.pictures[0]
        colour = ImageColor.getrgb(drawing.COLOURS[re.search(r"<ref>(\w+) ", question)[1]])
        inside = (np.asarray(picture) == colour).all(2)
        sides = (picture.width, picture.height) * 2
        left, top, right, bottom = (
            edge * side / 1000 for edge, side in zip(parse_boxes(answer)[0], sides, strict=True)
        )
        here = inside[max(0, round(top)) : round(bottom) + 1, max(0, round(left)) : round(right) + 1]
        assert here.mean() > 0.15


def test_the_total_of_a_receipt_is_the_sum_of_its_prices():
    for sample, _, answer in samples("whole_print", 80):
        prices = [round(100 * float(price)) for price in re.findall(r"\d+\.\d\d", answer)]
        if "TOTAL" in answer:
            assert sum(prices[:-1]) == prices[-1]
            assert 3 <= len(prices) <= 5
            assert sample.pictures[0].height >= 1.45 * sample.pictures[0].width  # fine print needs its tiles


def test_the_larger_one_covers_more():
    for sample, question, answer in samples("compare_sizes", 60):
        if question == "Compare the sizes.":
            large, small = re.findall(r"[Tt]he (\w+) \w+", answer)
            pixels = np.asarray(sample.pictures[0])
            areas = [(pixels == ImageColor.getrgb(drawing.COLOURS[name])).all(2).sum() for name in (large, small)]
            assert areas[0] > areas[1]


def test_a_conversation_asks_two_or_three_different_questions():
    for sample, _, _ in samples("conversation", 60):
        assert 2 <= len({question for question, _ in sample.turns}) == len(sample.turns) <= 3


def test_a_scene_that_is_told_comes_without_pictures():
    told = [question for _, question, _ in samples("from_text", 200)]
    assert any("It says" in question for question in told)
    assert any("TOTAL" in question for question in told)


def test_rows_are_drawn_when_asked_for_and_encode(processor):
    rows = Curriculum(40)
    assert len(rows) == 40
    assert len({record.where for record in rows}) == 40
    assert [record.turns for record in rows] == [record.turns for record in Curriculum(40)]
    for record in rows:
        assert encode(record, processor, max_length=1024).num_supervised >= 2


def test_shares_decide_which_tasks_come():
    assert {Curriculum(30, shares=TEXT_SHARES)[row].extra["task"] for row in range(30)} <= TEXT_TASKS


def test_a_written_row_has_the_released_fields_and_is_the_drawn_one(tmp_path):
    drawn = Curriculum(120)
    rows = read_rows(write_curriculum(tmp_path, 120))
    assert [row["id"] for row in rows] == list(range(120))
    for row, record in zip(rows, drawn, strict=True):
        assert [turn["value"] for turn in row["conversations"]] == [turn.text for turn in record.turns]
        names = row.get("image", [])
        names = [names] if isinstance(names, str) else names
        assert len(names) == len(record.images) == row["conversations"][0]["value"].count("<image>")
        assert all((tmp_path / name).is_file() for name in names)


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_curriculum(tmp_path / name, 80)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two"))
    assert one == two


def test_another_seed_writes_other_rows(tmp_path):
    rows = read_rows(write_curriculum(tmp_path / "0", 10))
    assert rows != read_rows(write_curriculum(tmp_path / "1", 10, seed=1))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="task 'poem', expected one of printed_lines"):
        make_sample("poem", random.Random(0))
    with pytest.raises(ValueError, match="split 'test', expected train or validation"):
        make_sample("name", random.Random(0), split="test")
