"""The drawn curriculum: what a row holds, and that the splits differ."""

import json
import random

import numpy as np
import pytest
from PIL import ImageColor, ImageFont

from ivlkit.nano import curriculum
from ivlkit.nano.curriculum import MATERIAL, TASK_SHARES, TASKS, make_sample, write_curriculum

TEXT_TASKS = {"name", "simple_sum", "repeat_word", "opposite"}


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", MATERIAL)
def test_a_sample_is_a_picture_of_112_to_672_px_a_question_and_an_answer(task, split):
    for seed in range(25):
        picture, question, answer = make_sample(task, random.Random(seed), split=split)
        assert (picture is None) == (task in TEXT_TASKS)
        if picture is not None:
            assert picture.mode == "RGB"
            assert 112 <= picture.width <= 672
            assert 112 <= picture.height <= 448
            assert len(picture.getcolors(1 << 20)) > 1  # something is drawn
        assert question
        assert answer
        assert "{" not in question + answer


def test_every_task_has_a_share():
    assert TASK_SHARES.keys() == TASKS.keys()


def test_splits_share_neither_words_nor_fonts():
    train, validation = MATERIAL["train"], MATERIAL["validation"]
    assert len(train.words) == len(set(train.words)) >= 150
    assert not set(train.words) & set(validation.words)
    assert not set(train.fonts) & set(validation.fonts)


def test_splits_share_no_picture(tmp_path):
    for split in MATERIAL:
        write_curriculum(tmp_path / split, 100, split)
    train, validation = ({path.read_bytes() for path in (tmp_path / split / "images").iterdir()} for split in MATERIAL)
    assert not train & validation


@pytest.mark.parametrize("font_name", curriculum.FONTS + curriculum.HELD_OUT_FONTS)
def test_print_never_leaves_its_box(font_name):
    font = ImageFont.truetype(curriculum.font_path(font_name), 100)
    words = [*curriculum.WORDS, *curriculum.HELD_OUT_WORDS, "0", "888888"]
    for text in [*words, *map(str.upper, words), *map(str.title, words)]:
        left, top, right, bottom = font.getbbox(text)
        assert right - left <= 95 * len(text)
        assert bottom - top <= 105


def test_print_stands_out_from_its_paper():
    picture, _, number = make_sample("printed_number", random.Random(3))
    assert number.isdigit()
    assert np.ptp(np.asarray(picture.convert("L"))) > 80


def test_shapes_are_counted_with_their_plural():
    questions = {make_sample("count_shapes", random.Random(seed))[1] for seed in range(200)}
    assert "Count the crosses." in questions
    assert "Count the stars." in questions


def test_sums_are_right_and_below_ten():
    for seed in range(50):
        _, question, answer = make_sample("simple_sum", random.Random(seed))
        digits = [int(character) for character in question if character.isdigit()]
        assert sum(digits) == int(answer.rstrip(".")[-1]) <= 9


def test_the_side_asked_for_is_where_the_colour_is():
    for seed in range(300):
        picture, question, answer = make_sample("left_or_right", random.Random(seed))
        if question == "What is on the left?":
            colour = ImageColor.getrgb(curriculum.COLOURS[answer.split()[0]])
            columns = np.where((np.asarray(picture) == colour).all(2))[1]
            assert columns.max() <= picture.width / 2 + 1


def test_a_row_with_a_picture_has_the_released_fields_and_a_text_row_has_no_image(tmp_path):
    rows = read_rows(write_curriculum(tmp_path, 120))
    assert [row["id"] for row in rows] == list(range(120))
    for row in rows:
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert ("image" in row) == (row["task"] not in TEXT_TASKS) == human["value"].startswith("<image>\n")
        if "image" in row:
            assert (tmp_path / row["image"]).is_file()
            assert row["width"] >= 112 <= row["height"]


def test_the_same_seed_writes_the_same_bytes_with_one_process_or_two(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        write_curriculum(tmp_path / name, 80, workers=workers)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two"))
    assert one == two


def test_another_seed_writes_other_rows(tmp_path):
    rows = read_rows(write_curriculum(tmp_path / "0", 10))
    assert rows != read_rows(write_curriculum(tmp_path / "1", 10, seed=1))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="task 'poem', expected one of printed_number"):
        make_sample("poem", random.Random(0))
    with pytest.raises(ValueError, match="split 'test', expected train or validation"):
        make_sample("name", random.Random(0), split="test")
