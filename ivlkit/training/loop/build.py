"""Model + recipe + data → a trainer that is ready to start."""

import math
from dataclasses import replace
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import set_seed

from ...data.checking.lengths import epoch_lengths
from ...data.collate import collate, collate_packed
from ...errors import TrainingError
from ...models.load import default_dtype
from ...models.modeling.attention import NO_PACKING, choose_attention, rope_limits
from ..engine.distributed import broadcast_from_rank0, is_sharded, rank
from ..engine.layers import SayCompileTime, wrap_layers
from ..tuning import prepare
from .largest_batch import LargestBatchFirst
from .schedule import MicroBatches, plan_grouped, plan_packed, tile_cost
from .trainer import CheckEngine, KitTrainer, training_arguments


def build_trainer(vlm, processor, recipe, data, folder, *, callbacks=(), trainer_class=KitTrainer):
    """Freeze and wrap the model as the recipe says, plan the run, and put both into a Trainer.

    Args:
        vlm: a `VLM` without adapter, on the device that trains. processor: its own, with the tiles of the run.
        folder: where checkpoints go.
    Returns: (trainer, `AttentionChoice`); it trains under `use_attention(trainer.model, choice.name)`.
    """
    device = vlm.model.device
    set_seed(recipe.seed)  # the adapters' first values
    model = prepare(vlm, recipe)
    attention = choose_attention(device) if recipe.packing else NO_PACKING
    micro_batches = plan_micro_batches(data, processor, recipe, vlm.model.config, packed=attention.packs)
    arguments = training_arguments(
        recipe,
        folder,
        steps=micro_batches.batches.steps,
        accumulation=micro_batches.batches.accumulation,
        device_type=device.type,
        bf16=default_dtype(device) == torch.bfloat16,
    )
    if (arguments.bf16 or arguments.fp16) and not is_sharded(recipe):  # DeepSpeed has masters of its own, no autocast
        keep_float32_masters(model)
        leave_casts_to_autocast(model)
    wrap_layers(model, recipe)
    callbacks = [*callbacks, *([SayCompileTime()] if recipe.compile else [])]
    trainer = trainer_class(model=model, args=arguments, train_dataset=micro_batches, callbacks=callbacks)
    trainer.add_callback(CheckEngine(trainer))
    if device.type == "cuda":
        trainer.add_callback(LargestBatchFirst(trainer))
    return trainer, attention


def plan_validation(data, processor, recipe, config, *, packed):
    """One pass over validation rows in micro-batches like those of training."""
    once = replace(recipe, epochs=1, compile=False)
    return plan_micro_batches(data, processor, once, config, packed=packed)


def plan_micro_batches(data, processor, recipe, config, *, packed):
    """This rank's `MicroBatches`: bins, or padded batches of like length."""
    rope, options = rope_limits(config.text_config), {"seed": recipe.seed, "epochs": math.ceil(recipe.epochs)}
    measure = partial(epoch_lengths, data, processor, max_length=recipe.max_seq_length, **options)
    tokens, tiles = broadcast_from_rank0(measure)
    if packed:
        plan = plan_packed(tokens, tiles, recipe, rank=rank(), rope=rope, tile_cost=tile_cost(config, recipe))
    else:
        plan = plan_grouped(tokens, tiles, recipe, rank=rank(), rope=rope)
    return MicroBatches(data, processor, recipe, plan, collate=_collate(recipe, packed=packed), rope=rope)


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
