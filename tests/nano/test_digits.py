"""The handwritten digits: their splits, and the strips drawn from them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ivlkit.errors import DataError
from ivlkit.nano import digits
from ivlkit.nano.digits import digit_ids, write_digit_strips, write_digit_table


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digit_images(split):
    """(images [N, 28, 28], what each shows [N])."""
    ids = digit_ids(split)
    return digits._atlas()[ids], ids // 500


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("validation", 500), ("test", 500)])
def test_a_split_has_equally_many_digits_of_each_class(split, count):
    images, labels = digit_images(split)
    assert images.shape == (count, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [count // 10] * 10


def test_no_picture_of_a_digit_is_in_two_splits_or_twice_in_one():
    splits = ("train", "validation", "test")
    everything = [image.tobytes() for split in splits for image in digit_images(split)[0]]
    assert len(set(everything)) == 5000


def test_ink_is_white_on_black_and_zeros_have_a_hole():
    images, labels = digit_images("train")
    assert images[:, 0, :].max() < 255 * 0.1  # MNIST leaves the border empty
    zeros, ones = images[labels == 0].mean(0), images[labels == 1].mean(0)
    assert zeros[13, 13] < 40 < 150 < ones[13, 13]


def test_the_first_digits_of_a_split_are_the_ones_documented():
    assert digit_ids("train")[[0, 399, 400]].tolist() == [0, 399, 500]
    assert digit_ids("validation")[[0, 49, 50]].tolist() == [400, 449, 900]
    assert digit_ids("test")[[0, 49, 50]].tolist() == [450, 499, 950]


def test_a_strip_is_one_tile_high_and_one_tile_wide_per_digit(tmp_path):
    for row in read_rows(write_digit_strips(tmp_path, rows=12)):
        assert (row["width"], row["height"]) == (112 * len(row["digit_ids"]), 112)
        with Image.open(tmp_path / row["image"]) as strip:
            assert (strip.mode, strip.size) == ("RGB", (row["width"], row["height"]))
            assert np.asarray(strip)[0, 0].min() >= 226  # light paper


def test_answers_follow_from_the_digits_shown(tmp_path):
    rows = read_rows(write_digit_strips(tmp_path, "validation", rows=60))
    assert {row["task"] for row in rows} == {"read", "count", "first", "last"}
    for row in rows:
        number = "".join(str(i // 500) for i in row["digit_ids"])
        human, gpt = row["conversations"]
        assert human["value"].startswith("<image>\n")
        expected = {"read": number, "count": str(len(number)), "first": number[0], "last": number[-1]}
        assert gpt == {"from": "gpt", "value": expected[row["task"]]}


def test_a_box_holds_the_ink_of_the_digit_that_is_asked_for(tmp_path):
    for row in read_rows(write_digit_strips(tmp_path, "validation", rows=30, tasks=("find",))):
        human, gpt = row["conversations"]
        place = re.search(r"<ref>(\w+) digit</ref>", human["value"])[1]
        assert gpt["value"].startswith(f"<ref>{place} digit</ref><box>[[")
        with Image.open(tmp_path / row["image"]) as strip:
            dark = np.asarray(strip.convert("L")) < 128  # [112, W]
        left, top, right, bottom = (
            round(edge * side / 1000) for edge, side in zip(boxed(gpt), strip.size * 2, strict=True)
        )
        assert dark[top:bottom, left:right].sum() > 60
        inside = np.flatnonzero(dark[:, left:right].any(0))
        assert inside.max() - inside.min() > 0.5 * (right - left)


def boxed(turn):
    return [int(edge) for edge in re.search(r"\[\[(.+)\]\]", turn["value"])[1].split(", ")]


def test_the_places_of_boxes_follow_each_other_from_left_to_right(tmp_path):
    lefts = {}
    for row in read_rows(write_digit_strips(tmp_path, "validation", rows=60, digits=(3, 3), tasks=("find",))):
        place = row["conversations"][0]["value"].split("<ref>")[1].split()[0]
        lefts.setdefault(place, []).append(boxed(row["conversations"][1])[0])
    assert np.mean(lefts["first"]) < 250 < np.mean(lefts["second"]) < 500 < np.mean(lefts["third"])


def test_the_new_answer_style_is_json(tmp_path):
    for row in read_rows(write_digit_strips(tmp_path, "validation", rows=20, tasks=("json",))):
        labels = [i // 500 for i in row["digit_ids"]]
        said = json.loads(row["conversations"][1]["value"])
        assert said == {"number": "".join(map(str, labels)), "digits": len(labels), "sum": sum(labels)}


def test_the_pictures_are_the_same_whatever_is_asked(tmp_path):
    for task in ("read", "find", "json"):
        write_digit_strips(tmp_path / task, "validation", rows=4, tasks=(task,))
    assert (
        len({tuple(sorted(read_bytes(tmp_path / task / "images").items())) for task in ("read", "find", "json")}) == 1
    )


def test_strips_of_a_split_show_only_its_digits(tmp_path):
    rows = read_rows(write_digit_strips(tmp_path, "test", rows=20))
    assert {i for row in rows for i in row["digit_ids"]} <= set(digit_ids("test").tolist())


def test_every_digit_comes_once_before_any_comes_again(tmp_path):
    rows = read_rows(write_digit_strips(tmp_path, "test", rows=500, digits=(1, 1), tasks=("read",)))
    assert len({row["digit_ids"][0] for row in rows}) == 500


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    write_digit_strips(first, rows=5)
    write_digit_strips(again, rows=5)
    assert read_bytes(first) == read_bytes(again)
    write_digit_strips(first, rows=5)
    assert read_bytes(first) == read_bytes(again)
    write_digit_strips(other, rows=5, seed=1)
    assert read_bytes(first) != read_bytes(other)


def test_fewer_rows_are_the_beginning_of_more_rows(tmp_path):
    few = read_rows(write_digit_strips(tmp_path / "few", rows=3))
    assert read_rows(write_digit_strips(tmp_path / "more", rows=6))[:3] == few


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split 'dev', expected one of train, validation, test"),
        ({"tasks": ("sum",)}, "task 'sum', expected one of read, count, first, last, find, json"),
        ({"tasks": ()}, "no tasks, expected some of read, count"),
        ({"digits": (0, 3)}, r"digits=\(0, 3\), expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_digit_strips(tmp_path, **arguments)


def test_written_again_nothing_is_touched_that_a_run_may_be_reading(tmp_path):
    write_digit_strips(tmp_path, rows=4)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
    write_digit_strips(tmp_path, rows=4)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files} == before
    with open(tmp_path / "train.jsonl", encoding="utf-8") as reader:
        write_digit_strips(tmp_path, rows=3)
        assert len(reader.read().splitlines()) == 4  # who has it open reads on


class TestTable:
    def test_three_lines_are_broken_and_the_others_are_what_the_pictures_show(self, tmp_path):
        lines = write_digit_table(tmp_path, rows=12).read_text().splitlines()
        assert (len(lines), lines[0]) == (13, "file,number,digits")
        assert lines[1].split(",")[1] == "" and not (tmp_path / lines[2].split(",")[0]).exists()
        with pytest.raises(OSError, match="truncated"):
            Image.open(tmp_path / lines[3].split(",")[0]).load()
        whole = write_digit_strips(tmp_path / "whole", rows=12, digits=(1, 2), tasks=("read",))
        answers = [json.loads(line)["conversations"][1]["value"] for line in whole.read_text().splitlines()]
        assert [line.split(",")[1] for line in lines[2:]] == answers[1:]

    def test_fewer_than_the_three_broken_lines_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="rows=2, expected 3 or more"):
            write_digit_table(tmp_path, rows=2)
