"""How the embedded model is made: curriculum → training → the folder that ships. `ivlkit nano train`."""

import json
import shutil
from pathlib import Path

from ..data.mixture import open_data
from ..errors import TrainingError
from ..models.export import export
from ..training.recipes import Recipe
from ..training.runs import train
from .build import build
from .curriculum import write_curriculum

ROWS = 120_000
RECIPE = {
    "vision": "full",
    "projector": "full",
    "language": "full",
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "warmup_ratio": 0.05,
    "epochs": 3.84,  # 3,600 steps
    "total_batch": 128,
    "per_device_batch": 128,
    "packing": False,
    "max_seq_length": 512,
    "gradient_checkpointing": "none",
    "save_steps": 1000,
    "hardware": "one GPU, minutes",
}


def train_nano(folder, *, rows=ROWS, seed=0, workers=2, **changes):
    """Train nano from random weights on its curriculum and export it to `folder/exported`.

    Args: rows: of the curriculum; workers: processes that draw and prepare rows; changes: to the recipe.
    Returns: the exported folder.
    """
    folder = Path(folder)
    start = folder / "random"
    if start.exists():
        raise TrainingError(f"{folder}: exists already; expected a new folder; remove it or choose another")
    build(start, seed=seed)
    path = write_curriculum(folder / "curriculum", rows=rows, seed=seed, workers=workers)
    recipe = Recipe(name="nano-pretrain", model=str(start), workers=workers, seed=seed, **RECIPE | changes)
    run = train(recipe, open_data(path), folder=folder / "run").wait()
    exported = export(run, folder / "exported")
    history = run.history
    summary = {"rows": rows, "seed": seed, "steps": history[-1]["steps"], "seconds": history[-1]["seconds"]}
    losses = [line["loss"] for line in history[-50:]]
    (folder / "summary.json").write_text(
        json.dumps(summary | {"loss_last_50_steps": sum(losses) / len(losses)}, indent=1)
    )
    shutil.rmtree(folder / "curriculum")
    return exported
