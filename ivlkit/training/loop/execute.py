"""Trains the run of a folder in this process: what the child does, from run.yaml to `final/`."""

import errno
import os
import shutil
import signal
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from ...data.files import appearing, write_whole
from ...errors import DataError, IvlkitError, TrainingError
from ...hardware import GIB
from ...models.families import find_model
from ...models.load import default_dtype, final_folder, load
from ...models.modeling.attention import use_attention
from ..checkpoints import check_finite, find_damage, keep_newest, last_whole, tidy, writing_checkpoint
from ..engine.distributed import broadcast_from_rank0, check_launch, is_initialized, join, loading, rank
from ..functions import find_function, source_digest
from ..log import append_line, append_step
from ..recipes import FEW_UPDATES, OVERFIT, RELEASED, few_updates
from ..run import (
    FEATURES,
    LENGTHS_FILE,
    LOG_FILE,
    NOTICES_FILE,
    PLAN_FILE,
    SAMPLES_FILE,
    SKIPPED_FILE,
    VALIDATION,
    Run,
    open_again,
    rewrite,
)
from ..tuning import summary_text
from .build import build_training, plan_micro_batches
from .features import KeptFeatures
from .largest_batch import try_largest_batch
from .samples import Samples
from .schedule import check_rows
from .train import train_steps
from .validation import Validate, find_best

SKIP = (
    "; mend it and train again, which goes on from the last checkpoint, or train again with skip_unusable=True "
    "(--skip-unusable): the row keeps its place and weighs nothing"
)
TRACKED = ("loss", "learning_rate", "grad_norm", "tokens", "memory_gib", "epoch")  # of a line, for a tracker


def execute(folder, *, advise):
    """Train the run of this folder in this process. Resumes from its last checkpoint; a finished one is left as it is.

    Args: advise: a function of the recipe → what to change, said where the GPU's memory ran out.
    Raises: whatever ended it, after it was written into error.txt.
    """
    run = Run(folder)
    folder = run.folder
    if (folder / "final").exists():  # a launcher's job that was queued again
        check_launch(run.recipe, os.environ)
        print(f"{folder}: has finished; to train it anew, delete it or choose another folder", flush=True)
        return
    if rank() == 0:
        _check_free(run)
        (folder / "error.txt").unlink(missing_ok=True)
    try:
        _execute(run)
    except Exception as error:
        with suppress(OSError), open(folder / "error.txt", "x") as file:  # the disk may be full: its exit code tells;
            file.write(_reason(error, folder))  # or another rank failed first: that is why
            file.write(f"\n{advise(run.recipe)}" if isinstance(error, torch.OutOfMemoryError) else "")
            file.write(SKIP if isinstance(error, DataError) and not run.spec.get("skip_unusable") else "")
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
    """The error in a line, with its place where its text names none; of one of a worker process, its own last line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; make room and train again: it goes on from its last checkpoint"
    text = f"{type(error).__name__}: {error}"
    if "Original Traceback" in text:
        return text.strip().splitlines()[-1]
    if isinstance(error, (IvlkitError, OSError, torch.OutOfMemoryError)):
        return text
    raised = traceback.extract_tb(error.__traceback__)[-1]  # of a metric, a loss or an order of the user's own
    return f"{raised.filename}:{raised.lineno}: {text}"


def _execute(run):
    recipe, device = run.recipe, join(run.recipe)
    stop = StopOnSignal(device)
    checkpoint = _begun(run)
    training, vlm, attention = _prepare(run, device)
    plan, writes = training.micro_batches.batches, training.accelerator.is_main_process
    if writes:
        keep_newest(run.folder, recipe.save_total_limit)  # it may have been killed before the older ones went
        _check_plan(run, plan, goes_on=checkpoint is not None)
        print(summary_text(training.model, recipe), plan, attention, sep="\n", flush=True)
        if recipe.name in RELEASED and plan.steps < FEW_UPDATES and not checkpoint:
            _notice(run.folder, few_updates(plan.steps))
    validate = watcher = _validation(run, training, vlm, packed=attention.packs)
    if not validate and not recipe.compile:  # whose layers would be compiled again without gradients
        watcher = Samples(training, run.folder / SAMPLES_FILE)
    if checkpoint:
        training.load(Path(checkpoint))
    with use_attention(training.model, attention.name):
        _begin_trackers(training, run.folder.name)
        if training.device.type == "cuda":
            try_largest_batch(training)
        follow(training, run.folder, watcher=watcher, stop=stop)
    if training.step < plan.steps and not (validate and validate.gave_up):
        if writes:
            print(f"stopped at step {training.step} of {plan.steps}; train again to go on")
    else:
        best = broadcast_from_rank0(partial(_best, run, training)) if validate else None
        _write_final(run, training, best=best)
        if writes:
            shutil.rmtree(run.folder / FEATURES, ignore_errors=True)
        if writes and run.skipped:
            rewrite(run, skipped=run.skipped)
            _notice(run.folder, f"{len(run.skipped)} rows were masked, since they can't be used; run.yaml lists them")
        if recipe.name.endswith(OVERFIT) and writes:
            _notice(run.folder, _say_overfit(run))
    training.accelerator.wait_for_everyone()  # a rank that leaves early takes the one that writes with it
    training.accelerator.end_training()


def _begin_trackers(training, name):
    """Give a tracker of experiments the recipe's numbers and words; without one nothing happens."""
    values = {key: value for key, value in asdict(training.recipe).items() if isinstance(value, (int, float, str))}
    training.accelerator.init_trackers(name, config=values)


def follow(training, folder, *, watcher=None, stop=lambda: False):
    """Make all steps that are left, with their log and checkpoints.

    Args:
        watcher: a `Validate` or `Samples`, which looks at the model before the first step and after each.
        stop: says after a step whether the run ends here, with a checkpoint; the same on all ranks.
    """
    recipe, began = training.recipe, time.monotonic()
    if recipe.keep_features:  # from here on: the largest batch was tried with all its tiles
        kept = KeptFeatures(training, folder / FEATURES, say=partial(_notice, folder))
        for each in (training.micro_batches, *([watcher.dataset] if isinstance(watcher, Validate) else ())):
            each.kept = kept
    if watcher:
        watcher.begin()
    first = None
    for place, step in enumerate(train_steps(training)):
        seconds = time.monotonic() - began
        first = first or seconds
        line = log_line(training, step, seconds=seconds)
        _list_skipped(folder, step.batches)
        training.accelerator.log({name: line[name] for name in TRACKED}, step=step.number)
        if training.accelerator.is_main_process:
            append_step(folder / LOG_FILE, line)
            if recipe.compile and place == 1:
                print(_compile_time(first, seconds), flush=True)
        if watcher:
            watcher.after_step()
        ends = stop()
        if ends or step.number % recipe.save_steps == 0 or step.number == training.steps:
            save_checkpoint(training, folder)
        if ends or (watcher and watcher.gave_up):
            return


def _list_skipped(folder, batches):
    """A line for each row that was masked, of this rank's; one that was met before is listed again."""
    for said in (said for batch in batches for said in batch.get("skipped", ())):
        append_line(folder / SKIPPED_FILE, said)


def log_line(training, step, *, seconds):
    """A line of a run's log: see `Run.history`."""
    return {
        "step": step.number,
        "steps": training.steps,
        "epoch": round(training.epoch, 4),
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "memory_gib": round(_memory_bytes(training.device) / GIB, 3),
        "seconds": round(seconds, 3),
    }


def _memory_bytes(device):
    """The most that tensors took of a GPU since the start; on a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _compile_time(first, both):
    """What compiling took: the first step beside the second, which finds everything compiled.

    On a CPU a bin of one sample goes without a mask: the first such bin is compiled when it comes, and not counted.
    """
    return f"compile: the first step took {first:.1f} s, {first - (both - first):.1f} s longer than the second"


def save_checkpoint(training, folder):
    """Whole or not at all; older ones go once it is there."""
    check_finite(training.model, training.step)
    to = folder / f"checkpoint-{training.step}"
    with writing_checkpoint(to, training.accelerator) as aside:
        training.save(aside)
    if training.accelerator.is_main_process:
        keep_newest(folder, training.recipe.save_total_limit)


class StopOnSignal:
    """Whether a rank was asked to stop (SIGTERM): all stop after the same step, or one would wait for ever."""

    def __init__(self, device):
        self.device, self.requested = device, False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "requested", True))

    def __call__(self):
        if not is_initialized():
            return self.requested
        found = torch.tensor(int(self.requested), device=self.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return bool(found)


def _begun(run):
    """The checkpoint that this run goes on from, or None."""
    checkpoint = broadcast_from_rank0(partial(last_checkpoint, run.folder))
    if checkpoint and "packing" not in run.spec["recipe"]:
        raise TrainingError(
            f"{run.folder}: begun by an earlier ivlkit, which cut batches otherwise; expected its whole plan; remove "
            "its checkpoints, or train in another folder"
        )
    return checkpoint


def _prepare(run, device):
    """(`Training`, the model that it trains as a `VLM` with the run's tiles, `AttentionChoice`)."""
    recipe, data, dtype, spec = run.recipe, open_again(run), default_dtype(device), run.spec
    skipping = {"skip_unusable": spec.get("skip_unusable", False)}
    _check_functions(run)
    with loading(recipe, dtype):
        vlm = _load_base(recipe, device, dtype)
        vlm = replace(vlm, processor=vlm.processor.with_tiles(recipe.max_tiles or vlm.processor.max_tiles))
        _say_notes(data, vlm.processor, recipe, **skipping)
        options = {"log_with": spec.get("report_to"), "project_dir": run.folder} | skipping
        options["lengths_file"] = run.folder / LENGTHS_FILE
        training, attention = build_training(vlm, vlm.processor, recipe, data, **options)
    _name_base(training.model, recipe)
    return training, vlm, attention


def _check_functions(run):
    """Raise TrainingError if a loss or an order is not the one that the run was described with."""
    for name, digest in run.spec.get("functions", {}).items():
        if source_digest(name, "function") != digest:
            raise TrainingError(
                f"{run.folder}: {name} has changed since this run was described; expected its source as it was; train "
                "again from the notebook: that makes a run of its own"
            )


def _load_base(recipe, device, dtype):
    """The recipe's model on this device."""
    dtype = torch.float32 if recipe.full_precision else dtype
    folder = final_folder(find_model(recipe.model))
    if recipe.stage == 3 and (folder / "adapter_config.json").exists():
        raise TrainingError(
            f"{folder}: an adapter to go on from under ZeRO-3, which divides weights before it could be merged; "
            f"ivlkit export {recipe.model} --to merged, then train on that"
        )
    vlm = load(recipe.model, device=device, dtype=dtype, **recipe.loading)
    vlm.merge_adapter()  # going on from a LoRA run: its adapter becomes part of the base, never a second layer
    return vlm


def _say_notes(data, processor, recipe, *, progress=True, **options):
    """Broken rows are errors; notes of the others are printed, by rank 0, which looks."""
    for where, note in broadcast_from_rank0(partial(check_rows, data, processor, recipe, progress=progress, **options)):
        if rank() == 0:
            print(f"{where}: {note}")


def _name_base(model, recipe):
    """The adapter's files say which model they belong to, by the recipe's name for it."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = recipe.model


def _validation(run, training, vlm, *, packed):
    """The run's `Validate`, or None for a run without validation data."""
    if VALIDATION not in run.spec:
        return None
    data, recipe, metric = open_again(run, VALIDATION), run.recipe, run.spec.get("metric")
    _say_notes(data, vlm.processor, recipe, progress=False)
    once = replace(recipe, epochs=1, compile=False)
    dataset = plan_micro_batches(data, vlm.processor, once, vlm.model.config, packed=packed)
    return Validate(training, vlm, dataset, run.folder, metric=find_function(metric) if metric else None)


def _best(run, training):
    """The folder of the best weights and their step, said; None if they can't be taken."""
    best, last_step = find_best(run.folder), training.step
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
    """How many of its rows the run answers with its final weights, the best or else the last, and what it means."""
    best, lines = find_best(run.folder), run.validation[::-1]
    answers = next(line["answers"] for line in lines if not best or line["step"] == best["step"])
    wrong = [answer for answer in answers if not answer["right"]]
    said = f"overfit: {len(answers) - len(wrong)} of {len(answers)} rows are answered with their own truth"
    if not wrong:
        return f"{said}: labels, template and learning rate can teach"
    first = wrong[0]
    return (
        f"{said}; expected all; first {first['where']}: {first['reply']!r}, not {first['truth']!r}; look at its labels "
        "(data.show_tokens), then raise learning_rate"
    )


def _write_final(run, training, *, best):
    """`final/` is complete whenever it exists; all ranks help, since a model may be spread over them.

    Args: best: of `_best`, whose files are copied; None: the weights as they are.
    """
    writes, final = training.accelerator.is_main_process, run.folder / "final"
    with appearing(final) if writes else nullcontext(final) as aside:
        if best is None:
            training.save_weights(aside)
        elif writes:
            for path in (*best["path"].glob("*.safetensors"), *best["path"].glob("adapter_config.json")):
                shutil.copyfile(path, aside / path.name)
            training.write_origin(aside, step=best["step"])


def last_checkpoint(folder):
    """The newest whole checkpoint of a run's folder, or None; damaged ones are taken out of the way, which is said."""
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
    if goes_on and path.exists() and path.read_bytes() != plan.digest.encode():
        raise TrainingError(
            f"{run.folder}: the rows are now cut into other batches than when it was begun, by its {PLAN_FILE}; "
            "expected its own plan (the same ivlkit, the same pictures); remove its checkpoints, or train in another "
            "folder"
        )
    write_whole(path, plan.digest)
