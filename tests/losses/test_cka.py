"""Linear CKA: the formula, what it does not see, and the layers that its class reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch
from lightning_kd.losses.cka import LinearCKA, cka_distance

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(batch: int, length: int, widths: tuple[int, int], keep: float, seed: int) -> None:
    """Stops a mean over padding, a mean of each text alone, and the form without centring."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, length, w, generator=generator, dtype=torch.float64) for w in widths)
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = references.cka_distance(student.tolist(), teacher.tolist(), mask.tolist())
    assert cka_distance(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"],
)
def test_contract(contract: Any, check: str) -> None:
    """Stops padding in the mean or the products, 0 / 0 without tokens, a teacher that moves, a detached student."""
    getattr(contract, check)(cka_distance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a product in half precision: fp16 overflows at 65,504."""
    contract.float32_from_half(cka_distance, dtype)


def test_autocast_does_not_round(contract: Any) -> None:
    """Stops autocast from taking the products in bf16, however the inputs are cast before."""
    student, teacher = contract.student.detach().float(), contract.teacher.float()
    expected = cka_distance(student, teacher, contract.mask).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert cka_distance(student, teacher, contract.mask).item() == expected


def test_does_not_see_rotation_scale_and_shift(contract: Any) -> None:
    """Stops a norm of one side that is missing, which lets a student gain by its scale."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    moved = 3 * contract.student @ rotation + torch.arange(5)
    value = cka_distance(contract.student, contract.teacher, contract.mask).item()
    assert cka_distance(moved, contract.teacher, contract.mask).item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("constant", ["student", "teacher"])
def test_finite_without_variance(constant: str) -> None:
    """Stops NaN where all states of one model are the same."""
    student, teacher, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    (student if constant == "student" else teacher).fill_(2.0)
    value = cka_distance(student.requires_grad_(), teacher, mask)
    value.backward()
    assert value.item() == 0 and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((2, 3, 4), (1, 3, 4), (2, 3)), ((2, 3, 4), (2, 3, 5), (2, 1))])
def test_refuses_other_shapes(shapes: Any) -> None:
    """Stops a broadcast over the batch."""
    student, teacher, mask = (torch.ones(shape) for shape in shapes)
    with pytest.raises(InputError) as error:
        cka_distance(student, teacher, mask.bool())
    assert f"but got {shapes[0]}, {shapes[1]} and {shapes[2]}." in str(error.value)


def test_class_sums_weighted_pairs(loss_inputs: Callable[..., Any]) -> None:
    """Stops a pair that reads another layer, a lost weight, a mask that is not passed on, and a projection."""
    loss = LinearCKA([FeatureMatch(0, 0), FeatureMatch(-1, -1, weight=3.0)])
    loss.build(NARROW, WIDE)
    torch.manual_seed(0)
    student, teacher = ({i: torch.randn(2, 3, width) for i in range(5)} for width in (4, 6))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, mask))
    expected = sum(
        weight * references.cka_distance(student[i].tolist(), teacher[j].tolist(), mask.tolist())
        for i, j, weight in ((0, 0, 1.0), (2, 4, 3.0))
    )
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert not list(loss.parameters())
