"""The data templates are what their README says: they load, encode and train as they are."""

from pathlib import Path

import pytest

from ivlkit.data.encode import IGNORE_INDEX, encode
from ivlkit.data.mixture import open_data
from ivlkit.data.records import read_records

FOLDER = Path(__file__).parents[1] / "data_templates"
FORMATS = sorted(path.parent.name for path in FOLDER.glob("*/train.jsonl"))


def test_the_meta_file_names_every_template_with_its_length():
    data = open_data(FOLDER / "meta.json")
    assert sorted(source.annotation.parent.name for source in data.sources) == FORMATS
    assert len(data) == sum(source.length for source in data.sources) == 15


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_of_a_template_encodes_and_trains_its_answers(name, tiny_vlm):
    records = read_records(FOLDER / name / "train.jsonl", FOLDER / name)
    assert 3 <= len(records) <= 8
    for record in records:
        example = encode(record, tiny_vlm.processor, max_length=2048)
        trained = tiny_vlm.tokenizer.decode(example.input_ids[example.labels != IGNORE_INDEX])
        answers = [turn.text for turn in record.turns if turn.role == "assistant"]
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_boxes_lie_within_0_and_1000():
    import re

    for record in read_records(FOLDER / "grounding" / "train.jsonl", FOLDER / "grounding"):
        boxes = re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", record.answer)
        assert boxes
        for box in boxes:
            left, top, right, bottom = map(int, box)
            assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
