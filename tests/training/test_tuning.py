"""What trains: the table, and the gradients that prove it."""

from dataclasses import replace

import pytest
import torch

from ivlkit.data.collate import normalise_tiles
from ivlkit.errors import RecipeError
from ivlkit.models.load import load
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import lora_pattern, prepare, summarise, summary_text

# Parameters of the tiny model, by hand. Vision, two layers of D = 24 and F = 40: embeddings 24 (CLS) + 65 · 24
# (positions) + 24 · 588 + 24 (patches); a layer 4 · (24² + 24) + (24 · 40 + 40) + (40 · 24 + 24) + 6 · 24 (norms, ls).
VISION = 24 + 65 * 24 + 24 * 588 + 24 + 2 * (4 * (24 * 24 + 24) + 24 * 40 + 40 + 40 * 24 + 24 + 6 * 24)
PROJECTOR = 2 * 96 + 96 * 32 + 32 + 32 * 32 + 32
# A layer of H = 32, I = 48, four heads of 8 over two kv heads, two norms; embeddings; a last norm.
LANGUAGE = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 1289 * 32 + 32
HEAD = 1289 * 32
# r = 16: r · (in + out) for every target.
LANGUAGE_LORA = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
VISION_LORA = 2 * 16 * (4 * (24 + 24) + 2 * (24 + 40))


def prepared(tiny, **changes):
    vlm = load(tiny)
    chosen = recipe("nano-lora", **changes)
    return vlm, chosen, prepare(vlm, chosen)


def table(model, chosen):
    return {row.part: (row.tuning, row.parameters, row.trainable) for row in summarise(model, chosen)}


def test_full(tiny):
    _, chosen, model = prepared(tiny, vision="full", projector="full", language="full")
    assert table(model, chosen) == {
        "vision": ("full", VISION, VISION),
        "projector": ("full", PROJECTOR, PROJECTOR),
        "language": ("full", LANGUAGE, LANGUAGE),
        "head": ("full", HEAD, HEAD),
    }


def test_full_with_a_frozen_tower_as_released(tiny):
    _, chosen, model = prepared(tiny, vision="frozen", projector="full", language="full")
    assert {part: row[2] for part, row in table(model, chosen).items()} == {
        "vision": 0,
        "projector": PROJECTOR,
        "language": LANGUAGE,
        "head": HEAD,
    }


def test_projector_alone(tiny):
    _, chosen, model = prepared(tiny, vision="frozen", projector="full", language="frozen")
    assert {part: row[2] for part, row in table(model, chosen).items()} == {
        "vision": 0,
        "projector": PROJECTOR,
        "language": 0,
        "head": 0,
    }


def test_lora_of_the_language_model_as_released(tiny):
    _, chosen, model = prepared(tiny, vision="frozen", projector="frozen", language="lora")
    assert table(model, chosen) == {
        "vision": ("frozen", VISION, 0),
        "projector": ("frozen", PROJECTOR, 0),
        "language": ("lora", LANGUAGE + LANGUAGE_LORA, LANGUAGE_LORA),
        "head": ("frozen", HEAD, 0),
    }


def test_lora_of_tower_and_language_model(tiny):
    _, chosen, model = prepared(tiny)
    found = table(model, chosen)
    assert found["vision"] == ("lora", VISION + VISION_LORA, VISION_LORA)
    assert found["language"] == ("lora", LANGUAGE + LANGUAGE_LORA, LANGUAGE_LORA)


def test_a_projector_may_train_in_full_beside_lora(tiny):
    _, chosen, model = prepared(tiny, vision="frozen", projector="full")
    assert table(model, chosen)["projector"] == ("full", PROJECTOR, PROJECTOR)


def test_adapters_have_the_scale_of_the_recipe(tiny):
    _, _, model = prepared(tiny, lora_rank=4, lora_alpha=12, lora_dropout=0.25)
    layer = model.get_submodule("base_model.model.model.language_model.layers.0.mlp.down_proj")
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (4, 3.0, 0.25)


def test_the_table_as_text_names_what_is_not_applied(tiny):
    vlm = load(tiny)
    chosen = recipe("26b-full", model=str(tiny))
    text = summary_text(prepare(vlm, chosen), chosen)
    assert text.splitlines()[-1] == "drop_path 0.4: not applied, the vision tower is frozen"
    assert f"head       full    {HEAD:>14,} {HEAD:>14,}" in text.splitlines()


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_pattern_that_matches_nothing_is_refused(tiny, part, monkeypatch):
    """Also where the other part's pattern matches."""
    vlm = load(tiny)
    wrong = replace(vlm.family, **{f"{part}_lora_targets": ("wqkv", "nothing")})
    vlm.processor = replace(vlm.processor, family=wrong)
    with pytest.raises(RecipeError, match="wqkv"):
        prepare(vlm, recipe("nano-lora"))


def test_one_target_that_matches_nothing_is_refused(tiny):
    vlm = load(tiny)
    wrong = replace(vlm.family, language_lora_targets=("q_proj", "gate_up_proj"))
    vlm.processor = replace(vlm.processor, family=wrong)
    with pytest.raises(RecipeError, match="gate_up_proj"):
        prepare(vlm, recipe("nano-lora"))


def test_patterns_stay_inside_their_part(tiny):
    pattern = lora_pattern(load(tiny).family, recipe("nano-lora", vision="frozen"))
    assert pattern.startswith("(model[.]language_model[.]")
    assert "vision" not in pattern


def test_a_model_that_carries_an_adapter_is_refused(tiny):
    vlm, chosen, model = prepared(tiny)
    vlm.adapter = model
    with pytest.raises(RecipeError, match="already carries an adapter; merge it first"):
        prepare(vlm, chosen)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision": "frozen", "projector": "full"},
        {"vision": "full", "projector": "full", "language": "full"},
        {"vision": "frozen", "projector": "full", "language": "full"},
    ],
    ids=["lora", "lora and projector", "full", "full, frozen tower"],
)
def test_every_tensor_that_trains_gets_a_gradient_and_no_other_changes(tiny, changes):
    vlm, _, model = prepared(tiny, **changes, lora_dropout=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(3, 1000, (2, 40), generator=generator)
    input_ids[:, 4:20] = vlm.processor.token_id("<IMG_CONTEXT>")
    model.train()
    for _ in range(2):  # the first step moves B away from zero; only then A gets a gradient
        optimizer.zero_grad()
        model(input_ids=input_ids, pixel_values=normalise_tiles(tiles), labels=input_ids).loss.backward()
        optimizer.step()
    parameters = dict(model.named_parameters())
    without = [
        name
        for name in trains
        if parameters[name].grad.abs().sum() == 0 and not name.endswith("attention.k_proj.bias")  # cancels in softmax
    ]
    assert without == []
    changed = {name for name in before if not torch.equal(before[name], parameters[name])}
    assert changed <= set(trains)
    assert len(changed) >= len(trains) - 2
