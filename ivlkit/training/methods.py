"""How a part may train: each entry of `TUNINGS` owns its check, its wrapping, its bytes and its advice.

Recipes read the table without torch; what needs torch is imported inside.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import RecipeError
from .engine.distributed import is_sharded

PARTS = {
    "vision": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "language": "model.language_model.",
    "head": "lm_head.",
}


def part_of(name):
    """The part of a tensor's name, whatever wraps the model: "head" for "base_model.model.lm_head.weight"."""
    return next(part for part, prefix in PARTS.items() if f".{prefix}" in f".{name}")


def _input_bytes(width, outputs, layer, *, kept_anyway=False, computed=False):
    """Of a matrix that trains: its input, in what products read."""
    is_cast = layer.precision.stream > layer.precision.compute and not (kept_anyway or computed or layer.compiled)
    return 0 if kept_anyway else (len(outputs) if is_cast else 1) * layer.precision.compute * width


def _lora_bytes(width, outputs, layer, **how):
    """Of LoRA: what A gave, and the input, dropped out with its mask for each matrix, or as it is."""
    down = len(outputs) * layer.precision.compute * layer.rank
    if not layer.dropout:
        return _input_bytes(width, outputs, layer, **how) + down
    copies = 1 if layer.shared else len(outputs)
    return copies * (layer.precision.compute + layer.precision.mask) * width + down


def add_adapters(vlm, recipe, **options):
    """PEFT's wrapper around a model. Args: options: of `LoraConfig`, beside the recipe's.

    Raises: RecipeError for a target without a module: PEFT is content with one match, and would leave a part untrained.
    """
    from peft import LoraConfig, get_peft_model

    from ..models.load import peft_is_quiet

    modules = [name for name, _ in vlm.model.named_modules()]
    for part, name, pattern in _lora_targets(vlm.family, recipe):
        if not any(re.fullmatch(pattern, module) for module in modules):
            raise RecipeError(
                f"{recipe.name}: LoRA target {name!r} matches no module of the {part} part; expected names of this "
                "model's modules; correct the family's entry"
            )
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=lora_pattern(vlm.family, recipe),
        modules_to_save=["multi_modal_projector"] if recipe.projector == "full" else None,
        bias="none",
        **options,
    )
    # DeepSpeed has float32 masters of its own, and ZeRO-3 divides what trains as one tensor, so of one precision.
    with peft_is_quiet():
        return get_peft_model(vlm.model, config, autocast_adapter_dtype=not is_sharded(recipe))


def lora_pattern(family, recipe):
    """Regular expression of the full names of the modules that get an adapter."""
    return "|".join(f"({pattern})" for *_, pattern in _lora_targets(family, recipe))


def _lora_targets(family, recipe):
    """(part, name, regular expression of its modules) of each kind of module that gets an adapter."""
    names = {"vision": family.vision_lora_targets, "language": family.language_lora_targets}
    adapted = [(part, name) for part in names for name in names[part] if TUNINGS[getattr(recipe, part)].wrap]
    return [(part, name, f"{PARTS[part].replace('.', '[.]')}.*[.]{name}") for part, name in adapted]


def _check_beside(recipe):
    if "full" in (recipe.vision, recipe.language) or recipe.unfreeze_vit_layers:
        raise RecipeError(f"{recipe.name}: lora beside a full vision tower or language model; choose one for both")


@dataclass(frozen=True)
class Method:
    """One way to train a part.

    `kept_bytes` counts what backward needs, a token, of an input of linear layers. It is given the input's width, the
    output widths of its readers, a `footprint.Layer`, `kept_anyway`: another operation keeps the input (attention its
    output), and `computed`: it comes from no norm.
    """

    parts: tuple = ("vision", "language")  # that may train so
    check: Callable = lambda recipe: None  # raises RecipeError for what does not go with it
    wrap: Callable | None = None  # (vlm, recipe) → a model with adapters, once for all parts that train so
    quantize: str | None = None  # the frozen matrices of the language model, as `load` takes it
    kept_bytes: Callable = lambda width, outputs, layer, **how: 0
    advice: Callable = lambda recipe: {}  # changes that need less memory; {} for a recipe that has them
    why: str = ""  # said where `suggest` takes them


WHOLE = ("vision", "projector", "language")
_LORA = {"check": _check_beside, "wrap": add_adapters, "kept_bytes": _lora_bytes}
_LESS = {"projector": "frozen", "language": "lora", "optimizer": "adamw"}
TUNINGS = {
    "frozen": Method(WHOLE),
    "lora": Method(**_LORA, advice=lambda recipe: {} if recipe.has_adapters else _LESS),
    "qlora": Method(
        ("language",),
        **_LORA,
        quantize="4bit",
        advice=lambda recipe: {} if recipe.language == "qlora" else {"language": "qlora"},
        why="language model in NF4, its adapters in full precision: nothing else fits",
    ),
    "full": Method(WHOLE, kept_bytes=_input_bytes),
}


def less_memory(recipe):
    """The changes that entries advise, in their order."""
    return [changes for method in TUNINGS.values() if (changes := method.advice(recipe))]
