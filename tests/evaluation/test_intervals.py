import numpy as np
import pytest

from ivlkit.evaluation import intervals
from ivlkit.evaluation.intervals import bootstrap_interval, score_interval


def test_equal_values_give_a_point():
    assert bootstrap_interval([0.25] * 40) == (0.25, 0.25)
    assert bootstrap_interval([1.0]) == (1.0, 1.0)


def test_none_right_of_twelve_may_be_a_quarter():
    """Wilson's upper end z² / (n + z²), where every draw would be 0; questions about one picture are one fact."""
    z2 = 1.96**2
    assert score_interval([0.0] * 12) == pytest.approx((0, z2 / (12 + z2)))
    assert score_interval([1.0] * 12) == pytest.approx((12 / (12 + z2), 1))
    assert score_interval([0.0] * 12, [number // 4 for number in range(12)]) == pytest.approx((0, z2 / (3 + z2)))
    mixed = [0.0, 0.5, 1.0, 1.0]
    assert score_interval(mixed) == bootstrap_interval(mixed) and score_interval([0.5] * 9) == (0.5, 0.5)


def test_it_is_as_wide_as_the_normal_approximation_says():
    """100 coin tosses: standard error 0.05, 95 % within 1.96 of them."""
    low, high = bootstrap_interval([0, 1] * 50)
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)


def test_it_covers_the_truth_about_95_times_of_100():
    rng = np.random.default_rng(3)
    intervals_found = [bootstrap_interval(rng.random(80) < 0.7) for _ in range(200)]
    assert 0.90 <= np.mean([low <= 0.7 <= high for low, high in intervals_found]) <= 0.99


def test_groups_of_one_are_as_no_groups():
    values = [0, 1, 1, 0, 1]
    assert bootstrap_interval(values, range(5)) == bootstrap_interval(values)


def test_copies_of_a_row_in_one_group_don_t_make_the_interval_narrower():
    """Ten questions about each of 20 pictures, all right or all wrong: 20 facts, not 200."""
    facts = [0, 1] * 10
    copied, groups = np.repeat(facts, 10), np.repeat(range(20), 10)
    assert bootstrap_interval(copied, groups) == pytest.approx(bootstrap_interval(facts))
    narrow = bootstrap_interval(copied)
    assert narrow[1] - narrow[0] < 0.5 * (bootstrap_interval(copied, groups)[1] - bootstrap_interval(copied, groups)[0])


def test_groups_of_unequal_size_weigh_by_their_rows():
    assert bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"]) == (0.0, 1.0)


def test_drawing_in_parts_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 500)
    assert bootstrap_interval(values) == pytest.approx(whole)
