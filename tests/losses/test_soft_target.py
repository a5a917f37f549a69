"""Soft targets against a plain loop, torch, and the claims of their docstring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references
import references_logits
from lightning_kd import InputError
from lightning_kd.losses import SoftTargetKL, logit_mse, soft_target_kl
from lightning_kd.losses.soft_target import SoftTargetCrossEntropy, soft_target_cross_entropy

at_two = partial(soft_target_kl, temperature=2.0)
cross_entropy_at_two = partial(soft_target_cross_entropy, temperature=2.0)


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    temperature=st.floats(0.3, 20),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(shape: list[int], labels: int, temperature: float, keep: float, seed: int) -> None:
    """Stops KL in the wrong direction, a mean over labels instead of rows, and T applied to one side only."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < keep
    rows = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    expected = references.soft_target_kl(*rows, temperature)
    assert soft_target_kl(student, teacher, mask, temperature).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_torch(temperature: float) -> None:
    """Stops a drift from torch's own KL with reduction "batchmean", which published settings were tuned on."""
    student, teacher = logits(6, 3), logits(6, 3, seed=1)
    expected = F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction="batchmean"
    )
    value = soft_target_kl(student, teacher, torch.ones(6, dtype=torch.bool), temperature)
    assert value.item() == pytest.approx(expected.item() * temperature**2, rel=1e-6)


def test_zero_for_equals(contract: Any) -> None:
    """Stops a cross-entropy in the place of the divergence: it has the right gradient, but never reaches 0."""
    contract.zero_for_equals(at_two)


def test_ignores_masked(contract: Any) -> None:
    """Stops padding from being distilled, and a mean over all tokens instead of the real ones."""
    contract.ignores_masked(at_two)


def test_zero_when_all_masked(contract: Any) -> None:
    """Stops the NaN of a mean over nothing, which would reach every weight in one step."""
    contract.zero_when_all_masked(at_two)


def test_no_gradient_to_teacher(contract: Any) -> None:
    """Stops a teacher that is not frozen from moving towards its student."""
    contract.no_gradient_to_teacher(at_two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a softmax in half precision, whose small probabilities are 0."""
    contract.float32_from_half(at_two, dtype)


def test_refuses_other_shapes(contract: Any) -> None:
    """Stops a broadcast of one row, one label or one mask over the batch."""
    contract.refuses_other_shapes(at_two)


def test_gradient_is_right(contract: Any) -> None:
    """Stops a detach or an in-place step in the student's path."""
    contract.gradient_is_right(at_two)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperature(temperature: float) -> None:
    """Stops a schedule that ends at 0 from turning the loss into NaN."""
    with pytest.raises(InputError, match="`temperature` to be a number above 0, but got"):
        soft_target_kl(logits(2, 3), logits(2, 3), torch.ones(2, dtype=torch.bool), temperature)


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_t2_in_one_place(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops T squared from being applied twice, by the function and by its class, or not at all."""
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    expected = references.soft_target_kl(student.tolist(), teacher.tolist(), [True] * 5, 4.0)
    value = SoftTargetKL(scale_by_t2)(loss_inputs(student, teacher, temperature=4.0))
    assert value.item() == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)


def test_high_temperature_is_logit_mse() -> None:
    """Stops a gradient that fades as T grows: with T squared, the limit is half the MSE of centred logits."""
    student, teacher = (values - values.mean(-1, keepdim=True) for values in (logits(4, 3), logits(4, 3, seed=1)))
    mask = torch.ones(4, dtype=torch.bool)
    expected = logit_mse(student, teacher, mask).item() / 2
    assert soft_target_kl(student, teacher, mask, 1e4).item() == pytest.approx(expected, rel=1e-3)


def test_large_logits_stay_finite() -> None:
    """Stops exp() of raw logits: a confident fp16 teacher would give inf - inf."""
    student, teacher = torch.tensor([[6e4, -6e4]], requires_grad=True), torch.tensor([[-6e4, 6e4]])
    value = soft_target_kl(student, teacher, torch.ones(1, dtype=torch.bool), 1.0)
    value.backward()
    assert value.item() == pytest.approx(1.2e5)
    assert student.grad is not None and student.grad.isfinite().all()


def test_class_reads_masks_and_all_logits(loss_inputs: Callable[..., Any]) -> None:
    """Stops the class from skipping the mask, or the second of two sets of logits (start and end of an answer)."""
    student, teacher = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    one = loss_inputs(student, teacher, mask, temperature=3.0)
    expected = soft_target_kl(student, teacher, mask, 3.0).item()
    assert SoftTargetKL()(one).item() == pytest.approx(expected, rel=1e-12)
    for logits_by_name in (one.student.logits, one.teacher.logits, one.logit_masks):
        logits_by_name["second"] = logits_by_name["logits"]
    assert SoftTargetKL()(one).item() == pytest.approx(2 * expected, rel=1e-12)


def test_refuses_regression() -> None:
    """Stops a distribution over one output: it is always 1, so the loss is always 0 and nothing is learnt."""
    regression, classes = BertConfig(num_labels=1), BertConfig(num_labels=2)
    SoftTargetKL().build(classes, classes)
    with pytest.raises(InputError, match=r"one output \(regression\). Use LogitMSE instead"):
        SoftTargetKL().build(regression, regression)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_per_row_temperature_equals_plain_loop(shape: list[int], labels: int, keep: float, seed: int) -> None:
    """Stops one row's temperature from reaching another, and one T squared for all; in both losses of this file."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    temperatures = 0.3 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    rows = [values.view(-1, labels).tolist() for values in (student, teacher)]
    rest = (mask.view(-1).tolist(), temperatures.view(-1).tolist())
    for loss, reference in (
        (soft_target_kl, references_logits.soft_target_kl),
        (soft_target_cross_entropy, references_logits.soft_target_cross_entropy),
    ):
        value = loss(student, teacher, mask, temperatures).item()
        assert value == pytest.approx(reference(*rows, *rest), rel=1e-6, abs=1e-6)


def test_no_gradient_to_temperature() -> None:
    """Stops a temperature that depends on the student from being trained by the loss that it divides."""
    temperatures = torch.tensor([1.0, 2.0], requires_grad=True)
    student = logits(2, 3).requires_grad_()
    soft_target_kl(student, logits(2, 3, seed=1), torch.ones(2, dtype=torch.bool), temperatures).backward()
    assert temperatures.grad is None and student.grad is not None


def test_non_finite_padding_is_ignored() -> None:
    """Stops NaN in padding, as an fp16 teacher may give it: times 0 it is still NaN."""
    student, teacher, mask = logits(2, 3), logits(2, 3, seed=1), torch.tensor([True, False])
    expected = at_two(student, teacher, mask).item()
    student[1], teacher[1] = float("nan"), float("inf")
    student.requires_grad_()
    value = at_two(student, teacher, mask)
    value.backward()
    assert value.item() == expected
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_cross_entropy_equals_torch(temperature: float) -> None:
    """Stops a drift from torch's own cross-entropy with probabilities, and T squared from TextBrewer's setting."""
    student, teacher = logits(6, 3), logits(6, 3, seed=1)
    expected = F.cross_entropy(student / temperature, F.softmax(teacher / temperature, -1))
    value = soft_target_cross_entropy(student, teacher, torch.ones(6, dtype=torch.bool), temperature, scale=False)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_cross_entropy_has_the_gradient_of_kl(contract: Any) -> None:
    """Stops a student's entropy in the place of the teacher's: the two losses differ by a constant only."""
    gradients = [
        torch.autograd.grad(loss(contract.student, contract.teacher, contract.mask), contract.student)[0]
        for loss in (at_two, cross_entropy_at_two)
    ]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "check",
    ["ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "refuses_other_shapes", "gradient_is_right"],
)
def test_cross_entropy_contract(contract: Any, check: str) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(cross_entropy_at_two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a softmax in half precision, whose small probabilities are 0."""
    contract.float32_from_half(cross_entropy_at_two, dtype)


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_cross_entropy_class(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops a class that falls back to KL, or scales twice."""
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    rows = (student.tolist(), teacher.tolist(), [True] * 5, [4.0] * 5)
    expected = references_logits.soft_target_cross_entropy(*rows) / (1 if scale_by_t2 else 16)
    value = SoftTargetCrossEntropy(scale_by_t2)(loss_inputs(student, teacher, temperature=4.0))
    assert value.item() == pytest.approx(expected, rel=1e-6)
