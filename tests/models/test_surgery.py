"""Parts taken out and put back, language models exchanged, position embeddings resized."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivlkit.data.collate import normalise_tiles
from ivlkit.errors import CheckpointError, ExportError
from ivlkit.models.export.export import save_released
from ivlkit.models.export.surgery import (
    change_image_size,
    extract_part,
    insert_part,
    replace_language_model,
    resize_positions,
)
from ivlkit.models.load import load


@pytest.fixture(scope="module")
def other(tmp_path_factory, _tiny_config):
    """Another random model of the tiny configuration."""
    from random_nano import build

    return build(tmp_path_factory.mktemp("other") / "model", config=_tiny_config, seed=7)


@torch.inference_mode()
def logits(vlm, tile_px=112):
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (1, tile_px, tile_px, 3), dtype=torch.uint8, generator=generator)
    context = [vlm.processor.token_id("<IMG_CONTEXT>")] * vlm.processor.num_image_token
    input_ids = torch.tensor([[1, 20, 30, *context, 40, 50]])
    return vlm.model(input_ids=input_ids, pixel_values=normalise_tiles(tiles)).logits


# parts ---------------------------------------------------------------------------------------------------------------


def test_the_vision_tower_alone_has_the_keys_and_the_config_of_internvit(tiny, tiny_vlm, tiny_config, tmp_path):
    folder = extract_part(tiny_vlm, "vision_tower", tmp_path / "tower")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    whole, part = load_file(tiny / "model.safetensors"), load_file(folder / "model.safetensors")
    expected = {key.removeprefix("vision_model."): tensor for key, tensor in whole.items() if "vision_model" in key}
    assert "embeddings.class_embedding" in part
    assert "encoder.layers.1.attn.qkv.weight" in part
    assert part.keys() == expected.keys()
    assert all(torch.equal(part[key], expected[key]) for key in part)
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] == 24
    assert config["image_size"] == 112


def test_the_code_of_a_downloaded_model_goes_with_the_vision_tower(tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    (base / "modeling_intern_vit.py").write_bytes(b"# never imported\r\n")
    folder = extract_part(load(base), "vision_tower", tmp_path / "tower")
    assert (folder / "modeling_intern_vit.py").read_bytes() == b"# never imported\r\n"


def test_the_projector_alone_has_the_keys_of_the_released_file(tiny_vlm, tmp_path):
    folder = extract_part(tiny_vlm, "projector", tmp_path / "projector")
    part = load_file(folder / "model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in part.items()} == {
        **{"0.weight": (96,), "0.bias": (96,)},  # 24 channels of 4 patches
        **{"1.weight": (32, 96), "1.bias": (32,), "3.weight": (32, 32), "3.bias": (32,)},
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["input_size"], config["output_size"], config["ps_version"]) == (96, 32, "v2")


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
def test_a_part_of_another_model_can_be_put_in_and_back(tiny, other, tmp_path, part):
    vlm = load(tiny)
    before = logits(vlm)
    mixed = insert_part(vlm, extract_part(load(other), part, tmp_path / "other"))
    assert not torch.allclose(logits(mixed), before, atol=1e-3)
    assert torch.equal(logits(vlm), before)
    again = insert_part(mixed, extract_part(vlm, part, tmp_path / "own"))
    assert torch.equal(logits(again), before)


def test_a_part_of_another_size_is_refused(tiny_vlm, tmp_path):
    folder = extract_part(tiny_vlm, "projector", tmp_path / "projector")
    tensors = load_file(folder / "model.safetensors")
    tensors["3.weight"] = torch.zeros(16, 32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear_2.weight has shape \(16, 32\); expected \(32, 32\)"):
        insert_part(tiny_vlm, folder)


def test_a_part_that_can_not_be_written_whole_leaves_nothing(tiny_vlm, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ivlkit.models.export.surgery._write_part_config", full)
    with pytest.raises(ExportError, match="tower: not written .*No space left on device"):
        extract_part(tiny_vlm, "vision_tower", tmp_path / "tower")
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_or_a_folder_that_exists_is_refused(tiny_vlm, tmp_path):
    with pytest.raises(ExportError, match="part 'head'; expected one of vision_tower, projector"):
        extract_part(tiny_vlm, "head", tmp_path / "head")
    with pytest.raises(ExportError, match="exists already; expected a new folder"):
        extract_part(tiny_vlm, "projector", tmp_path)


# another language model ----------------------------------------------------------------------------------------------


def plain_language_model(source, folder, *, rows):
    """What the authors of a language model release: no prefix, `rows` tokens."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    prefix = "language_model."
    plain = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    for key in ("model.tok_embeddings.weight", "output.weight"):
        plain[key] = plain[key][:rows].clone()
    save_file(plain, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())["llm_config"]
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    return folder


def test_a_language_model_of_another_internvl_takes_the_place(tiny, other):
    vlm = replace_language_model(load(tiny), other)
    state, own, theirs = vlm.model.state_dict(), load(tiny).model.state_dict(), load(other).model.state_dict()
    kept = vlm.tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "<box>"])
    for key, tensor in state.items():
        if key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensor[kept], own[key][kept])
            assert torch.equal(tensor[: min(kept)], theirs[key][: min(kept)])
        else:
            expected = theirs if "language_model" in key else own
            assert torch.equal(tensor, expected[key]), key


def test_a_plain_language_model_without_picture_tokens_takes_the_place(tiny, other, tmp_path):
    rows = 900
    folder = plain_language_model(other, tmp_path / "llm", rows=rows)
    vlm = replace_language_model(load(tiny), folder)
    key = "model.language_model.embed_tokens.weight"
    found, own, theirs = (model.model.state_dict()[key] for model in (vlm, load(tiny), load(other)))
    assert found.shape == own.shape
    assert torch.equal(found[:rows], theirs[:rows])
    assert torch.equal(found[rows:], own[rows:])
    assert vlm.config["llm_config"]["vocab_size"] == len(own)


def test_a_language_model_with_more_layers_is_saved_and_loaded(tiny, tmp_path, tiny_config):
    from random_nano import build

    tiny_config["llm_config"]["num_hidden_layers"] = 3
    deeper = build(tmp_path / "deeper", config=tiny_config, seed=3)
    vlm = replace_language_model(load(tiny), deeper)
    save_released(vlm, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.model.config.text_config.num_hidden_layers == 3
    assert torch.equal(logits(again), logits(vlm))


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 64), ("architectures", ["Phi3ForCausalLM"]), ("architectures", None)]
)
def test_a_language_model_of_another_kind_or_width_is_refused(tiny, tiny_vlm, tmp_path, field, value):
    folder = plain_language_model(tiny, tmp_path / "llm", rows=900)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(CheckpointError, match=f"`{field}` is .*; expected .*; choose a language model of the same"):
        replace_language_model(tiny_vlm, folder)


def test_a_language_model_with_another_tokenizer_or_no_config_is_refused(tiny, tiny_vlm, tmp_path):
    folder = plain_language_model(tiny, tmp_path / "llm", rows=900)
    (folder / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(CheckpointError, match="another tokenizer.model; expected the model's own"):
        replace_language_model(tiny_vlm, folder)
    with pytest.raises(CheckpointError, match="no readable config.json"):
        replace_language_model(tiny_vlm, tmp_path)


# tile size -----------------------------------------------------------------------------------------------------------


def test_the_class_position_is_kept_and_a_constant_grid_stays_constant():
    positions = torch.cat([torch.full((1, 1, 3), 7.0), torch.full((1, 16, 3), 2.0)], dim=1)
    resized = resize_positions(positions, 6)
    assert resized.shape == (1, 37, 3)
    assert torch.equal(resized[0, 0], torch.full((3,), 7.0))
    torch.testing.assert_close(resized[0, 1:], torch.full((36, 3), 2.0))


def test_at_the_same_size_nothing_changes():
    positions = torch.randn(1, 65, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_positions(positions, 8), positions, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tile_px", [56, 168, 448])
def test_a_resized_tower_sees_what_transformers_own_sees_when_it_resizes_as_it_runs(tiny_vlm, tile_px):
    changed = change_image_size(tiny_vlm, tile_px)
    side = tile_px // 28
    assert changed.processor.tile_px == tile_px
    assert changed.processor.num_image_token == side * side
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, tile_px, tile_px, generator=generator)
    with torch.inference_mode():
        resized = changed.model.model.vision_tower(pixels).last_hidden_state
        as_it_runs = tiny_vlm.model.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(resized, as_it_runs, atol=1e-5, rtol=1e-5)


def test_a_model_of_another_size_is_saved_loaded_and_answers(tiny_vlm, tmp_path, draw_picture):
    changed = change_image_size(tiny_vlm, 168)
    save_released(changed, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.processor.num_image_token == 36
    assert torch.equal(logits(again, 168), logits(change_image_size(again, 168), 168))
    reply = again.chat("What is it?", draw_picture(300, 300), max_new_tokens=2, max_tiles=1)
    assert reply.num_tiles == (1,)
    assert tiny_vlm.processor.tile_px == 112


@pytest.mark.parametrize("tile_px", [0, 100, -28])
def test_a_side_that_can_not_be_cut_is_refused(tiny_vlm, tile_px):
    with pytest.raises(CheckpointError, match=f"tile_px={tile_px}; expected a multiple of 28"):
        change_image_size(tiny_vlm, tile_px)
