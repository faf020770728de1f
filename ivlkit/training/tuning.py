"""Which parts train, and how: frozen, LoRA (on quantised weights: QLoRA) or full. Checked before a step is paid for."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from ..errors import RecipeError
from ..models.modeling.float8 import to_float8
from ..models.modeling.quantize import count_values
from ..models.modeling.streaming import leave_out_of_ddp, stream_tower
from .methods import PARTS, TUNINGS, part_of

NO_DECAY = [r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)"]  # names whose values never decay
BETA_1, EPSILON = 0.9, 1e-8  # of Adam
BLOCK_8BIT, SMALLEST_8BIT = 256, 4096  # bitsandbytes: values a float32 scale, values below which a state stays float32


@dataclass(frozen=True)
class PartSummary:
    """One row of the table that is shown before training."""

    part: str
    tuning: str
    parameters: int
    trainable: int


def prepare(vlm, recipe):
    """Freeze, unfreeze and wrap the parts of a loaded model as the recipe says.

    Args: vlm: a `VLM` without adapter.
    Returns: the module to train: the model itself, or PEFT's wrapper around it.
    Raises: RecipeError if a LoRA pattern matches nothing or nothing trains.
    """
    if vlm.adapter is not None:
        raise RecipeError("the model already carries an adapter; merge it first (vlm.merge_adapter())")
    model = vlm.model
    tunings = _tunings(recipe)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tunings[part_of(name)] == "full")
    if recipe.unfreeze_vit_layers:
        _unfreeze_layers(model, recipe)
    if recipe.float8_parts and model.device.type != "meta":
        to_float8(model, tower="vision" in recipe.float8_parts)  # of a decoder in NF4 there is nothing left to swap
    if recipe.vision_offload and model.device.type != "meta":
        stream_tower(model)
    for wrap in {TUNINGS[part].wrap for part in recipe.parts} - {None}:
        model = wrap(vlm, recipe)
    if recipe.vision_offload:
        leave_out_of_ddp(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"{recipe.name}: nothing trains; set vision, projector or language to lora or full")
    return model


def _unfreeze_layers(model, recipe):
    """The released code's `layers[unfreeze_vit_layers:]`."""
    layers = model.model.vision_tower.encoder.layer
    chosen = layers[recipe.unfreeze_vit_layers :]
    if not len(chosen) or -recipe.unfreeze_vit_layers > len(layers):
        raise RecipeError(
            f"{recipe.name}: unfreeze_vit_layers={recipe.unfreeze_vit_layers} of a tower of {len(layers)} layers; "
            f"expected -{len(layers)} to {len(layers) - 1}; -4 trains the last four"
        )
    chosen.requires_grad_(True)


def adamw(model, recipe):
    """AdamW with the recipe's learning rate of each part; biases and norms do not decay. In 8 bits by bitsandbytes.

    Raises: RecipeError for a rate of a part that does not train.
    """
    rates = {"vision": recipe.vision_learning_rate, "projector": recipe.projector_learning_rate}
    rates = {None: recipe.learning_rate} | {part: rate for part, rate in rates.items() if rate is not None}
    decaying = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    groups = {(decays, part): [] for decays in (True, False) for part in rates}
    for name, value in model.named_parameters():
        if value.requires_grad:
            part = part_of(name)
            groups[name in decaying, part if part in rates else None].append(value)
    for part, rate in rates.items():
        if part and not (groups[True, part] or groups[False, part]):
            ways = " or ".join(name for name, one in TUNINGS.items() if part in one.parts and name != "frozen")
            raise RecipeError(
                f"{recipe.name}: {part}_learning_rate={rate}, but no tensor of the {part} trains; set {part} to {ways}"
                ", or leave the rate out"
            )
    groups = [
        {"params": values, "lr": rates[part], "weight_decay": recipe.weight_decay if decays else 0.0}
        for (decays, part), values in groups.items()
        if values
    ]
    options = {"lr": recipe.learning_rate, "betas": (BETA_1, recipe.adam_beta2), "eps": EPSILON}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options, fused=True)
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return bitsandbytes.optim.AdamW(groups, **options, optim_bits=8, is_paged=recipe.optimizer.startswith("paged"))


def optimizer_bytes(model, optimizer):
    """State of the trained tensors: two moments each, in float32 or in 8 bits; 0 on the GPU for a paged optimizer."""
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    if optimizer.startswith("paged"):
        return 0
    return sum(2 * (_state_8bit(count) if optimizer == "adamw_8bit" else 4 * count) for count in counts)


def _state_8bit(count):
    return 4 * count if count < SMALLEST_8BIT else count + 4 * -(-count // BLOCK_8BIT)


def summarise(model, recipe):
    """Parameters and trainable parameters of each part: `[PartSummary, …]`."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:  # PEFT's untrained copy of a projector that trains beside LoRA
            count, own = count_values(parameter), counts[part_of(name)]
            own[0] += count
            own[1] += count * parameter.requires_grad
    return [PartSummary(part, tuning, *counts[part]) for part, tuning in _tunings(recipe).items()]


def summary_text(model, recipe):
    """The table as text, with what the recipe names but does not apply."""
    rows = summarise(model, recipe)
    lines = [f"{'part':<10} {'tuning':<7} {'parameters':>14} {'trainable':>14}"]
    lines += [f"{row.part:<10} {row.tuning:<7} {row.parameters:>14,} {row.trainable:>14,}" for row in rows]
    if recipe.float8_parts:
        parts = " and ".join({"language": "the decoder", "vision": "the tower"}[part] for part in recipe.float8_parts)
        lines.append(f"weights: frozen matrices of {parts} in float8")
    if recipe.vision_offload:
        lines.append("vision_offload: the tower's layers in the host's memory")
    if recipe.drop_path:
        lines.append(f"drop_path {recipe.drop_path}: not applied, the vision tower is frozen")
    return "\n".join(lines)


def _tunings(recipe):
    """The head trains with a full language model, as in the released scripts; LoRA leaves it alone."""
    head = "full" if recipe.language == "full" else "frozen"
    return {"vision": recipe.vision, "projector": recipe.projector, "language": recipe.language, "head": head}
