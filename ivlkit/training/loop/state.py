"""What an optimiser step changes, and its way to the disk and back: weights, optimizer, schedule, random numbers.

Accelerate moves, wraps and casts. It does not write: its `save_state` puts the whole frozen base beside an adapter, and
goes on where a file of random numbers is damaged. Files keep the names of transformers' Trainer.
"""

import json
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_scheduler

from ...errors import CheckpointError
from ...models.families import FAMILIES
from ...models.load import ORIGIN_FILE
from ..checkpoints import load_trained, save_trained
from ..engine.distributed import check_engine, is_sharded, make_accelerator
from ..methods import part_of
from ..tuning import adamw

NUMPYS = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]  # of NumPy's own state


@dataclass
class Training:
    """A model that trains on the micro-batches of a plan, `step` steps of it done."""

    model: nn.Module  # what `tuning.prepare` returned
    engine: nn.Module  # the same under DDP or DeepSpeed: what is called
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    micro_batches: object  # `MicroBatches`
    loss_fn: object  # a function of (hidden states, head, batch): see `loss.LOSSES`
    step: int = 0
    tokens_read: int = field(default=0, init=False)  # by this rank, since the process started; padding not counted

    @property
    def recipe(self):
        """The `Recipe`."""
        return self.micro_batches.recipe

    @property
    def device(self):
        """Of this rank."""
        return self.accelerator.device

    @property
    def steps(self):
        """Optimiser steps of the whole run."""
        return -(-len(self.micro_batches) // self.micro_batches.batches.accumulation)

    @property
    def epoch(self):
        """Epochs that the steps so far have shown: 1.5 after 3 of 4 steps of two epochs."""
        done = min(1.0, self.step * self.micro_batches.batches.accumulation / len(self.micro_batches))
        return done * self.recipe.epochs

    @cached_property
    def sees_trainably(self):
        """Whether a gradient of the vision tower or the projector is wanted."""
        named = self.model.named_parameters()
        return any(value.requires_grad for name, value in named if part_of(name) in ("vision", "projector"))

    def save_weights(self, folder):
        """Write what trains into a folder that is there, for `load` too: all ranks help, the first one writes."""
        sharded = self.accelerator.get_state_dict(self.engine) if is_sharded(self.recipe) else None
        if self.accelerator.is_main_process:
            save_trained(self.model, folder, state_dict=sharded)
            self.write_origin(folder, step=self.step)

    def write_origin(self, folder, *, step):
        """Write which base the weights in a folder belong to, and how they were asked in training."""
        recipe, processor = self.recipe, self.micro_batches.processor
        origin = {
            "base": recipe.model if recipe.model in FAMILIES else str(Path(recipe.model).resolve()),
            "template": processor.template.name,
            "system_message": processor.system_message,
            "max_tiles": processor.max_tiles,
            "recipe": recipe.name,
            "step": step,
        }
        (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, ensure_ascii=False), encoding="utf-8")

    def save(self, folder):
        """Write all that is needed to go on to the same bits into a folder that is there."""
        self.save_weights(folder)
        if is_sharded(self.recipe):
            self.engine.save_checkpoint(str(folder), exclude_frozen_parameters=hasattr(self.model, "peft_config"))
        if self.accelerator.is_main_process:
            for name, state in self._states().items():
                torch.save(state.state_dict(), folder / name)
            written = {"global_step": self.step, "max_steps": self.steps, "epoch": self.epoch}
            (folder / "trainer_state.json").write_text(json.dumps(written))
        torch.save(_random_states(), folder / self._random_name)

    def load(self, folder):
        """Go on from what `save` wrote, or transformers' Trainer in earlier versions.

        Raises: CheckpointError for a tensor that is missing or unexpected, or a file that can't be read.
        """
        if is_sharded(self.recipe):
            self.engine.load_checkpoint(str(folder), load_module_strict=not hasattr(self.model, "peft_config"))
        else:
            load_trained(self.model, folder)
        for name, state in self._states().items():
            state.load_state_dict(_read(folder / name, map_location="cpu"))
        self.step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
        _set_random_states(_read(folder / self._random_name))

    def _states(self):
        """{file: what is kept there}; DeepSpeed keeps its optimizer itself."""
        found = {"scheduler.pt": self.schedule}
        if not is_sharded(self.recipe):
            found["optimizer.pt"] = self.optimizer
        return found | ({"scaler.pt": self.accelerator.scaler} if self.accelerator.scaler else {})

    @property
    def _random_name(self):
        ranks = self.accelerator.num_processes
        return "rng_state.pth" if ranks == 1 else f"rng_state_{self.accelerator.process_index}.pth"


def begin(model, micro_batches, *, loss_fn, device, mixed="no", make_optimizer=adamw, **tracking):
    """The `Training` of a model, before its first step.

    Args:
        model: what `tuning.prepare` returned. mixed: "no", "bf16" or "fp16", to compute in beside float32 weights.
        make_optimizer: (model, recipe) → optimizer. tracking: Accelerate's `log_with` and `project_dir`.
    Raises: TrainingError if another engine than the recipe's would train.
    """
    recipe = micro_batches.recipe
    accumulation = micro_batches.batches.accumulation
    accelerator = make_accelerator(recipe, device, mixed=mixed, accumulation=accumulation, **tracking)
    engine, optimizer = accelerator.prepare(model, make_optimizer(model, recipe))
    check_engine(engine, recipe, alone=type(model).__name__)
    training = Training(model, engine, optimizer, None, accelerator, micro_batches, loss_fn)
    # Not prepared: it would advance once a rank at every step.
    warmup = {"num_warmup_steps": round(recipe.warmup_ratio * training.steps), "num_training_steps": training.steps}
    training.schedule = get_scheduler(recipe.scheduler, optimizer, **warmup)
    return training


def _random_states():
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states):
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    cuda = states.get("cuda")  # a list, of all cards, in several processes of earlier versions
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda[torch.cuda.current_device()] if isinstance(cuda, list) else cuda)


def _read(path, **options):
    try:
        with torch.serialization.safe_globals(NUMPYS):
            return torch.load(path, weights_only=True, **options)
    except Exception as error:
        what = type(error).__name__  # torch's own text is long, and advises to unpickle what is there
        raise CheckpointError(f"{path}: can't be read ({what}); expected a checkpoint of this run") from error
