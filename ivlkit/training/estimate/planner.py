"""Will it fit, how long will it take, how much will it write: known before a GPU is paid for.

Memory is that of the largest batch of the run's own plan (`prediction`).
"""

import json
import math
import os
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import torch

from ...data.checking.lengths import epoch_lengths
from ...data.datasets.opening import open_data
from ...errors import RecipeError
from ...hardware import GIB, find_gpus, gpu_processes, holders_of_gpu, read_ram_gib
from ...models.processor import load_processor
from ...models.shapes import config_of, empty_model
from ...views import shown
from ..engine.distributed import on_gpus, settle_gpus
from ..log import read_steps
from ..loop.schedule import plan_batches
from ..methods import less_memory
from ..recipes import FEW_UPDATES, RELEASED, Recipe, few_updates
from ..recipes import recipe as named_recipe
from ..run import LOG_FILE
from ..tuning import prepare
from .cards import CARDS, Card, find_measured, match_card, probe_cpu
from .footprint import features_bytes
from .outlook import outlook
from .prediction import CONTEXT_GIB, batch_parts, bus_seconds, disk_bytes, needed_gib, predict_seconds

TILE_CASES = (12, 6, 1)
TEXT_TOKENS = 256  # of a row beside its tiles, where there is no data
# Optimizer, log and the launches that small bins wait for: fitted to thirteen runs of the three models on H200s of
# three hosts, 2 to 26 steps of 4,000 to 20,000 tokens, which it meets within 21 %. Launches wait for the host: 0.35
# would fit the slowest, 0.15 another. Steps of 100,000 tokens don't show it.
STEP_SECONDS = 0.25


@dataclass(frozen=True)
class Place:
    """Where a run is to compute."""

    name: str
    free_gib: float | None
    card: Card | None  # None: not listed
    device_type: str = "cuda"
    holders: tuple[str, ...] = ()  # programs that hold the rest of its memory
    bf16: bool = True
    is_named: bool = False  # by the user; else it is here


class Job:
    """What all cases of a plan share: a recipe, its data if there are any, its model as it trains, without memory."""

    def __init__(self, recipe, data, place):
        self.place = place
        self.released, self.is_here = config_of(recipe.model)
        self.data = data if data is None else open_data(data)
        self.processor = load_processor(recipe.model) if data is not None else None
        self.take(recipe)

    def take(self, recipe):
        """Plan this recipe of the same model from here on."""
        self.recipe = recipe
        trained = Recipe(
            recipe.name, recipe.model, *recipe.parts, recipe.unfreeze_vit_layers, lora_rank=recipe.lora_rank
        )
        model, self.model = _shape(trained, json.dumps(self.released))
        self.config = model.config
        self.packs = recipe.packing and self.place.bf16
        self.max_tiles = recipe.max_tiles or self.released.get("max_dynamic_patch", 12)


@dataclass(frozen=True)
class Case:
    """The run with so many tiles a picture at most."""

    max_tiles: int
    tokens: int  # of the largest batch, padding counted
    tiles: int  # of the same
    parts: dict  # bytes by name; they add up to the peak that torch allocates
    steps: int | None  # None without data
    minutes: float | None  # None without data or card
    row_tokens: float | None = None  # of a row on average; None without data
    row_tiles: float | None = None

    @property
    def allocated_gib(self):
        """What torch's `max_memory_allocated` would say."""
        return sum(self.parts.values()) / GIB


@dataclass(frozen=True, repr=False)
class RunPlan:
    """What `plan` predicts: print it, or show it in a notebook."""

    recipe: Recipe
    device_type: str
    cases: tuple[Case, ...]  # the recipe's own tiles first
    free_gib: float | None
    checkpoint_gb: float
    disk_gb: float
    measured: str  # what was measured with the same settings, or ""
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    job: object  # model, configuration, place: what the rest was computed from

    outlook = outlook

    @property
    def needed_gib(self):
        """Free memory that the recipe's own case needs: what is allocated, and what CUDA and its allocator take."""
        return needed_gib(self.cases[0].parts, self.device_type)

    @property
    def fits(self):
        """Whether it fits in what is free; None where that is unknown."""
        return None if self.free_gib is None else self.needed_gib <= self.free_gib

    @property
    def minutes(self):
        """Of the recipe's own case."""
        return self.cases[0].minutes

    def table(self):
        """Rows of text: one a case, its parts, and the sum."""
        names = list(self.cases[0].parts)
        head = ["max_tiles", "largest batch", *names, "allocated GiB", "needed GiB", "steps", "minutes"]
        rows = [
            [
                str(case.max_tiles),
                f"{case.tokens:,} tokens, {case.tiles} tiles",
                *(f"{value / GIB:.2f}" for value in case.parts.values()),
                f"{case.allocated_gib:.2f}",
                f"{needed_gib(case.parts, self.device_type):.2f}",
                "-" if case.steps is None else f"{case.steps:,}",
                "-" if case.minutes is None else f"{case.minutes:.1f}",
            ]
            for case in self.cases
        ]
        return [head, *rows]

    def lines(self):
        """What it comes to, then a line for each note: what stands above and below the table."""
        state = {None: "nothing known to fit into", True: "fits", False: "DOES NOT FIT"}[self.fits]
        free = "" if self.free_gib is None else f"; {self.free_gib:.1f} GiB free on {self.job.place.name}"
        yield f"{self.recipe.name}: needs {self.needed_gib:.2f} GiB (predicted){free}: {state}"
        yield from (f"held by others: {holder}" for holder in self.job.place.holders)
        yield f"disk: {self.disk_gb:.2f} GB, of checkpoints of {self.checkpoint_gb:.2f} GB (predicted)"
        yield self.measured or "measured: no run with these settings; every number here is predicted"
        yield from self.notes
        yield from (f"to change: {line}" for line in self.advice)

    def __str__(self):
        rows = self.table()
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*self.lines(), *lines])

    __repr__ = __str__

    _repr_html_ = shown("charts:plan_html")


def plan(recipe, *, data=None, gpu_gib=None, card=None):
    """Predict memory, minutes and disk of a run, and what to change where it does not fit.

    Args:
        recipe: a `Recipe` or its name; its model need not be here.
        data: what `open_data` gives, or a path: for the run's own batches, steps and minutes; needs the model's
            tokenizer. None: a batch as large as the recipe allows, of pictures of as many tiles as there may be.
        gpu_gib: memory to fit into, all of it free. None: the named card's, else what is free on this machine.
        card: "RTX 4090", "L4", "A100", …, one of `CARDS`, for minutes and memory there. None: this machine's. Of a card
            that is named, one is meant where the recipe has no number of them.
    Returns: `RunPlan` with a case for the recipe's own tiles, and for 12, 6 and 1.
    Raises: RecipeError for an unknown card, CheckpointError for a model that is no folder, DataError for the data.
    """
    recipe = named_recipe(recipe)
    place = find_place(gpu_gib, card)
    recipe = on_gpus(recipe, 1) if recipe.gpus is None and place.is_named else settle_gpus(recipe)
    if not recipe.packing:
        _ = recipe.accumulation  # raises for a batch that training would refuse
    job = Job(recipe, data, place)
    counts = [job.max_tiles, *(count for count in TILE_CASES if count != job.max_tiles)]
    cases = [_case(job, count) for count in counts]
    checkpoint, disk = disk_bytes(job.model, recipe, device_type=place.device_type)
    tiles = math.inf if job.data is None else cases[0].row_tiles * len(job.data)  # of an epoch
    features = features_bytes(job.config, recipe, tiles=tiles, device_type=place.device_type)
    found = RunPlan(
        recipe=recipe,
        device_type=place.device_type,
        cases=tuple(cases),
        free_gib=place.free_gib,
        checkpoint_gb=checkpoint / 1e9,
        disk_gb=(disk + features) / 1e9,
        measured=find_measured(recipe),
        advice=(),
        notes=tuple(_notes(job, cases[0].steps, features)),
        job=job,
    )
    return replace(found, advice=tuple(advise(job))) if found.fits is False else found


def find_place(gpu_gib=None, card=None):
    """Where it is to run, as a `Place`. Raises: RecipeError for an unknown card or a negative number."""
    if card is not None and card not in tuple(CARDS):
        raise RecipeError(f"card {card!r}; expected one of {', '.join(CARDS)}")
    if gpu_gib is not None and not (isinstance(gpu_gib, Real) and gpu_gib >= 0):
        raise RecipeError(f"gpu_gib={gpu_gib!r}; expected a number of GiB, such as 24")
    if card is not None or gpu_gib is not None:
        found = CARDS.get(card)
        free_gib = found.gib if gpu_gib is None else gpu_gib
        return Place(card or "the card you named", free_gib, found, bf16=found is None or found.bf16, is_named=True)
    gpus = find_gpus()
    if not gpus:
        return Place("this machine", read_ram_gib()[1], probe_cpu(), device_type="cpu")
    name, free_gib = gpus[0].name, gpus[0].free_gib + torch.cuda.memory_reserved() / GIB + held_by_runs()
    return Place(name, free_gib, match_card(name), holders=holders_of_gpu(), bf16=gpus[0].bf16)


def held_by_runs():
    """GiB of the first card that runs of this kit hold: free by the time that another one may begin.

    As nvidia-smi tells, and where it shows no processes, as in most containers, by the runs' own logs.
    """
    shown, held = {pid: used_gib or 0.0 for pid, _, used_gib in gpu_processes()}, {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[-3:-1] == ["ivlkit", "train"] and process.pid != os.getpid():
            held[command[-1]] = held.get(command[-1], 0.0) + shown.get(process.pid, 0.0)
    for spec in (spec for spec, used_gib in held.items() if not used_gib):
        steps = read_steps(Path(spec).with_name(LOG_FILE))
        held[spec] = CONTEXT_GIB + steps[-1]["memory_gib"] if steps else 0.0
    return sum(held.values())


def prepared_shape(recipe, config):
    """(model without memory, what `tuning.prepare` makes of it)."""
    model, family = empty_model(config)
    return model, prepare(SimpleNamespace(model=model, family=family, adapter=None), recipe)


@lru_cache(maxsize=4)  # a second or two each; recipes that are tried one after the other train few different things
def _shape(recipe, config):
    return prepared_shape(recipe, json.loads(config))


def needed_at(place, recipe):
    """GiB that have to be free at a place (`find_place`) for the largest batch that the recipe allows, of any rows."""
    job = Job(recipe, None, place)
    return needed_gib(_case(job, job.max_tiles).parts, place.device_type)


def _case(job, max_tiles):
    """The run with so many tiles a picture. Minutes are those of all its GPUs together, each such a card."""
    recipe, place, batch, minutes = job.recipe, job.place, _largest_batch(job, max_tiles), None
    parts = batch_parts(job.model, job.config, recipe, batch, device_type=place.device_type)
    if job.data is not None and place.card is not None:
        tokens, tiles = batch.total
        sizes = {"tokens": tokens, "tiles": tiles, "bins": batch.bins * recipe.processes}
        beside = STEP_SECONDS * batch.steps if place.device_type == "cuda" else 0.0
        minutes = (beside + predict_seconds(job.model, job.config, recipe, place, **sizes)) / 60
    return Case(max_tiles, batch.tokens, batch.tiles, parts, batch.steps, minutes, *batch.row)


def _largest_batch(job, max_tiles):
    """tokens and tiles of the largest batch; steps, tokens, tiles and bins of the run where there is data."""
    recipe = job.recipe
    if job.data is None:
        return _assumed_batch(job, max_tiles)
    processor, epochs = job.processor.with_tiles(max_tiles), math.ceil(recipe.epochs)
    lengths = epoch_lengths(job.data, processor, seed=recipe.seed, epochs=epochs, max_length=recipe.max_seq_length)
    batches = plan_batches(*lengths, recipe, job.config, packed=job.packs)
    _, tokens, tiles = batches.largest_batch()
    row = [float(np.mean(one)) for one in lengths]
    total = [mean * len(job.data) * recipe.epochs for mean in row]
    bins = batches.steps * batches.accumulation
    return SimpleNamespace(tokens=tokens, tiles=tiles, steps=batches.steps, row=row, total=total, bins=bins)


def _assumed_batch(job, max_tiles):
    """As many rows of `max_tiles` tiles and a thumbnail as the recipe's budgets hold."""
    recipe, each = job.recipe, max_tiles + (max_tiles > 1)
    row = min(recipe.max_seq_length, each * job.config.image_seq_length + TEXT_TOKENS)
    if job.packs:
        tokens, most = recipe.budgets
        tiles = min(tokens // row * each, most or math.inf)
    else:
        tokens, tiles = recipe.per_device_batch * row, recipe.per_device_batch * each
    return SimpleNamespace(tokens=tokens, tiles=tiles, steps=None, row=())


def advise(job):
    """What to change until it fits, one change after the other, each line with what is then needed."""
    job, free_gib, lines = copy(job), job.place.free_gib, []
    for changes in _changes(job.recipe, job.place.device_type):
        try:
            job.take(replace(job.recipe, **changes))
        except RecipeError:
            continue
        needed = needed_gib(_case(job, job.max_tiles).parts, job.place.device_type)
        settings = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        lines.append(f"{'then ' if lines else ''}{settings}: {needed:.2f} GiB (predicted)")
        if needed <= free_gib:
            return [*lines[:-1], f"{lines[-1]}, fits"]
    return [*lines, f"nothing here makes it fit into {free_gib:.1f} GiB; take a smaller model or more memory"]


def out_of_memory(recipe):
    """What to say and to change when this process ran out of the GPU's memory, whatever was predicted."""
    place = find_place()
    free, needed = f"{place.free_gib:.1f} GiB", f"{needed_at(place, recipe):.1f} GiB (predicted)"
    lines = [f"memory ran out: {free} of {place.name} for this run; its largest possible batch needs {needed}"]
    lines += [f"held by others: {holder}" for holder in place.holders]
    return "\n".join([*lines, *(f"to change: {line}" for line in advise(Job(recipe, None, place)))])


def _changes(recipe, device_type):
    """In the order of what they cost: time first, then what the model sees, then how it trains."""
    if recipe.gradient_checkpointing == "none" and not recipe.compile:
        yield {"gradient_checkpointing": "selective"}
    if recipe.gradient_checkpointing != "full":
        yield {"gradient_checkpointing": "full"}
    if recipe.packing and recipe.budgets[0] > recipe.max_seq_length:
        yield {"bin_tokens": recipe.max_seq_length}
    elif not recipe.packing and recipe.per_device_batch > 1:
        yield {"per_device_batch": 1}
    if not recipe.has_adapters:
        yield {"optimizer": "paged_adamw_8bit"}
    yield from less_memory(recipe)
    if recipe.weights != "float8" and not recipe.vision_offload:
        yield {"weights": "float8"}
    if not recipe.vision_offload and device_type == "cuda":
        yield {"weights": "bf16", "vision_offload": True}
    for tiles in (6, 1):
        if (recipe.max_tiles or 12) > tiles:
            length = min(recipe.max_seq_length, max(1024, row_length(tiles)))
            yield {"max_tiles": tiles, "max_seq_length": length} | ({"bin_tokens": length} if recipe.packing else {})


def row_length(tiles):
    """Tokens of a row of a released model with so many tiles and a thumbnail: 2,304 for 6."""
    return 256 * (tiles + (tiles > 1)) + 512


def _notes(job, steps, features):
    place = job.place
    if not job.is_here:
        yield f"{job.recipe.model} is not here: sizes as released"
    if job.recipe.name in RELEASED and steps and steps < FEW_UPDATES:
        yield few_updates(steps)
    if job.data is None:
        yield "no data given: the largest batch that the recipe allows; no minutes"
    elif place.card is None:
        yield f"no minutes: {place.name} is not listed; name a card: {', '.join(CARDS)}"
    if not place.bf16 and job.recipe.packing:
        yield "a card without bf16: float16, and padded batches in place of bins"
    if seconds := bus_seconds(job.model, job.recipe, place):
        rate = place.card.bus_gb_per_second
        yield (
            f"vision_offload: {seconds * rate:.1f} GB of the host's memory; they cross to the GPU for every "
            f"batch, {seconds:.2f} s at {rate} GB/s (assumed), of which minutes count what the tower's "
            "products don't hide"
        )
    if features:
        yield f"keep_features: {features / 1e9:.2f} GB of the disk; minutes count the tower in every epoch all the same"
    if place.device_type == "cpu":
        yield "on a CPU: memory is what torch allocates; minutes follow a short test of its speed, to a factor of two"
    if job.recipe.processes > 1:
        yield f"each of {job.recipe.processes} GPUs; more than two were never measured"
