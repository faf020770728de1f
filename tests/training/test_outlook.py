"""The whole project in one line, before anything of it is started."""

from datetime import datetime
from types import SimpleNamespace

import pytest

from ivlkit.models.shapes import config_of, empty_model
from ivlkit.training.estimate.cards import CARDS
from ivlkit.training.estimate.outlook import outlook, reply_seconds
from ivlkit.training.estimate.planner import plan
from ivlkit.training.recipes import recipe


def of_2b(card, minutes=6.0):
    """A plan of the 2B for rows of 2,284 tokens and 8.2 tiles."""
    model, _ = empty_model(config_of("2b")[0])
    place = SimpleNamespace(card=CARDS[card], device_type="cuda")
    case = SimpleNamespace(minutes=minutes, row_tokens=2284, row_tiles=8.2)
    return SimpleNamespace(
        job=SimpleNamespace(model=model, config=model.config, place=place), cases=[case], disk_gb=0.3
    )


def test_asking_takes_what_it_took_on_the_card_it_was_measured_on():
    """19.0 replies of a word and 12.6 of 32 tokens a second, the 2B on one H200."""
    assert reply_seconds(of_2b("H200"), 2) == pytest.approx(1 / 19.0, rel=0.1)
    assert reply_seconds(of_2b("H200"), 32) == pytest.approx(1 / 12.6, rel=0.1)


def test_one_line_says_how_long_how_much_and_when():
    said = outlook(of_2b("RTX 4090"), rows=59, now=datetime(2026, 1, 1, 15, 30))
    assert said == (
        "train 7 + ask 3 × 59 rows 2 + export 1 minutes, 4.7 GB, done at about 15:38 "
        "(predicted; replies of 16 tokens, a longer one takes longer)"
    )


def test_an_adapter_is_written_at_once():
    said = outlook(of_2b("RTX 4090"), rows=59, export="adapter", now=datetime(2026, 1, 1, 15, 30))
    assert said.startswith("train 7 + ask 3 × 59 rows 2 + export 1 minutes, 0.3 GB, done at about 15:38 (")


def test_without_minutes_it_says_what_is_missing():
    assert "name a card" in outlook(of_2b("H200", minutes=None), rows=59)


def test_a_plan_knows_its_own(mixed_rows, tiny):
    found = plan(recipe("nano-lora", model=str(tiny)), data=mixed_rows)
    assert found.outlook(rows=7, asks=2, export=False).startswith("train 1 + ask 2 × 7 rows 1 minutes, ")
    assert found.cases[0].row_tokens > found.cases[0].row_tiles * 16
