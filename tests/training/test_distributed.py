"""Two processes make the steps of one, by DDP and by ZeRO-1, 2 and 3 over gloo; launches that would not are refused."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.errors import RecipeError, TrainingError
from ivlkit.models.load import load
from ivlkit.models.shapes import config_of
from ivlkit.training import runs as runs_module
from ivlkit.training.checkpoints import check_finite
from ivlkit.training.engine import distributed
from ivlkit.training.engine.distributed import check_engine, check_launch, find_missing, loading, zero_config
from ivlkit.training.estimate.planner import prepared_shape
from ivlkit.training.estimate.prediction import disk_bytes
from ivlkit.training.loop import execute as child
from ivlkit.training.loop import validation
from ivlkit.training.loop.execute import last_checkpoint
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import describe, execute, write_run

# Ranks meet once for all runs: a second meeting in the same processes fails now and then. ZeRO-3 divides all weights,
# where the released threshold would leave those of so small a model whole.
EXECUTE_ALL = """
import json, os, signal, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ivlkit.training.engine import distributed
from ivlkit.training.loop import execute as child
from ivlkit.training.loop import train
from ivlkit.training.loop import validation
from ivlkit.training.runs import execute

validation.ANSWER_TOKENS = {answer_tokens}
Accelerator.end_training = lambda self: None
released, asked, backward, seen = distributed.zero_config, child.StopOnSignal.__call__, train.backward, {}

def divide_all(stage, **options):
    config = released(stage, **options)
    config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return config

def observe(training, batch, weight, **rest):
    model, rank = training.engine, training.accelerator.process_index
    tiles = seen.setdefault(folder, [])
    tiles.append(len(batch.get("places", batch.get("tiles", ()))))
    held = sum(getattr(one, "ds_tensor", one).numel() for one in model.parameters())
    share = held / sum(getattr(one, "ds_numel", one.numel()) for one in model.parameters())
    engine, world = type(model).__name__, torch.distributed.get_world_size()
    clips = model.gradient_clipping() if engine == "DeepSpeedEngine" else None
    said = {"engine": engine, "world": world, "share": share, "tiles": tiles, "clips": clips}
    Path(folder, f"observed-{rank}.json").write_text(json.dumps(said))
    return backward(training, batch, weight, **rest)

def ask(self):
    steps.append(1)
    if distributed.rank() == 1 and len(steps) == int(stop_at):
        os.kill(os.getpid(), signal.SIGTERM)
    return asked(self)

distributed.zero_config = divide_all
train.backward, child.StopOnSignal.__call__ = observe, ask
for each in sys.argv[1:]:
    folder, _, stop_at = each.partition("@")
    stop_at, steps = stop_at or 0, []
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # of the run before; a launcher starts without
    AcceleratorState._reset_state(reset_partial_state=True)
    execute(folder)
distributed.leave()
"""
FULL = {"vision": "full", "projector": "full", "language": "full", "weighting": "square"}
LORA = {"vision": "frozen", "projector": "full", "lora_dropout": 0.0}
FAST = {"learning_rate": 3e-4}  # a tower of two layers beside random weights
KEEP = {"keep_features": 4 * 6300 / 2**30}  # four of the six kinds of tiles: ranks go on to see unequal numbers
PLANS = {  # of two ranks; rows of a step, so that now and then a rank has text alone, or none
    "lora in bins": ("nano-lora", {"weighting": "sample", "vision": "lora", "lora_dropout": 0.0}),
    "lora padded": ("nano-lora", {"weighting": "token", "vision": "lora", "lora_dropout": 0.0, "packing": False}),
    "lora beside a tower on the host": ("nano-lora", LORA | {"vision_offload": True}),
    "lora on float8": ("nano-lora", LORA | {"weights": "float8", "model": "nano", "learning_rate": 1e-20}),
    "full by DDP": ("nano-full", FULL),
    "full by ZeRO-1": ("nano-full", FULL | {"zero_stage": 1, "vision": "frozen"}),
    "full by ZeRO-2": ("nano-full", FULL | {"zero_stage": 2}),
    "full by ZeRO-3": ("nano-full", FULL | {"zero_stage": 3}),
    "lora by ZeRO-3": ("nano-lora", LORA | {"zero_stage": 3, "zero_offload": True}),
    "a tower alone by ZeRO-3": ("nano-lora", {"vision": "lora", "language": "frozen", "zero_stage": 3, **FAST}),
    "layers of the tower by ZeRO-3": ("nano-full", {"vision": "frozen", "unfreeze_vit_layers": -1, "zero_stage": 3}),
    "lora by DDP that keeps features": ("nano-lora", LORA | KEEP),
    "lora by ZeRO-3 that keeps features": ("nano-lora", LORA | KEEP | {"zero_stage": 3, "zero_offload": True}),
}
STANDS_STILL = "lora on float8"  # rounding to float8 makes a step's last bit a hundredth of the next loss
ANSWER_TOKENS = 4  # under ZeRO-3 each one fetches all weights anew
STOPPED = ("full by ZeRO-2", "full by ZeRO-3")  # by a signal to one rank after the second step, then gone on with
if sys.platform != "linux":  # there DeepSpeed is a requirement, and its absence a failure
    PLANS = {name: plan for name, plan in PLANS.items() if "ZeRO" not in name}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine rows: text alone, one tile, and three tiles, in turn."""
    folder, rows = tmp_path_factory.mktemp("rows"), []
    for number in range(9):
        turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "word " * (number % 4) + str(number)}]
        rows.append({"conversations": turns})
        if number % 3:
            Image.new("RGB", (112 * (number % 3), 112), (25 * number, 60, 120)).save(folder / f"{number}.png")
            rows[-1]["image"] = f"{number}.png"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_data(folder / "train.jsonl")


@pytest.fixture(scope="module")
def made(data, tiny, tmp_path_factory):
    """{name: (run of two processes, run of one)} of all `PLANS`."""
    work, found, commands = tmp_path_factory.mktemp("runs"), {}, []
    small = {"model": str(tiny), "total_batch": 4, "epochs": 2, "max_seq_length": 100, "per_device_batch": 2}
    small |= {"packing": True, "bin_tokens": 140, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-5}
    for name, (kind, changes) in PLANS.items():
        chosen = recipe(kind, **small | {"gpus": 2} | changes)
        found[name] = write_run(chosen, data, work / name.replace(" ", "-"), validation=data)
        commands += [f"{found[name].folder}@{2 if name in STOPPED else ''}"]
        commands += [str(found[name].folder)] if name in STOPPED else []
    (work / "execute.py").write_text(EXECUTE_ALL.replace("{answer_tokens}", str(ANSWER_TOKENS)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", work / "execute.py"]
    done = subprocess.run([*start, *commands], capture_output=True, text=True, cwd=work, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-6000:]
    alone = {}
    for name, run in found.items():
        chosen = replace(run.recipe, gpus=1, zero_stage=0, zero_offload=False, packing=True, keep_features=0.0)
        alone[name] = next((one for one in alone.values() if one.recipe == chosen), None)
        if alone[name] is None:
            alone[name] = write_run(chosen, data, work / f"alone-{run.folder.name}", validation=data)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(validation, "ANSWER_TOKENS", ANSWER_TOKENS)
                execute(alone[name].folder)
    return {name: (run, alone[name]) for name, run in found.items()}


def observed(run):
    """What each rank saw of itself: its engine, the world's size, the share of weights it holds, tiles it was given."""
    return [json.loads((run.folder / f"observed-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", PLANS)
def test_two_processes_make_the_steps_of_one(made, name):
    """Nine rows twice in five steps, the last of two rows; validated before, between and after; two were stopped."""
    run, alone = made[name]
    steps = [np.array([[line["loss"], line["grad_norm"]] for line in one.history]) for one in (run, alone)]
    assert steps[0].shape == (5, 2)
    close = {"atol": 1e-5, "rtol": 1e-4}
    if run.recipe.weights == "float8":  # a last bit of a sum moves one quantised value by a sixteenth
        close = {"atol": 1e-3, "rtol": 1e-2}
    np.testing.assert_allclose(*steps, **close)
    losses = [[line["loss"] for line in one.validation] for one in (run, alone)]
    np.testing.assert_allclose(*losses, **close)
    parts = [validation.find_best(one.folder)["row_losses"] for one in (run, alone)]
    np.testing.assert_allclose(*parts, **{name: 10 * value for name, value in close.items()})
    rates = [[line["learning_rate"] for line in one.history] for one in (run, alone)]
    assert rates[0] == rates[1] and rates[0][0] != rates[0][-1]  # a prepared schedule would step once a rank
    assert [line["step"] for line in run.validation] == [0, 2, 4, 5]
    assert [[each["reply"] for each in line["answers"]] for line in run.validation] == [
        [each["reply"] for each in line["answers"]] for line in alone.validation
    ]
    assert [line["tokens"] for line in run.history][-1:] == [alone.history[-1]["tokens"]] or name in STOPPED


@pytest.mark.parametrize("name", PLANS)
def test_the_engine_is_the_one_that_was_asked_for(made, name):
    stage = made[name][0].recipe.zero_stage
    for rank in observed(made[name][0]):
        assert rank["engine"] == ("DeepSpeedEngine" if stage else "DistributedDataParallel")
        assert rank["world"] == 2
        assert rank["share"] == pytest.approx(0.5 if stage == 3 else 1, abs=0.01)
        assert rank["clips"] == (made[name][0].recipe.max_grad_norm if stage else None)  # in `backward`


@pytest.mark.parametrize("name", PLANS)
def test_a_rank_with_text_alone_computes_beside_one_with_pictures(made, name):
    pairs = list(zip(*(rank["tiles"] for rank in observed(made[name][0])), strict=True))
    assert any(bool(first) != bool(second) for first, second in pairs)


def loss_of(vlm, record):
    """The mean cross-entropy of a record's answer."""
    example = encode(record, vlm.processor)
    ids, labels = (torch.tensor(numbers)[None] for numbers in (example.input_ids, example.labels))
    pixel_values = normalise_tiles(torch.from_numpy(example.tiles))
    with torch.inference_mode():
        return vlm.model(input_ids=ids, labels=labels, pixel_values=pixel_values).loss.item()


@pytest.mark.parametrize("name", [name for name in PLANS if name != STANDS_STILL and "keeps" not in name])
def test_what_several_ranks_wrote_loads_in_one_process(made, data, tiny, name):
    """The final weights are the best ones, and in every checkpoint; all were hashed once, by rank 0."""
    run, alone = made[name]
    (file,) = (run.folder / "final").glob("*.safetensors")
    assert load_file(file).keys() == load_file(alone.folder / "final" / file.name).keys()
    vlm = load(run.folder)
    # By losses: where a gradient is rounding, Adam moves the weight by any part of the rate, and the loss by nothing.
    found, expected, before = (loss_of(one, data[5]) for one in (vlm, load(alone.folder), load(run.recipe.model)))
    assert found == pytest.approx(expected, abs=1e-5) and expected < before - 5e-4
    assert (vlm.adapter is None) == (run.recipe.name == "nano-full")
    (checkpoint,) = run.folder.glob("checkpoint-*")
    assert last_checkpoint(run.folder) == str(checkpoint)
    assert not run.notices[1:]


@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith("full")])
def test_a_checkpoint_is_as_large_as_was_planned(made, name):
    """ZeRO's holds the weights twice. Beside 1.5 MB and more of tensors: 0.2 MB of scripts, names, random states."""
    run, _ = made[name]
    (checkpoint,) = run.folder.glob("checkpoint-*")
    found = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    model = prepared_shape(run.recipe, config_of(run.recipe.model)[0])[1]
    expected, _ = disk_bytes(model, run.recipe, device_type="cpu")
    assert expected <= found <= expected + 200_000


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux only")
def test_an_adapter_is_no_start_for_weights_that_are_divided(made):
    run, _ = made["lora in bins"]
    chosen = recipe("nano-full", model=str(run.folder), gpus=2, zero_stage=3)
    with pytest.raises(TrainingError, match="an adapter to go on from under ZeRO-3, .*; ivlkit export .* --to merged"):
        child._load_base(chosen, torch.device("cpu"), torch.float32)


def test_a_share_of_a_weight_that_is_not_finite_spoils_no_checkpoint():
    model = torch.nn.Linear(1, 1)
    check_finite(model, 3)
    model.weight.ds_tensor = torch.tensor([1.0, float("nan")])  # what ZeRO-3 leaves on this rank
    with pytest.raises(TrainingError, match="weight is not finite after step 3"):
        check_finite(model, 3)


# launches ------------------------------------------------------------------------------------------------------------

LAUNCHERS = {  # beside torchrun, which is what ivlkit.train starts
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m"],
    "deepspeed": ["deepspeed.launcher.runner", "--num_gpus=2", "--module"],
}


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "deepspeed" or sys.platform == "linux"])
def test_every_launcher_starts_as_many_as_it_was_told(launcher, data, tiny, tmp_path):
    """Three are expected: what is refused shows that two came, and read the run's folder."""
    chosen = recipe("nano-lora", model=str(tiny), gpus=3, total_batch=48)
    run = describe(chosen, data, folder=tmp_path / "run")
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "ivlkit", "train", str(run.folder / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "gpus=3 in run.yaml, but 2 processes started; expected one a GPU" in done.stdout + done.stderr
    assert run.state == "failed" and "but 2 processes started" in run.error


@pytest.mark.parametrize(
    ("changes", "environ", "expected"),
    [
        (
            {"gpus": 2},
            {},
            "gpus=2 in run.yaml, but 1 process started; expected .*; torchrun --nproc_per_node 2",
        ),
        ({}, {"WORLD_SIZE": "2"}, "gpus=1 in run.yaml, but 2 processes started"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "--use_fsdp; expected DDP or the recipe's zero_stage"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "--zero_stage 2, but zero_stage=0 in run.yaml"),
        (
            {"zero_stage": 3},
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
            "--zero_stage 2, but zero_stage=3 in run.yaml; expected the same",
        ),
        (
            {"zero_stage": 3},
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "z3.json"},
            "with z3.json; expected none: the recipe's zero_stage=3 makes",
        ),
    ],
)
def test_a_launcher_that_has_something_else_in_mind_is_refused(changes, environ, expected):
    with pytest.raises(TrainingError, match=expected):
        check_launch(recipe("nano-lora", **changes), environ)


def test_a_launch_that_agrees_is_none_of_its_business():
    check_launch(recipe("nano-lora"), {})
    check_launch(recipe("nano-lora", gpus=2), {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "false"})


def test_zero_without_deepspeed_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    chosen = recipe("nano-lora", gpus=2, zero_stage=1)
    assert "zero_stage=1 on 2 GPUs, and no DeepSpeed is installed; pip install" in find_missing(chosen)
    assert find_missing(replace(chosen, gpus=1)) == find_missing(replace(chosen, zero_stage=0)) == ""
    with pytest.raises(RecipeError, match="no DeepSpeed is installed"):
        runs_module._check_machine(chosen)


@pytest.mark.parametrize(
    ("changes", "wrapped", "expected"),
    [
        ({"gpus": 2, "zero_stage": 2}, "DistributedDataParallel", "DeepSpeedEngine ZeRO-2 over 2 processes"),
        ({"gpus": 2}, "Linear", "DistributedDataParallel over 2 processes"),
        ({}, "DataParallel", "expected Linear, by gpus"),  # one process that sees two GPUs
    ],
)
def test_a_run_that_would_train_otherwise_stops_before_its_first_step(changes, wrapped, expected):
    model = torch.nn.Linear(1, 1)
    engine = model if wrapped == "Linear" else type(wrapped, (), {})()
    with pytest.raises(TrainingError, match=f"would train as {wrapped}; .*{expected}"):
        check_engine(engine, recipe("nano-lora", **changes), alone="Linear")


@pytest.mark.parametrize(("ranks", "said"), [("1", "done, then more"), ("2", "done")])
def test_one_of_several_ranks_ends_at_once_with_its_output_written(ranks, said):
    code = "from ivlkit.training.engine.distributed import leave; print('done', end=''); leave(); print(', then more')"
    environ = os.environ | {"WORLD_SIZE": ranks, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, said)


SLEEPING_LAUNCHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "run.yaml"])
print("started", flush=True)
time.sleep(60)
"""


def test_stopping_asks_the_ranks_and_not_their_launcher(data, tiny, tmp_path):
    """torchrun, asked itself, kills its ranks after 30 seconds, whether they have saved or not."""
    alone, both = (
        write_run(recipe("nano-lora", model=str(tiny), gpus=gpus), data, tmp_path / str(gpus)) for gpus in (1, 2)
    )
    launcher = subprocess.Popen([sys.executable, "-c", SLEEPING_LAUNCHER], stdout=subprocess.PIPE)
    launcher.stdout.readline()
    process = psutil.Process(launcher.pid)
    (child,) = process.children()
    try:
        assert both._ranks(process) == [child]
        assert alone._ranks(process) == [process]
    finally:
        for one in (child, process):
            one.kill()
        launcher.wait()


# DeepSpeed's configurations ------------------------------------------------------------------------------------------


def test_the_released_deepspeed_files_have_their_numbers():
    stage1, stage3 = (zero_config(stage)["zero_optimization"] for stage in (1, 3))
    assert (stage1["stage"], stage1["allgather_bucket_size"], stage1["reduce_bucket_size"]) == (1, 1e9, 1e9)
    assert zero_config(2)["zero_optimization"]["reduce_bucket_size"] == 1e8
    assert (stage3["stage"], stage3["sub_group_size"], stage3["stage3_prefetch_bucket_size"]) == (3, 1e9, 1e9)
    assert (stage3["stage3_param_persistence_threshold"], stage3["stage3_max_live_parameters"]) == (1e7, 1e9)
    assert stage3["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize(("stage", "parts"), [(1, {"optimizer"}), (2, {"optimizer"}), (3, {"optimizer", "param"})])
def test_offload_moves_the_optimizer_and_at_stage_3_the_weights(stage, parts):
    zero = zero_config(stage, offload=True)["zero_optimization"]
    assert {name.removeprefix("offload_") for name in zero if name.startswith("offload_")} == parts
    assert not [name for name in zero_config(stage)["zero_optimization"] if "offload" in name]


@pytest.mark.parametrize("changes", [{"zero_stage": 0}, {"zero_stage": 1, "optimizer": "adamw_8bit"}])
def test_offload_of_what_is_not_there_is_refused(changes):
    with pytest.raises(RecipeError, match="zero_offload with zero_stage=.*; expected zero_stage=1, 2 or 3"):
        recipe("2b-full", zero_offload=True, **changes)


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="zero_stage=4; expected one of 0, 1, 2, 3"):
        recipe("2b-full", zero_stage=4)


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux only")
@pytest.mark.parametrize(("stage", "expected"), [(1, False), (3, True)])
def test_weights_are_divided_while_they_are_loaded_at_stage_3_only(stage, expected):
    from transformers.integrations import is_deepspeed_zero3_enabled

    with loading(recipe("nano-full", gpus=2, zero_stage=stage), torch.bfloat16):
        assert is_deepspeed_zero3_enabled() is expected
    assert not is_deepspeed_zero3_enabled()


# the benchmark of several GPUs ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux only")
def test_the_benchmark_runs_with_two_processes(tmp_path):
    """The same script as on GPUs: losses beside one process's, a rank of text alone, what was saved loaded again."""
    out, root = tmp_path / "rows.jsonl", Path(__file__).parents[2]
    command = [sys.executable, "benchmarks/train_multi_gpu.py", "--key", "nano", "--variants", "nano-mixed-zero3"]
    options = ["--workers", "0", "--work", str(tmp_path / "work"), "--out", str(out)]
    environ = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=root, env=environ, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    alone, both, reloaded = map(json.loads, out.read_text().splitlines())
    assert (alone["gpus"], both["gpus"], both["engine"]) == (1, 2, "DeepSpeedEngine ZeRO-3 over 2 processes")
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-4) and len(both["losses"]) == 8
    assert both["text_alone"] > 0
    assert reloaded["reloaded_loss"] == pytest.approx(both["saved_loss"], abs=1e-5)
    assert "| nano-mixed-zero3 | 2 | DeepSpeedEngine ZeRO-3 over 2 processes |" in out.with_suffix(".md").read_text()


@pytest.fixture
def multi_gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("train_multi_gpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "AssertionError"),
        (ValueError("\n two\nlines"), "ValueError: two"),
        (RuntimeError("x" * 300), "RuntimeError: " + "x" * 200),
    ],
)
def test_a_variant_that_fails_is_told_with_what_its_error_says(multi_gpu, monkeypatch, tmp_path, error, said):
    """One without a text hid itself behind an IndexError."""
    monkeypatch.setattr(multi_gpu, "measure", lambda *_: (_ for _ in ()).throw(error))
    options = SimpleNamespace(child=("nano-lora", "train", "2"), out=tmp_path / "rows.jsonl")
    with pytest.raises(type(error)):
        multi_gpu.child(options)
    assert json.loads(options.out.read_text())["error"] == said


def test_rows_without_figures_and_a_reload_without_its_run_stand_in_the_table(multi_gpu):
    rows = [
        {"variant": "nano-lora", "gpus": 1, "what": "train"},  # killed
        {"variant": "nano-lora", "gpus": 2, "what": "train", "tokens_a_second": 200.0, "losses": [1.0]},
        {"variant": "nano-zero3", "gpus": 2, "what": "train", "error": "AssertionError"},
        {"variant": "nano-zero3", "gpus": 1, "what": "reload", "reloaded_loss": 1.5},
    ]
    killed, trained, failed, reloaded = multi_gpu.table_of(rows).splitlines()[2:]
    assert killed.startswith("| nano-lora | 1 | train: ended without a figure |")
    assert trained.startswith("| nano-lora | 2 |  | 200 |  |  |")
    assert failed.startswith("| nano-zero3 | 2 | train: AssertionError |")
    assert reloaded.startswith("| nano-zero3 | 1 |") and " 1.5 |" in reloaded
    assert {line.count("|") for line in (killed, trained, failed, reloaded)} == {len(multi_gpu.COLUMNS) + 1}


class TestTheNumberOfGpus:
    """A released recipe takes what is here, once, where its run is described."""

    @pytest.fixture
    def cards(self, monkeypatch):
        """`cards(("H200", 139.0), …)`: this machine has these, with so many GiB free."""

        def have(*found):
            gpus = tuple(SimpleNamespace(name=name, free_gib=free_gib) for name, free_gib in found)
            monkeypatch.setattr(distributed, "find_gpus", lambda: gpus)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
            monkeypatch.delenv("WORLD_SIZE", raising=False)

        return have

    def test_it_is_the_largest_of_the_free_cards_of_one_kind_that_divides_the_batch(self, cards):
        for found, expected in (
            ([], (1, 0)),
            ([("A", 20.0)], (1, 0)),
            ([("A", 20.0)] * 2, (2, 1)),
            ([("A", 20.0)] * 3, (2, 1)),  # 16 rows
            ([("A", 20.0), ("A", 3.0), ("A", 19.0)], (2, 1)),  # one is in use
            ([("A", 20.0), ("B", 20.0)], (1, 0)),
            ([("A", 20.0)] * 8, (8, 1)),
        ):
            cards(*found)
            settled = distributed.settle_gpus(recipe("2b-lora"))
            assert (settled.gpus, settled.zero_stage) == expected

    def test_a_launcher_has_counted_already(self, cards, monkeypatch):
        cards(("A", 20.0))
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert distributed.settle_gpus(recipe("2b-lora")).gpus == 4

    def test_a_number_that_was_given_stays(self, cards):
        cards(("A", 20.0))
        given = recipe("2b-lora", gpus=2)
        assert distributed.settle_gpus(given) is given
        assert distributed.settle_gpus(recipe("nano-lora")).gpus == 1

    def test_padded_batches_need_a_multiple_of_their_rows(self, cards):
        cards(*[("A", 20.0)] * 8)
        assert distributed.settle_gpus(recipe("2b-lora", packing=False)).gpus == 4  # 16 rows, 4 a GPU

    def test_a_run_takes_the_free_cards_and_not_the_first(self, cards):
        cards(("A", 3.0), ("A", 20.0), ("A", 19.5))
        assert distributed.visible_cards(2) == "1,2"
        cards(("A", 20.0), ("A", 3.0))
        assert distributed.visible_cards(1) is None and distributed.visible_cards(2) is None

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """The working folder, where no DeepSpeed is missed."""
        monkeypatch.setattr(runs_module, "find_missing", lambda recipe: "")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_a_run_goes_on_with_its_number_or_is_refused_naming_both(self, cards, tiny, mixed_rows, folder):
        asked, data = recipe("2b-lora", model=str(tiny)), open_data(mixed_rows)
        cards(*[("A", 20.0)] * 2)
        run = describe(asked, data, here=True)
        assert (run.recipe.gpus, run.spec["recipe"]["zero_stage"]) == (2, 1)
        cards(*[("A", 20.0)] * 4)
        assert describe(asked, data, here=True).folder == run.folder
        cards(("A", 20.0))
        with pytest.raises(RecipeError, match=rf"{run.folder.name}: its run began with gpus=2, but torch sees 1 here"):
            describe(asked, data, here=True)
        (run.folder / "final").mkdir()
        assert describe(asked, data, here=True).state == "finished"
        alone = describe(asked, data, folder=folder / "alone", here=True)
        assert (alone.recipe.gpus, alone.recipe.zero_stage) == (1, 0)

    def test_folders_of_earlier_versions_are_found(self, cards, tiny, mixed_rows, folder):
        """They hold the number that the recipe had, and ZeRO on one card too."""
        data = open_data(mixed_rows)
        earlier = write_run(recipe("2b-lora", model=str(tiny), gpus=1, zero_stage=1), data)
        cards(("A", 20.0))
        assert describe(recipe("2b-lora", model=str(tiny)), data, here=True).folder == earlier.folder
