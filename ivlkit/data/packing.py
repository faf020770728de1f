"""Rows → bins with two budgets, tokens and tiles; every optimiser step has its own bins, the same number on every rank.

A bin is one sequence of whole samples that don't see each other (`collate.collate_packed`). How many bins a step needs
is found by best-fit decreasing (Johnson 1973: for one budget 11/9 of the fewest at most, but for a few); its rows are
then spread over so many bins as evenly as they go, so that ranks finish together and the largest bin is small.

Rows of different rope groups never share a bin: Phi-3 chooses its rope factors by the longest position of a batch, so
a short row beside one of more than 4,096 tokens would be computed with the wrong ones.
"""

from bisect import insort
from dataclasses import dataclass

import numpy as np

MIXED, ALONE = 0, -1  # rope groups: with all others of the group, or with no other row


@dataclass(frozen=True)
class Budgets:
    """What a bin may hold. A row that exceeds a budget by itself gets a bin of its own."""

    tokens: int
    tiles: int | None = None  # None: as many as the tokens allow

    def share(self, tokens, tiles):
        """The larger share of the budgets that a row takes: 0.5 for 2,048 of 4,096 tokens and 2 of 13 tiles."""
        return max(tokens / self.tokens, tiles / self.tiles if self.tiles else 0.0)

    def hold(self, tokens, tiles):
        """Whether a bin of so many tokens and tiles is within both."""
        return tokens <= self.tokens and (self.tiles is None or tiles <= self.tiles)


def rope_groups(tokens, *, short_context=None, long_rows_mix=True):
    """The group of each row: only rows of one group may share a bin or a padded batch, int64 [rows].

    Args:
        tokens: int64 [rows].
        short_context: tokens up to which the model's rope is the same for every length: 4,096 for Phi-3; None for all.
        long_rows_mix: whether longer rows share one rope, as with Phi-3; else each has its own, as with dynamic rope.
    Returns: [0, 0, 1] for 600, 4,000 and 4,200 tokens beside a short context of 4,096.
    """
    if short_context is None:
        return np.zeros(len(tokens), np.int64)
    return np.where(np.asarray(tokens) > short_context, 1 if long_rows_mix else ALONE, MIXED)


def pack(tokens, tiles, *, budgets, groups=None):
    """Best-fit decreasing: each row, largest first, goes where the least room is left for it.

    Returns: bins of row numbers, `[[0, 3], [1, 2]]`; every row is in exactly one.
    """
    bins = []
    for members in _by_group(len(tokens), groups):
        bins += _best_fit(members, tokens, tiles, budgets)
    return bins


def pack_step(tokens, tiles, *, budgets, groups=None, ranks=1, tile_cost=0.0):
    """The bins of an optimiser step, dealt to the ranks.

    Args: tokens, tiles: of its rows; ranks: how many share them; tile_cost: tokens that cost as much as a tile in the
        vision tower.
    Returns: a list of micro-batches, each with a bin for every rank: `[[[0, 3], [1, 2]], …]`. Equally many for every
        rank, with empty bins where there are too few. In a micro-batch the ranks' costs are as near as they can be.
    """
    cost = [count + tile_cost * pictures for count, pictures in zip(tokens, tiles, strict=True)]
    filled = pack(tokens, tiles, budgets=budgets, groups=groups)
    wanted = -(-len(filled) // ranks) * ranks
    if groups is None or not any(groups):
        filled = _spread(cost, tokens, tiles, budgets, wanted) or filled
    return _deal(filled + [[] for _ in range(wanted - len(filled))], cost, ranks)


def group_step(tokens, tiles, *, size, groups=None, ranks=1):
    """The padded batches of a step, of at most `size` rows of like length, whatever their tiles: as `pack_step`."""
    batches = []
    for members in _by_group(len(tokens), groups):
        members = sorted(members, key=lambda row: (-tokens[row], row))
        parts = -(-len(members) // size)
        batches += [members[len(members) * n // parts : len(members) * (n + 1) // parts] for n in range(parts)]
    wanted = -(-len(batches) // ranks) * ranks
    batches.sort(key=lambda batch: -len(batch) * tokens[batch[0]])
    return _rounds(batches + [[] for _ in range(wanted - len(batches))], ranks)


def _by_group(num_rows, groups):
    """Row numbers of each group that may share bins; a row that must be alone is a group of its own."""
    if groups is None:
        return [range(num_rows)]
    members = {}
    for row in range(num_rows):
        group = int(groups[row])
        members.setdefault((group, row if group == ALONE else 0), []).append(row)
    return list(members.values())


def _best_fit(members, tokens, tiles, budgets):
    """`filled` is kept in order of fullness, so that the first bin from the full end that holds the row is the best."""
    order = sorted(members, key=lambda row: (-budgets.share(tokens[row], tiles[row]), row))
    filled = []  # (share, number of the bin)
    bins, held = [], []
    for row in order:
        for place in range(len(filled) - 1, -1, -1):
            number = filled[place][1]
            if budgets.hold(held[number][0] + tokens[row], held[number][1] + tiles[row]):
                del filled[place]
                break
        else:
            number = len(bins)
            bins.append([])
            held.append((0, 0))
        bins[number].append(row)
        held[number] = (held[number][0] + tokens[row], held[number][1] + tiles[row])
        insort(filled, (budgets.share(*held[number]), number))
    return bins


def _spread(cost, tokens, tiles, budgets, count):
    """Longest first, each into the bin of least cost that holds it; None if one fits in no bin."""
    bins, held = [[] for _ in range(count)], [(0.0, 0, 0)] * count
    for row in sorted(range(len(cost)), key=lambda row: (-cost[row], row)):
        for number in sorted(range(count), key=lambda number: (held[number][0], number)):
            spent, used, seen = held[number]
            if not bins[number] or budgets.hold(used + tokens[row], seen + tiles[row]):
                break
        else:
            return None
        bins[number].append(row)
        held[number] = (spent + cost[row], used + tokens[row], seen + tiles[row])
    return bins


def _deal(bins, cost, ranks):
    """Micro-batches of bins of like cost; in each, the rank that has done least gets the most."""
    costs = {id(one): sum(cost[row] for row in one) for one in bins}
    bins = sorted(bins, key=lambda one: -costs[id(one)])
    done, dealt = [0.0] * ranks, []
    for together in _rounds(bins, ranks):
        order = sorted(range(ranks), key=lambda rank: (done[rank], rank))
        dealt.append([None] * ranks)
        for rank, one in zip(order, together, strict=True):
            dealt[-1][rank] = one
            done[rank] += costs[id(one)]
    return dealt


def _rounds(bins, ranks):
    return [bins[first : first + ranks] for first in range(0, len(bins), ranks)]
