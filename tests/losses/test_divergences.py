"""Reverse KL, Jensen-Shannon and skewed KL against plain loops, torch, scipy, and the claims of their docstrings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.divergences import (
    JensenShannon,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
)
from lightning_kd.losses.soft_target import soft_target_kl

LOSSES: list[Callable[..., Tensor]] = [reverse_kl, jensen_shannon, skewed_kl, skewed_reverse_kl]


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    labels=st.integers(1, 6),
    temperature=st.floats(0.3, 20) | st.none(),
    share=st.floats(0.01, 0.99),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    shape: list[int], labels: int, temperature: float | None, share: float, keep: float, seed: int
) -> None:
    """Stops KL in the wrong direction, the share on the wrong side of the mixture, and one T squared for all rows."""
    student, teacher = logits(*shape, labels, seed=seed), logits(*shape, labels, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    temperatures = torch.full(shape, temperature or 0, dtype=torch.float64)
    if temperature is None:
        temperatures = 0.3 + 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
    lists = (student.view(-1, labels).tolist(), teacher.view(-1, labels).tolist(), mask.view(-1).tolist())
    inputs = (student, teacher, mask, temperatures if temperature is None else temperature)
    each = temperatures.view(-1).tolist()
    assert reverse_kl(*inputs).item() == pytest.approx(references.reverse_kl(*lists, each), rel=1e-6, abs=1e-6)
    for loss, reference in (
        (jensen_shannon, references.jensen_shannon),
        (skewed_kl, references.skewed_kl),
        (skewed_reverse_kl, references.skewed_reverse_kl),
    ):
        expected = reference(*lists, each, share)
        assert loss(*inputs, share).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
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
def test_contract(contract: Any, check: str, loss: Callable[..., Tensor]) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, a detached side of the mixture."""
    getattr(contract, check)(partial(loss, temperature=2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_from_half(contract: Any, loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Stops a mixture in half precision, in which the smaller share is lost."""
    contract.float32_from_half(partial(loss, temperature=2.0), dtype)


def test_reverse_kl_equals_torch() -> None:
    """Stops torch's order of arguments, which is that of the formula turned round, from turning the loss round."""
    student, teacher = logits(6, 3), logits(6, 3, seed=1)
    expected = F.kl_div(F.log_softmax(teacher / 2, -1), F.softmax(student / 2, -1), reduction="batchmean")
    value = reverse_kl(student, teacher, torch.ones(6, dtype=torch.bool), 2.0, scale=False)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_jensen_shannon_equals_scipy() -> None:
    """Stops a mixture of logits, or a geometric one, in the place of the arithmetic: scipy's distance is the root."""
    distance = pytest.importorskip("scipy.spatial.distance", reason="needs the extra emd")
    student, teacher = logits(6, 3), logits(6, 3, seed=1)
    expected = (
        distance.jensenshannon(F.softmax(student, -1).numpy(), F.softmax(teacher, -1).numpy(), axis=1) ** 2
    ).mean()
    value = jensen_shannon(student, teacher, torch.ones(6, dtype=torch.bool), 1.0)
    assert value.item() == pytest.approx(float(expected), rel=1e-6)


def test_jensen_shannon_turns_round_with_beta() -> None:
    """Stops a share that mixes one way and weighs the other way."""
    student, teacher, mask = logits(6, 3), logits(6, 3, seed=1), torch.ones(6, dtype=torch.bool)
    one, other = jensen_shannon(student, teacher, mask, 1.0, 0.2), jensen_shannon(teacher, student, mask, 1.0, 0.8)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


def test_jensen_shannon_ends_at_both_kl() -> None:
    """Stops ends that are swapped: towards 0 it is beta times KL, towards 1 1 - beta times reverse KL."""
    student, teacher, mask = logits(6, 3, spread=1), logits(6, 3, seed=1, spread=1), torch.ones(6, dtype=torch.bool)
    low, high = (jensen_shannon(student, teacher, mask, 1.0, beta).item() for beta in (1e-5, 1 - 1e-5))
    assert low / 1e-5 == pytest.approx(soft_target_kl(student, teacher, mask, 1.0).item(), rel=1e-3)
    assert high / 1e-5 == pytest.approx(reverse_kl(student, teacher, mask, 1.0).item(), rel=1e-3)


def test_skewed_ends_at_unskewed() -> None:
    """Stops the share from being that of the other distribution: almost nothing of itself is almost the plain KL."""
    student, teacher, mask = logits(6, 3), logits(6, 3, seed=1), torch.ones(6, dtype=torch.bool)
    for skewed, plain in ((skewed_kl, soft_target_kl), (skewed_reverse_kl, reverse_kl)):
        expected = plain(student, teacher, mask, 1.0).item()
        assert skewed(student, teacher, mask, 1.0, 1e-12).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "bound"),
    [(reverse_kl, 1.2e5), (jensen_shannon, math.log(2)), (skewed_kl, math.log(10)), (skewed_reverse_kl, math.log(10))],
)
def test_large_logits_stay_finite(loss: Callable[..., Tensor], bound: float) -> None:
    """Stops the log of a probability that is 0 in float32, and a mixture that is not bounded as its docstring says."""
    student, teacher = torch.tensor([[6e4, -6e4]], requires_grad=True), torch.tensor([[-6e4, 6e4]])
    value = loss(student, teacher, torch.ones(1, dtype=torch.bool), 1.0)
    value.backward()
    assert value.item() == pytest.approx(bound)
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_refuses_share(share: float) -> None:
    """Stops a share at which the loss is 0 whatever the student does."""
    inputs = logits(2, 3), logits(2, 3), torch.ones(2, dtype=torch.bool), 1.0
    for function, kind, name in (
        (jensen_shannon, JensenShannon, "beta"),
        (skewed_kl, SkewedKL, "alpha"),
        (skewed_reverse_kl, SkewedReverseKL, "alpha"),
    ):
        for call in (lambda f=function: f(*inputs, share), lambda k=kind: k(share)):
            with pytest.raises(InputError, match=f"`{name}` to be above 0 and below 1, but got {share}"):
                call()


@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_classes_pass_their_options_on(loss_inputs: Callable[..., Any], scale_by_t2: bool) -> None:
    """Stops T squared applied twice, and a share that is taken and not passed on."""
    student, teacher = logits(5, 3), logits(5, 3, seed=1)
    inputs, rows = loss_inputs(student, teacher, temperature=4.0), (student.tolist(), teacher.tolist(), [True] * 5)
    for loss, expected in (
        (ReverseKL(scale_by_t2), references.reverse_kl(*rows, [4.0] * 5)),
        (JensenShannon(0.3, scale_by_t2), references.jensen_shannon(*rows, [4.0] * 5, 0.3)),
        (SkewedKL(0.3, scale_by_t2), references.skewed_kl(*rows, [4.0] * 5, 0.3)),
        (SkewedReverseKL(0.3, scale_by_t2), references.skewed_reverse_kl(*rows, [4.0] * 5, 0.3)),
    ):
        assert loss(inputs).item() == pytest.approx(expected if scale_by_t2 else expected / 16, rel=1e-6)
