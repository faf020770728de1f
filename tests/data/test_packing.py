"""Bins by hand, then for any rows: nothing lost, nothing over budget, equal numbers and near costs on every rank."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ivlkit.data.packing import Budgets, group_step, pack, pack_step, rope_groups

rows = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 13)), min_size=1, max_size=40)
budgets = st.builds(Budgets, st.integers(100, 300), st.one_of(st.none(), st.integers(13, 40)))


def columns(rows):
    return [one for one, _ in rows], [other for _, other in rows]


def test_best_fit_by_hand():
    """60 + 40 and 50 + 50 fill both bins; first-fit in the order given would need a third."""
    assert pack([50, 60, 40, 50], [0, 0, 0, 0], budgets=Budgets(100)) == [[1, 2], [0, 3]]


def test_a_row_goes_where_the_least_room_is_left():
    """10 fits beside 80 and beside 85; beside 85 it leaves 5."""
    assert pack([80, 85, 10], [0, 0, 0], budgets=Budgets(100)) == [[1, 2], [0]]


def test_the_second_budget_binds_where_tiles_are_many():
    tokens, tiles = [10, 10, 10, 10], [13, 13, 13, 1]
    assert pack(tokens, tiles, budgets=Budgets(1000)) == [[0, 1, 2, 3]]
    assert sorted(map(sorted, pack(tokens, tiles, budgets=Budgets(1000, tiles=26)))) == [[0, 1], [2, 3]]


def test_a_row_over_budget_is_kept_in_a_bin_of_its_own():
    assert sorted(pack([150, 20, 30], [0, 0, 0], budgets=Budgets(100))) == [[0], [2, 1]]
    assert sorted(pack([20, 20], [30, 1], budgets=Budgets(100, tiles=13))) == [[0], [1]]
    assert pack_step([150, 20, 30], [0, 0, 0], budgets=Budgets(100), ranks=2) == [[[0], [2, 1]]]


def test_a_single_row_of_exactly_the_budget_fits():
    assert pack([100], [13], budgets=Budgets(100, tiles=13)) == [[0]]


def test_a_rank_without_rows_gets_an_empty_bin():
    assert pack_step([5], [1], budgets=Budgets(10), ranks=2) == [[[0], []]]


def test_rows_are_spread_evenly_over_the_bins_that_are_needed_anyway():
    """Two ranks: best fit would give 100 and 20 tokens."""
    ((first, second),) = pack_step([40, 30, 30, 20], [0] * 4, budgets=Budgets(100), ranks=2)
    assert (sorted(first), sorted(second)) == ([0, 3], [1, 2])


def test_cost_counts_the_tower_too():
    """Three rows of 10 tokens, one with a picture that costs 20: it is alone."""
    ((first, second),) = pack_step([10, 10, 10], [1, 0, 0], budgets=Budgets(30), ranks=2, tile_cost=20)
    assert (first, sorted(second)) == ([0], [1, 2])


def test_the_rank_that_has_done_least_gets_the_most():
    """Bins of 100, 60, 50 and 40 tokens that share with none: 100 + 40 and 60 + 50."""
    dealt = pack_step([100, 60, 50, 41], [0] * 4, budgets=Budgets(100), ranks=2)
    assert dealt == [[[0], [1]], [[3], [2]]]


def test_rows_of_up_to_4096_tokens_and_longer_ones_share_no_bin():
    tokens = [600, 4000, 4096, 4097, 4200]
    groups = rope_groups(tokens, short_context=4096)
    assert groups.tolist() == [0, 0, 0, 1, 1]
    bins = pack(tokens, [0] * 5, budgets=Budgets(32768), groups=groups)
    assert sorted(map(sorted, bins)) == [[0, 1, 2], [3, 4]]
    padded = [batch for (batch,) in group_step(tokens, [0] * 5, size=8, groups=groups)]
    assert sorted(map(sorted, padded)) == [[0, 1, 2], [3, 4]]


def test_where_every_length_has_its_own_rope_long_rows_are_alone():
    groups = rope_groups([10, 20, 90, 90], short_context=50, long_rows_mix=False)
    bins = pack([10, 20, 90, 90], [0] * 4, budgets=Budgets(1000), groups=groups)
    assert sorted(map(sorted, bins)) == [[0, 1], [2], [3]]


def test_without_a_short_context_all_rows_mix():
    assert rope_groups([10, 9000]).tolist() == [0, 0]


@given(rows, budgets, st.integers(1, 4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_row_is_in_one_bin_within_both_budgets(rows, budgets, ranks, grouped):
    tokens, tiles = columns(rows)
    groups = rope_groups(tokens, short_context=60) if grouped else None
    dealt = pack_step(tokens, tiles, budgets=budgets, groups=groups, ranks=ranks, tile_cost=3.5)
    assert {len(bins) for bins in dealt} == {ranks}
    bins = [one for bins in dealt for one in bins]
    assert sorted(row for one in bins for row in one) == list(range(len(rows)))
    for one in bins:
        assert budgets.hold(sum(tokens[row] for row in one), sum(tiles[row] for row in one))
        assert groups is None or len({int(groups[row]) for row in one}) <= 1
    assert bins.count([]) < ranks  # no micro-batch is empty on every rank
    again = pack_step(tokens, tiles, budgets=budgets, groups=groups, ranks=ranks, tile_cost=3.5)
    assert again == dealt


@given(rows, budgets)
@settings(max_examples=100, deadline=None)
def test_bins_are_at_most_twice_the_budgets_worth(rows, budgets):
    tokens, tiles = columns(rows)
    worth = sum(tokens) / budgets.tokens + (sum(tiles) / budgets.tiles if budgets.tiles else 0)
    assert len(pack(tokens, tiles, budgets=budgets)) <= 2 * worth + 1


@given(rows, st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_padded_batches_hold_every_row_once_beside_rows_of_like_length(rows, size, ranks):
    tokens, tiles = columns(rows)
    dealt = group_step(tokens, tiles, size=size, ranks=ranks)
    batches = [batch for together in dealt for batch in together if batch]
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert max(map(len, batches)) <= size
    assert {len(together) for together in dealt} == {ranks}
    spans = sorted((min(tokens[row] for row in batch), max(tokens[row] for row in batch)) for batch in batches)
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_ranks_finish_together_on_the_mix_of_a_real_run():
    """128 rows of 1 to 13 tiles on eight GPUs: the slowest rank has 2 % more to do than the average."""
    rng = np.random.default_rng(0)
    tiles = rng.choice([13, 9, 7, 10, 1, 0], p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1], size=128)
    tokens = (256 * tiles + rng.integers(60, 600, 128)).tolist()
    dealt = pack_step(tokens, tiles.tolist(), budgets=Budgets(14336), ranks=8, tile_cost=68)
    costs = [sum(tokens[row] + 68 * tiles[row] for bins in dealt for row in bins[rank]) for rank in range(8)]
    assert len(dealt) == 3
    assert max(costs) / np.mean(costs) < 1.02
    assert sum(tokens) / (len(dealt) * 8 * 14336) > 0.84  # three bins a rank, the least there can be
