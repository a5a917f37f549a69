"""NST: the formula in its two-layer form, and what its class reads."""

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
from lightning_kd.losses.layer_pairs import LayerPairMatch
from lightning_kd.losses.nst import NST, nst

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
TOKEN_MASK = torch.tensor([[True, True, True], [True, False, False]])


def paired(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The loss of two layers that are made of one; the second, as long as it is, differs from the first."""
    return nst((student, student.roll(1, -1)), (teacher, teacher.roll(1, -1)), mask)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(batch: int, length: int, widths: tuple[int, int], keep: float, seed: int) -> None:
    """Stops a scale that depends on the padded length, as in TextBrewer's release, and widths that must agree."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(2, batch, length, width, generator=generator, dtype=torch.float64) for width in widths
    )
    mask = torch.rand(batch, length, generator=generator) < keep
    expected = references.nst(student.tolist(), teacher.tolist(), mask.tolist())
    value = nst((student[0], student[1]), (teacher[0], teacher[1]), mask)
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
        nst((tensors[0], tensors[1]), (tensors[2], tensors[3]), tensors[4])


def test_class_sums_weighted_matches(loss_inputs: Callable[..., Any]) -> None:
    """Stops a lost weight, a token mask that is not passed on, and a projection where none is needed."""
    loss = NST([LayerPairMatch((0, 1), (0, 2)), LayerPairMatch((2, -1), (4, -1), weight=3.0)])
    loss.build(NARROW, WIDE)
    torch.manual_seed(0)
    student, teacher = ({i: torch.randn(2, 3, width) for i in range(5)} for width in (4, 6))
    value = loss(loss_inputs(torch.zeros(2, 2), torch.zeros(2, 2), None, student, teacher, TOKEN_MASK))
    expected = sum(
        weight
        * references.nst(
            [student[i].tolist() for i in ours], [teacher[i].tolist() for i in theirs], TOKEN_MASK.tolist()
        )
        for ours, theirs, weight in (((0, 1), (0, 2), 1.0), ((2, 2), (4, 4), 3.0))
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert not list(loss.parameters())
