"""The plan of a whole run: which rows in which micro-batch, on which rank. Fixed by the seed before it starts.

Every row is seen exactly `epochs` times, an optimiser step is exactly `total_batch` rows (the last may be smaller), and
all ranks get the same number of micro-batches. No sampler draws or repeats anything later.

`plan_packed` makes bins of whole rows, nothing padded; `plan_grouped` makes padded batches of rows of like length.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from torch.utils.data import Dataset

from ...data.checking.lengths import checked, measure
from ...data.collate import collate
from ...data.encode import IGNORE_INDEX, Example, encode
from ...data.packing import Budgets, group_step, pack_step, rope_groups
from ...errors import DataError
from ...models.modeling.attention import rope_limits
from ..functions import choose
from .loss import sample_weights


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one rank computes at once; a masked one only keeps ranks in step and weighs nothing.

    One without rows is computed by no rank: it fills up a step of fewer micro-batches than the others.
    """

    rows: tuple[tuple[int, int], ...]  # (epoch, row)
    masked: bool = False


MASKED_TOKENS = 2  # of a row that can't be used
SKIPPED = MicroBatch((), masked=True)


def plan_packed(tokens, tiles, recipe, *, rank=0, rope=(None, True), tile_cost=0.0):
    """Bins within the recipe's two budgets, the same number on every rank: a `BatchPlan`.

    Args:
        tokens, tiles: of every row, int64 [rows], or [epochs, rows] where they differ (`lengths.epoch_lengths`).
        rope: `attention.rope_limits` of the model: which rows may not share a bin.
        tile_cost: tokens that cost as much as a tile in the vision tower (`tile_cost`), to balance ranks.
    """
    budgets = Budgets(*recipe.budgets)
    cut = partial(pack_step, budgets=budgets, ranks=recipe.processes, tile_cost=tile_cost)
    return _bin_plan(tokens, tiles, recipe, rank=rank, rope=rope, cut=cut, bin_tokens=budgets.tokens)


def plan_grouped(tokens, tiles, recipe, *, rank=0, rope=(None, True)):
    """Padded batches of at most `per_device_batch` rows of like length, for cards without a kernel for bins."""
    cut = partial(group_step, size=recipe.per_device_batch, ranks=recipe.processes)
    return _bin_plan(tokens, tiles, recipe, rank=rank, rope=rope, cut=cut, bin_tokens=None)


def plan_batches(tokens, tiles, recipe, config, *, packed, rank=0):
    """`plan_packed`, or `plan_grouped`, for a model of this configuration."""
    rope = rope_limits(config.text_config)
    if packed:
        return plan_packed(tokens, tiles, recipe, rank=rank, rope=rope, tile_cost=tile_cost(config, recipe))
    return plan_grouped(tokens, tiles, recipe, rank=rank, rope=rope)


def _bin_plan(tokens, tiles, recipe, **how):
    tokens, tiles, order = np.atleast_2d(tokens), np.atleast_2d(tiles), choose(ORDERS, recipe.order, "order")
    return BatchPlan(tokens, tiles, recipe, rows_of_run(tokens.shape[1], recipe), order, **how)


def rows_of_run(num_rows, recipe):
    """Rows that all epochs together show. Raises: DataError if there is none."""
    total_rows = round(num_rows * recipe.epochs)
    if not total_rows:
        raise DataError(f"epochs {recipe.epochs} of {num_rows} rows are none; expected one row at least; raise epochs")
    return total_rows


def tile_cost(config, recipe):
    """Tokens of the language model that cost as much arithmetic as one tile of the vision tower: 68 for 2b-lora.

    By the matrices' sizes: forward is 2 operations a weight and token, backward through frozen weights 2 more, through
    trained ones 4, and recomputed activations 2. Embeddings, attention scores and the head are left out.
    """
    tile, token = operations(config, recipe)
    return tile / token


def operations(config, recipe):
    """Arithmetic operations of a training step: (a tile in the vision tower, a token in the decoder).

    Of a tower that is frozen but for its last layers, backward ends at the first of these.
    """
    tile, token = forward_operations(config)
    layers = config.vision_config.num_hidden_layers
    trained = recipe.trained_vision_layers(layers)
    backward = trained * _backward("full" if recipe.unfreeze_vit_layers else recipe.vision, recipe)
    return tile // (2 * layers) * (2 * layers + backward), token // 2 * (2 + _backward(recipe.language, recipe))


def forward_operations(config):
    """Arithmetic operations of a forward, 2 a weight: (a tile in the vision tower, a token in the decoder)."""
    vision, text = config.vision_config, config.text_config
    places = (vision.image_size[0] // vision.patch_size[0]) ** 2 + 1  # of a tile, the CLS token's among them
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    keys = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    decoder_layer = text.hidden_size * (2 * text.hidden_size + 2 * keys + 3 * text.intermediate_size)
    return 2 * layer * vision.num_hidden_layers * places, 2 * decoder_layer * text.num_hidden_layers


def _backward(tuning, recipe):
    """Operations a weight and token, activations that are computed again among them."""
    return (4 if tuning == "full" else 2) + (2 if recipe.gradient_checkpointing == "full" else 0)


class Parts(Sequence):
    """Micro-batches by number, found by their optimiser step and their part of it (`_part`)."""

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"micro-batch {number} of {len(self)}")
        return self._part(*divmod(number % len(self), self.accumulation))


@dataclass(eq=False)
class BatchPlan(Parts):
    """The micro-batches of one rank where rows have known lengths. Each step is cut into bins when it is asked for.

    Every step has `accumulation` micro-batches, as many as the fullest one needs; one that needs fewer begins with
    micro-batches that no rank computes (`SKIPPED`). Cutting all steps once, to count them, takes about a millisecond
    a step.
    """

    tokens: np.ndarray  # [epochs, rows], or [1, rows] where they are the same in all
    tiles: np.ndarray
    recipe: object
    total_rows: int  # of the run
    order: object  # a function of ORDERS
    rank: int
    rope: tuple  # `attention.rope_limits`: rows of different groups never share a bin
    cut: partial  # (tokens, tiles, groups) of a step's rows → micro-batches of a bin a rank
    bin_tokens: int | None  # None: padded batches
    _kept: tuple = field(default=(None, None), init=False, repr=False)  # (step, its micro-batches)
    _orders: dict = field(default_factory=dict, init=False, repr=False)  # {epoch: its rows}

    @property
    def steps(self):
        """Optimiser steps of the run."""
        return -(-self.total_rows // self.recipe.total_batch)

    @cached_property
    def accumulation(self):
        """Micro-batches of every step."""
        return int(self._counts[0].max())

    @property
    def digest(self):
        """The same for the same micro-batches on all ranks: it knows every row's size, and how each step was cut."""
        sizes = self.total_rows, self.recipe.total_batch, self.bin_tokens, self.recipe.processes
        digest = hashlib.sha256(repr((self.rope, *sizes, self.recipe.seed, self._rows(0))).encode())
        for numbers in (self.tokens, self.tiles, self._counts):
            digest.update(np.ascontiguousarray(numbers, np.int64).data)
        return digest.hexdigest()

    @property
    def fill(self):
        """Share of the computed places that hold a row's token: of the bins' budget, or of the padded batches."""
        return float(self._counts[1].sum() / self._counts[2].sum())

    def largest_batch(self):
        """(number of this rank's largest micro-batch, its tokens with padding, its tiles); tokens decide first."""
        step = max(range(self.steps), key=lambda step: self._measured[step][1])
        tokens, tiles, part = self._measured[step][1]
        return step * self.accumulation + self.accumulation - part, tokens, tiles

    @property
    def _counts(self):
        """(micro-batches, tokens, places for tokens) of every step, int64 [3, steps]."""
        return np.array([counts for counts, _ in self._measured], np.int64).T

    @cached_property
    def _measured(self):
        """`_measure` of every step."""
        return [self._measure(step) for step in range(self.steps)]

    def _measure(self, step):
        """((micro-batches, tokens, places for tokens) of a step, its largest micro-batch of this rank).

        The latter as (tokens with padding, tiles, its place from the end).
        """
        tokens, tiles, micro_batches = self._cut(step)
        size = sum if self.bin_tokens else (lambda one: len(one) * max(one))
        own = [bins[self.rank] or [tokens.index(min(tokens))] for bins in micro_batches]  # as in `_micro_batches`
        largest = max(
            (size([tokens[row] for row in one]), sum(tiles[row] for row in one), len(own) - place)
            for place, one in enumerate(own)
        )
        bins = [[tokens[row] for row in one] for together in micro_batches for one in together]
        places = len(bins) * self.bin_tokens if self.bin_tokens else sum(size(one) for one in bins if one)
        return (len(micro_batches), sum(tokens), places), largest

    def _cut(self, step):
        """(tokens of a step's rows, their tiles, its micro-batches of a bin a rank)."""
        epochs, rows = self._rows(step)
        epochs = np.array(epochs) % len(self.tokens)
        tokens, tiles = self.tokens[epochs, rows].tolist(), self.tiles[epochs, rows].tolist()
        return tokens, tiles, self.cut(tokens, tiles, groups=_rope_groups(tokens, self.rope).tolist())

    def _rows(self, step):
        """(epoch of each, row of each) of a step, which may lie across the end of an epoch."""
        first, num_rows = step * self.recipe.total_batch, self.tokens.shape[1]
        last = min(first + self.recipe.total_batch, self.total_rows)
        places = [divmod(place, num_rows) for place in range(first, last)]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return [epoch for epoch, _ in places], np.array([orders[epoch][position] for epoch, position in places])

    def _order(self, epoch):
        """An epoch's rows in order, the last two epochs kept: a step may lie across the end of one."""
        if epoch not in self._orders:
            lengths, tiles = self.tokens[epoch % len(self.tokens)], self.tiles[epoch % len(self.tiles)]
            found = np.asarray(self.order(lengths, tiles, seed=self.recipe.seed, epoch=epoch))
            if not np.array_equal(np.sort(found), np.arange(len(lengths))):
                raise DataError(
                    f"order {self.order.__qualname__}: epoch {epoch} has {len(found)} rows, not each of the "
                    f"{len(lengths)} once; expected a permutation of 0 to {len(lengths) - 1}; correct the function"
                )
            self._orders = dict([*self._orders.items()][-1:]) | {epoch: found}
        return self._orders[epoch]

    def __len__(self):
        return self.steps * self.accumulation

    def _part(self, step, part):
        return self._step(step)[part]

    def _step(self, step):
        """This rank's micro-batches of a step; the last step asked for is kept."""
        if self._kept[0] != step:
            self._kept = step, self._micro_batches(step)
        return self._kept[1]

    def _micro_batches(self, step):
        epochs, rows = self._rows(step)
        tokens, _, micro_batches = self._cut(step)
        shortest = tokens.index(min(tokens))
        own = [bins[self.rank] for bins in micro_batches]
        found = [MicroBatch(tuple((epochs[n], int(rows[n])) for n in one or [shortest]), masked=not one) for one in own]
        return [SKIPPED] * (self.accumulation - len(found)) + found

    def __str__(self):
        counts = self._counts[0]
        per_step = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        gpus = self.recipe.processes
        ranks = f"on {gpus} rank{'s' if gpus > 1 else ''}"
        each = f"{self.total_rows:,} rows in {self.steps:,} steps, each of {per_step}"
        if self.bin_tokens:
            return f"{each} bins of at most {self.bin_tokens:,} tokens {ranks}; on average {self.fill:.1%} full"
        return f"{each} padded batches of like length {ranks}; {self.fill:.1%} of their places filled"


def shuffled(tokens, tiles, *, seed, epoch):
    """Each epoch in an order of its own."""
    return epoch_order(len(tokens), seed, epoch)


def as_written(tokens, tiles, *, seed, epoch):
    """As the files have them, in every epoch."""
    return np.arange(len(tokens))


ORDERS = {"shuffled": shuffled, "as_written": as_written}  # name → function of an epoch's tokens and tiles [rows]


@lru_cache(maxsize=2)  # a step may lie across the end of an epoch
def epoch_order(num_rows, seed, epoch):
    """Each epoch is its own permutation of the rows."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    return order.astype(np.int32 if num_rows < 2**31 else np.int64)


class MicroBatches(Dataset):
    """The plan's micro-batches as tensors; item i depends on nothing but the plan and the data.

    Args:
        collate: makes a batch of examples: `collate` pads (the default), `collate_packed` makes a bin.
        skip_unusable: whether a row that can't be used is masked in its place, and listed in the batch's `skipped`.
    """

    kept = None  # `KeptFeatures` of tiles that were seen before

    def __init__(self, data, processor, recipe, batches, *, collate=collate, rope=(None, True), skip_unusable=False):
        self.data, self.processor, self.recipe, self.batches = data, processor, recipe, batches
        self.collate, self.rope, self.skip_unusable = collate, rope, skip_unusable

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        batch = self.batches[number]
        if not batch.rows:
            return _nothing()
        examples = [self.encode_row(epoch, row) for epoch, row in batch.rows]
        _check_rope(examples, self.rope)
        tensors = self.collate(examples, pad_token_id=self.processor.tokenizer.pad_token_id)
        weights = sample_weights(tensors["labels"], self.recipe.weighting, sample_ids=tensors.get("sample_ids"))
        tensors["weights"] = weights * 0 if batch.masked else weights
        tensors["where"] = [example.where for example in examples]
        tensors["skipped"] = [example.notes[0] for example in examples if not example.num_supervised]
        return self.kept.look_up(tensors) if self.kept else tensors

    def encode_row(self, epoch, row):
        """An `Example` as this epoch sees it."""
        try:
            options = {"max_length": self.recipe.max_seq_length, "draw": (self.recipe.seed, epoch)}
            return encode(self.data[row], self.processor, **options)
        except DataError as fault:
            if not self.skip_unusable:
                raise
            return self._masked(row, str(fault))

    def _masked(self, row, fault):
        """Two tokens without a label: they weigh nothing, whatever stands beside them."""
        ids = np.full(MASKED_TOKENS, self.processor.tokenizer.pad_token_id or 0)
        side = self.processor.tile_px
        none = np.zeros((0, side, side, 3), np.uint8)
        return Example(ids, np.full(len(ids), IGNORE_INDEX), none, self.data.where(row), notes=(fault,))


def _nothing():
    """A micro-batch without rows: the loop computes none of it."""
    none = torch.zeros(1, 0, dtype=torch.int64)
    return {"input_ids": none, "labels": none, "weights": torch.zeros(1), "where": []}


def _check_rope(examples, rope):
    """Lengths are planned from headers read before the run: a picture may have been replaced by a larger one."""
    groups = _rope_groups([len(example) for example in examples], rope)
    if len(examples) > 1 and (len(set(groups.tolist())) > 1 or groups[0] < 0):
        raise DataError(
            f"{examples[0].where}: in a batch with {examples[-1].where}, more than {rope[0]} tokens beside less; "
            "expected them apart, since their rope differs; a picture of theirs was replaced since the run began: "
            "train again"
        )


def _rope_groups(tokens, rope):
    return rope_groups(tokens, short_context=rope[0], long_rows_mix=rope[1])


def check_rows(data, processor, recipe, *, progress=False, skip_unusable=False):
    """Look at every row and its pictures' headers once before training, so that a broken row costs no GPU time.

    This is the doctor's examination of single rows; rows that are drawn several times are looked at once, and rows that
    an earlier look knows not again. What it measures is there for the run's plan.

    Returns: notes of rows that get fewer tiles, `[(where, note), …]`.
    Raises: DataError naming the first broken rows and their number; nothing is dropped. With `skip_unusable` the run
        masks and lists them when it comes to them.
    """
    draw = (recipe.seed, 0)
    measured = measure(data, processor, max_length=recipe.max_seq_length, draw=draw, progress=progress)
    if not skip_unusable:
        measured.check(data.path)
    checked[data] = measured
    return measured.notes(data)
