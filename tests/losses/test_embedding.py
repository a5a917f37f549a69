"""Squared difference of sentence embeddings: the formula, what is pooled, and what comes pooled already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses import EmbeddingMSE, FeatureMatch, LayerMap, embedding_mse
from tests.conftest import LossContract

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
POOL = [FeatureMatch("encoder.pool", "encoder.pool")]


@pytest.fixture
def contract() -> LossContract:
    """Embeddings ``(4, 5)``."""
    return LossContract((4, 5), seed=3)


@given(
    texts=st.integers(1, 4),
    width=st.integers(1, 5),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(texts: int, width: int, keep: float, seed: int) -> None:
    """Stops a sum over dimensions, which a wider teacher would make larger, and a text that is left out in the mean."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, texts, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(texts, generator=generator) < keep
    expected = references.embedding_mse(student.tolist(), teacher.tolist(), mask.tolist())
    assert embedding_mse(student, teacher, mask).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equals_torch(contract: LossContract) -> None:
    """Stops a drift from torch's loss over the texts that are left."""
    wanted = F.mse_loss(contract.student[contract.mask], contract.teacher[contract.mask])
    assert embedding_mse(contract.student, contract.teacher, contract.mask).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"],
)
def test_contract(contract: LossContract, check: str) -> None:
    """Stops a text without tokens in the mean, the NaN of an empty mean, a teacher that moves, and a detach."""
    getattr(contract, check)(embedding_mse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: LossContract, dtype: torch.dtype) -> None:
    """Stops a sum of squares in half precision."""
    contract.float32_from_half(embedding_mse, dtype)


def test_refuses_other_shapes() -> None:
    """Stops a broadcast of one text over the batch."""
    with pytest.raises(InputError, match=r"but got \(4, 5\), \(1, 5\) and \(4,\)"):
        embedding_mse(torch.ones(4, 5), torch.ones(1, 5), torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_hidden_states_are_pooled_and_projected(loss_inputs: Callable[..., Any], pooling: Any) -> None:
    """Stops padding in an embedding, another layer, another pooling for the teacher, and a text without tokens."""
    loss = EmbeddingMSE([FeatureMatch(-1, -2, weight=3.0)], pooling)
    loss.build(NARROW, WIDE)
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    garbage = student.masked_fill(~mask.unsqueeze(-1), float("nan"))
    logits = torch.zeros(3, 2)
    value = loss(loss_inputs(logits, logits, None, {2: garbage}, {3: teacher}, mask))
    s = references.pool(loss.projections[0](student).tolist(), mask.tolist(), pooling)
    t = references.pool(teacher.tolist(), mask.tolist(), pooling)
    assert value.item() == pytest.approx(3 * references.embedding_mse(s, t, [True, True, False]), rel=1e-5)


def test_what_comes_pooled_is_compared_as_it_is(loss_inputs: Callable[..., Any]) -> None:
    """Stops the mask of whole rows from hiding texts: a bi-encoder gives two embeddings a row."""
    loss = EmbeddingMSE(POOL)
    loss.build(NARROW, NARROW)
    student, teacher = torch.randn(4, 4), torch.randn(4, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits = torch.zeros(2, 1)
    inputs = loss_inputs(logits, logits, None, {"encoder.pool": student}, {"encoder.pool": teacher}, mask)
    assert loss(inputs).item() == pytest.approx(F.mse_loss(student, teacher).item())
    assert not loss.token_by_token, "student and teacher may read other vocabularies"


def test_refuses_arguments() -> None:
    """Stops a pooling or a projection that is not known from being taken for the default."""
    with pytest.raises(InputError, match="`pooling` to be 'first' or 'mean', but got 'cls'"):
        EmbeddingMSE(LayerMap(), "cls")
    with pytest.raises(InputError, match="`projection` to be 'auto', 'linear', 'relu' or 'tanh', but got 'lineer'"):
        EmbeddingMSE(POOL, projection="lineer")
