"""The weight map: exact inverses, grouped rows by hand, LoRA of the released kind merged by hand."""

import pytest
import torch

from ivlkit.errors import CheckpointError
from ivlkit.models.layouts.configuration import hf_config
from ivlkit.models.layouts.key_map import from_released, join_grouped, split_grouped, to_released
from ivlkit.models.layouts.weight_files import ReleasedLora as merge_released_lora
from ivlkit.models.modeling.internvl import ReleasedInternVLForConditionalGeneration

PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
}


def test_grouped_rows_by_hand():
    """Four heads over two kv heads of dimension 1: rows are q0 q1 k0 v0, q2 q3 k1 v1."""
    fused = torch.tensor([[1.0], [2.0], [10.0], [20.0], [3.0], [4.0], [11.0], [21.0]])
    q, k, v = split_grouped(fused, kv_heads=2, queries=2)
    assert q.flatten().tolist() == [1, 2, 3, 4]
    assert k.flatten().tolist() == [10, 11]
    assert v.flatten().tolist() == [20, 21]
    assert torch.equal(join_grouped(q, k, v, kv_heads=2, queries=2), fused)


def test_grouped_rows_of_two_dimensions_stay_together():
    """One kv head, one query, dimension 2: rows are q q, k k, v v."""
    q, k, v = split_grouped(torch.arange(6.0)[:, None], kv_heads=1, queries=1)
    assert [part.flatten().tolist() for part in (q, k, v)] == [[0, 1], [2, 3], [4, 5]]


def native_state(config):
    torch.manual_seed(0)
    state = ReleasedInternVLForConditionalGeneration(hf_config(config, image_token_id=0)).state_dict()
    return {key: torch.randn_like(tensor) for key, tensor in state.items()}


@pytest.fixture(params=["InternLM2, layer norm", "InternLM2, RMS norm", "Phi-3"])
def config(request, tiny_config):
    if request.param == "InternLM2, RMS norm":  # the 26B's tower
        tiny_config["vision_config"] |= {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    if request.param == "Phi-3":
        tiny_config |= {"llm_config": PHI3, "template": "phi3-chat"}
    return tiny_config


def test_both_directions_are_exact_inverses(config):
    native = native_state(config)
    released = to_released(native, config)
    again = from_released(released, config)
    assert again.keys() == native.keys()
    assert all(torch.equal(again[key], native[key]) for key in native)
    assert to_released(again, config).keys() == released.keys()


def test_released_keys_are_those_of_the_guide(tiny_config):
    released = to_released(native_state(tiny_config), tiny_config)
    shapes = {key: tuple(tensor.shape) for key, tensor in released.items()}
    assert shapes["vision_model.embeddings.class_embedding"] == (1, 1, 24)
    assert shapes["vision_model.embeddings.position_embedding"] == (1, 65, 24)  # 8 × 8 patches and CLS
    assert shapes["vision_model.embeddings.patch_embedding.weight"] == (24, 3, 14, 14)
    assert shapes["vision_model.encoder.layers.1.attn.qkv.weight"] == (72, 24)
    assert shapes["vision_model.encoder.layers.1.attn.qkv.bias"] == (72,)
    assert shapes["vision_model.encoder.layers.1.ls2"] == (24,)
    assert shapes["mlp1.0.weight"] == (96,)
    assert shapes["mlp1.1.weight"] == (32, 96)
    assert shapes["mlp1.3.bias"] == (32,)
    assert shapes["language_model.model.tok_embeddings.weight"] == (1396, 32)
    assert shapes["language_model.model.layers.0.attention.wqkv.weight"] == (64, 32)  # (4 + 2 · 2) heads of 8
    assert shapes["language_model.model.layers.0.feed_forward.w2.weight"] == (32, 48)
    assert shapes["language_model.output.weight"] == (1396, 32)


def test_w1_is_the_gate_and_w3_is_up(tiny_config):
    native = native_state(tiny_config)
    released = to_released(native, tiny_config)
    layer = "model.language_model.layers.1.mlp."
    for old, new in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        key = f"language_model.model.layers.1.feed_forward.{old}.weight"
        assert torch.equal(released[key], native[f"{layer}{new}.weight"])


def test_qkv_of_the_tower_is_q_then_k_then_v(tiny_config):
    native = native_state(tiny_config)
    layer = "model.vision_tower.encoder.layer.0.attention."
    parts = [native[f"{layer}{name}_proj.bias"] for name in "qkv"]
    fused = to_released(native, tiny_config)["vision_model.encoder.layers.0.attn.qkv.bias"]
    assert torch.equal(fused, torch.cat(parts))


def test_the_order_of_the_keys_does_not_matter(tiny_config):
    native = native_state(tiny_config)
    released = to_released(native, tiny_config)
    backwards = to_released(dict(reversed(native.items())), tiny_config)
    assert all(torch.equal(backwards[key], released[key]) for key in released)


def test_an_unknown_released_key_is_refused(tiny_config):
    with pytest.raises(
        CheckpointError, match="unexpected tensor vision_model.head.weight; expected the released layout"
    ):
        from_released({"vision_model.head.weight": torch.zeros(1)}, tiny_config)


def test_an_adapter_key_is_refused_when_saving(tiny_config):
    key = "model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    with pytest.raises(CheckpointError, match=f"tensor {key} has no place in the released layout; merge adapters"):
        to_released({key: torch.zeros(1)}, tiny_config)


def test_a_fused_tensor_without_one_part_is_refused(tiny_config):
    native = native_state(tiny_config)
    del native["model.language_model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(
        CheckpointError, match=r"language_model\.model\.layers\.1\.attention\.wqkv\.weight is incomplete"
    ):
        to_released(native, tiny_config)


def lora(stem, base, down, up):
    return {
        f"{stem}.base_layer.weight": torch.tensor(base),
        f"{stem}.lora_A.default.weight": torch.tensor(down),
        f"{stem}.lora_B.default.weight": torch.tensor(up),
    }


def test_a_released_lora_is_merged_by_hand():
    """W + 2 · B A: [[1, 2], [3, 4]] + 2 · [[1], [10]] [[5, 7]] = [[11, 16], [103, 144]]."""
    stem = "language_model.base_model.model.model.layers.0.attention.wo"
    tensors = lora(stem, [[1.0, 2.0], [3.0, 4.0]], [[5.0, 7.0]], [[1.0], [10.0]])
    tensors["language_model.base_model.model.model.norm.weight"] = torch.ones(2)
    merged = merge_released_lora(tensors, dtype=torch.float32)
    assert merged.keys() == {"language_model.model.layers.0.attention.wo.weight", "language_model.model.norm.weight"}
    assert merged["language_model.model.layers.0.attention.wo.weight"].tolist() == [[11, 16], [103, 144]]


def test_a_released_lora_of_the_tower_keeps_its_bias():
    stem = "vision_model.base_model.model.encoder.layers.0.attn.qkv"
    tensors = lora(stem, [[1.0]], [[1.0]], [[0.5]]) | {f"{stem}.base_layer.bias": torch.tensor([7.0])}
    merged = merge_released_lora(tensors, dtype=torch.float32)
    assert {key: tensor.tolist() for key, tensor in merged.items()} == {
        "vision_model.encoder.layers.0.attn.qkv.weight": [[2.0]],
        "vision_model.encoder.layers.0.attn.qkv.bias": [7.0],
    }


def test_an_adapter_of_no_weight_is_refused():
    stem = "language_model.model.layers.0.attention.wo"
    tensors = lora(stem, [[1.0]], [[1.0]], [[1.0]])
    del tensors[f"{stem}.base_layer.weight"]
    with pytest.raises(CheckpointError, match=r"lora_A.default.weight belongs to no weight .*attention\.wo\.weight"):
        merge_released_lora(tensors, dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector.default belongs to no weight"):
        extra = {f"{stem}.lora_magnitude_vector.default": torch.ones(1)}
        merge_released_lora(lora(stem, [[1.0]], [[1.0]], [[1.0]]) | extra, dtype=torch.float32)


def test_a_released_lora_is_added_in_float32():
    """1 + 2 · 2⁻⁹ is between two numbers of bfloat16; twice 2⁻⁸ would have been lost in bfloat16 sums too early."""
    stem = "language_model.base_model.model.model.layers.0.attention.wo"
    tensors = lora(stem, [[1.0]], [[1.0, 1.0]], [[2.0**-9, 2.0**-9]])
    tensors[f"{stem}.lora_A.default.weight"] = torch.tensor([[1.0], [1.0]])
    merged = merge_released_lora({key: tensor.bfloat16() for key, tensor in tensors.items()}, dtype=torch.bfloat16)
    (value,) = merged.values()
    assert value.dtype == torch.bfloat16
    assert value.item() == 1 + 2.0**-7


@pytest.mark.parametrize("side", "AB")
def test_half_a_released_lora_is_refused(side):
    stem = "language_model.base_model.model.model.layers.0.attention.wo"
    tensors = lora(stem, [[1.0]], [[1.0]], [[1.0]])
    del tensors[f"{stem}.lora_{side}.default.weight"]
    with pytest.raises(CheckpointError, match=rf"attention\.wo\.lora_{side}\.default\.weight is missing"):
        merge_released_lora(tensors, dtype=torch.float32)
