"""The largest batch of the run first: a lack of memory shows in the first minute, not in the third hour."""

import time

import torch
from transformers import TrainerCallback

from ...hardware import GIB
from ..tuning import optimizer_bytes


class LargestBatchFirst(TrainerCallback):
    """Forward and backward of this rank's largest micro-batch before the first step, and nothing of it kept.

    The optimizer's state, which the first step makes, is stood in for by an empty tensor of its size. Random numbers go
    on as if nothing had been drawn. Not under DeepSpeed, which counts every backward.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_):
        """Raises torch.OutOfMemoryError where the run would later."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            return
        number, tokens, tiles = trainer.train_dataset.batches.largest_batch()
        began, batch = time.perf_counter(), trainer.train_dataset[number]
        devices = [args.device.index or 0] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            held = self._stand_in(args.device)
            self._forward_and_backward(batch)
            del held
        if state.is_world_process_zero:
            print(
                f"largest batch first: {tokens:,} tokens, {tiles} tiles{_peak(args.device)}, "
                f"{time.perf_counter() - began:.1f} s",
                flush=True,
            )

    def _stand_in(self, device):
        """As large as the optimizer's state will be; nothing where a checkpoint brought it."""
        there = bool(self.trainer.optimizer.state_dict()["state"])
        recipe = self.trainer.train_dataset.recipe
        size = 0 if there else optimizer_bytes(self.trainer.model, recipe.optimizer)
        return torch.empty(size, dtype=torch.uint8, device=device)

    def _forward_and_backward(self, batch):
        trainer = self.trainer
        model, inputs = trainer.model_wrapped, trainer._prepare_inputs(batch)
        model.train()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=inputs["weights"].new_tensor(1.0))
        trainer.accelerator.backward(loss)
        model.zero_grad(set_to_none=True)


def _peak(device):
    return f", {torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if device.type == "cuda" else ""
