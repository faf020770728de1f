"""Bytes by layer shapes, beside the tensors that autograd saves and the ones that torch allocates."""

import copy
from types import SimpleNamespace

import pytest
import torch

from ivlkit.data.datasets.opening import open_data
from ivlkit.models.load import load
from ivlkit.models.shapes import RELEASED, empty_model
from ivlkit.training.estimate import footprint
from ivlkit.training.estimate.footprint import Layer, Precision
from ivlkit.training.estimate.prediction import batch_parts
from ivlkit.training.loop.build import build_training, leave_casts_to_autocast
from ivlkit.training.loop.train import sum_losses, train_steps
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

TOKENS = 96
FULL = {"vision": "full", "projector": "full", "language": "full"}
LORA = {"vision": "lora", "projector": "frozen", "language": "lora", "lora_dropout": 0.05}
MASKS = {torch.bfloat16: 2, torch.float32: 4}  # the CPU keeps a dropout mask in the values' dtype


def one_layer(shapes, dtype, changes):
    """A model of true width with one layer a part and a small vocabulary, trained as the recipe says."""
    shapes = copy.deepcopy(shapes)
    shapes["llm_config"] |= {"num_hidden_layers": 1, "vocab_size": 1000, "eos_token_id": 2, "pad_token_id": 2}
    shapes["vision_config"] |= {"num_hidden_layers": 1}
    model, family = empty_model(shapes)
    model = model.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.model.language_model.rotary_emb = type(model.model.language_model.rotary_emb)(model.config.text_config)
    model.set_attn_implementation("sdpa")
    chosen = recipe("nano-lora", **changes)
    wrapped = prepare(SimpleNamespace(model=model, family=family, adapter=None), chosen)
    for parameter in wrapped.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    leave_casts_to_autocast(wrapped)
    return model.train()


def saved_bytes(model, forward, *, autocast):
    """Bytes that autograd keeps, each storage once, weights and autocast's copies of them left out."""
    matrices = {parameter.shape for parameter in model.parameters() if parameter.ndim == 2}
    shapes = matrices | {shape[::-1] for shape in matrices}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    keep = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), keep:
        output = forward()
    assert output.requires_grad
    return sum(kept.values())


CASES = [
    ("2b", LORA, torch.bfloat16, True),
    ("2b", LORA | {"lora_dropout": 0.0}, torch.bfloat16, True),
    ("2b", LORA, torch.float32, False),
    ("2b", FULL, torch.float32, True),
    ("2b", FULL, torch.float32, False),
    ("4b", LORA, torch.bfloat16, True),
    ("4b", FULL, torch.float32, True),
]


@pytest.mark.parametrize(("key", "changes", "dtype", "autocast"), CASES)
def test_a_decoder_layer_of_true_width_keeps_what_is_predicted(key, changes, dtype, autocast):
    model = one_layer(RELEASED[key], dtype, changes)
    text, decoder = model.config.text_config, model.model.language_model
    compute = torch.bfloat16 if autocast else dtype
    precision = Precision(dtype.itemsize, compute.itemsize, MASKS[compute])
    layer = Layer(changes["language"], precision, dropout=changes.get("lora_dropout", 0.05) > 0, sdpa=True)
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()  # of samples in a bin: keys are repeated then
    states = torch.randn(1, TOKENS, text.hidden_size, dtype=dtype, requires_grad=True)
    positions = torch.arange(TOKENS)[None]
    rotary = decoder.rotary_emb(states, position_ids=positions)
    found = saved_bytes(
        model,
        lambda: decoder.layers[0](states, position_embeddings=rotary, position_ids=positions, attention_mask=mask),
        autocast=autocast,
    )
    predicted = TOKENS * footprint.decoder_layer_bytes(text, layer)
    assert found == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("key", ["2b", "26b"])
@pytest.mark.parametrize(
    ("changes", "dtype", "autocast"),
    [(FULL, torch.float32, False), (LORA, torch.float32, False), (FULL, torch.float32, True)],
)
def test_a_layer_of_the_vision_tower_of_true_width_keeps_what_is_predicted(key, changes, dtype, autocast):
    shapes = RELEASED["2b"] | {"vision_config": RELEASED[key]["vision_config"]}
    model = one_layer(shapes, dtype, changes)
    vision = model.config.vision_config
    compute = torch.bfloat16 if autocast else dtype
    layer = Layer(changes["vision"], Precision(4, compute.itemsize, MASKS[compute]))
    patches = torch.randn(1, footprint.patches(vision), vision.hidden_size, requires_grad=True)
    found = saved_bytes(model, lambda: model.model.vision_tower.encoder.layer[0](patches), autocast=autocast)
    assert found == pytest.approx(footprint.patches(vision) * footprint.vision_layer_bytes(vision, layer), rel=0.1)


def test_what_trains_in_full_passes_on_float32_but_under_deepspeed():
    """Whose masters are its own: memory and minutes count the same bytes."""
    found = [footprint.precision_of(recipe("2b-full", gpus=count), "cuda").stream for count in (1, 2)]
    assert found == [4, 2]


def test_a_tile_of_448_px_has_1025_places():
    model, _ = empty_model(RELEASED["2b"])
    assert footprint.patches(model.config.vision_config) == 1025


def test_by_hand_the_2b_s_lora_keeps_143_424_bytes_a_token_and_layer():
    """H = 2,048, I = 8,192, 16 heads, r = 16: 34 H + 9 I, 4 bytes a head, 2 bytes for each of seven adapters' r."""
    model, _ = empty_model(RELEASED["2b"])
    found = footprint.decoder_layer_bytes(model.config.text_config, Layer("lora", Precision(2, 2, 1)))
    assert found == 34 * 2048 + 9 * 8192 + 4 * 16 + 7 * 2 * 16


def test_by_hand_adapters_that_share_their_input_keep_9_h_less():
    """Of q, k, v, gate and up three keep no dropped input of H values in bf16 and no mask: 25 H."""
    model, _ = empty_model(RELEASED["2b"])
    found = footprint.decoder_layer_bytes(model.config.text_config, Layer("lora", Precision(2, 2, 1), shared=True))
    assert found == 25 * 2048 + 9 * 8192 + 4 * 16 + 7 * 2 * 16


WAYS = {
    "lora": {"packing": True},
    "full": FULL | {"packing": True},
    "projector": {"vision": "frozen", "projector": "full", "language": "frozen"},
    "lora and projector": {"vision": "frozen", "projector": "full"},
    "last layer of the tower": {"vision": "frozen", "projector": "full", "language": "full", "unfreeze_vit_layers": -1},
}


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_weights_gradients_and_optimizer_are_exactly_what_torch_allocates(tiny, mixed_rows, tmp_path, changes):
    chosen = recipe("nano-lora", total_batch=4, max_seq_length=100, bin_tokens=140, lora_dropout=0.0, **changes)
    vlm = load(tiny)
    trainer, _ = build_training(vlm, vlm.processor, chosen, open_data(mixed_rows))
    batch = SimpleNamespace(tokens=1, tiles=0)
    parts = batch_parts(trainer.model, vlm.model.config, chosen, batch, device_type="cpu")
    seen = {}

    def look(optimizer, *_):
        seen["gradients"] = sum(value.grad.nbytes for group in optimizer.param_groups for value in group["params"])

    optimizer = trainer.optimizer.optimizer
    optimizer.register_step_pre_hook(look)
    next(train_steps(trainer))
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert parts["weights"] == sum(value.nbytes for value in trainer.model.parameters())
    assert parts["gradients"] == seen["gradients"]
    assert parts["optimizer"] == sum(value.nbytes for value in moments)


@pytest.mark.parametrize("changes", [LORA, FULL, LORA | {"lora_dropout": 0.0}], ids=["lora", "full", "no dropout"])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_a_whole_step_of_nano_keeps_what_is_predicted(mixed_rows, tmp_path, changes, policy):
    """Tower, projector and decoder, on the largest bin of real rows."""
    sizes = {"total_batch": 8, "max_seq_length": 512, "bin_tokens": 512, "packing": True}
    chosen = recipe("nano-lora", **sizes | changes | {"gradient_checkpointing": policy})
    vlm = load("nano")
    trainer, _ = build_training(vlm, vlm.processor, chosen, open_data(mixed_rows))
    number, tokens, tiles = trainer.micro_batches.batches.largest_batch()
    batch = trainer.micro_batches[number]
    assert batch["input_ids"].numel() == tokens and len(batch["tiles"]) == tiles
    parts = batch_parts(
        trainer.model, vlm.model.config, chosen, SimpleNamespace(tokens=tokens, tiles=tiles), device_type="cpu"
    )
    trainer.model.train()
    found = saved_bytes(
        trainer.model,
        lambda: sum_losses(trainer.model, batch, trainer),
        autocast=False,
    )
    if changes["vision"] != "full":
        found += batch["tiles"].numel() * 4  # pixel values, which only a patch embedding that trains needs in backward
    assert found == pytest.approx(parts["activations"], rel=0.1)
