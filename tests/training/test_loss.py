"""The loss against torch's own, and its sum over micro-batches for all three weightings."""

import pytest
import torch
from torch.nn import functional as F

from ivlkit.training.loss import sample_weights, total_weight, weighted_cross_entropy

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
