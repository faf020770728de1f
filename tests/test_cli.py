"""The command line: each command does what its help says, a mistake is one line and exit code 2."""

import errno
import json
import os
import subprocess
import sys

import pytest

from ivlkit import __version__
from ivlkit.cli import COMMANDS as DECLARED
from ivlkit.cli import main
from ivlkit.cli_options import OPTIONS
from ivlkit.errors import CheckpointError
from ivlkit.training.run import Run

COMMANDS = ["machine", "families", "download", "verify", "chat", "convert", "check"]
COMMANDS += ["train", "runs", "evaluate", "predict", "benchmark", "compare", "export", "notebooks", "demo"]


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"ivlkit {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"  ivlkit {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_every_option_that_is_declared_belongs_to_a_command():
    had = {(name, option) for name, (_, _, options, *_) in DECLARED.items() for option in options.split()}
    used = {f"{name} {option}" if f"{name} {option}" in OPTIONS else option for name, option in had}
    assert used == set(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "2b-lorra"], "did you mean '2b-lora'?"),
        (
            ["train", "26b-full", "--gpus", "7", "--dry-run"],
            "128 is not a multiple of gpus 7 x per_device_batch 2 = 14",
        ),
        (["train", "nano-lora"], "no data; expected --data"),
        (["train", "nano-lora", "--overfit", "8", "--dry-run"], "no data; expected --data"),
        (["plan", "nano-lora", "--set", "total_batch=24"], "such as --per-device-batch-size 8"),
        (["train", "nano-lora", "--data", "nowhere.json"], "nowhere.json: does not exist"),
        (["train", "nano-lora", "--set", "lora_rank"], "expected FIELD=VALUE"),
        (["train", "nano-lora", "--set", "lora_rank=many", "--dry-run"], "expected a number"),
        (["train", "nano-lora", "--set", "lora_rank=none", "--dry-run"], "lora_rank=None; expected a whole number"),
        (["train", "mine.yaml"], "mine.yaml: No such file or directory; expected a file"),
        (["train", "a/run.yaml", "--dry-run"], "with --dry-run; expected no other option"),
        (["train", "a/run.yaml", "--epochs", "0"], "with --epochs; expected no other option"),
        (["train", "2b-lora", "--lr", "1e-4"], "--lr: nothing that train takes; expected one of --suggest, --data"),
        (["train", "2b-lora", "--lr", "1e-4"], "; write --learning-rate …"),
        (["train", "2b-lora", "--lora-rank=8"], "; write --set lora_rank=…"),
        (["train", "2b-lora", "--output_dir", "x"], "; write folder=…, on the command line --to"),
        (["train", "2b-lora", "--metric_for_best_model", "x"], "; write --metric …"),
        (["plan", "2b-lora", "mine.jsonl"], "; write --data mine.jsonl"),
        (["evaluate", "nano", "x.jsonl", "--metrics", "f1"], "; write --metric"),
        (["chat", "nano", "What?", "a.png"], "; write --image a.png"),
        (["compare", "a", "b", "--zzz"], "; `ivlkit compare --help` explains them"),
        (["chat", "nano", __file__], "chat: a picture in the question's place; expected the question first"),
        (["train", "a/run.yaml", "--per-device-batch-size", "2"], "with --per-device-batch-size; expected no other"),
        (["train", "nano-lora", "--set", "lora_rnk=8", "--dry-run"], "did you mean 'lora_rank'?"),
        (["chat", "nowhere", "Hi"], "nowhere: no such folder"),
        (["chat", "2b", "Hi"], "run `ivlkit download 2b` (4.4 GB, about 6 minutes at 100 Mbit/s)"),
        (["evaluate", "nano", "nowhere.jsonl"], "nowhere.jsonl: does not exist"),
        (["compare", "nowhere.json", "nowhere.json"], "nowhere.json: can't be read"),
        (["export", "nowhere", "--to", "x"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    line = printed.err.strip()
    assert line.startswith("ivlkit: ") and said in line and "\n" not in line


def test_the_guides_command_line_gives_accumulation_8(capsys):
    assert main(["train", "26b-full", "--gpus", "8", "--per-device-batch-size", "2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "accumulation: 8 micro-batches" in printed and "total_batch: 128" in printed and "zero_stage: 3" in printed


def test_what_a_dry_run_prints_is_a_recipe_to_train_and_plan(capsys, tmp_path):
    assert main(["train", "nano-lora", "--set", "learning_rate=.002", "name=mine", "--dry-run"]) == 0
    (tmp_path / "mine.yaml").write_text(printed := capsys.readouterr().out)
    assert "learning_rate: 0.002" in printed
    assert main(["train", str(tmp_path / "mine.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["plan", str(tmp_path / "mine.yaml")]) == 0


def test_settings_that_are_given_one_by_one_all_hold(capsys):
    assert main(["train", "nano-lora", "--set", "lora_rank=8", "--set", "epochs=2", "seed=1", "--dry-run"]) == 0
    assert {"lora_rank: 8", "epochs: 2.0", "seed: 1"} <= set(capsys.readouterr().out.splitlines())


def test_rows_to_learn_by_heart_are_described_for_a_launcher_and_shown_dry(write_rows, turns, tmp_path, capsys):
    rows = str(write_rows([{"conversations": turns("Q", "A")}] * 3))
    overfit = ["train", "nano-lora", "--data", rows, "--overfit", "2"]
    assert main([*overfit, "--only-write", "--to", str(tmp_path / "run")]) == 0
    run = Run(tmp_path / "run")
    assert (run.recipe.name, run.recipe.epochs, run.recipe.total_batch) == ("nano-lora-overfit", 100, 2)
    assert run.spec["data"]["rows"] == run.spec["validation"]["rows"] == 2
    capsys.readouterr()
    assert main([*overfit, "--dry-run"]) == 0
    assert "name: nano-lora-overfit" in capsys.readouterr().out


def test_a_plan_says_whether_it_fits_and_what_to_change(capsys):
    assert main(["plan", "26b-lora", "--gpus", "1", "--gpu-gib", "24"]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "to change: then language='qlora'" in said
    assert main(["plan", "2b-lora", "--gpus", "1", "--card", "H100"]) == 0


def test_a_run_has_its_pictures_root_its_metric_and_its_folder_from_the_command_line(
    write_rows, turns, draw_picture, tmp_path, monkeypatch, capsys
):
    (tmp_path / "images").mkdir()
    draw_picture().save(tmp_path / "images" / "0.png")
    for name in ("train.jsonl", "validation.jsonl"):
        write_rows([{"image": "0.png", "conversations": turns("Q", name)}], name)
    (tmp_path / "metric_of_mine.py").write_text("def score(reply, truth):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as a console script has it
    arguments = ["train", "nano-lora", "--data", "train.jsonl", "--root", "images", "--only-write"]
    arguments += ["--validation", "validation.jsonl", "--metric", "metric_of_mine:score"]
    assert main([*arguments, "--to", "a run"]) == 0
    spec = Run(tmp_path / "a run").spec
    assert spec["validation"]["root"] == spec["data"]["root"] == str(tmp_path / "images")
    assert spec["metric"] == "metric_of_mine:score"
    capsys.readouterr()
    for taken in ("train.jsonl", "train.jsonl/run"):
        assert main([*arguments, "--to", taken]) == 2
        assert f"ivlkit: {taken}: can't be written (" in capsys.readouterr().err


def test_families_are_readable_by_a_program(capsys):
    assert main(["families", "--json"]) == 0
    found = {family["key"]: family for family in json.loads(capsys.readouterr().out)}
    assert list(found) == ["26b", "2b", "4b", "nano"]
    assert found["4b"]["hub_id"] == "OpenGVLab/Mini-InternVL-Chat-4B-V1-5"


@pytest.mark.parametrize(
    "command", [("chat", "m", "Q"), ("evaluate", "m", "text-control"), ("predict", "m", "rows.jsonl")]
)
def test_how_a_model_is_loaded_can_be_typed(command, write_rows, turns, tmp_path, monkeypatch, capsys):
    write_rows([{"conversations": turns("Q", "A")}], "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    asked = []

    def refuse(name, **how):
        asked.append((name, how))
        raise CheckpointError("m: its base is not here; expected it; name it: ivlkit.load(…, base=…)")

    monkeypatch.setattr("ivlkit.models.load.load", refuse)
    assert main([*command]) == main([*command, "--base", "b", "--device", "cpu", "--quantize", "4bit"]) == 2
    assert asked == [("m", {}), ("m", {"base": "b", "device": "cpu", "quantize": "4bit"})]
    assert capsys.readouterr().err.endswith("name it: --base …\n")


def test_chat_answers_and_tells_its_tiles_as_json(tiny_vlm, capsys, tmp_path):
    from PIL import Image

    Image.new("RGB", (224, 112), "white").save(tmp_path / "a.png")
    arguments = ["chat", str(tiny_vlm.folder), "What?", "--image", str(tmp_path / "a.png"), "--max-new-tokens", "4"]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tiles"] == [3] and isinstance(answer["reply"], str)
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == answer["reply"]


def test_two_evaluations_are_kept_and_compared(tiny_vlm, capsys, tmp_path, write_rows, turns):
    data = write_rows([{"task": f"t{number % 2}", "conversations": turns("Hi", "x")} for number in range(4)])
    options = ["--max-new-tokens", "2", "--metric", "f1"]
    for name in ("before", "after"):
        assert main(["evaluate", str(tiny_vlm.folder), str(data), "--to", str(tmp_path / name), *options]) == 0
    capsys.readouterr()
    page, table = tmp_path / "compared.html", tmp_path / "compared.csv"
    arguments = ["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--by", "task"]
    assert main([*arguments, "--html", str(page), "--csv", str(table), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["difference"], found["interval_by"], found["neither"]) == (0.0, {"task": [0.0, 0.0]}, 4)
    assert page.stat().st_size > 1000 and len(table.read_text().splitlines()) == 5
    assert main(arguments) == 0
    assert "with rows of one task drawn together: +0.0 to +0.0 points" in capsys.readouterr().out


def test_an_evaluation_takes_controls_and_a_tile_budget(tiny_vlm, capsys, tmp_path, write_rows, turns):
    data = write_rows([{"conversations": turns("Hi", "x")}])
    arguments = ["evaluate", str(tiny_vlm.folder), str(data), "--pictures", "none", "--max-tiles", "2", "--json"]
    assert main([*arguments, "--max-new-tokens", "2"]) == 0
    details = json.loads(capsys.readouterr().out)["details"]
    assert (details["pictures"], details["max_tiles"]) == ("none", 2)


def test_talking_without_a_question_ends_at_an_empty_line(tiny_vlm, capsys, monkeypatch):
    lines = iter(["Hi", "And now?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat", str(tiny_vlm.folder), "--max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_module_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "ivlkit", "families"], capture_output=True, text=True)
    assert done.returncode == 0 and "InternVL-Chat-V1-5" in done.stdout


def ended(arguments, stdout, **environment):
    """(exit code, lines of standard error) of a command whose output goes somewhere."""
    command = [sys.executable, "-m", "ivlkit", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, timeout=120)
    return done.returncode, done.stderr.decode().splitlines()


def test_predict_writes_the_table_and_the_page(tiny_vlm, draw_picture, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    draw_picture(112, 112).save(tmp_path / "new" / "a.png")
    table, page = tmp_path / "answers.csv", tmp_path / "answers.html"
    options = ["--question", "What is it?", "--to", str(table), "--html", str(page), "--max-new-tokens", "2", "--json"]
    assert main(["predict", str(tiny_vlm.folder), str(tmp_path / "new"), *options]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["file"], line["question"]) == ("a.png", "What is it?")
    assert f"a.png,a.png,a.png,What is it?,{line['answer']}" in table.read_text() and "What is it?" in page.read_text()


class TestEnds:
    def test_a_full_disk_behind_the_output_is_one_line(self):
        with open("/dev/full", "w") as full:
            code, (line,) = ended(["families"], full)
        assert code == 2 and line.startswith("ivlkit: the output: No space left on device; expected ")

    def test_a_reader_that_has_seen_enough_ends_it_without_a_word(self):
        reading, writing = os.pipe()
        os.close(reading)
        assert ended(["families"], writing) == (141, [])
        os.close(writing)

    def test_a_terminal_of_another_encoding_shows_escapes(self, write_rows, turns, tmp_path):
        rows = write_rows([{"conversations": turns("Q", "x")}], "naïve→.jsonl")
        for encoding, name in (("latin-1", b"na\xefve\\u2192.jsonl"), ("ascii", b"na\\xefve\\u2192.jsonl")):
            with open(tmp_path / "out.txt", "w+b") as out:
                assert ended(["check", str(rows)], out, PYTHONIOENCODING=encoding)[0] == 0
                out.seek(0)
                assert name in out.read()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["evaluate", "nano", "rows.jsonl", "--html", "."], "is a folder; expected a file's name"),
            (["evaluate", "nano", "rows.jsonl", "--coco", "rows.jsonl"], "can't be written in "),
            (["predict", "nano", "rows.jsonl", "--html", "rows.jsonl/a.html"], "can't be written in "),
            (["benchmark", "docvqa", "nano", ".", "--submission", "closed/new/a.json"], "can't be written in "),
            (["compare", "rows.jsonl", "rows.jsonl", "--csv", "/"], "is a folder; expected a file's name"),
        ],
    )
    def test_a_place_that_takes_no_file_is_named_before_a_model_is_loaded(
        self, arguments, said, write_rows, turns, tmp_path, monkeypatch, capsys
    ):
        write_rows([{"conversations": turns("Hi", "x")}], "rows.jsonl")
        (tmp_path / "closed").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("ivlkit.load", None)
        monkeypatch.setattr("ivlkit.predict", None)
        monkeypatch.setattr("os.access", lambda path, mode: "closed" not in str(path))
        assert main(arguments) == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(("code", "todo"), [(errno.ENOSPC, "free some of the disk"), (errno.EROFS, "may write")])
    def test_a_page_that_can_not_be_written_is_named(
        self, code, todo, tiny_vlm, write_rows, turns, capsys, monkeypatch
    ):
        def refuse(*_, **__):
            raise OSError(code, os.strerror(code))

        data = write_rows([{"conversations": turns("Hi", "x")}])
        monkeypatch.setattr("pathlib.Path.write_text", refuse)
        arguments = ["evaluate", str(tiny_vlm.folder), str(data), "--html", "page.html", "--max-new-tokens", "2"]
        assert main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"ivlkit: page.html: {os.strerror(code)}; expected ") and todo in line
