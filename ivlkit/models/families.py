"""The model families: what is released, where it lies, what belongs to it. A new family is one entry here."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

_INTERNLM2 = "InternLM2ForCausalLM"
_VISION_TARGETS = ("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2")
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PHI3_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """One model as released. Parameter counts in billions, sizes in GB (10⁹ bytes), hardware as the guide names it."""

    key: str
    hub_id: str | None  # None: shipped inside the package
    parameters: float
    weights_gb: float
    weight_files: tuple[str, ...]
    vision: str
    language: str
    guide_full: str
    guide_lora: str
    language_class: str = _INTERNLM2  # `llm_config.architectures[0]` of its config.json
    vision_norm: str = "layer_norm"
    vision_lora_targets: tuple[str, ...] = _VISION_TARGETS  # transformers' module names
    language_lora_targets: tuple[str, ...] = _LLAMA_TARGETS
    parts: tuple[int, ...] = ()  # parameters of vision tower, projector, language model
    verified: str = "not yet"  # on the released weights: by whom, when

    @property
    def name(self):
        """The folder name the guide uses: "InternVL-Chat-V1-5"."""
        return self.hub_id.rpartition("/")[2] if self.hub_id else self.key


FAMILIES = {
    family.key: family
    for family in (
        Family(
            key="26b",
            hub_id="OpenGVLab/InternVL-Chat-V1-5",
            parameters=25.5,
            parts=(5_536_496_000, 116_429_824, 19_861_260_288),
            weights_gb=51.0,
            weight_files=tuple(f"model-{n:05d}-of-00011.safetensors" for n in range(1, 12)),
            vision="InternViT-6B-448px-V1-5",
            language="InternLM2-Chat-20B",
            vision_norm="rms_norm",
            guide_full="8 GPUs of 80 GB (77 GB each)",
            guide_lora="2 GPUs of 80 GB (79 GB each), or 8 at 60 GB",
        ),
        Family(
            key="2b",
            hub_id="OpenGVLab/Mini-InternVL-Chat-2B-V1-5",
            parameters=2.2,
            parts=(304_012_288, 12_595_200, 1_889_146_880),
            weights_gb=4.4,
            weight_files=("model.safetensors",),
            vision="InternViT-300M-448px",
            language="InternLM2-Chat-1.8B",
            guide_full="8 GPUs (30 GB each)",
            guide_lora="2 GPUs (27 GB each)",
        ),
        Family(
            key="4b",
            hub_id="OpenGVLab/Mini-InternVL-Chat-4B-V1-5",
            parameters=4.2,
            parts=(304_012_288, 22_034_432, 3_820_809_216),
            weights_gb=8.3,
            weight_files=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            vision="InternViT-300M-448px",
            language="Phi-3-mini-128k-instruct",
            language_class="Phi3ForCausalLM",
            language_lora_targets=_PHI3_TARGETS,
            guide_full="8 GPUs (40 GB each)",
            guide_lora="2 GPUs (19 GB each)",
        ),
        Family(
            key="nano",
            hub_id=None,
            parameters=0.004,
            weights_gb=0.008,
            weight_files=("model.safetensors",),
            vision="InternViT, 112 px tiles",
            language="InternLM2",
            guide_full="a laptop",
            guide_lora="a laptop",
            verified="ships with the package",
        ),
    )
}

NANO_FOLDER = Path(__file__).parents[1] / "nano" / "model"
NANO_TILE_PX = 112
MBIT_A_SECOND = 100  # of the network that minutes of a download are named for
DOWNLOAD_FILE = "download.json"  # beside weights that `download` brought: which commit, sizes, hashes


def find_model(name):
    """A family's key or a folder → the folder: `pretrained/<name>` of the working directory or of $IVLKIT_MODELS.

    Raises: CheckpointError with the command that fetches the model.
    """
    name = os.fspath(name)
    if name == "nano":
        return NANO_FOLDER
    if name in FAMILIES:
        return _find_released(FAMILIES[name])
    folder = Path(name)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected one, or a name: {', '.join(FAMILIES)}")
    return folder


def model_roots():
    """Where released models are looked for, in this order: `pretrained`, the one beside this folder, which notebooks
    share with their checkout, then $IVLKIT_MODELS if it is set."""
    return [Path(root) for root in ("pretrained", "../pretrained", os.environ.get("IVLKIT_MODELS")) if root]


def _find_released(family):
    roots = model_roots()
    for root in roots:
        if (root / family.name / "config.json").exists():
            return root / family.name
    places = " or ".join(str(root / family.name) for root in roots)
    minutes = family.weights_gb * 8_000 / MBIT_A_SECOND / 60
    raise CheckpointError(
        f"{family.key}: not here, looked for it in {places}; run `ivlkit download {family.key}` "
        f"({family.weights_gb} GB, about {minutes:.0f} minutes at {MBIT_A_SECOND} Mbit/s), or give its folder "
        "(a notebook's MODEL)"
    )


def match_family(config):
    """The family whose architecture a released config.json has; sizes may differ (a tiny copy matches too)."""
    if config.get("force_image_size") == NANO_TILE_PX:
        return FAMILIES["nano"]
    language = (config["llm_config"].get("architectures") or [None])[0]
    norm = config["vision_config"].get("norm_type")
    for family in FAMILIES.values():
        if family.hub_id and (family.language_class, family.vision_norm) == (language, norm):
            return family
    raise CheckpointError(
        f"a model of {language} with a {norm} vision tower; expected one of the InternVL 1.5 family: "
        f"{', '.join(FAMILIES)}"
    )


def refuse_successors(folder, config, prompt):
    """Raises: CheckpointError for InternVL2 and later: the same classes, other prompts, other training.

    Args: prompt: the system prompt of its conversation.py, or of its template.
    """
    names = (Path(folder).name, str(config.get("_name_or_path", "")).rpartition("/")[2])
    language = config["llm_config"]
    sizes = [language.get(key) for key in ("hidden_size", "num_hidden_layers")]
    signs = {
        "its name": any(re.match(r"(Mini-)?InternVL(2|3)", name) for name in names),
        "its system prompt": "InternVL" in prompt,
        "its sizes, those of InternVL2-8B": sizes == [4096, 32] and language.get("architectures") == [_INTERNLM2],
    }
    for sign in (sign for sign, holds in signs.items() if holds):
        raise CheckpointError(
            f"{folder}: InternVL2 or later, by {sign}; expected one of the InternVL 1.5 family: {', '.join(FAMILIES)}; "
            "it would need its own entry in ivlkit/models/families.py, with its prompt, proven by its released replies"
        )
