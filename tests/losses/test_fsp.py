"""FSP: the formula in its two-layer form, and what its class reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses.fsp import FSP, fsp
from lightning_kd.losses.layer_pairs import LayerPairMatch

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
TOKEN_MASK = torch.tensor([[True, True, True], [True, False, False]])


def paired(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The loss of two layers that are made of one; the second, as long as it is, differs from the first."""
    return fsp((student, student.roll(1, -1)), (teacher, teacher.roll(1, -1)), mask)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    widths=st.integers(1, 4).map(lambda width: (width, width)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(batch: int, length: int, widths: tuple[int, int], keep: float, seed: int) -> None:
    """Stops a mean over the padded length, in which a short text's matrix is a small one."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(2, batch, length, width, generator=generator, dtype=torch.float64) for width in widths
    )
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = references.fsp(student.tolist(), teacher.tolist(), mask.tolist())
    value = fsp((student[0], student[1]), (teacher[0], teacher[1]), mask)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"],
)
def test_contract(contract: Any, check: str) -> None:
    """Stops padding in the products, the NaN of an empty mean, a teacher that moves, and a detached student."""
    getattr(contract, check)(paired)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_from_half(contract: Any, dtype: torch.dtype) -> None:
    """Stops a product in half precision: fp16 overflows at 65,504."""
    contract.float32_from_half(paired, dtype)


def test_autocast_does_not_round(contract: Any) -> None:
    """Stops autocast from taking the products in bf16, however the inputs are cast before."""
    student, teacher = contract.student.detach().float(), contract.teacher.float()
    expected = paired(student, teacher, contract.mask).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert paired(student, teacher, contract.mask).item() == expected


@pytest.mark.parametrize("which", range(5))
def test_refuses_other_shapes(which: int) -> None:
    """Stops a broadcast over the batch in any of the five tensors."""
    tensors = [torch.ones(2, 3, 4) for _ in range(4)] + [torch.ones(2, 3, dtype=torch.bool)]
    tensors[which] = tensors[which][:1]
    with pytest.raises(InputError, match=r"but got .*\(1, 3"):
        fsp((tensors[0], tensors[1]), (tensors[2], tensors[3]), tensors[4])


def test_refuses_other_widths() -> None:
    """Stops matrices of two sizes, of which one may be broadcast."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"of one shape \(B, L, H\) .* \(2, 3, 1\), \(2, 3, 4\)"):
        fsp((torch.ones(2, 3, 1),) * 2, (torch.ones(2, 3, 4),) * 2, mask)


@pytest.mark.parametrize(
    ("teacher", "projection", "count"), [(NARROW, "auto", 0), (WIDE, "auto", 4), (NARROW, "tanh", 4)]
)
def test_projections_of_both_layers(
    loss_inputs: Callable[..., Any], teacher: BertConfig, projection: Any, count: int
) -> None:
    """Stops one projection for two layers of different content, and a projection that reads the other's layer."""
    torch.manual_seed(0)
    loss = FSP([LayerPairMatch((0, 1), (0, 2)), LayerPairMatch((1, -1), (2, -1), weight=3.0)], projection, 0.1)
    loss.build(NARROW, teacher)
    assert len({id(projection) for projection in loss.projections}) == count and loss.parameters_lr == 0.1
    student, taught = ({i: torch.randn(2, 3, width) for i in range(5)} for width in (4, teacher.hidden_size))
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, taught, TOKEN_MASK))
    last = loss.matches[1].teacher_layers[1]
    expected = 0.0
    for match, ours, theirs, weight in ((0, (0, 1), (0, 2), 1.0), (1, (1, 2), (2, last), 3.0)):
        states = [student[i] for i in ours]
        if count:
            states = [loss.projections[2 * match + i](state) for i, state in enumerate(states)]
        each = [state.tolist() for state in states], [taught[i].tolist() for i in theirs]
        expected += weight * references.fsp(*each, TOKEN_MASK.tolist())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    if count:
        value.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_refuses_arguments() -> None:
    """Stops a projection that is not known from being taken for "auto", and a learning rate below 0."""
    match = LayerPairMatch((0, 1), (0, 1))
    with pytest.raises(InputError, match="`projection` to be 'auto', 'linear', 'relu' or 'tanh', but got 'lineer'"):
        FSP([match], "lineer")
    with pytest.raises(InputError, match="`projection_lr` to be a number above 0"):
        FSP([match], projection_lr=-1.0)
