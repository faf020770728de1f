"""The data templates are what their README says: they load, encode and train; the broken ones are refused."""

import re
import shutil
from pathlib import Path

import pytest

import ivlkit as ivl
from ivlkit.cli import main
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import IGNORE_INDEX, encode
from ivlkit.data.importing.convert import convert
from ivlkit.data.rows.records import read_records
from ivlkit.errors import DataError

FOLDER = Path(__file__).parents[1] / "data_templates"
JSONL = sorted(path.parent.name for path in FOLDER.glob("*/train.jsonl"))
IN_META = ["grounding", "image", "multi_image", "text"]  # what needs no other library and no conversion
QUESTION = "What is it?"


@pytest.fixture
def copy(tmp_path):
    """A copy that may be written to."""
    return Path(shutil.copytree(FOLDER, tmp_path / "data_templates"))


def check_rows(records, vlm):
    """3 to 8 rows, whose answers are trained and nothing else."""
    assert 3 <= len(records) <= 8
    for record in records:
        example = encode(record, vlm.processor, max_length=2048)
        trained = vlm.tokenizer.decode(example.input_ids[example.labels != IGNORE_INDEX])
        answers = [turn.text for turn in record.turns if turn.role == "assistant"]
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_the_meta_file_names_the_released_kinds_with_their_lengths():
    data = open_data(FOLDER / "meta.json")
    assert sorted(source.annotation.parent.name for source in data.sources) == IN_META
    assert len(data) == sum(source.length for source in data.sources) == 15


@pytest.mark.parametrize("name", JSONL)
def test_every_row_of_a_template_encodes_and_trains_its_answers(name, tiny_vlm):
    if name == "video":
        pytest.importorskip("av")
    check_rows(read_records(FOLDER / name / "train.jsonl", FOLDER / name), tiny_vlm)


def test_every_other_template_opens_in_one_line(copy, tiny_vlm):
    check_rows(open_data(copy / "llava" / "train.json"), tiny_vlm)
    table = ivl.from_csv(
        copy / "csv" / "labels.csv", images=copy / "csv" / "images", question=QUESTION, answer="colour"
    )
    check_rows(table, tiny_vlm)
    shapes = ivl.from_folder(copy / "folder" / "shapes", question=QUESTION)
    check_rows(shapes, tiny_vlm)
    assert [record.answer for record in shapes] == ["circle", "circle", "square", "square"]


@pytest.mark.parametrize(
    ("source", "rejected"),
    [
        ("text/broken.jsonl", 5),
        ("image/broken.jsonl", 5),
        ("multi_image/broken.jsonl", 3),
        ("grounding/broken.jsonl", 3),
        ("video/broken.jsonl", 5),
        ("llava/broken.json", 3),
        ("sharegpt/broken.jsonl", 3),
        ("openai/broken.jsonl", 3),
        ("csv/broken.csv", 5),
        ("folder/broken", 6),
    ],
)
def test_every_row_of_a_broken_template_is_refused_with_its_place(copy, source, rejected):
    options = {"question": QUESTION} if source.startswith(("csv", "folder")) else {}
    options |= {"answer": "colour", "images": copy / "csv" / "images"} if source.startswith("csv") else {}
    with pytest.raises(DataError, match=f"none of {rejected} rows can be used") as caught:
        convert(copy / source, copy / "out", **options)
    assert len(str(caught.value).splitlines()) == rejected + 1


def test_every_folder_is_explained_and_all_are_small():
    text = (FOLDER / "README.md").read_text()
    for folder in (path for path in FOLDER.iterdir() if path.is_dir()):
        assert f"`{folder.name}/`" in text
        assert folder.name == "general_mix" or list(folder.glob("broken*")), folder
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000


def test_boxes_lie_within_0_and_1000():
    for record in read_records(FOLDER / "grounding" / "train.jsonl", FOLDER / "grounding"):
        boxes = re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", record.answer)
        assert boxes
        for box in boxes:
            left, top, right, bottom = map(int, box)
            assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000


REPORTS = re.findall(r"```\n\$ ivlkit (.+)\n((?:.*\n)+?)```", (FOLDER / "BROKEN.md").read_text())


@pytest.mark.parametrize(("command", "expected"), REPORTS)
def test_the_reports_on_the_broken_twins_are_what_the_command_says(command, expected, monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parent)
    assert main(command.split()) in (1, 2)
    said = capsys.readouterr()
    assert (said.out + said.err).strip() == expected.strip()
