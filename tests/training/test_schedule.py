"""The plan of a run: every row as often as asked, on every rank the same number of batches, nothing repeated."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ivlkit.data.collate import collate_packed
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.rows.records import Record, Turn
from ivlkit.errors import DataError
from ivlkit.training.loop.schedule import (
    MicroBatch,
    MicroBatches,
    check_rows,
    operations,
    plan_grouped,
    plan_packed,
    tile_cost,
)
from ivlkit.training.recipes import recipe

OF_2B = SimpleNamespace(
    vision_config=SimpleNamespace(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, image_size=[448, 448], patch_size=[14, 14]
    ),
    text_config=SimpleNamespace(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8
    ),
)


def rows_of(batches):
    return [row for batch in batches if not batch.masked for row in batch.rows]


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


# bins ----------------------------------------------------------------------------------------------------------------

BINS = {"total_batch": 8, "per_device_batch": 2, "epochs": 1, "max_seq_length": 100, "bin_tokens": 200, "bin_tiles": 14}


def lengths(num_rows, seed=0):
    """(tokens, tiles) of rows of up to 100 tokens and 13 tiles."""
    rng = np.random.default_rng(seed)
    return rng.integers(5, 100, num_rows), rng.integers(0, 13, num_rows)


def bin_plans(tokens, tiles, kind=plan_packed, rope=(None, True), **changes):
    """The plan of each rank."""
    chosen = recipe("nano-lora", **BINS | changes)
    return [kind(tokens, tiles, chosen, rank=rank, rope=rope) for rank in range(chosen.gpus)]


KINDS_OF_PLAN = pytest.mark.parametrize("kind", [plan_packed, plan_grouped])


@KINDS_OF_PLAN
@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("epochs", [1, 2.5, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 100])
def test_bins_hold_every_row_once_an_epoch_in_steps_of_exactly_the_total_batch(num_rows, epochs, gpus, kind):
    ranks = bin_plans(*lengths(num_rows), kind, epochs=epochs, gpus=gpus)
    total = round(num_rows * epochs)
    counts = Counter(row for plan in ranks for row in rows_of(plan))
    assert max(counts.values()) == 1 and sum(counts.values()) == total
    per_epoch = Counter(epoch for epoch, _ in counts)
    assert [per_epoch[epoch] for epoch in range(int(epochs))] == [num_rows] * int(epochs)
    steps, size = ranks[0].steps, ranks[0].accumulation
    assert (steps, {len(plan) for plan in ranks}) == (-(-total // 8), {steps * size})
    sizes = [sum(len(rows_of(plan[n * size : (n + 1) * size])) for plan in ranks) for n in range(steps)]
    assert sizes == [8] * (steps - 1) + [total - 8 * (steps - 1)]


def test_bins_keep_both_budgets_and_micro_batches_that_no_rank_computes_come_first():
    tokens, tiles = lengths(100)
    ranks = bin_plans(tokens, tiles, gpus=2)
    for place in range(len(ranks[0])):
        bins = [plan[place] for plan in ranks]
        assert len({bool(one.rows) for one in bins}) == 1  # ranks compute together or not at all
        for one in bins:
            rows = [row for _, row in one.rows]
            assert tokens[rows].sum() <= 200 and tiles[rows].sum() <= 14
    computed = np.array([bool(one.rows) for one in ranks[0]]).reshape(-1, ranks[0].accumulation)
    assert computed[:, -1].all()  # gradients are joined in the last one
    assert (np.sort(computed, axis=1) == computed).all()
    assert not computed.all()
    assert ranks[0][list(computed.flatten()).index(False)] == MicroBatch((), masked=True)


def test_a_rank_without_a_bin_computes_the_shortest_row_for_nothing():
    first, second = bin_plans(np.array([40, 9]), np.array([0, 0]), gpus=2, total_batch=2)
    assert [set(first[0].rows), second[0].masked] in ([{(0, 0)}, False], [{(0, 1)}, False])
    first, second = bin_plans(np.array([40]), np.array([0]), gpus=2)
    assert (list(first), list(second)) == ([MicroBatch(((0, 0),))], [MicroBatch(((0, 0),), masked=True)])
    group = bin_plans(np.array([90, 8, 7]), np.array([0, 0, 0]), gpus=4, bin_tokens=100)
    assert [plan[0] for plan in group if plan[0].masked] == [MicroBatch(((0, 2),), masked=True)]


@KINDS_OF_PLAN
def test_the_largest_batch_of_a_rank_that_has_none_in_a_step_is_found(kind):
    """Nine rows by eight: the last step has one row, and so nothing for the second rank."""
    tokens, tiles = lengths(9)
    for plan in bin_plans(tokens, tiles, kind, gpus=2):
        number, most, seen = plan.largest_batch()
        rows = [[row for _, row in one.rows] for one in plan]
        shape = (lambda one: tokens[one].sum()) if kind is plan_packed else (lambda one: len(one) * tokens[one].max())
        assert (most, seen) == max((shape(one), tiles[one].sum()) for one in rows if one)
        assert (shape(rows[number]), tiles[rows[number]].sum()) == (most, seen)
    _, second = bin_plans(np.array([40]), np.array([3]), kind, gpus=2)
    assert second.largest_batch() == (0, 40, 3)


def test_ranks_get_other_bins_of_one_plan():
    """The world size decides the bins, the seed and the epoch which rows meet."""
    tokens, tiles = lengths(40)
    (one,) = bin_plans(tokens, tiles, epochs=2)
    (again,) = bin_plans(tokens, tiles, epochs=2)
    (other,) = bin_plans(tokens, tiles, epochs=2, seed=1)
    assert list(one) == list(again) != list(other)
    first, second = (list(one[: len(one) // 2]), list(one[len(one) // 2 :]))
    assert [[row for _, row in part.rows] for part in first] != [[row for _, row in part.rows] for part in second]
    steps = [
        {row for plan in bin_plans(tokens, tiles, gpus=gpus) for row in rows_of(plan[: plan.accumulation])}
        for gpus in (1, 2)
    ]
    assert steps[0] == steps[1]  # the same eight samples whatever the number of ranks


def test_a_plan_is_read_in_any_order_and_by_slices():
    (plan,) = bin_plans(*lengths(50))
    forwards = list(plan)
    assert [plan[n] for n in reversed(range(len(plan)))][::-1] == forwards
    assert plan[3:9:2] == forwards[3:9:2] and plan[-1] == forwards[-1]
    with pytest.raises(IndexError, match="micro-batch"):
        plan[len(plan)]


def test_fill_by_hand():
    """360 tokens in two bins of 200; of like length in three batches: 80, 80 + 60 and 60 + 40, 360 places for 320."""
    tokens, tiles = np.array([80, 80, 80, 80, 40]), np.zeros(5, int)
    (packed,) = bin_plans(tokens, tiles, total_batch=5)
    assert packed.fill == pytest.approx(360 / 400)
    (padded,) = bin_plans(np.array([80, 60, 80, 60, 40]), tiles, plan_grouped, total_batch=5)
    assert padded.fill == pytest.approx(320 / 360)
    assert str(packed) == "5 rows in 1 steps, each of 2 bins of at most 200 tokens on 1 rank; on average 90.0% full"


def test_a_step_is_planned_with_the_lengths_of_its_epochs():
    """A video of 60 tokens in one epoch and 190 in the next; a step lies across both."""
    first, second = np.array([60, 100, 40, 90]), np.array([190, 100, 40, 90])
    (plan,) = bin_plans(np.stack([first, second]), np.zeros((2, 4), int), epochs=2, total_batch=4)
    for one in (batch for batch in plan if batch.rows):
        assert sum((first, second)[epoch][row] for epoch, row in one.rows) <= 200
    (across,) = bin_plans(np.stack([first, second]), np.zeros((2, 4), int), epochs=2, total_batch=8)
    assert sorted(row for batch in across for row in batch.rows) == [
        (epoch, row) for epoch in (0, 1) for row in range(4)
    ]
    assert all(sum((first, second)[epoch][row] for epoch, row in one.rows) <= 200 for one in across)
    assert across.fill == pytest.approx((290 + 420) / (200 * len(across)))


@KINDS_OF_PLAN
def test_phi3s_rows_of_up_to_4096_tokens_and_longer_ones_are_never_together(kind):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3000, 5200, 60)
    for gpus in (1, 2):
        plans = bin_plans(tokens, tokens * 0, kind, rope=(4096, True), gpus=gpus, max_seq_length=5200, bin_tokens=16384)
        for one in (batch for plan in plans for batch in plan if batch.rows):
            assert len({bool(tokens[row] > 4096) for _, row in one.rows}) == 1
        assert sum(len(rows_of(plan)) for plan in plans) == 60


def test_rows_that_grew_apart_after_planning_are_refused(data, processor):
    """A picture was replaced by a larger one: the bin is not computed with the wrong rope."""
    batches = MicroBatches(data, processor, recipe("nano-lora"), [MicroBatch(((0, 0), (0, 2)))], rope=(58, True))
    sizes = [len(batches.encode_row(0, row)) for row in (0, 2)]
    batches.rope = (min(sizes), True)
    assert sizes[0] < sizes[1]
    with pytest.raises(DataError, match=r"train.jsonl:1: in a batch with train.jsonl:3, more than \d+ tokens"):
        batches[0]


def test_cost_of_a_tile_is_worked_out_from_the_matrices():
    """2B: a ViT of 302 M weights on 1,025 tokens, forward, beside 1.51 B, forward, backward and again: 68 tokens."""
    assert tile_cost(OF_2B, recipe("2b-lora")) == pytest.approx(68.3, abs=0.1)
    assert tile_cost(OF_2B, recipe("2b-full")) == pytest.approx(51.2, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "a_weight"),
    [  # operations a weight of the tower: 2 forward everywhere; of 4 layers of 24, 4 backward, 2 recomputed
        ({"vision": "frozen"}, 2),
        ({"vision": "frozen", "unfreeze_vit_layers": -4, "gradient_checkpointing": "none"}, 2 + 4 * 4 / 24),
        ({"vision": "frozen", "unfreeze_vit_layers": 20, "gradient_checkpointing": "none"}, 2 + 4 * 4 / 24),
        ({"vision": "frozen", "unfreeze_vit_layers": -4}, 2 + 6 * 4 / 24),
        ({"vision": "full", "drop_path": 0}, 8),
    ],
)
def test_backward_ends_at_the_first_layer_of_the_tower_that_trains(changes, a_weight):
    """The 2B's tower has 24 layers of 4 x 1,024² + 2 x 1,024 x 4,096 = 12,582,912 weights, seen by 1,025 tokens."""
    tile, _ = operations(OF_2B, recipe("2b-full", **changes))
    assert tile == pytest.approx(1025 * 24 * 12_582_912 * a_weight)


def test_a_bin_becomes_tensors_with_the_weights_of_its_samples(data, processor):
    chosen = recipe("nano-lora", weighting="sample")
    batches = [MicroBatch(((0, 2), (0, 0))), MicroBatch(((0, 1),), masked=True), MicroBatch((), masked=True)]
    made = MicroBatches(data, processor, chosen, batches, collate=collate_packed)
    padded = MicroBatches(data, processor, chosen, batches)
    assert torch.equal(made[0]["weights"], padded[0]["weights"])
    assert made[0]["where"] == ["train.jsonl:3", "train.jsonl:1"]
    assert made[0]["input_ids"].shape == (1, int(padded[0]["attention_mask"].sum()))
    assert made[1]["weights"].tolist() == [0]
    assert (made[2]["where"], made[2]["input_ids"].numel()) == ([], 0)
