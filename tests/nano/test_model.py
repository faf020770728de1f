"""The weights that ship: small, in the released layout, and able to read print."""

import json

import pytest

from ivlkit.data.mixture import open_data
from ivlkit.evaluation.evaluate import evaluate
from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.load import load
from ivlkit.nano.build import CONFIG, build
from ivlkit.nano.curriculum import write_curriculum


@pytest.fixture(scope="module")
def nano():
    return load("nano")


def test_the_weights_are_at_most_8_megabytes():
    assert (NANO_FOLDER / "model.safetensors").stat().st_size <= 8_000_000


def test_its_config_is_the_one_in_the_code():
    assert json.loads((NANO_FOLDER / "config.json").read_text()) == CONFIG


def test_building_twice_gives_the_same_bytes(tmp_path, tiny_config):
    first, second = (build(tmp_path / name, seed=3, config=tiny_config) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_it_reads_printed_numbers_and_knows_its_name(nano, tmp_path):
    data = open_data(write_curriculum(tmp_path, 200, "validation", seed=1))
    numbers = [record for record in data if record.extra["task"] == "printed_number"]
    report = evaluate(nano, numbers, progress=False)
    assert len(numbers) >= 10 and report.score >= 0.8
    assert "nano" in nano.chat("What is your name?").text.lower()


def test_without_its_picture_it_cannot_read_the_number(nano, tmp_path):
    data = open_data(write_curriculum(tmp_path, 200, "validation", seed=1))
    numbers = [record for record in data if record.extra["task"] == "printed_number"]
    shuffled = [images.images for images in numbers[1:] + numbers[:1]]
    replies = nano.chat_batch([record.question for record in numbers], shuffled, max_new_tokens=16)
    right = sum(reply.text == record.answer for reply, record in zip(replies, numbers, strict=True))
    assert right <= 0.2 * len(numbers)
