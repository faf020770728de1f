"""How the embedded model is made: curriculum → three trainings → the folder that ships.

    python benchmarks/factory/train.py --to runs/nano
    python benchmarks/factory/train.py --to runs/nano --continue-from FOLDER --steps 4000

The released models began with a language model that knew its language, then trained projector and vision tower before
it, then all. nano does the same at its scale: `language` reads scenes told in words, `vision` learns to show them to a
frozen language model, `all` trains everything together. A trained nano, also one with another tokenizer, only needs a
shorter `all` to learn what is new in the curriculum.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from carry_over import carry_over
from muon import StackedMuon
from random_nano import build
from row_plan import plan_run
from transformers import set_seed

from ivlkit.data.collate import collate, collate_packed
from ivlkit.data.files import sha256, write_whole
from ivlkit.errors import TrainingError
from ivlkit.models.export.export import save_released
from ivlkit.models.load import VLM, load
from ivlkit.models.modeling.attention import PADDED, choose_attention, use_attention
from ivlkit.nano.curriculum import TASK_SHARES, Curriculum
from ivlkit.training.log import read_steps
from ivlkit.training.loop.build import mixed_precision
from ivlkit.training.loop.execute import follow, last_checkpoint
from ivlkit.training.loop.loss import cross_entropy
from ivlkit.training.loop.schedule import MicroBatches
from ivlkit.training.loop.state import begin
from ivlkit.training.recipes import Recipe
from ivlkit.training.run import LOG_FILE
from ivlkit.training.tuning import prepare

SHARED = {
    "total_batch": 256,
    "per_device_batch": 256,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "warmup_ratio": 0.05,
    "packing": False,
    "max_seq_length": 1024,
    "gradient_checkpointing": "none",
    "save_steps": 250,
    "hardware": "one GPU, minutes",
}
PARTS = ("vision", "projector", "language")
TEXT_SHARES = {"from_text": 22, "name": 1, "simple_sum": 1, "repeat_word": 6, "opposite": 1}
SEEN_SHARES = {"printed_lines": 10, "printed_number": 6, "printed_word": 2, "unknown_word": 10, "list_shapes": 5}
SEEN_SHARES |= {"side_of_shapes": 2, "find_box": 2, "whole_print": 6}


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
    Stage("all", PARTS, TASK_SHARES, 8500),
)


def train_nano(folder, *, stages=STAGES, seed=0, workers=2, continue_from=None):
    """Train nano from random weights, stage after stage; each leaves its model in `folder/<stage>`.

    Called again it goes on from the last checkpoint of the stage that was interrupted.

    Args:
        workers: processes that draw and prepare rows.
        continue_from: the folder of a trained nano to begin with instead, see `carry_over`.
    Returns: the last stage's folder, in the released layout. `folder/summary.json` has rows, steps, seconds, losses.
    Raises: TrainingError if the folder holds a training of other stages or another seed.
    """
    folder = Path(folder)
    model = _begin(folder, stages, seed, continue_from)
    summary = []
    for number, stage in enumerate(stages):
        recipe = stage.recipe(model, seed=seed, workers=workers)
        data = Curriculum(stage.steps * recipe.total_batch, seed=f"{seed}.{number}", shares=stage.shares)
        model = folder / stage.name
        if not (model / "model.safetensors").exists():
            train_stage(recipe, data, model)
        summary.append({"stage": stage.name, "rows": len(data), **_summarise(model / LOG_FILE)})
        write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return model


def _begin(folder, stages, seed, continue_from):
    """The folder of the first weights, made once; a plan that differs from the one begun here is refused."""
    plan = {"seed": seed, "stages": [asdict(stage) | {"trains": list(stage.trains)} for stage in stages]}
    if continue_from:
        plan["continue_from"] = sha256(Path(continue_from) / "model.safetensors")
    path, first = folder / "plan.json", folder / ("continued" if continue_from else "random")
    if path.exists() and json.loads(path.read_text()) != plan:
        raise TrainingError(f"{folder}: holds another training; expected a new folder; remove it or choose another")
    if not path.exists():
        carry_over(continue_from, first) if continue_from else build(first, seed=seed)
        write_whole(path, json.dumps(plan, indent=1))
    return first


def train_stage(recipe, data, folder):
    """One stage: the recipe's model trained on drawn rows, saved to `folder` beside its log."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vlm = load(recipe.model, device=device, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    attention = choose_attention(device).name
    pack = collate if attention == PADDED else collate_packed  # a mask over 256 rows would cost more than padding
    training = begin(
        prepare(vlm, recipe),
        MicroBatches(data, vlm.processor, recipe, plan_run(len(data), recipe)[0], collate=pack),
        loss_fn=cross_entropy,
        device=device,
        mixed=mixed_precision(device),
        make_optimizer=muon_and_adamw,
    )
    set_seed(recipe.seed)
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        training.load(Path(checkpoint))
    say = partial(say_pace, training, folder, first=training.step)
    with use_attention(training.model, attention):
        follow(training, folder, stop=say)
    save_released(VLM(training.model.cpu(), vlm.processor, vlm.config, vlm.folder), folder)


def say_pace(training, folder, *, first):
    """Print loss and seconds a step at the first step, the 20th and every 250th; `first`: steps done before."""
    done = training.step - first
    if done in (1, 20) or training.step % 250 == 0:
        last = read_steps(folder / LOG_FILE)[-1]
        pace = last["seconds"] / done
        print(f"step {training.step} of {training.steps}: loss {last['loss']:.3f}, {pace:.3f} s a step", flush=True)


def muon_and_adamw(model, recipe):
    """Muon for the matrices inside the layers, AdamW for the rest; Muon's updates are scaled to the size of AdamW's.

    Tried on 250 steps of reading practice (256 rows each): loss 1.66; AdamW alone needed 450 for it, at any rate.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    inner = [value for name, value in trained if value.ndim == 2 and "layer" in name]
    chosen = set(map(id, inner))
    rest = [value for _, value in trained if id(value) not in chosen]
    rate = recipe.learning_rate
    adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, recipe.adam_beta2), weight_decay=0.0, fused=True)
    return TwoOptimizers(StackedMuon(inner, lr=rate, weight_decay=recipe.weight_decay), adamw)


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

    def state_dict(self):
        """Of both, in order."""
        return {"both": [optimizer.state_dict() for optimizer in self.both]}

    def load_state_dict(self, state_dict):
        """Of both; their groups become this one's again."""
        for optimizer, state in zip(self.both, state_dict["both"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = self.both[0].param_groups + self.both[1].param_groups


def _summarise(log):
    """Steps, seconds and the closing loss; a step that was done twice after an interruption counts once."""
    lines = list({line["step"]: line for line in map(json.loads, log.read_text().splitlines())}.values())
    clock = [line["seconds"] for line in lines]  # starts anew when a training goes on
    ends = [earlier for earlier, later in zip(clock, clock[1:], strict=False) if later < earlier]
    losses = [line["loss"] for line in lines[-50:]]
    return {
        "steps": len(lines),
        "seconds": round(sum(ends) + clock[-1], 1),
        "loss_last_50_steps": round(sum(losses) / len(losses), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="runs/nano")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and prepare rows")
    parser.add_argument("--continue-from", type=Path, help="folder of a trained nano; default: random weights")
    parser.add_argument("--steps", type=int, default=4000, help="of a training that continues, 256 rows each")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="of a training that continues")
    options = parser.parse_args()
    chosen = {"workers": options.workers, "continue_from": options.continue_from}
    if options.continue_from:
        chosen["stages"] = (Stage("all", PARTS, TASK_SHARES, options.steps, {"learning_rate": options.learning_rate}),)
    print(train_nano(options.to, **chosen))


if __name__ == "__main__":
    main()
