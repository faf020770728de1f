"""A meta file → one indexed data set: every row that is asked for, none that is not."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ivlkit.data.mixture import open_data
from ivlkit.errors import DataError


@pytest.fixture
def write_meta(tmp_path, write_rows, turns):
    """`write_meta(10, repeat_time=0.3)` → a meta file of one set "a" with ten rows, ids 0 to 9."""

    def write(rows=10, name="meta.json", **fields):
        write_rows([{"id": number, "conversations": turns("Q", "A")} for number in range(rows)], "a.jsonl")
        entry = {"root": str(tmp_path), "annotation": str(tmp_path / "a.jsonl")} | fields
        entry = {key: value for key, value in entry.items() if value != "left out"}
        (tmp_path / name).write_text(json.dumps({"a": entry}))
        return tmp_path / name

    return write


def ids(data):
    return [record.id for record in data]


def test_a_jsonl_alone_starts_its_paths_from_its_own_folder(tmp_path, write_rows, turns):
    path = write_rows([{"id": 0, "image": "a.png", "conversations": turns("Q", "A")}], "sub/train.jsonl")
    assert open_data(path)[0].images == (tmp_path / "sub" / "a.png",)
    assert open_data(path, root="pics")[0].images == (Path("pics/a.png"),)


def test_rows_come_in_the_order_of_the_file_and_by_number(write_meta):
    data = open_data(write_meta())
    assert len(data) == 10
    assert ids(data) == list(range(10))
    assert (data[3].id, data[-1].id, data[np.int64(9)].id) == (3, 9, 9)
    for number in (10, -11):
        with pytest.raises(IndexError):
            data[number]


def test_a_row_knows_its_file_and_line_past_blank_lines(tmp_path, turns):
    line = json.dumps({"conversations": turns("Q", "A")}, ensure_ascii=False)
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n   \n{line}\n\n{line}".encode())
    assert [record.where for record in open_data(path)] == ["train.jsonl:1", "train.jsonl:4", "train.jsonl:6"]


def test_settings_of_a_set_reach_its_rows(write_meta):
    record = open_data(write_meta(data_augment=True, max_dynamic_patch=6))[0]
    assert (record.augment_jpeg, record.max_tiles) == (True, 6)
    record = open_data(write_meta())[0]
    assert (record.augment_jpeg, record.max_tiles) == (False, None)


def test_several_sets_follow_each_other(tmp_path, write_rows, turns):
    for name, rows in (("a", 2), ("b", 3)):
        write_rows(
            [{"id": f"{name}{n}", "image": "p.png", "conversations": turns("Q", "A")} for n in range(rows)],
            f"{name}.jsonl",
        )
    entries = {name: {"root": str(tmp_path / name), "annotation": str(tmp_path / f"{name}.jsonl")} for name in "ba"}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    data = open_data(tmp_path / "meta.json")
    assert ids(data) == ["b0", "b1", "b2", "a0", "a1"]
    assert data[3].images == (tmp_path / "a" / "p.png",)


def test_three_tenths_are_drawn_and_are_no_prefix(write_meta):
    data = open_data(write_meta(100, repeat_time=0.3))
    drawn = ids(data)
    assert len(data) == len(set(drawn)) == 30
    assert drawn == sorted(drawn)  # in the order of the file
    assert max(drawn) > 80
    assert drawn != list(range(30))


def test_a_draw_depends_on_the_seed_only(write_meta):
    path = write_meta(100, repeat_time=0.3)
    assert ids(open_data(path)) == ids(open_data(path, seed=0))
    assert ids(open_data(path)) != ids(open_data(path, seed=1))


def test_sets_of_equal_size_draw_different_rows(tmp_path, write_meta):
    path = write_meta(100, repeat_time=0.3)
    entry = json.loads(path.read_text())["a"]
    path.write_text(json.dumps({"a": entry, "b": entry}))
    drawn = ids(open_data(path))
    assert drawn[:30] != drawn[30:]


@pytest.mark.parametrize("repeat", [1, 1.0])
def test_once_is_every_row_once(write_meta, repeat):
    assert ids(open_data(write_meta(repeat_time=repeat))) == list(range(10))


def test_two_and_a_half_times_is_every_row_twice_and_half_of_them_again(write_meta):
    data = open_data(write_meta(repeat_time=2.5))
    counts = Counter(ids(data))
    assert len(data) == 25
    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_a_fraction_that_leaves_no_row_is_refused(write_meta):
    with pytest.raises(DataError, match="repeat_time 0.01 of 10 rows leaves none; raise it or remove the entry"):
        open_data(write_meta(repeat_time=0.01))


def test_the_declared_length_is_checked(write_meta):
    assert len(open_data(write_meta(length=10))) == 10
    assert len(open_data(write_meta(length=10, repeat_time=2))) == 20
    with pytest.raises(
        DataError, match="a.jsonl: 10 rows but the meta file declares `length` 11; is the file complete?"
    ):
        open_data(write_meta(length=11))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeat": 2}, "has the unknown field 'repeat'; expected only about, annotation, data_augment, format,"),
        ({"root": "left out"}, "has no `root`; expected a path"),
        ({"annotation": "left out"}, "has no `annotation`; expected a path"),
        ({"annotation": 3}, "has no `annotation`; expected a path"),
        ({"data_augment": "yes"}, "`data_augment` is 'yes'; expected bool"),
        ({"data_augment": 1}, "`data_augment` is 1; expected bool"),
        ({"max_dynamic_patch": "12"}, "`max_dynamic_patch` is '12'; expected int"),
        ({"max_dynamic_patch": True}, "`max_dynamic_patch` is True; expected int"),
        ({"max_dynamic_patch": 0}, "`max_dynamic_patch` is 0; expected more than 0"),
        ({"max_dynamic_patch": 2.5}, "`max_dynamic_patch` is 2.5; expected int"),
        ({"repeat_time": "2"}, "`repeat_time` is '2'; expected int or float"),
        ({"repeat_time": True}, "`repeat_time` is True; expected int or float"),
        ({"repeat_time": 0}, "`repeat_time` is 0; expected more than 0"),
        ({"repeat_time": -1}, "`repeat_time` is -1; expected more than 0"),
        ({"repeat_time": float("nan")}, "`repeat_time` is nan; expected more than 0"),
        ({"repeat_time": float("inf")}, "`repeat_time` is inf; expected"),
        ({"length": "10"}, "`length` is '10'; expected int"),
        ({"annotation": "nowhere.jsonl"}, r"nowhere\.jsonl: can't be read"),
    ],
)
def test_a_wrong_field_is_refused_with_its_entry(write_meta, fields, message):
    with pytest.raises(DataError, match=message):
        open_data(write_meta(**fields))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "meta.json: broken JSON"),
        (b"", "meta.json: broken JSON"),
        ("ä".encode("latin-1"), "meta.json: broken JSON"),
        (b"[]", "meta.json: expected an object of data sets"),
        (b"{}", "meta.json: expected an object of data sets"),
        (b'{"a": 3}', "'a' is a int; expected an object with `root` and `annotation`"),
        (b'{"a": {"root": "r", "annotation": "x"}, "a": {"root": "r", "annotation": "y"}}', "'a' twice"),
    ],
)
def test_a_broken_meta_file_is_refused(tmp_path, content, message):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "meta.json")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing.json: does not exist; expected a meta .json or a .jsonl"):
        open_data(tmp_path / "nothing.json")


def test_an_empty_jsonl_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="a.jsonl: no rows"):
        open_data(tmp_path / "a.jsonl")


def test_a_root_beside_a_meta_file_is_refused(write_meta):
    with pytest.raises(DataError, match="a meta file has its own `root`s; leave out root='pics'"):
        open_data(write_meta(), root="pics")


def test_relative_paths_start_from_the_working_directory_or_else_from_the_meta_file(tmp_path, monkeypatch, write_meta):
    path = write_meta(root="pics", annotation="a.jsonl")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    source = open_data(path).sources[0]
    assert (source.annotation, source.root) == (tmp_path / "a.jsonl", tmp_path / "pics")
    (elsewhere / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (elsewhere / "pics").mkdir()
    source = open_data(path).sources[0]
    assert (source.annotation.resolve(), source.root.resolve()) == (elsewhere / "a.jsonl", elsewhere / "pics")


def test_a_broken_row_is_named_when_it_is_read(write_meta, tmp_path):
    data = open_data(write_meta(3))
    assert len(data) == 3
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([lines[0], b'{"id": 1}', lines[2]]))
    data = open_data(tmp_path / "meta.json")
    assert data[2].id == 2
    with pytest.raises(DataError, match=r"a\.jsonl:2: no `conversations`"):
        data[1]


def test_the_fingerprint_changes_with_the_rows_and_what_is_drawn_from_them(tmp_path, write_meta):
    path = write_meta(repeat_time=0.5)
    first = open_data(path).fingerprint
    assert first == open_data(path).fingerprint
    assert first != open_data(path, seed=1).fingerprint
    assert first != open_data(write_meta(repeat_time=0.6)).fingerprint
    assert first != open_data(write_meta(repeat_time=0.5, data_augment=True)).fingerprint
    assert first != open_data(write_meta(repeat_time=0.5, max_dynamic_patch=3)).fingerprint
    write_meta(repeat_time=0.5)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace('"value": "A"', '"value": "B"', 1))
    assert first != open_data(path).fingerprint
