"""Soft targets of independent labels against a plain loop, torch, and the claims of their docstring."""

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

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.binary import SoftTargetBinaryKL, soft_target_binary_kl
from lightning_kd.losses.logit_mse import logit_mse
from lightning_kd.losses.soft_target import soft_target_kl

at_two = partial(soft_target_binary_kl, temperature=2.0)


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    temperature=st.floats(0.3, 20) | st.none(),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(shape: list[int], labels: int, temperature: float | None, keep: float, seed: int) -> None:
    """Stops a sum over labels in the place of the mean, and the half of the divergence that is of labels not true."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    temperatures = torch.full(shape, temperature or 0, dtype=torch.float64)
    if temperature is None:
        temperatures = 0.3 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    lists = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    expected = references.soft_target_binary_kl(*lists, temperatures.view(-1).tolist())
    value = soft_target_binary_kl(student, teacher, mask, temperatures if temperature is None else temperature)
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
    """Stops a sigmoid in half precision, which is 1 from 8 on."""
    contract.float32_from_half(at_two, dtype)


def test_equals_torch() -> None:
    """Stops a drift from torch's own: binary cross-entropy with probabilities, less that of the teacher with itself."""
    student, teacher, mask = logits(6, 3), logits(6, 3, seed=1), torch.ones(6, dtype=torch.bool)
    target = torch.sigmoid(teacher / 2)
    cross_entropy, entropy = (F.binary_cross_entropy_with_logits(x / 2, target) for x in (student, teacher))
    value = at_two(student, teacher, mask, scale=False)
    assert value.item() == pytest.approx((cross_entropy - entropy).item(), rel=1e-6)


def test_one_label_is_two_classes() -> None:
    """Stops a factor between one sigmoid and the softmax of 0 and the same logit."""
    student, teacher, mask = logits(6, 1), logits(6, 1, seed=1), torch.ones(6, dtype=torch.bool)
    pairs = (torch.cat([values, torch.zeros_like(values)], -1) for values in (student, teacher))
    assert at_two(student, teacher, mask).item() == pytest.approx(soft_target_kl(*pairs, mask, 2.0).item(), rel=1e-9)


def test_high_temperature_is_logit_mse() -> None:
    """Stops a gradient that fades as T grows: with T squared, the limit is an eighth of the MSE of logits."""
    student, teacher, mask = logits(4, 3), logits(4, 3, seed=1), torch.ones(4, dtype=torch.bool)
    expected = logit_mse(student, teacher, mask).item() / 8
    assert soft_target_binary_kl(student, teacher, mask, 1e4).item() == pytest.approx(expected, rel=1e-3)


def test_large_logits_stay_finite() -> None:
    """Stops log(1 - p) of a p that is 1 in float32."""
    student, teacher = torch.tensor([[6e4, -6e4]], requires_grad=True), torch.tensor([[-6e4, 6e4]])
    value = soft_target_binary_kl(student, teacher, torch.ones(1, dtype=torch.bool), 1.0)
    value.backward()
    assert value.item() == pytest.approx(6e4)
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.any()


def test_refuses_scores_and_exclusive_labels() -> None:
    """Stops sigmoids of logits that were trained under a softmax, and of a score."""
    loss = SoftTargetBinaryKL()
    for num_labels in (1, 3):
        config = BertConfig(num_labels=num_labels, problem_type="multi_label_classification")
        loss.build(config, config)
    exclusive = BertConfig(num_labels=3, problem_type="single_label_classification")
    with pytest.raises(InputError, match=r"one is true \(single_label_classification\)\. Use SoftTargetKL instead"):
        loss.build(exclusive, exclusive)
    for score in (BertConfig(num_labels=1), BertConfig(num_labels=1, problem_type="regression")):
        with pytest.raises(InputError, match=r"is a score \(regression\)\. Use LogitMSE instead"):
            loss.build(score, score)


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_class_reads_mask_and_all_logits(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops a skipped mask, a second set of logits left out, and T squared applied twice."""
    student, teacher, mask = logits(4, 3), logits(4, 3, seed=1), torch.tensor([True, True, False, True])
    expected = references.soft_target_binary_kl(student.tolist(), teacher.tolist(), mask.tolist(), [4.0] * 4)
    inputs = loss_inputs(student, teacher, mask, temperature=4.0)
    value = SoftTargetBinaryKL(scale_by_t2)(inputs).item()
    assert value == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)
    for by_name in (inputs.student.logits, inputs.teacher.logits, inputs.logit_masks):
        by_name["second"] = by_name["logits"]
    assert SoftTargetBinaryKL(scale_by_t2)(inputs).item() == pytest.approx(2 * value, rel=1e-12)
