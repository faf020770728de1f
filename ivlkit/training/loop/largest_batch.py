"""The largest batch of the run first: a lack of memory shows in the first minute, not in the third hour."""

import time

import torch

from ...hardware import GIB
from ..engine.distributed import is_sharded
from ..tuning import optimizer_bytes
from .train import sum_losses


def try_largest_batch(training):
    """Forward and backward of this rank's largest micro-batch before the first step, and nothing of it kept.

    The optimizer's state, which the first step makes, is stood in for by an empty tensor of its size. Random numbers go
    on as if nothing had been drawn. Not under DeepSpeed, which counts every backward.

    Raises: torch.OutOfMemoryError where the run would later.
    """
    if is_sharded(training.recipe):
        return
    number, tokens, tiles = training.micro_batches.batches.largest_batch()
    began, batch, device = time.perf_counter(), training.micro_batches[number], training.device
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        held = stand_in(training)
        training.engine.train()
        training.accelerator.backward(sum_losses(training.engine, batch, training))
        training.engine.zero_grad()
        del held
    if training.accelerator.is_main_process:
        peak = f", {torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if device.type == "cuda" else ""
        seconds = time.perf_counter() - began
        print(f"largest batch first: {tokens:,} tokens, {tiles} tiles{peak}, {seconds:.1f} s", flush=True)


def stand_in(training):
    """As large as the optimizer's state will be; nothing where a checkpoint brought it."""
    there = bool(training.optimizer.state_dict()["state"])
    size = 0 if there else optimizer_bytes(training.model, training.recipe.optimizer)
    return torch.empty(size, dtype=torch.uint8, device=training.device)
