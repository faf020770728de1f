"""A run on disk: its folder, what it says of itself, who trains it. Found and followed without torch.

A run's folder holds run.yaml (recipe, data, versions, the model's fingerprint), log.jsonl (a line a step), output.txt
(what the child printed), checkpoint-N/ while it trains and `final/` when it is done.
"""

import os
import re
import shutil
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import yaml
from filelock import FileLock
from tqdm import tqdm

from ..data.datasets.mixture import TRAIN
from ..data.datasets.opening import open_data
from ..data.files import PART, write_whole
from ..errors import DataError, TrainingError
from ..views import shown
from .log import read_steps
from .recipes import Recipe

LOG_FILE = "log.jsonl"
VALIDATION_FILE = "validation.jsonl"
NOTICES_FILE = "notices.txt"  # what happened to it that should be known
PLAN_FILE = "plan.sha256"
SAMPLES_FILE = "samples.jsonl"
SKIPPED_FILE = "skipped.txt"  # rows that were masked, as often as they were met
LENGTHS_FILE = "lengths.npy"  # tokens and tiles of the rows when it began
ROWS_FILE = "rows.npy"  # numbers of the rows of a part of a data set
VALIDATION_ROWS_FILE = "validation_rows.npy"
FEATURES = "features"  # folder of what a frozen tower made of tiles, while it trains
FILES = {  # beside checkpoints and final/
    *(LOG_FILE, NOTICES_FILE, PLAN_FILE, SAMPLES_FILE, ROWS_FILE, VALIDATION_ROWS_FILE, SKIPPED_FILE, LENGTHS_FILE),
    *(VALIDATION_FILE, "run.yaml", "error.txt", "output.txt", "pid", "start.lock"),
}
FOLDERS = rf"({FEATURES}|final|(checkpoint|best)-\d+)(\..*)?"  # a damaged one, or one half written, has an ending
VALIDATION = "validation"  # the split of a meta file
RUNS_FOLDER = Path("runs")
BEGINNING = "reading the data and the model; the first steps follow"
children = {}  # folder → Popen of runs this process started


class Run:
    """A run on disk. It may be running, finished, stopped or failed; whoever started it may be gone."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder / "run.yaml").exists():
            raise TrainingError(f"{self.folder}: no run.yaml; expected the folder of a run")

    @property
    def spec(self):
        """The contents of run.yaml. Raises: TrainingError where they are damaged or gone."""
        with suppress(OSError, UnicodeError, yaml.YAMLError):
            found = yaml.safe_load((self.folder / "run.yaml").read_text())
            if isinstance(found, dict) and {"recipe", "data", "versions"} <= found.keys():
                return found
        raise TrainingError(
            f"{self.folder / 'run.yaml'}: can't be read as the description of a run; expected it as it was written; "
            "train in another folder"
        )

    @property
    def spec_path(self):
        """run.yaml as it stands in the command line of the run's process."""
        return str((self.folder / "run.yaml").resolve())

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
        `training.loop.samples.Samples`. None are written by runs with validation, whose rows are answered freely
        (`validation`), compiled ones, and those on several GPUs.
        """
        return read_steps(self.folder / SAMPLES_FILE)

    @property
    def validation(self):
        """The validations so far, with free (greedy) answers to rows that are not trained on.

        Dicts with step, loss, score, seconds and answers; see `training.loop.validation.Validate`.
        """
        return read_steps(self.folder / VALIDATION_FILE)

    @property
    def notices(self):
        """What happened to it that should be known: damaged checkpoints that were skipped, a line each."""
        path = self.folder / NOTICES_FILE
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def skipped(self):
        """Rows that can't be used and were masked in their places, with the reason, a line each."""
        path = self.folder / SKIPPED_FILE
        return sorted(set(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []

    @property
    def error(self):
        """Why it failed, or None."""
        return self._failure() if self.state == "failed" else None

    def _failure(self):
        """What the child wrote, or how it ended without a word; "" if nothing is known."""
        path = self.folder / "error.txt"
        if path.exists() and path.read_text():  # it is empty where the disk was full
            return path.read_text()
        child = children.get(self.folder.resolve())
        code = child.poll() if child else None
        if code in (None, 0, -signal.SIGTERM):
            return ""
        return (
            f"its process ended with code {code}; see {self.folder / 'output.txt'}; the same command goes on from its "
            "last checkpoint"
        )

    def wait(self):
        """Follow the run to its end with a progress bar; interrupting this does not touch the run.

        Raises: TrainingError with the reason if it failed.
        """
        written = 0  # notices
        with tqdm(desc=self.folder.name, unit="step") as bar:
            while True:
                running = self.state == "running"
                for notice in self.notices[written:]:
                    bar.write(notice, file=sys.stderr)
                    written += 1
                history = self.history
                if running and not history:
                    bar.set_postfix_str(BEGINNING)
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

        Raises: TrainingError while it is running, or where it is gone.
        """
        Run(self.folder)  # raises where it is gone: a lock would make its folder anew
        with alone(self.folder):  # nobody starts it meanwhile
            if self.state == "running":
                raise TrainingError(f"{self.folder}: running; expected a run that has ended; stop it first")
            (self.folder / "run.yaml").unlink()  # first: what is left of an interrupted removal is no run
            for path in self.folder.iterdir():
                if path.is_dir() and re.fullmatch(FOLDERS, path.name):
                    shutil.rmtree(path)
                elif path.name.removesuffix(PART) in FILES:
                    path.unlink()
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    @shown("run:watch")
    def watch(self):
        """Show the run until it ends: loss, learning rate, tokens a second, memory, time left, and a stop button.

        `run.watch()` leaves the notebook free and stands still while another cell computes. `await run.watch()` keeps
        the cell until the run has ended; its button then needs ipykernel 7.4, and with an older one: interrupt the cell
        and call `stop`. Interrupting, closing the notebook or losing its kernel does not touch the run:
        `ivlkit.attach()` finds it again. What stays is a picture. In a script it is `wait`.

        Raises: TrainingError with the reason if it failed, when awaited.
        """

    def load(self, **options):
        """The trained model, ready to answer: `ivlkit.load` on this run, by default quantised as it was trained.

        Args: options: of `ivlkit.load`; `quantize=None` is the original weights with what was trained.
        """
        if self.state != "finished":
            raise TrainingError(
                f"{self.folder}: {self.state}, not finished; expected a finished run; wait for it first"
            )
        from ..models.load import load

        return load(self.folder, **self.recipe.loading | options)

    def parts(self):
        """{"train": `Data` of its rows, "validation": of those apart, if it has some}."""
        parts = {"train": "data", VALIDATION: VALIDATION}
        return {name: open_again(self, part) for name, part in parts.items() if part in self.spec}

    @shown("ask:ask_run")
    def ask(self, question=None, image=None, *, checkpoints=False, **options):
        """Ask the base and what was trained side by side: an upload, a question, the answers as they are written.

        A LoRA run needs the memory of one model: its adapter is turned off for the base. After full fine-tuning two
        models are in memory. All are asked with the run's prompt and tile limit.

        Args:
            question, image: asked at once: without a widget too, and a saved notebook keeps the answers.
            checkpoints: also those that the run's folder still holds.
            options: `max_new_tokens` of an answer, and those of `ivlkit.load`, such as `quantize`.
        Returns: what a notebook draws; its `answers` are {"base": text, "trained": text}.
        Raises: TrainingError for a run that has not finished.
        """

    def _process(self):
        """The living child, or None."""
        child = children.get(self.folder.resolve())
        try:
            if child is not None and child.poll() is None:  # its command line is empty for a moment after the start
                return psutil.Process(child.pid)
            # One that has ended here may have been followed by another that was started elsewhere.
            process = psutil.Process(int((self.folder / "pid").read_text()))
            is_ours = self.spec_path in process.cmdline()  # another run may have got the number
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


@contextmanager
def alone(folder):
    """One process at a time looks whether a run goes on, and starts it: two would write over each other."""
    with ExitStack() as held:
        with suppress(OSError):  # a network's file system that has no locks
            held.enter_context(FileLock(folder / "start.lock"))
        yield


def rewrite(run, **beside):
    """Say more in a run's run.yaml, beside what decides the run."""
    write_whole(run.folder / "run.yaml", yaml.safe_dump(run.spec | beside, sort_keys=False))


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
    paths = (path for root in roots for path in root.rglob("run.yaml") if path.parent.name != "handover")
    return [Run(path.parent) for path in sorted(paths, key=_last_start)]


def _last_start(path):
    """Seconds: when the run of this run.yaml was described, or its process last started."""
    return max(file.stat().st_mtime for file in (path, path.with_name("pid")) if file.exists())


# what run.yaml names --------------------------------------------------------------------------------------------------


def open_again(run, part="data"):
    """The `Data` that run.yaml describes as "data" or "validation". Raises: TrainingError if its rows have changed."""
    spec = run.spec[part]
    path = Path(spec["path"])
    root = spec["root"] if path.suffix != ".json" else None
    if not path.exists():
        todo = f"put them back, or train again with their new place and folder={str(run.folder)!r} (--to)"
        raise TrainingError(f"{path}: not there any more; expected the rows of {run.folder}; {todo}")
    data = open_data(path, root=root, seed=spec["seed"], split=spec.get("split", TRAIN))
    if "selection" in spec:
        data = data.select(np.load(run.folder / spec["selection"], mmap_mode="r", allow_pickle=False))
    if data.fingerprint != spec["fingerprint"]:
        raise TrainingError(f"{path}: changed since this run was described; expected the same rows; start a new run")
    return data


def open_model(model, **options):
    """A model as it may be given, loaded: a key or a folder, a finished run or its folder; a loaded one as it is.

    Args: options: of `load`; one that is None counts as not given.
    """
    from ..models.load import load

    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, (str, os.PathLike)):
        model = Run(Path(model)) if (Path(model) / "run.yaml").exists() else load(model, **options)
    return model.load(**options) if isinstance(model, Run) else model


@contextmanager
def loaded(model, caller):
    """A context with a model as `open_model` takes it, or as a `partial` of that, which says how it is loaded.

    What it loads is released at its end.

    Raises: DataError for anything else.
    """
    from ..models.options import check_loaded

    vlm = model() if isinstance(model, partial) else open_model(model)
    if not hasattr(vlm, "processor"):
        raise DataError(f"{caller}: a {type(vlm).__name__} in the model's place; expected {caller}(model, data)")
    check_loaded(vlm)
    try:
        yield vlm
    finally:
        if vlm is not model:
            vlm.release()
