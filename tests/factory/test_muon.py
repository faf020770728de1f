"""Muon with the matrices of a shape stacked: torch's own steps."""

import copy

import pytest
import torch
from muon import StackedMuon, orthogonalise

SHAPES = ((8, 24), (24, 8), (8, 24), (16, 16), (16, 16), (8, 24))


def steps(make, *, count=5):
    """The matrices after some steps of fixed gradients."""
    torch.manual_seed(0)
    values = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = make(values)
    for _ in range(count):
        for value in values:
            value.grad = torch.randn(value.shape)
        optimizer.step()
    return values, optimizer


def test_steps_are_those_of_torch_to_the_rounding_of_bfloat16():
    start, _ = steps(lambda values: StackedMuon(values, lr=0.0, weight_decay=0.0))
    ours, _ = steps(lambda values: StackedMuon(values, lr=0.01, weight_decay=0.1))
    one_by_one, _ = steps(
        lambda values: torch.optim.Muon(values, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    )
    for value, expected, began in zip(ours, one_by_one, start, strict=True):
        moved = (expected - began).norm()
        assert moved > 0.1
        assert (value - expected).norm() < 0.02 * moved


def test_every_singular_value_comes_near_one():
    torch.manual_seed(0)
    for shape in ((3, 8, 24), (3, 24, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.3


def test_a_matrix_without_a_gradient_stays():
    values = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))]
    values[0].grad = torch.eye(4)
    StackedMuon(values, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(values[1], torch.ones(4, 4))
    assert not torch.equal(values[0], torch.ones(4, 4))


def test_a_state_that_is_loaded_goes_on_bit_equal():
    values, optimizer = steps(lambda values: StackedMuon(values, lr=0.01, weight_decay=0.1))
    copies = [torch.nn.Parameter(value.detach().clone()) for value in values]
    other = StackedMuon(copies, lr=0.01, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for value, twin in zip(values, copies, strict=True):
        value.grad = twin.grad = torch.ones(value.shape)
    optimizer.step(), other.step()
    assert all(torch.equal(value, twin) for value, twin in zip(values, copies, strict=True))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="2D"):
        StackedMuon([torch.nn.Parameter(torch.ones(3))], lr=0.1, weight_decay=0.0)
