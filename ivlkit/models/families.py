"""The model families of families.yaml: what is released, where it lies, what belongs to it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..errors import CheckpointError

_INTERNLM2 = "InternLM2ForCausalLM"
_VISION_TARGETS = ("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2")
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """One model as released. Parameter counts in billions, sizes in GB (10⁹ bytes), hardware as the guide names it."""

    key: str
    hub_id: str | None  # None: shipped inside the package
    parameters: float
    weights_gb: float
    vision: str
    language: str
    guide_full: str
    guide_lora: str
    vision_lora_targets: tuple[str, ...] = _VISION_TARGETS  # transformers' module names
    language_lora_targets: tuple[str, ...] = _LLAMA_TARGETS
    parts: tuple[int, ...] = ()  # parameters of vision tower, projector, language model
    verified: str = "not yet"  # on the released weights: by whom, when
    config: dict | None = field(default=None, repr=False, compare=False)  # its config.json: what decides its sizes

    @property
    def name(self):
        """The folder name the guide uses: "InternVL-Chat-V1-5"."""
        return self.hub_id.rpartition("/")[2] if self.hub_id else self.key


def _family(key, entry):
    return Family(key=key, **{name: tuple(one) if isinstance(one, list) else one for name, one in entry.items()})


_ENTRIES = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text(encoding="utf-8"))
FAMILIES = {key: _family(key, entry) for key, entry in _ENTRIES.items()}
NANO_FOLDER = Path(__file__).parents[1] / "nano" / "model"
NANO_TILE_PX = 112
MBIT_A_SECOND = 100  # of the network that minutes of a download are named for
DOWNLOAD_FILE = "download.json"  # beside weights that `download` brought: which commit, sizes, hashes


def find_model(name):
    """A family's key or a folder → the folder: `pretrained/<name>` of the working directory or of $IVLKIT_MODELS.

    Raises: CheckpointError with the command that fetches the model.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise CheckpointError(f"a {type(name).__name__} in the model's place; expected a key or folder, or run.load()")
    if name == "nano":  # a `Path` is always a folder
        return NANO_FOLDER
    if name in FAMILIES:
        return _find_released(FAMILIES[name])
    folder = Path(name)
    if not folder.is_dir():
        meant = find_family(str(name))
        todo = f"; write {meant.key!r}" if meant else ""
        raise CheckpointError(f"{folder}: no such folder; expected one, or a name: {', '.join(FAMILIES)}{todo}")
    return folder


def find_family(name):
    """The family of a key, a released name or a hub id, in small letters or large ones; None if it is none of them."""
    for family in FAMILIES.values():
        if name.casefold() in {str(one).casefold() for one in (family.key, family.name, family.hub_id)}:
            return family
    return None


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
    language, norm = kind = _language_and_norm(config)
    for family in FAMILIES.values():
        if family.config and _language_and_norm(family.config) == kind:
            return family
    raise CheckpointError(
        f"a model of {language} with a {norm} vision tower; expected one of the InternVL 1.5 family: "
        f"{', '.join(FAMILIES)}"
    )


def _language_and_norm(config):
    language = (config["llm_config"].get("architectures") or [None])[0]
    return language, config["vision_config"].get("norm_type")


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
            "it would need its own entry in ivlkit/models/families.yaml, with its prompt, proven by its released "
            "replies"
        )
