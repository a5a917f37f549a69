"""One vector per example: which tokens it is made of, and what the losses on it are handed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch, LayerMap
from lightning_kd.losses.pooled import PooledMatchLoss, pairs, pool

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)


class Recorder(PooledMatchLoss):
    """Keeps what it is handed."""

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        self.handed = index, student, teacher, mask
        return student.sum()


@pytest.mark.parametrize("pooling", ["first", "mean"])
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    width=st.integers(1, 3),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(pooling: Any, batch: int, length: int, width: int, keep: float, seed: int) -> None:
    """Stops padding in the mean, position 0 where padding stands there, and the NaN of an example without tokens."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, length, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < keep
    garbage = states.masked_fill(~mask.unsqueeze(-1), float("nan"))
    expected = references.pool(states.tolist(), mask.tolist(), pooling)
    torch.testing.assert_close(pool(garbage, mask, pooling), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_gradient_reaches_what_is_pooled(pooling: Any, contract: Any) -> None:
    """Stops a gradient to padding, a detach, and the lost path of a batch without tokens."""
    pool(contract.student, contract.mask, pooling).sum().backward()
    grad = contract.student.grad.abs().sum(-1).bool()
    only_first = contract.mask & (contract.mask.cumsum(-1) == 1)
    assert grad.tolist() == (contract.mask if pooling == "mean" else only_first).tolist()
    contract.student.grad = None
    pool(contract.student, torch.zeros_like(contract.mask), pooling).sum().backward()
    assert not contract.student.grad.any()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_float32_from_half(pooling: Any) -> None:
    """Stops a mean in half precision."""
    states = torch.full((1, 300, 1), 1.01, dtype=torch.bfloat16)
    vectors = pool(states, torch.ones(1, 300, dtype=torch.bool), pooling)
    assert vectors.dtype == torch.float32 and vectors.item() == pytest.approx(states[0, 0].item(), rel=1e-6)


def test_refuses_arguments() -> None:
    """Stops a pooling that is not known from being taken for the mean, and a mask of other tokens."""
    with pytest.raises(InputError, match="`pooling` to be 'first' or 'mean', but got 'cls'"):
        Recorder(LayerMap(), "cls")
    with pytest.raises(InputError, match=r"a mask \(B, L\), but got \(2, 3, 4\) and \(2, 1\)"):
        pool(torch.ones(2, 3, 4), torch.ones(2, 1, dtype=torch.bool), "mean")


def test_pairs_are_of_two_kept_examples() -> None:
    """Stops an example from being compared with itself or with one that is left out."""
    assert pairs(torch.tensor([True, False, True])).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_class_pools_the_matched_layers(loss_inputs: Callable[..., Any], pooling: Any) -> None:
    """Stops a layer that is not the pair's, the default pooling for another, and an example without tokens as one."""
    loss = Recorder([FeatureMatch(-1, -2, weight=3.0)], pooling)
    loss.build(NARROW, WIDE)
    student, teacher = {2: torch.randn(2, 3, 4)}, {3: torch.randn(2, 3, 6)}
    mask = torch.tensor([[True, True, False], [False, False, False]])
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, mask))
    index, s, t, examples = loss.handed
    assert index == 0 and torch.equal(s, pool(student[2], mask, pooling)) and examples.tolist() == [True, False]
    assert torch.equal(t, pool(teacher[3], mask, pooling))
    assert value.item() == pytest.approx(3 * s.sum().item())


def test_class_takes_what_is_pooled_already(loss_inputs: Callable[..., Any]) -> None:
    """Stops the vectors of a bi-encoder, two a row, from being pooled again or masked as rows."""
    loss = Recorder([FeatureMatch("encoder.pool", "encoder.pool")])
    loss.build(NARROW, WIDE)
    student, teacher = torch.randn(4, 4), torch.randn(4, 6)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    states = {"encoder.pool": student}, {"encoder.pool": teacher}
    loss(loss_inputs(torch.zeros(2, 1), torch.zeros(2, 1), None, *states, mask))
    _, s, t, kept = loss.handed
    assert torch.equal(s, student) and torch.equal(t, teacher) and kept.tolist() == [True] * 4
