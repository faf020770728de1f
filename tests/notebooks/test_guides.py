"""What stands beside the notebooks holds: every command runs, every cell that is named is there."""

import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest

from ivlkit.cli import main

ROOT = Path(__file__).parents[2]
ANSWERS = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
TEACHING = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```", re.S | re.M)
QUESTIONS = re.findall(r"^### .*\?$", ANSWERS, re.M)


def run_command(line):
    """Run one line; what stands behind it says if it is to fail."""
    command, _, said = line.partition("  # ")
    assert main(shlex.split(command)[1:]) == (1 if said == "exit code 1" else 0), line


def test_every_answer_has_a_command_and_all_of_them_run_in_order(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "data_templates", tmp_path / "data_templates")
    monkeypatch.chdir(tmp_path)
    names, commands = {}, 0
    for indent, language, code in BLOCK.findall(ANSWERS):
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        if language == "python":
            exec(compile(code, "notebooks/README.md", "exec"), names)
            continue
        for line in code.splitlines():
            assert line.startswith("ivlkit "), line
            run_command(line.strip().replace("   # ", "  # "))
            commands += 1
    said = capsys.readouterr().out
    assert commands >= 15 and "vllm serve" in said
    assert (tmp_path / "served" / "model.safetensors").exists()
    assert len(list((tmp_path / "runs").glob("answers/log.jsonl"))) == 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_short_and_ends_in_code(question):
    answer = ANSWERS.split(question)[1].split("\n### ")[0]
    assert BLOCK.search(answer), f"{question} has no command"
    assert len(answer.splitlines()) <= 20


def test_the_answers_are_to_what_users_of_other_kits_ask():
    asked = " ".join(QUESTIONS)
    for topic in ("loss is on", "resolution", "fit", "loss is 0", "serve", "resume"):
        assert topic in asked


def sources(notebook):
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells)


SHOWN_BY = re.findall(r"\| \[`(\w+)`\]\(\w+\.ipynb\): `(.+?)` \|", TEACHING)


@pytest.mark.parametrize(("notebook", "code"), SHOWN_BY)
def test_a_misconception_names_a_cell_that_exists(notebook, code):
    assert code in sources(notebook)


def test_each_misconception_has_one():
    table = TEACHING.split("## What people believe")[1].split("\n## ")[0]
    assert len(SHOWN_BY) == table.count("\n| ") - 1 >= 10


@pytest.mark.parametrize("lesson", re.findall(r"^## Lesson .*?(?=^## )", TEACHING, re.M | re.S))
def test_a_lesson_takes_ninety_minutes_with_notebooks_and_parts_that_exist(lesson):
    assert sum(map(int, re.findall(r"^\| (\d+) \|", lesson, re.M))) == 90
    for notebook, rest in re.findall(r"`(\d\d_\w+)`([^|\n]*)\|$", lesson, re.M):
        for heading in re.findall(r"\*(.+?)\*", rest):
            assert f"## {heading}" in sources(notebook), heading


def test_the_quiz_has_ten_questions_each_with_a_folded_answer():
    quiz = TEACHING.split("## Ten questions")[1]
    questions = re.split(r"^\*\*\d+\.\*\*", quiz, flags=re.M)[1:]
    assert len(questions) == 10
    assert all(part.count("<details><summary>Answer</summary>") == part.count("</details>") == 1 for part in questions)
