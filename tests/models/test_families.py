"""What the table of families says, against the architecture itself on the meta device."""

import copy
import math

import pytest
from random_nano import CONFIG

from ivlkit.models.families import FAMILIES
from ivlkit.models.layouts.configuration import hf_config
from ivlkit.models.load import meta_state

VIT_300M = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
VIT_6B = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800}
VIT_6B |= {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
INTERNLM2 = {"num_key_value_heads": 8, "vocab_size": 92553}
SMALL = INTERNLM2 | {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192}
LARGE = INTERNLM2 | {
    "hidden_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 48,
    "intermediate_size": 16384,
}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32}
PHI3 |= {"num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 32020, "rope_theta": 10000.0}
PHI3 |= {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
PHI3 |= {"rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}}


@pytest.mark.parametrize(
    ("key", "vision", "language"), [("26b", VIT_6B, LARGE), ("2b", VIT_300M, SMALL), ("4b", VIT_300M, PHI3)]
)
def test_parts_are_the_parameters_of_the_released_configurations(key, vision, language):
    config = copy.deepcopy(CONFIG) | {"force_image_size": 448}
    config["vision_config"] |= vision | {"image_size": 448}
    config["llm_config"] |= language
    counts = [0, 0, 0]
    for name, tensor in meta_state(hf_config(config, image_token_id=1)).items():
        place = 0 if "vision_tower" in name else 1 if "projector" in name else 2
        counts[place] += math.prod(tensor.shape)
    assert tuple(counts) == FAMILIES[key].parts


def test_parts_add_up_to_the_size_of_the_files_in_bf16():
    """The released files hold 2 bytes a parameter and a header: 51.0, 4.41 and 8.30 GB."""
    for key, gigabytes in (("26b", 51.0), ("2b", 4.41), ("4b", 8.30)):
        assert 2 * sum(FAMILIES[key].parts) / 1e9 == pytest.approx(gigabytes, rel=0.002)
