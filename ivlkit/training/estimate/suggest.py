"""A recipe for so many rows on this card, with a line for each thing that was chosen and why.

The card decides how the run computes, never what it sees: bins first, then recomputation, then the vision tower on the
host, then NF4. The rows decide how long it trains.
"""

import hashlib
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from ...data.datasets.opening import open_data
from ...data.files import write_whole
from ...data.rows.media import image_size
from ...data.tiling import choose_grid
from ...errors import RecipeError
from ...models.families import match_family
from ...models.shapes import config_of
from ..methods import TUNINGS, WHOLE, less_memory
from ..recipes import Recipe
from ..recipes import recipe as named_recipe
from ..run import RUNS_FOLDER
from .planner import find_place, needed_at, row_length

BINS = (16384, 8192)  # tokens, beside the shortest that a row fits into
BATCHES = (4, 2, 1)  # rows of a padded batch, on cards without a kernel for bins
IN_HAND = 1.07  # of the predicted memory: plans were 0.7 % under what was measured to 9.6 % over it
PASSES = (3, 10)  # epochs at least and at most
PUBLISHED = "published practice, not measured here"
RATE_SOURCES = (
    "Unsloth's guide 2e-4; LLaMA-Factory's users and ms-swift's InternVL2 example 1e-4 on 1,000 to 5,000 rows; "
    "Thinking Machines, 'LoRA without regret': about ten times that of full fine-tuning"
)
FEWER_TILES = (6, 4, 2, 1)
ADAPTED = {"lora_rank", "lora_alpha", *WHOLE}


# What small sets are trained with by LoRA: rate, total batch, updates at least (within `PASSES`), warm-up, source.
PRACTICES = {
    "2b": (2e-4, 8, 150, 0.1, PUBLISHED),
    "4b": (2e-4, 8, 150, 0.1, PUBLISHED),
    "26b": (1e-4, 8, 150, 0.1, PUBLISHED),
    "nano": (3e-3, 16, 30, 0.03, "measured on handwriting, benchmarks/nano.py"),
}


def suggest(model, data, *, gpu_gib=None, card=None, folder=None, **fixed):
    """A LoRA recipe for this model, these rows and this card; its `reasons` say what was chosen and why.

    What was chosen is kept by model, data and card and found again, so that the same call gives the same recipe, and
    its run is attached to, whatever is free on the card by then.

    Args:
        model: a key or a model's folder; only its sizes are looked at.
        data: what `open_data` gives, or a path.
        gpu_gib: memory to fit into; None: the named card's, else what is free here, own runs' memory counted as free.
        card: one of `training.estimate.cards.CARDS`; None: this machine's.
        folder: where the choice is kept; default `runs/suggested`.
        fixed: fields of the recipe that are decided already: `suggest("2b", data, epochs=2)`.
    Returns: a `Recipe`. Tiles, rank and data are never changed to save memory.
    Raises: RecipeError where only fewer tiles would fit, with the line that asks for them, or where nothing would.
    """
    config, _ = config_of(model)
    data = open_data(data)
    key = match_family(config).key
    place = find_place(gpu_gib, card)
    asked = [str(model), data.fingerprint, place.name, gpu_gib, sorted(fixed.items())]
    digest = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:8]
    kept = Path(folder or RUNS_FOLDER / "suggested") / f"{key}-{digest}.yaml"
    found = _read(kept)
    if found:
        return found
    rows, why = _for_rows(key, len(data), fixed)
    base = named_recipe(f"{key}-lora", **{"name": f"{key}-suggested", "model": str(model)} | rows | fixed)
    recipe, why_card = _for_card(base, place, data, fixed)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, yaml.safe_dump({"recipe": asdict(recipe), "reasons": [*why_card, *why]}, sort_keys=False))
    return _read(kept)


def _read(kept):
    """The recipe of an earlier call, with its reasons; None where there is none, or one that can't be read any more."""
    try:
        written = yaml.safe_load(kept.read_text(encoding="utf-8"))
        recipe = Recipe.from_dict(written["recipe"])
    except (FileNotFoundError, yaml.YAMLError, RecipeError, TypeError, KeyError):
        return None
    object.__setattr__(recipe, "reasons", (*written["reasons"], f"kept in {kept}: remove it to choose anew"))
    return recipe


# the rows --------------------------------------------------------------------------------------------------------


def _for_rows(key, rows, fixed):
    """(fields, reasons): rate, batch, epochs and warm-up of so many rows."""
    rate, batch, least, warmup, source = PRACTICES[key]
    released, batch = named_recipe(f"{key}-lora"), fixed.get("total_batch", batch)
    asked = named_recipe(released, **{"warmup_ratio": warmup, "zero_stage": 0} | fixed)
    adapters = f"LoRA of rank {asked.lora_rank}, α {asked.lora_alpha}" if asked.has_adapters else "no adapters"
    epochs = fixed.get("epochs", min(max(-(-least * batch // rows), PASSES[0]), PASSES[1]))
    updates = -(-round(rows * epochs) // batch)
    fields = {"learning_rate": rate, "total_batch": batch, "epochs": float(epochs), "warmup_ratio": warmup}
    sources = f": {RATE_SOURCES}; released {released.learning_rate:g}" if source == PUBLISHED else ""
    few = f"; under {least}, and more passes would only learn them by heart: label more rows"
    reasons = [
        f"learning_rate {fixed.get('learning_rate', f'{rate:g} ({source}{sources})')}",
        f"total_batch {batch}, {epochs:g} epochs: {updates:,} updates; each of {rows:,} rows is seen {epochs:g} times "
        f"({source}: {least} updates or more, {PASSES[0]} to {PASSES[1]} passes)" + (few if updates < least else ""),
        f"warm-up over {asked.warmup_ratio:.0%} of them" + ("" if "warmup_ratio" in fixed else f" ({source})"),
        f"{adapters}, vision tower {asked.vision}" + ("" if ADAPTED & fixed.keys() else f": as {released.name}"),
    ]
    return fields | {"zero_stage": 0}, reasons


# the card ---------------------------------------------------------------------------------------------------------


def _for_card(base, place, data, fixed):
    """(the fastest way to compute the recipe that fits, reasons).

    Raises: RecipeError if none does.
    """
    for choices in _ways(base, place):
        if not _fits(base, choices[-1] | fixed, place):
            continue
        for changes in choices:
            needed = _fits(base, changes | fixed, place)
            if needed:
                return replace(base, **changes | fixed), _why(changes | fixed, needed, place, fixed=fixed)
    raise RecipeError(_too_small(base, place, data, fixed))


def _ways(base, place):
    """Lists of changes, the fastest way first, and in each what needs least at its end."""
    if base.packing and place.bf16:
        sizes = [{"bin_tokens": size} for size in BINS if size > base.max_seq_length]
        sizes.append({"bin_tokens": base.max_seq_length})
    else:
        sizes = [{"per_device_batch": size} for size in (base.per_device_batch, *BATCHES)]
        sizes = [size for size in sizes if base.total_batch % size["per_device_batch"] == 0]
    for policy in ("none", "full"):
        yield [{"gradient_checkpointing": policy} | size for size in sizes]
    small = {"gradient_checkpointing": "full"} | sizes[-1]
    for changes in ({}, *less_memory(base)):
        yield [small | changes]
        if base.vision == "frozen" and place.device_type == "cuda":
            yield [small | changes | {"vision_offload": True}]


def _fits(base, changes, place):
    """GiB that the recipe needs with these changes, or None if they are not free."""
    needed = needed_at(place, replace(base, **changes))
    return needed if place.free_gib is None or needed * IN_HAND <= place.free_gib else None


def _why(changes, needed, place, *, fixed):
    yield f"{place.name}: {place.free_gib:.1f} GiB free, {needed:.1f} needed at most (predicted)"
    if "bin_tokens" in changes:
        largest = "" if "bin_tokens" in fixed else ", the largest that fit: larger ones compute faster"
        yield f"bins of {changes['bin_tokens']:,} tokens{largest}"
    else:
        most = "" if "per_device_batch" in fixed else ", the most that fit"
        yield f"padded batches of {changes['per_device_batch']} rows{most}"
    if changes["gradient_checkpointing"] == "none":
        yield "nothing computed again: what backward needs fits"
    else:
        yield "activations computed again in backward: a quarter slower, a fraction of the memory"
    if changes.get("vision_offload"):
        yield "vision tower in the host's memory: its layers visit the card one at a time"
    if why := TUNINGS[changes.get("language", "lora")].why:
        yield why if importlib.util.find_spec("bitsandbytes") else f"{why}; first: pip install 'ivlkit[quant]'"


def _too_small(base, place, data, fixed):
    """What to say where nothing fits: with how many tiles it would, one row at that budget, the line to write."""
    *_, (smallest,) = _ways(base, place)
    found = f"{base.model} on {place.name}, {place.free_gib:.1f} GiB free: nothing fits"
    for tiles in FEWER_TILES:
        length = row_length(tiles)
        small = {"max_tiles": tiles, "max_seq_length": length}
        if "max_tiles" in fixed or base.max_seq_length <= length:
            continue
        needed = _fits(base, smallest | fixed | small | {"bin_tokens": length}, place)
        if needed:
            settings = ", ".join(f"{name}={value!r}" for name, value in (small | fixed).items())
            return (
                f"{found} with the model's own tiles; {tiles} a picture would, {needed:.1f} GiB (predicted)"
                f"{_a_row_of(data, tiles)}; if you can still read it there, write "
                f"ivlkit.suggest({base.model!r}, data, {settings})"
            )
    return f"{found}; expected more memory; take a smaller model or a larger card"


def _a_row_of(data, tiles):
    """How the first picture of the data would be cut: "; train.jsonl:1, 1,920 × 1,080 px, becomes 3 × 2 tiles"."""
    for number in range(min(len(data), 100)):
        for picture in data[number].images[:1]:
            width_px, height_px = image_size(picture)
            columns, rows = choose_grid(width_px, height_px, max_tiles=tiles)
            return f"; {data[number].where}, {width_px:,} × {height_px:,} px, becomes {columns} × {rows} tiles"
    return ""
