"""What each notebook says about a GPU is what `benchmarks/notebooks_gpu.py` measured, and how it measures."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest

from ivlkit.data.datasets.opening import open_data
from ivlkit.nano.digits import write_digit_strips
from ivlkit.training.estimate.planner import plan
from ivlkit.training.log import append_step
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import write_run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import notebooks_gpu  # noqa: E402

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PLACE = ("2b", "H200", 22.0, "07_finetune_lora")
RUN = {"run": "finetune_lora/run", "recipe": "2b-lora", "steps": 10, "plan_gib": 7.7, "log_gib": 7.0}
ROW = {
    "model": "2b",
    "card": "H200",
    "free_gib": 22.0,
    "notebook": "07_finetune_lora",
    "settings": {"MODEL": '"2b"', "RECIPE": '"2b-lora"', "TRAIN_ROWS": "160", "TEST_ROWS": "16"},
    "error": None,
    "kernel_alive": True,
    "minutes": 2.06,
    "card_gib": 12.94,
    "host_gib": 6.5,
    "runs": [RUN | {"plan_minutes": 0.5, "log_minutes": 0.4}],
    "predicted": {"RTX 3090": {"gib": 9.41, "minutes": 3.2}, "L4": {"gib": 22.9, "minutes": 2.55}},
}


def notebook_of(*sources):
    """A notebook of one cell of code with an output, and these cells of Markdown."""
    code = nbformat.v4.new_code_cell("1 + 1", outputs=[nbformat.v4.new_output("stream", text="2")])
    return nbformat.v4.new_notebook(cells=[code, *map(nbformat.v4.new_markdown_cell, sources)])


def sources(notebook):
    return [cell.source for cell in notebook.cells[1:]]


def execute(source, folder, *, seconds=math.inf):
    """What the harness says of a notebook of two cells of code, of which this is the second."""
    cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, ("import os, time", source))]
    environment = notebooks_gpu.os.environ
    return notebooks_gpu.execute(nbformat.v4.new_notebook(cells=cells), folder, environment, seconds=seconds)


class TestNotebooks:
    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_its_box_is_made_of_the_shipped_figures(self, name):
        prose = [
            cell.source
            for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
            if cell.cell_type == "markdown" and re.search(r"## On your GPU|\*\*On your GPU", cell.source)
        ]
        made = notebooks_gpu.box(name, notebooks_gpu.read_rows(notebooks_gpu.OUT))
        assert prose == [made], "write it: python benchmarks/notebooks_gpu.py --boxes"

    def test_there_is_a_lesson_for_each(self):
        assert sorted(notebooks_gpu.LESSONS) == NOTEBOOKS

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_it_has_the_parameters_that_are_made_small(self, name):
        notebook, settings = notebooks_gpu.prepare(name, "2b", cards=2)
        (chosen,) = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        lines = [line.partition("  #")[0] for line in chosen.splitlines()]
        assert settings["MODEL"] == '"2b"' and all(f"{key} = {value}" in lines for key, value in settings.items())

    def test_a_recipe_becomes_the_models_lora_unless_all_weights_are_asked_for(self):
        _, settings = notebooks_gpu.prepare("11_finetune_full", "2b")
        _, full = notebooks_gpu.prepare("11_finetune_full", "2b", full=True)
        assert (settings["RECIPE"], full["RECIPE"]) == ('"2b-lora"', '"2b-full"')

    def test_one_that_needs_two_cards_runs_nano_on_one(self):
        _, settings = notebooks_gpu.prepare("13_many_gpus", "2b", cards=1)
        assert settings == {"MODEL": '"nano"', "ZERO": "0"}

    @pytest.mark.parametrize(
        ("free_gib", "changes"),
        [(22.0, '{"language": "qlora", "vision_offload": True, "bin_tokens": 4096}'), (44.0, '{"weights": "float8"}')],
    )
    def test_the_26b_is_made_to_fit_where_the_notebook_has_a_parameter_for_it(self, free_gib, changes):
        _, settings = notebooks_gpu.prepare("10_export_and_share", "26b", free_gib=free_gib)
        assert (settings["CHANGES"], settings["LAYOUTS"]) == (changes, '["adapter"]') and "LOADING" not in settings
        for key, gib in (("26b", 140.0), ("26b", None), ("4b", free_gib)):
            assert "CHANGES" not in notebooks_gpu.prepare("10_export_and_share", key, free_gib=gib)[1]

    def test_a_parameter_that_is_missing_is_named(self, monkeypatch):
        monkeypatch.setitem(notebooks_gpu.LESSONS, "00_first_look", notebooks_gpu.Lesson({"LINES": "3"}))
        with pytest.raises(ValueError, match="00_first_look: 0 lines `LINES = …`"):
            notebooks_gpu.prepare("00_first_look", "2b")


class TestBox:
    def test_it_says_what_to_set_what_was_measured_and_what_is_predicted(self):
        assert notebooks_gpu.box("07_finetune_lora", {PLACE: ROW}) == (
            "## On your GPU\n\n"
            'Set `MODEL = "2b"` and `RECIPE = "2b-lora"`. The figures are for `TRAIN_ROWS = 160`, `TEST_ROWS = 16`.\n\n'
            "| card | GiB free | 2b | what it is |\n"
            "| --- | --: | --- | --- |\n"
            "| H200 | 22 | 2.1 min, 12.9 GiB | measured, the whole notebook: random weights of true size |\n"
            "| RTX 3090 | 23.6 | 3.2 min, 9.4 GiB | predicted: training alone |\n"
            "| L4 | 22.2 | 22.9 GiB: does not fit | predicted: training alone |"
        )

    def test_a_model_has_a_column_the_smallest_first_and_the_large_one_says_how_it_fits(self):
        large = ROW | {"model": "26b", "settings": notebooks_gpu.prepare(PLACE[-1], "26b", free_gib=44.0)[1]}
        rows = {
            ("26b", "H200", 44.0, PLACE[-1]): large | {"free_gib": 44.0, "minutes": 5.0, "predicted": {}},
            PLACE: ROW,
            ("26b", "H200", 22.0, PLACE[-1]): large | {"minutes": 9.0, "predicted": {"L4": {"gib": 18, "minutes": 7}}},
        }
        lines = notebooks_gpu.box(PLACE[-1], rows).splitlines()
        assert lines[2].startswith('Set `MODEL = "2b"`') and lines[-1].startswith("`26b` with 22 GiB free: `CHANGES")
        assert [line.rpartition(" | ")[0] for line in lines[4:10]] == [
            "| card | GiB free | 2b | 26b",
            "| --- | --: | --- | ---",
            "| H200 | 22 | 2.1 min, 12.9 GiB | 9.0 min, 12.9 GiB",
            "| H200 | 44 | – | 5.0 min, 12.9 GiB",
            "| RTX 3090 | 23.6 | 3.2 min, 9.4 GiB | –",
            "| L4 | 22.2 | 22.9 GiB: does not fit | 7.0 min, 18.0 GiB",
        ]

    def test_replies_have_their_assumed_length_where_nothing_is_trained(self):
        place = (*PLACE[:3], "00_first_look")
        row = ROW | {"notebook": "00_first_look", "runs": [], "settings": {"MODEL": '"2b"', "ROWS": "12"}}
        said = "| 22.9 GiB: does not fit | predicted: 3 replies of 64 tokens, one after another; weights alone |"
        assert said in notebooks_gpu.box("00_first_look", {place: row})

    @pytest.mark.parametrize("change", [{"error": "cell 3: ValueError: x"}, {"model": "nano"}, {"card": "CPU"}])
    def test_rows_that_failed_or_are_not_of_a_released_model_on_a_card_are_not_shown(self, change):
        row = ROW | change
        place = (row["model"], row["card"], *PLACE[2:])
        assert notebooks_gpu.box("07_finetune_lora", {place: row}).endswith("Not measured yet.")

    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            (["a", "## Recap\n* b"], ["a", "BOX", "## Recap\n* b"]),
            (["a\n\n## Recap\n* b"], ["a", "BOX", "## Recap\n* b"]),
            (["a\n\n## On your GPU\n\nold\n\n## Recap\n* b"], ["a", "BOX", "## Recap\n* b"]),
            (["## On your GPU\n\nold", "a", "## Recap"], ["BOX", "a", "## Recap"]),
        ],
    )
    def test_it_gets_a_cell_of_its_own(self, cells, expected):
        text = "## On your GPU\n\nSet it."
        notebook = notebook_of(*cells)
        for _ in range(2):  # the second time nothing changes
            notebooks_gpu.place_box(notebook, text)
            assert sources(notebook) == [text if source == "BOX" else source for source in expected]
            assert notebook.cells[0].outputs[0].text == "2"
            nbformat.validate(notebook)
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)

    def test_a_notebook_without_a_place_for_it_is_refused(self):
        with pytest.raises(ValueError, match="expected one of them"):
            notebooks_gpu.place_box(notebook_of("a"), "## On your GPU\n\nSet it.")

    def test_writing_the_boxes_twice_changes_nothing_more(self, tmp_path):
        folder = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
        texts = []
        for _ in range(2):
            notebooks_gpu.write_boxes(folder, {PLACE: ROW})
            texts.append({path.name: path.read_text() for path in folder.glob("*.ipynb")})
        assert texts[0] == texts[1]
        for path in folder.glob("*.ipynb"):
            before, after = (nbformat.read(where / path.name, as_version=4) for where in (ROOT / "notebooks", folder))
            code = [[cell for cell in one.cells if cell.cell_type == "code"] for one in (before, after)]
            assert code[0] == code[1]
            assert "## On your GPU" in [cell.source.partition("\n")[0] for cell in after.cells]


class TestRows:
    def test_a_later_call_begins_with_what_is_missing_then_what_failed(self):
        places = [(*PLACE[:3], name) for name in ("a", "b", "c")]
        rows = {places[0]: {"error": "cell 1: x"}, places[1]: {"error": None}}
        assert notebooks_gpu.unfinished(places, rows) == [places[2], places[0]]
        assert notebooks_gpu.unfinished(places, rows, again=True) == [places[2], places[0], places[1]]

    def test_they_are_written_in_order_and_read_back(self, tmp_path):
        rows = {PLACE: ROW, (*PLACE[:3], "00_first_look"): ROW | {"notebook": "00_first_look"}}
        notebooks_gpu.write_rows(tmp_path / "rows.json", rows)
        assert notebooks_gpu.read_rows(tmp_path / "rows.json") == rows
        written = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert [row["notebook"] for row in written] == ["00_first_look", "07_finetune_lora"]
        assert notebooks_gpu.read_rows(tmp_path / "none.json") == {}

    def test_the_table_puts_the_plan_beside_the_log(self):
        last = notebooks_gpu.table({PLACE: ROW}).splitlines()[-1]
        assert last == (
            "| 2b | H200 | 22.0 | 07_finetune_lora | none | alive | 2.06 | 12.94 | 6.5 "
            "| 7.70 / 7.00 (+10%) | 0.50 / 0.40 (+25%) |"
        )

    def test_a_run_is_told_beside_its_plan_and_what_other_cards_need(self, tmp_path, monkeypatch):
        """Six steps, of which the log has a second each after the first, and a validation of two seconds."""
        (tmp_path / "notebooks").mkdir()
        monkeypatch.chdir(tmp_path / "notebooks")
        data = open_data(write_digit_strips(tmp_path / "data", rows=96, digits=(1, 1), tasks=("read",)))
        run = write_run(recipe("nano-lora"), data, Path("../runs/lesson/run"))
        for step in range(1, 7):
            line = {"step": step, "steps": 6, "loss": 1.0, "memory_gib": 0.1 * step}
            append_step(run.folder / "log.jsonl", line | {"seconds": 30.0 + step + 2.0 * (step > 4)})
        for step in (4, 6):  # the log has a step's seconds from before it is looked at
            append_step(run.folder / "validation.jsonl", {"step": step, "seconds": 2.0})
        found = notebooks_gpu.read_runs(tmp_path, "H200")
        (line,) = found["runs"]
        assert (line["run"], line["recipe"], line["steps"]) == ("lesson/run", "nano-lora", 6)
        assert (line["log_gib"], line["log_minutes"]) == (0.6, 0.1)
        planned = plan(run.recipe, data=data, card="H200", gpu_gib=1000)
        assert line["plan_gib"] == round(planned.cases[0].allocated_gib, 2) > 0
        assert line["plan_minutes"] == round(planned.minutes, 3)
        assert list(found["predicted"]) == ["RTX 3090", "RTX 4090", "RTX 5090", "L4"]
        assert {each["gib"] for each in found["predicted"].values()} == {round(planned.needed_gib, 2)}
        rows = data.path
        rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")  # as who labels on
        unplanned = {"runs": [line | {"plan_gib": None, "plan_minutes": None}], "predicted": {}}
        assert notebooks_gpu.read_runs(tmp_path, "H200") == unplanned

    def test_a_single_step_has_no_pace(self):
        assert notebooks_gpu.minutes_of_steps([{"step": 1, "steps": 1, "seconds": 9.0}], []) is None

    def test_minutes_of_asking_count_reading_and_writing(self):
        """The 2B on an L4: 10 pictures are 2 · 10 · 5 · (1,025 · 304 M + 256 · 1,889 M) = 79.5 T operations, at 0.62 ·
        790/989 · 121 T a second 1.33 s; its weights pass in 12.6 ms, so 1,000 tokens wait for 24 layers of 1 ms."""
        found = notebooks_gpu.predict_asking("2b", "L4", 10, 10, 100)
        assert found == {"gib": 4.11, "minutes": round((79.52 / 59.93 + 24) / 60, 2)}


class TestExecute:
    def test_the_first_error_is_told_with_its_cell(self, tmp_path):
        found = execute("int('x')", tmp_path)
        assert found["error"] == "cell 2: ValueError: invalid literal for int() with base 10: 'x'"
        assert found["kernel_alive"]

    def test_a_dead_kernel_is_told(self, tmp_path):
        found = execute("os._exit(3)", tmp_path)
        assert found["error"].startswith("cell 2: DeadKernelError") and not found["kernel_alive"]

    def test_what_outlasts_its_time_is_ended(self):
        with notebooks_gpu.watched(0.0) as seen:
            child = subprocess.Popen(SLEEP, start_new_session=True)
            child.wait()
        assert seen.out_of_time and not notebooks_gpu.psutil.pid_exists(child.pid)

    def test_a_kernel_that_was_ended_is_not_told_as_dead(self, tmp_path, monkeypatch):
        monkeypatch.setattr(notebooks_gpu, "watched", lambda _: nullcontext(notebooks_gpu.Seen(out_of_time=True)))
        found = execute("os._exit(3)", tmp_path, seconds=5.0)
        assert found["error"] == "cell 2: out of time after 5 s" and found["kernel_alive"]

    def test_what_a_notebook_started_ends_with_it(self):
        with notebooks_gpu.watched(math.inf) as seen:
            child = subprocess.Popen(SLEEP, start_new_session=True)
            while not seen.processes:
                time.sleep(0.05)
        assert not seen.out_of_time and not notebooks_gpu.psutil.pid_exists(child.pid)

    def test_one_that_ends_has_no_error(self, tmp_path):
        found = execute("1 + 1", tmp_path)
        assert (found["error"], found["kernel_alive"]) == (None, True) and 0 < found["minutes"] < 1
