import pytest

from ivlkit.evaluation.metrics import METRICS, exact_match


@pytest.mark.parametrize(
    ("reply", "truth", "score"),
    [
        ("407", "407", 1.0),
        (" 407\n", "407", 1.0),
        ("two  words", "two words", 1.0),
        ("", "", 1.0),
        ("407", "408", 0.0),
        ("407.", "407", 0.0),
        ("Paris", "paris", 0.0),
        ("", "407", 0.0),
    ],
)
def test_exact_match_collapses_whitespace_and_nothing_else(reply, truth, score):
    assert exact_match(reply, truth) == score


def test_every_metric_is_found_by_its_own_name():
    assert all(function.__name__ == name for name, function in METRICS.items())
