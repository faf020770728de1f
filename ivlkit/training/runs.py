"""Runs: training in a child process of its own, described by one `run.yaml`, followed from a notebook or a shell.

A run's folder holds run.yaml (recipe, data, versions, the model's fingerprint), log.jsonl (a line a step), output.txt
(what the child printed), checkpoint-N/ while it trains and `final/` when it is done. The same recipe and data always
get the same folder, so running a cell again attaches to the run instead of training twice. What torch is needed for
is imported where it is used: a run is found and shown again at once.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import yaml
from tqdm import tqdm

from ..data.datasets.mixture import TRAIN, Data, read_meta
from ..data.datasets.opening import open_data
from ..data.files import appearing, flush, write_whole
from ..errors import RecipeError, TrainingError
from ..models.families import FAMILIES, find_model
from ..views import shown
from .engine.distributed import (
    earlier_settlings,
    find_missing,
    from_first_rank,
    is_sharded,
    join,
    loading,
    rank,
    visible_cards,
)
from .log import append_line, read_steps
from .recipes import FEW_UPDATES, OVERFIT, RELEASED, Recipe, few_updates, overfitting
from .recipes import recipe as named_recipe

LOG_FILE = "log.jsonl"
NOTICES_FILE = "notices.txt"  # what happened to it that should be known
PLAN_FILE = "plan.sha256"
SAMPLES_FILE = "samples.jsonl"
ROWS_FILE = "rows.npy"  # numbers of the rows of a part of a data set
VALIDATION_ROWS_FILE = "validation_rows.npy"
BESIDE_SPEC = ("versions", "model_fingerprint")  # of run.yaml: neither recipe nor data
FILES = {  # beside run.yaml, checkpoints and final/
    *(LOG_FILE, NOTICES_FILE, PLAN_FILE, SAMPLES_FILE, ROWS_FILE, VALIDATION_ROWS_FILE),
    *("validation.jsonl", "error.txt", "output.txt", "pid", "start.lock"),
}
FOLDERS = r"(final|(checkpoint|best)-\d+)(\..*)?"  # a damaged one, or one half written, has an ending
VALIDATION = "validation"  # the split of a meta file
RUNS_FOLDER = Path("runs")
_children = {}  # folder → Popen of runs this process started


class Run:
    """A run on disk. It may be running, finished, stopped or failed; whoever started it may be gone."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder / "run.yaml").exists():
            raise TrainingError(f"{self.folder}: no run.yaml; expected the folder of a run")

    @property
    def spec(self):
        """The contents of run.yaml."""
        return yaml.safe_load((self.folder / "run.yaml").read_text())

    @property
    def recipe(self):
        """The `Recipe`."""
        return Recipe.from_dict(self.spec["recipe"])

    @property
    def state(self):
        """ "running", "finished", "failed" or "stopped"."""
        if self._process() is not None:
            return "running"
        if (self.folder / "final").exists():
            return "finished"
        return "failed" if self._failure() else "stopped"

    @property
    def history(self):
        """The log so far: a dict a step with step, steps, epoch, loss, learning_rate, grad_norm, tokens, memory_gib and
        seconds.

        Tokens (without padding) and seconds count from the latest start of its process; memory_gib is the most that was
        in use of a GPU, or what the process holds in RAM.
        """
        return read_steps(self.folder / LOG_FILE)

    @property
    def samples(self):
        """A few training rows, each token predicted from the truth before it, at some steps so far: no free answers.

        Dicts with step and answers, each a dict of where, question, truth, reply and right; see
        `training.loop.samples.PredictSamples`. None are written by runs with validation, whose rows are answered freely
        (`validation`), compiled ones, and those on several GPUs.
        """
        return read_steps(self.folder / SAMPLES_FILE)

    @property
    def validation(self):
        """The validations so far, with free (greedy) answers to rows that are not trained on.

        Dicts with step, loss, score, seconds and answers; see `training.loop.validation.Validate`.
        """
        return read_steps(self.folder / "validation.jsonl")

    @property
    def notices(self):
        """What happened to it that should be known: damaged checkpoints that were skipped, a line each."""
        path = self.folder / NOTICES_FILE
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def error(self):
        """Why it failed, or None."""
        return self._failure() if self.state == "failed" else None

    def _failure(self):
        """What the child wrote, or how it ended without a word; "" if nothing is known."""
        path = self.folder / "error.txt"
        if path.exists() and path.read_text():  # it is empty where the disk was full
            return path.read_text()
        child = _children.get(self.folder.resolve())
        code = child.poll() if child else None
        if code in (None, 0, -signal.SIGTERM):
            return ""
        return f"its process ended with code {code}; see {self.folder / 'output.txt'}"

    def wait(self):
        """Follow the run to its end with a progress bar; interrupting this does not touch the run.

        Raises: TrainingError with the reason if it failed.
        """
        said = 0
        with tqdm(desc=self.folder.name, unit="step") as bar:
            while True:
                running = self.state == "running"
                for notice in self.notices[said:]:
                    bar.write(notice, file=sys.stderr)
                    said += 1
                history = self.history
                if history:
                    bar.total = history[-1]["steps"]
                    bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
                    bar.update(history[-1]["step"] - bar.n)
                if not running:
                    break
                time.sleep(0.3)
        self.raise_if_failed()
        return self

    def raise_if_failed(self):
        """Raise TrainingError with the reason if the run failed."""
        if self.state == "failed":
            raise TrainingError(f"{self.folder}: {self.error}")

    def stop(self, *, timeout_seconds=600):
        """Save a checkpoint and end; training the same recipe on the same data goes on from it."""
        process, end = self.request_stop(), time.monotonic() + timeout_seconds
        while self._process() is not None:  # one that ended but whose parent has not noticed counts as ended
            if time.monotonic() > end:
                raise TrainingError(
                    f"{self.folder}: still busy after {timeout_seconds} s; its process is {process.pid}"
                )
            time.sleep(0.1)
        return self

    def request_stop(self):
        """Ask the run to save a checkpoint and end, and return at once: its process, or None if there is none."""
        process = self._process()
        for each in self._ranks(process) if process else ():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        return process

    def _ranks(self, process):
        """The processes that train: a launcher that is asked itself kills them after 30 s, saved or not."""
        children = process.children() if self.recipe.processes > 1 else []
        return [child for child in children if "run.yaml" in " ".join(child.cmdline())] or [process]

    def delete(self):
        """Remove the run. What else lies in its folder stays, and then the folder does too.

        Raises: TrainingError while it is running.
        """
        with _alone(self.folder):  # nobody starts it meanwhile
            if self.state == "running":
                raise TrainingError(f"{self.folder}: running; expected a run that has ended; stop it first")
            (self.folder / "run.yaml").unlink()  # first: what is left of an interrupted removal is no run
            for path in self.folder.iterdir():
                if path.is_dir() and re.fullmatch(FOLDERS, path.name):
                    shutil.rmtree(path)
                elif path.name in FILES:
                    path.unlink()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    @shown("run:watch")
    def watch(self):
        """Show the run until it ends: loss, learning rate, tokens a second, memory, time left, and a stop button.

        `run.watch()` leaves the notebook free and stands still while another cell computes. `await run.watch()` keeps
        the cell until the run has ended; its button then needs ipykernel 7.4, and with an older one: interrupt the cell
        and call `stop`. Interrupting, closing the notebook or losing its kernel does not touch the run:
        `ivlkit.attach()` finds it again. What stays is a picture.

        Raises: TrainingError with the reason if it failed, when awaited.
        """

    def load(self, **options):
        """The trained model, ready to answer: `ivlkit.load` on this run."""
        if self.state != "finished":
            raise TrainingError(
                f"{self.folder}: {self.state}, not finished; expected a finished run; wait for it first"
            )
        from ..models.load import load

        return load(self.folder, **options)

    def _process(self):
        """The living child, or None."""
        child = _children.get(self.folder.resolve())
        try:
            if child is not None and child.poll() is None:  # its command line is empty for a moment after the start
                return psutil.Process(child.pid)
            # One that has ended here may have been followed by another that was started elsewhere.
            process = psutil.Process(int((self.folder / "pid").read_text()))
            is_ours = _spec_path(self.folder) in process.cmdline()  # another run may have got the number
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def __repr__(self):
        history = self.history
        at = (
            f", step {history[-1]['step']} of {history[-1]['steps']}, loss {history[-1]['loss']:.4f}" if history else ""
        )
        return f"Run({self.folder}: {self.state}{at})"

    _repr_html_ = shown("run:run_html")


def train(recipe, data, *, validation=None, metric=None, folder=None, overfit=None):
    """Train in a child process and return at once: `run.wait()`, `run.stop()`, `run.history`, `run.load()`.

    If this recipe was already trained on this data, the finished or running run is attached to; a stopped or failed one
    goes on from its last checkpoint.

    Args:
        recipe: a `Recipe` or its name.
        data: what `open_data` gives, or a path.
        validation: the same, of rows apart: every `eval_steps` their loss and answers to `eval_samples` of them, and
            the best weights are the run's final ones. Default: the entries of a meta file whose split is "validation".
        metric: a function of (reply, truth) that gives a number, higher for better, to choose the best by in place of
            the loss, where at least 64 rows are answered (`eval_samples`); of a module, since another process calls it:
            `ivlkit.evaluation.metrics.exact_match`.
        folder: default `runs/<recipe>-<hash of recipe and data>`.
        overfit: so many rows of the data, learned by heart as a test of labels, template and learning rate: the run's
            notices say how many of them it answers at its end.
    Raises: RecipeError, DataError before anything starts.
    """
    if overfit is not None:
        recipe, data = _few_rows(recipe, data, overfit)
        validation = data
    run = describe(recipe, data, validation=validation, metric=metric, folder=folder, here=True)
    if run.state not in ("running", "finished"):
        with _alone(run.folder):
            if run.state not in ("running", "finished"):  # another process may have started it meanwhile
                _start(run)
    return run


def _few_rows(recipe, data, rows):
    """(the recipe that learns them by heart, rows spread over the data)."""
    recipe = recipe if isinstance(recipe, Recipe) else named_recipe(recipe)
    data = data if isinstance(data, Data) else open_data(data)
    if not isinstance(rows, int) or rows < 1:
        raise RecipeError(f"overfit={rows!r}; expected a number of rows, such as 8")
    rows = min(rows, len(data))
    return overfitting(recipe, rows), data.select(np.linspace(0, len(data) - 1, rows).round().astype(int))


@contextmanager
def _alone(folder):
    """One process at a time looks whether a run goes on, and starts it: two would write over each other."""
    with open(folder / "start.lock", "w") as file:
        with suppress(OSError):  # a network's file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def describe(recipe, data, *, validation=None, metric=None, folder=None, here=False):
    """Check and write a run as `train` does, and start nothing: for a launcher, on hosts that share the folder.

    Args: here: whether this machine is the one that has to have the GPUs.
    """
    recipe = recipe if isinstance(recipe, Recipe) else named_recipe(recipe)
    data = data if isinstance(data, Data) else open_data(data)
    validation = open_data(validation) if isinstance(validation, (str, Path)) else validation or _validation_of(data)
    _check(recipe, validation, metric)
    described = {"data": data, "validation": validation, "metric": metric}
    settled = _settle(recipe, folder, **described)
    run_folder, _ = _identify(settled, folder, **described)
    if here and not (run_folder / "final").exists():
        _check_machine(settled, began_in=None if recipe.gpus == settled.gpus else run_folder)
    return write_run(settled, data, folder, validation=validation, metric=metric)


def _settle(recipe, folder, **described):
    """The recipe with the number of GPUs that its run began with, if there is one; else with this machine's."""
    settlings = earlier_settlings(recipe)
    for one in settlings if recipe.gpus is None else ():
        path, spec = _identify(one, folder, **described)
        if (path / "run.yaml").exists() and _own_part(path) == spec:
            return one
    return settlings[0]


def _identify(recipe, folder, *, data, validation, metric):
    """(folder of the run, what run.yaml says of its recipe and data)."""
    spec = {"recipe": asdict(recipe), "data": _describe(data)}
    if validation is not None:
        spec["validation"] = _describe(validation, VALIDATION_ROWS_FILE)
    if metric is not None:
        from .loop.validation import metric_name

        spec["metric"] = metric_name(metric)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return Path(folder) if folder else RUNS_FOLDER / f"{recipe.name}-{digest}", spec


def _own_part(folder):
    """Of run.yaml what decides the run: its recipe and its data."""
    existing = yaml.safe_load((folder / "run.yaml").read_text())
    return {key: existing[key] for key in existing if key not in BESIDE_SPEC}


def _validation_of(data):
    """The validation split of a meta file whose training split is trained on, or None."""
    if data.path.suffix != ".json" or data.part != TRAIN or data.selection is not None:
        return None
    has_one = any(source.split == VALIDATION for source in read_meta(data.path))
    return open_data(data.path, seed=data.seed, split=VALIDATION) if has_one else None


def write_run(recipe, data, folder=None, *, validation=None, metric=None):
    """Create the run's folder with run.yaml, or find the one of the same recipe and data."""
    folder, spec = _identify(recipe, folder, data=data, validation=validation, metric=metric)
    weights = _model_fingerprint(recipe)
    if (folder / "run.yaml").exists():
        if _own_part(folder) != spec:
            raise RecipeError(f"{folder}: holds a run of another recipe or other data; choose another folder")
        if Run(folder).spec.get("model_fingerprint", weights) != weights:
            raise RecipeError(
                f"{folder}: holds a run that began with other weights than those that are in {recipe.model} now; "
                "choose another folder, or delete that run"
            )
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


def attach(folder=None):
    """The run in `folder`, or the latest of `runs()`."""
    if folder is not None:
        return Run(folder)
    found = runs()
    if not found:
        raise TrainingError(f"no run under {RUNS_FOLDER.resolve()}; expected one; start it with ivlkit.train")
    return found[-1]


def runs(folder=None):
    """All runs under `folder`, the one that started last at the end; default `runs/` here, and the one beside this
    folder, where the notebooks keep theirs."""
    roots = [Path(folder)] if folder else [RUNS_FOLDER, ".." / RUNS_FOLDER]
    paths = (path for root in roots for path in root.rglob("run.yaml"))
    return [Run(path.parent) for path in sorted(paths, key=_last_start)]


def _last_start(path):
    """Seconds: when the run of this run.yaml was described, or its process last started."""
    return max(file.stat().st_mtime for file in (path, path.with_name("pid")) if file.exists())


def execute(folder):
    """Train the run of this folder in this process: what the child does. Resumes from its last checkpoint."""
    run = Run(folder)
    folder = run.folder
    if rank() == 0:
        _check_free(run)
        (folder / "error.txt").unlink(missing_ok=True)
    try:
        _execute(run)
    except Exception as error:
        with suppress(OSError), open(folder / "error.txt", "x") as file:  # the disk may be full: its exit code tells;
            file.write(_reason(error, folder) + _advice(error, folder))  # or another rank failed first: that is why
        raise


def _check_free(run):
    """Raise TrainingError if another process trains this run: both would write into its folder."""
    process, this = run._process(), psutil.Process()
    if process is not None and process not in (this, *this.parents()):
        raise TrainingError(
            f"{run.folder}: is trained already, by process {process.pid}; expected one that has ended; follow it with "
            "ivlkit.attach, or stop it first"
        )


def _reason(error, folder):
    """The error in a line; of one that a worker process raised, its own last line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; make room and train again: it goes on from its last checkpoint"
    text = f"{type(error).__name__}: {error}"
    return text.strip().splitlines()[-1] if "Original Traceback" in text else text


def _advice(error, folder):
    """Where memory ran out: what the planner says."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return ""
    from .estimate.planner import out_of_memory

    return "\n" + out_of_memory(Run(folder).recipe)


def _execute(run):
    from ..models.modeling.attention import use_attention
    from .loop.samples import PredictSamples
    from .loop.trainer import StopOnSignal
    from .tuning import summary_text

    recipe, stop = run.recipe, StopOnSignal()
    signal.signal(signal.SIGTERM, lambda *_: setattr(stop, "requested", True))
    device = join(recipe)
    checkpoint = _begun(run)
    trainer, vlm, attention = _prepare(run, device, stop)
    plan = trainer.train_dataset.batches
    if trainer.is_world_process_zero():
        _check_plan(run, plan, goes_on=checkpoint is not None)
        print(summary_text(trainer.model, recipe), plan, attention, sep="\n", flush=True)
        if recipe.name in RELEASED and plan.steps < FEW_UPDATES and not checkpoint:
            _notice(run.folder, few_updates(plan.steps))
    validate = _add_validation(run, trainer, vlm, packed=attention.packs)
    if not validate and not recipe.compile:  # whose layers would be compiled again without gradients
        trainer.add_callback(PredictSamples(trainer, run.folder / SAMPLES_FILE))
    with use_attention(trainer.model, attention.name):
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < plan.steps and not (validate and validate.gave_up):
        if trainer.is_world_process_zero():
            print(f"stopped at step {trainer.state.global_step} of {plan.steps}; train again to go on")
    else:
        best = from_first_rank(partial(_best, run, trainer)) if validate else None
        _write_final(run, trainer, vlm.processor, best=best)
        if recipe.name.endswith(OVERFIT) and trainer.is_world_process_zero():
            _notice(run.folder, _say_overfit(run))
    trainer.accelerator.wait_for_everyone()  # a rank that leaves early takes the one that writes with it
    trainer.accelerator.end_training()


def _begun(run):
    """The checkpoint that this run goes on from, or None."""
    checkpoint = from_first_rank(partial(last_checkpoint, run.folder))
    if checkpoint and "packing" not in run.spec["recipe"]:
        raise TrainingError(
            f"{run.folder}: begun by an earlier ivlkit, which cut batches otherwise; expected its whole plan; remove "
            "its checkpoints, or train in another folder"
        )
    return checkpoint


def _prepare(run, device, stop):
    """(trainer, the model that it trains as a `VLM` with the run's tiles, `AttentionChoice`)."""
    from ..models.load import default_dtype
    from .loop.build import build_trainer
    from .loop.trainer import LogToFile

    recipe, data, dtype = run.recipe, _open_again(run), default_dtype(device)
    callbacks = [LogToFile(run.folder / LOG_FILE, epochs=recipe.epochs), stop]
    with loading(recipe, dtype):
        vlm = _load_base(recipe, device, dtype)
        vlm = replace(vlm, processor=vlm.processor.with_tiles(recipe.max_tiles or vlm.processor.max_tiles))
        _say_notes(data, vlm.processor, recipe)
        trainer, attention = build_trainer(vlm, vlm.processor, recipe, data, run.folder, callbacks=callbacks)
    _name_base(trainer.model, recipe)
    return trainer, vlm, attention


def _load_base(recipe, device, dtype):
    """The recipe's model on this device: float32 where its weights train, unless DeepSpeed keeps masters of its own."""
    import torch

    from ..models.load import final_folder, load

    dtype = torch.float32 if recipe.full_precision and not is_sharded(recipe) else dtype
    folder = final_folder(find_model(recipe.model))
    if is_sharded(recipe) and recipe.zero_stage == 3 and (folder / "adapter_config.json").exists():
        raise TrainingError(
            f"{folder}: an adapter to go on from under ZeRO-3, which divides weights before it could be merged; "
            f"ivlkit export {recipe.model} --to merged, then train on that"
        )
    vlm = load(
        recipe.model,
        device=device,
        dtype=dtype,
        quantize="4bit" if recipe.language == "qlora" else None,
        tower_device="cpu" if recipe.vision_offload else None,
    )
    vlm.merge_adapter()  # going on from a LoRA run: its adapter becomes part of the base, never a second layer
    return vlm


def _say_notes(data, processor, recipe, *, progress=True):
    """Broken rows are errors; notes of the others are printed, by rank 0, which looks."""
    from .loop.schedule import check_rows

    for where, note in from_first_rank(partial(check_rows, data, processor, recipe, progress=progress)):
        if rank() == 0:
            print(f"{where}: {note}")


def _name_base(model, recipe):
    """The adapter's files say which model they belong to, by the recipe's name for it."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = recipe.model


def _add_validation(run, trainer, vlm, *, packed):
    """The run's `Validate`, or None for a run without validation data."""
    from .loop.build import plan_validation
    from .loop.validation import Validate, find_metric

    if VALIDATION not in run.spec:
        return None
    data, recipe, metric = _open_again(run, VALIDATION), run.recipe, run.spec.get("metric")
    _say_notes(data, vlm.processor, recipe, progress=False)
    dataset = plan_validation(data, vlm.processor, recipe, vlm.model.config, packed=packed)
    validate = Validate(trainer, vlm, dataset, recipe, run.folder, metric=find_metric(metric) if metric else None)
    trainer.add_callback(validate)
    return validate


def _best(run, trainer):
    """The folder of the best weights and their step, said; None if they can't be taken."""
    from .checkpoints import find_damage
    from .loop.validation import find_best

    best, last_step = find_best(run.folder), trainer.state.global_step
    damage = find_damage(best["path"]) if best else "none was kept"
    if damage:
        _notice(run.folder, f"the best weights can't be taken: {damage}; the final ones are those of step {last_step}")
        return None
    score = f"loss {best['loss']:.4f}" + ("" if best["score"] is None else f", score {best['score']:.4f}")
    _notice(
        run.folder,
        f"the final weights are the best, of step {best['step']}: {score} in validation; ended at {last_step}",
    )
    return best


def _say_overfit(run):
    """How many of its rows the run answers at its end, and what it means."""
    from .loop.validation import find_best

    best = find_best(run.folder)
    answers = next(line["answers"] for line in run.validation if not best or line["step"] == best["step"])
    wrong = [answer for answer in answers if not answer["right"]]
    said = f"overfit: {len(answers) - len(wrong)} of {len(answers)} rows are answered with their own truth"
    if not wrong:
        return f"{said}: labels, template and learning rate can teach"
    first = wrong[0]
    return (
        f"{said}; expected all; first {first['where']}: {first['reply']!r}, not {first['truth']!r}; look at its labels "
        "(data.show_tokens), then raise learning_rate"
    )


def _write_final(run, trainer, processor, *, best):
    """`final/` is complete whenever it exists; all ranks help, since a model may be spread over them.

    Args: best: of `_best`, whose files are copied; None: the weights as they are.
    """
    from ..models.load import ORIGIN_FILE

    recipe, writes, final = run.recipe, trainer.is_world_process_zero(), run.folder / "final"
    base = recipe.model if recipe.model in FAMILIES else str(Path(recipe.model).resolve())
    origin = {
        "base": base,
        "template": processor.template.name,
        "system_message": processor.system_message,
        "max_tiles": processor.max_tiles,
        "recipe": recipe.name,
        "step": best["step"] if best else trainer.state.global_step,
    }
    with appearing(final) if writes else nullcontext(final) as aside:
        if best is None:
            trainer.save_model(str(aside), _internal_call=True)
        for path in (*best["path"].glob("*.safetensors"), *best["path"].glob("adapter_config.json")) if best else ():
            if writes:
                shutil.copyfile(path, aside / path.name)
        if writes:
            (aside / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, ensure_ascii=False))


def _open_again(run, part="data"):
    spec = run.spec[part]
    path = Path(spec["path"])
    root = spec["root"] if path.suffix != ".json" else None
    data = open_data(path, root=root, seed=spec["seed"], split=spec.get("split", TRAIN))
    if "selection" in spec:
        data = data.select(np.load(run.folder / spec["selection"], mmap_mode="r", allow_pickle=False))
    if data.fingerprint != spec["fingerprint"]:
        raise TrainingError(f"{path}: changed since this run was described; expected the same rows; start a new run")
    return data


def last_checkpoint(folder):
    """The newest whole checkpoint of a run's folder, or None; damaged ones are taken out of the way, which is said."""
    from .checkpoints import last_whole, tidy

    found, damaged = last_whole(folder)
    for path, damage in damaged.items():
        instead = f"{found.name}, the one before" if found else "the beginning: there is none before it"
        _notice(folder, f"{path.name} is skipped: {damage}; going on from {instead}")
    tidy(folder, damaged)
    return str(found) if found else None


def _notice(folder, text):
    print(text, flush=True)
    append_line(folder / NOTICES_FILE, text)


def _check_plan(run, plan, *, goes_on):
    """A checkpoint's place in the data means something only in the plan that it was made by."""
    path = run.folder / PLAN_FILE
    if goes_on and path.exists() and path.read_text() != plan.digest:
        raise TrainingError(
            f"{run.folder}: the rows are now cut into other batches than when it was begun; expected its own plan (the "
            "same ivlkit, the same pictures); remove its checkpoints, or train in another folder"
        )
    write_whole(path, plan.digest)


def _start(run):
    command = [sys.executable, "-m", "ivlkit", "train", _spec_path(run.folder)]
    if run.recipe.processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={run.recipe.gpus}",
        ]
        command = launcher + command[1:]
    (run.folder / "error.txt").unlink(missing_ok=True)
    cards = visible_cards(run.recipe.processes)
    with open(run.folder / "output.txt", "ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ
            | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
            | ({"CUDA_VISIBLE_DEVICES": cards} if cards else {}),
        )
    _children[run.folder.resolve()] = child
    write_whole(run.folder / "pid", str(child.pid))


def _spec_path(folder):
    """What stands in the command line of a run's process."""
    return str((folder / "run.yaml").resolve())


def _check(recipe, validation, metric):
    """What would fail in the child fails here: batch arithmetic, the model's folder."""
    if validation is None and (metric is not None or recipe.patience is not None):
        raise RecipeError(f"{recipe.name}: a metric or patience, and no validation data; give validation=…")

    if not recipe.packing:
        assert recipe.accumulation >= 1
    find_model(recipe.model)


def _check_machine(recipe, *, began_in=None):
    """One process a GPU; without any GPU one a core.

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


def package_version(package):
    """Version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
