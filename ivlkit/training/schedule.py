"""The plan of a whole run: which rows in which micro-batch, on which rank. Fixed by the seed before it starts.

Every row is seen exactly `epochs` times, an optimiser step is exactly `total_batch` rows (the last may be smaller), and
all ranks get the same number of micro-batches. No sampler draws or repeats anything later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from ..data.collate import collate
from ..data.doctor import examine_all
from ..data.encode import encode
from ..data.examine import BAD, Task, light_processor
from ..data.findings import ERROR, KINDS, make_problem
from ..errors import DataError
from .loss import sample_weights


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one rank computes at once; a masked one only keeps ranks in step and weighs nothing."""

    rows: tuple[tuple[int, int], ...]  # (epoch, row)
    masked: bool = False


def plan_run(num_rows, recipe, *, rank=0):
    """The micro-batches of one rank in order, and the number of optimiser steps.

    Returns: (`Plan`, steps); 100 rows, total_batch 16, 1 epoch, batches of 4 → 25 micro-batches, 7 steps.
    """
    total_rows = round(num_rows * recipe.epochs)
    if not total_rows:
        raise DataError(f"epochs {recipe.epochs} of {num_rows} rows are none; expected one row at least; raise epochs")
    plan = Plan(
        num_rows=num_rows,
        total_rows=total_rows,
        total_batch=recipe.total_batch,
        accumulation=recipe.accumulation,
        micro_rows=recipe.gpus * recipe.per_device_batch,
        gpus=recipe.gpus,
        rank=rank,
        seed=recipe.seed,
    )
    return plan, plan.steps


@dataclass(frozen=True)
class Plan(Sequence):
    """The micro-batches of one rank. Each is worked out when asked for: a plan holds one epoch's order, 4 bytes a row.

    It compares with lists of `MicroBatch`.
    """

    num_rows: int  # of an epoch
    total_rows: int  # of the run
    total_batch: int  # rows of an optimiser step
    accumulation: int  # micro-batches of a full step
    micro_rows: int  # rows of a micro-batch over all ranks
    gpus: int
    rank: int
    seed: int

    @property
    def steps(self):
        """Optimiser steps of the run."""
        return -(-self.total_rows // self.total_batch)

    def __len__(self):
        return (self.steps - 1) * self.accumulation + self._micro_batches(self.steps - 1)

    def _micro_batches(self, step):
        """How many a rank computes in this step; all ranks the same, fewer in a last, smaller step."""
        rows = min(self.total_batch, self.total_rows - step * self.total_batch)
        return min(self.accumulation, -(-rows // self.micro_rows))

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"micro-batch {number} of {len(self)}")
        step, part = divmod(number % len(self), self.accumulation)
        first = step * self.total_batch
        last = min(first + self.total_batch, self.total_rows)
        parts = self._micro_batches(step) * self.gpus
        places = range(first + part * self.gpus + self.rank, last, parts)
        if not places:  # an empty part borrows a row and masks it
            return MicroBatch((self._row(first),), masked=True)
        return MicroBatch(tuple(self._row(place) for place in places))

    def _row(self, place):
        epoch, position = divmod(place, self.num_rows)
        return epoch, int(_epoch_order(self.num_rows, self.seed, epoch)[position])

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)


@lru_cache(maxsize=2)  # a step may lie across the end of an epoch
def _epoch_order(num_rows, seed, epoch):
    """Each epoch is its own permutation of the rows."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    return order.astype(np.int32 if num_rows < 2**31 else np.int64)


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

    This is the doctor's examination of single rows; rows that are drawn several times are looked at once.

    Returns: notes of rows that get fewer tiles, `[(where, note), …]`.
    Raises: DataError naming the first broken rows and their number; nothing is dropped.
    """
    errors, notes, rows = [], [], data.rows_in_use()
    wanted = frozenset(code for code, kind in KINDS.items() if kind.level == ERROR) | {"fewer_tiles"}
    task = Task(
        data.sources,
        light_processor(processor),
        recipe.max_seq_length,
        draw=(recipe.seed, 0),
        limit=None,
        wanted=wanted,
    )
    examined = broken = 0
    for block in examine_all(task, rows, progress=progress):
        examined, broken = examined + len(block.rows), broken + int((block.state == BAD).sum())
        for row, code, found, expected, todo in block.problems:
            where = data.indexes[block.source].where(row)
            if code == "fewer_tiles":
                notes.append((where, found))
            else:
                errors.append(make_problem(code, where, found, expected=expected, todo=todo).message)
    if errors:
        shown = "\n  ".join(errors[:10])
        more = f"\n  … and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise DataError(
            f"{data.path}: {broken} of {examined} rows can't be used; mend or remove them:\n  {shown}{more}"
        )
    return notes
