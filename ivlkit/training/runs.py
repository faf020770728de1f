"""Runs: training in a child process of its own, described by one `run.yaml`, followed from a notebook or a shell.

The same recipe and data always get the same folder, so running a cell again attaches to the run instead of training
twice. What torch is needed for is imported where it is used: a run is described and found again at once.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from ..data.datasets.mixture import TRAIN, read_meta
from ..data.datasets.opening import open_data
from ..data.files import flush, write_whole
from ..errors import RecipeError, TrainingError
from ..hardware import give_back_gpu_memory, package_version
from ..models.families import find_model
from . import functions
from .engine.distributed import earlier_settlings, find_missing, visible_cards
from .recipes import overfitting
from .recipes import recipe as named_recipe
from .run import ROWS_FILE, RUNS_FOLDER, VALIDATION, VALIDATION_ROWS_FILE, Run, alone, children, rewrite

TRACKERS = ("tensorboard", "wandb", "trackio")
METRICS = "ivlkit.evaluation.metrics:METRICS"  # found by name, as the child finds one: evaluation imports training
# of run.yaml: neither recipe nor data
BESIDE_SPEC = ("versions", "model_fingerprint", "report_to", "skip_unusable", "skipped")


def train(
    recipe, data, *, validation=None, metric=None, folder=None, overfit=None, report_to=None, skip_unusable=False
):
    """Train in a child process and return at once: `run.wait()`, `run.stop()`, `run.history`, `run.load()`.

    If this recipe was already trained on this data, the finished or running run is attached to; a stopped or failed one
    goes on from its last checkpoint.

    Args:
        recipe: a `Recipe` or its name.
        data: what `open_data` gives, or a path.
        validation: the same, of rows apart: every `eval_steps` their loss and answers to `eval_samples` of them, and
            the best weights are the run's final ones. Of a meta file its entries whose split is "validation", if there
            are some. Default: those of the data's own meta file.
        metric: a function of (reply, truth) that gives a number, higher for better, to choose the best by in place of
            the loss, where at least 64 rows are answered (`eval_samples`); of a module, since another process calls it,
            or its name: "anls" of `ivlkit.evaluation.metrics.METRICS`, "metrics_of_mine:score".
        folder: default `runs/<recipe>-<hash of recipe and data>`; named, it goes on with data that have moved since.
        overfit: so many rows of the data, learned by heart as a test of labels, template and learning rate: the run's
            notices say how many of them it answers at its end.
        report_to: "tensorboard", "wandb" or "trackio": a tracker that gets the numbers of the log too.
        skip_unusable: a row that can't be used is masked: it keeps its place and weighs nothing, `run.skipped` lists
            it. A run that such a row has ended goes on from its checkpoint with it. Otherwise it ends the run.
    Raises: RecipeError, DataError before anything starts.
    """
    beside = {"overfit": overfit, "report_to": report_to, "skip_unusable": skip_unusable}
    run = describe(recipe, data, validation=validation, metric=metric, folder=folder, here=True, **beside)
    if run.state not in ("running", "finished"):
        with alone(run.folder):
            if run.state not in ("running", "finished"):  # another process may have started it meanwhile
                _start(run)
    return run


def few_rows(recipe, data, rows):
    """(the recipe that learns them by heart, rows spread over the data)."""
    recipe = named_recipe(recipe)
    data = open_data(data)
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise RecipeError(f"overfit={rows!r}; expected a number of rows, such as 8")
    rows = min(rows, len(data))
    return overfitting(recipe, rows), data.select(np.linspace(0, len(data) - 1, rows).round().astype(int))


def describe(
    recipe,
    data,
    *,
    validation=None,
    metric=None,
    folder=None,
    overfit=None,
    report_to=None,
    skip_unusable=False,
    here=False,
):
    """Check and write a run as `train` does, and start nothing: for a launcher, on hosts that share the folder.

    Args: here: whether this machine is the one that has to have the GPUs.
    """
    if overfit is not None:
        recipe, data = few_rows(recipe, data, overfit)
        validation = data
    recipe = named_recipe(recipe)
    data = open_data(data)
    validation = validation_of(data, validation)
    if isinstance(metric, str):
        metric = functions.choose(functions.find_function(METRICS), metric, "metric")
    _check(recipe, data, validation, metric, report_to)
    recipe = _portable(recipe)
    described = {"data": data, "validation": validation, "metric": metric}
    settled = _settle(recipe, folder, **described)
    run_folder, _ = _identify(settled, folder, **described)
    if here and not (run_folder / "final").exists():
        _check_machine(settled, began_in=None if recipe.gpus == settled.gpus else run_folder)
    run = write_run(settled, data, folder, validation=validation, metric=metric)
    beside = {"report_to": report_to, "skip_unusable": skip_unusable}
    if any(run.spec.get(name) != value and (value or name in run.spec) for name, value in beside.items()):
        rewrite(run, **beside)
    return run


def _portable(recipe):
    """The recipe with a loss and an order of one's own named as another process finds them."""
    if recipe.loss == "cross_entropy" and recipe.order == "shuffled":  # torch is not needed to know these
        return recipe
    from .loop.loss import LOSSES
    from .loop.schedule import ORDERS

    loss = functions.portable_name(LOSSES, recipe.loss, "loss")
    return replace(recipe, loss=loss, order=functions.portable_name(ORDERS, recipe.order, "order"))


def _settle(recipe, folder, **described):
    """The recipe with the number of GPUs that its run began with, if there is one; else with this machine's."""
    settlings = earlier_settlings(recipe)
    for one in settlings if recipe.gpus is None else ():
        path, spec = _identify(one, folder, **described)
        if (path / "run.yaml").exists() and _unplaced(_own_part(path)) == _unplaced(spec):
            return one
    return settlings[0]


def _identify(recipe, folder, *, data, validation, metric):
    """(folder of the run, what run.yaml says of its recipe and data)."""
    spec = {"recipe": recipe.to_dict(), "data": _describe(data)}
    own = {name: what for what in ("loss", "order") if ":" in (name := getattr(recipe, what))}
    if own:
        spec["functions"] = {name: functions.source_digest(name, what) for name, what in own.items()}
    if validation is not None:
        spec["validation"] = _describe(validation, VALIDATION_ROWS_FILE)
    if metric is not None:
        spec["metric"] = functions.function_name(metric)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return Path(folder) if folder else RUNS_FOLDER / f"{recipe.name}-{digest}", spec


def _own_part(folder):
    """Of run.yaml what decides the run: its recipe and its data."""
    existing = Run(folder).spec
    return {key: existing[key] for key in existing if key not in BESIDE_SPEC}


def _unplaced(spec):
    """The same wherever its data lie: their fingerprint tells them apart."""
    parts = {part: spec[part] | {"path": None, "root": None} for part in ("data", VALIDATION) if part in spec}
    return spec | parts


def validation_of(data, given=None):
    """Rows apart: those that are given, of a meta file's path its validation split, if it has one; else that of the
    meta file whose training split is trained on, or None.
    """
    if given:
        found = open_data(given)
        return found if found is given else validation_of(found) or found
    if data.path.suffix != ".json" or data.part != TRAIN or data.selection is not None:
        return None
    has_one = any(source.split == VALIDATION for source in read_meta(data.path))
    return open_data(data.path, seed=data.seed, split=VALIDATION) if has_one else None


def write_run(recipe, data, folder=None, *, validation=None, metric=None):
    """Create the run's folder with run.yaml, or find the one of the same recipe and data."""
    folder, spec = _identify(recipe, folder, data=data, validation=validation, metric=metric)
    weights = _model_fingerprint(recipe)
    if (folder / "run.yaml").exists():
        own = _own_part(folder)
        if _unplaced(own) != _unplaced(spec):
            raise RecipeError(f"{folder}: holds a run of another recipe or other data; choose another folder")
        if Run(folder).spec.get("model_fingerprint", weights) != weights:
            raise RecipeError(
                f"{folder}: holds a run that began with other weights than those that are in {recipe.model} now; "
                "choose another folder, or delete that run"
            )
        if own != spec:  # the data have moved
            rewrite(Run(folder), **spec)
        return Run(folder)
    try:
        _write_new(folder, spec | {"model_fingerprint": weights}, data, validation)
    except OSError as error:
        raise TrainingError(
            f"{folder}: can't be written ({error.strerror}); expected a folder for the run; choose another"
        ) from error
    return Run(folder)


def _model_fingerprint(recipe):
    """Tells the weights apart that a run begins with, whatever their folder is called."""
    from ..models.layouts.safetensors_files import fingerprint
    from ..models.load import final_folder

    return fingerprint(final_folder(find_model(recipe.model)).glob("*.safetensors"))


def _write_new(folder, spec, data, validation):
    folder.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "transformers", "peft", "ivlkit")
    versions = {name: package_version(name) for name in packages}
    for part, rows_file in ((data, ROWS_FILE), (validation, VALIDATION_ROWS_FILE)):
        if part is not None and part.selection is not None:
            np.save(folder / rows_file, np.asarray(part.selection, np.int64))
            flush(folder / rows_file)
    write_whole(folder / "run.yaml", yaml.safe_dump(spec | {"versions": versions}, sort_keys=False))


def _describe(data, rows_file=ROWS_FILE):
    """What a child needs to open the same data again; the rows of a part of it lie beside run.yaml."""
    spec = {
        "path": str(data.path.resolve()),
        "root": str(data.sources[0].root.resolve()) if data.path.suffix != ".json" else None,
        "seed": data.seed,
        "rows": len(data),
        "fingerprint": data.fingerprint,
    }
    part = {} if data.part == TRAIN else {"split": data.part}
    return spec | part | ({} if data.selection is None else {"selection": rows_file})


def _check(recipe, data, validation, metric, tracker):
    """What would fail in the child fails here, and a tracker that is not there, which Accelerate would leave out."""
    if validation is None and (metric is not None or recipe.patience is not None):
        raise RecipeError(f"{recipe.name}: a metric or patience, and no validation data; give validation=…")
    for source in data.sources if recipe.keep_features else ():
        if source.augment_jpeg:
            raise RecipeError(
                f"{recipe.name}: keep_features={recipe.keep_features} with data_augment of {source.name}, which draws "
                "other pixels every epoch; expected the same ones; set keep_features=0, or data_augment to false"
            )
    if not recipe.packing:
        assert recipe.accumulation >= 1
    find_model(recipe.model)
    if tracker not in (None, *TRACKERS):
        raise RecipeError(f"report_to={tracker!r}; expected one of {', '.join(TRACKERS)}")
    if tracker and importlib.util.find_spec(tracker) is None:
        raise RecipeError(f"report_to={tracker!r}: is not installed; pip install {tracker}")


def _check_machine(recipe, *, began_in=None):
    """Raise RecipeError if this machine lacks the GPUs (without any: the CPU cores) that the run's processes need.

    Args: began_in: the folder of an earlier run, if the number of GPUs is its own.
    """
    import torch

    found = torch.cuda.device_count()
    most, what = (found, "torch sees") if found else (os.cpu_count(), "torch sees none, and CPU cores are")
    if recipe.gpus > most:
        if began_in:
            raise RecipeError(
                f"{began_in}: its run began with gpus={recipe.gpus}, but {what} {most} here; go on where there are "
                f"{recipe.gpus}, or start a run of its own with gpus={most}"
            )
        raise RecipeError(f"{recipe.name}: gpus={recipe.gpus} but {what} {most} here; set gpus={most}")
    missing = find_missing(recipe)
    if missing:
        raise RecipeError(missing)


def _start(run):
    command = [sys.executable, "-m", "ivlkit", "train", run.spec_path]
    if run.recipe.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.recipe.gpus}"]
        command[1:1] = launcher
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    cards = visible_cards(run.recipe.processes)
    if cards:
        environment["CUDA_VISIBLE_DEVICES"] = cards
    (run.folder / "error.txt").unlink(missing_ok=True)
    give_back_gpu_memory()  # the run's now
    with open(run.folder / "output.txt", "ab") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, **streams, start_new_session=True, env=environment)
    children[run.folder.resolve()] = child
    write_whole(run.folder / "pid", str(child.pid))


def execute(folder):
    """Train the run of this folder in this process: what the child does. Resumes from its last checkpoint.

    Raises: whatever ended it, after it was written into error.txt, with the planner's advice where memory ran out.
    """
    from .estimate.planner import out_of_memory
    from .loop import execute as child

    child.execute(folder, advise=out_of_memory)
