"""Decoupled distillation against a plain loop, soft targets, and the claims of its docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.decoupled import DecoupledKD, decoupled_kd
from lightning_kd.losses.soft_target import soft_target_kl


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_two(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The loss for the shapes of the contract, every row with a label."""
    labels = torch.arange(12).view(3, 4) % 5
    return decoupled_kd(student, teacher, mask, 2.0, labels)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    num_labels=st.integers(2, 6),
    temperature=st.floats(0.3, 20) | st.none(),
    alpha=st.floats(0, 3),
    beta=st.floats(0, 10),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    shape: list[int], num_labels: int, temperature: float | None, alpha: float, beta: float, keep: float, seed: int
) -> None:
    """Stops weights that are swapped, the true label in the second part, and rows without a label in the mean."""
    student, teacher = logits(*shape, num_labels, seed=seed), logits(*shape, num_labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    labels = torch.randint(-1, num_labels, shape, generator=generator)
    temperatures = torch.full(shape, temperature or 0, dtype=torch.float64)
    if temperature is None:
        temperatures = 0.3 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    expected = references.decoupled_kd(
        student.view(-1, num_labels).tolist(),
        teacher.view(-1, num_labels).tolist(),
        mask.view(-1).tolist(),
        temperatures.view(-1).tolist(),
        labels.view(-1).tolist(),
        alpha,
        beta,
    )
    given_temperature = temperatures if temperature is None else temperature
    value = decoupled_kd(student, teacher, mask, given_temperature, labels, alpha, beta)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "check",
    [
        "zero_for_equals",
        "ignores_masked",
        "zero_when_all_masked",
        "no_gradient_to_teacher",
        "refuses_other_shapes",
        "gradient_is_right",
    ],
)
def test_contract(contract: Any, check: str) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(at_two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a softmax in half precision, whose small probabilities are 0."""
    contract.float32_from_half(at_two, dtype)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_parts_make_up_soft_targets(temperature: float) -> None:
    """Stops a part that is not the paper's: KL is TCKD plus NCKD, weighted by what the teacher leaves to the others."""
    student, teacher, labels = logits(6, 4), logits(6, 4, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    mask = torch.ones(1, dtype=torch.bool)
    for s, t, y in zip(student, teacher, labels, strict=True):
        rest = 1 - F.softmax(t / temperature, -1)[y].item()
        value = decoupled_kd(s[None], t[None], mask, temperature, y[None], 1.0, rest)
        expected = soft_target_kl(s[None], t[None], mask, temperature)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_two_labels_are_soft_targets() -> None:
    """Stops noise from a second part that is 0 with 2 labels: beta has nothing to weigh."""
    student, teacher, mask = logits(6, 2).requires_grad_(), logits(6, 2, seed=1), torch.ones(6, dtype=torch.bool)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    value = decoupled_kd(student, teacher, mask, 2.0, labels, alpha=1.5, beta=1e6)
    assert value.item() == pytest.approx(1.5 * soft_target_kl(student, teacher, mask, 2.0).item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(decoupled_kd(student, teacher, mask, 2.0, labels, alpha=0.0), student)
    assert not gradient.any()


def test_rows_without_label_are_left_out() -> None:
    """Stops a label of -100 from being read as the last label but 99, and from counting in the mean."""
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    whole, half = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, False])
    value = decoupled_kd(student, teacher, whole, 1.0, torch.tensor([2, -100, -1]))
    assert value.item() == decoupled_kd(student, teacher, half, 1.0, torch.tensor([2, 0, 0])).item()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_large_logits_stay_finite(label: int) -> None:
    """Stops log(1 - p) of a p that is 1, and 0 times infinity at the label that is taken out."""
    student, teacher = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True), torch.tensor([[-6e4, 6e4, 0.0]])
    value = decoupled_kd(student, teacher, torch.ones(1, dtype=torch.bool), 1.0, torch.tensor([label]))
    value.backward()
    assert value.isfinite() and value.item() > 1e4
    assert student.grad is not None and student.grad.isfinite().all()


def test_refuses_labels_and_weights() -> None:
    """Stops labels of another shape, one label, and a weight that rewards distance."""
    inputs, labels = (logits(2, 3), logits(2, 3), torch.ones(2, dtype=torch.bool), 1.0), torch.zeros(2).long()
    with pytest.raises(InputError, match=r"labels of the shape of the mask, but got \(2, 3\) and \(2,\)"):
        decoupled_kd(*inputs, torch.zeros(2, 3).long())
    with pytest.raises(InputError, match=r"at least 2 labels, but got shape \(2, 1\)"):
        decoupled_kd(logits(2, 1), logits(2, 1), *inputs[2:], labels)
    for call in (lambda: decoupled_kd(*inputs, labels, alpha=-1.0), lambda: DecoupledKD(alpha=-1.0)):
        with pytest.raises(InputError, match="`alpha` to be a finite number, 0 or more, but got -1"):
            call()
    for call in (lambda: decoupled_kd(*inputs, labels, beta=-1.0), lambda: DecoupledKD(beta=-1.0)):
        with pytest.raises(InputError, match="`beta` to be a finite number, 0 or more, but got -1"):
            call()


def test_class_needs_labels(loss_inputs: Callable[..., Any]) -> None:
    """Stops the teacher's own guess from standing in for a label that is not there."""
    with pytest.raises(InputError, match="DecoupledKD needs the true label of each row, but the batch has none"):
        DecoupledKD()(loss_inputs(logits(2, 3), logits(2, 3)))


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_class_passes_its_options_on(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops weights that are taken and not passed on, and T squared applied twice."""
    student, teacher, labels = logits(5, 3), logits(5, 3, seed=1), [0, 1, 2, 0, -1]
    expected = references.decoupled_kd(student.tolist(), teacher.tolist(), [True] * 5, [4.0] * 5, labels, 0.5, 3.0)
    inputs = loss_inputs(student, teacher, temperature=4.0, hard_labels=torch.tensor(labels))
    value = DecoupledKD(0.5, 3.0, scale_by_t2)(inputs)
    assert value.item() == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)
