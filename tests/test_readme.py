"""Every command and line of Python in the README and in docs/ runs, in order, on a copy of what it names."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ivlkit.cli import main
from ivlkit.demo import TEST_ROWS, TRAIN_ROWS, write_rows
from ivlkit.evaluation.compare import compare

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL = "\n".join([README, *(path.read_text() for path in DOCS)])


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", ALL, flags=re.S)


def commands(text):
    return [line.split("  # ")[0].strip() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What `make demo` leaves in runs/demo/data."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, rows):
    shutil.copytree(ROOT / "data_templates", tmp_path / "data_templates")
    shutil.copytree(rows, tmp_path / "runs" / "demo" / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_are_make_demo_and_make_test():
    first = commands(blocks("bash")[0])
    assert first[1:] == ["make demo", "make test"]


def test_every_command_runs(workplace, capsys):
    lines = [line for block in blocks("bash")[1:] for line in commands(block)]
    assert len(lines) >= 8 and all(line.startswith("ivlkit ") for line in lines)
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    assert (workplace / "merged" / "model.safetensors").exists()
    assert (workplace / "report.html").stat().st_size > 1000
    gained = compare(workplace / "runs" / "before", workplace / "runs" / "after")
    assert gained.interval[0] > 0.1


def test_what_it_asks_nano_is_answered_as_it_says(workplace, capsys):
    line = next(line for line in README.splitlines() if line.startswith("ivlkit chat nano"))
    command, said = line.split("  # ")
    assert main(shlex.split(command)[1:]) == 0 and capsys.readouterr().out.strip() == said


def test_the_ten_lines_run(workplace, capsys):
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "tokens" in printed and (workplace / "report.html").exists()


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_every_file_it_links_to_exists(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 120
    assert all(f"](docs/{path.name})" in README for path in DOCS)


def test_it_counts_rows_and_notebooks_as_they_are():
    assert f"![{TEST_ROWS} handwritten" in README and f"LoRA on {TRAIN_ROWS:,} other numbers" in README
    assert "Fifteen notebooks" in README and len(list((ROOT / "notebooks").glob("*.ipynb"))) == 15


def test_its_figures_of_gpus_are_those_of_the_notebook():
    cells = json.loads((ROOT / "notebooks" / "my_project.ipynb").read_text())["cells"]
    (box,) = (text for cell in cells if (text := "".join(cell["source"])).startswith("## On your GPU"))
    rows = [line for line in box.splitlines() if line.startswith("|")]
    assert len(rows) > 2 and "\n".join(rows) in README


def test_the_tables_agree_with_the_package():
    from ivlkit.models.families import FAMILIES

    for family in FAMILIES.values():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{family.key}` |"))
        assert family.guide_full in row and family.guide_lora in row
        assert f"{family.parameters:g} B" in row
    course = (ROOT / "notebooks" / "README.md").read_text()
    notebooks = re.findall(r"^\| \[`(\d\d_\w+|my_project)`\]\(\1\.ipynb\) \|", course, flags=re.M)
    assert notebooks == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
