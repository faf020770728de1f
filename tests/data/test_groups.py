"""Parts of a data set that share no picture, and training on one of them."""

import json
from collections import Counter

import numpy as np
import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.data.groups import group_keys, part_of_groups, row_keys
from ivlkit.errors import DataError


@pytest.fixture
def shared(tmp_path, write_rows, turns, draw_picture):
    """60 rows over 20 pictures, of which 0 and 1 have equal bytes and 2 and 3 stand in one row; ten rows of text."""
    for number in range(20):
        draw_picture(64 + number, 40, seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows = [{"image": f"{n % 20}.png", "conversations": turns("<image>Q", f"{n}")} for n in range(60)]
    rows.append({"image": ["2.png", "3.png"], "conversations": turns("<image><image>Q", "both")})
    rows += [{"conversations": turns(f"Q{n % 5}", "A")} for n in range(10)]
    return open_data(write_rows(rows))


def group_rows(data):
    return group_keys(row_keys(data).own)


def pictures_of(data):
    return {image.read_bytes() for record in data for image in record.images}


def test_rows_that_share_a_picture_by_any_way_are_one_group(shared):
    groups = group_rows(shared)
    assert len({groups[n] for n in (0, 20, 40, 1, 21, 41)}) == 1  # equal bytes under two names
    assert len({groups[n] for n in (2, 22, 3, 43, 60)}) == 1  # through the row with both
    assert len({groups[n] for n in (61, 66)}) == 1  # equal texts
    assert len(set(groups.tolist())) == 18 + 5


def test_no_picture_is_on_two_sides_and_no_row_is_lost(shared):
    train, validation, test = shared.split(train=0.6, validation=0.2, test=0.2)
    parts = [train, validation, test]
    assert sorted(record.where for part in parts for record in part) == sorted(record.where for record in shared)
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            assert pictures_of(part).isdisjoint(pictures_of(other))
    assert [len(part) for part in parts] == pytest.approx([43, 14, 14], abs=4)


def test_the_seed_decides_and_names_are_the_arguments(shared, tmp_path):
    first, again = (shared.split(fit=0.5, rest=0.5) for _ in range(2))
    assert first._fields == ("fit", "rest")
    assert first.fit.fingerprint == again.fit.fingerprint != first.rest.fingerprint
    other = shared.split(fit=0.5, rest=0.5, seed=1, file=tmp_path / "other.split.csv")
    assert other.fit.fingerprint != first.fit.fingerprint
    (tmp_path / "train.jsonl.split.csv").unlink()
    assert shared.split()._fields == ("train", "validation", "test")


def test_groups_of_one_are_cut_exactly():
    parts = part_of_groups(np.arange(10), [0.8, 0.1, 0.1], seed=3)
    assert Counter(parts.tolist()) == {0: 8, 1: 1, 2: 1}


def test_the_largest_group_goes_to_the_largest_part():
    groups = np.array([7] * 60 + list(range(100, 140)))
    for seed in range(5):
        parts = part_of_groups(groups, [0.2, 0.8], seed=seed)
        assert set(parts[:60].tolist()) == {1}
        assert Counter(parts.tolist()) == {1: 80, 0: 20}


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.2, "b": -0.2}, {"a": 1, "b": 0}])
def test_shares_that_are_no_shares_are_refused(shared, shares):
    with pytest.raises(DataError, match="expected numbers above 0 that sum to 1"):
        shared.split(**shares)


def test_a_part_without_rows_is_refused(tmp_path, write_rows, turns, draw_picture):
    draw_picture().save(tmp_path / "a.png")
    rows = [{"image": "a.png", "conversations": turns("Q", f"{n}")} for n in range(9)]
    with pytest.raises(DataError, match="no row for 'validation'.*rows that share pictures stay together"):
        open_data(write_rows(rows)).split()


def test_pictures_written_out_in_the_rows_are_compared_by_their_bytes(write_rows, turns):
    uris = [f"data:image/png;base64,{text}" for text in ("AAAA", "AA\nAA", "BBBB", "CCCC")]
    path = write_rows([{"image": uri, "conversations": turns("Q", "A")} for uri in uris])
    assert group_rows(open_data(path)).tolist() == [0, 0, 2, 3]
    assert [len(part) for part in open_data(path).split(train=0.5, test=0.5)] == [2, 2]


def test_a_missing_picture_is_named_with_its_row(write_rows, turns):
    data = open_data(write_rows([{"image": "gone.png", "conversations": turns("Q", "A")}] * 2))
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*gone\.png can't be read"):
        data.split(a=0.5, b=0.5)


def test_a_repeated_row_stays_on_one_side(tmp_path, shared, turns):
    entry = {"root": str(tmp_path), "annotation": str(shared.path), "repeat_time": 2.5}
    (tmp_path / "meta.json").write_text(json.dumps({"a": entry}))
    train, test = open_data(tmp_path / "meta.json").split(train=0.5, test=0.5)
    assert len(train) + len(test) == round(71 * 2.5)
    assert {record.where for record in train}.isdisjoint(record.where for record in test)


def test_a_part_can_be_cut_again(shared):
    train, _ = shared.split(train=0.8, test=0.2)
    one, other = train.split(one=0.5, other=0.5)
    assert len(one) + len(other) == len(train)
    assert {record.where for record in one} <= {record.where for record in train}
