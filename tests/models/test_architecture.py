"""What is added to transformers' InternVL: pixel shuffle v1, the frozen tower, chunks, features in their places."""

import copy

import pytest
import torch

from ivlkit.models.load import load
from ivlkit.models.modeling import internvl as architecture
from ivlkit.models.tokenizer import load_tokenizer


@pytest.fixture
def model(tiny):
    return load(tiny).model


def pixels(count, seed=0):
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed))


def test_a_tile_of_112_px_is_sixteen_features(model):
    assert model.encode_tiles(pixels(3)).shape == (3, 16, 32)


def test_a_tower_of_two_tiles_at_least_sees_a_blank_one_and_leaves_it_out(model, monkeypatch):
    sizes = []
    see = model.model.vision_tower.forward
    monkeypatch.setattr(
        model.model.vision_tower,
        "forward",
        lambda pixel_values, **rest: (sizes.append(len(pixel_values)), see(pixel_values, **rest))[1],
    )
    expected = model.encode_tiles(pixels(1))
    model.least_tiles = 2
    torch.testing.assert_close(model.encode_tiles(pixels(1)), expected, atol=1e-5, rtol=1e-5)
    assert model.encode_tiles(pixels(5)).shape[0] == 5
    assert sizes == [1, 2, 5]


def test_v1_is_v2_with_rows_and_columns_swapped(model):
    with torch.no_grad():
        v2 = model.encode_tiles(pixels(2)).unflatten(1, (4, 4))
        model.config.ps_version = "v1"
        v1 = model.encode_tiles(pixels(2)).unflatten(1, (4, 4))
    torch.testing.assert_close(v1, v2.transpose(1, 2))
    assert not torch.allclose(v1, v2)


def test_pixel_shuffle_joins_two_by_two_patches(model):
    """4 × 4 patches of one channel → 2 × 2 of four: the block at the top left is patches 0, 1, 4, 5 in some order."""
    seen = {}
    model.model.multi_modal_projector = torch.nn.Module()
    model.model.multi_modal_projector.forward = lambda shuffled: seen.update(shuffled=shuffled) or shuffled
    model._project(torch.arange(16.0).reshape(1, 16, 1))
    assert [sorted(group.tolist()) for group in seen["shuffled"][0]] == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_an_earlier_layer_is_that_layers_output(model):
    """`select_layer` −2 of a tower of two layers is its first layer alone."""
    with torch.no_grad():
        model.config.vision_feature_layer = -2
        chosen = model.encode_tiles(pixels(1))
        model.config.vision_feature_layer = -1
        whole = model.encode_tiles(pixels(1))
        model.model.vision_tower.encoder.layer = model.model.vision_tower.encoder.layer[:1]
        torch.testing.assert_close(chosen, model.encode_tiles(pixels(1)))
    assert not torch.allclose(chosen, whole)


def test_a_frozen_tower_stays_in_eval_mode_and_runs_without_gradient(model):
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.train()
    assert model.model.language_model.training
    assert not any(module.training for module in model.model.vision_tower.modules())
    seen = []
    model.model.vision_tower.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    features = model.encode_tiles(pixels(1))
    assert seen == [False]
    assert features.requires_grad  # the projector trains
    assert not model.eval().training


def test_a_tower_that_trains_is_in_train_mode_with_gradient(model):
    model.requires_grad_(True)
    model.train()
    assert model.model.vision_tower.training
    model.encode_tiles(pixels(1)).sum().backward()
    assert model.model.vision_tower.embeddings.cls_token.grad.abs().sum() > 0


def test_chunks_of_a_frozen_tower_change_nothing(model, monkeypatch):
    model.requires_grad_(False)
    whole = model.encode_tiles(pixels(5))
    monkeypatch.setattr(architecture, "TILES_A_CHUNK", 2)
    torch.testing.assert_close(model.encode_tiles(pixels(5)), whole)


def test_features_replace_the_context_tokens_in_order(model, tiny):
    context = load_tokenizer(tiny).convert_tokens_to_ids("<IMG_CONTEXT>")
    input_ids = torch.full((2, 20), 7)
    input_ids[0, 2:18] = context
    input_ids[1, 1:9] = input_ids[1, 11:19] = context  # one tile's features over two places
    features = torch.arange(2 * 16 * 32.0).reshape(2, 16, 32)
    embeds = model.embed(input_ids, features)
    assert torch.equal(embeds[0, 2:18], features[0])
    assert torch.equal(embeds[1, 1:9], features[1, :8])
    assert torch.equal(embeds[1, 11:19], features[1, 8:])
    assert torch.equal(embeds[0, 0], model.get_input_embeddings()(torch.tensor(7)))


@pytest.mark.parametrize("tiles", [0, 2])
def test_features_that_do_not_fill_the_places_are_refused(model, tiny, tiles):
    context = load_tokenizer(tiny).convert_tokens_to_ids("<IMG_CONTEXT>")
    with pytest.raises(ValueError, match=f"16 context tokens but features for {tiles} tiles"):
        model.embed(torch.full((1, 16), context), torch.zeros(tiles, 16, 32))


def test_no_tiles_give_the_projector_a_gradient_of_zero_and_change_nothing(model):
    """On several GPUs every rank has to have gradients for the same tensors."""
    input_ids = torch.tensor([[1, 5, 9]])
    outputs = model(input_ids=input_ids, pixel_values=pixels(0), labels=input_ids)
    torch.testing.assert_close(outputs.logits, model(input_ids=input_ids).logits)
    outputs.loss.backward()
    for part in (model.model.multi_modal_projector, model.model.vision_tower):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert all(parameter.grad.abs().sum() == 0 for parameter in part.parameters())


@pytest.mark.parametrize(("tiles", "calls"), [(3, 1), (3, 2), (3, 5), (0, 2)])
def test_a_frozen_tower_is_called_as_often_as_on_another_rank(model, tiles, calls):
    """Under ZeRO-3 each call fetches its weights from all ranks; blank tiles make up the number and change nothing."""
    model = copy.deepcopy(model)
    model.model.vision_tower.requires_grad_(False)
    seen = []
    model.model.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    if tiles:
        expected = model.encode_tiles(pixels(tiles))
        seen.clear()
        torch.testing.assert_close(model.encode_tiles(pixels(tiles), calls=calls), expected)
    else:
        model(input_ids=torch.tensor([[1, 5, 9]]), pixel_values=pixels(0), tower_calls=calls)
    assert len(seen) == calls


def test_a_head_of_the_caller_gets_hidden_states_and_no_logits_are_made(model):
    input_ids = torch.tensor([[1, 5, 9]])
    outputs = model(input_ids=input_ids, loss_fn=lambda hidden, lm_head: lm_head(hidden).sum())
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, model(input_ids=input_ids).logits.sum())
