"""Adapters on frozen matrices in float8: trained, stopped and gone on with, loaded, exported, planned."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from random_nano import build
from safetensors.torch import load_file
from torch import _dynamo as dynamo
from trial import Trial

from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import CheckpointError, RecipeError
from ivlkit.models.export.export import _as_trained as as_trained
from ivlkit.models.export.export import export
from ivlkit.models.export.lazy_weights import open_source
from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.load import load
from ivlkit.models.modeling.float8 import holds_float8
from ivlkit.training.engine import layers
from ivlkit.training.estimate import footprint
from ivlkit.training.estimate.planner import plan, prepared_shape
from ivlkit.training.loop.build import build_training
from ivlkit.training.recipes import Recipe, recipe
from ivlkit.training.run import loaded
from ivlkit.training.runs import execute, write_run
from ivlkit.training.tuning import prepare, summary_text

SMALL = {"total_batch": 4, "epochs": 3, "max_seq_length": 100, "bin_tokens": 140, "packing": True, "save_steps": 2}
SMALL |= {"save_total_limit": 3, "vision": "frozen", "learning_rate": 1e-4}
WITHIN = 0.05  # of a loss of the same step in float32; rows that nano was never taught, of losses from 6 to 10


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Seven: pictures of one and of three tiles, and text alone."""
    folder, lines = tmp_path_factory.mktemp("rows"), []
    for number in range(7):
        turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "word " * (number % 3) + str(number)}]
        lines.append({"conversations": turns})
        if number != 3:
            Image.new("RGB", (112 + 112 * (number % 2), 112), (25 * number, 60, 120)).save(folder / f"{number}.png")
            lines[-1]["image"] = f"{number}.png"
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_data(folder / "train.jsonl")


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    """{weights: a finished run of six steps}."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for weights in ("bf16", "float8"):
        found[weights] = write_run(recipe("nano-lora", weights=weights, **SMALL), rows, folder / weights)
        execute(found[weights].folder)
    return found


def test_losses_are_near_those_on_the_weights_as_they_are(runs):
    plain, small = (np.array([line["loss"] for line in runs[kind].history]) for kind in ("bf16", "float8"))
    assert len(plain) == 6
    assert 0 < np.abs(small / plain - 1).max() < WITHIN


def test_the_adapter_s_file_is_peft_s_in_float32(runs):
    plain, small = (load_file(runs[kind].folder / "final/adapter_model.safetensors") for kind in ("bf16", "float8"))
    assert {name: value.shape for name, value in small.items()} == {name: value.shape for name, value in plain.items()}
    assert {value.dtype for value in small.values()} == {torch.float32}


def test_a_run_that_goes_on_has_the_bits_of_an_undisturbed_one(runs, tmp_path):
    folder = shutil.copytree(runs["float8"].folder, tmp_path / "run")
    for gone in ("final", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(folder / gone)
    execute(folder)
    before, after = (load_file(one / "final/adapter_model.safetensors") for one in (runs["float8"].folder, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_answers_on_float8_as_it_was_trained_and_on_the_original_weights(runs):
    folder, picture = runs["float8"].folder, Image.new("RGB", (112, 112), (25, 60, 120))
    for quantize in ("float8", None):
        vlm = load(folder, quantize=quantize)
        assert vlm.adapter is not None and holds_float8(vlm.model) == bool(quantize)
        assert vlm.chat("Q", picture, max_new_tokens=4).num_tiles == (1,)


def test_a_run_loads_as_it_trained(runs):
    """So a card that could train it can ask it too; by its folder as well."""
    run = runs["float8"]
    for vlm, is_float8 in ((run.load(), True), (run.load(quantize=None), False), (runs["bf16"].load(), False)):
        assert holds_float8(vlm.model) == is_float8
    with loaded(str(run.folder), "evaluate") as vlm:
        assert holds_float8(vlm.model)


@pytest.mark.parametrize(
    "changes",
    [{}, {"weights": "float8"}, {"language": "qlora"}, {"language": "qlora", "vision_offload": True}]
    + [{"language": "qlora", "weights": "float8"}, {"weights": "float8", "vision_offload": True}],
)
def test_an_export_knows_from_run_yaml_how_a_recipe_loads(changes):
    chosen = recipe("26b-lora", **changes)
    assert as_trained({"recipe": chosen.to_dict()}) == (chosen.loading if chosen.quantize else {})
    assert as_trained(None) == {}


def test_its_adapter_is_proved_on_float8_and_folded_in_by_nothing(runs, tmp_path):
    export(runs["float8"].folder, tmp_path / "adapter", layout="adapter")
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "Reloaded in float8 float32 on cpu: logits differ by at most 0.0e+00, 3 of 3 greedy replies" in card
    assert "folded into the original" not in card


def test_an_export_is_the_original_weights_with_the_adapter_folded_in(runs, tmp_path):
    """And says how far the run's replies on float8 are from it."""
    run = runs["float8"].folder
    export(run, tmp_path / "merged")
    found, base = open_source(tmp_path / "merged").weights, open_source(NANO_FOLDER).weights
    adapter = load_file(run / "final/adapter_model.safetensors")
    scale = recipe("nano-lora").lora_alpha / recipe("nano-lora").lora_rank
    folded = 0
    for key in base:
        name, expected = f"base_model.model.{key.removesuffix('.weight')}", base[key].float()
        if f"{name}.lora_A.weight" in adapter:
            expected = expected + scale * adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
            folded += 1
        torch.testing.assert_close(found[key], expected.bfloat16())
    assert folded == 5 * 7
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "beside the run on float8, logits differ by at most" in card and "of 3 greedy replies are equal" in card


def test_a_model_in_memory_is_not_exported(runs, tmp_path):
    with pytest.raises(CheckpointError, match=r"a model in memory, in float8; .* ivlkit export .*final --to merged"):
        export(load(runs["float8"].folder, quantize="float8"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_going_on_from_a_run_says_how(runs, rows, tmp_path):
    chosen = recipe("nano-lora", **SMALL | {"model": str(runs["float8"].folder), "weights": "float8"})
    run = write_run(chosen, rows, tmp_path / "next")
    with pytest.raises(CheckpointError, match=r"an adapter on weights in float8, .* ivlkit export .* --to merged"):
        execute(run.folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory, _tiny_config):
    """A random model of two layers a part, all sides multiples of 16."""
    config = copy.deepcopy(_tiny_config)
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 48}
    return build(tmp_path_factory.mktemp("small") / "model", config=config)


@pytest.mark.parametrize("recomputed", ["none", "full"])
def test_compiled_layers_make_the_same_losses_and_share_their_graphs(rows, small, tmp_path, monkeypatch, recomputed):
    """Whole graphs, of bins of any length: `wrap_layers` asks for no less. As many as on weights that are as they are:
    a vision layer, the first decoder layer and the others, these two again for a bin of one sample, without a mask.
    """
    monkeypatch.setattr(layers, "BACKEND", "aot_eager")
    found = {}
    for compiled in (False, True):
        dynamo.reset()
        dynamo.utils.counters.clear()
        vlm, changes = load(small), {"compile": compiled, "learning_rate": 1e-20, "weights": "float8"}
        chosen = recipe("nano-lora", **SMALL | changes | {"gradient_checkpointing": recomputed})
        trainer = Trial(build_training(vlm, vlm.processor, chosen, rows)[0], tmp_path / f"{compiled}")
        trainer.train()
        found[compiled] = trainer.numbers
        assert dynamo.utils.counters["stats"]["unique_graphs"] == 5 * compiled
    dynamo.reset()
    for one, other in zip(found[True], found[False], strict=True):  # losses, and norms of the gradients
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"vision": "frozen"}, {"vision": "frozen", "vision_offload": True}])
def test_the_plan_knows_the_bytes_of_every_weight(changes):
    chosen = recipe("nano-lora", weights="float8", **changes)
    model = prepare(load("nano", dtype=torch.bfloat16), chosen)
    frozen, trained = footprint.weight_bytes(prepared_shape(chosen, load("nano").config)[1], chosen, frozen_bytes=2)
    scales = sum(value.nbytes for name, value in model.named_buffers() if name.endswith("scale_bits"))
    assert frozen + trained == scales + sum(value.nbytes for value in model.parameters())


def test_the_plan_of_the_26b_is_smaller_by_a_byte_a_value():
    """48 layers of 2 H² + 2 · 1,024 H + 3 H · 16,384 values (H = 6,144), 45 of 4 D² + 8 D² (D = 3,200); scales."""
    plain, small = (plan(recipe("26b-lora", gpus=1, weights=weights), gpu_gib=80) for weights in ("bf16", "float8"))
    saved = (plain.cases[0].parts["weights"] - small.cases[0].parts["weights"]) / 1e9
    assert saved == pytest.approx(24.26, abs=0.03)
    assert "float8" in small.recipe.to_yaml()


def test_the_table_says_what_is_in_float8():
    for changes, said in (({}, "the decoder and the tower in"), ({"vision_offload": True}, "the decoder in float8")):
        chosen = recipe("nano-lora", vision="frozen", weights="float8", **changes)
        assert said in summary_text(prepare(load("nano"), chosen), chosen)


class TestRecipe:
    def test_nf4_is_another_name_for_qlora(self):
        assert recipe("2b-lora", weights="nf4") == recipe("2b-lora", language="qlora")
        assert recipe("2b-lora", weights="nf4").quantize == "4bit"

    def test_a_recipe_of_an_earlier_version_is_read(self):
        text = "\n".join(line for line in recipe("2b-lora").to_yaml().splitlines() if "weights" not in line)
        assert Recipe.from_yaml(text) == recipe("2b-lora") and recipe("2b-lora").quantize is None

    def test_a_run_of_an_earlier_version_is_found_again(self, rows, tmp_path):
        chosen = recipe("nano-lora", **SMALL)
        spec = write_run(chosen, rows, tmp_path / "run").spec["recipe"]
        assert "weights" not in spec and Recipe.from_dict(spec) == chosen
        assert spec["vision_int8"] is False  # all have it, and it names their folders

    def test_a_tower_in_int8_of_an_earlier_version_is_one_in_float8(self, rows, tmp_path):
        """Beside NF4; beside a decoder as it was loaded there is no such tower any more."""
        chosen = recipe("nano-lora", **SMALL, language="qlora", weights="float8")
        spec = write_run(chosen, rows, tmp_path / "run").spec["recipe"]
        assert (spec["language"], spec["vision_int8"]) == ("qlora", True) and "weights" not in spec
        assert Recipe.from_dict(spec) == chosen and chosen.float8_parts == ["vision"] and chosen.quantize == "4bit"
        assert Recipe.from_yaml(chosen.to_yaml()) == chosen
        assert Recipe.from_dict(spec | {"language": "lora"}) == recipe("nano-lora", **SMALL)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"weights": "int8"}, "weights='int8'; expected one of bf16, float8, nf4"),
            ({"weights": "float8", "language": "full"}, "language='full'; expected adapters"),
            ({"weights": "nf4", "vision": "lora", "language": "frozen"}, "weights='nf4' with language='frozen'"),
            (
                {"weights": "float8", "language": "qlora", "vision_offload": True},
                "whose decoder is NF4, and vision",
            ),
            ({"vision_int8": True}, "unknown field 'vision_int8'; .* write weights='float8'; beside language='qlora'"),
            ({"weights": "float8", "gpus": 2, "zero_stage": 3}, "zero_stage=3, which divides .* set zero_stage=2"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, changes, said):
        with pytest.raises(RecipeError, match=said):
            recipe("2b-lora", **changes)
