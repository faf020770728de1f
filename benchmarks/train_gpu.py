"""Training speed and memory at true size, ours beside plain Hugging Face and TRL: one process a variant, one table.

    python benchmarks/train_gpu.py --variants 2b-lora 2b-compiled --tokenizer 'FOLDER/internvl-{key}' --work /tmp/bench
    python benchmarks/train_gpu.py --key nano --work /tmp/bench          # every variant of a size; nano runs on a CPU

Every call begins with `2b-plain`, two steps, as calibration (`--no-calibration`: without). Weights are random, made on
the device in seconds and equal in all variants; pictures are plain, of the mix's sizes; answers fill the rows up to the
mix's mean length. FOLDER holds a family's tokenizer files. Rows go to `--out` (JSONL), and to a table beside it (.md).

A variant is SIZE-WAY. Of ours, which train through `ivlkit.training`, LoRA of rank 16 with float32 masters computed in
bf16, and no activation recomputed unless said:

    lora                                         bins, torch's variable-length attention
    checkpointed                                 the same, activations recomputed
    compiled, compiled-checkpointed              layers compiled one by one, for bins of any length
    float8, float8-checkpointed                  compiled, frozen matrices of decoder and tower in float8
    reversed                                     `lora`, bins of a step and rows of a bin in the other order
    cast                                         `lora`, but PEFT casts the adapters' inputs to float32 first
    full, full-compiled                          language model and projector in float32 masters, recomputed
    full-8bit                                    the same with bitsandbytes' paged 8-bit AdamW
    qlora                                        language model NF4, tower float8, recomputed; from written weights
    qlora-offload                                the same, but the tower as it is, in the host's memory
    qlora-compiled, qlora-offload-compiled       the decoder's layers compiled, the tower's too where it stays
    kept                                         `lora` (26B: `float8-checkpointed`) of two epochs, each of as many
                                                 steps; the second reads the tower's features from --work's disk

Of others, with the same LoRA, recomputed, padded batches of 4, SDPA, logits of every position:

    plain, grouped                               transformers.Trainer(bf16=True); grouped by length
    trl                                          TRL's SFTTrainer

"Loss difference" is the largest of all steps, from `lora` of as many steps and the same dropout; with `--dropout 0`
that of `reversed` says what rounding alone makes of the same samples.

With `--profile` one more step is taken, with a profiler; the device time of each kernel goes to OUT's name and the
variant's, .txt, and the step into no rate.

The first step (start-up, compiling; of each epoch of `kept`) is left out of the rates and told apart. Useful tokens are
those of rows, padding not counted. The share of the matrix rate counts useful arithmetic only, by the matrices' sizes:
4 operations a decoder weight and token for LoRA, 6 for full, 2 a vision weight and patch, nothing recomputed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from factory.random_nano import build
from factory.row_plan import plan_run
from packing import SHARES, SIZES_PX
from PIL import Image
from transformers import InternVLForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from true_size import draw_picture, write_config, write_random

from ivlkit.data.checking.lengths import row_lengths
from ivlkit.data.collate import collate, normalise_tiles
from ivlkit.data.datasets.opening import open_data
from ivlkit.data.encode import encode
from ivlkit.hardware import package_version
from ivlkit.models.layouts.configuration import hf_config, read_released_config
from ivlkit.models.load import VLM, load
from ivlkit.models.modeling.attention import use_attention
from ivlkit.models.modeling.float8 import to_float8
from ivlkit.models.modeling.internvl import ReleasedInternVLForConditionalGeneration
from ivlkit.models.processor import load_processor
from ivlkit.training.loop.build import build_training
from ivlkit.training.loop.features import KeptFeatures
from ivlkit.training.loop.largest_batch import try_largest_batch
from ivlkit.training.loop.schedule import operations
from ivlkit.training.loop.train import train_steps
from ivlkit.training.recipes import recipe
from ivlkit.training.tuning import prepare

LORA = {"vision": "frozen", "projector": "frozen", "language": "lora", "gradient_checkpointing": "none"}
FULL = {"vision": "frozen", "projector": "full", "language": "full", "gradient_checkpointing": "full"}
OURS = {
    "lora": LORA,
    "checkpointed": LORA | {"gradient_checkpointing": "full"},
    "compiled": LORA | {"compile": True},
    "compiled-checkpointed": LORA | {"compile": True, "gradient_checkpointing": "full"},
    "float8": LORA | {"compile": True, "weights": "float8"},
    "float8-checkpointed": LORA | {"compile": True, "weights": "float8", "gradient_checkpointing": "full"},
    "reversed": LORA,
    "cast": LORA,
    "full": FULL,
    "full-compiled": FULL | {"compile": True},
    "full-8bit": FULL | {"optimizer": "paged_adamw_8bit"},
    "qlora": LORA | {"language": "qlora", "weights": "float8", "gradient_checkpointing": "full"},
    "qlora-offload": LORA | {"language": "qlora", "vision_offload": True, "gradient_checkpointing": "full"},
    "qlora-compiled": LORA
    | {"language": "qlora", "weights": "float8", "gradient_checkpointing": "full", "compile": True},
    "qlora-offload-compiled": LORA
    | {"language": "qlora", "vision_offload": True, "gradient_checkpointing": "full", "compile": True},
    "kept": LORA | {"keep_features": 40.0, "epochs": 2},
}
LARGE = {"26b-kept": OURS["float8-checkpointed"]}  # what a variant has beside its way's changes
PADDED = LORA | {"packing": False, "per_device_batch": 4}
THEIRS = ("plain", "grouped", "trl")
CALIBRATION = "2b-plain"
SIZES = {  # rows of a step, tokens of a bin, tokens of a row at most
    "nano": (16, 1024, 1024),
    "2b": (64, 14336, 4096),
    "4b": (64, 8192, 4096),
    "26b": (16, 8192, 4096),
}
TEXT_TOKENS = 185  # of a row on average, beside its tiles; with 256 a tile the mix has 2,284 a row
WORDS = ("red", "round", "left", "seven", "small", "under", "window", "about", "stone", "open", "water", "light")
COLUMNS = {
    "variant": "variant",
    "tokens_a_second": "useful tokens/s",
    "kept_tokens_a_second": "in epoch 2",
    "samples_a_second": "samples/s",
    "peak_allocated_gib": "peak GiB",
    "peak_reserved_gib": "reserved GiB",
    "matrix_share": "of matrix rate",
    "fill": "fill",
    "loader_wait_seconds": "loader s/step",
    "first_step_seconds": "first step s",
    "dropout": "dropout",
    "adapters": "trained in",
    "attention": "attention",
    "loss": "last loss",
    "loss_difference": "loss difference",
    "device": "device",
}


def main():
    """Prepare each size once, run each variant in a process of its own, print the table."""
    options = parse_options()
    if options.child:
        return child(options)
    variants = options.variants or [f"{options.key}-{way}" for way in (*OURS, *THEIRS)]
    calibration = [] if options.no_calibration else [CALIBRATION]
    failed = []
    for place, variant in enumerate([*calibration, *variants]):
        steps = 2 if place < len(calibration) else options.steps
        command = [sys.executable, __file__, "--child", variant, *sys.argv[1:], "--steps", str(steps)]
        if subprocess.run(command, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}).returncode:
            failed.append(variant)
    finish(options.out, table_of, failed)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", help="SIZE-WAY …; default: every way of --key")
    parser.add_argument("--key", default="2b", choices=SIZES)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps, of which the first is not counted")
    add_shared_options(parser)
    parser.add_argument("--out", type=Path, default=Path("train_gpu.jsonl"))
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="of this process's GPU memory")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--no-calibration", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the kernels of one more step")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def add_shared_options(parser):
    """Those of every benchmark on this mix."""
    parser.add_argument("--tokenizer", help="folder; {key} in it becomes the size")
    parser.add_argument("--work", type=Path, required=True, help="folder for configurations and rows, used again")
    parser.add_argument("--total-batch", type=int, help="rows of a step; default by size")
    parser.add_argument("--bin-tokens", type=int, help="default by size")
    parser.add_argument("--workers", type=int, default=8)


def finish(out, table_of, failed):
    """Write and print the table of all rows so far; what failed ends the program."""
    table = table_of([json.loads(line) for line in out.read_text().splitlines()])
    out.with_suffix(".md").write_text(table)
    print(table)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def child(options):
    """One variant: a row for the table, with the error in it if there was one."""
    row = {"variant": options.child, "date": time.strftime("%Y-%m-%d %H:%M"), **machine(options.memory_limit)}
    try:
        row |= measure(options)
    except Exception as error:
        row["error"] = in_a_line(error)
        raise
    finally:
        with open(options.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def in_a_line(error):
    """ "ValueError: no such way"; of one that says nothing, its kind alone."""
    return ": ".join([type(error).__name__, *(line[:200] for line in str(error).strip().splitlines()[:1])])


def machine(memory_limit_gib):
    """What the figures depend on; sets the limit."""
    versions = {name: package_version(name) for name in ("torch", "transformers", "peft", "trl")}
    if not torch.cuda.is_available():
        return versions | {"device": "cpu"}
    limit_memory(memory_limit_gib)
    return versions | {
        "device": torch.cuda.get_device_name(0),
        "memory_limit_gib": memory_limit_gib,
        "matrix_tflops": round(matrix_rate() / 1e12, 1),
    }


def limit_memory(gib):
    """Of this process's GPU memory; None: all of it."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total) if gib else 1.0)


def matrix_rate(size=8192, repeats=20):
    """Operations a second of a bf16 matrix product of random numbers, after a warm-up."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for count in (3, repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            left @ right
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    del left, right
    torch.cuda.empty_cache()
    return 2 * size**3 * repeats / seconds


def measure(options):
    """Train the variant and tell its figures."""
    key, _, way = options.child.partition("-")
    if way not in (*OURS, *THEIRS):
        raise ValueError(f"{options.child}: no such way; expected one of {', '.join((*OURS, *THEIRS))}")
    folder = prepare_model(options.work / key, key, options.tokenizer)
    processor = load_processor(folder)
    chosen = choose_recipe(folder, key, OURS.get(way, PADDED) | LARGE.get(options.child, {}), options)
    rows = write_mix(folder.parent, processor, rows=(options.steps + options.profile) * chosen.total_batch)
    data = open_data(own_pictures(rows, processor) if way == "kept" else rows)
    tokens, tiles = row_lengths(data, processor, max_length=chosen.max_seq_length)
    clock = Clock(tokens, tiles)
    began = time.perf_counter()
    model_class = ReleasedInternVLForConditionalGeneration if way in OURS else InternVLForConditionalGeneration
    if chosen.language == "qlora":
        written = written_model(options.work / key, key, options.tokenizer)
        vlm = load(written, quantize="4bit", tower_device="cpu" if chosen.vision_offload else None)
    elif chosen.weights == "float8":
        vlm = float8_vlm(folder, processor, model_class, options.memory_limit)
    else:
        vlm = random_vlm(folder, processor, model_class, full=chosen.language == "full")
    loaded = time.perf_counter() - began
    if options.profile:
        clock.profile_into(options.out.with_suffix(f".{options.child}.txt"), step=options.steps)
    if way in OURS:
        training, attention = ours(vlm, chosen, data, cast=way == "cast")
        if way == "reversed":
            training.micro_batches.batches = Reversed(training.micro_batches.batches)
        take_steps(training, attention, clock, features=folder.parent / "features")
    else:
        training, attention = theirs(way, vlm, chosen, data, clock, folder=folder.parent / "run"), "sdpa"
        with use_attention(training.model, attention):
            training.train()
    trained = next(value for value in training.model.parameters() if value.requires_grad)
    sizes = operations(vlm.model.config, replace(chosen, gradient_checkpointing="none"))
    later = clock.figures(*sizes, steps=options.steps, first=options.steps) if way == "kept" else {}
    return {
        "attention": attention,
        "adapters": str(trained.dtype).removeprefix("torch."),
        "dropout": 0.0 if chosen.language == "full" else chosen.lora_dropout,
        "total_batch": chosen.total_batch,
        "bin_tokens": chosen.budgets[0] if chosen.packing else None,
        "load_seconds": round(loaded, 1),
        **clock.figures(*sizes, steps=options.steps),
        **{f"kept_{name}": value for name, value in later.items()},
    }


def prepare_model(folder, key, tokenizer):
    """A size's config.json and tokenizer, written once."""
    model = folder / "model"
    if not (model / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if key == "nano":
            build(model)
        elif tokenizer is None:
            raise ValueError(f"{key}: no --tokenizer; expected the folder of its tokenizer files")
        else:
            write_config(model, key, Path(tokenizer.format(key=key)))
    return model


def written_model(folder, key, tokenizer):
    """The same with weights beside it."""
    written = folder / "written"
    if not (written / "config.json").exists():
        if key == "nano":
            build(written)
        else:
            write_random(written, key, Path(tokenizer.format(key=key)))
    return written


def choose_recipe(folder, key, changes, options):
    total_batch, bin_tokens, max_seq_length = SIZES[key]
    sizes = {
        "gpus": 1,
        "total_batch": options.total_batch or total_batch,
        "bin_tokens": options.bin_tokens or bin_tokens,
        "max_seq_length": max_seq_length,
        "lora_dropout": options.dropout,
        "workers": options.workers,
        "warmup_ratio": 0.0,
        "scheduler": "constant",
        "learning_rate": 4e-5,
    }
    return recipe(f"{key}-lora", model=str(folder), **{"packing": True} | sizes | changes)


def write_mix(folder, processor, *, rows, seed=0, shares=SHARES, name="mix"):
    """A JSONL of `rows` rows in the mix's shares, each answer so long that the text has `TEXT_TOKENS` on average."""
    path, draw = folder / f"{name}-{rows}.jsonl", random.Random(seed)
    if path.exists():
        return path
    for tiles, (width, height) in SIZES_PX.items():
        scale = processor.tile_px // SIZES_PX[1][0]
        draw_picture(width * scale, height * scale, tiles).save(folder / f"{tiles}.png")
    counts = [tiles for tiles, share in shares.items() for _ in range(round(rows * share / 100))]
    counts = (counts + [13] * rows)[:rows]
    draw.shuffle(counts)
    lines = [json.dumps(mix_row(tiles, processor, draw.randint(100, 2 * TEXT_TOKENS - 100), draw)) for tiles in counts]
    path.write_text("\n".join(lines) + "\n")
    return path


def own_pictures(path, processor):
    """The same rows, each with a picture of its own: of equal tiles one would be kept."""
    own, scale, lines = path.with_name(f"own-{path.name}"), processor.tile_px // SIZES_PX[1][0], []
    for number, row in enumerate(map(json.loads, path.read_text().splitlines())):
        if "image" in row:
            width, height = SIZES_PX[int(Path(row["image"]).stem)]
            row["image"] = f"own-{number}.jpg"
            noise = Image.effect_noise((width // 2, height // 2), 60).convert("RGB")
            noise.resize((width * scale, height * scale)).save(path.with_name(row["image"]))
        lines.append(json.dumps(row))
    own.write_text("\n".join(lines) + "\n")
    return own


def mix_row(tiles, processor, text_tokens, draw):
    """A row whose text, prompt included, has about `text_tokens` tokens."""
    words = draw.choices(WORDS, k=text_tokens)
    prompt = len(processor.tokenizer(processor.system_message + " What is there, and where?")["input_ids"]) + 20
    while len(words) > 1 and len(processor.tokenizer(" ".join(words))["input_ids"]) > max(8, text_tokens - prompt):
        words.pop()
    turns = [{"from": "human", "value": "What is there, and where?"}, {"from": "gpt", "value": " ".join(words)}]
    return ({"image": f"{tiles}.png"} if tiles else {}) | {"conversations": turns}


def random_vlm(folder, processor, model_class, *, full, device=None):
    """Random bf16 values, made on the device: equal for every variant of a size; float32 for a full fine-tune."""
    config = read_released_config(folder)
    native = hf_config(config, image_token_id=processor.token_id("<IMG_CONTEXT>"))
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = model_class._from_config(native, dtype=torch.float32 if full else torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with whole(parameter):
                fill(name, parameter)
    return VLM(model.to(device), processor, config, folder)


def float8_vlm(folder, processor, model_class, memory_limit):
    """The same in float8: bf16 is on the device for a moment, beyond any limit, where `load` has it on the host."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        limit_memory(None)
    vlm = random_vlm(folder, processor, model_class, full=False)
    to_float8(vlm.model)
    if on_gpu:
        torch.cuda.empty_cache()
        limit_memory(memory_limit)
    return vlm


def whole(parameter):
    """A weight that ZeRO-3 has divided, in one piece on every rank for a moment; what rank 0 writes is kept."""
    if not hasattr(parameter, "ds_tensor"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


def fill(name, parameter):
    """Matrices of a standard deviation of 0.02, norms of one; rounded to bf16 whatever the model's own precision."""
    if parameter.ndim > 1:
        parameter.copy_(torch.randn(parameter.shape, device=parameter.device).mul_(0.02).bfloat16())
    else:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def ours(vlm, chosen, data, *, cast):
    """(the kit's own `Training`, its attention)."""
    training, attention = build_training(vlm, vlm.processor, chosen, data)
    for module in training.model.modules() if cast else ():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = True
    print(training.micro_batches.batches, attention, sep="\n", flush=True)
    return training, attention.name


def take_steps(training, attention, clock, *, features=None):
    """All steps, as a run takes them, but for its checkpoints.

    Args: features: folder for what the recipe keeps; each epoch then has a loader of its own, since rows that are
        prepared long before they are trained on would count as not kept.
    """
    each = training.steps
    clock.begin()
    with use_attention(training.model, attention):
        if training.device.type == "cuda":
            try_largest_batch(training)
        if training.recipe.keep_features:
            shutil.rmtree(features, ignore_errors=True)
            training.micro_batches.kept, each = KeptFeatures(training, features, say=print), training.steps // 2
        while training.step < training.steps:
            for step in islice(train_steps(training), each):
                clock.got(step.batches, seconds=step.wait_seconds)
                clock.end_step(step.loss)


class Reversed:
    """A plan whose steps have the same rows, computed in the other order; what no rank computes still comes first."""

    def __init__(self, plan):
        self.plan = plan

    def __getattr__(self, name):
        return getattr(self.plan, name)

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, number):
        step, place = divmod(number, self.plan.accumulation)
        first = step * self.plan.accumulation
        bins = [self.plan[one] for one in range(first, min(first + self.plan.accumulation, len(self.plan)))]
        computed = [replace(one, rows=one.rows[::-1]) for one in bins if one.rows]
        return ([one for one in bins if not one.rows] + computed[::-1])[place]


def theirs(way, vlm, chosen, data, clock, *, folder):
    """transformers' or TRL's trainer on the same LoRA and the same rows a step."""
    order = [row for batch in plan_run(len(data), chosen)[0] for _, row in batch.rows]
    model = prepare(vlm, chosen)
    on_gpu = vlm.model.device.type == "cuda"
    steps = -(-len(order) // chosen.total_batch)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=chosen.per_device_batch,
        gradient_accumulation_steps=chosen.accumulation,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        lr_scheduler_type=chosen.scheduler,
        adam_beta2=chosen.adam_beta2,
        max_grad_norm=chosen.max_grad_norm,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_num_workers=chosen.workers,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        seed=chosen.seed,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    made = {
        "model": model,
        "args": arguments,
        "train_dataset": Numbers(order),
        "data_collator": partial(encode_padded, data, vlm.processor),
        "callbacks": [CallClock(clock)],
    }
    trainer = trl_trainer(made, vlm.processor.tokenizer) if way == "trl" else MeasuredTrainer(**made)
    trainer.clock = clock
    if way == "grouped":
        lengths = clock.tokens[order].tolist()
        trainer.sampler = LengthGroupedSampler(chosen.total_batch, lengths=lengths)
    else:
        trainer.sampler = torch.utils.data.SequentialSampler(order)
    return trainer


def trl_trainer(made, tokenizer):
    """SFTTrainer on rows that are tokens already; it takes no other kind of data set than this."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    known = SFTConfig.__dataclass_fields__
    values = {name: value for name, value in vars(made["args"]).items() if name in known and known[name].init}
    config = SFTConfig(**values | {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}})
    trainer_class = type("MeasuredSFTTrainer", (Measured, InOrder, SFTTrainer), {})
    # With a fingerprint of its own: the one that is made by pickling fails with pyarrow 26.
    rows = Dataset(InMemoryTable.from_pydict({"row": made["train_dataset"].order}), fingerprint="rows")
    return trainer_class(**made | {"args": config, "train_dataset": rows}, processing_class=tokenizer)


class Numbers(torch.utils.data.Dataset):
    """Row numbers; the collator reads the rows."""

    def __init__(self, order):
        self.order = order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, place):
        return {"row": self.order[place]}


def encode_padded(data, processor, rows):
    """A padded batch as Hugging Face's models take it: float pixel values, mask, labels."""
    examples = [encode(data[row["row"]], processor) for row in rows]
    batch = collate(examples, pad_token_id=processor.tokenizer.pad_token_id)
    tiles = batch.pop("tiles")
    return batch | ({"pixel_values": normalise_tiles(tiles)} if len(tiles) else {})


class Measured:
    """A Trainer that tells its clock how long it waited for batches, and what they held."""

    def get_batch_samples(self, *args, **kwargs):
        """The micro-batches of a step."""
        began = time.perf_counter()
        batches, count = super().get_batch_samples(*args, **kwargs)
        if batches:
            self.clock.got(batches, seconds=time.perf_counter() - began)
        return batches, count


class InOrder:
    """A Trainer with a sampler given to it."""

    def _get_train_sampler(self, *_):
        return self.sampler


class MeasuredTrainer(Measured, InOrder, Trainer):
    """transformers'."""


class CallClock(TrainerCallback):
    """Tells a clock of what a Trainer does."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **_):
        """Nothing is done yet."""
        self.clock.begin()

    def on_step_end(self, args, state, control, **_):
        """The loss comes later, with the log."""
        self.clock.end_step()

    def on_log(self, args, state, control, logs=None, **_):
        """The step's loss."""
        if "loss" in logs:
            self.clock.losses.append(float(logs["loss"]))


class Clock:
    """Seconds, losses, memory, and what was computed, step by step."""

    def __init__(self, tokens, tiles):
        self.tokens, self.tiles = tokens, tiles  # of every row
        self.ends, self.losses, self.steps, self.graphs, self.peak = [], [], [], [], {}
        self.table, self.profiled, self.profiler = None, None, None

    def profile_into(self, path, *, step):
        """One step (counted from 0) under torch's profiler: a table of its kernels, those that took longest first."""
        self.table, self.profiled = path, step

    def got(self, batches, *, seconds):
        """A step's micro-batches and how long they were waited for."""
        held = [self._held(batch) for batch in batches]
        samples, tokens, tiles, places = (sum(column) for column in zip(*held, strict=True))
        step = {"samples": samples, "tokens": tokens, "tiles": tiles, "places": places, "wait": seconds}
        self.steps.append(step)

    def _held(self, batch):
        """(samples, useful tokens, tiles, places) of one micro-batch."""
        places = batch["input_ids"].numel()
        if "where" in batch:  # ours
            rows = [int(where.rpartition(":")[2]) - 1 for where in batch["where"]] if batch["weights"].any() else []
            return len(rows), int(self.tokens[rows].sum()), int(self.tiles[rows].sum()), places
        tiles = len(batch["pixel_values"]) if "pixel_values" in batch else 0
        return len(batch["input_ids"]), int(batch["attention_mask"].sum()), tiles, places

    def _now(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak = {
                "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            }
        return time.perf_counter()

    def begin(self):
        """Memory from here on; that of making the weights is forgotten."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.ends.append(self._now())

    def end_step(self, *loss):
        """Everything that was started is done."""
        self.ends.append(self._now())
        self.losses += loss
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        if len(self.ends) - 1 == self.profiled:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.profiler:
            self.profiler.stop()
            key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = self.profiler.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=90)
            self.table.write_text(table)
            self.profiler = None

    def figures(self, operations_a_tile, operations_a_token, *, steps=None, first=0):
        """Rates over so many steps from `first` on, all by default; the first of them is left out."""
        last = first + (steps or len(self.steps))
        assert len(self.steps) == len(self.ends) - 1 >= last > first + 1
        steps, ends, losses = self.steps[first:last], self.ends[first : last + 1], self.losses[first:last]
        seconds = ends[-1] - ends[1]
        total = {name: sum(step[name] for step in steps[1:]) for name in steps[0]}
        rate = (total["tiles"] * operations_a_tile + total["tokens"] * operations_a_token) / seconds
        each = [round(later - earlier, 3) for earlier, later in zip(ends, ends[1:], strict=False)]
        return {
            "tokens_a_second": round(total["tokens"] / seconds, 1),
            "samples_a_second": round(total["samples"] / seconds, 3),
            **self.peak,
            "useful_tflops": round(rate / 1e12, 3),
            "fill": round(total["tokens"] / total["places"], 4),
            "tokens_a_sample": round(total["tokens"] / total["samples"], 1),
            "loader_wait_seconds": round(total["wait"] / len(steps[1:]), 3),
            "first_step_seconds": each[0],
            "step_seconds": each[1:],
            "compiled_graphs": self.graphs,
            "losses": losses,
            "loss": losses[-1],
        }


def table_of(rows):
    """Markdown; a variant that failed shows why."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    plain = {_same_steps(row): row["losses"] for row in rows if row["variant"].endswith("-lora") and "losses" in row}
    for row in rows:
        if _same_steps(row) in plain and "losses" in row:
            pairs = zip(row["losses"], plain[_same_steps(row)], strict=True)
            row["loss_difference"] = round(max(abs(one - other) for one, other in pairs), 6)
        if "matrix_tflops" in row and "useful_tflops" in row:
            row["matrix_share"] = f"{row['useful_tflops'] / row['matrix_tflops']:.1%} of {row['matrix_tflops']:.0f}"
        if "error" in row:
            lines.append(f"| {row['variant']} | {row['error']} |" + " |" * (len(COLUMNS) - 2))
        else:
            lines.append("| " + " | ".join(str(row.get(name, "")) for name in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _same_steps(row):
    return row["variant"].partition("-")[0], row.get("dropout"), row.get("total_batch"), len(row.get("losses", ()))


if __name__ == "__main__":
    main()
