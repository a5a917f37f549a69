"""Patient KD: the formula, and the token that its class reads."""

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
from lightning_kd.losses import FeatureMatch
from lightning_kd.losses.patient import PatientKD, patient_kd

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)


def unmasked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return patient_kd(student, teacher)


@given(batch=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_equals_plain_loop(batch: int, width: int, seed: int) -> None:
    """Stops a mean over dimensions, which makes the loss smaller the wider the model is."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, width, generator=generator, dtype=torch.float64)
    expected = references.patient_kd(student.tolist(), teacher.tolist())
    assert patient_kd(student, teacher).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_twice_the_cosine_distance(contract: Any) -> None:
    """Stops a norm over the wrong dimension: of unit vectors the squared distance is 2 - 2 cos."""
    contract = type(contract)((6, 5))
    cosine = torch.cosine_similarity(contract.student, contract.teacher, dim=-1)
    value = patient_kd(contract.student, contract.teacher)
    assert value.item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-12)


@pytest.mark.parametrize("check", ["zero_for_equals", "no_gradient_to_teacher", "gradient_is_right"])
def test_contract(contract: Any, check: str) -> None:
    """Stops a teacher that moves, and a detach in the student's path."""
    getattr(type(contract)((6, 5)), check)(unmasked)


def test_float32_from_half(contract: Any) -> None:
    """Stops a norm in half precision."""
    type(contract)((6, 5)).float32_from_half(unmasked, torch.bfloat16)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (3,), (1, 3, 3)])
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    """Stops a broadcast, and states of all tokens from being taken for vectors of examples."""
    with pytest.raises(InputError, match=r"one shape \(B, H\), but got \(3, 3\) and \("):
        patient_kd(torch.ones(3, 3), torch.ones(shape))


def test_class_reads_the_first_real_token(loss_inputs: Callable[..., Any]) -> None:
    """Stops a layer that is not the pair's, a lost weight, padding on the left, and a gradient to other tokens."""
    loss = PatientKD([FeatureMatch(1, 2), FeatureMatch(-1, -1, weight=3.0)])
    loss.build(NARROW, BertConfig(hidden_size=4, num_hidden_layers=4, num_attention_heads=2))
    torch.manual_seed(0)
    student = {i: torch.randn(2, 3, 4, requires_grad=True) for i in (1, 2)}
    teacher = {i: torch.randn(2, 3, 4) for i in (2, 4)}
    mask = torch.tensor([[True, True, False], [False, True, True]])
    first = [0, 1], [0, 1]
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, mask))
    expected = sum(
        weight * references.patient_kd(student[i][first].tolist(), teacher[j][first].tolist())
        for i, j, weight in ((1, 2, 1.0), (2, 4, 3.0))
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    for state in student.values():
        assert state.grad is not None and state.grad.abs().sum(-1).bool().tolist() == [[1, 0, 0], [0, 1, 0]]


def test_all_masked_is_zero(loss_inputs: Callable[..., Any]) -> None:
    """Stops the NaN, or the lost gradient path, of a batch without tokens."""
    loss = PatientKD([FeatureMatch(1, 1)])
    loss.build(NARROW, NARROW)
    student = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, {1: student}, {1: torch.ones(2, 3, 4)}, mask))
    value.backward()
    assert value.item() == 0 and student.grad is not None and not student.grad.any()


def test_projection_is_trained(loss_inputs: Callable[..., Any]) -> None:
    """Stops a projection that stays random."""
    torch.manual_seed(0)
    loss = PatientKD([FeatureMatch(1, 1), FeatureMatch(2, 4)], projection_lr=0.1)
    loss.build(NARROW, WIDE)
    student, teacher = ({i: torch.randn(2, 3, w) for i in range(5)} for w in (4, 6))
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, mask)).backward()
    assert len(loss.projections) == 2 and loss.parameters_lr == 0.1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
