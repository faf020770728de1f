"""The plan of rows of unknown length: every row as often as asked, on every rank the same number of batches."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from row_plan import plan_run

from ivlkit.errors import DataError
from ivlkit.training.loop.schedule import MicroBatch, epoch_order
from ivlkit.training.recipes import recipe


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
    epoch_order.cache_clear()


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
