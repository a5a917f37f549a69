"""DIST and the correlation of scores against a plain loop, numpy, and the claims of their docstrings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.dist import DIST, LogitCorrelation, dist_loss, logit_correlation

at_two = partial(dist_loss, temperature=2.0)


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    temperature=st.floats(1, 20) | st.none(),
    beta=st.floats(0, 3),
    gamma=st.floats(0, 3),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    shape: list[int], labels: int, temperature: float | None, beta: float, gamma: float, keep: float, seed: int
) -> None:
    """Stops padding in a column, weights that are swapped, correlations of logits, and one T squared for all rows."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    temperatures = torch.full(shape, temperature or 0, dtype=torch.float64)
    if temperature is None:
        temperatures = 1 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    expected = references.dist_loss(
        student.view(-1, labels).tolist(),
        teacher.view(-1, labels).tolist(),
        mask.view(-1).tolist(),
        temperatures.view(-1).tolist(),
        beta,
        gamma,
        labels,
    )
    given_temperature = temperatures if temperature is None else temperature
    value = dist_loss(student, teacher, mask, given_temperature, beta, gamma)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_numpy() -> None:
    """Stops a cosine without centring in the place of Pearson's correlation."""
    student, teacher, mask = logits(6, 4), logits(6, 4, seed=1), torch.ones(6, dtype=torch.bool)
    q, p = F.softmax(student, -1).numpy(), F.softmax(teacher, -1).numpy()
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert dist_loss(student, teacher, mask, 1.0, 1.0, 0.0).item() == pytest.approx(inter, rel=1e-6)
    assert dist_loss(student, teacher, mask, 1.0, 0.0, 1.0).item() == pytest.approx(intra, rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
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
def test_contract(contract: Any, check: str, weights: tuple[float, float]) -> None:
    """Stops padding in a row's or a column's mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(partial(at_two, beta=weights[0], gamma=weights[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops sums of squares in half precision."""
    contract.float32_from_half(at_two, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", ["even student", "even teacher", "one row", "one label", "certain of one label", "same rows"]
)
def test_no_variance_is_no_nan(case: str, dtype: torch.dtype) -> None:
    """Stops 0 / 0, and the gradient of a root at 0: an even student, one row, labels that no one predicts."""
    student, teacher = logits(7, 11).to(dtype), logits(7, 11, seed=1).to(dtype)
    mask = torch.ones(7, dtype=torch.bool)
    if case == "even student":
        student = torch.full_like(student, 0.3)
    elif case == "even teacher":
        teacher = torch.full_like(teacher, 0.3)
    elif case == "one row":
        mask[1:] = False
    elif case == "one label":
        student, teacher = student[:, :1], teacher[:, :1]
    elif case == "certain of one label":
        student = torch.tensor([6e4, *[0] * 9, -6e4], dtype=dtype).repeat(7, 1)
    else:
        student = student[:1].repeat(7, 1)
    student = student.clone().requires_grad_()
    value = dist_loss(student, teacher, mask, 1.0)
    value.backward()
    assert value.isfinite() and value.item() >= 0
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.abs().max() < 100
    if case in ("even student", "even teacher", "one label"):
        assert value.item() == 0 and not student.grad.any()


def test_rare_labels_are_compared() -> None:
    """Stops a fixed epsilon from swallowing the correlation of labels with small probabilities."""
    rare = torch.tensor([0.0, 0.0, -20.0])
    student, teacher, mask = logits(8, 3) + rare, logits(8, 3, seed=1) + rare, torch.ones(8, dtype=torch.bool)
    q, p = F.softmax(student, -1).numpy(), F.softmax(teacher, -1).numpy()
    expected = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert dist_loss(student.float(), teacher.float(), mask, 1.0, 0.0).item() == pytest.approx(expected, rel=1e-3)


def test_two_labels_have_no_relation_between_labels() -> None:
    """Stops a run on 2 labels that learns nothing: the docstring says that only gamma is left."""
    student, teacher, mask = logits(6, 2).requires_grad_(), logits(6, 2, seed=1), torch.ones(6, dtype=torch.bool)
    (within,) = torch.autograd.grad(dist_loss(student, teacher, mask, 1.0, 1.0, 0.0), student)
    (between,) = torch.autograd.grad(dist_loss(student, teacher, mask, 1.0, 0.0, 1.0), student)
    assert within.abs().max().item() < 1e-12 < 1e-3 < between.abs().max().item()


def test_refuses_weights() -> None:
    """Stops a weight that rewards distance."""
    inputs = logits(2, 3), logits(2, 3), torch.ones(2, dtype=torch.bool), 1.0
    for name in ("beta", "gamma"):
        for call in (lambda n=name: dist_loss(*inputs, **{n: -1.0}), lambda n=name: DIST(**{n: -1.0})):
            with pytest.raises(InputError, match=f"`{name}` to be a finite number, 0 or more, but got -1"):
                call()


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_class_passes_its_options_on(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops weights that are taken and not passed on, and T squared applied twice."""
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    expected = references.dist_loss(student.tolist(), teacher.tolist(), [True] * 5, [4.0] * 5, 0.5, 3.0, 3)
    value = DIST(0.5, 3.0, scale_by_t2)(loss_inputs(student, teacher, temperature=4.0))
    assert value.item() == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)


# ---------------------------------------------------------------------------------------------- scores


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 3),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_correlation_equals_plain_loop(shape: list[int], labels: int, keep: float, seed: int) -> None:
    """Stops a masked row in the mean or in the deviation, and a sum over outputs in the place of the mean."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < keep
    rows = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    value = logit_correlation(student, teacher, mask).item()
    assert value == pytest.approx(references.logit_correlation(*rows, labels), rel=1e-6, abs=1e-6)


def test_correlation_of_scores_equals_numpy() -> None:
    """Stops a softmax over the one score of a regression, after which all texts are the same."""
    student, teacher = logits(9, 1), logits(9, 1, seed=1)
    expected = 1 - np.corrcoef(student[:, 0], teacher[:, 0])[0, 1]
    value = logit_correlation(student, teacher, torch.ones(9, dtype=torch.bool))
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_correlation_sees_neither_shift_nor_scale() -> None:
    """Stops a covariance, which a student lowers by larger scores."""
    student, teacher, mask = logits(9, 1), logits(9, 1, seed=1), torch.ones(9, dtype=torch.bool)
    value = logit_correlation(student, teacher, mask).item()
    assert logit_correlation(3 * student + 7, 0.1 * teacher - 2, mask).item() == pytest.approx(value, rel=1e-9)


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
def test_correlation_contract(contract: Any, check: str) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(logit_correlation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_correlation_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops sums of squares in half precision."""
    contract.float32_from_half(logit_correlation, dtype)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_correlation_class_has_no_temperature(
    contract: Any, loss_inputs: Callable[..., Any], temperature: float
) -> None:
    """Stops a schedule from rescaling it, a mask that is not passed on, and a second set of logits left out."""
    inputs = loss_inputs(contract.student, contract.teacher, contract.mask, temperature=temperature)
    expected = logit_correlation(contract.student, contract.teacher, contract.mask).item()
    assert LogitCorrelation()(inputs).item() == pytest.approx(expected, rel=1e-12)
    for by_name in (inputs.student.logits, inputs.teacher.logits, inputs.logit_masks):
        by_name["second"] = by_name["logits"]
    assert LogitCorrelation()(inputs).item() == pytest.approx(2 * expected, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 4])
def test_correlation_of_equal_scores_is_no_nan(rows: int) -> None:
    """Stops 0 / 0 in a last batch of one row, and where a student begins with one score for all texts."""
    student = torch.full((rows, 1), 2.5, requires_grad=True)
    value = logit_correlation(student, torch.randn(rows, 1), torch.ones(rows, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and student.grad is not None and not student.grad.any()
