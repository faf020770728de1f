"""Cross-entropy on supervised positions only, weighted so that it adds up over micro-batches and GPUs.

The loss of an optimiser step is Σ w·CE / W with W = Σ w over all its micro-batches on all ranks: one batch of four,
two of two and four of one give the same number and the same gradient.
"""

import torch
from torch.nn import functional as F

from ..data.encode import IGNORE_INDEX


def sample_weights(labels, weighting):
    """Weight of each supervised token of a row.

    Args: labels int64 [B, L]; weighting: "token" (1), "sample" (1/n) or "square" (1/√n) for n supervised tokens.
    Returns: float32 [B]; 0 for a row without supervised tokens.
    """
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).float()
    power = {"token": 0.0, "square": 0.5, "sample": 1.0}[weighting]
    return torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)


def total_weight(labels, weights):
    """W of a micro-batch: Σ over rows of weight · supervised tokens."""
    return (weights * (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)).sum()


def weighted_cross_entropy(hidden, head, *, labels, weights):
    """Σ w·CE over supervised positions, not divided.

    Only those positions go through the head: in visual question answering nine in ten are not.

    Args: hidden [B, L, H]; head: the LM head; labels int64 [B, L], unshifted; weights float32 [B].
    Returns: float32 scalar; 0 with a gradient path if nothing is supervised.
    """
    targets = labels[:, 1:]
    places = targets != IGNORE_INDEX
    logits = head(hidden[:, :-1][places]).float()  # [N, V]
    losses = F.cross_entropy(logits, targets[places], reduction="none")
    token_weights = weights[:, None].expand_as(targets)[places]
    return (losses * token_weights).sum()
