"""Copies of the notebooks follow their originals, and never cost a reader a word."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ivlkit import course
from ivlkit.cli import main
from ivlkit.course import CourseError, copy_notebooks, find_notebooks, said_of

ROOT = Path(__file__).parents[1]
SHOWN = {"output_type": "stream", "name": "stdout", "text": "an hour's work"}


def write_notebook(path, *sources, tags=(), outputs=()):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "# A lesson"}]
    for source in sources:
        code = {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": 1}
        cells.append(code | {"metadata": {"tags": list(tags)} if tags else {}})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


@pytest.fixture(autouse=True)
def jupyters_own_files(tmp_path_factory, monkeypatch):
    """A folder in which this test's Jupyter remembers whom it trusts."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("jupyter")))


@pytest.fixture
def place(tmp_path):
    """(folder of one original, folder of its copy), copied once."""
    write_notebook(tmp_path / "notebooks" / "a.ipynb", "x = 1")
    assert copy_notebooks(tmp_path / "work", source=tmp_path / "notebooks") == {"a.ipynb": "new"}
    return tmp_path / "notebooks", tmp_path / "work"


class TestCopies:
    def test_a_second_time_nothing_is_to_do(self, place):
        before = (place[1] / "a.ipynb").stat().st_mtime_ns
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "up to date"}
        assert (place[1] / "a.ipynb").stat().st_mtime_ns == before

    def test_an_untouched_copy_follows_its_original(self, place):
        write_notebook(place[0] / "a.ipynb", "x = 2")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "renewed"}
        assert sources(place[1] / "a.ipynb")[1] == "x = 2"
        assert not (place[1] / "earlier").exists()

    def test_an_untouched_copy_follows_its_originals_outputs_too(self, place):
        write_notebook(place[0] / "a.ipynb", "x = 1", outputs=[SHOWN])
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "renewed"}
        assert (place[1] / "a.ipynb").read_text() == (place[0] / "a.ipynb").read_text()

    def test_what_a_reader_saw_is_not_replaced_by_what_the_original_saw(self, place):
        write_notebook(place[1] / "a.ipynb", "x = 1", outputs=[SHOWN])
        write_notebook(place[0] / "a.ipynb", "x = 1", outputs=[SHOWN | {"text": "on another machine"}])
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "up to date"}
        assert "an hour's work" in (place[1] / "a.ipynb").read_text()

    def test_a_copy_that_was_only_run_follows_too_and_its_outputs_are_kept(self, place):
        write_notebook(place[1] / "a.ipynb", "x = 1", outputs=[SHOWN])
        write_notebook(place[0] / "a.ipynb", "x = 2")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "renewed"}
        (kept,) = (place[1] / "earlier").glob("a-*.ipynb")
        assert "an hour's work" in kept.read_text() and sources(kept)[1] == "x = 1"

    def test_a_copy_that_the_reader_changed_stays_and_they_are_told(self, place):
        write_notebook(place[1] / "a.ipynb", "x = 'mine'")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "up to date"}
        write_notebook(place[0] / "a.ipynb", "x = 2")
        for _ in range(2):
            done = copy_notebooks(place[1], source=place[0])
            assert done == {"a.ipynb": "yours"}
        assert sources(place[1] / "a.ipynb")[1] == "x = 'mine'"
        assert "a.ipynb: you changed it" in said_of(done, place[1]) and "rename yours" in said_of(done, place[1])

    def test_one_that_was_renamed_makes_room_for_the_new_original(self, place):
        write_notebook(place[0] / "a.ipynb", "x = 2")
        (place[1] / "a.ipynb").rename(place[1] / "mine.ipynb")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "new"}
        assert sources(place[1] / "mine.ipynb")[1] == "x = 1"

    @pytest.mark.parametrize("note", [None, "[]", "{broken", '{"a.ipynb": 1}'])
    def test_where_nothing_is_noted_what_differs_is_the_readers(self, place, note):
        notes = place[1] / course.COPIES_FILE
        notes.unlink() if note is None else notes.write_text(note)
        write_notebook(place[0] / "a.ipynb", "x = 2")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "yours"}

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": [1]}', "\udcff"])
    def test_a_copy_that_is_no_notebook_any_more_is_the_readers(self, place, content):
        (place[1] / "a.ipynb").write_bytes(content.encode(errors="surrogateescape"))
        write_notebook(place[0] / "a.ipynb", "x = 2")
        assert copy_notebooks(place[1], source=place[0]) == {"a.ipynb": "yours"}

    def test_the_originals_are_never_copied_onto_themselves(self, place):
        with pytest.raises(CourseError, match="holds the originals"):
            copy_notebooks(place[0], source=place[0])

    def test_a_file_in_the_folders_place_is_an_error_of_one_line(self, tmp_path, capsys):
        (tmp_path / "work").write_text("not a folder")
        assert main(["notebooks", str(tmp_path / "work")]) == 2
        assert "can't be written" in capsys.readouterr().err


class TestTrust:
    """Of a notebook that it does not trust JupyterLab shows no styles: tokens without colours, cards without edges."""

    @pytest.fixture
    def is_trusted(self):
        nbformat = pytest.importorskip("nbformat")
        sign = pytest.importorskip("nbformat.sign")
        return lambda path: sign.NotebookNotary().check_signature(nbformat.read(path, as_version=4))

    def test_jupyter_trusts_a_copy_of_the_course_and_nothing_else(self, tmp_path, is_trusted):
        copy_notebooks(tmp_path / "work")
        copies = sorted((tmp_path / "work").glob("*.ipynb"))
        assert len(copies) > 10 and all(map(is_trusted, copies))
        copies[0].write_text(copies[0].read_text().replace("<style>", "<script>alert(1)</script><style>"))
        assert not is_trusted(copies[0])
        assert set(copy_notebooks(tmp_path / "work").values()) == {"up to date"}
        assert not is_trusted(copies[0])

    def test_copies_are_made_where_jupyter_can_remember_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("where a folder would be")
        monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "file" / "jupyter"))
        assert set(copy_notebooks(tmp_path / "work").values()) == {"new"}


class TestForStudents:
    def test_solutions_and_outputs_go_hints_and_checks_stay(self, tmp_path):
        done = copy_notebooks(tmp_path / "student", for_students=True)
        assert len(done) == len(list(find_notebooks().glob("*.ipynb")))
        for name in done:
            cells = json.loads((tmp_path / "student" / name).read_text())["cells"]
            originals = json.loads((find_notebooks() / name).read_text())["cells"]
            solved = [cell for cell in originals if "solution" in cell["metadata"].get("tags", [])]
            assert not [cell for cell in cells if "solution" in cell["metadata"].get("tags", [])]
            assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
            assert sum(cell["source"] == [course.YOUR_TURN] for cell in cells) == len(solved) > 0
            kept = [cell["source"] for cell in originals if cell not in solved]
            assert [cell["source"] for cell in cells if cell["source"] != [course.YOUR_TURN]] == kept


class TestWhereTheyComeFrom:
    def test_a_checkout_has_its_own(self):
        assert find_notebooks() == ROOT / "notebooks"

    def test_an_installed_package_brought_them_along(self, tmp_path, monkeypatch):
        monkeypatch.setattr(course, "__file__", str(tmp_path / "site-packages" / "ivlkit" / "course.py"))
        monkeypatch.setattr(course.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(CourseError, match="no notebooks in .*share/ivlkit/notebooks"):
            find_notebooks()
        shutil.copytree(ROOT / "notebooks", tmp_path / "share" / "ivlkit" / "notebooks")
        assert find_notebooks() == tmp_path / "share" / "ivlkit" / "notebooks"

    @pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
    def test_git_ignores_both_folders_that_make_writes(self):
        command = ["git", "check-ignore", "work/a.ipynb", "work/.copies.json", "student/a.ipynb", "runs/x"]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split() == command[2:]
