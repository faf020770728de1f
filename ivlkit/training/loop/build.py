"""Model + recipe + data → a `Training` that is ready to start."""

import math
from functools import partial

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import set_seed

from ...data.checking.lengths import epoch_lengths
from ...data.collate import collate, collate_packed
from ...data.files import replacing
from ...errors import TrainingError
from ...models.load import default_dtype
from ...models.modeling.attention import NO_PACKING, choose_attention
from ..engine.distributed import broadcast_from_rank0, is_sharded, rank
from ..engine.layers import wrap_layers
from ..functions import choose
from ..tuning import prepare
from .loss import LOSSES
from .schedule import MASKED_TOKENS, MicroBatches, plan_batches
from .state import begin


def build_training(vlm, processor, recipe, data, *, lengths_file=None, skip_unusable=False, **tracking):
    """Freeze and wrap the model as the recipe says, and plan the run.

    Args:
        vlm: a `VLM` without adapter, on the device that trains. processor: its own, with the tiles of the run.
        lengths_file: keeps the rows' lengths, so that one that became unusable since the run began keeps its own.
        skip_unusable: as in `MicroBatches`. tracking: Accelerate's `log_with` and `project_dir`, for a tracker.
    Returns: (`Training`, `AttentionChoice`); it trains under `use_attention(training.model, choice.name)`.
    """
    device = vlm.model.device
    set_seed(recipe.seed)  # the adapters' first values
    model = prepare(vlm, recipe)
    attention = choose_attention(device) if recipe.packing else NO_PACKING
    skipping = {"lengths_file": lengths_file, "skip_unusable": skip_unusable}
    micro_batches = plan_micro_batches(data, processor, recipe, vlm.model.config, packed=attention.packs, **skipping)
    mixed = mixed_precision(device)
    if mixed != "no" and not is_sharded(recipe):  # DeepSpeed has masters of its own, no autocast
        keep_float32_masters(model)
        leave_casts_to_autocast(model)
    wrap_layers(model, recipe)
    loss_fn = choose(LOSSES, recipe.loss, "loss")
    training = begin(model, micro_batches, loss_fn=loss_fn, device=device, mixed=mixed, **tracking)
    set_seed(recipe.seed)  # the first draws of dropout
    return training, attention


def mixed_precision(device):
    """What Accelerate computes in beside float32 masters: "bf16" or "fp16" on a GPU, "no" elsewhere."""
    if device.type != "cuda":
        return "no"
    return "bf16" if default_dtype(device) == torch.bfloat16 else "fp16"


def plan_micro_batches(data, processor, recipe, config, *, packed, lengths_file=None, skip_unusable=False):
    """This rank's `MicroBatches`: bins, or padded batches of like length."""
    options = {"seed": recipe.seed, "epochs": math.ceil(recipe.epochs)}
    measure = partial(epoch_lengths, data, processor, max_length=recipe.max_seq_length, **options)
    tokens, tiles = broadcast_from_rank0(lambda: _planned_lengths(*measure(), lengths_file, skip_unusable))
    plan = plan_batches(tokens, tiles, recipe, config, packed=packed, rank=rank())
    how = {"collate": _collate(recipe, packed=packed), "rope": plan.rope, "skip_unusable": skip_unusable}
    return MicroBatches(data, processor, recipe, plan, **how)


def _planned_lengths(tokens, tiles, file, skip_unusable):
    """(tokens, tiles) that a plan is made of: of an unusable row those that it had when the run began, if any."""
    if skip_unusable:
        kept = np.load(file, allow_pickle=False) if file and file.exists() else np.stack([tokens, tiles])
        tokens, tiles = np.where(tokens > 0, tokens, kept[0]), np.where(tokens > 0, tiles, kept[1])
        tokens = np.maximum(tokens, MASKED_TOKENS)
    if file and not file.exists():
        with replacing(file) as aside, open(aside, "wb") as opened:
            np.save(opened, np.stack([tokens, tiles]).astype(np.int32))
    return tokens, tiles


def _collate(recipe, *, packed):
    if not recipe.compile:
        return collate_packed if packed else collate
    if not packed:
        raise TrainingError(f"{recipe.name}: compile=true on a card that packs no bins; set compile=false")
    return partial(collate_packed, max_length=recipe.max_seq_length)


def keep_float32_masters(model):
    """What trains is float32, though the rest is half precision: PEFT sees to its adapters, not to a projector."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def leave_casts_to_autocast(model):
    """Adapters in float32 take their inputs as they are: PEFT's own cast to float32 comes before autocast's to bf16.

    Nothing is rounded otherwise, but every adapter of every layer is spared a copy of its input in float32. The model
    then computes under autocast only.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
