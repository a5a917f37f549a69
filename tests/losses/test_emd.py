"""BERT-EMD: the flow, the loss along it, and the solver that need not be installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses.emd import BERTEMD, bert_emd, transport_flow

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
TOKEN_MASK = torch.tensor([[True, True, True], [True, False, False]])


def layered(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The loss of two layers and three that are made of one each."""
    return bert_emd([student, student.roll(1, -1)], [teacher, teacher.roll(1, -1), teacher], mask)


@settings(max_examples=15)
@given(
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    length=st.integers(1, 3),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(layers: tuple[int, int], length: int, keep: float, seed: int) -> None:
    """Stops a flow that is not the cheapest, and one that does not use every layer up."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        [torch.randn(2, length, 3, generator=generator, dtype=torch.float64) for _ in range(count)] for count in layers
    )
    mask = torch.rand(2, length, generator=generator) < keep
    expected = references.bert_emd([s.tolist() for s in student], [t.tolist() for t in teacher], mask.tolist())
    assert bert_emd(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(layers=st.tuples(st.integers(1, 7), st.integers(1, 12)), seed=st.integers(0, 2**32))
def test_flow_equals_linear_program(layers: tuple[int, int], seed: int) -> None:
    """Stops a flow that is exact for one layer count as a multiple of the other alone."""
    m, n = layers
    distances = torch.rand(m, n, generator=torch.Generator().manual_seed(seed))
    flow = transport_flow(distances)
    assert flow.dtype == distances.dtype and (flow >= 0).all()
    torch.testing.assert_close(flow.sum(1), torch.full((m,), 1 / m))
    torch.testing.assert_close(flow.sum(0), torch.full((n,), 1 / n))
    of_rows = np.kron(np.eye(m), np.ones(n))
    of_columns = np.kron(np.ones(m), np.eye(n))
    weights = np.concatenate([np.full(m, 1 / m), np.full(n, 1 / n)])
    best = linprog(distances.flatten().double().numpy(), A_eq=np.concatenate([of_rows, of_columns]), b_eq=weights)
    assert (flow * distances).sum().item() == pytest.approx(best.fun, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "refuses_other_shapes"],
)
def test_contract(contract: Any, check: str) -> None:
    """Stops padding in the costs, the NaN of an empty mean, a teacher that moves, and a broadcast over the batch."""
    if check == "zero_for_equals":
        contract.zero_for_equals(lambda s, t, mask: bert_emd([s, -s], [-t, t], mask))
    else:
        getattr(contract, check)(layered)


def test_gradient_is_right(contract: Any) -> None:
    """Stops a gradient that is lost where the distances are computed a second time."""
    contract.gradient_is_right(layered)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops costs in half precision."""
    contract.float32_from_half(layered, dtype)


def test_overflow_reaches_the_loss(contract: Any) -> None:
    """Stops the solver's error on the first steps in fp16, which the gradient scaler is there to skip."""
    student = contract.student.detach().clone()
    student[0, 0, 0] = float("inf")
    assert not layered(student, contract.teacher, contract.mask).isfinite()


def test_refuses_no_layers() -> None:
    """Stops a loss of nothing."""
    with pytest.raises(InputError, match="but got 0 and 1"):
        bert_emd([], [torch.ones(1, 1, 1)], torch.ones(1, 1, dtype=torch.bool))


def test_says_how_to_install_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an import error in the first batch, after the models are loaded."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'lightning-kd\[emd\]'"):
        BERTEMD().build(NARROW, WIDE)


@pytest.mark.parametrize(
    ("teacher", "projection", "count"), [(NARROW, "auto", 0), (WIDE, "auto", 2), (NARROW, "relu", 2)]
)
def test_class_reads_all_layers(
    loss_inputs: Callable[..., Any], teacher: BertConfig, projection: Any, count: int
) -> None:
    """Stops the embeddings as a layer, a projection that is shared by student layers, and one that is not trained."""
    torch.manual_seed(0)
    loss = BERTEMD(projection, 0.1)
    loss.build(NARROW, teacher)
    depth = teacher.num_hidden_layers
    assert loss.needs("student").hidden_states == {1, 2} and loss.describe() == f"1..2<-1..{depth}"
    assert loss.needs("teacher").hidden_states == set(range(1, depth + 1))
    assert len({id(projection) for projection in loss.projections}) == count and loss.parameters_lr == 0.1
    student = {i: torch.randn(2, 3, 4) for i in (1, 2)}
    taught = {i: torch.randn(2, 3, teacher.hidden_size) for i in range(1, depth + 1)}
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, taught, TOKEN_MASK))
    ours = [loss.projections[i - 1](state) if count else state for i, state in student.items()]
    expected = references.bert_emd(
        [s.tolist() for s in ours], [t.tolist() for t in taught.values()], TOKEN_MASK.tolist()
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    if count:
        value.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize(("name", "value"), [("projection", "lineer"), ("projection_lr", 0.0)])
def test_refuses_arguments(name: str, value: Any) -> None:
    """Stops a projection that is not known from being taken for "auto", and one that never learns."""
    with pytest.raises(InputError, match=f"`{name}` to be "):
        BERTEMD(**{name: value})
