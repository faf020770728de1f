"""The plan of a run: every row as often as asked, on every rank the same number of batches, nothing repeated."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from ivlkit.data.mixture import open_data
from ivlkit.data.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.training import schedule
from ivlkit.training.recipes import recipe
from ivlkit.training.schedule import MicroBatch, MicroBatches, check_rows, plan_run


def plan(num_rows, **changes):
    """(batches of each rank, steps) for steps of 8 rows in batches of 2."""
    chosen = recipe("nano-lora", **{"total_batch": 8, "per_device_batch": 2, "epochs": 1} | changes)
    plans = [plan_run(num_rows, chosen, rank=rank) for rank in range(chosen.gpus)]
    assert len({steps for _, steps in plans}) == 1
    return [batches for batches, _ in plans], plans[0][1]


def rows_of(batches):
    return [row for batch in batches if not batch.masked for row in batch.rows]


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 9, 13, 17, 100])
def test_every_row_is_seen_once_an_epoch(num_rows, epochs, gpus):
    ranks, steps = plan(num_rows, epochs=epochs, gpus=gpus)
    counts = Counter(row for batches in ranks for row in rows_of(batches))
    assert counts == {(epoch, row): 1 for epoch in range(epochs) for row in range(num_rows)}
    assert len({len(batches) for batches in ranks}) == 1
    assert steps == -(-num_rows * epochs // 8)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("num_rows", [7, 13, 100])
def test_a_step_is_exactly_the_total_batch_and_only_the_last_is_smaller(num_rows, gpus):
    ranks, steps = plan(num_rows, epochs=3, gpus=gpus)
    accumulation = 8 // (2 * gpus)
    sizes = [
        sum(len(rows_of(batches[step * accumulation : (step + 1) * accumulation])) for batches in ranks)
        for step in range(steps)
    ]
    assert sizes[:-1] == [8] * (steps - 1)
    assert sizes[-1] == num_rows * 3 - 8 * (steps - 1)
    assert max(len(batch.rows) for batches in ranks for batch in batches) <= 2


def test_a_plan_by_hand():
    """100 rows in steps of 16 and batches of 4: six steps of four batches and one of a single batch."""
    batches, steps = plan_run(100, recipe("nano-lora", total_batch=16, per_device_batch=4, epochs=1))
    assert (len(batches), steps) == (25, 7)
    assert {len(batch.rows) for batch in batches} == {4}


def test_a_rank_without_a_row_gets_a_masked_one():
    (first, second), steps = plan(1, gpus=2)
    assert steps == 1
    assert first == [MicroBatch(((0, 0),))]
    assert second == [MicroBatch(((0, 0),), masked=True)]


def test_part_of_an_epoch():
    (batches,), steps = plan(10, epochs=0.5)
    assert (len(set(rows_of(batches))), steps) == (5, 1)
    (batches,), _ = plan(10, epochs=1.5)
    counts = Counter(row for _, row in rows_of(batches))
    assert sorted(counts.values()) == [1] * 5 + [2] * 5


def test_a_plan_is_that_of_materialised_lists():
    """The straightforward way, written out: permutations joined, steps sliced, micro-batches strided."""
    for num_rows, epochs, gpus in ((1, 1, 1), (7, 2.5, 2), (100, 3, 2), (37, 0.7, 1), (16, 1, 2)):
        order = [
            (epoch, int(row))
            for epoch in range(int(np.ceil(epochs)))
            for row in np.random.default_rng([0, epoch]).permutation(num_rows)
        ][: round(num_rows * epochs)]
        ranks, steps = plan(num_rows, epochs=epochs, gpus=gpus, seed=0)
        for rank, found in enumerate(ranks):
            expected = []
            for start in range(0, len(order), 8):
                step = order[start : start + 8]
                count = min(8 // (2 * gpus), -(-len(step) // (gpus * 2)))
                for number in range(count):
                    rows = step[number * gpus + rank :: count * gpus]
                    expected.append(MicroBatch(tuple(rows or step[:1]), masked=not rows))
            assert found == expected
            assert list(found[1:3]) == expected[1:3] and found[-1] == expected[-1]
        assert steps == -(-len(order) // 8)


def test_a_plan_of_ten_million_rows_is_small():
    chosen = recipe("nano-lora", total_batch=8, per_device_batch=2, epochs=3)
    tracemalloc.start()
    batches, steps = plan_run(10_000_000, chosen)
    first, last = batches[0], batches[-1]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert steps == 3_750_000 and len(batches) == 15_000_000
    assert {epoch for epoch, _ in first.rows} == {0} and {epoch for epoch, _ in last.rows} == {2}
    assert held < 90e6 and peak < 250e6
    schedule._epoch_order.cache_clear()


def test_less_than_one_row_is_refused():
    with pytest.raises(DataError, match="epochs .* of 1 rows"):
        plan(1, epochs=0.1)


def test_epochs_are_shuffled_anew_and_the_seed_decides():
    (batches,), _ = plan(50, epochs=2)
    rows = [row for _, row in rows_of(batches)]
    assert rows[:50] != rows[50:]
    assert rows[:50] != list(range(50))
    (again,), _ = plan(50, epochs=2)
    (other,), _ = plan(50, epochs=2, seed=1)
    assert again == batches
    assert other != batches


# tensors -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(draw_picture):
    def row(number, answer):
        turns = (Turn("user", "<image>\nQ"), Turn("assistant", answer))
        return Record(number, turns, (draw_picture(112, 112, seed=number),), f"train.jsonl:{number + 1}")

    return [row(number, answer) for number, answer in enumerate(("1", "two words", "three little words", "4"))]


def test_a_micro_batch_is_collated_rows_with_weights(data, processor):
    chosen = recipe("nano-lora", weighting="sample")
    batch = MicroBatches(data, processor, chosen, [MicroBatch(((0, 2), (0, 0)))])[0]
    assert batch["where"] == ["train.jsonl:3", "train.jsonl:1"]
    assert batch["tiles"].shape == (2, 112, 112, 3)
    supervised = (batch["labels"][:, 1:] != -100).sum(1)
    torch.testing.assert_close(batch["weights"], 1 / supervised)


def test_a_masked_batch_weighs_nothing(data, processor):
    batch = MicroBatches(data, processor, recipe("nano-lora"), [MicroBatch(((0, 2),), masked=True)])[0]
    assert batch["weights"].tolist() == [0]
    assert len(batch["input_ids"]) == 1


def test_a_batch_depends_on_its_place_only(data, processor):
    batches = [MicroBatch(((0, 0),)), MicroBatch(((0, 1), (0, 3)))]
    forwards = [MicroBatches(data, processor, recipe("nano-lora"), batches)[number] for number in (0, 1)]
    last = MicroBatches(data, processor, recipe("nano-lora"), batches)[1]
    assert torch.equal(forwards[1]["input_ids"], last["input_ids"])
    assert torch.equal(forwards[1]["tiles"], last["tiles"])


# checking before training --------------------------------------------------------------------------------------------


@pytest.fixture
def checked(write_rows, turns, draw_picture, tmp_path, processor):
    """`checked(rows, **recipe changes)` → what `check_rows` says of a file with these rows."""
    draw_picture(640, 480).save(tmp_path / "a.png")

    def check(rows, **changes):
        path = write_rows([{"conversations": turns("Q", "A")} | row for row in rows])
        return check_rows(open_data(path), processor, recipe("nano-lora", **changes))

    return check


def test_good_rows_have_no_notes(checked):
    assert checked([{}, {"image": "a.png"}]) == []


def test_rows_that_get_fewer_tiles_are_named(checked):
    assert checked([{}, {"image": "a.png"}], max_seq_length=200) == [
        ("train.jsonl:2", "13 → 7 tiles to fit 200 tokens")
    ]


def test_a_video_is_checked_by_its_header(checked, tmp_path, draw_picture):
    frames = [draw_picture(112, 112, seed=seed) for seed in range(40)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    ((where, note),) = checked([{}, {"video": "a.gif"}], max_seq_length=140)
    assert where == "train.jsonl:2" and note.endswith(" frames to fit 140 tokens")
    with pytest.raises(DataError, match=r"train.jsonl:1: clip \[90.0, 99.0\] of .*a.gif"):
        checked([{"video": "a.gif", "clip": [90, 99]}])


def test_all_broken_rows_are_listed_at_once(checked, turns):
    rows = [
        {},
        {"image": "gone.png"},
        {"conversations": turns("Q")},
        {"image": "a.png"},
        {"image": ["a.png", "a.png"]},
        {"conversations": turns("word " * 300, "A")},
        {"conversations": turns("What is <IMG_CONTEXT>?", "A")},
        {"image": "a.png", "conversations": turns("Q", "</img>")},
    ]
    with pytest.raises(DataError) as caught:
        checked(rows, max_seq_length=300)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("train.jsonl: 6 of 8 rows can't be used; mend or remove them:")
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [f"train.jsonl:{n}" for n in (2, 3, 5, 6, 7, 8)]


def test_many_broken_rows_are_counted(checked):
    with pytest.raises(DataError, match="(?s)25 of 25 rows can't be used.*… and 15 more"):
        checked([{"image": "gone.png"}] * 25)
