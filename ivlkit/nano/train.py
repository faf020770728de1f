"""How the embedded model is made: curriculum → three trainings → the folder that ships. `ivlkit nano train`.

The released models began with a language model that knew its language, then trained projector and vision tower before
it, then all. nano does the same at its scale: `language` reads scenes told in words, `vision` learns to show them to a
frozen language model, `all` trains everything together.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import set_seed

from ..errors import TrainingError
from ..models.export import save_released
from ..models.load import VLM, default_dtype, load
from ..training.recipes import Recipe
from ..training.schedule import MicroBatches, plan_run
from ..training.trainer import KitTrainer, LogToFile, training_arguments
from ..training.tuning import prepare
from .build import build
from .curriculum import SEEN_SHARES, TASK_SHARES, TEXT_SHARES, Curriculum

SHARED = {
    "total_batch": 256,
    "per_device_batch": 256,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "warmup_ratio": 0.05,
    "max_seq_length": 1024,
    "gradient_checkpointing": False,
    "save_steps": 500,
    "hardware": "one GPU, minutes",
}
PARTS = ("vision", "projector", "language")


@dataclass(frozen=True)
class Stage:
    """One training: what is shown, which parts learn from it, for how long."""

    name: str
    trains: tuple  # of PARTS
    shares: dict  # {task: weight}
    steps: int  # of 256 rows, each drawn once
    changes: dict = field(default_factory=dict)  # to the recipe

    def recipe(self, model, *, seed, workers):
        """The stage's recipe on a model folder."""
        tunings = {part: "full" if part in self.trains else "frozen" for part in PARTS}
        fields = SHARED | tunings | self.changes
        return Recipe(name=f"nano-{self.name}", model=str(model), seed=seed, workers=workers, **fields)


STAGES = (
    Stage("language", ("language",), TEXT_SHARES, 400),
    Stage("vision", ("vision", "projector"), SEEN_SHARES, 400),
    Stage("all", PARTS, TASK_SHARES, 4200),
)


def train_nano(folder, *, stages=STAGES, seed=0, workers=2):
    """Train nano from random weights, stage after stage; each leaves its model in `folder/<stage>`.

    Args: workers: processes that draw and prepare rows.
    Returns: the last stage's folder, in the released layout. `folder/summary.json` has rows, steps, seconds, losses.
    """
    folder = Path(folder)
    start = folder / "random"
    if start.exists():
        raise TrainingError(f"{folder}: exists already; expected a new folder; remove it or choose another")
    model = build(start, seed=seed)
    summary = []
    for number, stage in enumerate(stages):
        recipe = stage.recipe(model, seed=seed, workers=workers)
        data = Curriculum(stage.steps * recipe.total_batch, seed=f"{seed}.{number}", shares=stage.shares)
        model = train_stage(recipe, data, folder / stage.name)
        summary.append({"stage": stage.name, "rows": len(data), **_summarise(model / "log.jsonl")})
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return model


def train_stage(recipe, data, folder):
    """One stage: the recipe's model trained on drawn rows, saved to `folder` with its log. Returns the folder."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vlm = load(recipe.model, device=device, dtype=torch.float32)
    set_seed(recipe.seed)
    batches, steps = plan_run(len(data), recipe)
    folder.mkdir(parents=True)
    bf16 = default_dtype(device) == torch.bfloat16
    trainer = NanoTrainer(
        model=prepare(vlm, recipe),
        args=training_arguments(recipe, folder, steps=steps, device_type=device.type, bf16=bf16),
        train_dataset=MicroBatches(data, vlm.processor, recipe, batches),
        callbacks=[LogToFile(folder / "log.jsonl", epochs=recipe.epochs)],
    )
    trainer.train()
    save_released(VLM(trainer.model.cpu(), vlm.processor, vlm.config, vlm.folder), folder)
    return folder


class NanoTrainer(KitTrainer):
    """Muon for the matrices inside the layers, AdamW for the rest.

    Tried on 250 steps of reading practice (256 rows each): loss 1.66; AdamW alone needed 450 for it, at any rate.
    """

    def create_optimizer(self, model=None):
        """Both rates are the recipe's: Muon's updates are scaled to the size of AdamW's."""
        trained = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        inner = [value for name, value in trained if value.ndim == 2 and "layer" in name]
        chosen = set(map(id, inner))
        rest = [value for _, value in trained if id(value) not in chosen]
        rate, decay = self.args.learning_rate, self.args.weight_decay
        adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, self.args.adam_beta2), weight_decay=0.0)
        muon = torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.optimizer = TwoOptimizers(muon, adamw)
        return self.optimizer


class TwoOptimizers(torch.optim.Optimizer):
    """Two optimizers of disjoint parameters that a scheduler sees as one."""

    def __init__(self, first, second):
        self.both = first, second
        groups = first.param_groups + second.param_groups
        super().__init__([value for group in groups for value in group["params"]], {"lr": groups[0]["lr"]})
        self.param_groups = groups

    def step(self, closure=None):
        """A step of each."""
        for optimizer in self.both:
            optimizer.step()


def _summarise(log):
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines[-50:]]
    return {
        "steps": len(lines),
        "seconds": lines[-1]["seconds"],
        "loss_last_50_steps": round(sum(losses) / len(losses), 4),
    }
