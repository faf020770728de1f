from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivlkit.data.rows.records import Record, Turn, Video
from ivlkit.errors import DataError
from ivlkit.evaluation.pictures import arrange, derange, kept_own, picture_key


def record(*images, text="<image>\nWhat?"):
    return Record(id=0, turns=(Turn("user", text), Turn("assistant", "<image> stays")), images=images)


def shuffle(records, seed=0):
    return [each.images for each in arrange(records, "shuffled", seed=seed)]


class TestRight:
    def test_rows_are_as_they_are(self):
        rows = [record("a.png"), record()]
        assert arrange(rows, "right", seed=0) == rows

    def test_another_word_is_refused_with_the_known_ones(self):
        with pytest.raises(DataError, match="pictures='wrong'; expected one of right, shuffled, none"):
            arrange([record("a.png")], "wrong", seed=0)


class TestNone:
    def test_pictures_and_their_places_go_and_answers_stay(self):
        (row,) = arrange([record("a.png", "b.png", text="<image>\n<image>\nWhich?")], "none", seed=0)
        assert row.images == () and [turn.text for turn in row.turns] == ["Which?", "<image> stays"]

    def test_a_row_without_pictures_keeps_its_text(self):
        row = record(text="What does <image> mean?")
        assert arrange([row], "none", seed=0) == [row]


class TestShuffled:
    @pytest.mark.parametrize("count", [2, 3, 4, 7, 50])
    def test_every_picture_is_used_once_and_none_by_its_own_row(self, count):
        rows = [record(f"{number}.png") for number in range(count)]
        for seed in range(20):
            given = shuffle(rows, seed)
            assert Counter(given) == Counter(row.images for row in rows)
            assert all(images != row.images for images, row in zip(given, rows, strict=True))

    def test_two_questions_about_one_picture_both_get_another(self):
        rows = [record(name) for name in ("a.png", "a.png", "a.png", "b.png", "b.png", "c.png")]
        for seed in range(20):
            given = shuffle(rows, seed)
            assert all(images != row.images for images, row in zip(given, rows, strict=True))
            assert Counter(given) == Counter(row.images for row in rows)

    def test_a_picture_of_most_rows_is_replaced_all_the_same(self):
        rows = [record("a.png")] * 5 + [record("b.png")]
        given = shuffle(rows)
        assert given == [("b.png",)] * 5 + [("a.png",)]

    def test_rows_change_only_with_rows_of_as_many_pictures(self):
        rows = [record("a.png"), record("b.png", "c.png"), record(), record("d.png"), record("e.png", "f.png")]
        assert shuffle(rows) == [("d.png",), ("e.png", "f.png"), (), ("a.png",), ("b.png", "c.png")]

    def test_a_row_without_a_partner_keeps_its_picture_and_is_counted(self):
        rows = [record("a.png"), record("b.png", "c.png"), record("a.png"), record()]
        given = arrange(rows, "shuffled", seed=0)
        assert given == rows and kept_own(rows, given) == [0, 1, 2]

    def test_the_seed_decides(self):
        rows = [record(f"{number}.png") for number in range(30)]
        assert shuffle(rows, 1) == shuffle(rows, 1) != shuffle(rows, 2)

    def test_equal_pixels_in_memory_are_one_picture(self):
        red, also_red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "red", "blue"))
        given = shuffle([record(red), record(also_red), record(blue)])
        assert given[0] == given[1] == (blue,)
        assert picture_key(np.asarray(red)) == picture_key(also_red) != picture_key(blue)
        assert picture_key(Image.new("RGB", (2, 8), "red")) != picture_key(red)


def test_a_video_changes_with_another_video_and_goes_with_its_place():
    def clip(name):
        turns = (Turn("user", "<video>\nWhat?"), Turn("assistant", "x"))
        return Record(id=0, turns=turns, video=Video(Path(name)))

    rows = [clip("a.mp4"), record("a.png"), clip("b.mp4"), record("b.png")]
    given = arrange(rows, "shuffled", seed=0)
    assert [each.video and each.video.path.name for each in given] == ["b.mp4", None, "a.mp4", None]
    assert [each.images for each in given] == [(), ("b.png",), (), ("a.png",)]
    (bare,) = arrange(rows[:1], "none", seed=0)
    assert bare.video is None and bare.turns[0].text == "What?"
    assert kept_own(rows[:1], arrange(rows[:1], "shuffled", seed=0)) == [0]


def test_derange_of_three_is_one_of_the_two_ways():
    found = {tuple(derange(["a", "b", "c"], np.random.default_rng(seed))) for seed in range(30)}
    assert found == {(1, 2, 0), (2, 0, 1)}
