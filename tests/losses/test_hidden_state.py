"""Squared difference and cosine distance of hidden states: formulas, the layers picked, the projections owned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, DistilBertConfig

import references
import references_hidden
from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, hidden_state_mse
from lightning_kd.losses.hidden_state import HiddenStateCosine, hidden_state_cosine

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
TOKEN_MASK = torch.tensor([[True, True, True], [True, False, False]])
LOSSES = [
    pytest.param(hidden_state_mse, references.hidden_state_mse, id="mse"),
    pytest.param(hidden_state_cosine, references_hidden.hidden_state_cosine, id="cosine"),
]
FUNCTIONS = [pytest.param(hidden_state_mse, id="mse"), pytest.param(hidden_state_cosine, id="cosine")]


def states(layers: int, width: int, seed: int = 0) -> dict[int, Tensor]:
    """Random hidden states ``(2, 3, width)`` of the embeddings and ``layers`` layers."""
    generator = torch.Generator().manual_seed(seed)
    return {i: torch.randn(2, 3, width, generator=generator).requires_grad_() for i in range(layers + 1)}


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    width=st.integers(1, 5),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    loss: Any, reference: Any, batch: int, length: int, width: int, keep: float, seed: int
) -> None:
    """Stops a mean of each row's mean, in which a token of a short text weighs more than one of a long text."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, length, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = reference(student.tolist(), teacher.tolist(), mask.tolist())
    assert loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_torch(contract: Any) -> None:
    """Stops a drift from torch's losses over the tokens that are left."""
    student, teacher = contract.student[contract.mask], contract.teacher[contract.mask]
    cosine = F.cosine_embedding_loss(student, teacher, torch.ones(len(student)))
    for loss, expected in ((hidden_state_mse, F.mse_loss(student, teacher)), (hidden_state_cosine, cosine)):
        value = loss(contract.student, contract.teacher, contract.mask)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss", FUNCTIONS)
@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "refuses_other_shapes"],
)
def test_contract(contract: Any, check: str, loss: Any) -> None:
    """Stops padding in the mean, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    getattr(contract, check)(loss)


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_gradient_is_right(contract: Any, loss: Any) -> None:
    """Stops a detach or an in-place step in the student's path."""
    contract.gradient_is_right(loss)


@pytest.mark.parametrize("loss", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype, loss: Any) -> None:
    """Stops a sum of squares in half precision: fp16 overflows at 65,504."""
    contract.float32_from_half(loss, dtype)


def test_cosine_does_not_see_the_length(contract: Any) -> None:
    """Stops a missing norm: the loss would reward a student for short states."""
    value = hidden_state_cosine(contract.student, contract.teacher, contract.mask)
    other = hidden_state_cosine(7 * contract.student, contract.teacher / 3, contract.mask)
    assert other.item() == pytest.approx(value.item(), rel=1e-12)


def test_cosine_of_zero_has_a_gradient() -> None:
    """Stops the NaN of 0 / 0 at a state of zeros."""
    student = torch.zeros(1, 1, 3, requires_grad=True)
    hidden_state_cosine(student, torch.ones(1, 1, 3), torch.tensor([[True]])).backward()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "reference"),
    [(HiddenStateMSE, references.hidden_state_mse), (HiddenStateCosine, references_hidden.hidden_state_cosine)],
)
def test_class_sums_weighted_pairs(loss_inputs: Callable[..., Any], kind: Any, reference: Any) -> None:
    """Stops a pair that reads another layer, a weight that is lost, and a token mask that is not passed on."""
    loss = kind([FeatureMatch(0, 0), FeatureMatch(1, 2, weight=0.5), FeatureMatch(2, 4, weight=3.0)])
    loss.build(NARROW, BertConfig(hidden_size=4, num_hidden_layers=4, num_attention_heads=2))
    student, teacher = states(2, 4), states(4, 4, seed=1)
    logits = torch.zeros(2, 2)
    value = loss(loss_inputs(logits, logits, None, student, teacher, TOKEN_MASK))
    expected = sum(
        weight * reference(student[i].tolist(), teacher[j].tolist(), TOKEN_MASK.tolist())
        for i, j, weight in ((0, 0, 1.0), (1, 2, 0.5), (2, 4, 3.0))
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "projection", "count"),
    [(NARROW, "auto", 0), (WIDE, "auto", 2), (NARROW, "linear", 2), (WIDE, "linear", 2)],
)
def test_projection_only_where_needed(teacher: BertConfig, projection: Any, count: int) -> None:
    """Stops a random projection between equal widths, and one that is shared by layers of different content."""
    loss = HiddenStateMSE([FeatureMatch(0, 0), FeatureMatch(2, 2)], projection)
    loss.build(NARROW, teacher)
    assert [tuple(layer.weight.shape) for layer in loss.projections] == [(teacher.hidden_size, 4)] * count
    assert len({id(layer.weight) for layer in loss.projections}) == count


def test_projection_is_trained_with_the_student(loss_inputs: Callable[..., Any]) -> None:
    """Stops a projection that stays random, or that keeps the gradient from the student."""
    loss = HiddenStateMSE([FeatureMatch(1, 1), FeatureMatch(2, 4)])
    loss.build(NARROW, WIDE)
    student, teacher = states(2, 4), states(4, 6, seed=1)
    inputs = loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, TOKEN_MASK)
    before = loss(inputs)
    before.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == 4
    for layer in (1, 2):
        grad = student[layer].grad
        assert grad is not None and grad[TOKEN_MASK].all() and not grad[~TOKEN_MASK].any()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    optimizer.step()
    assert loss(inputs).item() < before.item()


def test_widths_by_the_common_name() -> None:
    """Stops DistilBERT, whose config calls the width `dim` and the depth `n_layers`, from being read wrongly."""
    loss = HiddenStateMSE([FeatureMatch(-1, -1)])
    loss.build(DistilBertConfig(dim=4, n_layers=3, n_heads=2), WIDE)
    assert loss.matches == (FeatureMatch(3, 4),)
    assert tuple(loss.projections[0].weight.shape) == (6, 4)


@pytest.mark.parametrize(("given_layers", "resolved"), [((-1, -1), (2, 4)), ((-3, -5), (0, 0)), ((0, -2), (0, 3))])
def test_negative_layers(given_layers: tuple[int, int], resolved: tuple[int, int]) -> None:
    """Stops -1 from meaning the last layer but one: there is one hidden state more than there are layers."""
    loss = HiddenStateMSE([FeatureMatch(*given_layers, weight=2.0)])
    loss.build(NARROW, WIDE)
    assert loss.matches == (FeatureMatch(*resolved, weight=2.0),)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((3, 0), r"`student_layer` .* the student, from 0 \(the embeddings\) to 2, or from -3 to -1, but got 3\."),
        ((-4, 0), r"`student_layer` .* but got -4\."),
        ((0, 5), r"`teacher_layer` .* the teacher, from 0 \(the embeddings\) to 4, or from -5 to -1, but got 5\."),
        ((0, -6), r"`teacher_layer` .* but got -6\."),
    ],
)
def test_refuses_missing_layers(layers: tuple[int, int], message: str) -> None:
    """Stops a number past the end from wrapping around to another layer."""
    with pytest.raises(InputError, match=message):
        HiddenStateMSE([FeatureMatch(*layers)]).build(NARROW, WIDE)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_refuses_match_weight(weight: float) -> None:
    """Stops a negative weight, which drives the student away from its teacher."""
    with pytest.raises(InputError, match="`weight` to be a number above 0"):
        FeatureMatch(0, 0, weight)


def test_refuses_arguments() -> None:
    """Stops a loss that compares nothing, and a projection that is not known from being taken for "auto"."""
    with pytest.raises(InputError, match="`matches` to hold at least one pair"):
        HiddenStateMSE([])
    with pytest.raises(InputError, match="`projection` to be 'auto', 'linear', 'relu' or 'tanh', but got 'lineer'"):
        HiddenStateMSE([FeatureMatch(0, 0)], "lineer")
