"""Every command and line of Python in the README runs, in order, on a copy of what it names."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ivlkit.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(text):
    return [line.split("  # ")[0].strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data_templates", tmp_path / "data_templates")
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


def test_the_ten_lines_run(workplace, capsys):
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "tokens" in printed and (workplace / "report.html").exists()


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_tables_agree_with_the_package():
    from ivlkit.models.families import FAMILIES

    for family in FAMILIES.values():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{family.key}` |"))
        assert family.guide_full in row and family.guide_lora in row
        assert f"{family.parameters:g} B" in row
    notebooks = re.findall(r"^\| `(\d\d_\w+|my_project)` \|", README, flags=re.M)
    assert notebooks == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
