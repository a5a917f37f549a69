"""Attention transfer: the formulas on scores, the mask in both directions, and what the classes do with heads."""

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

import references_attention as references
from lightning_kd import InputError
from lightning_kd.losses.attention import (
    AttentionCrossEntropy,
    AttentionKL,
    AttentionMSE,
    attention_cross_entropy,
    attention_kl,
    attention_mse,
    attention_scores,
)
from lightning_kd.losses.base import FeatureMatch, LayerMap
from lightning_kd.outputs import Needs

FUNCTIONS = [attention_mse, attention_cross_entropy, attention_kl]
CLASSES = [(AttentionMSE, attention_mse), (AttentionCrossEntropy, attention_cross_entropy), (AttentionKL, attention_kl)]
STUDENT = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
TEACHER = BertConfig(hidden_size=12, num_hidden_layers=4, num_attention_heads=2)
MANY_HEADS = BertConfig(hidden_size=12, num_hidden_layers=4, num_attention_heads=4)
PAIRS = [(1, 2, 1.0), (2, 4, 3.0)]
MASK = torch.tensor([[True, True, False, True], [True, False, True, False]])

each_function = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture
def contract(contract: Any) -> Any:
    """The checks, with scores ``(2, 3, 4, 4)`` under a mask ``(2, 4)``."""
    scores = type(contract)((2, 3, 4, 4))
    scores.mask = MASK
    return scores


def heads(config: BertConfig, seed: int) -> dict[str, dict[int, Tensor]]:
    """Random queries and keys of every layer, for 2 texts of 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = 2, config.num_attention_heads, 4, config.hidden_size // config.num_attention_heads
    layers = range(1, config.num_hidden_layers + 1)
    return {
        kind: {i: torch.randn(shape, generator=generator).requires_grad_() for i in layers}
        for kind in ("queries", "keys")
    }


@each_function
@given(
    batch=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    length=st.integers(1, 4),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(function: Any, batch: int, num_heads: int, length: int, keep: float, seed: int) -> None:
    """Stops a mean of each text's mean, a key that is masked after the softmax, and a mask on one side alone."""
    generator = torch.Generator().manual_seed(seed)
    shape = 2, batch, num_heads, length, length
    student, teacher = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = getattr(references, function.__name__)(student.tolist(), teacher.tolist(), mask.tolist())
    assert function(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_scores_equal_plain_loop() -> None:
    """Stops a scale by the whole width, and keys in the place of queries."""
    queries, keys = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor(references.attention_scores(queries.tolist(), keys.tolist()), dtype=torch.float64)
    torch.testing.assert_close(attention_scores(queries, keys), expected)


def test_scores_are_float32_under_autocast() -> None:
    """Stops scores in bfloat16, where those of 20 are rounded to the nearest 1/8."""
    queries, keys = torch.randn(2, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = attention_scores(queries, keys)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, attention_scores(queries, keys))
    assert attention_scores(queries.bfloat16(), keys.bfloat16()).dtype == torch.float32


def test_equals_torch_without_mask(contract: Any) -> None:
    """Stops a drift from torch's own losses, where nothing is masked."""
    student, teacher, mask = contract.student, contract.teacher, torch.ones_like(MASK)
    rows_s, rows_t = (F.log_softmax(x, dim=-1).flatten(0, 2) for x in (student, teacher))
    assert attention_mse(student, teacher, mask).item() == pytest.approx(F.mse_loss(student, teacher).item())
    kl = F.kl_div(rows_s, rows_t, reduction="batchmean", log_target=True).item()
    assert attention_kl(student, teacher, mask).item() == pytest.approx(kl)
    entropy = F.cross_entropy(student.flatten(0, 2), teacher.softmax(-1).flatten(0, 2)).item()
    assert attention_cross_entropy(student, teacher, mask).item() == pytest.approx(entropy)


def test_equals_textbrewer(contract: Any) -> None:
    """Stops a setting of TextBrewer from meaning another loss here; its scores hold the model's mask of -10000."""
    keep = MASK.double()[:, None, :].expand(2, 3, 4)
    student, teacher = (x.masked_fill(~MASK[:, None, None, :], -1e4) for x in (contract.student, contract.teacher))
    pairs = keep.unsqueeze(-1) * keep.unsqueeze(-2)
    mse = ((student - teacher) ** 2 * pairs).sum() / pairs.sum()
    assert attention_mse(student, teacher, MASK).item() == pytest.approx(mse.item())
    entropy = -((teacher.softmax(-1) * student.log_softmax(-1) * keep.unsqueeze(2)).sum(-1) * keep).sum() / keep.sum()
    assert attention_cross_entropy(student, teacher, MASK).item() == pytest.approx(entropy.item())


@pytest.mark.parametrize("function", [attention_mse, attention_kl])
def test_zero_for_equals(contract: Any, function: Any) -> None:
    """Stops a student that is as good as its teacher from being pulled away."""
    contract.zero_for_equals(function)


def test_cross_entropy_is_least_for_equals(contract: Any) -> None:
    """Stops a cross-entropy whose minimum is elsewhere, and one that is not the KL divergence and an entropy."""
    student = contract.teacher.clone().requires_grad_()
    entropy = attention_cross_entropy(student, contract.teacher, MASK)
    entropy.backward()
    assert entropy.item() > 0.1 and student.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
    divergence = attention_kl(contract.student, contract.teacher, MASK).item()
    value = attention_cross_entropy(contract.student, contract.teacher, MASK).item()
    assert value == pytest.approx(divergence + entropy.item())


@each_function
@pytest.mark.parametrize("garbage", [1e6, -1e6, float("inf"), float("-inf"), 1e300])
def test_ignores_masked(contract: Any, function: Any, garbage: float) -> None:
    """Stops padding, as query or as key, from moving the value or a gradient: inf * 0 would be NaN."""
    left_out = ~(MASK[:, None, :, None] & MASK[:, None, None, :])
    value = function(contract.student, contract.teacher, MASK)
    value.backward()
    student = contract.student.detach().masked_fill(left_out, garbage).requires_grad_()
    other = function(student, contract.teacher.masked_fill(left_out, -garbage), MASK)
    other.backward()
    assert other.item() == value.item()
    assert torch.equal(student.grad, contract.student.grad)
    assert not student.grad.masked_select(left_out).any()
    assert function(contract.student, contract.teacher, torch.ones_like(MASK)).item() != value.item()


@each_function
@pytest.mark.parametrize("check", ["zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"])
def test_contract(contract: Any, function: Any, check: str) -> None:
    """Stops the NaN of a softmax over no key, a teacher that moves, and a detach in the student's path."""
    getattr(contract, check)(function)


@each_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, function: Any, dtype: torch.dtype) -> None:
    """Stops a softmax or a sum of squares in half precision."""
    contract.float32_from_half(function, dtype)


@each_function
@pytest.mark.parametrize(
    ("student", "teacher", "mask"),
    [
        ((2, 3, 4, 4), (2, 1, 4, 4), (2, 4)),
        ((2, 3, 4, 4), (1, 3, 4, 4), (2, 4)),
        ((2, 3, 4, 5), (2, 3, 4, 5), (2, 4)),
        ((2, 4, 4), (2, 4, 4), (2, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 4), (1, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 4), (2, 4, 4)),
    ],
)
def test_refuses_other_shapes(function: Any, student: Any, teacher: Any, mask: Any) -> None:
    """Stops a broadcast over heads or texts, which gives a number that means nothing."""
    with pytest.raises(InputError) as error:
        function(torch.zeros(student), torch.zeros(teacher), torch.ones(mask, dtype=torch.bool))
    assert f"but got {student}, {teacher} and {mask}." in str(error.value)


def test_scores_refuse_other_shapes() -> None:
    """Stops one model's keys with the other's queries where a width of 1 would broadcast."""
    with pytest.raises(InputError, match=r"but got \(2, 3, 4, 5\) and \(2, 3, 4, 1\)\."):
        attention_scores(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 1))


@pytest.mark.parametrize(
    ("kind", "function", "way"),
    [(*pair, way) for pair in CLASSES for way in ("each", "mean")] + [(AttentionMSE, attention_mse, "sum")],
)
def test_class_sums_weighted_pairs(loss_inputs: Callable[..., Any], kind: Any, function: Any, way: str) -> None:
    """Stops another layer, a lost weight, a mask that is not passed on, and heads joined under the wrong scale."""
    teacher_config = TEACHER if way == "each" else MANY_HEADS
    loss = kind([FeatureMatch(1, 2), FeatureMatch(-1, -1, weight=3.0)], heads=way)
    loss.build(STUDENT, teacher_config)
    student, teacher = heads(STUDENT, 0), heads(teacher_config, 1)
    logits = torch.zeros(2, 2)
    inputs = loss_inputs(logits, logits, token_mask=MASK, student_heads=student, teacher_heads=teacher)
    value = loss(inputs)

    def scores(of: dict[str, dict[int, Tensor]], layer: int) -> Any:
        single = torch.tensor(references.attention_scores(of["queries"][layer].tolist(), of["keys"][layer].tolist()))
        joined = {"each": single, "sum": single.sum(1, keepdim=True), "mean": single.mean(1, keepdim=True)}
        return joined[way].tolist()

    reference = getattr(references, function.__name__)
    expected = sum(w * reference(scores(student, i), scores(teacher, j), MASK.tolist()) for i, j, w in PAIRS)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value.backward()
    for layer in (1, 2):
        for of in student.values():
            grad = of[layer].grad
            assert grad is not None and grad.abs().sum() > 0
            assert not grad[~MASK.unsqueeze(1).expand(grad.shape[:3])].any()
    assert all(tensor.grad is None for of in teacher.values() for tensor in of.values())


@pytest.mark.parametrize("kind", [kind for kind, _ in CLASSES])
def test_refuses_other_numbers_of_heads(kind: Any) -> None:
    """Stops head 1 of 2 from learning from head 1 of 4; DistilBERT calls their number `n_heads`."""
    names = r"heads='sum' or heads='mean'" if kind is AttentionMSE else r"Use heads='mean'"
    for student in (STUDENT, DistilBertConfig(dim=4, n_layers=2, n_heads=2)):
        with pytest.raises(InputError, match=f"the student has 2 and the teacher 4.*{names}, or the loss MiniLMv2"):
            kind([FeatureMatch(1, 1)]).build(student, MANY_HEADS)
        kind([FeatureMatch(1, 1)], heads="mean").build(student, MANY_HEADS)
        kind([FeatureMatch(1, 1)]).build(student, TEACHER)


def test_needs_only_the_matched_layers() -> None:
    """Stops hooks on layers that no pair names, and a loss without what it reads."""
    loss = AttentionKL(LayerMap("uniform"))
    loss.build(STUDENT, TEACHER)
    assert loss.needs("student") == Needs(queries=frozenset({1, 2}), keys=frozenset({1, 2}))
    assert loss.needs("teacher") == Needs(queries=frozenset({2, 4}), keys=frozenset({2, 4}))
    assert not list(loss.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0, 1), r"`student_layer` .* the student, from 1 to 2, or from -2 to -1, but got 0\."),
        ((1, -5), r"`teacher_layer` .* the teacher, from 1 to 4, or from -4 to -1, but got -5\."),
        (("bert.encoder", 1), r"`student_layer` to be a layer's number.* but got 'bert.encoder'\."),
    ],
)
def test_refuses_missing_layers(layers: Any, message: str) -> None:
    """Stops layer 0, the embeddings, which attend to nothing."""
    with pytest.raises(InputError, match=message):
        AttentionMSE([FeatureMatch(*layers)]).build(STUDENT, TEACHER)


@pytest.mark.parametrize(
    ("kind", "heads", "valid"),
    [
        (AttentionMSE, "all", "'each', 'sum' or 'mean', but got 'all'"),
        (AttentionCrossEntropy, "sum", "'each' or 'mean', but got 'sum'"),
        (AttentionKL, "sum", "'each' or 'mean', but got 'sum'"),
    ],
)
def test_refuses_heads(kind: Any, heads: str, valid: str) -> None:
    """Stops a way that is not known from being taken for another."""
    with pytest.raises(InputError, match=f"`heads` to be {valid}"):
        kind([FeatureMatch(1, 1)], heads=heads)
