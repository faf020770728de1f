"""What trains: the table, and the gradients that prove it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ivlkit.data.collate import normalise_tiles
from ivlkit.data.datasets.opening import open_data
from ivlkit.errors import CheckpointError, RecipeError
from ivlkit.models.load import load
from ivlkit.training import recipes
from ivlkit.training.estimate.planner import plan
from ivlkit.training.methods import TUNINGS, add_adapters, lora_pattern
from ivlkit.training.recipes import recipe
from ivlkit.training.runs import execute, write_run
from ivlkit.training.tuning import adamw, prepare, summarise, summary_text

# Parameters of the tiny model, by hand. Vision, two layers of D = 24 and F = 40: embeddings 24 (CLS) + 65 · 24
# (positions) + 24 · 588 + 24 (patches); a layer 4 · (24² + 24) + (24 · 40 + 40) + (40 · 24 + 24) + 6 · 24 (norms, ls).
VISION = 24 + 65 * 24 + 24 * 588 + 24 + 2 * (4 * (24 * 24 + 24) + 24 * 40 + 40 + 40 * 24 + 24 + 6 * 24)
PROJECTOR = 2 * 96 + 96 * 32 + 32 + 32 * 32 + 32
# A layer of H = 32, I = 48, four heads of 8 over two kv heads, two norms; embeddings; a last norm.
LANGUAGE = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 1396 * 32 + 32
HEAD = 1396 * 32
# r = 16: r · (in + out) for every target.
LANGUAGE_LORA = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
VISION_LORA = 2 * 16 * (4 * (24 + 24) + 2 * (24 + 40))


def prepared(tiny, **changes):
    chosen = recipe("nano-lora", **changes)
    if chosen.language == "qlora":
        pytest.importorskip("bitsandbytes", reason="weights in few bits need it: pip install 'ivlkit[quant]'")
    vlm = load(tiny, quantize="4bit" if chosen.language == "qlora" else None)
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


def test_what_trains_is_of_one_precision_where_zero_divides_it(tiny):
    """ZeRO-3 lays all that trains end to end; it refused float32 adapters beside a bf16 projector."""
    chosen = recipe("nano-lora", projector="full", gpus=2, zero_stage=3)
    model = prepare(load(tiny, dtype=torch.bfloat16), chosen)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.bfloat16}


def test_adapters_have_the_scale_of_the_recipe(tiny):
    _, _, model = prepared(tiny, lora_rank=4, lora_alpha=12, lora_dropout=0.25)
    layer = model.get_submodule("base_model.model.model.language_model.layers.0.mlp.down_proj")
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (4, 3.0, 0.25)


def test_a_method_of_one_s_own_is_one_entry(tiny, monkeypatch):
    """DoRA: a number more for every output of an adapted matrix. It is planned for too."""
    own = replace(TUNINGS["lora"], parts=("language",), wrap=partial(add_adapters, use_dora=True))
    monkeypatch.setitem(TUNINGS, "dora", own)
    monkeypatch.setitem(recipes._CHOICES, "language", [*TUNINGS])
    _, chosen, model = prepared(tiny, vision="frozen", language="dora")
    trained = LANGUAGE_LORA + 2 * (2 * 32 + 2 * 16 + 2 * 48 + 32)
    assert table(model, chosen)["language"] == ("dora", LANGUAGE + trained, trained)
    assert plan(replace(chosen, model=str(tiny))).cases[0].parts["gradients"] == 4 * trained


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
        {"vision": "frozen", "projector": "full", "language": "full", "unfreeze_vit_layers": -1},
        {"vision": "frozen", "projector": "full", "language": "qlora"},
        {"vision": "frozen", "language": "qlora", "weights": "float8"},
        {"vision": "frozen", "projector": "full", "language": "qlora", "vision_offload": True},
    ],
    ids=[
        *("lora", "lora and projector", "full", "full, frozen tower", "last layer", "qlora", "qlora on a float8 tower"),
        "qlora beside a tower on the host",
    ],
)
def test_every_tensor_that_trains_gets_a_gradient_and_no_other_changes(tiny, changes):
    folder = "nano" if "weights" in changes else tiny  # float8 takes sides that are multiples of 16
    vlm, _, model = prepared(folder, **changes, lora_dropout=0.0)
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


def test_the_last_layers_of_a_frozen_tower_train_as_released(tiny):
    """`layers[-1:]`; a number counts from the front, as in the released code."""
    frozen = {"vision": "frozen", "projector": "frozen", "language": "frozen"}
    layer = (VISION - 24 - 65 * 24 - 24 * 588 - 24) // 2
    for number, layers in ((-1, 1), (1, 1), (-2, 2)):
        _, chosen, model = prepared(tiny, **frozen, unfreeze_vit_layers=number)
        assert table(model, chosen)["vision"] == ("frozen", VISION, layers * layer)
        names = {name.split(".")[4] for name, value in model.named_parameters() if value.requires_grad}
        assert names == {"0", "1"} if layers == 2 else {"1"}


@pytest.mark.parametrize("number", [2, -3])
def test_layers_that_the_tower_lacks_are_refused(tiny, number):
    with pytest.raises(RecipeError, match=f"unfreeze_vit_layers={number} of a tower of 2 layers; expected -2 to 1"):
        prepared(tiny, vision="frozen", projector="full", language="full", unfreeze_vit_layers=number)


def rates(model, chosen):
    """{part: learning rates of its tensors in the optimizer}."""
    optimizer = adamw(model, chosen)
    owner = {id(value): name for name, value in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for value in group["params"]:
            part = next(part for part in ("vision_tower", "projector", "lang", "lm_head") if part in owner[id(value)])
            found.setdefault(part, set()).add(group["lr"])
    trained = sum(value.requires_grad for value in model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == trained
    return found


def test_each_part_has_its_own_learning_rate(tiny, tmp_path):
    full = {"vision": "full", "projector": "full", "language": "full"}
    _, chosen, model = prepared(tiny, **full, vision_learning_rate=1e-6, projector_learning_rate=1e-3)
    own = {chosen.learning_rate}
    assert rates(model, chosen) == {"vision_tower": {1e-6}, "projector": {1e-3}, "lang": own, "lm_head": own}


def test_adapters_have_their_part_s_rate_too(tiny, tmp_path):
    _, chosen, model = prepared(tiny, vision_learning_rate=1e-6)
    assert rates(model, chosen) == {"vision_tower": {1e-6}, "lang": {chosen.learning_rate}}


def test_a_rate_for_a_part_that_does_not_train_is_refused(tiny):
    _, chosen, model = prepared(tiny, vision="frozen", vision_learning_rate=1e-6)
    with pytest.raises(RecipeError, match="vision_learning_rate=1e-06, but no tensor of the vision trains"):
        adamw(model, chosen)
    _, chosen, model = prepared(tiny, projector_learning_rate=1e-3)
    with pytest.raises(RecipeError, match="no tensor of the projector trains; set projector to full, or leave"):
        adamw(model, chosen)


class TestQuantised:
    def test_the_decoder_s_matrices_are_nf4_with_quantised_scales_and_nothing_else_is(self, tiny):
        _, chosen, model = prepared(tiny, vision="frozen", language="qlora")
        kinds = {name: type(value).__name__ for name, value in model.named_parameters()}
        quantised = {name for name, kind in kinds.items() if kind == "Params4bit"}
        assert len(quantised) == 2 * 7 and all(".language_model.layers." in name for name in quantised)
        state = next(value for value in model.parameters() if type(value).__name__ == "Params4bit").quant_state
        assert state.quant_type == "nf4" and state.nested
        assert table(model, chosen)["language"] == ("qlora", LANGUAGE + LANGUAGE_LORA, LANGUAGE_LORA)

    def test_the_tower_is_float8_on_request_alone(self):
        vlm, plain, model = prepared("nano", vision="frozen", language="qlora")
        count = sum(value.ndim == 2 for value in vlm.model.model.vision_tower.encoder.parameters())
        parameters = table(model, plain)["vision"]
        for weights in ("bf16", "float8"):
            _, chosen, model = prepared("nano", vision="frozen", language="qlora", weights=weights)
            kinds = [value.dtype for name, value in model.named_parameters() if ".vision_tower." in name]
            assert kinds.count(torch.uint8) == (count if weights == "float8" else 0) and count > 0
            assert table(model, chosen)["vision"] == parameters
            assert ("frozen matrices of the tower in float8" in summary_text(model, chosen)) == (weights == "float8")

    def test_replies_stay_close_to_the_unquantised_ones(self):
        """nano: most of the next tokens' probabilities after NF4 are the same."""
        pytest.importorskip("bitsandbytes", reason="weights in few bits need it: pip install 'ivlkit[quant]'")
        plain, small = load("nano"), load("nano", quantize="4bit")
        input_ids = torch.randint(3, 900, (1, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            both = [vlm.model(input_ids=input_ids).logits.softmax(-1) for vlm in (plain, small)]
        distance = (both[0] - both[1]).abs().sum(-1).mean() / 2
        assert 0 < distance < 0.35

    @pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit linear:UserWarning")
    def test_a_run_that_went_on_from_a_run_loads_as_it_trained(self, mixed_rows, tmp_path):
        pytest.importorskip("bitsandbytes", reason="weights in few bits need it: pip install 'ivlkit[quant]'")
        started_from = "nano"
        for name in ("first", "second"):
            chosen = recipe("nano-lora", model=str(started_from), language="qlora", epochs=1, learning_rate=1e-5)
            run = write_run(chosen, open_data(mixed_rows), tmp_path / name)
            execute(run.folder)
            started_from = run.folder
        kinds = {type(value).__name__ for value in run.load().model.parameters()}
        assert "Params4bit" in kinds and run.load(quantize=None).model.lm_head.weight.dtype == torch.float32

    def test_what_a_run_wrote_in_full_is_refused(self, tiny, tmp_path):
        (tmp_path / "ivlkit.json").write_text('{"base": "nano"}')
        with pytest.raises(CheckpointError, match="what a run wrote, to be quantised; expected a released folder"):
            load(tmp_path, quantize="4bit")

    def test_an_unknown_way_is_refused(self, tiny):
        with pytest.raises(CheckpointError, match="quantize='3bit'; expected '4bit', 'float8' or none"):
            load(tiny, quantize="3bit")
