"""The six released scripts as numbers, and what a recipe refuses."""

import pytest
import torch
import yaml
from transformers import get_scheduler

from ivlkit.errors import RecipeError
from ivlkit.training.recipes import RECIPES, SCHEDULERS, Recipe, recipe

# model, total batch, a device, language, projector, drop path, learning rate, weight decay, ZeRO stage
RELEASED = {
    "2b-full": ("2b", 128, 4, "full", "full", 0.1, 4e-5, 0.01, 1),
    "2b-lora": ("2b", 16, 4, "lora", "frozen", 0.0, 4e-5, 0.01, 1),
    "4b-full": ("4b", 128, 4, "full", "full", 0.1, 4e-5, 0.05, 1),
    "4b-lora": ("4b", 16, 4, "lora", "frozen", 0.0, 4e-5, 0.05, 1),
    "26b-full": ("26b", 128, 2, "full", "full", 0.4, 2e-5, 0.05, 3),
    "26b-lora": ("26b", 16, 2, "lora", "frozen", 0.0, 2e-5, 0.05, 3),
}
FULL = {"vision": "full", "projector": "full", "language": "full"}
NANO = ("nano-lora", "nano-full", "nano-projector")


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_script_has_its_numbers(name):
    found = recipe(name)
    assert (
        found.model,
        found.total_batch,
        found.per_device_batch,
        found.language,
        found.projector,
        found.drop_path,
        found.learning_rate,
        found.weight_decay,
        found.zero_stage,
    ) == RELEASED[name]
    assert found.vision == "frozen" and found.gpus is None
    assert (found.lora_rank, found.lora_alpha, found.lora_dropout) == (16, 32, 0.05)
    assert (found.max_seq_length, found.epochs, found.warmup_ratio, found.scheduler) == (4096, 1, 0.03, "cosine")
    assert (found.save_steps, found.save_total_limit, found.workers) == (200, 1, 4)
    assert (found.gradient_checkpointing, found.weighting, found.max_grad_norm) == ("full", "token", 1.0)
    assert found.hardware


@pytest.mark.parametrize(("older", "policy"), [(True, "full"), (False, "none")])
def test_recipes_that_said_yes_or_no_to_checkpointing_are_read(older, policy):
    found = Recipe.from_dict({"name": "x", "model": "nano", "gradient_checkpointing": older})
    assert found.gradient_checkpointing == policy


def test_there_are_the_six_and_nanos():
    assert set(RELEASED) | set(NANO) == set(RECIPES)
    assert all(found.name == name for name, found in RECIPES.items())


def test_the_accumulation_follows_from_the_batch():
    assert recipe("26b-full", gpus=8, per_device_batch=2).accumulation == 8
    assert recipe("2b-full", gpus=8).accumulation == 4
    assert recipe("26b-lora", gpus=2).accumulation == 4
    assert recipe("26b-lora").accumulation == 8  # one GPU, as long as nobody has counted them
    assert recipe("2b-lora", gpus=1, per_device_batch=1).accumulation == 16


def test_bins_hold_what_a_padded_batch_would_unless_said():
    assert recipe("2b-lora").budgets == (16384, None)
    assert recipe("26b-lora").budgets == (8192, None)
    assert recipe("2b-lora", bin_tokens=14336, bin_tiles=56).budgets == (14336, 56)
    assert {found.packing for name, found in RECIPES.items() if name in RELEASED} == {True}


def test_a_bin_that_the_longest_row_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match="bin_tokens=4000 below max_seq_length 4096; a row of that length fits in no"):
        recipe("2b-lora", bin_tokens=4000)
    assert recipe("2b-lora", bin_tokens=4096).budgets[0] == 4096
    assert recipe("2b-lora", bin_tokens=4000, packing=False).bin_tokens == 4000
    with pytest.raises(RecipeError, match="bin_tiles=0; expected more than 0"):
        recipe("2b-lora", bin_tiles=0)


@pytest.mark.parametrize("changes", [{"gpus": 3}, {"per_device_batch": 5}, {"total_batch": 2, "gpus": 1}])
def test_a_batch_that_does_not_divide_is_refused(changes):
    with pytest.raises(
        RecipeError, match="is not a multiple of gpus .* x per_device_batch .*; change one of the three"
    ):
        recipe("2b-lora", **changes).accumulation  # noqa: B018


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match="recipe '2b_lora'; expected one of 2b-full, .*; did you mean '2b-lora'?"):
        recipe("2b_lora")


def test_an_unknown_field_suggests_the_nearest():
    with pytest.raises(
        RecipeError, match="recipe 2b-lora: unknown field 'learning_rat'; .*did you mean 'learning_rate'?"
    ):
        recipe("2b-lora", learning_rat=1e-4)


def test_changes_leave_the_named_recipe_alone():
    assert recipe("2b-lora", gpus=1).gpus == 1
    assert recipe("2b-lora").gpus is None


def test_a_recipe_of_another_model_says_so_where_reasons_are_shown():
    mixed = recipe("2b-lora", model="nano")
    assert mixed.reasons == ("trains nano, as model='nano' asks, with the values that 2b-lora has for 2b",)
    assert mixed.reasons[0].split(",")[0] in mixed._repr_html_()
    assert recipe("2b-lora", model="2b").reasons == recipe("2b-lora", model="a/folder").reasons == ()


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_gives_the_same_object_back(name):
    assert Recipe.from_yaml(recipe(name).to_yaml()) == recipe(name)


def test_a_tower_on_the_host_survives_yaml_and_needs_no_zero_stage_on_one_gpu():
    offloaded = recipe("26b-lora", gpus=1, zero_stage=3, language="qlora", vision_offload=True)
    assert Recipe.from_yaml(offloaded.to_yaml()) == offloaded and "vision_offload: true" in offloaded.to_yaml()


def test_odd_numbers_survive_yaml():
    odd = recipe("2b-lora", learning_rate=1e-05, epochs=0.3, max_tiles=6, model="C:\\models: 2b # é")
    assert Recipe.from_yaml(odd.to_yaml()) == odd


def test_yaml_with_an_unknown_field_suggests_the_nearest():
    text = recipe("2b-lora").to_yaml().replace("learning_rate", "lerning_rate")
    with pytest.raises(RecipeError, match="unknown field 'lerning_rate'.*did you mean 'learning_rate'?"):
        Recipe.from_yaml(text)


def test_broken_yaml_is_refused_with_its_place():
    with pytest.raises(RecipeError, match="a recipe that is no YAML: .* line 2, column"):
        Recipe.from_yaml("name: [mine\nmodel: 2b: x\n")


def test_whole_numbers_are_the_same_recipe():
    """A run's folder is named by the recipe's text: two spellings would train twice."""
    assert (
        recipe("2b-lora", epochs=2, learning_rate=1).to_yaml()
        == recipe("2b-lora", epochs=2.0, learning_rate=1.0).to_yaml()
    )


def test_a_recipe_may_stand_where_its_name_may():
    mine = recipe("2b-lora", name="mine")
    assert recipe(mine) is mine and recipe(mine, epochs=2) == recipe("2b-lora", name="mine", epochs=2)
    with pytest.raises(RecipeError, match="recipe mine: unknown field 'lr'.*; write learning_rate"):
        recipe(mine, lr=1e-4)


def test_a_recipe_can_be_renamed():
    assert recipe("2b-lora", name="mine").name == "mine"


def test_a_recipe_of_ones_own_is_taken_as_a_named_one_is():
    own = recipe("2b-lora", name="mine")
    assert recipe(own) == own
    assert recipe(own, epochs=3) == recipe("2b-lora", name="mine", epochs=3)
    with pytest.raises(RecipeError, match="recipe mine: unknown field 'epoch'"):
        recipe(own, epoch=3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_is_one_that_transformers_makes(scheduler):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = get_scheduler(scheduler, optimizer, num_warmup_steps=2, num_training_steps=10)
    assert made.get_last_lr()[0] <= 1.0


def test_a_recipe_is_read_from_its_file_and_from_a_run_s(tmp_path):
    mine = recipe("nano-lora", name="mine", epochs=2)
    (tmp_path / "mine.yaml").write_text(mine.to_yaml())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"recipe": mine.to_dict(), "data": {}}))
    assert recipe(tmp_path / "mine.yaml") == recipe(str(tmp_path / "run.yaml")) == mine
    assert recipe(str(tmp_path / "mine.yaml"), seed=1) == recipe(mine, seed=1)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(RecipeError, match="a recipe with no `model`"):
        recipe(tmp_path / "mine.yaml")


def test_yaml_without_name_or_model_is_refused():
    with pytest.raises(RecipeError, match="no `model`"):
        Recipe.from_yaml("name: mine\n")
    with pytest.raises(RecipeError, match="expected"):
        Recipe.from_yaml("- 1\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": "half"}, "vision='half'; expected one of frozen, lora, full"),
        ({"projector": "lora"}, "projector='lora'; expected one of frozen, full"),
        ({"language": None}, "language=None; expected one of frozen, lora, qlora, full"),
        ({"weighting": "words"}, "weighting='words'; expected one of token, sample, square"),
        ({"vision": "full"}, "lora beside a full vision tower or language model; choose one for both"),
        ({"vision": "lora", "language": "full"}, "lora beside a full vision tower or language model"),
        ({"language": "frozen"}, "every part is frozen; expected one that trains"),
        ({"vision": "lora", "drop_path": 0.1}, "drop_path=0.1 in a vision tower that trains; set drop_path=0"),
        ({"total_batch": 0}, "total_batch=0; expected more than 0"),
        ({"per_device_batch": -1}, "per_device_batch=-1; expected more than 0"),
        ({"epochs": 0}, "epochs=0.0; expected more than 0"),
        ({"learning_rate": 0}, "learning_rate=0.0; expected more than 0"),
        ({"lora_rank": 0}, "lora_rank=0; expected more than 0"),
        ({"max_tiles": 0}, "max_tiles=0; expected more than 0"),
        ({"save_steps": 0}, "save_steps=0; expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan; expected a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate=inf; expected a finite number"),
        ({"epochs": float("inf")}, "epochs=inf; expected a finite number"),
        ({"lora_dropout": 1}, "lora_dropout=1.0; expected 0 or more and below 1"),
        ({"lora_dropout": -0.1}, "lora_dropout=-0.1; expected 0 or more and below 1"),
        ({"drop_path": 1.5, "language": "full"}, "drop_path=1.5; expected 0 or more and below 1"),
        ({"adam_beta2": 1.1}, "adam_beta2=1.1; expected 0 or more and below 1"),
        ({"warmup_ratio": -0.1}, "warmup_ratio=-0.1; expected 0 or more"),
        ({"warmup_ratio": 3}, "warmup_ratio=3.0; expected a share of all steps, at most 1"),
        ({"weight_decay": -1}, "weight_decay=-1.0; expected 0 or more"),
        ({"max_grad_norm": -1}, "max_grad_norm=-1.0; expected 0 or more"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
        ({"workers": -1}, "workers=-1; expected 0 or more"),
        ({"gpus": "2", "compile": True}, "gpus='2'; expected a whole number"),
        ({"scheduler": "cosin"}, "scheduler='cosin'; expected one of cosine, linear, constant"),
        ({"learning_rate": "1e-4"}, "learning_rate='1e-4'; expected a number"),  # what YAML makes of 1e-4
        ({"total_batch": 16.0}, "total_batch=16.0; expected a whole number"),
        ({"gpus": True}, "gpus=True; expected a whole number"),
        ({"seed": "x"}, "seed='x'; expected a whole number"),
        ({"gradient_checkpointing": "no"}, "gradient_checkpointing='no'; expected one of none, selective, full"),
        ({"scheduler": 3}, "scheduler=3; expected one of cosine"),
        ({"optimizer": "adam"}, "optimizer='adam'; expected one of adamw, adamw_8bit, paged_adamw_8bit"),
        ({"vision_learning_rate": 0}, "vision_learning_rate=0.0; expected more than 0"),
        ({"vision": "qlora"}, "vision='qlora'; expected one of frozen, lora, full"),
        ({"unfreeze_vit_layers": -4}, "lora beside a full vision tower or language model"),
        ({"unfreeze_vit_layers": -4} | FULL, "unfreeze_vit_layers=-4 with vision='full'; expected a frozen tower"),
        (
            {"vision_offload": True, "vision": "lora"},
            "vision_offload with vision='lora', language='lora'; expected a fro",
        ),
        ({"vision_offload": True, "language": "full"}, "vision_offload with vision='frozen', language='full'"),
        (
            {"vision_offload": True, "language": "frozen", "projector": "full"},
            "vision_offload with vision='frozen', language='frozen'; expected a frozen tower beside adapters",
        ),
        (
            {"vision_offload": True, "zero_stage": 2, "gpus": 2},
            "vision_offload with zero_stage=2; expected DDP, a tower a process",
        ),
        ({"compile": True, "gradient_checkpointing": "selective"}, "compile=true with gradient_checkpointing='selec"),
        ({"compile": True, "packing": False}, "compile=true with packing=false; expected bins; set packing=true"),
        (
            {"compile": True, "zero_stage": 3, "gpus": 2},
            "compile=true with zero_stage=3, which fetches weights inside a layer",
        ),
    ],
)
def test_contradictions_and_wrong_values_are_refused(changes, message):
    with pytest.raises(RecipeError, match=f"2b-lora: {message}"):
        recipe("2b-lora", **changes)
