"""Training on several GPUs of one host beside one of them: speed, memory, losses step by step, checkpoints that load.

    python benchmarks/train_multi_gpu.py --gpus 2 --tokenizer 'FOLDER/internvl-{key}' --work /tmp/bench
    python benchmarks/train_multi_gpu.py --gpus 2 --key nano --work /tmp/bench        # two processes on a CPU

Every variant runs on one GPU, then on `--gpus`, in processes of their own, with the same random weights, the same rows
of the mix of `train_gpu.py`, the same rows a step; variants that differ by ZeRO's stage share their run on one GPU.
Speed-up and efficiency (speed-up divided by GPUs) are of useful tokens a second, the first step left out. A variant is
SIZE-WAY:

    lora                     DDP, LoRA of rank 16, activations recomputed
    zero1, zero2, zero3      language model and projector in full; on one GPU float32 masters instead
    lora-zero3               LoRA, the frozen weights divided too
    float8                   `lora`, compiled, the frozen weights in float8: a whole copy a GPU
    mixed, mixed-zero3       LoRA and projector; a row a GPU and step, so that now and then a rank has text alone beside
                             one with pictures: it must not hang, and fails if that never happened

What ZeRO-3 saved is loaded in one process, whose loss on the first batch is told beside that of the model that was
saved. A step of several GPUs differs from one GPU's by the order of sums in bf16: "loss difference" is the largest of
all steps, of losses that begin near ln(vocabulary).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from train_gpu import (
    FULL,
    LORA,
    SIZES,
    Clock,
    add_shared_options,
    choose_recipe,
    finish,
    in_a_line,
    machine,
    ours,
    prepare_model,
    random_vlm,
    take_steps,
    write_mix,
)

from ivlkit.data.checking.lengths import row_lengths
from ivlkit.data.datasets.opening import open_data
from ivlkit.models.load import default_dtype
from ivlkit.models.modeling.attention import use_attention
from ivlkit.models.modeling.float8 import to_float8
from ivlkit.models.modeling.internvl import ReleasedInternVLForConditionalGeneration
from ivlkit.models.processor import load_processor
from ivlkit.training.checkpoints import load_trained
from ivlkit.training.engine.distributed import describe_engine, join, leave, loading
from ivlkit.training.loop.schedule import operations
from ivlkit.training.loop.train import sum_losses

RECOMPUTED = LORA | {"gradient_checkpointing": "full", "zero_stage": 0}
MIXED = RECOMPUTED | {"projector": "full"}
WAYS = {
    "lora": RECOMPUTED,
    "zero1": FULL | {"zero_stage": 1},
    "zero2": FULL | {"zero_stage": 2},
    "zero3": FULL | {"zero_stage": 3},
    "lora-zero3": RECOMPUTED | {"zero_stage": 3},
    "float8": RECOMPUTED | {"compile": True, "weights": "float8"},
    "mixed": MIXED,
    "mixed-zero3": MIXED | {"zero_stage": 3},
}
VARIANTS = (
    *("2b-lora", "2b-zero1", "2b-zero2", "4b-zero2", "4b-zero3"),
    *("26b-lora-zero3", "26b-float8", "2b-mixed", "2b-mixed-zero3"),
)
HALF_TEXT = {0: 50, 1: 25, 13: 25}  # per cent of rows by tiles
MIXED_STEPS = 8
COLUMNS = {
    "variant": "variant",
    "gpus": "GPUs",
    "engine": "engine",
    "tokens_a_second": "useful tokens/s",
    "speed_up": "speed-up",
    "efficiency": "efficiency",
    "peak_allocated_gib": "peak GiB a GPU",
    "fill": "fill",
    "loss": "last loss",
    "loss_difference": "loss difference",
    "saved_loss": "loss when saved",
    "reloaded_loss": "loaded in one process",
    "text_alone": "steps with a rank of text alone",
    "device": "device",
}


def main():
    """Each variant on one GPU and on several; a table of all rows so far."""
    options = parse_options()
    if options.child:
        child(options)
        return leave()
    variants = options.variants or (VARIANTS if not options.key else [f"{options.key}-{way}" for way in WAYS])
    stages = []
    for variant in variants:
        prepare_rows(variant, options)
        stages += [(alone_of(variant), "train", 1), (variant, "train", options.gpus)]
        stages += [(variant, "reload", 1)] if "zero3" in variant else []
    failed = [stage for stage in dict.fromkeys(stages) if start(*stage)]
    finish(options.out, table_of, [f"{variant} ({what}, {gpus})" for variant, what, gpus in failed])


def alone_of(variant):
    """The variant that is the same on one GPU, where ZeRO divides nothing."""
    key, _, way = variant.partition("-")
    undivided = {name: changes | {"zero_stage": 0} for name, changes in WAYS.items()}
    return f"{key}-{next(name for name, changes in undivided.items() if changes == undivided[way])}"


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--variants", nargs="+", help="SIZE-WAY …; default: those of the benchmark, or all of --key")
    parser.add_argument("--key", choices=SIZES)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps, of which the first is not counted")
    add_shared_options(parser)
    parser.add_argument("--out", type=Path, default=Path("train_multi_gpu.jsonl"))
    parser.add_argument("--profile", action="store_true", help="the kernels of one more step, of rank 0")
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "WHAT", "GPUS"), help=argparse.SUPPRESS)
    parser.set_defaults(dropout=0.0)  # drawn differently on other ranks
    return parser.parse_args()


def start(variant, what, gpus):
    """Run one stage in one process or several; its exit code."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"] if gpus > 1 else []
    command = [sys.executable, *launcher, __file__, *sys.argv[1:], "--child", variant, what, str(gpus)]
    return subprocess.run(command, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}).returncode


def prepare_rows(variant, options):
    """(folder of the model, its recipe for one GPU, its rows), written before any rank looks for them."""
    key, _, way = variant.partition("-")
    if way not in WAYS:
        raise ValueError(f"{variant}: no such way; expected one of {', '.join(WAYS)}")
    folder = prepare_model(options.work / key, key, options.tokenizer)
    chosen = choose_recipe(folder, key, WAYS[way], options)
    steps, mix = options.steps, {}
    if "mixed" in way:
        chosen = replace(chosen, total_batch=options.gpus)
        steps, mix = MIXED_STEPS, {"shares": HALF_TEXT, "name": "mixed"}
    rows = (steps + options.profile) * chosen.total_batch
    path = write_mix(folder.parent, load_processor(folder), rows=rows, **mix)
    return folder, chosen, path


def child(options):
    """A stage: the first rank writes its row, or the failure's."""
    variant, what, gpus = options.child
    row = {"variant": variant, "gpus": int(gpus), "what": what, "date": time.strftime("%Y-%m-%d %H:%M")}
    try:
        row |= measure(variant, what, int(gpus), options)
    except Exception as error:
        row["error"] = in_a_line(error)
        raise
    finally:
        if int(os.environ.get("RANK", 0)) == 0:
            with open(options.out, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def measure(variant, what, gpus, options):
    """Train and tell the figures, or load what several GPUs saved and tell its loss."""
    folder, chosen, path = prepare_rows(variant, options)
    chosen, processor, data = replace(chosen, gpus=gpus), load_processor(folder), open_data(path)
    device = join(chosen)
    told = machine(None)
    clock = Clock(*row_lengths(data, processor, max_length=chosen.max_seq_length))
    with loading(chosen, default_dtype(device)):
        in_float32 = chosen.full_precision or device.type == "cpu"
        vlm = random_vlm(folder, processor, ReleasedInternVLForConditionalGeneration, full=in_float32, device=device)
        if chosen.weights == "float8":
            to_float8(vlm.model)
        training, attention = ours(vlm, chosen, data, cast=False)
    saved = folder.parent / f"saved-{variant}"
    if what == "reload":
        load_trained(training.model, saved)
        with use_attention(training.model, attention):
            return told | {"reloaded_loss": loss_of_first(training)}
    steps = training.steps - options.profile
    if options.profile and int(os.environ.get("RANK", 0)) == 0:
        clock.profile_into(options.out.with_suffix(f".{variant}-{gpus}.txt"), step=steps)
    take_steps(training, attention, clock)
    told |= figures(training, clock, chosen, vlm.model.config, steps=steps)
    if chosen.zero_stage == 3 and gpus > 1:
        with use_attention(training.model, attention):
            told["saved_loss"] = loss_of_first(training)
        saved.mkdir(exist_ok=True)
        training.save_weights(saved)
    training.accelerator.wait_for_everyone()
    training.accelerator.end_training()
    return told


def loss_of_first(training):
    """The mean loss of the first row that any rank has, without dropout, the same on all of them."""
    dataset = training.micro_batches
    example = dataset.encode_row(0, 0)
    batch = dataset.collate([example], pad_token_id=dataset.processor.tokenizer.pad_token_id)
    batch |= {"weights": torch.ones(1), "where": [example.where]}
    supervised = int((batch["labels"][:, 1:] >= 0).sum())
    training.model.eval()
    with torch.no_grad(), training.accelerator.autocast():
        return float(sum_losses(training.model, batch, training)) / supervised


def figures(training, clock, chosen, config, *, steps):
    """The clock's figures over all ranks; memory of the rank that holds most."""
    engine, gpus = describe_engine(training.engine), chosen.gpus
    seen = [None] * gpus
    if gpus > 1:
        torch.distributed.all_gather_object(seen, (clock.steps, clock.peak))
    else:
        seen = [(clock.steps, clock.peak)]
    ranks, peaks = zip(*seen, strict=True)
    alone = [step for step in zip(*ranks, strict=True) if {bool(one["tiles"]) for one in step} == {True, False}]
    if "mixed" in training.micro_batches.data.path.stem and gpus > 1 and not alone:
        raise RuntimeError("no rank ever had text alone beside one with pictures; expected some; take more steps")
    clock.steps = [{name: sum(one[name] for one in step) for name in step[0]} for step in zip(*ranks, strict=True)]
    for step in clock.steps:
        step["wait"] /= gpus
    clock.peak = max(peaks, key=lambda peak: peak.get("peak_allocated_gib", 0))
    return {
        "engine": engine,
        "zero_stage": chosen.zero_stage,
        "total_batch": chosen.total_batch,
        "text_alone": len(alone) if gpus > 1 else None,
        **clock.figures(*operations(config, replace(chosen, gradient_checkpointing="none")), steps=steps),
    }


def table_of(rows):
    """Markdown; a row of several GPUs beside the last of one GPU of its variant, and what was loaded of it."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    alone, last = {}, {}
    for row in rows:
        if not row.keys() & {"tokens_a_second", "reloaded_loss"}:
            row.setdefault("error", "ended without a figure")
        if "error" in row:
            continue
        if row["what"] == "reload":
            last.get(row["variant"], row)["reloaded_loss"] = row["reloaded_loss"]
        elif row["gpus"] == 1:
            alone[row["variant"]] = row
        else:
            last[row["variant"]] = row
            compare(row, alone.get(alone_of(row["variant"])))
    for row in rows:
        if "error" in row:
            told = f"{row['variant']} | {row['gpus']} | {row['what']}: {row['error']}"
            lines.append(f"| {told} |" + " |" * (len(COLUMNS) - 3))
        elif row["what"] == "train" or row["variant"] not in last:
            cells = (row.get(name) for name in COLUMNS)
            lines.append("| " + " | ".join("" if cell is None else _short(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _short(cell):
    return f"{cell:.5g}" if isinstance(cell, float) else str(cell)


def compare(row, alone):
    """Speed and losses of several GPUs beside one."""
    if alone is None:
        return
    row["speed_up"] = row["tokens_a_second"] / alone["tokens_a_second"]
    row["efficiency"] = f"{row['speed_up'] / row['gpus']:.0%}"
    row["loss_difference"] = max(abs(one - other) for one, other in zip(row["losses"], alone["losses"], strict=True))


if __name__ == "__main__":
    main()
