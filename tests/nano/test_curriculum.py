"""The drawn curriculum: what a row holds, and that the splits differ."""

import json
import random
import re

import numpy as np
import pytest
from PIL import ImageColor, ImageFont

from ivlkit.data.encode import encode
from ivlkit.evaluation.metrics import parse_boxes
from ivlkit.nano import curriculum, drawing
from ivlkit.nano.curriculum import (
    MATERIAL,
    SEEN_SHARES,
    TASK_SHARES,
    TASKS,
    TEXT_SHARES,
    Curriculum,
    make_sample,
    write_curriculum,
)

TEXT_TASKS = {"name", "simple_sum", "repeat_word", "opposite", "from_text"}


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def samples(task, count, *, split="train"):
    """(sample, question, answer) of the first turn."""
    drawn = [make_sample(task, random.Random(seed), split=split) for seed in range(count)]
    return [(sample, *sample.turns[0]) for sample in drawn]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", MATERIAL)
def test_a_sample_has_its_pictures_questions_and_answers(task, split):
    for sample, _, _ in samples(task, 25, split=split):
        expected = {0} if task in TEXT_TASKS else {2} if task == "two_pictures" else {1, 2}
        assert len(sample.pictures) in expected
        for picture in sample.pictures:
            assert picture.mode == "RGB"
            assert 112 <= picture.width <= 672
            assert 112 <= picture.height <= 448
            assert len(picture.getcolors(1 << 20)) > 1  # something is drawn
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


def test_splits_share_no_picture(tmp_path):
    for split in MATERIAL:
        write_curriculum(tmp_path / split, 100, split)
    train, validation = ({path.read_bytes() for path in (tmp_path / split / "images").iterdir()} for split in MATERIAL)
    assert not train & validation


@pytest.mark.parametrize("font_name", curriculum.FONTS + curriculum.HELD_OUT_FONTS)
def test_print_never_leaves_its_box(font_name):
    font = ImageFont.truetype(drawing.font_path(font_name), 100)
    words = [*curriculum.WORDS, *curriculum.HELD_OUT_WORDS, "0", "888888"]
    for text in [*words, *map(str.upper, words), *map(str.title, words)]:
        left, top, right, bottom = font.getbbox(text)
        assert right - left <= 95 * len(text)
        assert bottom - top <= 105


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
            assert columns.max() <= picture.width / 2 + 1


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
            assert sample.pictures[0].height >= 2 * sample.pictures[0].width * 0.87  # fine print needs its tiles


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
    told = [question for _, question, _ in samples("from_text", 60)]
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


def test_the_same_seed_writes_the_same_bytes_with_one_process_or_two(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        write_curriculum(tmp_path / name, 80, workers=workers)
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
