"""Standardized logits against a plain loop, scipy, and the claims of their docstrings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.logit_standardization import LogitStandardizationKL, logit_standardization_kl, standardize

at_two = partial(logit_standardization_kl, temperature=2.0)


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(3, 6),
    temperature=st.floats(0.3, 20) | st.none(),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(shape: list[int], labels: int, temperature: float | None, keep: float, seed: int) -> None:
    """Stops a deviation over the batch instead of the row, and T squared within what is standardized."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    temperatures = torch.full(shape, temperature or 0, dtype=torch.float64)
    if temperature is None:
        temperatures = 0.3 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    lists = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    expected = references.logit_standardization_kl(*lists, temperatures.view(-1).tolist())
    value = logit_standardization_kl(student, teacher, mask, temperatures if temperature is None else temperature)
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
    """Stops padding in the mean, a teacher that moves, and a student's mean or deviation without gradient."""
    getattr(contract, check)(at_two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a deviation in half precision."""
    contract.float32_from_half(at_two, dtype)


def test_standardize_equals_scipy() -> None:
    """Stops the population's deviation in the place of the sample's, which the authors' code has."""
    stats = pytest.importorskip("scipy.stats", reason="needs the extra emd")
    values = logits(2, 3, 5)
    expected = torch.from_numpy(stats.zscore(values.numpy(), axis=-1, ddof=1))
    assert torch.allclose(standardize(values), expected, rtol=1e-6)


def test_scale_and_shift_of_a_row_are_free() -> None:
    """Stops a student from being held to the teacher's scale, which is what the loss is there to lift."""
    student, teacher, mask = logits(4, 5), logits(4, 5, seed=1), torch.ones(4, dtype=torch.bool)
    scales = torch.tensor([[0.1], [1.0], [5.0], [100.0]], dtype=torch.float64)
    assert at_two(student * scales + 7, teacher, mask).item() == pytest.approx(
        at_two(student, teacher, mask).item(), rel=1e-5
    )


@pytest.mark.parametrize("level", [0.0, 3.3, 1000.1, 1e5 + 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_row_is_no_nan(level: float, dtype: torch.dtype) -> None:
    """Stops 0 / 0, the root's gradient at 0, and rounding that is blown up to a preference: a head that starts at 0."""
    student = torch.full((2, 7), level, dtype=dtype).requires_grad_()
    value = at_two(student, logits(2, 7).to(dtype), torch.ones(2, dtype=torch.bool))
    value.backward()
    assert value.isfinite() and value.item() > 0
    assert not standardize(student).any()
    assert student.grad is not None and not student.grad.any()


def test_large_logits_stay_finite() -> None:
    """Stops a sum of squares that overflows for the largest logits that fp16 has."""
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    value = at_two(student, -student.detach(), torch.ones(1, dtype=torch.bool))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()


def test_refuses_two_labels() -> None:
    """Stops a run whose loss has no gradient; a language model's configuration says 2 as well, and may pass."""
    loss, why = LogitStandardizationKL(), "two standardized logits are always the same number.*Use SoftTargetKL instead"
    classifier = BertConfig(num_labels=2, problem_type="single_label_classification")
    with pytest.raises(InputError, match=f"LogitStandardizationKL needs at least 3 labels, but the model has 2: {why}"):
        loss.build(classifier, classifier)
    loss.build(BertConfig(), BertConfig())
    loss.build(BertConfig(num_labels=3, problem_type="single_label_classification"), classifier)
    with pytest.raises(InputError, match=rf"the logits have shape \(4, 2\): {why}"):
        at_two(logits(4, 2), logits(4, 2), torch.ones(4, dtype=torch.bool))
    with pytest.raises(InputError, match=r"at least 2 labels, but got shape \(4, 1\)"):
        standardize(logits(4, 1))


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_class_passes_its_options_on(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops a class that falls back to plain soft targets, and T squared applied twice."""
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    expected = references.logit_standardization_kl(student.tolist(), teacher.tolist(), [True] * 5, [4.0] * 5)
    value = LogitStandardizationKL(scale_by_t2)(loss_inputs(student, teacher, temperature=4.0))
    assert value.item() == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)
