"""The plan of a whole run: which rows in which micro-batch, on which rank. Fixed by the seed before it starts.

Every row is seen exactly `epochs` times, an optimiser step is exactly `total_batch` rows (the last may be smaller), and
all ranks get the same number of micro-batches. No sampler draws or repeats anything later.
"""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.collate import collate
from ..data.encode import encode, encode_text, picture_sizes
from ..errors import DataError
from .loss import sample_weights


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one rank computes at once; a masked one only keeps ranks in step and weighs nothing."""

    rows: tuple[tuple[int, int], ...]  # (epoch, row)
    masked: bool = False


def plan_run(num_rows, recipe, *, rank=0):
    """The micro-batches of one rank in order, and the number of optimiser steps.

    Returns: ([MicroBatch, …], steps); 100 rows, total_batch 16, 1 epoch, batches of 4 → 25 micro-batches, 7 steps.
    """
    accumulation = recipe.accumulation
    order = _order(num_rows, recipe.epochs, recipe.seed)
    if not order:
        raise DataError(f"epochs {recipe.epochs} of {num_rows} rows are none; expected one row at least; raise epochs")
    batches, steps = [], 0
    for start in range(0, len(order), recipe.total_batch):
        step = order[start : start + recipe.total_batch]
        count = min(accumulation, -(-len(step) // (recipe.gpus * recipe.per_device_batch)))
        batches += [_micro_batch(step, number * recipe.gpus + rank, count * recipe.gpus) for number in range(count)]
        steps += 1
    return batches, steps


def _order(num_rows, epochs, seed):
    """(epoch, row) of the whole run; each epoch is its own permutation."""
    order = []
    for epoch in range(int(np.ceil(epochs))):
        permuted = np.random.default_rng([seed, epoch]).permutation(num_rows)
        order += [(epoch, int(row)) for row in permuted]
    return order[: round(num_rows * epochs)]


def _micro_batch(step, position, parts):
    """Part `position` of `parts` nearly equal ones; an empty part borrows a row and masks it."""
    rows = step[position::parts]
    return MicroBatch(tuple(rows)) if rows else MicroBatch(tuple(step[:1]), masked=True)


class MicroBatches(Dataset):
    """The plan's micro-batches as tensors; item i depends on nothing but the plan and the data."""

    def __init__(self, data, processor, recipe, batches):
        self.data, self.processor, self.recipe, self.batches = data, processor, recipe, batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        batch = self.batches[number]
        examples = [self._encode(epoch, row) for epoch, row in batch.rows]
        tensors = collate(examples, pad_token_id=self.processor.tokenizer.pad_token_id)
        weights = sample_weights(tensors["labels"], self.recipe.weighting)
        tensors["weights"] = weights * 0 if batch.masked else weights
        tensors["where"] = [example.where for example in examples]
        return tensors

    def _encode(self, epoch, row):
        return encode(
            self.data[row], self.processor, max_length=self.recipe.max_seq_length, draw=(self.recipe.seed, epoch)
        )


def check_rows(data, processor, recipe, *, progress=False):
    """Read every row and its pictures' headers once before training, so that a broken row costs no GPU time.

    Returns: notes of rows that get fewer tiles, `[(where, note), …]`.
    Raises: DataError naming the first broken rows and their number; nothing is dropped.
    """
    errors, notes = [], []
    for number in tqdm(range(len(data)), desc="checking rows", disable=not progress):
        try:
            record = data[number]
            sizes = picture_sizes(record, processor, draw=(recipe.seed, 0))
            text = encode_text(record, processor, sizes=sizes, max_length=recipe.max_seq_length)
            notes += [(record.where, note) for note in text.notes]
        except DataError as error:
            errors.append(str(error))
    if errors:
        shown = "\n  ".join(errors[:10])
        more = f"\n  … and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise DataError(
            f"{data.path}: {len(errors)} of {len(data)} rows can't be used; mend or remove them:\n  {shown}{more}"
        )
    return notes
