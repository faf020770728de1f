"""The weights that ship: small, in the released layout, and able to read print."""

import pytest

from ivlkit.evaluation.evaluate import evaluate
from ivlkit.evaluation.metrics import exact_match, iou_at_50
from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.load import load
from ivlkit.nano.curriculum import TASKS, Curriculum
from ivlkit.nano.scene import FONTS
from ivlkit.nano.vocabulary import HELD_OUT_WORDS


@pytest.fixture(scope="module")
def nano():
    return load("nano")


def test_the_weights_are_at_most_8_megabytes():
    assert (NANO_FOLDER / "model.safetensors").stat().st_size <= 8_000_000


def test_the_card_counts_as_the_package_does(nano):
    parameters = sum(one.numel() for one in nano.model.parameters())
    told = f"{len(TASKS)} tasks", f"{len(FONTS)} fonts", f"{len(HELD_OUT_WORDS)} other words", f"| {parameters:,} |"
    card = (NANO_FOLDER / "MODEL_CARD.md").read_text()
    assert [each for each in told if each not in card] == []


@pytest.fixture(scope="module")
def rows():
    """Rows of the validation split that no figure of the model card was taken from."""
    return list(Curriculum(240, "validation", seed=2))


@pytest.fixture(scope="module")
def report(nano, rows):
    return ask(nano, rows)


def ask(vlm, rows, **options):
    return evaluate(vlm, rows, metric=right, max_new_tokens=128, progress=False, **options)


def right(reply, truth):
    return iou_at_50(reply, truth) if "<box>" in truth else exact_match(reply, truth)


def test_it_answers_its_curriculum_on_words_and_fonts_it_never_saw(nano, report):
    assert report.score >= 0.94
    tasks = ("printed_number", "printed_word", "printed_lines", "unknown_word", "find_box", "two_pictures")
    found = ask(nano, list(Curriculum(200, "validation", seed=2, shares=dict.fromkeys(tasks, 1))))
    for task in tasks:
        part = found.select(task=task)
        assert len(part.rows) >= 20 and part.score >= 0.9, task


def test_it_looks_at_its_pictures(nano, rows, report):
    seen = [row for row in rows if row.images]
    assert ask(nano, seen, pictures="shuffled").score <= 0.3


def test_fine_print_needs_its_tiles(nano, rows, report):
    fine = [row for row in rows if row.extra["task"] in ("receipt", "chart", "whole_print")]
    assert len(fine) >= 20
    tiled = [report.select(task=task) for task in ("receipt", "chart", "whole_print")]
    with_tiles = sum(one.score * len(one.rows) for one in tiled) / len(fine)
    assert ask(nano, fine, max_tiles=1).score <= with_tiles - 0.2


def test_it_knows_its_name(nano):
    assert "nano" in nano.chat("What is your name?").text.lower()
