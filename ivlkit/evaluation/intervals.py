"""Intervals of a mean or a share: what another test set of the same kind could have given."""

import numpy as np

DRAWS = 2000
DRAWN_AT_ONCE = 4_000_000  # numbers in memory, 32 MB


def bootstrap_interval(values, groups=None, *, seed=0):
    """95 % interval (low, high) of the mean of `values`, from 2,000 draws.

    Args: groups: a label for each value. Values of one group (the questions about one picture) are drawn together, as
        they are not independent of each other: the interval is then wider, and honest. None: each on its own.
    """
    sums, counts = np.asarray(values, float), np.ones(len(values))
    if groups is not None:
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        places = np.array([numbers[group] for group in groups])
        sums, counts = np.bincount(places, weights=sums), np.bincount(places).astype(float)
    rng, means, left = np.random.default_rng(seed), [], DRAWS
    while left:
        draws = rng.integers(len(sums), size=(min(left, max(1, DRAWN_AT_ONCE // len(sums))), len(sums)))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1))
        left -= len(draws)
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def score_interval(scores, groups=None):
    """95 % interval (low, high) of the mean of scores from 0 to 1: `bootstrap_interval`, of the same arguments.

    Where all are 0, or all are 1, any draw is like another: then `share_interval` of as many rows, or groups.
    """
    if (only := set(scores)) in ({0}, {1}):
        count = len(scores) if groups is None else len(set(groups))
        return share_interval(count * only.pop(), count)
    return bootstrap_interval(scores, groups)


def share_interval(hits, count):
    """95 % interval (low, high) of a share, after Wilson (1927): 31 of 31 → (0.89, 1.0), where draws would give 1 to 1.

    Args: hits of count rows that are independent of each other.
    """
    z2 = 1.96**2
    middle = (hits + z2 / 2) / (count + z2)
    half = 1.96 / (count + z2) * (hits * (count - hits) / count + z2 / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
