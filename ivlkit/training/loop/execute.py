"""Trains the run of a folder in this process: what the child does, from run.yaml to `final/`."""

import errno
import json
import shutil
import signal
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch

from ...data.files import appearing, write_whole
from ...errors import TrainingError
from ...models.families import FAMILIES, find_model
from ...models.load import ORIGIN_FILE, default_dtype, final_folder, load
from ...models.modeling.attention import use_attention
from ..checkpoints import find_damage, last_whole, tidy
from ..engine.distributed import broadcast_from_rank0, is_sharded, join, loading, rank
from ..log import append_line
from ..recipes import FEW_UPDATES, OVERFIT, RELEASED, few_updates
from ..run import LOG_FILE, NOTICES_FILE, PLAN_FILE, SAMPLES_FILE, VALIDATION, Run, find_metric, open_again
from ..tuning import summary_text
from .build import build_trainer, plan_validation
from .samples import PredictSamples
from .schedule import check_rows
from .trainer import LogToFile, StopOnSignal
from .validation import Validate, find_best


def execute(folder, *, advise):
    """Train the run of this folder in this process. Resumes from its last checkpoint.

    Args: advise: a function of the recipe → what to change, said where the GPU's memory ran out.
    Raises: whatever ended it, after it was written into error.txt.
    """
    run = Run(folder)
    folder = run.folder
    if rank() == 0:
        _check_free(run)
        (folder / "error.txt").unlink(missing_ok=True)
    try:
        _execute(run)
    except Exception as error:
        with suppress(OSError), open(folder / "error.txt", "x") as file:  # the disk may be full: its exit code tells;
            file.write(_reason(error, folder))  # or another rank failed first: that is why
            file.write(f"\n{advise(run.recipe)}" if isinstance(error, torch.OutOfMemoryError) else "")
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


def _execute(run):
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
        best = broadcast_from_rank0(partial(_best, run, trainer)) if validate else None
        _write_final(run, trainer, vlm.processor, best=best)
        if recipe.name.endswith(OVERFIT) and trainer.is_world_process_zero():
            _notice(run.folder, _say_overfit(run))
    trainer.accelerator.wait_for_everyone()  # a rank that leaves early takes the one that writes with it
    trainer.accelerator.end_training()


def _begun(run):
    """The checkpoint that this run goes on from, or None."""
    checkpoint = broadcast_from_rank0(partial(last_checkpoint, run.folder))
    if checkpoint and "packing" not in run.spec["recipe"]:
        raise TrainingError(
            f"{run.folder}: begun by an earlier ivlkit, which cut batches otherwise; expected its whole plan; remove "
            "its checkpoints, or train in another folder"
        )
    return checkpoint


def _prepare(run, device, stop):
    """(trainer, the model that it trains as a `VLM` with the run's tiles, `AttentionChoice`)."""
    recipe, data, dtype = run.recipe, open_again(run), default_dtype(device)
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
        quantize=recipe.quantize,
        tower_device="cpu" if recipe.vision_offload else None,
    )
    vlm.merge_adapter()  # going on from a LoRA run: its adapter becomes part of the base, never a second layer
    return vlm


def _say_notes(data, processor, recipe, *, progress=True):
    """Broken rows are errors; notes of the others are printed, by rank 0, which looks."""
    for where, note in broadcast_from_rank0(partial(check_rows, data, processor, recipe, progress=progress)):
        if rank() == 0:
            print(f"{where}: {note}")


def _name_base(model, recipe):
    """The adapter's files say which model they belong to, by the recipe's name for it."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = recipe.model


def _add_validation(run, trainer, vlm, *, packed):
    """The run's `Validate`, or None for a run without validation data."""
    if VALIDATION not in run.spec:
        return None
    data, recipe, metric = open_again(run, VALIDATION), run.recipe, run.spec.get("metric")
    _say_notes(data, vlm.processor, recipe, progress=False)
    dataset = plan_validation(data, vlm.processor, recipe, vlm.model.config, packed=packed)
    validate = Validate(trainer, vlm, dataset, recipe, run.folder, metric=find_metric(metric) if metric else None)
    trainer.add_callback(validate)
    return validate


def _best(run, trainer):
    """The folder of the best weights and their step, said; None if they can't be taken."""
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


def _write_final(run, trainer, processor, *, best):
    """`final/` is complete whenever it exists; all ranks help, since a model may be spread over them.

    Args: best: of `_best`, whose files are copied; None: the weights as they are.
    """
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
    if goes_on and path.exists() and path.read_text() != plan.digest:
        raise TrainingError(
            f"{run.folder}: the rows are now cut into other batches than when it was begun; expected its own plan (the "
            "same ivlkit, the same pictures); remove its checkpoints, or train in another folder"
        )
    write_whole(path, plan.digest)
