"""MiniLM and MiniLMv2: relations between tokens, which have no width, and heads that are split anew."""

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
from lightning_kd.losses.base import FeatureMatch
from lightning_kd.losses.minilm import MiniLM, MiniLMv2, relation_heads, relation_kl
from lightning_kd.outputs import Needs

STUDENT = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=12, num_hidden_layers=4, num_attention_heads=2)
OTHER = BertConfig(hidden_size=12, num_hidden_layers=4, num_attention_heads=3)
MASK = torch.tensor([[True, True, False, True], [True, False, True, False]])
KINDS = ("queries", "keys", "values")


@pytest.fixture
def contract(contract: Any) -> Any:
    """The checks, with vectors ``(2, 3, 4, 5)`` under a mask ``(2, 4)``."""
    vectors = type(contract)((2, 3, 4, 5))
    vectors.mask = MASK
    return vectors


def heads(config: BertConfig, seed: int) -> dict[str, dict[int, Tensor]]:
    """Random queries, keys and values of every layer, for 2 texts of 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = 2, config.num_attention_heads, 4, config.hidden_size // config.num_attention_heads
    layers = range(1, config.num_hidden_layers + 1)
    return {kind: {i: torch.randn(shape, generator=generator).requires_grad_() for i in layers} for kind in KINDS}


def reference_relation_kl(student: Any, teacher: Any, mask: Tensor) -> float:
    """The plain loops on nested lists."""
    scores = [references.attention_scores(x, x) for x in (student, teacher)]
    return references.attention_kl(*scores, mask.tolist())


@given(
    batch=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    length=st.integers(1, 4),
    dims=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    batch: int, num_heads: int, length: int, dims: tuple[int, int], keep: float, seed: int
) -> None:
    """Stops the student's scale on the teacher's relations, and a mean of each text's mean."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        2 * torch.randn(batch, num_heads, length, d, generator=generator, dtype=torch.float64) for d in dims
    )
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = reference_relation_kl(student.tolist(), teacher.tolist(), mask)
    assert relation_kl(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equals_torch_without_mask(contract: Any) -> None:
    """Stops a drift from torch's divergence, where nothing is masked."""
    logs = [(x @ x.mT / 5**0.5).log_softmax(-1).flatten(0, 2) for x in (contract.student, contract.teacher)]
    expected = F.kl_div(*logs, reduction="batchmean", log_target=True)
    value = relation_kl(contract.student, contract.teacher, torch.ones_like(MASK))
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "check", ["zero_for_equals", "zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"]
)
def test_contract(contract: Any, check: str) -> None:
    """Stops the NaN of a softmax over no key, a teacher that moves, and a detach on one side of the product."""
    getattr(contract, check)(relation_kl)


@pytest.mark.parametrize("garbage", [1e6, -1e6, float("inf"), 1e300])
def test_ignores_masked(contract: Any, garbage: float) -> None:
    """Stops padding from moving the value or a gradient: it would come in by the product with an inf, too."""
    left_out = ~MASK[:, None, :, None].expand_as(contract.student)
    value = relation_kl(contract.student, contract.teacher, MASK)
    value.backward()
    student = contract.student.detach().masked_fill(left_out, garbage).requires_grad_()
    other = relation_kl(student, contract.teacher.masked_fill(left_out, -garbage), MASK)
    other.backward()
    assert student.grad is not None and not student.grad[left_out].any()
    assert other.item() == value.item() and torch.equal(student.grad, contract.student.grad)
    assert relation_kl(contract.student, contract.teacher, torch.ones_like(MASK)).item() != value.item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops dot products in half precision."""
    contract.float32_from_half(relation_kl, dtype)


@pytest.mark.parametrize(
    ("student", "teacher", "mask"),
    [
        ((2, 3, 4, 5), (2, 1, 4, 5), (2, 4)),
        ((2, 3, 4, 5), (1, 3, 4, 5), (2, 4)),
        ((2, 3, 4, 5), (2, 3, 4), (2, 4)),
        ((2, 4, 5), (2, 4, 5), (2, 4)),
        ((2, 3, 4, 5), (2, 3, 4, 5), (1, 4)),
        ((2, 3, 4, 5), (2, 3, 4, 5), (2, 3)),
    ],
)
def test_refuses_other_shapes(student: Any, teacher: Any, mask: Any) -> None:
    """Stops a broadcast over heads or texts, which gives a number that means nothing."""
    with pytest.raises(InputError) as error:
        relation_kl(torch.zeros(student), torch.zeros(teacher), torch.ones(mask, dtype=torch.bool))
    assert f"but got {student}, {teacher} and {mask}." in str(error.value)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 12])
def test_relation_heads_equal_plain_loop(number: int) -> None:
    """Stops a plain reshape, which mixes the tokens: it has the right shape, too."""
    vectors = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    assert relation_heads(vectors, number).tolist() == references.relation_heads(vectors.tolist(), number)
    assert torch.equal(relation_heads(vectors, 3), vectors)


@pytest.mark.parametrize("number", [5, 24, 0])
def test_relation_heads_refuse(number: int) -> None:
    """Stops a number that leaves a rest, by a message and not by an error of torch."""
    with pytest.raises(InputError, match="`num_relation_heads` to be"):
        relation_heads(torch.zeros(2, 3, 5, 4), number)


PAIRS = [(1, 2, 1.0), (2, 4, 3.0)]
MATCHES = [FeatureMatch(1, 2), FeatureMatch(-1, -1, weight=3.0)]


def check_value(loss: Any, make: Any, teacher_config: BertConfig, expected_of_pair: Any, kinds: Any) -> None:
    """Assert that the loss is the weighted sum of the plain loops, and that its gradient reaches what it reads."""
    loss.build(STUDENT, teacher_config)
    student, teacher = heads(STUDENT, 0), heads(teacher_config, 1)
    logits = torch.zeros(2, 2)
    value = loss(make(logits, logits, token_mask=MASK, student_heads=student, teacher_heads=teacher))
    value.backward()
    lists = [{kind: {i: x.tolist() for i, x in of[kind].items()} for kind in KINDS} for of in (student, teacher)]
    expected = sum(
        w
        * expected_of_pair(*({kind: of[kind][layer] for kind in KINDS} for of, layer in zip(lists, pair, strict=True)))
        for *pair, w in PAIRS
    )
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert value.shape == () and value.dtype == torch.float32
    for kind in KINDS:
        for tensor in student[kind].values():
            assert (tensor.grad is not None and tensor.grad.abs().sum() > 0) == (kind in kinds)
            assert tensor.grad is None or not tensor.grad[~MASK.unsqueeze(1).expand(tensor.shape[:3])].any()
    assert all(tensor.grad is None for of in teacher.values() for tensor in of.values())


def test_minilm_sums_attention_and_value_relation(loss_inputs: Callable[..., Any]) -> None:
    """Stops one of the two terms from being lost or halved, another layer, and a lost weight."""

    def expected(s: Any, t: Any) -> float:
        scores = [references.attention_scores(x["queries"], x["keys"]) for x in (s, t)]
        return references.attention_kl(*scores, MASK.tolist()) + reference_relation_kl(s["values"], t["values"], MASK)

    check_value(MiniLM(MATCHES), loss_inputs, WIDE, expected, KINDS)


@pytest.mark.parametrize("relations", [None, ["queries", "keys", "values"], ["values"], ["keys", "queries"]])
@pytest.mark.parametrize("teacher", [WIDE, OTHER])
def test_minilmv2_sums_the_relations(loss_inputs: Callable[..., Any], relations: Any, teacher: BertConfig) -> None:
    """Stops a mean in the place of the paper's sum, and heads that are not split anew, between unlike models."""
    kinds = relations or KINDS

    def expected(s: Any, t: Any) -> float:
        split = {kind: [references.relation_heads(x[kind], 4) for x in (s, t)] for kind in kinds}
        return sum(reference_relation_kl(*split[kind], MASK) for kind in kinds)

    check_value(MiniLMv2(MATCHES, num_relation_heads=4, relations=relations), loss_inputs, teacher, expected, kinds)


@pytest.mark.parametrize("loss", [MiniLM(), MiniLMv2(num_relation_heads=2)])
def test_last_layers_by_default(loss: Any) -> None:
    """Stops a default that is not the paper's."""
    loss.build(STUDENT, WIDE)
    assert loss.matches == (FeatureMatch(2, 4),)
    last = frozenset({4})
    assert loss.needs("teacher") == Needs(queries=last, keys=last, values=last)


def test_needs_only_what_it_reads() -> None:
    """Stops hooks whose tensors nobody reads."""
    loss = MiniLMv2(num_relation_heads=4, relations=["values"])
    loss.build(STUDENT, OTHER)
    assert loss.needs("student") == Needs(values=frozenset({2}))


@pytest.mark.parametrize("student", [STUDENT, DistilBertConfig(dim=8, n_layers=2, n_heads=2)])
def test_minilm_refuses_other_numbers_of_heads(student: Any) -> None:
    """Stops head 1 of 2 from learning from head 1 of 3."""
    with pytest.raises(InputError, match=r"the student has 2 and the teacher 3\. Use MiniLMv2"):
        MiniLM().build(student, OTHER)


@pytest.mark.parametrize("student", [STUDENT, DistilBertConfig(dim=8, n_layers=2, n_heads=2)])
@pytest.mark.parametrize("number", [48, 3, 8])
def test_minilmv2_refuses_a_rest(student: Any, number: int) -> None:
    """Stops the paper's 48 on models that it does not divide, before the first batch and with the numbers that do."""
    with pytest.raises(InputError, match=f"the student, 8, .* the teacher, 12, one of 1, 2, 4, but got {number}"):
        MiniLMv2(num_relation_heads=number).build(student, OTHER)


@pytest.mark.parametrize("relations", [[], ["values", "values"], ["value"]])
def test_minilmv2_refuses_relations(relations: Any) -> None:
    """Stops a relation that counts twice, and a loss that compares nothing."""
    with pytest.raises(InputError, match="`relations` to be some of 'queries', 'keys' and 'values', each once"):
        MiniLMv2(relations=relations)


@pytest.mark.parametrize("kind", [MiniLM, MiniLMv2])
def test_refuses_no_matches(kind: Any) -> None:
    """Stops an empty list from being taken for the default."""
    with pytest.raises(InputError, match="`matches` to hold at least one pair"):
        kind([])
    with pytest.raises(InputError, match="`num_relation_heads` to be a number above 0, but got 0"):
        MiniLMv2(num_relation_heads=0)
