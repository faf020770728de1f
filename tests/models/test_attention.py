"""Samples of a bin never see each other: under every backend that runs here a bin is its rows one by one."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ivlkit.data.collate import collate, collate_packed, normalise_tiles
from ivlkit.data.encode import Example
from ivlkit.data.packing import Budgets, pack, rope_groups
from ivlkit.models.modeling import attention
from ivlkit.models.modeling.attention import (
    PADDED,
    VARLEN,
    choose_attention,
    packed_arguments,
    register_varlen,
    rope_limits,
    use_attention,
)
from ivlkit.training.loop.loss import sample_weights, total_weight, weighted_cross_entropy

SHAPES = ("2b", "4b", "26b")
COMPILES_FLEX = shutil.which("c++") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
FLEX = pytest.param(  # forward alone: its backward has no CPU version
    "flex_attention", marks=pytest.mark.skipif(not COMPILES_FLEX, reason="flex on a CPU needs c++ and AVX2")
)
BACKENDS = ("sdpa", "eager", FLEX, VARLEN)
IMAGE = 99  # the id of the context token


def example(length, *, tiles=0, seed=0):
    """A row of so many tokens, the pictures first; its last half is supervised."""
    rng = np.random.default_rng(seed)
    text = rng.integers(3, 90, length - 16 * tiles)
    ids = np.concatenate([np.full(16 * tiles, IMAGE), text])
    labels = np.where(np.arange(length) > length // 2 + 8 * tiles, ids, -100)
    return Example(ids, labels, rng.integers(0, 256, (tiles, 112, 112, 3), dtype=np.uint8), f"train.jsonl:{seed}")


@pytest.fixture
def rows():
    """A picture of two tiles, text alone, a single token, a picture of one tile."""
    return [example(45, tiles=2, seed=1), example(9, seed=2), example(1, seed=3), example(30, tiles=1, seed=4)]


def segments_one_by_one(query, key, value, bounds, _, longest, __, *, scale, window_size):
    """torch's variable-length kernel, as it is described: [ΣL, heads, D], causal within each segment."""
    assert window_size == (-1, 0) and query.shape == key.shape == value.shape
    assert int(bounds.diff().max()) == longest and bounds.dtype == torch.int32
    done = []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        parts = (states[first:last].transpose(0, 1) for states in (query, key, value))
        done.append(F.scaled_dot_product_attention(*parts, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(done)


@pytest.fixture
def with_kernel(monkeypatch):
    """The kernel itself needs a GPU; everything around it runs here."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: segments_one_by_one)


def inputs(batch, device="cpu"):
    pixels = {"pixel_values": normalise_tiles(batch["tiles"])} if len(batch["tiles"]) else {}
    if "attention_mask" in batch:
        return pixels | {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    bounds = packed_arguments(batch["cu_seqlens"], batch["max_length"])
    return pixels | bounds | {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}


def logits_of(model, batch):
    return model(**inputs(batch), use_cache=False).logits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bin_is_its_rows_one_by_one(shaped, rows, with_kernel, shape, backend):
    model = shaped(shape).eval()
    with torch.no_grad():
        alone = torch.cat([logits_of(model, collate([row], pad_token_id=2)) for row in rows], dim=1)
        with use_attention(model, backend):
            together = logits_of(model, collate_packed(rows))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def loss_and_gradients(model, batch, weighting):
    """Σ w·CE / W and its gradient of every parameter."""
    ids = batch.get("sample_ids")
    weights = sample_weights(batch["labels"], weighting, sample_ids=ids)

    def loss_fn(hidden, lm_head):
        return weighted_cross_entropy(
            hidden, lm_head, labels=batch["labels"], weights=weights, sample_ids=ids, chunks=2
        )

    model.zero_grad()
    loss = model(**inputs(batch), use_cache=False, loss_fn=loss_fn).loss
    loss = loss / total_weight(batch["labels"], weights, sample_ids=ids)
    loss.backward()
    return loss.item(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# No backend sees the weighting: each of the three is tried with one.
@pytest.mark.parametrize(("backend", "weighting"), [("sdpa", "token"), ("eager", "sample"), (VARLEN, "square")])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_and_padded_have_the_same_loss_and_gradients(shaped, rows, with_kernel, shape, backend, weighting):
    model = shaped(shape).train()
    expected, gradients = loss_and_gradients(model, collate(rows, pad_token_id=2), weighting)
    with use_attention(model, backend):
        loss, found = loss_and_gradients(model, collate_packed(rows), weighting)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert found.keys() == gradients.keys()
    assert "lm_head.weight" in found and any(name.startswith("model.vision_tower.") for name in found)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_neighbour_that_changes_moves_nothing(shaped, rows, with_kernel, backend):
    """The first row gets other words, and another picture: all that stands after it keeps its logits."""
    model = shaped("2b").eval()
    other = [example(45, tiles=2, seed=11), *rows[1:]]
    with torch.no_grad(), use_attention(model, backend):
        before, after = logits_of(model, collate_packed(rows)), logits_of(model, collate_packed(other))
    torch.testing.assert_close(after[:, 45:], before[:, 45:], atol=1e-6, rtol=0)
    assert (after[:, :45] - before[:, :45]).abs().max() > 0.1


def test_a_mask_of_ones_would_let_them_see_each_other(shaped, rows):
    """Why the packed collate has none."""
    model, batch = shaped("2b").eval(), collate_packed(rows)
    with torch.no_grad():
        right = logits_of(model, batch)
        wrong = model(**inputs(batch), attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False).logits
    assert (right - wrong).abs().max() > 1e-3


def test_with_a_cache_transformers_would_not_look_at_the_positions(shaped, rows):
    """Why packed rows are computed with use_cache=False, which is not a model's default."""
    model, batch = shaped("2b").eval(), collate_packed(rows)
    with torch.no_grad():
        right, wrong = (model(**inputs(batch), use_cache=use_cache).logits for use_cache in (False, True))
    assert (right - wrong).abs().max() > 1e-3


def test_gradients_of_one_sample_do_not_reach_its_neighbour(shaped, rows):
    model, batch = shaped("2b").eval(), collate_packed(rows)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, position_ids=batch["position_ids"], use_cache=False).logits
    logits[:, 45:54].square().sum().backward()  # the second sample
    reached = embeds.grad[0].abs().sum(-1) > 0
    assert reached.nonzero().flatten().tolist() == list(range(45, 54))


def test_a_long_neighbour_would_change_phi3s_rope_and_never_shares_a_bin(shaped):
    """4,000 tokens beside 4,200: the factors are chosen by the longest position of a batch."""
    model = shaped("4b").eval()
    short, long = example(4000, seed=1), example(4200, seed=2)
    with torch.no_grad():
        states = [
            model.model(**inputs(collate_packed(chosen)), use_cache=False).last_hidden_state
            for chosen in ([short], [long], [short, long])
        ]
    assert (states[2][:, :4000] - states[0]).abs().max() > 0.05
    torch.testing.assert_close(states[2][:, 4000:], states[1], atol=1e-4, rtol=1e-4)
    limit, mix = rope_limits(model.config.text_config)
    groups = rope_groups([4000, 4200], short_context=limit, long_rows_mix=mix)
    assert pack([4000, 4200], [0, 0], budgets=Budgets(16384), groups=groups) == [[0], [1]]


def test_rope_of_phi3_has_two_lengths(shaped):
    assert rope_limits(shaped("4b").config.text_config) == (4096, True)


def test_dynamic_rope_has_one_for_every_length_beyond_its_context_and_plain_rope_one_for_all(shaped, tiny_config):
    assert rope_limits(shaped("2b").config.text_config) == (4096, False)
    tiny_config["llm_config"]["rope_scaling"] = None
    assert rope_limits(shaped("2b").config.text_config) == (None, True)


# the head of transformers itself -------------------------------------------------------------------------------------


def test_our_head_gives_the_loss_of_transformers_own_way(shaped, rows):
    """Logits of every position, the mean over supervised ones: every token weighs the same."""
    model, batch = shaped("2b").eval(), collate_packed(rows)
    with torch.no_grad():
        theirs = model(**inputs(batch), labels=batch["labels"], use_cache=False)
    ours, _ = loss_and_gradients(model, batch, "token")
    assert ours == pytest.approx(theirs.loss.item(), abs=1e-6)


# the kernel's refusals ------------------------------------------------------------------------------------------------


def test_varlen_refuses_padding_a_cache_and_missing_bounds(shaped, rows, with_kernel):
    model = shaped("2b").eval()
    with torch.no_grad(), use_attention(model, VARLEN):
        with pytest.raises(ValueError, match="with a padding mask; padded batches and generation run under sdpa"):
            logits_of(model, collate(rows, pad_token_id=2))
        with pytest.raises(ValueError, match="not packed; expected one row with cu_seq_lens_q"):
            model(input_ids=torch.tensor([[3, 4, 5]]))
        with pytest.raises(ValueError, match="under sdpa|not packed"):
            model.generate(input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False)
        with pytest.raises(ValueError, match="dropout 0.1; the kernel has none"):
            attention.varlen_attention(
                None, *[torch.zeros(1, 2, 3, 4)] * 3, None, kernel=None, dropout=0.1, cu_seq_lens_q=torch.tensor([0, 3])
            )


def test_varlen_computes_in_the_dtype_of_the_values():
    """Rotary embeddings leave queries and keys in float32 under autocast, which the kernel would not take."""
    seen = []

    def kernel(query, key, value, *_, **__):
        seen.extend((query.dtype, key.dtype, value.dtype))
        return query

    query, key, value = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8).bfloat16()
    output, none = attention.varlen_attention(
        None, query, key, value, None, kernel=kernel, cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3
    )
    assert (seen, output.shape, none) == ([torch.bfloat16] * 3, (1, 3, 4, 8), None)


def test_torchs_kernel_is_known_here_by_the_arguments_we_pass():
    assert attention._varlen_kernel() is not None


# choosing ------------------------------------------------------------------------------------------------------------


def test_a_cpu_packs_under_sdpa():
    chosen = choose_attention("cpu")
    assert (chosen.name, chosen.packs) == ("sdpa", True)
    assert str(chosen).startswith("attention: sdpa (cpu: ")


@pytest.mark.parametrize(
    ("capability", "kernel", "flash", "expected"),
    [
        ((7, 0), True, True, ("sdpa", False)),
        ((7, 5), True, True, ("sdpa", False)),
        ((8, 0), True, True, (VARLEN, True)),
        ((9, 0), False, True, ("flash_attention_2", True)),
        ((9, 0), False, False, ("flex_attention", True)),
    ],
)
def test_the_choice_follows_the_card(monkeypatch, capability, kernel, flash, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: segments_one_by_one if kernel else None)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash)
    chosen = choose_attention("cuda")
    assert (chosen.name, chosen.packs) == expected


def test_a_backend_is_the_language_models_and_ends_with_the_block(shaped):
    model = shaped("2b")
    before = model.config.vision_config._attn_implementation
    register_varlen()
    with pytest.raises(RuntimeError, match="on purpose"), use_attention(model, VARLEN):
        assert model.config.text_config._attn_implementation == VARLEN
        assert model.model.language_model.config._attn_implementation == VARLEN
        assert model.config.vision_config._attn_implementation == before
        raise RuntimeError("on purpose")
    assert model.model.language_model.config._attn_implementation == PADDED == "sdpa"
