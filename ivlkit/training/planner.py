"""Will it fit, how long will it take, how much will it write: known before a GPU is paid for.

Memory is added up from parts by layer shapes (`footprint`), for the largest batch of the run's own plan. Time is the
arithmetic at a share of the card's matrix rate, and the activations' bytes moved a number of times at its bandwidth.
"""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from ..data.doctor import epoch_lengths
from ..data.mixture import Data, open_data
from ..errors import RecipeError
from ..hardware import GIB, holders_of_gpu, read_ram_gib
from ..models.attention import rope_limits
from ..models.processor import load_processor
from ..models.shapes import config_of, empty_model
from . import footprint
from .recipes import Recipe
from .recipes import recipe as named_recipe
from .schedule import operations, plan_grouped, plan_packed, tile_cost
from .trainer import zero_config
from .tuning import prepare

# Time: fitted to `MEASURED`, within 20 % of every row.
MATRIX_SHARE = 0.62  # of a card's measured matrix rate, reached by the products alone
PASSES = {False: 26, True: 15}  # times a byte that backward needs is moved, eager and compiled; a third more recomputed
# Memory beside what torch allocates.
CONTEXT_GIB = 0.6  # CUDA's context and libraries: assumed, not measured
ALLOCATOR_SLACK = 0.1  # of activations, reserved in pieces that fit nothing: assumed, not measured
LISTED_TO_MEASURED = 790 / 989  # an H100's bf16 product of 8,192 x 8,192 beside its data sheet
TILE_CASES = (12, 6, 1)
TEXT_TOKENS = 256  # of a row beside its tiles, where there is no data


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet lists it: dense 16-bit TFLOP/s with float32 sums, TB/s, GiB."""

    tflops: float
    tb_per_second: float
    gib: float
    bf16: bool = True

    @property
    def matrix_rate(self):
        """Operations a second that large products reach."""
        return self.tflops * 1e12 * LISTED_TO_MEASURED


CARDS = {
    "H200": Card(989, 4.8, 139.8),
    "H100": Card(989, 3.35, 79.2),
    "A100": Card(312, 2.04, 79.2),
    "A100 40GB": Card(312, 1.56, 39.4),
    "L40S": Card(362, 0.864, 44.4),
    "RTX 6000 Ada": Card(364, 0.96, 47.4),
    "A6000": Card(155, 0.768, 47.5),
    "RTX 4090": Card(165, 1.008, 23.6),
    "RTX 3090": Card(71, 0.936, 23.6),
    "A10": Card(125, 0.6, 22.1),
    "L4": Card(121, 0.3, 22.2),
    "V100": Card(125, 0.9, 31.7, bf16=False),
    "T4": Card(65, 0.32, 14.6, bf16=False),
}


@dataclass(frozen=True)
class Measured:
    """A run that was measured: peak GiB that torch allocated, useful tokens a second."""

    model: str
    language: str
    bin_tokens: int
    gradient_checkpointing: str
    compile: bool
    vision_int8: bool
    adapter_bytes: int  # 4: adapters computed in float32, without autocast
    peak_gib: float
    tokens_a_second: int
    by: str


# On one H100: LoRA of rank 16, dropout 0.05, about 2,260 tokens and 8.2 tiles a row. The kit's rows are of
# `benchmarks/train_gpu.py`; the prototype was 40 lines without a Trainer that tried bins, kernel and compiling first.
MEASURED = (
    Measured("2b", "lora", 14336, "none", False, False, 2, 51.3, 24_426, "the kit"),
    Measured("2b", "lora", 14336, "full", False, False, 2, 8.16, 18_363, "the kit"),
    Measured("2b", "lora", 14336, "none", True, False, 2, 43.6, 33_502, "the kit"),
    Measured("2b", "lora", 14336, "full", True, False, 2, 8.22, 25_349, "the kit"),
    Measured("2b", "full", 14336, "full", False, False, 2, 36.9, 19_737, "the kit"),
    Measured("2b", "lora", 14336, "full", False, False, 4, 9.6, 13_273, "a prototype"),
    Measured("2b", "lora", 14336, "none", False, False, 4, 64.9, 18_177, "a prototype"),
    Measured("26b", "lora", 8192, "full", False, False, 4, 58.4, 1_963, "a prototype"),
    Measured("26b", "lora", 8192, "full", True, False, 2, 56.3, 2_686, "a prototype"),
    Measured("26b", "qlora", 4096, "full", False, True, 4, 22.6, 1_532, "a prototype"),
)


@dataclass(frozen=True)
class Case:
    """The run with so many tiles a picture at most."""

    max_tiles: int
    tokens: int  # of the largest batch, padding counted
    tiles: int  # of the same
    parts: dict  # bytes by name; they add up to the peak that torch allocates
    steps: int | None  # None without data
    minutes: float | None  # None without data or card

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
    where: str  # what `free_gib` is of
    holders: tuple[str, ...]  # programs that hold the rest
    checkpoint_gb: float
    disk_gb: float
    measured: str  # what was measured with the same settings, or ""
    advice: tuple[str, ...]
    notes: tuple[str, ...]

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
        return [head, *([*_case_cells(case), *_sums(case, self.device_type)] for case in self.cases)]

    def _lines(self):
        state = {None: "nothing known to fit into", True: "fits", False: "DOES NOT FIT"}[self.fits]
        free = "" if self.free_gib is None else f"; {self.free_gib:.1f} GiB free on {self.where}"
        yield f"{self.recipe.name}: needs {self.needed_gib:.2f} GiB (predicted){free}: {state}"
        yield from (f"held by others: {holder}" for holder in self.holders)
        yield f"disk: {self.disk_gb:.2f} GB, of checkpoints of {self.checkpoint_gb:.2f} GB (predicted)"
        yield self.measured or "measured: no run with these settings; every number here is predicted"
        yield from self.notes
        yield from (f"to change: {line}" for line in self.advice)

    def __str__(self):
        rows = self.table()
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*self._lines(), *lines])

    __repr__ = __str__

    def _repr_html_(self):
        from ..show.html import table_html

        head, *rows = self.table()
        return table_html(rows, header=head, title="\n".join(self._lines()))


def plan(recipe, *, data=None, gpu_gib=None, card=None):
    """Predict memory, minutes and disk of a run, and what to change where it does not fit.

    Args:
        recipe: a `Recipe` or its name; its model need not be here.
        data: what `open_data` gives, or a path: for the run's own batches, steps and minutes; needs the model's
            tokenizer. None: a batch as large as the recipe allows, of pictures of as many tiles as there may be.
        gpu_gib: memory to fit into, all of it free. None: the named card's, else what is free on this machine.
        card: one of `CARDS`, to predict minutes and memory there. None: this machine's.
    Returns: `RunPlan` with a case for the recipe's own tiles, and for 12, 6 and 1.
    Raises: RecipeError for an unknown card, CheckpointError for a model that is no folder, DataError for the data.
    """
    recipe = recipe if isinstance(recipe, Recipe) else named_recipe(recipe)
    place = _place(gpu_gib, card)
    job = _job(recipe, data, place)
    own, *others = _tile_counts(job)
    cases = [_case(job, own), *(_case(job, tiles) for tiles in others)]
    checkpoint, disk = disk_bytes(job.model, recipe)
    fits = place.free_gib is None or needed_gib(cases[0].parts, place.device_type) <= place.free_gib
    return RunPlan(
        recipe=recipe,
        device_type=place.device_type,
        cases=tuple(cases),
        free_gib=place.free_gib,
        where=place.name,
        holders=place.holders,
        checkpoint_gb=checkpoint / 1e9,
        disk_gb=disk / 1e9,
        measured=_measured(recipe),
        advice=() if fits else tuple(advise(job, place.free_gib)),
        notes=tuple(_notes(job, place)),
    )


def _place(gpu_gib, card):
    """Where it is to run: device type, card, free memory and who holds the rest."""
    import torch

    if card is not None and card not in CARDS:
        raise RecipeError(f"card {card!r}; expected one of {', '.join(CARDS)}")
    if card is not None or gpu_gib is not None:
        found = CARDS.get(card)
        name = card or "the card you named"
        return SimpleNamespace(
            device_type="cuda", card=found, free_gib=gpu_gib or found.gib, name=name, holders=(), bf16=_has_bf16(found)
        )
    if not torch.cuda.is_available():
        return SimpleNamespace(
            device_type="cpu", card=probe_cpu(), free_gib=read_ram_gib()[1], name="this machine", holders=(), bf16=True
        )
    free, _ = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return SimpleNamespace(
        device_type="cuda",
        card=match_card(name),
        free_gib=(free + torch.cuda.memory_reserved()) / GIB,
        name=name,
        holders=holders_of_gpu(),
        bf16=torch.cuda.get_device_capability()[0] >= 8,
    )


def _has_bf16(card):
    return card is None or card.bf16


def match_card(name):
    """The card of a driver's name: "NVIDIA A100-SXM4-40GB" → A100 40GB's; None for one that is not listed."""
    plain = name.replace("-", " ").replace("SXM4 ", "").replace("PCIE ", "").replace("PCIe ", "")
    found = [key for key in CARDS if f" {key}" in f" {plain}"]
    return CARDS[max(found, key=len)] if found else None


def probe_cpu(size=768, repeats=3):
    """This CPU as a `Card`: float32 products and copies, a tenth of a second."""
    import time

    import torch

    left, copied, target = torch.ones(size, size), torch.ones(2**24), torch.ones(2**24)
    seconds = []
    for work in (lambda: left @ left, lambda: target.copy_(copied)):
        work()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        seconds.append((time.perf_counter() - began) / repeats)
    rate, moved = 2 * size**3 / seconds[0], 2 * copied.nbytes / seconds[1]
    return Card(rate / 1e12 / LISTED_TO_MEASURED, moved / 1e12, math.inf, bf16=False)


def _job(recipe, data, place):
    """What all cases share: the model without memory, prepared as the recipe says, and the data."""
    config, is_here = config_of(recipe.model)
    if data is not None and not isinstance(data, Data):
        data = open_data(data)
    processor = load_processor(recipe.model) if data is not None else None
    model, wrapped = prepared_shape(recipe, config)
    packs = recipe.packing and place.bf16
    return SimpleNamespace(
        recipe=recipe,
        data=data,
        processor=processor,
        config=model.config,
        released=config,
        model=wrapped,
        place=place,
        packs=packs,
        is_here=is_here,
    )


def prepared_shape(recipe, config):
    """(model without memory, what `tuning.prepare` makes of it)."""
    model, family = empty_model(config)
    return model, prepare(SimpleNamespace(model=model, family=family, adapter=None), recipe)


def _tile_counts(job):
    own = job.recipe.max_tiles or job.released.get("max_dynamic_patch", 12)
    return [own, *(count for count in TILE_CASES if count != own)]


def _case(job, max_tiles):
    batch = _largest_batch(job, max_tiles)
    parts = batch_parts(job.model, job.config, job.recipe, batch, device_type=job.place.device_type)
    known = job.data is not None and job.place.card is not None
    return Case(
        max_tiles,
        batch.tokens,
        batch.tiles,
        parts,
        batch.steps,
        seconds_of(job, batch) / 60 if known else None,
    )


def _largest_batch(job, max_tiles):
    """tokens and tiles of the largest batch; steps, tokens, tiles and bins of the run where there is data."""
    recipe, config = job.recipe, job.config
    if job.data is None:
        return _assumed_batch(job, max_tiles)
    lengths = epoch_lengths(
        job.data,
        job.processor.with_tiles(max_tiles),
        seed=recipe.seed,
        epochs=math.ceil(recipe.epochs),
        max_length=recipe.max_seq_length,
    )
    rope = rope_limits(config.text_config)
    if job.packs:
        batches = plan_packed(*lengths, recipe, rope=rope, tile_cost=tile_cost(config, recipe))
    else:
        batches = plan_grouped(*lengths, recipe, rope=rope)
    _, tokens, tiles = batches.worst()
    total = [np.mean(np.atleast_2d(one), axis=0).sum() * recipe.epochs for one in lengths]
    return SimpleNamespace(
        tokens=tokens, tiles=tiles, steps=batches.steps, total=total, bins=batches.steps * batches.accumulation
    )


def _assumed_batch(job, max_tiles):
    """As many rows of `max_tiles` tiles and a thumbnail as the recipe's budgets hold."""
    recipe, each = job.recipe, max_tiles + (max_tiles > 1)
    row = min(recipe.max_seq_length, each * job.config.image_seq_length + TEXT_TOKENS)
    if job.packs:
        tokens, most = recipe.budgets
        tiles = tokens // row * each
        return SimpleNamespace(tokens=tokens, tiles=min(tiles, most or tiles), steps=None)
    return SimpleNamespace(tokens=recipe.per_device_batch * row, tiles=recipe.per_device_batch * each, steps=None)


def batch_parts(model, config, recipe, batch, *, device_type, cast=False):
    """Bytes of each part at the step's peak, for a batch of `tokens` and `tiles`.

    Args: model: what `tuning.prepare` returned, without memory or with; cast: adapters computed in float32 (PEFT's own
        way without autocast), as in the prototype.
    Returns: {part: bytes}; the last, "working", is the largest of what is alive for a moment only.
    """
    zero, sdpa = _is_sharded(recipe) and device_type == "cuda", device_type == "cpu" or not recipe.packing
    precision = footprint.Precision(2, 2, 1) if zero else footprint.precision_of(recipe, device_type)
    frozen, trained = footprint.weight_bytes(model, recipe, frozen_bytes=precision.stream)
    state = footprint.optimizer_bytes(model, recipe.optimizer)
    copies = 0 if zero or precision.stream == precision.compute else 2 * footprint.copied_parameters(model)
    kept, working = _activations(config, recipe, batch, _layers(recipe, precision, cast=cast, sdpa=sdpa), copies)
    held = {"weights": frozen + trained, "gradients": trained, "optimizer": state}
    if zero:
        held = _sharded(recipe, frozen=frozen, trained=trained, state=state)
        working += _buckets(recipe, trained)
    elif recipe.gpus > 1:
        held["gradients"] *= 2  # DDP's buckets
    return {**held, "activations": kept, "working": working}


def _is_sharded(recipe):
    return recipe.gpus > 1 and recipe.zero_stage > 0


def _sharded(recipe, *, frozen, trained, state):
    """DeepSpeed trains in bf16, with float32 masters beside the optimizer's state; each stage divides one more part."""
    held = {"weights": frozen + trained // 2, "gradients": trained // 2, "optimizer": state + trained}
    first_stage = {"optimizer": 1, "gradients": 2, "weights": 3}
    return {part: size // (recipe.gpus if recipe.zero_stage >= first_stage[part] else 1) for part, size in held.items()}


def _buckets(recipe, trained):
    """Of bf16 gradients on their way, and at stage 3 the weights that were fetched (`stage3_max_live_parameters`)."""
    zero = zero_config(recipe.zero_stage)["zero_optimization"]
    live = zero.get("stage3_max_live_parameters", 0)
    return round(2 * (min(zero["reduce_bucket_size"], trained // 4) + live))


def _layers(recipe, precision, *, cast=False, sdpa=False):
    language = "lora" if recipe.language == "qlora" else recipe.language
    common = {"precision": precision, "dropout": recipe.lora_dropout > 0, "rank": recipe.lora_rank}
    common |= {"compiled": recipe.compile, "cast": cast, "sdpa": sdpa}
    return SimpleNamespace(
        language=footprint.Layer(language, **common), vision=footprint.Layer(recipe.vision, **common)
    )


def _activations(config, recipe, batch, how, copies):
    """(bytes kept from forward to backward, bytes of the largest moment beside them)."""
    text, vision, precision = config.text_config, config.vision_config, how.language.precision
    policy = recipe.gradient_checkpointing
    inside = footprint.decoder_layer_bytes(text, how.language)
    each, again = {
        "none": (inside, 0),
        "selective": (footprint.selected_decoder_bytes(text, precision), inside),
        "full": (precision.stream * text.hidden_size, inside),
    }[policy]
    kept = batch.tokens * (text.num_hidden_layers * each + footprint.norm_bytes(text.hidden_size, how.language))
    kept += batch.tiles * 3 * 4 * vision.image_size[0] ** 2  # pixel values
    tower, tower_moment = _tower_activations(config, recipe, batch, how.vision)
    kept += tower
    logits = footprint.logits_bytes(batch.tokens, text.vocab_size, compute=precision.compute) + copies
    held = copies if policy == "none" else copies // text.num_hidden_layers
    backward = batch.tokens * (again + footprint.backward_bytes(text, precision)) + held + _dequantised(text, recipe)
    return kept, max(logits, backward, tower_moment - kept)


def _dequantised(text, recipe):
    """One matrix of NF4 as bf16, while it is multiplied."""
    return 2 * text.hidden_size * text.intermediate_size if recipe.language == "qlora" else 0


def _tower_activations(config, recipe, batch, layer):
    """(bytes that the tower and the projector keep, bytes of a call of the tower)."""
    vision, text, places = config.vision_config, config.text_config, footprint.patches(config.vision_config)
    kept = 0
    trained = _trained_vision_layers(recipe, vision)
    if trained:
        layer = replace(layer, tuning="full" if recipe.unfreeze_vit_layers else layer.tuning)
        inside = footprint.vision_layer_bytes(vision, layer)
        each = layer.precision.stream * vision.hidden_size if recipe.gradient_checkpointing == "full" else inside
        kept += batch.tiles * places * trained * each
        call = batch.tiles * places * (inside if recipe.gradient_checkpointing == "full" else 0)
    else:
        call = footprint.tower_call_bytes(vision, min(batch.tiles, _tiles_a_call(recipe)), layer.precision)
    if trained or recipe.projector == "full":
        widths = (vision.hidden_size, text.hidden_size)
        projector = footprint.projector_bytes(*widths, tuning=recipe.projector, precision=layer.precision)
        kept += batch.tiles * config.image_seq_length * projector
    return kept, call


def _tiles_a_call(recipe):
    from ..models.architecture import TILES_A_CHUNK
    from .layers import COMPILED_TILES

    return COMPILED_TILES if recipe.compile else TILES_A_CHUNK


def _trained_vision_layers(recipe, vision):
    if recipe.vision != "frozen":
        return vision.num_hidden_layers
    return len(range(vision.num_hidden_layers)[recipe.unfreeze_vit_layers :]) if recipe.unfreeze_vit_layers else 0


def needed_gib(parts, device_type):
    """GiB that have to be free for the parts."""
    allocated = sum(parts.values()) / GIB
    slack = ALLOCATOR_SLACK * (parts["activations"] + parts["working"]) / GIB
    return allocated if device_type == "cpu" else allocated + slack + CONTEXT_GIB


def seconds_of(job, batch):
    """Of the whole run on the job's card, and on so many of them as the recipe says."""
    tokens, tiles = batch.total
    return predict_seconds(
        job.model, job.config, job.recipe, job.place, tokens=tokens, tiles=tiles, bins=batch.bins * job.recipe.gpus
    )


def predict_seconds(model, config, recipe, place, *, tokens, tiles, bins, cast=False):
    """Products at `MATRIX_SHARE` of the card's rate, activations moved `PASSES` times, NF4 made bf16 thrice a bin."""
    precision = footprint.precision_of(recipe, place.device_type)
    how, vision, text = _layers(recipe, precision, cast=cast), config.vision_config, config.text_config
    tile, token = operations(config, recipe)
    moved = tokens * footprint.decoder_layer_bytes(text, how.language) * text.num_hidden_layers
    trained = _trained_vision_layers(recipe, vision)
    moved += tiles * footprint.patches(vision) * footprint.vision_layer_bytes(vision, how.vision) * trained
    again = {"none": 1, "selective": 7 / 6, "full": 4 / 3}[recipe.gradient_checkpointing]
    products = (tile * tiles + token * tokens) / (MATRIX_SHARE * place.card.matrix_rate)
    bytes_moved = moved * PASSES[recipe.compile] * again
    if recipe.language == "qlora":
        bytes_moved += 3 * bins * (footprint.NF4_BYTES + 4) * footprint.quantised_parameters(model)
    return float(products + bytes_moved / (place.card.tb_per_second * 1e12)) / recipe.gpus


def disk_bytes(model, recipe):
    """(bytes of a checkpoint, of all that are there at once): those kept, one that is being written, the result."""
    if recipe.has_adapters:
        weights = sum(4 * value.numel() for value in model.parameters() if value.requires_grad)
    else:
        weights = sum(4 * value.numel() for value in model.parameters())
    state = footprint.optimizer_bytes(model, recipe.optimizer.removeprefix("paged_"))
    return weights + state, (weights + state) * (recipe.save_total_limit + 1) + weights


def advise(job, free_gib):
    """What to change until it fits, one change after the other, each line with what is then needed."""
    recipe, lines = job.recipe, []
    for changes in _changes(recipe):
        try:
            recipe = replace(recipe, **changes)
        except RecipeError:
            continue
        trial = SimpleNamespace(**{**vars(job), "recipe": recipe, "model": prepared_shape(recipe, job.released)[1]})
        tiles = recipe.max_tiles or _tile_counts(job)[0]
        needed = needed_gib(_case(trial, tiles).parts, job.place.device_type)
        said = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        lines.append(f"{'then ' if lines else ''}{said}: {needed:.2f} GiB (predicted)")
        if needed <= free_gib:
            return [*lines[:-1], f"{lines[-1]}, fits"]
    return [*lines, f"nothing here makes it fit into {free_gib:.1f} GiB; take a smaller model or more memory"]


def out_of_memory(recipe):
    """What to say and to change when this process ran out of the GPU's memory, whatever was predicted."""
    place = _place(None, None)
    job = _job(recipe, None, place)
    parts = _case(job, _tile_counts(job)[0]).parts
    free, needed = f"{place.free_gib:.1f} GiB", f"{needed_gib(parts, place.device_type):.1f} GiB (predicted)"
    lines = [f"memory ran out: {free} of {place.name} for this run; its largest possible batch needs {needed}"]
    lines += [f"held by others: {holder}" for holder in place.holders]
    return "\n".join([*lines, *(f"to change: {line}" for line in advise(job, place.free_gib))])


def _changes(recipe):
    """In the order of what they cost: time first, then what the model sees, then how it trains."""
    if recipe.gradient_checkpointing == "none" and not recipe.compile:
        yield {"gradient_checkpointing": "selective"}
    if recipe.gradient_checkpointing != "full":
        yield {"gradient_checkpointing": "full"}
    if recipe.packing and recipe.budgets[0] > recipe.max_seq_length:
        yield {"bin_tokens": recipe.max_seq_length}
    elif not recipe.packing and recipe.per_device_batch > 1:
        yield {"per_device_batch": 1}
    if recipe.full_precision:
        yield {"optimizer": "paged_adamw_8bit"}
        yield {"projector": "frozen", "language": "lora", "optimizer": "adamw"}
    if recipe.language != "qlora":
        yield {"language": "qlora"}
    if not recipe.vision_int8:
        yield {"vision_int8": True}
    for tiles in (6, 1):
        if (recipe.max_tiles or 12) > tiles:
            length = max(1024, 256 * (tiles + (tiles > 1)) + 512)
            length = min(recipe.max_seq_length, length)
            yield {"max_tiles": tiles, "max_seq_length": length} | ({"bin_tokens": length} if recipe.packing else {})


def _measured(recipe):
    for one in MEASURED:
        names = ("model", "language", "gradient_checkpointing", "compile", "vision_int8")
        same = all(getattr(recipe, name) == getattr(one, name) for name in names)
        if same and recipe.budgets[0] == one.bin_tokens and recipe.packing and recipe.vision == "frozen":
            return (
                f"measured: {one.peak_gib} GiB allocated and {one.tokens_a_second:,} tokens/s by {one.by} with "
                "these settings on an H100, about 2,260 tokens and 8.2 tiles a row"
            )
    return ""


def _notes(job, place):
    if not job.is_here:
        yield f"{job.recipe.model} is not here: sizes as released"
    if job.data is None:
        yield "no data given: the largest batch that the recipe allows; no minutes"
    elif place.card is None:
        yield f"no minutes: {place.name} is not listed; name a card: {', '.join(CARDS)}"
    if not place.bf16 and job.recipe.packing:
        yield "a card without bf16: float16, and padded batches in place of bins"
    if place.device_type == "cpu":
        yield "on a CPU: memory is what torch allocates; minutes follow a short test of its speed, to a factor of two"
    if job.recipe.gpus > 1:
        yield f"each of {job.recipe.gpus} GPUs; never measured on several"


def _case_cells(case):
    batch = f"{case.tokens:,} tokens, {case.tiles} tiles"
    return [str(case.max_tiles), batch, *(f"{value / GIB:.2f}" for value in case.parts.values())]


def _sums(case, device_type):
    minutes = "-" if case.minutes is None else f"{case.minutes:.1f}"
    needed = needed_gib(case.parts, device_type)
    steps = "-" if case.steps is None else f"{case.steps:,}"
    return [f"{case.allocated_gib:.2f}", f"{needed:.2f}", steps, minutes]
