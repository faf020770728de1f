"""A meta file → one indexed data set: every row that is asked for, none that is not."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ivlkit.data.checking.doctor import diagnose
from ivlkit.data.datasets.mixture import read_entries, read_meta
from ivlkit.data.datasets.opening import open_data
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


@pytest.mark.parametrize("numbers", [np.arange(10) < 3, [0.0, 1.0]])
def test_a_selection_is_of_row_numbers(write_meta, numbers):
    with pytest.raises(DataError, match="a selection of .*; expected row numbers; use np.flatnonzero"):
        open_data(write_meta()).select(numbers)


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


def test_an_opened_data_set_is_taken_as_it_is_but_not_opened_otherwise(write_meta):
    data = open_data(write_meta())
    assert open_data(data) is data
    with pytest.raises(DataError, match="a Data in the data's place"):
        open_data(data, split="validation")


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
    with pytest.raises(DataError, match=r"a\.jsonl: repeat_time 0.01 of 10 rows leaves none; expected one row"):
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
        ({"repeat_time": 1e300}, r"`repeat_time` is 1e\+300; expected more than 0 and at most 1,000,000"),
        ({"repeat_time": 10**400}, "`repeat_time` is 1000000"),
        ({"max_tiles": 10**9}, "`max_tiles` is 1000000000; expected more than 0 and at most 1,000"),
        ({"length": "10"}, "`length` is '10'; expected int"),
        ({"annotation": "nowhere.jsonl"}, r"nowhere\.jsonl: can't be read"),
        ({"annotation": "n" * 300}, "nnn: can't be read"),
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


# beyond the released fields ------------------------------------------------------------------------------------------


@pytest.fixture
def write_sets(tmp_path, write_rows, turns):
    """`write_sets(a=(10, fields), …)` → a meta file of sets with so many rows, ids "a0", "a1", …"""

    def write(**sets):
        entries = {}
        for name, (rows, fields) in sets.items():
            path = write_rows(
                [{"id": f"{name}{number}", "conversations": turns("Q", "A")} for number in range(rows)], f"{name}.jsonl"
            )
            entries[name] = {"root": str(tmp_path), "annotation": str(path)} | fields
        (tmp_path / "meta.json").write_text(json.dumps(entries))
        return tmp_path / "meta.json"

    return write


def test_entries_of_other_splits_are_left_to_those_who_ask(write_sets):
    path = write_sets(a=(2, {}), b=(3, {"split": "train"}), c=(1, {"split": "test"}))
    assert ids(open_data(path)) == ["a0", "a1", "b0", "b1", "b2"]
    assert ids(open_data(path, split="test")) == ["c0"]
    assert len(open_data(path, split="all")) == 6
    with pytest.raises(DataError, match="no entry of split 'validation'; expected one of test, train, all"):
        open_data(path, split="validation")


@pytest.mark.parametrize(
    "fields", [[{"weight": 0.5}], [{"weight": 0.5}, {}], [{"weight": 1}, {"weight": 3, "split": "test"}]]
)
def test_a_weight_that_has_nothing_to_share_with_is_refused(write_sets, fields):
    meta = write_sets(**{name: (10, own) for name, own in zip("ab", fields, strict=False)})
    said = "'a': `weight` of a single set of train changes nothing; expected two sets with one at least; to draw or"
    with pytest.raises(DataError, match=said):
        open_data(meta)
    (problem,) = diagnose(meta).by_code("meta")
    assert problem.found == "'a': `weight` of a single set of train changes nothing"


def test_weights_share_the_epoch_and_leave_the_others_alone(write_sets):
    data = open_data(write_sets(a=(100, {"weight": 1}), b=(20, {"weight": 2}), c=(7, {})))
    counts = Counter(record.id[0] for record in data)
    assert counts == {"a": 40, "b": 80, "c": 7}
    assert [source.repeat for source in data.sources] == [0.4, 4.0, 1]


def test_a_system_prompt_of_a_set_opens_its_rows_but_for_those_with_their_own(tmp_path, write_sets, turns):
    path = write_sets(a=(1, {"system": "Be brief."}), b=(1, {}))
    own = {"conversations": [{"from": "system", "value": "Mine."}, *turns("Q", "A")]}
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write(json.dumps(own) + "\n")
    first = [record.turns[0] for record in open_data(path)]
    assert [(turn.role, turn.text) for turn in first] == [("system", "Be brief."), ("system", "Mine."), ("user", "Q")]


def test_max_tiles_is_max_dynamic_patch(write_meta):
    assert open_data(write_meta(max_tiles=4))[0].max_tiles == 4
    with pytest.raises(DataError, match="both `max_tiles` and `max_dynamic_patch`"):
        open_data(write_meta(max_tiles=4, max_dynamic_patch=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "csv?"}, "`format` is 'csv\\?'; expected one of released"),
        ({"split": "all"}, "`split` is 'all'; expected a name such as train"),
        ({"split": 3}, "`split` is 3; expected str"),
        ({"weight": 0}, "`weight` is 0; expected more than 0"),
        ({"weight": 1, "repeat_time": 1}, "both `weight` and `repeat_time`"),
        ({"system": 1}, "`system` is 1; expected str"),
        ({"max_tiles": 0}, "`max_tiles` is 0; expected more than 0"),
    ],
)
def test_a_wrong_field_of_ours_is_refused_too(write_meta, fields, message):
    with pytest.raises(DataError, match=message):
        open_data(write_meta(**fields))


def test_all_missing_files_are_named_with_where_they_come_from(tmp_path, write_sets):
    path = write_sets(a=(1, {"about": "the attic"}), b=(1, {}), c=(1, {}))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        open_data(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 data sets are missing:"
    assert "a.jsonl: can't be read" in lines[1] and lines[1].endswith("get it: the attic")
    assert "c.jsonl: can't be read" in lines[2]


def test_places_are_where_rows_are_read_from(write_sets):
    data = open_data(write_sets(a=(10, {"repeat_time": 2.5}), b=(4, {"repeat_time": 0.5})))
    for chosen in (data, data.select([26, 3, 24, 3, 0])):
        sources, rows = chosen.places()
        assert [f"{'ab'[source]}{row}" for source, row in zip(sources, rows, strict=True)] == ids(chosen)
    assert data.rows_in_use()[0] is None
    used = data.select([3, 13, 23]).rows_in_use()
    assert (3 in used[0]) and len(used[1]) == 0


@pytest.mark.parametrize("numbers", [[], [10], [-1]])
def test_a_selection_of_rows_that_are_not_there_is_refused(write_meta, numbers):
    with pytest.raises(DataError, match="a selection of no rows|selected of 10; expected 0 to 9"):
        open_data(write_meta()).select(numbers)
    with pytest.raises(DataError, match="rows -1 to 5 selected of 10"):
        open_data(write_meta()).select([5, -1])


def test_the_fingerprint_minds_the_root_but_not_where_the_folder_lies(tmp_path, write_rows, turns):
    def written(folder, root):
        path = write_rows([{"conversations": turns("Q", "A")}], f"{folder}/a.jsonl")
        (tmp_path / folder / root).mkdir(exist_ok=True)
        return open_data(path, root=tmp_path / folder / root).fingerprint

    assert written("one", "pics") == written("two", "pics")
    assert written("one", "pics") != written("one", "others")


def test_a_row_of_a_large_file_costs_eight_bytes(tmp_path, turns):
    line = json.dumps({"conversations": turns("Q", "A")}) + "\n"
    path = tmp_path / "large.jsonl"
    path.write_text(line * 100_000)
    data = open_data(path)
    (index,) = data.indexes
    assert index.offsets.nbytes == 8 * 100_001
    assert data.selection is None and all(len(drawn) == 0 for _, drawn in data._drawn)


def test_the_ready_mix_names_nine_sets_with_their_counts():
    path = Path(__file__).parents[2] / "data_templates" / "general_mix" / "meta.json"
    entries = read_entries(path)
    sources = read_meta(path)
    assert sum(source.length for source in sources) == 1_267_819
    assert len(sources) == 9 and all(source.about for source in sources)
    with pytest.raises(DataError, match="9 of 9 data sets are missing"):
        open_data(path)
    assert all(entry["annotation"].startswith("playground/opensource/") for entry in entries.values())


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", '\n[\n{"conversations": []}]'), ("a.csv", "image,label\n"), ("a.parquet", "PAR1\0")],
)
def test_a_file_that_is_no_json_lines_is_said_to_be_none(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"root": ".", "annotation": str(tmp_path / name)}}))
    with pytest.raises(DataError, match=f"{name}: no JSON lines; expected one object a line; write them: "):
        open_data(tmp_path / "meta.json")
    (problem,) = diagnose(tmp_path / "meta.json").problems
    assert "no JSON lines" in str(problem)
