"""CRD with in-batch negatives: the formula, the embeddings that it trains, and what stays fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch
from lightning_kd.losses.contrastive import CRD, crd_loss
from lightning_kd.losses.pooled import pool

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)


def masked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return crd_loss(student, teacher, 0.5, mask)


@given(
    batch=st.integers(1, 4),
    width=st.integers(1, 4),
    tau=st.floats(0.05, 5),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(batch: int, width: int, tau: float, keep: float, seed: int) -> None:
    """Stops teacher anchors for the student's, and negatives among the examples that are left out."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, generator=generator) < keep
    expected = references.crd_loss(student.tolist(), teacher.tolist(), tau, mask.tolist())
    assert crd_loss(student, teacher, tau, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_torch(contract: Any) -> None:
    """Stops a temperature that multiplies, and a loss that needs its input normalised."""
    contract = type(contract)((6, 5))
    scores = F.cosine_similarity(contract.student[:, None], contract.teacher[None], dim=-1)
    expected = F.cross_entropy(scores / 0.07, torch.arange(6))
    assert crd_loss(contract.student, contract.teacher).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    "check", ["ignores_masked", "zero_when_all_masked", "refuses_other_shapes", "gradient_is_right"]
)
def test_contract(contract: Any, check: str) -> None:
    """Stops an example that is left out from being a negative, an empty mean, a broadcast, a detached student."""
    getattr(type(contract)((8, 5)), check)(masked)


def test_float32_from_half(contract: Any) -> None:
    """Stops products and a softmax in half precision."""
    type(contract)((8, 5)).float32_from_half(masked, torch.bfloat16)


def test_autocast_does_not_round(contract: Any) -> None:
    """Stops autocast from taking the products in bf16: the temperature makes a rounding 14 times as large."""
    contract = type(contract)((8, 5))
    student, teacher = contract.student.detach().float(), contract.teacher.float()
    expected = masked(student, teacher, contract.mask).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert masked(student, teacher, contract.mask).item() == expected


def test_matched_is_better_than_swapped() -> None:
    """Stops a positive that is another example's."""
    apart = torch.eye(3)
    assert crd_loss(apart, apart).item() < 1e-5 < crd_loss(apart, apart.roll(1, 0)).item()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_class_trains_both_embeddings(loss_inputs: Callable[..., Any], pooling: Any) -> None:
    """Stops a teacher that moves, an embedding that does not, one that is shared, and a temperature that is lost."""
    torch.manual_seed(0)
    loss = CRD([FeatureMatch(1, 2), FeatureMatch(-1, -1, weight=3.0)], pooling, 7, 0.3, 0.1)
    loss.build(NARROW, WIDE)
    student, teacher = ({i: torch.randn(5, 3, w, requires_grad=True) for i in (1, 2, 4)} for w in (4, 6))
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[:, 2], mask[3] = False, False
    inputs = loss_inputs(torch.zeros(5, 2), torch.zeros(5, 2), None, student, teacher, mask)
    value = loss(inputs)
    expected = 0.0
    for index, i, j, weight in ((0, 1, 2, 1.0), (1, 2, 4, 3.0)):
        ours = loss.student_embeddings[index](pool(student[i], mask, pooling))
        theirs = loss.teacher_embeddings[index](pool(teacher[j], mask, pooling))
        assert ours.shape == theirs.shape == (5, 7)
        expected += weight * references.crd_loss(ours.tolist(), theirs.tolist(), 0.3, mask.any(-1).tolist())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert loss.parameters_lr == 0.1 and len(list(loss.parameters())) == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert all(state.grad is None for state in teacher.values())
    grad = student[2].grad
    assert grad is not None and grad[0].any() and not grad[~mask].any()
    torch.optim.SGD(loss.parameters(), lr=1e-3).step()
    assert loss(inputs).item() < value.item()


def test_one_example_is_zero_with_a_path(loss_inputs: Callable[..., Any]) -> None:
    """Stops a batch of one from leaving parameters without gradient, for which data-parallel training waits."""
    loss = CRD([FeatureMatch(1, 1)])
    loss.build(NARROW, WIDE)
    states = {1: torch.randn(1, 3, 4, requires_grad=True)}, {1: torch.randn(1, 3, 6)}
    mask = torch.ones(1, 3, dtype=torch.bool)
    value = loss(loss_inputs(torch.zeros(1, 2), torch.zeros(1, 2), None, *states, mask))
    value.backward()
    assert value.item() == 0 and all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_half_precision_models(loss_inputs: Callable[..., Any]) -> None:
    """Stops a float32 vector from meeting a bf16 embedding, as a module in bf16 has it."""
    loss = CRD([FeatureMatch(1, 1)])
    loss.build(NARROW, WIDE)
    loss.to(torch.bfloat16)
    states = ({1: torch.randn(3, 2, w, dtype=torch.bfloat16)} for w in (4, 6))
    mask = torch.ones(3, 2, dtype=torch.bool)
    value = loss(loss_inputs(torch.zeros(3, 2), torch.zeros(3, 2), None, *states, mask))
    assert value.dtype == torch.float32 and value.isfinite()


@pytest.mark.parametrize(("name", "value"), [("tau", 0.0), ("embedding_dim", 0), ("projection_lr", -1.0)])
def test_refuses_arguments(name: str, value: Any) -> None:
    """Stops a division by 0, embeddings of nothing, and a learning rate that goes uphill."""
    with pytest.raises(InputError, match=f"`{name}` to be "):
        CRD([FeatureMatch(1, 1)], **{name: value})
