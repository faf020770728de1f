"""Runs from outside: a child process that is followed, stopped, gone on with, and never started twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ivlkit.cli import main
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import CheckpointError, RecipeError, TrainingError
from ivlkit.models.export.export import export
from ivlkit.models.load import load
from ivlkit.training import run as run_module
from ivlkit.training import runs as runs_module
from ivlkit.training.log import append_step, read_steps
from ivlkit.training.loop import execute as child_module
from ivlkit.training.recipes import recipe
from ivlkit.training.run import BEGINNING, Run, attach, open_again, runs
from ivlkit.training.runs import execute, train, write_run


def write_five(folder, turns, draw_picture):
    """A JSONL of five rows with pictures."""
    for number in range(5):
        draw_picture(112, 112, seed=number).save(folder / f"{number}.png")
    rows = [{"image": f"{n}.png", "conversations": turns("Q", f"word {n}")} for n in range(5)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


@pytest.fixture
def rows(turns, draw_picture, tmp_path):
    return write_five(tmp_path, turns, draw_picture)


@pytest.fixture(scope="session")
def chosen(tiny):
    """Twelve steps of two or three rows."""
    return recipe(
        "nano-lora", model=str(tiny), total_batch=4, per_device_batch=2, epochs=9, save_steps=5, lora_dropout=0.2
    )


@pytest.fixture(scope="session")
def finished(chosen, turns, draw_picture, tmp_path_factory):
    """(a run of `chosen` that has ended, its rows): trained once. Copy it where a test changes it."""
    folder, handler = tmp_path_factory.mktemp("finished"), signal.getsignal(signal.SIGTERM)
    rows = write_five(folder, turns, draw_picture)
    run = write_run(chosen, open_data(rows), folder / "run")
    execute(run.folder)
    signal.signal(signal.SIGTERM, handler)
    return run, rows


@pytest.fixture
def here(monkeypatch, tmp_path):
    """`here(run)` trains in this process what the child would train; `stop_at` sends its signal during that step."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run_here(run, *, stop_at=None):
        log_line = child_module.log_line

        def log(training, step, **options):
            if step.number == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return log_line(training, step, **options)

        with monkeypatch.context() as patch:
            patch.setattr(child_module, "log_line", log)
            execute(run.folder)
        return run

    yield run_here
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def no_child(monkeypatch):
    """A list of the runs that would have been started."""
    started = []
    monkeypatch.setattr(runs_module, "_start", started.append)
    return started


@torch.inference_mode()
def logits(vlm):
    input_ids = torch.randint(3, 1000, (1, 12), generator=torch.Generator().manual_seed(0))
    return vlm.model(input_ids=input_ids).logits


@contextmanager
def sleeper(argument):
    """A process that does nothing, with this in its command line."""
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)", argument], stdout=-1
    )
    child.stdout.readline()
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def steps(run):
    return [line["step"] for line in run.history]


# children ------------------------------------------------------------------------------------------------------------


def test_a_child_whose_command_line_is_still_empty_is_running(tmp_path, monkeypatch):
    """The system fills it in a moment after the start; on a busy machine a run was taken for stopped."""
    (tmp_path / "run.yaml").write_text("")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setitem(run_module.children, tmp_path.resolve(), child)
    monkeypatch.setattr("psutil.Process.cmdline", lambda self: [])
    try:
        assert Run(tmp_path).state == "running"
    finally:
        child.kill()
        child.wait()
    assert Run(tmp_path).state == "failed"


def test_a_finished_run_that_a_launcher_starts_again_is_left_as_it_is(finished, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(finished[0].folder, tmp_path / "run")
    shutil.rmtree(next(folder.glob("checkpoint-*")))  # without it, it began anew
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    execute(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert f"{folder}: has finished" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="gpus=1 in run.yaml, but 2 processes started"):
        execute(folder)


def test_a_child_is_stopped_and_goes_on_to_the_bits_of_an_undisturbed_run(rows, chosen, here, tmp_path, tiny):
    chosen = replace(chosen, epochs=64, save_steps=1000)
    run = train(chosen, rows, folder=tmp_path / "child")
    child = (run.folder / "pid").read_text()
    assert train(chosen, rows, folder=tmp_path / "child").folder == run.folder  # attaches
    assert (run.folder / "pid").read_text() == child
    deadline = time.monotonic() + 120
    while len(run.history) < 3 and run.state == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.state == "running", (run.folder / "output.txt").read_text()
    run.stop()
    assert run.state == "stopped"
    done = len(run.history)
    assert 3 <= done < 80
    assert (run.folder / f"checkpoint-{done}").is_dir()
    with pytest.raises(TrainingError, match="stopped, not finished; expected a finished run"):
        run.load()

    again = train(chosen, rows, folder=tmp_path / "child").wait()
    assert again.state == "finished"
    assert again.error is None
    assert steps(again) == list(range(1, 81))  # five rows, 64 times, by four
    assert (again.folder / "pid").read_text() != child

    undisturbed = here(write_run(chosen, open_data(rows), tmp_path / "here"))
    expected, found = (load_file(r.folder / "final" / "adapter_model.safetensors") for r in (undisturbed, again))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert not torch.allclose(logits(again.load()), logits(load(tiny)), atol=1e-3)


# the same, in this process -------------------------------------------------------------------------------------------


def test_a_part_of_a_data_set_is_trained_and_opened_again(rows, chosen, here, no_child, tmp_path):
    data = open_data(rows)
    train_part, test_part = data.split(train=0.6, test=0.4)
    run = here(write_run(replace(chosen, epochs=1), train_part, tmp_path / "part"))
    assert run.state == "finished"
    assert run.spec["data"]["selection"] == "rows.npy"
    assert run.history[-1]["step"] == 1  # three rows in steps of four
    again = open_again(run)
    assert [record.where for record in again] == [record.where for record in train_part]
    assert len(again) + len(test_part) == 5
    assert write_run(chosen, data).folder != write_run(chosen, train_part).folder != write_run(chosen, test_part).folder
    np.save(run.folder / "rows.npy", np.array([0, 1, 2, 3]))
    with pytest.raises(TrainingError, match="changed since this run was described"):
        open_again(run)


def test_a_split_of_a_meta_file_is_opened_again(rows, chosen, tmp_path):
    entry = {"root": str(tmp_path), "annotation": str(rows)}
    (tmp_path / "meta.json").write_text(json.dumps({"a": entry, "b": entry | {"split": "extra", "repeat_time": 0.5}}))
    extra = open_data(tmp_path / "meta.json", split="extra")
    run = write_run(chosen, extra, tmp_path / "run")
    assert run.spec["data"]["split"] == "extra"
    assert open_again(run).fingerprint == extra.fingerprint
    assert "split" not in write_run(chosen, open_data(tmp_path / "meta.json"), tmp_path / "other").spec["data"]


def test_a_finished_run_is_found_again_and_not_trained_twice(rows, chosen, here, no_child):
    run = train(chosen, rows)
    assert [started.folder for started in no_child] == [run.folder]
    assert run.state == "stopped"
    here(run)
    assert run.state == "finished"
    again = train(chosen, open_data(rows))
    assert (again.folder, len(no_child)) == (run.folder, 1)
    assert steps(again) == list(range(1, 13))
    assert " ".join(again.history[0]) == "step steps epoch loss learning_rate grad_norm tokens memory_gib seconds"
    assert repr(again).startswith(f"Run({run.folder}: finished, step 12 of 12, loss ")
    assert [found.folder for found in runs()] == [run.folder]
    assert attach().folder == attach(run.folder).folder == run.folder


def test_weights_that_were_replaced_under_their_name_are_another_run(rows, chosen, no_child, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    renamed = replace(chosen, model=str(model))
    run = train(renamed, rows)
    assert train(renamed, rows).folder == run.folder
    (weights,) = model.glob("*.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(RecipeError, match="holds a run that began with other weights than those that are in"):
        train(renamed, rows)


def test_a_run_is_removed_but_not_what_others_put_beside_it(rows, chosen, finished, tmp_path, capsys):
    run = Run(shutil.copytree(finished[0].folder, tmp_path / "one"))
    other = write_run(chosen, open_data(rows), tmp_path / "b")
    (other.folder / "mine.txt").write_text("keep")
    (other.folder / "finals").mkdir()
    for name in ("checkpoint-5.old.part", "checkpoint-4.corrupt", "best-3", "features"):
        (other.folder / name).mkdir()
    (other.folder / "run.yaml.part").write_text("recipe: {na")  # a machine that died while it was written
    assert main(["runs", "--delete", str(run.folder), str(other.folder)]) == 0
    assert capsys.readouterr().out.endswith(f"{run.folder}: removed\n{other.folder}: removed\n")
    assert not run.folder.exists() and {path.name for path in other.folder.iterdir()} == {"mine.txt", "finals"}
    assert main(["runs", "--delete", str(other.folder)]) == 2
    for ask in (run.delete, lambda: run.recipe):
        with pytest.raises(TrainingError, match=f"{run.folder}"):
            ask()
    assert not run.folder.exists()


def test_the_run_that_started_last_is_the_one_attached_to(rows, chosen, no_child, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    older, newer = write_run(chosen, open_data(rows), "runs/a"), write_run(chosen, open_data(rows), "runs/b")
    os.utime(older.folder / "run.yaml", (1_000, 1_000))
    assert attach().folder == newer.folder
    (older.folder / "pid").write_text("1")  # started again
    assert attach().folder == older.folder


def test_the_folder_has_all_that_is_needed_to_load_and_repeat_the_run(chosen, finished, tiny):
    run, rows = finished
    tmp_path = rows.parent
    assert run.recipe == chosen
    assert run.spec["data"] == {
        "path": str(rows),
        "root": str(tmp_path),
        "seed": 0,
        "rows": 5,
        "fingerprint": open_data(rows).fingerprint,
    }
    assert {"torch", "transformers", "peft", "ivlkit"} <= run.spec["versions"].keys()
    final = run.folder / "final"
    assert {path.name for path in final.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "ivlkit.json",
    }
    config, origin = (json.loads((final / name).read_text()) for name in ("adapter_config.json", "ivlkit.json"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (16, 32, str(tiny))
    assert "q_proj" in config["target_modules"]
    assert (origin["base"], origin["template"], origin["max_tiles"]) == (str(tiny), "internlm2-chat", 12)
    assert not list(run.folder.rglob("training_args.bin"))


def test_a_lora_run_is_exported_with_equal_logits(finished, tmp_path):
    run, _ = finished
    trained = run.load()
    export(run, tmp_path / "merged")
    trained.merge_adapter()
    trained.model.to(torch.bfloat16).float()  # the file's dtype
    torch.testing.assert_close(logits(load(tmp_path / "merged")), logits(trained), atol=1e-4, rtol=1e-4)
    with pytest.raises(Exception, match="exists already"):
        export(run, tmp_path / "merged")


def test_a_run_goes_on_from_a_run_and_from_its_export_and_wraps_nothing_twice(chosen, finished, here, tmp_path):
    first, rows = finished
    card = (export(first, tmp_path / "merged") / "README.md").read_text()
    assert "nano-lora: nano, fine-tuned" in card
    assert f"5 rows of `train.jsonl`, fingerprint `{open_data(rows).fingerprint}`" in card
    assert "lora_dropout: 0.2" in card
    assert str(tmp_path) not in card and str(rows.parent) not in card
    expected = load_file(first.folder / "final" / "adapter_model.safetensors").keys()
    for start in (first.folder, tmp_path / "merged"):
        second = here(write_run(replace(chosen, model=str(start)), open_data(rows)))
        assert load_file(second.folder / "final" / "adapter_model.safetensors").keys() == expected
        assert not torch.allclose(logits(load(second.folder)), logits(load(start)), atol=1e-4)
        assert (export(second, tmp_path / f"from {start.name}") / "README.md").exists()


def test_the_tile_budget_of_the_recipe_is_trained_with_kept_and_exported(rows, tiny, here, tmp_path, draw_picture):
    draw_picture(640, 480).save(tmp_path / "0.png")
    few = recipe("nano-lora", model=str(tiny), max_tiles=1, epochs=1, total_batch=8, per_device_batch=8)
    run = here(write_run(few, open_data(rows)))
    assert run.load().processor.max_tiles == 1
    assert load(export(run, tmp_path / "merged")).processor.max_tiles == 1


def test_an_adapter_is_loaded_onto_no_other_weights_than_it_was_trained_on(chosen, finished, here, tiny):
    first, rows = finished
    second = here(write_run(replace(chosen, model=str(first.folder)), open_data(rows)), stop_at=1)
    checkpoint = second.folder / "checkpoint-1"
    assert load(checkpoint, base=first.folder).folder == checkpoint
    with pytest.raises(CheckpointError, match="its adapter belongs to other weights than those in .*; expected the"):
        load(checkpoint, base=tiny)


@pytest.mark.parametrize("name", ["nano-lora", "nano-full"])
def test_a_checkpoint_is_loaded_as_it_was_trained(rows, tiny, here, name):
    few = recipe(name, model=str(tiny), max_tiles=1, epochs=2, total_batch=8, per_device_batch=8)
    run = here(write_run(few, open_data(rows)), stop_at=1)
    vlm = load(run.folder / "checkpoint-1")
    assert (run.state, vlm.processor.max_tiles) == ("stopped", 1)
    assert not torch.equal(logits(vlm), logits(load(tiny)))


def test_a_stopped_run_goes_on_after_its_last_checkpoint(rows, chosen, here):
    run = write_run(chosen, open_data(rows))
    here(run, stop_at=3)
    assert run.state == "stopped"
    assert run.error is None
    done = len(run.history)
    assert 3 <= done <= 4
    # A machine that dies later leaves lines behind the checkpoint; these steps are done again.
    with open(run.folder / "log.jsonl", "a") as file:
        file.write(json.dumps(run.history[-1] | {"step": done + 1, "loss": 99.0}) + "\n")
    here(run)
    assert run.state == "finished"
    assert steps(run) == list(range(1, 13))
    assert 99.0 not in [line["loss"] for line in run.history]


def test_history_survives_a_line_that_is_half_written(rows, chosen):
    run = write_run(chosen, open_data(rows), folder=rows.parent / "run")
    (run.folder / "log.jsonl").write_text('{"step": 1, "steps": 12, "loss": 2.5}\n{"step": 2, "st')
    assert steps(run) == [1]
    append_step(run.folder / "log.jsonl", {"step": 2})
    assert steps(run) == [1, 2]


def test_history_survives_a_letter_that_is_half_written_and_every_kind_of_line_end(tmp_path):
    path, reply = tmp_path / "samples.jsonl", "a\u2028b\x85c\x0cd\re\nf"
    append_step(path, {"step": 1, "reply": reply})
    with open(path, "ab") as file:
        file.write('{"step": 2, "reply": "ü'.encode()[:-1])
    assert read_steps(path) == [{"step": 1, "reply": reply}]
    append_step(path, {"step": 2, "reply": "ü"})
    assert read_steps(path) == [{"step": 1, "reply": reply}, {"step": 2, "reply": "ü"}]


@pytest.fixture
def killed(monkeypatch):
    """`killed(call)` makes the call die half way through the text that it writes."""
    write_text = Path.write_text

    def half(self, text, *arguments, **options):
        write_text(self, text[: len(text) // 2])
        raise KeyboardInterrupt

    def call_it(call):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "write_text", half)
            call()

    return call_it


def test_a_run_that_dies_while_it_is_described_is_no_run_and_can_be_described_again(rows, chosen, tmp_path, killed):
    part, _ = open_data(rows).split(train=0.6, test=0.4)
    killed(lambda: write_run(chosen, part, tmp_path / "run"))
    assert runs(tmp_path) == []
    assert write_run(chosen, part, tmp_path / "run").recipe == chosen
    assert len(open_again(Run(tmp_path / "run"))) == 3


def test_a_plan_and_a_process_that_are_half_noted_are_not_noted(rows, chosen, tmp_path, killed, monkeypatch):
    """Half a digest would be another plan, and half a number another process: the run would be started twice."""
    run, plan = write_run(chosen, open_data(rows), tmp_path / "run"), SimpleNamespace(digest="0123456789abcdef")
    killed(lambda: child_module._check_plan(run, plan, goes_on=False))
    child_module._check_plan(run, plan, goes_on=True)
    assert (run.folder / "plan.sha256").read_text() == plan.digest
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=12345, poll=lambda: 0))
    (run.folder / "pid").write_text("777")
    killed(lambda: runs_module._start(run))
    assert (run.folder / "pid").read_text() == "777"


def test_a_notice_after_one_that_is_half_written_stands_on_a_line_of_its_own(rows, chosen, tmp_path):
    run = write_run(chosen, open_data(rows), tmp_path / "run")
    (run.folder / "notices.txt").write_text("checkpoint-4 is ski")
    child_module._notice(run.folder, "größer")
    child_module._notice(run.folder, "twice")
    assert run.notices == ["checkpoint-4 is ski", "größer", "twice"]


def test_a_failed_run_says_why_and_goes_on_when_it_is_mended(rows, chosen, here, no_child, tmp_path):
    picture = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").unlink()
    run = train(chosen, rows)
    with pytest.raises(Exception, match="3.png does not exist"):
        here(run)
    assert run.state == "failed"
    assert "train.jsonl:4" in run.error
    with pytest.raises(TrainingError, match="3.png does not exist"):
        run.wait()
    (tmp_path / "3.png").write_bytes(picture)
    assert len(no_child) == 1
    train(chosen, rows)
    assert len(no_child) == 2
    assert here(run).state == "finished"
    assert run.error is None


def test_a_bar_says_what_is_done_before_the_first_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").touch()
    states = iter(["running", "finished", "finished"])
    monkeypatch.setattr(Run, "state", property(lambda run: next(states)))
    Run(tmp_path).wait()
    assert BEGINNING in capsys.readouterr().err


def test_a_child_that_dies_without_a_word_has_failed(rows, chosen, tmp_path, monkeypatch):
    """No error.txt is written by a process that is killed or can't start."""
    monkeypatch.setattr(runs_module.sys, "executable", "/bin/false")
    run = train(chosen, rows, folder=tmp_path / "run")
    with pytest.raises(TrainingError, match="output.txt"):
        run.wait()
    assert run.state == "failed"


def test_data_that_changed_is_refused_by_the_child_and_makes_a_new_run(rows, chosen, here, no_child):
    run = train(chosen, rows)
    rows.write_text(rows.read_text().replace("word 1", "word 9"))
    with pytest.raises(
        TrainingError, match="changed since this run was described; expected the same rows; start a new"
    ):
        here(run)
    assert run.state == "failed"
    assert train(chosen, rows).folder != run.folder
    with pytest.raises(RecipeError, match="holds a run of another recipe or other data; choose another folder"):
        train(chosen, rows, folder=run.folder)


def test_a_stopped_run_goes_on_with_data_that_have_moved(rows, chosen, here, no_child, tmp_path):
    first = here(train(chosen, rows, validation=open_data(rows).select([0])), stop_at=3)
    run = Run(first.folder.rename(tmp_path / "renamed"))
    moved = shutil.copytree(rows.parent, tmp_path.parent / f"{tmp_path.name} elsewhere") / rows.name
    rows.unlink()
    with pytest.raises(TrainingError, match=r"train.jsonl: not there any more; .*folder='.*renamed' \(--to\)$"):
        here(run)
    assert "skip_unusable" not in run.error
    run = train(chosen, moved, validation=open_data(moved).select([0]), folder=run.folder)
    assert run.spec["validation"]["path"] == str(moved)
    assert steps(here(run)) == list(range(1, 13))
    moved.write_text(moved.read_text().replace("word 1", "word 9"))
    with pytest.raises(RecipeError, match="holds a run of another recipe or other data"):
        train(chosen, moved, validation=open_data(moved).select([0]), folder=run.folder)


def test_another_recipe_or_seed_is_another_run(rows, chosen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {
        write_run(chosen, open_data(rows)).folder,
        write_run(chosen, open_data(rows)).folder,
        write_run(recipe("nano-full", model=chosen.model), open_data(rows)).folder,
        write_run(chosen, open_data(rows, seed=1)).folder,
    }
    assert len(folders) == 3


def test_mistakes_are_refused_before_a_child_is_started(rows, chosen, no_child, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="is not a multiple of"):
        train(replace(chosen, per_device_batch=3), rows)
    with pytest.raises(RecipeError, match="gpus=4096 but torch sees"):
        train(replace(chosen, gpus=4096, total_batch=8192), rows)
    with pytest.raises(CheckpointError, match="no such folder"):
        train(replace(chosen, model="nowhere"), rows)
    with pytest.raises(RecipeError, match="did you mean 'nano-lora'"):
        train("nano-lor", rows)
    assert no_child == []
    assert runs() == []


def test_a_notebook_finds_the_runs_that_its_checkout_keeps_beside_it(rows, chosen, tmp_path, monkeypatch):
    run = write_run(chosen, open_data(rows), tmp_path / "runs" / "lesson" / "run")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert attach().folder.resolve() == run.folder.resolve()


def test_finding_a_run_and_drawing_it_waits_for_no_torch():
    code = "import ivlkit, sys; ivlkit.attach, ivlkit.runs; import ivlkit.show.run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_folder_that_is_no_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match="no run.yaml; expected the folder of a run"):
        Run(tmp_path)
    with pytest.raises(TrainingError, match="no run under .*; expected one; start it with ivlkit.train"):
        attach()


def test_a_run_without_final_is_not_loaded(rows, chosen, tmp_path):
    run = write_run(chosen, open_data(rows), folder=tmp_path / "run")
    with pytest.raises(TrainingError, match="stopped, not finished"):
        run.load()
    with pytest.raises(CheckpointError, match="a run without `final/`; expected a finished run"):
        load(run.folder)


def test_a_process_that_took_over_the_number_is_not_the_child(rows, chosen, tmp_path):
    run = write_run(chosen, open_data(rows), folder=tmp_path / "run")
    (run.folder / "pid").write_text(str(os.getpid()))
    assert run.state == "stopped"
    run.stop()  # and is not sent a signal
    other = tmp_path / "run-2" / "run.yaml"  # nor is a run whose folder's name holds this one's
    with sleeper(str(other)) as child:
        (run.folder / "pid").write_text(str(child.pid))
        assert run.state == "stopped"


def test_a_run_that_another_process_went_on_with_is_running_here_too(rows, chosen, tmp_path, no_child, monkeypatch):
    """The child that this process had started was stopped; starting one more would train it twice at once."""
    run = write_run(chosen, open_data(rows), folder=tmp_path / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setitem(run_module.children, run.folder.resolve(), ended)
    (run.folder / "pid").write_text(str(ended.pid))
    assert run.state == "stopped"
    with sleeper(str(run.folder / "run.yaml")) as child:
        (run.folder / "pid").write_text(str(child.pid))
        assert run.state == "running"
        assert train(chosen, rows, folder=run.folder).folder == run.folder
        assert no_child == []
        (run.folder / "error.txt").write_text("of before")
        with pytest.raises(TrainingError, match=f"is trained already, by process {child.pid}; expected one that has"):
            execute(run.folder)
        assert (run.folder / "error.txt").read_text() == "of before"
        with pytest.raises(TrainingError, match="running; expected a run that has ended; stop it first"):
            run.delete()


def test_two_that_ask_at_once_start_one_child(rows, chosen, tmp_path, monkeypatch):
    started = []

    def start(run):
        time.sleep(0.3)
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        run_module.children[run.folder.resolve()] = started[-1]

    monkeypatch.setattr(runs_module, "_start", start)
    monkeypatch.setattr(run_module, "children", {})
    threads = [Thread(target=train, args=(chosen, rows), kwargs={"folder": tmp_path / "run"}) for _ in range(2)]
    write_run(chosen, open_data(rows), folder=tmp_path / "run")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in started:
        child.kill()
        child.wait()
    assert len(started) == 1


def test_what_is_no_run_keeps_its_files(tmp_path):
    (tmp_path / "error.txt").write_text("mine")
    with pytest.raises(TrainingError, match="no run.yaml"):
        execute(tmp_path)
    assert (tmp_path / "error.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_and_said(rows, chosen, finished, here, tmp_path, capsys):
    more, (whole, _) = replace(chosen, save_total_limit=3), finished
    run = here(write_run(more, open_data(rows), tmp_path / "run"), stop_at=7)
    done = run.history[-1]["step"]
    weights = run.folder / f"checkpoint-{done}" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    here(run)
    said = "adapter_model.safetensors is not as it was written; going on from checkpoint-5, the one before"
    assert run.notices == [f"checkpoint-{done} is skipped: {said}"]
    assert run.notices[0] in capsys.readouterr().out
    assert steps(run) == list(range(1, 13))
    expected, found = (load_file(r.folder / "final" / "adapter_model.safetensors") for r in (whole, run))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    run.wait()
    assert said in capsys.readouterr().err


def test_a_run_whose_only_checkpoint_is_damaged_begins_anew_and_says_so(rows, chosen, here):
    run = here(write_run(chosen, open_data(rows)), stop_at=6)
    (checkpoint,) = run.folder.glob("checkpoint-*")
    (checkpoint / "optimizer.pt").unlink()
    here(run)
    missing = "optimizer.pt is missing; going on from the beginning: there is none before it"
    assert run.notices == [f"{checkpoint.name} is skipped: {missing}"]
    assert run.state == "finished"


def test_checkpoints_too_many_go_though_no_other_is_written(rows, chosen, here):
    """The run was killed after its last checkpoint was there and before the older one was gone."""
    run = here(write_run(chosen, open_data(rows)))
    (last,) = run.folder.glob("checkpoint-*")
    shutil.copytree(last, run.folder / "checkpoint-1")
    shutil.rmtree(run.folder / "final")
    here(run)
    assert (list(run.folder.glob("checkpoint-*")), run.state) == ([last], "finished")


@pytest.mark.parametrize("found", [b"0" * 64, b"", b"\xcf" * 64], ids=["another", "empty", "no text"])
def test_a_checkpoint_does_not_go_on_in_another_plan(rows, chosen, here, found):
    run = here(write_run(chosen, open_data(rows)), stop_at=6)
    (run.folder / "plan.sha256").write_bytes(found)
    with pytest.raises(
        TrainingError, match="the rows are now cut into other batches than when it was begun, by its plan"
    ):
        here(run)


@pytest.mark.parametrize(
    "harm", [lambda text: text[:-200], lambda text: b"", lambda text: b"\0" * 9, lambda text: b"\xcf"]
)
def test_a_torn_run_yaml_is_named_and_nothing_is_trained(rows, chosen, harm):
    run = write_run(chosen, open_data(rows))
    run.folder.joinpath("run.yaml").write_bytes(harm(run.folder.joinpath("run.yaml").read_bytes()))
    for use in (lambda: execute(run.folder), lambda: write_run(chosen, open_data(rows))):
        with pytest.raises(TrainingError, match=r"run\.yaml: can't be read as the description of a run"):
            use()
    assert "run.yaml: can't be read" in run.error


def test_a_full_disk_is_said_without_any_room_to_say_it(rows, chosen, tmp_path, monkeypatch):
    """The log can't be written, and neither can the reason."""
    run = write_run(chosen, open_data(rows), folder=tmp_path / "run")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(child_module, "_execute", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        execute(run.folder)
    assert run.error.endswith("is full; make room and train again: it goes on from its last checkpoint")
    (run.folder / "error.txt").write_text("")
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    child.wait()
    monkeypatch.setitem(run_module.children, run.folder.resolve(), child)
    goes_on = "the same command goes on from its last checkpoint"
    see = f"see {run.folder / 'output.txt'}; {goes_on}"
    assert (run.state, run.error) == ("failed", f"its process ended with code 1; {see}")


# packing -------------------------------------------------------------------------------------------------------------


def test_a_packed_run_says_how_full_its_bins_are_and_goes_on_where_it_stopped(mixed_rows, chosen, here, capsys):
    packed = replace(chosen, packing=True, max_seq_length=100, bin_tokens=140)
    run = write_run(packed, open_data(mixed_rows))
    here(run, stop_at=3)
    assert run.state == "stopped"
    said = capsys.readouterr().out
    assert "63 rows in 16 steps, each of " in said and "bins of at most 140 tokens on 1 rank; on average " in said
    assert "attention: sdpa (" in said
    here(run)
    assert (run.state, steps(run)) == ("finished", list(range(1, 17)))
    whole = here(write_run(packed, open_data(mixed_rows), mixed_rows.parent / "whole"))
    expected, found = (load_file(r.folder / "final" / "adapter_model.safetensors") for r in (whole, run))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_run_from_before_bins_is_read_and_begins_anew_but_does_not_go_on(rows, chosen, here):
    run = here(write_run(chosen, open_data(rows)), stop_at=7)
    path = run.folder / "run.yaml"
    older = path.read_text().replace("  packing: false\n", "").replace("  compile: false\n", "")
    assert older.count("\n") == path.read_text().count("\n") - 2
    path.write_text(older)
    assert (run.recipe.packing, run.recipe.compile, steps(run)) == (True, False, list(range(1, 8)))
    with pytest.raises(TrainingError, match="begun by an earlier ivlkit, which cut batches otherwise; .*; remove its"):
        here(run)
    for checkpoint in run.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert here(run).state == "finished"


def test_a_padded_run_says_so(mixed_rows, chosen, here, capsys):
    here(write_run(replace(chosen, packing=False, epochs=1), open_data(mixed_rows)))
    said = capsys.readouterr().out
    assert "padded batches of like length on 1 rank; " in said
    assert "attention: sdpa (padded batches, as the recipe says)" in said
