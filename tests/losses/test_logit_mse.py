"""The squared difference of logits against a plain loop and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import references
from lightning_kd.losses import LogitMSE, logit_mse


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(shape: list[int], labels: int, keep: float, seed: int) -> None:
    """Stops a sum over labels in the place of the mean: the loss weight of 2 labels would not fit 20."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, labels, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < keep
    rows = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    assert logit_mse(student, teacher, mask).item() == pytest.approx(references.logit_mse(*rows), rel=1e-6, abs=1e-6)


def test_equals_torch(contract: Any) -> None:
    """Stops a drift from torch's own mean squared error."""
    value = logit_mse(contract.student, contract.teacher, torch.ones_like(contract.mask))
    assert value.item() == pytest.approx(F.mse_loss(contract.student, contract.teacher).item(), rel=1e-12)


@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "refuses_other_shapes"],
)
def test_contract(contract: Any, check: str) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(logit_mse)


def test_gradient_is_right(contract: Any) -> None:
    """Stops a detach or an in-place step in the student's path."""
    contract.gradient_is_right(logit_mse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a difference in half precision, which loses what little the student still has to learn."""
    contract.float32_from_half(logit_mse, dtype)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_class_has_no_temperature(contract: Any, loss_inputs: Callable[..., Any], temperature: float) -> None:
    """Stops a schedule from rescaling a loss that has no temperature, and a mask that is not passed on."""
    inputs = loss_inputs(contract.student, contract.teacher, contract.mask, temperature=temperature)
    expected = logit_mse(contract.student, contract.teacher, contract.mask)
    assert LogitMSE()(inputs).item() == pytest.approx(expected.item(), rel=1e-12)
