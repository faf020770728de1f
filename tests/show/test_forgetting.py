"""What was learned beside what was forgotten."""

import pytest

from ivlkit.show.charts import forgetting_figure

RUNS = {
    "before": {"new": (0.25, 0.2, 0.35), "old": (0.75, 0.5, 1.0)},
    "$full$": {"new": (0.875, 0.75, 1.0), "old": (0.5, 0.25, 0.625)},
}


def test_points_stand_at_their_scores_with_their_intervals():
    axes = forgetting_figure(RUNS).axes[0]
    points = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert points == [[0.25, 0.75], [0.875, 0.5]]
    across, upwards = (bars.get_segments()[0] for bars in axes.containers[1].lines[2])
    assert across[:, 0] == pytest.approx([0.75, 1.0]) and upwards[:, 1] == pytest.approx([0.25, 0.625])


def test_one_arrow_from_the_model_before_to_each_other():
    (arrow,) = forgetting_figure(RUNS).axes[0].texts
    assert arrow.xyann == (0.25, 0.75) and arrow.xy == (0.875, 0.5)


def test_scores_are_said_in_words_and_a_name_is_no_formula():
    figure = forgetting_figure(RUNS, learned="handwriting", kept="print")
    assert figure.alt.startswith("before: handwriting 25.0%, print 75.0%; $full$: handwriting 87.5%")
    assert figure.to_image().width > 500
