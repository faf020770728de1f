"""AGENTS.md: its code runs from a table to an export, its rows are rows, and it names nothing that is not there."""

import csv
import json
import re
from pathlib import Path

import pytest

import ivlkit
from ivlkit.cli import COMMANDS
from ivlkit.data.rows.records import read_records
from ivlkit.nano.digits import write_digit_strips

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "AGENTS.md").read_text()


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with labels.csv and images/, as a user has them."""
    rows = write_digit_strips(tmp_path, rows=60, digits=(1, 2), tasks=("read",))
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "number"))
        table.writerows((Path(line["image"]).name, line["conversations"][1]["value"]) for line in lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_code_leads_from_a_table_to_an_exported_model(workplace, capsys):
    names = {}
    exec(compile(block("python"), "AGENTS.md", "exec"), names)
    assert names["report"].ok and names["plan"].fits
    assert names["run"].state == "finished" and len(names["test"]) == len(names["after"].rows)
    assert (workplace / "report.html").exists()
    exported = ivlkit.load("merged")
    again = exported.chat(names["test"][0].question, images=names["test"][0].images)
    assert again.text == capsys.readouterr().out.splitlines()[-1]


def test_its_rows_are_read(tmp_path, draw_picture):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        draw_picture().save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "train.jsonl").write_text(block("json"))
    records = read_records(tmp_path / "train.jsonl", tmp_path)
    assert [len(record.images) for record in records] == [1, 2, 0]
    assert [record.answer for record in records] == ["red", "no", "5"]


def test_every_function_command_and_file_that_it_names_is_there():
    assert {name for name in re.findall(r"\bivl\.(\w+)", TEXT)} <= set(ivlkit.__all__)
    commands = re.search(r"On the command line: (.*?); each", TEXT, flags=re.S)[1]
    named = {name.removeprefix("ivlkit ") for name in re.findall(r"`([\w ]+)`", commands)}
    assert len(named) == 7 and named <= set(COMMANDS)
    assert all((ROOT / path).exists() for path in re.findall(r"`([\w/]+\.md)`", TEXT))
    assert "It did not learn" in (ROOT / "notebooks" / "README.md").read_text()


def test_it_is_one_page():
    assert len(TEXT.splitlines()) <= 60
