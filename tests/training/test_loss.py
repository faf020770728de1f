"""The loss against torch's own, and its sum over micro-batches for all three weightings."""

import pytest
import torch
from torch.nn import functional as F

from ivlkit.training.loop.loss import (
    count_chunks,
    count_supervised,
    sample_weights,
    total_weight,
    weighted_cross_entropy,
)

WEIGHTINGS = ("token", "sample", "square")
# Four rows of eight tokens with 1, 4, 7 and 2 supervised targets (the first column is never a target).
LABELS = torch.full((4, 8), -100)
LABELS[0, 5] = 3
LABELS[1, 2:6] = torch.tensor([1, 2, 3, 4])
LABELS[2, 1:] = torch.tensor([9, 8, 7, 6, 5, 4, 3])
LABELS[3, 6:] = torch.tensor([2, 1])


@pytest.fixture
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 10, bias=False)


@pytest.fixture
def hidden():
    return torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(1))


def test_weights_of_a_token_by_hand():
    assert sample_weights(LABELS, "token").tolist() == [1, 1, 1, 1]
    assert sample_weights(LABELS, "sample").tolist() == pytest.approx([1, 1 / 4, 1 / 7, 1 / 2])
    assert sample_weights(LABELS, "square").tolist() == pytest.approx([1, 1 / 2, 7**-0.5, 2**-0.5])


def test_total_weight_by_hand():
    assert total_weight(LABELS, sample_weights(LABELS, "token")).item() == 14
    assert total_weight(LABELS, sample_weights(LABELS, "sample")).item() == pytest.approx(4)
    assert total_weight(LABELS, sample_weights(LABELS, "square")).item() == pytest.approx(1 + 2 + 7**0.5 + 2**0.5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_row_without_supervised_tokens_weighs_nothing(weighting):
    labels = torch.full((2, 4), -100)
    labels[0, 0] = 5  # the first position predicts nothing before it
    weights = sample_weights(labels, weighting)
    assert weights.tolist() == [0, 0]
    assert total_weight(labels, weights).item() == 0


def test_token_weighting_is_torchs_cross_entropy_on_all_logits(head, hidden):
    weights = sample_weights(LABELS, "token")
    loss = weighted_cross_entropy(hidden, head, labels=LABELS, weights=weights) / total_weight(LABELS, weights)
    logits = head(hidden)[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS[:, 1:].flatten()))


def test_sample_weighting_is_the_mean_of_the_rows_means(head, hidden):
    weights = sample_weights(LABELS, "sample")
    loss = weighted_cross_entropy(hidden, head, labels=LABELS, weights=weights) / total_weight(LABELS, weights)
    means = [F.cross_entropy(head(row[:-1]), labels[1:]) for row, labels in zip(hidden, LABELS, strict=True)]
    torch.testing.assert_close(loss, torch.stack(means).mean())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("size", [2, 1])
def test_micro_batches_add_up_to_the_loss_and_gradient_of_one_batch(head, hidden, weighting, size):
    def accumulate(rows):
        head.zero_grad()
        states = hidden.clone().requires_grad_()
        weights = sample_weights(LABELS, weighting)
        total, whole = 0.0, total_weight(LABELS, weights)
        for start in range(0, 4, rows):
            part = slice(start, start + rows)
            loss = weighted_cross_entropy(states[part], head, labels=LABELS[part], weights=weights[part]) / whole
            loss.backward()
            total += loss.item()
        return total, states.grad, head.weight.grad.clone()

    loss, states, weight = accumulate(4)
    parts_loss, parts_states, parts_weight = accumulate(size)
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(parts_states, states, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(parts_weight, weight, atol=1e-7, rtol=1e-5)


def test_nothing_supervised_is_zero_with_a_gradient_path(head, hidden):
    states = hidden.clone().requires_grad_()
    labels = torch.full((4, 8), -100)
    loss = weighted_cross_entropy(states, head, labels=labels, weights=sample_weights(labels, "token"))
    loss.backward()
    assert loss.item() == 0
    assert states.grad.abs().sum() == 0
    assert head.weight.grad.abs().sum() == 0


def test_only_supervised_positions_go_through_the_head(hidden):
    seen = []

    def head(states):
        seen.append(tuple(states.shape))
        return states

    labels = torch.full((4, 8), -100)
    labels[1, 3] = 2
    weighted_cross_entropy(hidden, head, labels=labels, weights=torch.ones(4))
    assert seen == [(1, 6)]


def test_half_precision_logits_are_summed_in_float32(head, hidden):
    loss = weighted_cross_entropy(hidden.bfloat16(), head.bfloat16(), labels=LABELS, weights=torch.ones(4))
    assert loss.dtype == torch.float32


# packed rows ----------------------------------------------------------------------------------------------------------


def packed(labels):
    """The rows of `LABELS` one after another, as a bin: labels and sample ids [1, B · L]; no target crosses over."""
    labels = labels.clone()
    labels[:, 0] = -100
    ids = torch.arange(len(labels))[:, None].expand_as(labels)
    return labels.reshape(1, -1), ids.reshape(1, -1)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_bin_weighs_and_costs_what_its_rows_do(head, hidden, weighting):
    flat, ids = packed(LABELS)
    weights = sample_weights(flat, weighting, sample_ids=ids)
    torch.testing.assert_close(weights, sample_weights(LABELS, weighting))
    expected = total_weight(LABELS, weights)
    torch.testing.assert_close(total_weight(flat, weights, sample_ids=ids), expected)
    loss = weighted_cross_entropy(hidden.reshape(1, -1, 6), head, labels=flat, weights=weights, sample_ids=ids)
    torch.testing.assert_close(loss, weighted_cross_entropy(hidden, head, labels=LABELS, weights=weights))


def test_a_sample_of_a_bin_without_supervised_tokens_weighs_nothing():
    flat, ids = packed(torch.cat([LABELS[:1], torch.full((1, 8), -100), LABELS[1:2]]))
    assert sample_weights(flat, "sample", sample_ids=ids).tolist() == [1, 0, 1 / 4]
    trailing, ids = packed(torch.cat([LABELS[:1], torch.full((1, 8), -100)]))
    assert sample_weights(trailing, "token", sample_ids=ids).tolist() == [1, 0]


# chunks ---------------------------------------------------------------------------------------------------------------


def gradients(hidden, head, **options):
    """(loss, gradient of the hidden states, gradients of the head's parameters that train)."""
    head.zero_grad()
    states = hidden.clone().requires_grad_()
    loss = weighted_cross_entropy(states, head, labels=LABELS, weights=sample_weights(LABELS, "square"), **options)
    loss.backward()
    return loss.detach(), states.grad, [p.grad.clone() for p in head.parameters() if p.requires_grad]


def plain(hidden, head):
    """All logits at once: the loss as it is written in a paper."""
    head.zero_grad()
    states = hidden.clone().requires_grad_()
    losses = F.cross_entropy(head(states)[:, :-1].transpose(1, 2), LABELS[:, 1:], reduction="none")
    loss = (losses * sample_weights(LABELS, "square")[:, None]).sum()
    loss.backward()
    return loss.detach(), states.grad, [p.grad.clone() for p in head.parameters() if p.requires_grad]


class WithAdapter(torch.nn.Module):
    """A head as LoRA leaves it: the weight frozen, two small matrices that train."""

    def __init__(self, head):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.down, self.up = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(2, 10, bias=False)

    def forward(self, states):
        return self.head(states) + self.up(self.down(states))


HEADS = {
    "trained": lambda head: head,
    "frozen": lambda head: head.requires_grad_(False),
    "with an adapter": WithAdapter,
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunks", [None, 1, 2, 3, 14, 20])
def test_chunks_give_the_loss_and_gradients_of_all_logits_at_once(head, hidden, kind, chunks):
    """14 positions are supervised; 20 chunks leave some empty, as where another rank has more."""
    made = HEADS[kind](head)
    expected, found = plain(hidden, made), gradients(hidden, made, chunks=chunks)
    for one, other in zip((found[0], found[1], *found[2]), (expected[0], expected[1], *expected[2]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_head_is_called_once_a_chunk_and_again_in_backward_but_for_the_last(head, hidden):
    sizes = []
    head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    loss = weighted_cross_entropy(hidden.clone().requires_grad_(), head, labels=LABELS, weights=torch.ones(4), chunks=3)
    assert sizes == [5, 5, 4]
    loss.backward()
    assert sizes == [5, 5, 4, 5, 5]


def test_no_more_logits_than_a_chunks_are_kept_for_backward(hidden):
    """Of 2,100 positions and 500 tokens: 1.4 MB of a chunk and not 4.2 MB."""
    head = torch.nn.Linear(6, 500, bias=False)
    labels = torch.randint(500, (1, 2101), generator=torch.Generator().manual_seed(0))
    states = torch.randn(1, 2101, 6, requires_grad=True)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        weighted_cross_entropy(states, head, labels=labels, weights=torch.ones(1))
    assert count_chunks(2100) == 3
    logits = [tensor for tensor in kept.values() if tensor.shape[1:] == (500,) and len(tensor) > 6]
    assert [len(tensor) for tensor in logits] == [700]


def test_no_positions_are_one_call_and_a_full_chunk_is_one():
    assert [count_chunks(n) for n in (0, 1, 1024, 1025)] == [1, 1, 1, 2]
    assert count_supervised(LABELS) == 14


def test_nothing_is_computed_twice_without_gradients(head, hidden):
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        weighted_cross_entropy(hidden, head, labels=LABELS, weights=torch.ones(4), chunks=4)
    assert len(calls) == 4
