"""Adapters that read one input: PEFT's losses and gradients, at one mask and one product."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ivlkit.data.collate import normalise_tiles
from ivlkit.models.load import load
from ivlkit.models.modeling import float8
from ivlkit.training.engine import shared_input
from ivlkit.training.engine.shared_input import share_inputs
from ivlkit.training.methods import add_adapters
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

WAYS = {
    "adapters in tower and decoder": {},
    "adapters in the decoder": {"vision": "frozen"},
    "on float8": {"weights": "float8"},
    "on float8, a frozen tower": {"weights": "float8", "vision": "frozen"},
}


def prepared(changes, *, shared):
    """(VLM, model that trains): nano, adapters away from zero."""
    vlm = load("nano")
    torch.manual_seed(0)
    model = prepare(vlm, recipe("nano-lora", **{"lora_dropout": 0.0} | changes))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    if shared:
        share_inputs(vlm.model)
    return vlm, model.train()


def loss_of(vlm, model):
    generator = torch.Generator().manual_seed(2)
    tiles = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(3, 900, (2, 40), generator=generator)
    input_ids[:, 4:20] = vlm.processor.token_id("<IMG_CONTEXT>")
    return model(input_ids=input_ids, pixel_values=normalise_tiles(tiles), labels=input_ids, use_cache=False).loss


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
def test_losses_and_gradients_are_peft_s_without_dropout(changes):
    found = {}
    for shared in (False, True):
        vlm, model = prepared(changes, shared=shared)
        loss = loss_of(vlm, model)
        loss.backward()
        found[shared] = loss.item(), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-5)
    assert found[True][1].keys() == found[False][1].keys()
    exact = changes.get("weights") != "float8"  # a sum in another order is rounded to another float8 now and then
    for name, gradient in found[False][1].items():
        difference = (found[True][1][name] - gradient).norm() / gradient.norm()
        assert difference < (1e-4 if exact else 0.05), name


class Count(TorchDispatchMode):
    """How often an operation ran."""

    def __init__(self, name):
        super().__init__()
        self.name, self.calls = name, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function.name().startswith(self.name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("shared", "masks"), [(False, 7), (True, 4)])
def test_q_k_and_v_share_one_mask_and_gate_and_up_another(shared, masks):
    """Of seven adapters a layer o and down keep their own."""
    vlm, model = prepared({"vision": "frozen", "lora_dropout": 0.1}, shared=shared)
    with Count("aten::bernoulli") as count:
        loss_of(vlm, model)
    assert count.calls == 5 * masks


@pytest.mark.parametrize(("shared", "each"), [(False, 7), (True, 4)])
def test_an_input_is_quantised_once(shared, each, monkeypatch):
    """Of the decoder's seven matrices a layer, and of the frozen tower's six."""
    seen = []
    quantise = shared_input.quantise
    for module in (shared_input, float8):
        monkeypatch.setattr(module, "quantise", lambda rows: seen.append(1) or quantise(rows))
    vlm, model = prepared({"weights": "float8", "vision": "frozen"}, shared=shared)
    seen.clear()
    loss_of(vlm, model)
    assert len(seen) == 5 * each + 6 * (6 if each == 7 else 4)


def test_dora_is_computed_as_peft_has_it():
    """Shared, its lengths would be left out, and no loss would say so."""
    vlm = load("nano")
    model = add_adapters(vlm, recipe("nano-lora", lora_dropout=0.0), use_dora=True)
    for name, parameter in model.named_parameters():
        parameter.data *= 1.5 if "lora_magnitude_vector" in name else 1
    alone = loss_of(vlm, model).item()
    share_inputs(vlm.model)
    assert loss_of(vlm, model).item() == alone


def test_an_adapter_that_is_switched_off_leaves_the_base(tiny):
    vlm = load(tiny)
    chosen = recipe("nano-lora", vision="frozen")
    with torch.no_grad():
        before = loss_of(vlm, vlm.model.eval())
        model = prepare(vlm, chosen)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1)
        assert share_inputs(vlm.model) == 2 * 2
        assert abs(loss_of(vlm, model.eval()) - before) > 1e-3
        with model.disable_adapter():
            torch.testing.assert_close(loss_of(vlm, model), before)
