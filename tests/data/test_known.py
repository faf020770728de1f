"""Rows are looked at once before a run, and again only where a line or a picture changed."""

import os
import pickle
import random
import shutil

import numpy as np
import pytest

import ivlkit.data.checking.lengths as lengths_module
from ivlkit.data.checking import processes
from ivlkit.data.checking.lengths import epoch_lengths, measure, row_lengths
from ivlkit.data.datasets.index import STORED_FROM_BYTES
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.errors import DataError
from ivlkit.training.loop.schedule import check_rows
from ivlkit.training.recipes import recipe

LENGTH = 300  # tokens: 13 tiles of 16 and a short text fit


@pytest.fixture
def looked(monkeypatch):
    """A list of the rows that are examined, as they are."""
    seen, real = [], lengths_module.examine_all

    def examine_all(task, rows, **options):
        for number, index in enumerate(rows):
            seen.extend((number, int(row)) for row in index)
        return real(task, rows, **options)

    monkeypatch.setattr(lengths_module, "examine_all", examine_all)
    return seen


@pytest.fixture
def pictures(tmp_path, draw_picture):
    """Pictures of one, three and thirteen tiles: 0.png, …, 5.png."""
    for number, size in enumerate([(112, 112), (224, 112), (640, 480)] * 2):
        draw_picture(*size, seed=number).save(tmp_path / f"{number}.png")
    return tmp_path


def large_row(number, answer="A", **fields):
    """One of 12 that make a file of over 1 MiB, from which on something is stored."""
    talk = [{"from": "human", "value": f"Q {number}"}, {"from": "gpt", "value": answer}]
    return {"conversations": talk, "note": "x" * (STORED_FROM_BYTES // 12)} | fields


@pytest.fixture
def rows(pictures):
    """Six with a picture, one with two, five without."""
    with_pictures = [large_row(number, image=f"{number}.png") for number in range(6)]
    both = large_row(6, image=["0.png", "1.png"])
    both["conversations"][0]["value"] = "<image><image>"
    return [*with_pictures, both, *(large_row(number, "word " * number) for number in range(7, 12))]


def expected(data, processor):
    encoded = [encode(record, processor, max_length=LENGTH) for record in data]
    return [len(one) for one in encoded], [len(one.tiles) for one in encoded]


def lengths_of(path, processor):
    tokens, tiles = row_lengths(open_data(path), processor, max_length=LENGTH)
    return tokens.tolist(), tiles.tolist()


def test_a_start_looks_at_every_row_once(write_rows, turns, pictures, processor, looked):
    """Also in a file too small to store anything, with a video, and a row that is drawn twice."""
    clip = pictures / "clip"
    clip.mkdir()
    for number in range(9):
        shutil.copy(pictures / "0.png", clip / f"{number}.png")
    talk = {"conversations": turns("Q", "A")}
    path = write_rows([talk, talk | {"image": "2.png"}, talk | {"video": "clip"}])
    data = open_data(path).select([2, 1, 0, 1])
    chosen = recipe("nano-lora", max_seq_length=LENGTH)
    assert check_rows(data, processor, chosen) == []
    tokens, tiles = epoch_lengths(data, processor, seed=chosen.seed, epochs=1, max_length=LENGTH)
    assert looked == [(0, 0), (0, 1), (0, 2)]
    encoded = [encode(one, processor, max_length=LENGTH, draw=(chosen.seed, 0)) for one in data]
    assert (tokens[0].tolist(), tiles[0].tolist()) == ([*map(len, encoded)], [len(one.tiles) for one in encoded])


def test_what_was_checked_serves_one_plan_of_the_same_question(write_rows, rows, pictures, processor, looked):
    """A notebook that plans again may have changed a picture in between."""
    data = open_data(write_rows([one | {"note": ""} for one in rows]))
    chosen = recipe("nano-lora", max_seq_length=LENGTH)
    check_rows(data, processor, chosen)
    epoch_lengths(data, processor, seed=chosen.seed + 1, epochs=1, max_length=LENGTH)
    assert len(looked) == 24
    check_rows(data, processor, chosen)
    for _ in range(2):
        epoch_lengths(data, processor, seed=chosen.seed, epochs=1, max_length=LENGTH)
    assert len(looked) == 48


def test_a_second_start_looks_at_no_row_and_says_the_same(write_rows, rows, processor, looked):
    path, chosen = write_rows(rows), recipe("nano-lora", max_seq_length=200)
    notes = check_rows(open_data(path), processor, chosen)
    assert notes == [
        ("train.jsonl:3", "13 → 7 tiles to fit 200 tokens"),
        ("train.jsonl:6", "13 → 7 tiles to fit 200 tokens"),
    ]
    assert len(looked) == 12
    assert check_rows(open_data(path), processor, chosen) == notes
    assert len(looked) == 12
    check_rows(open_data(path), processor, recipe("nano-lora", max_seq_length=201))
    check_rows(open_data(path), processor.with_tiles(6), chosen)
    assert len(looked) == 36


def test_a_picture_that_is_gone_is_named(write_rows, rows, pictures, processor, looked):
    path = write_rows(rows)
    assert lengths_of(path, processor) == expected(open_data(path), processor)
    (pictures / "1.png").unlink()
    looked.clear()
    with pytest.raises(DataError, match=r"2 of 12 rows can't be used(?s:.*)train.jsonl:2: .*1.png does not exist"):
        check_rows(open_data(path), processor, recipe("nano-lora", max_seq_length=LENGTH))
    assert looked == [(0, 1), (0, 6)]


def test_a_picture_that_was_replaced_by_a_larger_one_is_measured_again(
    write_rows, rows, pictures, processor, looked, draw_picture
):
    path = write_rows(rows)
    before, _ = lengths_of(path, processor)
    draw_picture(640, 480, seed=9).save(pictures / "0.png")
    looked.clear()
    after, tiles = lengths_of(path, processor)
    assert looked == [(0, 0), (0, 6)]
    assert (after, tiles) == expected(open_data(path), processor)
    assert after[0] == before[0] + 12 * 16
    looked.clear()
    assert lengths_of(path, processor) == (after, tiles) and not looked


@pytest.mark.parametrize("same_size", [True, False])
def test_a_row_that_was_edited_is_measured_again(write_rows, rows, processor, looked, same_size):
    path = write_rows(rows)
    lengths_of(path, processor)
    rows[8]["conversations"][1]["value"] = "drow " * 8 if same_size else "A longer answer"
    write_rows(rows)
    os.utime(path, ns=(0, 12345))
    looked.clear()
    found = lengths_of(path, processor)
    assert looked == [(0, 8)]
    assert found == expected(open_data(path), processor)


def test_rows_that_moved_are_known_wherever_they_stand(write_rows, rows, processor, looked):
    path = write_rows(rows)
    lengths_of(path, processor)
    moved = [rows[6], *rows[:3], large_row(99, "new", image="5.png"), *rows[4:6], *rows[7:], rows[0]]
    write_rows(moved)
    looked.clear()
    assert lengths_of(path, processor) == expected(open_data(path), processor)
    assert looked == [(0, 4), (0, 12)]  # the new one, and the second of two equal ones
    looked.clear()
    lengths_of(path, processor)
    assert not looked


def test_a_last_line_that_gets_its_end_is_the_same(write_rows, rows, processor, looked):
    path = write_rows(rows)
    path.write_bytes(path.read_bytes()[:-1])
    lengths_of(path, processor)
    write_rows([*rows, large_row(12)])
    looked.clear()
    assert len(lengths_of(path, processor)[0]) == 13
    assert looked == [(0, 12)]


def test_random_changes_give_what_a_first_look_gives(write_rows, rows, pictures, processor, draw_picture):
    draw = random.Random(7)
    for step in range(20):
        path = write_rows(rows)
        os.utime(path, ns=(0, step))
        assert lengths_of(path, processor) == expected(open_data(path), processor)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(rows))
            kind = draw.choice(["edit", "swap", "copy", "picture", "remove"])
            if kind == "edit":
                rows[place] = large_row(step, f"answer {step}", image=f"{draw.randrange(6)}.png")
            elif kind == "swap":
                rows[place], rows[0] = rows[0], rows[place]
            elif kind == "copy":
                rows.append(rows[place])
            elif kind == "picture":
                size = draw.choice([(112, 112), (640, 480), (448, 112)])
                draw_picture(*size, seed=step).save(pictures / f"{draw.randrange(6)}.png")
            elif len(rows) > 12:
                rows.pop(place)


def test_videos_and_rows_that_cannot_be_used_are_looked_at_each_time(write_rows, rows, pictures, processor, looked):
    (pictures / "clip").mkdir()
    shutil.copy(pictures / "0.png", pictures / "clip" / "0.png")
    rows[3] = large_row(3, video="clip")
    rows[4] = large_row(4, "word " * 300)
    path = write_rows(rows)
    first, _ = lengths_of(path, processor)
    looked.clear()
    assert lengths_of(path, processor)[0] == first and first[4] == 0 < first[3]
    assert looked == [(0, 3), (0, 4)]


def test_rows_of_a_selection_add_to_those_of_another(write_rows, rows, processor, looked):
    path = write_rows(rows)
    for numbers in ([5, 1], [1, 2]):
        row_lengths(open_data(path).select(numbers), processor, max_length=LENGTH)
    assert looked == [(0, 1), (0, 5), (0, 2)]
    looked.clear()
    lengths_of(path, processor)
    assert looked == [(0, row) for row in (0, 3, 4, 6, 7, 8, 9, 10, 11)]


def _cut(content):
    return content[:-80]


def _flip(content):
    return content[:-400] + bytes([content[-400] ^ 1]) + content[-399:]


def _count(content):
    """Another number of pictures, that of the header."""
    numbers = np.frombuffer(content[128:], np.int64).copy()
    numbers[5] += 1
    return content[:128] + numbers.tobytes()


def _pickle(content):
    return pickle.dumps(np.array([1]))


@pytest.mark.parametrize("damage", [_cut, _flip, _count, _pickle, lambda content: b""])
def test_what_is_damaged_is_measured_again_and_replaced(write_rows, rows, processor, looked, damage):
    path = write_rows(rows)
    first = lengths_of(path, processor)
    (place,) = path.parent.glob(".ivlkit/train.jsonl.measured-*.npy")
    whole = place.read_bytes()
    place.write_bytes(damage(whole))
    looked.clear()
    assert lengths_of(path, processor) == first
    assert len(looked) == 12
    assert place.read_bytes() == whole


def test_what_is_stored_is_plain_numbers_of_one_place(write_rows, rows, processor, tmp_path, monkeypatch):
    monkeypatch.setenv("IVLKIT_CACHE", str(tmp_path / "cache"))
    path = write_rows(rows, "data/train.jsonl")
    (path.parent / ".ivlkit").write_text("a file where the folder would be")
    row_lengths(open_data(path, root=tmp_path), processor, max_length=LENGTH)
    (place,) = (tmp_path / "cache").glob("train.jsonl.*.measured-*.npy")
    stored = np.load(place, allow_pickle=False)
    assert stored.dtype == np.int64
    assert b"0.png\0001.png" in stored.tobytes() and str(tmp_path).encode() not in stored.tobytes()


def test_as_many_files_are_kept_as_a_plan_asks_for(write_rows, rows, processor, monkeypatch):
    monkeypatch.setattr("ivlkit.data.checking.known._MOST_FILES", 2)
    path, other = write_rows(rows, "a[1].jsonl"), write_rows(rows, "b.jsonl")
    lengths_of(other, processor)
    for length in (250, 260, 270):
        row_lengths(open_data(path), processor, max_length=length)
    kept = [found.name[:6] for found in path.parent.glob(".ivlkit/*measured*")]
    assert sorted(kept) == ["a[1].j", "a[1].j", "b.json"]


def test_a_bar_is_shown_where_it_takes_a_while(write_rows, turns, processor, capsys, monkeypatch):
    data = open_data(write_rows([{"conversations": turns("Q", "A")}]))
    measure(data, processor, progress=True)
    assert (processes.BAR_AFTER_SECONDS, capsys.readouterr().err) == (2, "")
    monkeypatch.setattr(processes, "BAR_AFTER_SECONDS", 0)
    measure(data, processor, progress=True)
    assert "checking rows" in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_looked_at_is_not_stored(write_rows, rows, processor, looked, monkeypatch):
    path, real = write_rows(rows), lengths_module.examine_all

    def examine_all(*args, **options):
        yield from real(*args, **options)
        rows[0]["conversations"][1]["value"] = "B"
        write_rows(rows)
        os.utime(path, ns=(0, 12345))

    with monkeypatch.context() as patch:
        patch.setattr(lengths_module, "examine_all", examine_all)
        lengths_of(path, processor)
    assert not [*path.parent.glob(".ivlkit/*measured*")]
    looked.clear()
    lengths_of(path, processor)
    assert len(looked) == 12
