"""The loop: a step's micro-batches → weigh → forward → loss / W → backward → clip → step → yield.

One plan serves the whole run, so there is one pass over it; a run that goes on begins at the micro-batch where it
stopped. Whoever iterates over `train_steps` logs, validates, saves and stops: nothing calls back.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter

import torch
from torch.utils.data import DataLoader

from ...data.collate import normalise_tiles
from ...errors import TrainingError
from ...models.modeling.attention import packed_arguments
from ...models.modeling.internvl import count_calls
from ..engine.distributed import is_sharded
from .loss import count_chunks, count_supervised, total_weight


@dataclass(frozen=True)
class Step:
    """What an optimiser step did."""

    number: int  # 1 for the first of the run
    loss: float  # of the step's rows, of all ranks
    grad_norm: float  # of all trained values, before clipping
    learning_rate: float  # that this step used
    tokens: int  # that all ranks have read since their processes started; padding not counted
    batches: list  # this rank's micro-batches
    wait_seconds: float  # for them


def train_steps(training):
    """The optimiser steps that are left, each a `Step` after it was done.

    Args: training: a `Training`, whose `step` is the last one that was done.
    Raises: TrainingError for a loss or a gradient norm that is not finite, with the rows of the step: the weights are
        as they were before it, but under DeepSpeed, which steps in `backward`.
    """
    accumulation = training.micro_batches.batches.accumulation
    loader = iter(load_micro_batches(training.micro_batches, first=training.step * accumulation))
    training.engine.train()
    trained = [module for module in training.engine.modules() if module.training]
    while training.step < training.steps:
        began = time.perf_counter()
        batches = list(islice(loader, accumulation))
        wait_seconds = time.perf_counter() - began
        weight = weigh(training, batches)
        if not all(module.training for module in trained):  # as whoever looked at the model left it
            training.engine.train()  # 20 ms of a small model's step, so not in each
        losses = [backward(training, batch, weight, is_last=batch is batches[-1]) for batch in batches]
        loss, norm = check_numbers(training, batches, losses, clip(training))
        learning_rate = update(training)
        training.step += 1
        training.tokens_read += sum(map(count_tokens, batches))
        loss, tokens = sum_over_ranks(training, loss / training.accelerator.num_processes, training.tokens_read)
        yield Step(training.step, loss, norm, learning_rate, int(tokens), batches, wait_seconds)


def load_micro_batches(micro_batches, *, first=0):
    """The micro-batches of a `MicroBatches` in order, from a number on; read by the recipe's worker processes."""
    return DataLoader(
        micro_batches,
        batch_size=1,
        sampler=range(first, len(micro_batches)),
        collate_fn=itemgetter(0),
        num_workers=micro_batches.recipe.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the one that dropout draws from
    )


def weigh(training, batches):
    """W of micro-batches, over them and all ranks; each micro-batch learns its calls of the tower and the head.

    ZeRO-3 fetches weights at every call, so all ranks call as often as the one with most tiles or positions. A rank
    with text alone has a blank tile; only where every rank's tiles were kept, the tower is not called.
    """
    weight = sum(total_weight(one["labels"], one["weights"], sample_ids=one.get("sample_ids")) for one in batches)
    tiles = [len(batch.get("tiles", ())) or "places" not in batch for batch in batches]
    sizes = [[count, count_supervised(batch["labels"])] for count, batch in zip(tiles, batches, strict=True)]
    own = torch.cat([weight.reshape(1), weight.new_tensor(sizes).flatten()])[None]
    if training.accelerator.num_processes > 1:
        own = training.accelerator.gather(own.to(training.device)).cpu()  # [ranks, 1 + 2 · micro-batches]
    most = own[:, 1:].amax(dim=0).reshape(-1, 2).tolist()
    for batch, (tiles, positions) in zip(batches, most, strict=True):
        batch["tower_calls"], batch["chunks"] = count_calls(int(tiles)), count_chunks(int(positions))
    return own[:, 0].sum()


def backward(training, batch, weight, *, is_last):
    """Gradients of one micro-batch, added to those before. One without rows is computed by no rank.

    Returns: its share of the step's loss, float32 on the device.
    """
    accelerator = training.accelerator
    if not batch["where"]:
        return torch.zeros((), device=training.device)
    accelerator.sync_gradients = is_last
    sharded = is_sharded(training.recipe)
    waits = nullcontext() if is_last or sharded else accelerator.no_sync(training.engine)
    with waits:  # ranks meet at a step's last micro-batch
        # Times the ranks, by whose number DDP and DeepSpeed divide the gradients.
        loss = sum_losses(training.engine, batch, training) / weight * accelerator.num_processes
        # DeepSpeed would divide the gradients, not the loss, by the accumulation.
        accelerator.backward(loss, **({"scale_wrt_gas": False} if sharded else {}))
    if training.micro_batches.kept:
        training.micro_batches.kept.write()  # while the device is still busy with backward
    return loss.detach()


def sum_losses(model, batch, training):
    """Σ w·CE of a micro-batch, by the run's loss, not divided: float32 on the device. `model` is called."""
    batch = to_device(batch, training.device)
    has_tiles = "places" in batch or len(batch["tiles"])
    runs_tower = has_tiles or training.accelerator.num_processes > 1 or training.sees_trainably
    # With a cache transformers takes a packed row for one sample.
    outputs = model(
        **model_inputs(batch, runs_tower=runs_tower),
        complete=partial(training.micro_batches.kept.complete, batch) if "places" in batch else None,
        use_cache=False,
        loss_fn=lambda hidden, head: training.loss_fn(hidden, head, batch),
    )
    return outputs.loss


def model_inputs(batch, *, runs_tower):
    """A padded batch goes with its mask, a packed one without any but with restarting positions and bounds.

    Args: runs_tower: whether the tower is called. Text alone goes with no tiles where the tower or the projector
        trains: their gradients are zero then, and not missing, on one GPU as on several; the optimizer would leave them
        out in a step of text alone on one only.
    """
    both = {"input_ids": batch["input_ids"], "tower_calls": batch.get("tower_calls", 1)}
    both["pixel_values"] = normalise_tiles(batch["tiles"]) if runs_tower else None
    if "attention_mask" in batch:
        return both | {"attention_mask": batch["attention_mask"]}
    bounds = packed_arguments(batch["cu_seqlens"], batch["max_length"])
    return both | bounds | {"position_ids": batch["position_ids"]}


def to_device(batch, device):
    """Tensors on the device, as they are: samples' weights stay float32."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def clip(training):
    """The norm of all gradients before they are clipped to the recipe's; DeepSpeed has clipped them in `backward`."""
    most = training.recipe.max_grad_norm or math.inf
    norm = training.accelerator.clip_grad_norm_(training.model.parameters(), most)
    return torch.as_tensor(0.0 if norm is None else norm)


def check_numbers(training, batches, losses, norm):
    """(the step's loss, the gradient norm) as numbers: here the computing device is waited for, once a step.

    Raises: TrainingError for one that is not finite.
    """
    *losses, norm = torch.stack([value.to(training.device, torch.float64) for value in (*losses, norm)]).tolist()
    step, todo = training.step + 1, "lower learning_rate or look at these rows; the last checkpoint is kept"
    for batch, loss in zip(batches, losses, strict=True):
        if not math.isfinite(loss):
            raise TrainingError(
                f"loss {loss} at step {step}, rows {', '.join(batch['where'])}; expected a finite loss; {todo}"
            )
    if not math.isfinite(norm) and training.accelerator.mixed_precision != "fp16":  # whose scaler leaves the step out
        rows = ", ".join(where for batch in batches for where in batch["where"])
        raise TrainingError(f"gradient norm {norm} at step {step}, rows {rows}; expected a finite one; {todo}")
    return sum(losses), norm


def update(training):
    """Step optimizer and schedule, forget the gradients. Returns: the learning rate of this step."""
    learning_rate = training.schedule.get_last_lr()[0]
    training.optimizer.step()
    if not training.accelerator.optimizer_step_was_skipped:
        training.schedule.step()
    training.engine.zero_grad()
    return learning_rate


def sum_over_ranks(training, *numbers):
    """Each number summed over all ranks."""
    own = torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=training.device)
    return training.accelerator.reduce(own, "sum").tolist()


def count_tokens(batch):
    """Tokens of rows; padding, and a row that only keeps ranks in step, are not counted."""
    if not batch["weights"].any():
        return 0
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
