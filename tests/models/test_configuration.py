"""config.json of the released kind: read as it is, or refused with a sentence."""

import json

import pytest

from ivlkit.errors import CheckpointError
from ivlkit.models.layouts.configuration import hf_config, num_image_token, read_released_config, tile_px

LONGROPE = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
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
    "original_max_position_embeddings": 4096,
    "rope_scaling": LONGROPE,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
}


def changed(config, path, value):
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def test_the_fields_of_the_released_config_arrive(tiny_config):
    native = hf_config(tiny_config, image_token_id=1026)
    assert (native.image_token_id, native.image_seq_length, native.vision_feature_layer) == (1026, 16, -1)
    assert (native.ps_version, native.downsample_ratio, native.tie_word_embeddings) == ("v2", 0.5, False)
    vision, text = native.vision_config, native.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.attention_bias) == (24, 2, True)
    assert (vision.use_qk_norm, vision.norm_type, vision.layer_norm_eps) == (False, "layer_norm", 1e-6)
    assert (text.model_type, text.num_key_value_heads, text.vocab_size) == ("llama", 2, 1396)
    assert text.tie_word_embeddings is False


def test_dynamic_rope_keeps_its_factor_and_null_means_default(tiny_config):
    rope = hf_config(tiny_config, image_token_id=0).text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("dynamic", 2.0, 10000.0)
    plain = changed(tiny_config, "llm_config.rope_scaling", None)
    assert hf_config(plain, image_token_id=0).text_config.rope_parameters["rope_type"] == "default"


def test_su_of_phi3_is_longrope(tiny_config):
    text = hf_config(tiny_config | {"llm_config": dict(PHI3)}, image_token_id=0).text_config
    assert text.model_type == "phi3"
    assert text.original_max_position_embeddings == 4096
    rope = text.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("longrope", 32.0)
    assert (rope["short_factor"], rope["long_factor"]) == ([1.0] * 4, [2.0] * 4)


def test_context_tokens_of_a_tile():
    assert num_image_token({"force_image_size": 448, "vision_config": {"patch_size": 14}}) == 256
    assert num_image_token({"force_image_size": 112, "vision_config": {"patch_size": 14}}) == 16
    assert num_image_token({"vision_config": {"image_size": 448}, "downsample_ratio": 1.0}) == 1024
    assert tile_px({"force_image_size": None, "vision_config": {"image_size": 224}}) == 224


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ps_version", "v3", "`ps_version` is 'v3'; expected 'v1' or 'v2'"),
        ("ps_version", None, "`ps_version` is None; expected 'v1' or 'v2'"),
        ("pad2square", True, "`pad2square` is True; expected false"),
        ("use_llm_lora", 16, "`use_llm_lora` is 16; expected 0"),
        ("use_backbone_lora", 16, "`use_backbone_lora` is 16; expected 0"),
        ("force_image_size", 448, r"`force_image_size` is 448; expected vision_config.image_size \(112\)"),
        ("vision_config.norm_type", "group_norm", "`vision_config.norm_type` is 'group_norm'; expected layer_norm or"),
        (
            "llm_config.architectures",
            ["Qwen2ForCausalLM"],
            "`llm_config.architectures` is 'Qwen2ForCausalLM'; expected",
        ),
        ("llm_config.architectures", None, "`llm_config.architectures` is None; expected InternLM2ForCausalLM or Phi3"),
        ("llm_config.tie_word_embeddings", True, "`llm_config.tie_word_embeddings` is True; expected false"),
        ("llm_config.bias", True, "`llm_config.bias` is True; expected false"),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 2}, "`llm_config.rope_scaling.type` is 'linear'"),
    ],
)
def test_a_value_without_code_for_it_is_refused(tiny_config, path, value, message):
    with pytest.raises(CheckpointError, match=f"config.json: {message}.*; this kit can't run it otherwise"):
        hf_config(changed(tiny_config, path, value), image_token_id=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": None}, "`llm_config.rope_scaling.type` is None; expected su"),
        ({"rope_scaling": LONGROPE | {"type": "yarn"}}, "`llm_config.rope_scaling.type` is 'yarn'; expected su"),
        ({"sliding_window": 2047}, "`llm_config.sliding_window` is 2047; expected none, or one longer than"),
    ],
)
def test_a_phi3_that_can_not_be_run_is_refused(tiny_config, fields, message):
    with pytest.raises(CheckpointError, match=message):
        hf_config(tiny_config | {"llm_config": PHI3 | fields}, image_token_id=0)


@pytest.mark.parametrize("field", ["vision_config.norm_type", "vision_config.hidden_size", "llm_config.hidden_size"])
def test_a_field_that_is_missing_is_named(tiny_config, field):
    part, name = field.split(".")
    del tiny_config[part][name]
    with pytest.raises(CheckpointError, match=f"no `{name}`"):
        hf_config(tiny_config, image_token_id=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json; expected a model folder in the released layout; check the path"),
        ("{", r"config\.json: broken JSON"),
        ("[]", r"config\.json: a list; expected"),
        ('{"model_type": "llama"}', "model_type 'llama'; expected 'internvl_chat', the released InternVL 1.5 kind"),
        ('{"model_type": "internvl"}', 'InternVL 1.5 kind; export again with layout="released"'),
        ("{}", "model_type None; expected 'internvl_chat'"),
        ('{"model_type": "internvl_chat"}', "no `llm_config`; expected the released fields; copy the file again"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_released_config(tmp_path)


@pytest.mark.parametrize("field", ["llm_config", "vision_config", "template"])
def test_a_config_without_a_part_is_refused(tmp_path, tiny_config, field):
    del tiny_config[field]
    (tmp_path / "config.json").write_text(json.dumps(tiny_config))
    with pytest.raises(CheckpointError, match=f"config.json: no `{field}`"):
        read_released_config(tmp_path)
