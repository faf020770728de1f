"""A split is kept beside the data: what was placed once never moves, whatever becomes of the other rows."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.data import splits
from ivlkit.data.datasets.opening import from_csv, open_data
from ivlkit.data.groups import RowKeys
from ivlkit.data.importing.convert import convert
from ivlkit.errors import DataError


@pytest.fixture
def write_noise(tmp_path):
    """`write_noise(0, 300)` → names of pictures 0 to 299 of noise, below photos/: no two look alike."""

    def write(start, stop):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for number in range(start, stop):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        return [f"photos/{number}.png" for number in range(start, stop)]

    return write


@pytest.fixture
def write_table(tmp_path):
    """Rows (file, answer, …) under a header → labels.csv."""

    def write(rows, header=("file", "label"), name="labels.csv"):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / name

    return write


def opened(table, **options):
    return from_csv(table, question="What is it?", answer="label", **options)


def sides(split):
    """{picture: part} of a split; no picture is in two."""
    found = {}
    for name, part in split._asdict().items():
        for record in part:
            picture = record.images[0].name
            assert found.setdefault(picture, name) == name
    return found


def converted_sides(folder):
    found = {}
    for name in ("train", "validation", "test"):
        path = folder / f"{name}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            found[json.loads(line)["image"].rpartition("/")[2]] = name
    return found


def changed(rows, more):
    """One row dropped, 50 added, 20 answers corrected."""
    rows = [row for number, row in enumerate(rows) if number != 137]
    rows[40:60] = [(file, f"{answer} indeed") for file, answer in rows[40:60]]
    return rows[::-1] + [(file, "new") for file in more]


def test_a_row_dropped_fifty_added_and_twenty_corrected_move_no_picture(tmp_path, write_noise, write_table):
    rows = [(file, f"A{number % 7}") for number, file in enumerate(write_noise(0, 300))]
    before = opened(write_table(rows)).split()
    first = sides(before)
    assert [len(part) for part in before] == [240, 30, 30]
    after = opened(write_table(changed(rows, write_noise(300, 350)))).split()
    second = sides(after)
    assert len(second) == 349 and {picture: second.get(picture, part) for picture, part in first.items()} == first
    assert [len(part) for part in after] == pytest.approx([279.2, 34.9, 34.9], abs=1)


def test_convert_and_split_use_one_file(tmp_path, write_noise, write_table):
    rows = [(file, f"A{number % 7}") for number, file in enumerate(write_noise(0, 300))]
    table = write_table(rows)
    options = {"question": "What is it?", "answer": "label"}
    convert(table, tmp_path / "one", **options)
    first = converted_sides(tmp_path / "one")
    assert sides(opened(table).split()) == first
    write_table(changed(rows, write_noise(300, 350)))
    convert(table, tmp_path / "two", **options)
    second = converted_sides(tmp_path / "two")
    assert {picture: second.get(picture, part) for picture, part in first.items()} == first
    assert sides(opened(table).split()) == second
    header, asked, *kept = (tmp_path / "labels.csv.split.csv").read_text().splitlines()
    assert (header, asked) == ("digest,part", "asked,train=0.8 validation=0.1 test=0.1 seed=0")
    assert len(kept) == 350  # the dropped row's too: it may come back


def test_without_the_file_a_dropped_row_would_move_others(tmp_path, write_noise, write_table):
    """What the file is for."""
    rows = [(file, "A") for file in write_noise(0, 300)]
    first = sides(opened(write_table(rows)).split())
    (tmp_path / "labels.csv.split.csv").unlink()
    second = sides(opened(write_table(rows[:137] + rows[138:])).split())
    assert sum(first[picture] != part for picture, part in second.items()) > 50


def test_rows_without_pictures_are_known_by_what_they_ask(write_rows, turns):
    def split(answers):
        rows = [{"conversations": turns(f"Q{number}", answer)} for number, answer in answers]
        return [{record.question for record in part} for part in open_data(write_rows(rows)).split()]

    first = split([(number, "A") for number in range(60)])
    second = split([(number, "corrected") for number in range(59)] + [(number, "B") for number in range(60, 80)])
    for one, other in zip(first, second, strict=True):
        assert one - {"Q59"} <= other


def test_other_shares_and_another_seed_are_said_and_move_nothing(write_noise, write_table):
    rows = [(file, "A") for file in write_noise(0, 40)]
    first = sides(opened(write_table(rows)).split(train=0.5, test=0.5))
    data = opened(write_table([*rows, *((file, "A") for file in write_noise(40, 60))]))
    said = r"begun with train=0.5 test=0.5 seed=0; asked now: train=0.8 test=0.2 seed=3. 40 rows stay .* 20 new ones"
    with pytest.warns(UserWarning, match=said):
        again = data.split(train=0.8, test=0.2, seed=3)
    assert first.items() <= sides(again).items()
    assert [len(part) for part in again] == [40, 20]  # the new ones fill up what 0.8 lacks


def test_other_parts_are_refused_and_a_second_split_has_a_file_of_its_own(tmp_path, write_noise, write_table):
    data = opened(write_table([(file, "A") for file in write_noise(0, 40)]))
    first = sides(data.split(train=0.5, test=0.5))
    with pytest.raises(DataError, match=r"labels.csv.split.csv has it in the part 'test'; expected one of fit, rest"):
        data.split(fit=0.5, rest=0.5)
    with pytest.raises(DataError, match="no row for 'validation' .* has placed 40 of 40 rows, which stay"):
        data.split(train=0.5, validation=0.1, test=0.4)
    data.split(fit=0.5, rest=0.5, file=tmp_path / "second.split.csv")
    assert sides(data.split(train=0.5, test=0.5)) == first


def test_a_part_that_is_cut_further_has_a_file_of_its_own(tmp_path, write_noise, write_table):
    data = opened(write_table([(file, "A") for file in write_noise(0, 60)]))
    rest, test = data.split(train=0.5, test=0.5)
    train, validation = rest.split(train=0.8, validation=0.2)
    assert (len(train), len(validation), len(test)) == (24, 6, 30)
    assert (tmp_path / "labels.csv.train.split.csv").exists()
    again, _ = data.split(train=0.5, test=0.5)
    assert sides(again.split(train=0.8, validation=0.2)) == sides(rest.split(train=0.8, validation=0.2))


def test_the_training_part_of_a_conversion_is_cut_as_a_part(tmp_path, write_noise, write_table):
    table = write_table([(file, "A") for file in write_noise(0, 60)])
    done = convert(table, tmp_path / "out", question="What is it?", answer="label")
    train, validation = open_data(done.meta).split(train=0.5, validation=0.5)
    assert (len(train), len(validation)) == (24, 24)
    assert (tmp_path / "labels.csv.train.split.csv").exists()


def test_two_data_sets_in_one_folder_do_not_disturb_each_other(write_noise, write_table):
    rows = [(file, "A") for file in write_noise(0, 40)]
    first = sides(opened(write_table(rows)).split())
    other = opened(write_table(rows, name="others.csv"))
    assert sides(other.split(fit=0.5, rest=0.5, seed=7)).keys() == first.keys()
    assert sides(opened(write_table(rows)).split()) == first


def test_a_part_may_have_any_name(write_noise, write_table):
    first, others = opened(write_table([(file, "A") for file in write_noise(0, 10)])).split(
        **{"a b": 0.5, "_rest": 0.5}
    )
    assert len(first) + len(others) == 10


def test_a_table_saved_under_another_name_begins_with_the_split_of_the_first(tmp_path, write_noise, write_table):
    rows = [(file, "A") for file in write_noise(0, 60)]
    first = sides(opened(write_table(rows)).split(seed=5))
    second = opened(write_table(rows[1:], name="labels_v2.csv"))
    with pytest.warns(UserWarning) as said:
        assert sides(second.split()).items() <= first.items()
    assert any(
        "is new: 59 of 59 rows are in the parts that labels.csv.split.csv has" in str(one.message) for one in said
    )
    own = second.split(file=tmp_path / "own.csv")
    assert not sides(own).items() <= first.items()


def test_a_data_set_of_mostly_other_pictures_begins_anew(tmp_path, write_noise, write_table):
    rows = [(file, "A") for file in write_noise(0, 60)]
    opened(write_table(rows)).split()
    more = [*rows[:20], *((file, "A") for file in write_noise(60, 100))]
    begun = sides(opened(write_table(more, name="others.csv")).split())
    assert begun == sides(opened(write_table(more, name="others.csv")).split(file=tmp_path / "alone.csv"))


def test_a_new_row_that_ties_what_was_parted_is_refused(tmp_path, write_noise, write_rows, turns):
    files = write_noise(0, 20)
    rows = [{"image": file, "conversations": turns("Q", "A")} for file in files]
    split = sides(open_data(write_rows(rows)).split(train=0.5, test=0.5))
    train, test = (next(f"photos/{name}" for name in split if split[name] == part) for part in ("train", "test"))
    rows.append({"image": [train, test], "conversations": turns("<image><image>Q", "A")})
    with pytest.raises(DataError, match=r"train.jsonl:\d+: .*split.csv has what it is tied to in '\w+' and in '\w+'"):
        open_data(write_rows(rows)).split(train=0.5, test=0.5)


def test_a_damaged_file_is_refused(tmp_path, write_noise, write_table):
    data = opened(write_table([(file, "A") for file in write_noise(0, 20)]))
    (tmp_path / "labels.csv.split.csv").write_text("picture;part\n")
    with pytest.raises(DataError, match=r"labels.csv.split.csv: can't be read .*; expected a kept split; remove it"):
        data.split()


def test_where_the_folder_cannot_be_written_the_split_lies_with_the_runs(
    tmp_path, monkeypatch, write_noise, write_table
):
    rows = [(file, "A") for file in write_noise(0, 40)]
    work, write_whole = tmp_path / "work", splits.write_whole
    work.mkdir()
    monkeypatch.chdir(work)

    def write(path, text):
        if tmp_path / "labels.csv.split.csv" == path:
            raise OSError(30, "Read-only file system")
        return write_whole(path, text)

    monkeypatch.setattr(splits, "write_whole", write)
    with pytest.warns(
        UserWarning, match=r"can't be written \(Read-only file system\): it is kept in runs/\w{8}-labels"
    ):
        first = sides(opened(write_table(rows)).split())
    with pytest.warns(UserWarning, match="it is kept in runs/"):
        assert first.items() >= sides(opened(write_table(rows[1:])).split()).items()
    shutil.rmtree(work / "runs")
    (work / "runs").write_text("no folder")
    with pytest.warns(UserWarning, match="neither can runs/.*; a later split of changed rows will be another one"):
        opened(write_table(rows)).split()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_no_digest_moves_or_is_in_two_parts(tmp_path, seed):
    """Rows of one to three of 200 digests, in six rounds of removing a tenth and adding twenty."""
    rng, placed, rows = np.random.default_rng(seed), {}, []
    for _ in range(6):
        rows = [row for row in rows if rng.random() < 0.9]
        rows += [tuple(f"d{digest}" for digest in rng.integers(0, 200, rng.integers(1, 4))) for _ in range(20)]
        rows = [row for row in rows if len({placed[digest] for digest in row if digest in placed}) < 2]
        keys, names = RowKeys(list(rows)), {"train": 0.6, "test": 0.4}
        try:
            found = splits.place_rows(keys, names, file=tmp_path / "a.csv", where=str, seed=seed)
        except DataError as error:  # through a row that is gone: what it tied may be tied anew, the other way
            assert "tied to" in str(error)
            break
        found.keep()
        for row, part in zip(rows, found.part_of.tolist(), strict=True):
            assert {placed.setdefault(digest, part) for digest in row} == {part}


class TestGroup:
    @pytest.fixture
    def patients(self, write_noise, write_table):
        """120 pictures of 30 patients, four each."""
        rows = [(file, "A", f"p{number % 30}") for number, file in enumerate(write_noise(0, 120))]
        return write_table(rows, header=("file", "label", "patient"))

    def of(self, split):
        return [{record.extra["patient"] for record in part} for part in split]

    def test_all_rows_of_a_value_go_to_one_part(self, patients):
        split = opened(patients).split(group="patient")
        train, validation, test = self.of(split)
        assert [len(part) for part in split] == [96, 12, 12]
        assert not train & validation and not train & test and not validation & test

    def test_a_new_picture_follows_its_group_even_if_all_others_are_gone(self, patients, write_noise, write_table):
        split = opened(patients).split(group="patient")
        (here, *_), gone = sorted(self.of(split)[2]), sorted(self.of(split)[1])[0]
        rows = [row.split(",") for row in patients.read_text().splitlines()[1:]]
        rows = [row for row in rows if row[2] != gone]
        rows += [(file, "A", patient) for file, patient in zip(write_noise(120, 122), (here, gone), strict=True)]
        again = opened(write_table(rows, header=("file", "label", "patient"))).split(group="patient")
        assert sides(again)["120.png"] == "test" and sides(again)["121.png"] == "validation"

    def test_fields_of_json_rows_group_as_columns_do(self, tmp_path, write_noise, write_rows, turns):
        rows = [
            {"image": file, "conversations": turns("Q", "A"), "site": number % 10, "source": f"s{number % 10}"}
            for number, file in enumerate(write_noise(0, 60))
        ]
        for name in ("site", "source"):
            split = open_data(write_rows(rows)).split(group=name, file=tmp_path / f"{name}.csv")
            found = [{record.extra[name] for record in part} for part in split]
            assert sum(map(len, found)) == 10

    def test_convert_groups_by_a_source_of_the_rows_and_not_by_its_own(self, tmp_path, write_noise, write_rows, turns):
        rows = [
            {"image": file, "conversations": turns("Q", "A"), "source": f"s{number % 10}"}
            for number, file in enumerate(write_noise(0, 60))
        ]
        done = convert(write_rows(rows), tmp_path / "out", group="source")
        parts = [open_data(done.meta, split=name) for name in done.rows]
        assert sum(len({record.extra["row_source"] for record in part}) for part in parts) == 10
        both = open_data(done.meta, split="all").split(a=0.5, b=0.5, group="source", file=tmp_path / "b.csv")
        assert sum(len({record.extra["row_source"] for record in part}) for part in both) == 10

    def test_the_command_groups_too(self, tmp_path, patients, capsys):
        options = ["--question", "What is it?", "--answer", "label", "--to", str(tmp_path / "out")]
        assert main(["convert", str(patients), *options, "--group", "patient"]) == 0
        assert "96 train, 12 validation, 12 test" in capsys.readouterr().out
        assert len({len(self.of([open_data(tmp_path / "out" / "test.json")])[0])} - {3}) == 0

    def test_a_part_without_rows_is_said_by_a_conversion(self, tmp_path, patients):
        lines = [line for line in patients.read_text().splitlines() if line[-3:] in ("ent", ",p1", ",p2")]
        patients.write_text("\n".join(lines))
        done = convert(patients, tmp_path / "out", question="What?", answer="label", group="patient")
        assert done.rows == {"train": 8}
        assert [said.partition(";")[0] for said in done.said] == ["no row for 'validation'", "no row for 'test'"]

    def test_a_conversion_s_split_may_be_kept_elsewhere(self, tmp_path, patients):
        options = {"question": "What?", "answer": "label", "group": "patient"}
        convert(patients, tmp_path / "one", **options)
        convert(patients, tmp_path / "two", **options, seed=1, split_file=tmp_path / "second.csv")
        assert converted_sides(tmp_path / "one") != converted_sides(tmp_path / "two") != {}
        assert (tmp_path / "second.csv").read_text() != (tmp_path / "labels.csv.split.csv").read_text()

    def test_a_row_without_a_value_is_named(self, tmp_path, write_noise, write_table):
        rows = [(file, "A", "p1" if number else "") for number, file in enumerate(write_noise(0, 20))]
        table = write_table(rows, header=("file", "label", "patient"))
        with pytest.raises(
            DataError, match=r"rows.jsonl:1: no value in 'patient', by which rows are grouped; .*fill it"
        ):
            opened(table).split(group="patient")
        done = convert(table, tmp_path / "out", question="What?", answer="label", group="patient")
        assert done.rejected == 1 and done.first_rejects[0].startswith("labels.csv:2: no value in 'patient'")

    def test_a_group_that_an_earlier_split_has_parted_is_refused(self, patients):
        data = opened(patients)
        data.split()
        with pytest.raises(DataError, match=r"has what it is tied to in '\w+' and in '\w+'; expected one part"):
            data.split(group="patient")
