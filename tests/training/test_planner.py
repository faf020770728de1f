"""The planner beside runs that were measured, and beside the plan that a run really makes."""

import ast
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ivlkit import hardware
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import CheckpointError, RecipeError
from ivlkit.models.families import FAMILIES
from ivlkit.models.shapes import RELEASED, empty_model
from ivlkit.training.estimate import planner
from ivlkit.training.estimate.cards import CARDS, MEASURED, find_measured, match_card
from ivlkit.training.estimate.footprint import features_bytes
from ivlkit.training.estimate.planner import plan, prepared_shape
from ivlkit.training.estimate.prediction import batch_parts, disk_bytes, predict_seconds
from ivlkit.training.recipes import RECIPES, recipe
from ivlkit.training.runs import execute, write_run
from ivlkit.training.tuning import optimizer_bytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW_TOKENS, ROW_TILES = 2260, 8.2  # of the measured mix
GIB = 2**30


def setting(point):
    names = ("language", "bin_tokens", "gradient_checkpointing", "compile", "weights", "vision_offload")
    base = "full" if point.language == "full" else "lora"
    return recipe(f"{point.model}-{base}", gpus=1, vision="frozen", **{name: getattr(point, name) for name in names})


@pytest.mark.parametrize(
    "point", MEASURED, ids=lambda one: f"{one.model}-{one.language}-{one.weights}-{one.peak_gib}-{one.card}"
)
def test_a_measured_run_is_predicted_within_10_percent_of_its_peak_and_25_of_its_speed(point):
    chosen = setting(point)
    model, wrapped = prepared_shape(chosen, RELEASED[point.model])
    batch = SimpleNamespace(tokens=point.bin_tokens, tiles=round(point.bin_tokens * ROW_TILES / ROW_TOKENS))
    parts = batch_parts(wrapped, model.config, chosen, batch, device_type="cuda")
    assert sum(parts.values()) / GIB == pytest.approx(point.peak_gib, rel=0.1)
    place = SimpleNamespace(card=CARDS[point.card], device_type="cuda")
    sizes = {"tokens": 64 * ROW_TOKENS, "tiles": 64 * ROW_TILES, "bins": 64 * ROW_TOKENS / point.bin_tokens}
    seconds = predict_seconds(wrapped, model.config, chosen, place, **sizes)
    assert 64 * ROW_TOKENS / seconds == pytest.approx(point.tokens_a_second, rel=0.25)
    assert f"{point.peak_gib} GiB" in find_measured(chosen)


@pytest.mark.parametrize(
    ("name", "stage", "bin_tokens", "changes", "peak_gib"),  # of each of two H200
    [
        ("2b-lora", 0, 14336, {}, 7.69),
        ("2b-full", 1, 14336, {}, 25.68),
        ("2b-full", 2, 14336, {}, 22.36),
        ("4b-full", 2, 8192, {}, 43.61),
        ("4b-full", 3, 8192, {}, 37.14),
        ("26b-lora", 3, 8192, {}, 36.26),
        ("26b-lora", 0, 8192, {"weights": "float8", "compile": True}, 33.2),
    ],
)
def test_what_each_of_two_gpus_held_is_predicted_within_10_percent(name, stage, bin_tokens, changes, peak_gib):
    kept = {"vision": "frozen", "gradient_checkpointing": "full", "lora_dropout": 0.0, "packing": True}
    chosen = recipe(name, gpus=2, zero_stage=stage, bin_tokens=bin_tokens, **kept | changes)
    model, wrapped = prepared_shape(chosen, RELEASED[name.partition("-")[0]])
    batch = SimpleNamespace(tokens=bin_tokens, tiles=round(bin_tokens * ROW_TILES / ROW_TOKENS))
    parts = batch_parts(wrapped, model.config, chosen, batch, device_type="cuda")
    assert sum(parts.values()) / GIB == pytest.approx(peak_gib, rel=0.1)


def test_a_measured_run_stands_in_the_benchmarks_pages():
    notes, growth = ((BENCHMARKS / name).read_text() for name in ("NOTES.md", "scaling.md"))
    for one in MEASURED:
        rate = f"{one.tokens_a_second:,}"
        assert rate in notes and f"{one.peak_gib} GiB allocated, {rate} tokens/s on an {one.card}" in growth


def test_a_plan_with_settings_that_were_measured_says_so():
    said = plan(setting(MEASURED[0]), card="H100").measured
    assert said.startswith("measured with these settings: 8.16 GiB allocated and 18,363 tokens/s by the kit on an H100")


@pytest.mark.parametrize(
    "changes",
    [{"lora_rank": 128}, {"projector": "full"}, {"unfreeze_vit_layers": -4, "language": "full"}, {"gpus": 2}],
)
def test_a_plan_with_one_other_setting_does_not_say_that_it_was_measured(changes):
    assert not find_measured(replace(setting(MEASURED[0]), **changes))


@pytest.mark.parametrize("key", ["2b", "4b", "26b"])
def test_released_sizes_have_the_released_number_of_parameters(key):
    model, family = empty_model(RELEASED[key])
    counts = {name: value.numel() for name, value in model.named_parameters()}
    prefixes = ("model.vision_tower", "model.multi_modal_projector", ("model.language_model", "lm_head"))
    found = tuple(sum(count for name, count in counts.items() if name.startswith(prefix)) for prefix in prefixes)
    assert family == FAMILIES[key] and found == family.parts


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_plan_without_its_weights(name):
    found = plan(name, gpu_gib=80)
    assert {case.max_tiles for case in found.cases} == {12, 6, 1}
    assert all(value >= 0 for case in found.cases for value in case.parts.values())
    assert found.minutes is None and found.disk_gb > found.checkpoint_gb > 0
    assert "(predicted)" in str(found) and "<table>" in found._repr_html_()


def test_what_does_not_fit_gets_changes_that_make_it_fit():
    found = plan(recipe("26b-lora", gpus=1), gpu_gib=24)
    assert not found.fits and "DOES NOT FIT" in str(found)
    assert found.advice[-1].endswith("fits")
    changes = {}
    for line in found.advice:
        changes |= changes_of(line)
    assert plan(recipe("26b-lora", gpus=1, **changes), gpu_gib=24).fits


def changes_of(line):
    """The fields that a line of advice names."""
    settings = line.removeprefix("then ").split(": ")[0].split(", ")
    pairs = (setting.split("=") for setting in settings)
    return {name: ast.literal_eval(value) for name, value in pairs}


class TestATowerOnTheHost:
    """The 26B's layers: 45 of 4 · 3,200² + 2 · 3,200 · 12,800 values and some vectors, 11.06 GB in bf16."""

    CHANGES = {"gpus": 1, "language": "qlora", "bin_tokens": 4096}

    def test_two_layers_take_its_place_and_26b_fits_into_20_gib(self):
        stays, streamed = (
            plan(recipe("26b-lora", **self.CHANGES, vision_offload=offload), card="RTX 3090")
            for offload in (False, True)
        )
        less = stays.cases[0].parts["weights"] - streamed.cases[0].parts["weights"]
        layer = 2 * (4 * 3200**2 + 2 * 3200 * 12800)
        assert less == pytest.approx(43 * layer, rel=1e-3)
        assert streamed.fits and not stays.fits
        assert streamed.cases[0].allocated_gib < 18.5 and streamed.measured and not stays.measured

    def test_advice_names_it_where_float8_does_not_do(self):
        advice = plan(recipe("26b-lora", gpus=1), gpu_gib=20).advice
        assert advice[-2].startswith("then weights='float8': ")
        assert advice[-1].startswith("then weights='bf16', vision_offload=True: ") and advice[-1].endswith("fits")

    def test_its_way_to_the_gpu_is_added_and_said(self):
        """Assumed of an H100: 50 GB/s; 100 bins of 11.06 GB take 22 s, of which 500 tiles of 11.34 TFLOP hide 12."""
        found = []
        for offload in (False, True):
            chosen = recipe("26b-lora", **self.CHANGES, vision_offload=offload)
            model, wrapped = prepared_shape(chosen, RELEASED["26b"])
            place = SimpleNamespace(card=CARDS["H100"], device_type="cuda")
            found.append(predict_seconds(wrapped, model.config, chosen, place, tokens=4e5, tiles=500, bins=100))
        hidden = 500 * 11.34e12 / (0.62 * 790e12)
        assert found[1] - found[0] == pytest.approx(100 * 11.06e9 / 50e9 - hidden, rel=0.01)
        assert (
            "11.1 GB of the host's memory; they cross to the GPU for every batch, 0.22 s at 50 GB/s (assumed)"
            in str(plan(chosen, card="H100"))
        )

    def test_a_cpu_has_both_and_is_not_told_to(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(planner, "read_ram_gib", lambda: (4.0, 4.0))
        stays, streamed = (plan(recipe("2b-lora", gpus=1, vision_offload=offload)) for offload in (False, True))
        assert streamed.cases[0].parts["weights"] > stays.cases[0].parts["weights"]
        assert not any("vision_offload" in line for line in (*stays.advice, *streamed.notes))


def test_what_never_fits_says_so():
    assert "nothing here makes it fit into 4.0 GiB" in plan(recipe("26b-lora", gpus=1), gpu_gib=4).advice[-1]


def test_more_memory_is_saved_by_each_policy():
    peaks = [
        plan(recipe("2b-lora", gpus=1, gradient_checkpointing=policy), gpu_gib=80).needed_gib
        for policy in ("none", "selective", "full")
    ]
    assert peaks[0] > 1.5 * peaks[1] > 2 * peaks[2]


def test_an_optimizer_in_8_bits_has_a_byte_a_moment_and_a_scale_a_block():
    model = torch.nn.Linear(4096, 64)  # 262,144 values in 1,024 blocks; a bias of 64 stays in float32
    assert optimizer_bytes(model, "adamw_8bit") == 2 * (262_144 + 4 * 1024) + 2 * 4 * 64
    assert optimizer_bytes(model, "adamw") == 8 * (262_144 + 64)
    assert optimizer_bytes(model, "paged_adamw_8bit") == 0


def test_zero_divides_what_its_stage_says():
    whole = plan(recipe("2b-full", gpus=8, zero_stage=1), gpu_gib=80).cases[0].parts
    third = plan(recipe("2b-full", gpus=8, zero_stage=3), gpu_gib=80).cases[0].parts
    assert third["weights"] * 8 == pytest.approx(whole["weights"], rel=1e-6)
    assert third["gradients"] * 8 == pytest.approx(whole["gradients"], rel=1e-6)
    assert third["optimizer"] == whole["optimizer"]


class TestOnData:
    def test_cases_are_those_of_the_run_s_own_plan(self, mixed_rows):
        chosen = recipe("nano-lora", total_batch=8, max_seq_length=512, bin_tokens=512, packing=True)
        data = open_data(mixed_rows)
        found = plan(chosen, data=data)
        assert found.device_type == "cpu" and found.fits and found.minutes > 0
        few = next(case for case in found.cases if case.max_tiles == 1)
        assert few.tiles <= found.cases[0].tiles and few.minutes <= found.minutes
        assert found.cases[0].steps == -(-len(data) // 8)

    def test_minutes_need_a_card(self, mixed_rows):
        chosen = recipe("nano-lora", total_batch=8, per_device_batch=8)
        assert plan(chosen, data=mixed_rows, gpu_gib=80).minutes is None
        assert plan(chosen, data=mixed_rows, card="A100").minutes > plan(chosen, data=mixed_rows, card="H200").minutes

    def test_epochs_take_their_time(self, mixed_rows):
        """A step is an epoch of seven rows."""
        alone = {"total_batch": 7, "per_device_batch": 7}
        plans = (plan(recipe("nano-lora", epochs=epochs, **alone), data=mixed_rows, card="A100") for epochs in (1, 3))
        one, three = (found.minutes for found in plans)
        assert three == pytest.approx(3 * one)

    def test_a_card_without_bf16_gets_padded_batches(self, mixed_rows):
        chosen = recipe("nano-lora", packing=True, bin_tokens=1024, per_device_batch=2)
        found = plan(chosen, data=mixed_rows, card="T4")
        assert "float16, and padded batches" in str(found)
        assert found.cases[0].tokens <= plan(chosen, data=mixed_rows, card="A100").cases[0].tokens

    def test_data_need_the_model_s_tokenizer(self, mixed_rows, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="ivlkit download 2b"):
            plan("2b-lora", data=mixed_rows, gpu_gib=80)


@pytest.mark.parametrize("gib", [-3.0, float("nan")])
def test_less_than_no_memory_is_refused(gib):
    with pytest.raises(RecipeError, match="gpu_gib=.*; expected a number of GiB"):
        plan("2b-lora", gpu_gib=gib)


def test_an_unknown_card_is_refused():
    with pytest.raises(RecipeError, match="card 'H999'; expected one of B200, H200, H100"):
        plan("2b-lora", card="H999")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA Unknown", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400", None),
    ],
)
def test_a_driver_s_name_finds_its_card(name, key):
    assert match_card(name) is (CARDS[key] if key else None)


def test_no_memory_at_all_is_too_little():
    found = plan("2b-lora", gpu_gib=0)
    assert (found.free_gib, found.fits) == (0, False)


def test_who_holds_the_gpu_is_named(monkeypatch):
    lines = f"{os.getpid()}, python3, 5120\n77, /usr/bin/blender, 2048\n78, secret, [N/A]\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0, stdout=lines))
    assert hardware.holders_of_gpu() == (
        f"this process (pid {os.getpid()}): 5,120 MiB; vlm.release() gives a loaded model's back",
        "pid 77 blender: 2,048 MiB",
        "pid 78 secret: an unknown amount",
    )


def test_of_a_run_the_program_that_began_it_is_named(monkeypatch):
    lines = f"{os.getpid()}, python3, 518\n{os.getppid()}, python3, 12104\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0, stdout=lines))
    assert hardware.holders_of_gpu() == (
        f"this process (pid {os.getpid()}): 518 MiB",
        f"the program that began this run (pid {os.getppid()}): 12,104 MiB; vlm.release() gives a loaded model's back",
    )


def test_where_nvidia_smi_is_missing_nobody_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert hardware.holders_of_gpu() == ()


def test_running_out_of_memory_ends_in_advice(monkeypatch):
    place = planner.find_place(24, None)
    monkeypatch.setattr(planner, "find_place", lambda *_: replace_place(place, free_gib=12.0))
    said = planner.out_of_memory(recipe("2b-lora", gpus=1, gradient_checkpointing="none"))
    assert said.startswith("memory ran out: 12.0 GiB of the card you named for this run; its largest possible batch")
    assert "to change: gradient_checkpointing='selective'" in said and said.endswith("fits")


def replace_place(place, **changes):
    return SimpleNamespace(**vars(place) | changes)


def test_disk_holds_the_kept_checkpoints_the_one_being_written_and_the_best(tiny):
    chosen = recipe("nano-full", model=str(tiny), save_total_limit=2)
    found = plan(chosen, gpu_gib=8)
    model, _ = empty_model(planner.config_of(str(tiny))[0])
    weights = 4 * sum(value.numel() for value in model.parameters())
    assert found.checkpoint_gb * 1e9 == pytest.approx(3 * weights)
    assert found.disk_gb * 1e9 == pytest.approx(3 * 3 * weights + weights)
    assert plan(replace(chosen, save_total_limit=1), gpu_gib=8).disk_gb < found.disk_gb


@pytest.mark.parametrize(
    ("stage", "bytes_a_value"),
    [  # in bf16, of 60 trained and 40 frozen values: gathered weights; masters and moments; what DeepSpeed adds
        (1, 2 * 100 + 12 * 60 + 2 * 100),
        (2, 2 * 100 + 12 * 60 + 2 * 140),
        (3, 2 * 100 + 12 * 60 + 2 * 40),
    ],
)
def test_a_checkpoint_of_zero_holds_the_weights_again(stage, bytes_a_value):
    model = torch.nn.ParameterList([torch.zeros(60), torch.zeros(40)])
    model[1].requires_grad_(False)
    divided = recipe("2b-full", gpus=8, zero_stage=stage)
    assert disk_bytes(model, divided, device_type="cuda") == (bytes_a_value, 2 * bytes_a_value + 2 * 100)
    assert disk_bytes(model, replace(divided, gpus=1), device_type="cuda")[0] == 4 * 100 + 8 * 60


@pytest.mark.parametrize(
    ("key", "projector", "mib_a_tile"),
    [("2b", "frozen", 1), ("26b", "frozen", 3), ("2b", "full", 2), ("26b", "full", 6.25)],
)
def test_features_that_are_kept_take_what_their_tiles_need_up_to_the_bound(key, projector, mib_a_tile):
    chosen = recipe(f"{key}-lora", gpus=1, projector=projector, keep_features=1)
    config = empty_model(RELEASED[key])[0].config
    assert features_bytes(config, chosen, tiles=10, device_type="cuda") == 10 * mib_a_tile * 2**20
    assert features_bytes(config, chosen, tiles=10_000, device_type="cuda") == GIB
    assert features_bytes(config, replace(chosen, keep_features=0), tiles=10, device_type="cuda") == 0


def test_a_plan_counts_the_tiles_of_an_epoch_as_disk_and_says_that_minutes_do_not_know(mixed_rows):
    """Ten tiles of nano, in float32, whatever the number of epochs; without data as much as is allowed."""
    chosen = recipe("nano-lora", vision="frozen", epochs=3)
    keeps = replace(chosen, keep_features=1.0)
    (off, on), allowed = (plan(one, data=mixed_rows, gpu_gib=8) for one in (chosen, keeps)), plan(keeps, gpu_gib=8)
    width = on.job.config.text_config.hidden_size
    assert on.disk_gb - off.disk_gb == pytest.approx(10 * 16 * width * 2 / 1e9)
    assert allowed.disk_gb - off.disk_gb == pytest.approx(GIB / 1e9)
    assert on.minutes == off.minutes and "keep_features: 1.07 GB of the disk; minutes count the tower" in str(allowed)
    assert "keep_features" not in str(off)


@pytest.mark.parametrize(("name", "limit"), [("nano-full", 1), ("nano-lora", 2)])
def test_a_real_run_takes_as_much_disk_as_was_planned(mixed_rows, tmp_path, monkeypatch, name, limit):
    """What its folder holds grows until something is removed, so it is measured before each removal."""
    chosen = recipe(name, epochs=1, total_batch=3, per_device_batch=3, save_steps=1, eval_steps=1, eval_samples=1)
    chosen, data = replace(chosen, save_total_limit=limit, learning_rate=1e-5), open_data(mixed_rows)
    run, remove, sizes = write_run(chosen, data, tmp_path / "run", validation=data), shutil.rmtree, []

    def measure(*arguments, **options):
        sizes.append(sum(512 * path.lstat().st_blocks for path in run.folder.rglob("*")))
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", measure)
    execute(run.folder)
    assert plan(chosen).disk_gb * 1e9 == pytest.approx(max(sizes), rel=0.05)
