"""Cross-entropy on supervised positions only, weighted so that it adds up over micro-batches, bins and GPUs.

The loss of an optimiser step is Σ w·CE / W with W = Σ w over all its micro-batches on all ranks: one batch of four,
two of two, four of one and one packed bin give the same number and the same gradient.

transformers' own way (`logits_to_keep` as a mask, with `shift_labels`) also spares the other positions the head, but
holds all their logits at once, [N, V] in float32, through backward: 3.7 GB for 10,000 positions of InternLM2's 92,553
tokens, and it can't weigh samples.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...data.encode import IGNORE_INDEX

HEAD_CHUNK = 1024  # positions whose logits exist at once: 0.4 GB in float32 for 92,553 tokens
_POWERS = {"token": 0.0, "square": 0.5, "sample": 1.0}


def sample_weights(labels, weighting, *, sample_ids=None):
    """Weight of each supervised token of a sample.

    Args:
        labels: int64 [B, L], not shifted.
        weighting: "token" (1), "sample" (1/n) or "square" (1/√n) for n supervised tokens.
        sample_ids: int64 [B, L], the sample that a packed token belongs to; None where every row is one.
    Returns: float32 [samples]; 0 for a sample without supervised tokens.
    """
    counts = _supervised_counts(labels, sample_ids).float()
    return torch.where(counts > 0, counts.clamp(min=1) ** -_POWERS[weighting], 0.0)


def total_weight(labels, weights, *, sample_ids=None):
    """W of a micro-batch: Σ over samples of weight · supervised tokens."""
    return (weights * _supervised_counts(labels, sample_ids)).sum()


def count_supervised(labels):
    """Positions that go through the head: those whose next token is supervised."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def count_chunks(positions, *, chunk=HEAD_CHUNK):
    """Calls of the head for so many positions: 3 for 2,100; one even for none, for the ranks that have some."""
    return max(1, -(-positions // chunk))


def weighted_cross_entropy(hidden, head, *, labels, weights, sample_ids=None, chunks=None):
    """Σ w·CE over supervised positions, not divided.

    Only those positions go through the head: in visual question answering nine in ten are not. They go in chunks whose
    logits are forgotten and computed again in backward, so that memory holds those of one, however many there are.

    Args:
        hidden: [B, L, H].
        head: the LM head, a function of [N, H] that gives [N, V].
        labels: int64 [B, L], unshifted; in a packed row the first label of every sample is IGNORE_INDEX.
        weights: float32 [samples]. sample_ids: int64 [B, L] of a packed batch; None where every row is a sample.
        chunks: calls of the head; None for as many as `HEAD_CHUNK` asks for. Under ZeRO-3 all ranks need the same.
    Returns: float32 scalar; 0 with a gradient path if nothing is supervised.
    """
    targets = labels[:, 1:]
    places = targets != IGNORE_INDEX
    states, targets = hidden[:, :-1][places], targets[places]  # [N, H], [N]
    ids = _row_numbers(labels) if sample_ids is None else sample_ids
    token_weights = weights[ids[:, 1:][places]]  # [N]
    chunks = chunks or count_chunks(len(targets))
    pieces = zip(*(values.tensor_split(chunks) for values in (states, targets, token_weights)), strict=True)
    total = 0.0
    for number, piece in enumerate(pieces, 1):
        # The last chunk is the first that backward needs: computing it twice would save nothing.
        again = number < chunks and torch.is_grad_enabled()
        total = total + (checkpoint(_loss, head, *piece, use_reentrant=False) if again else _loss(head, *piece))
    return total


def cross_entropy(hidden, head, batch):
    """`weighted_cross_entropy` of a micro-batch, as the loop calls it."""
    names = {"labels", "weights", "sample_ids", "chunks"} & batch.keys()
    return weighted_cross_entropy(hidden, head, **{name: batch[name] for name in names})


LOSSES = {"cross_entropy": cross_entropy}  # name → function of (hidden [B, L, H], head, batch): a sum, not a mean


def _loss(head, states, targets, token_weights):
    logits = head(states).float()  # [n, H] → [n, V]
    return (F.cross_entropy(logits, targets, reduction="none") * token_weights).sum()


def _row_numbers(labels):
    return torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)


def _supervised_counts(labels, sample_ids):
    """Supervised targets of each sample, int64 [samples]; a target belongs to its own token's sample."""
    is_target = labels[:, 1:] != IGNORE_INDEX
    if sample_ids is None:
        return is_target.sum(dim=1)
    counts = torch.zeros(int(sample_ids.max()) + 1, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, sample_ids[:, 1:][is_target], torch.ones_like(sample_ids[:, 1:][is_target]))
