"""The plan of a run whose rows' lengths are not known before they are drawn: padded batches in random order.

As in `ivlkit.training.loop.schedule`, every row is seen exactly `epochs` times, an optimiser step is exactly
`total_batch` rows (the last may be smaller), and all ranks get the same number of micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ivlkit.training.loop.schedule import MicroBatch, Parts, epoch_order, rows_of_run


def plan_run(num_rows, recipe, *, rank=0):
    """The micro-batches of one rank in order, and the number of optimiser steps.

    Returns: (`RowPlan`, steps); 100 rows, total_batch 16, 1 epoch, batches of 4 → 25 micro-batches, 7 steps.
    """
    plan = RowPlan(
        num_rows=num_rows,
        total_rows=rows_of_run(num_rows, recipe),
        total_batch=recipe.total_batch,
        accumulation=recipe.accumulation,
        micro_rows=recipe.processes * recipe.per_device_batch,
        gpus=recipe.processes,
        rank=rank,
        seed=recipe.seed,
    )
    return plan, plan.steps


@dataclass(frozen=True)
class RowPlan(Parts):
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

    def _part(self, step, part):
        first = step * self.total_batch
        last = min(first + self.total_batch, self.total_rows)
        parts = self._micro_batches(step) * self.gpus
        places = range(first + part * self.gpus + self.rank, last, parts)
        if not places:  # an empty part borrows a row and masks it
            return MicroBatch((self._row(first),), masked=True)
        return MicroBatch(tuple(self._row(place) for place in places))

    def _row(self, place):
        epoch, position = divmod(place, self.num_rows)
        return epoch, int(epoch_order(self.num_rows, self.seed, epoch)[position])

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)
