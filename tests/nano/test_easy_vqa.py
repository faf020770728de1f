"""easy-VQA, read from its own package."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from ivlkit.data.checking.doctor import diagnose
from ivlkit.nano.easy_vqa import write_easy_vqa

SOURCE = pytest.importorskip("easy_vqa", reason="the extra easy-vqa is not installed")


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_of_it_is_38575_and_9673_questions_about_5000_pictures(tmp_path):
    rows = {split: read_rows(write_easy_vqa(tmp_path, split)) for split in ("train", "validation", "test")}
    assert len(rows["train"]) + len(rows["validation"]) == 38_575
    assert len(rows["test"]) == 9_673
    pictures = {split: {row["image"] for row in rows[split]} for split in rows}
    assert {split: len(found) for split, found in pictures.items()} == {"train": 3600, "validation": 400, "test": 1000}
    assert not pictures["train"] & pictures["validation"]


def test_a_question_keeps_its_answer_and_its_picture(tmp_path):
    questions, answers, images = SOURCE.get_test_questions()
    known = Counter(zip(questions, answers, images, strict=True))
    for row in read_rows(write_easy_vqa(tmp_path, "test", rows=50)):
        human, gpt = row["conversations"]
        question = human["value"].removeprefix("<image>\n")
        number = int(row["image"].removeprefix("images/test-").removesuffix(".png"))
        assert known[(question[0].lower() + question[1:], gpt["value"], number)]
        assert (tmp_path / row["image"]).read_bytes() == Path(SOURCE.get_test_image_paths()[number]).read_bytes()


def test_guessing_by_the_question_alone_is_right_in_two_of_three(tmp_path):
    """The most frequent training answer of each question."""
    seen = {}
    for row in read_rows(write_easy_vqa(tmp_path, "train")):
        seen.setdefault(row["conversations"][0]["value"], Counter())[row["conversations"][1]["value"]] += 1
    test = read_rows(write_easy_vqa(tmp_path, "test"))
    guesses = [seen.get(row["conversations"][0]["value"], Counter(["no"])).most_common(1)[0][0] for row in test]
    right = sum(guess == row["conversations"][1]["value"] for guess, row in zip(guesses, test, strict=True))
    assert 0.6 < right / len(test) < 0.7


def test_the_doctor_finds_nothing_wrong(tmp_path, processor):
    report = diagnose(write_easy_vqa(tmp_path, "validation", rows=200), processor, pictures="decode")
    assert report.ok and report.stats["good"] == 200


def test_fewer_rows_are_the_beginning_of_more_rows(tmp_path):
    few = read_rows(write_easy_vqa(tmp_path / "few", "test", rows=3))
    assert read_rows(write_easy_vqa(tmp_path / "more", "test", rows=6))[:3] == few


def test_a_missing_package_and_an_unknown_split_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split 'dev', expected one of train, validation, test"):
        write_easy_vqa(tmp_path, "dev")
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=r'pip install "ivlkit\[easy-vqa\]"'):
        write_easy_vqa(tmp_path)
