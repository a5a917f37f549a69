"""Losses on how the examples of a batch lie to each other: the formulas, and the batches for which they are hard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from transformers import BertConfig

import references_hidden as references
from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch
from lightning_kd.losses.pooled import pool
from lightning_kd.losses.probabilistic import PKT, pkt
from lightning_kd.losses.relational import RKDAngle, RKDDistance, rkd_angle, rkd_distance
from lightning_kd.losses.similarity import SimilarityPreserving, similarity_preserving

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)
FUNCTIONS = (similarity_preserving, pkt, rkd_distance, rkd_angle)
LOSSES = [pytest.param(loss, getattr(references, loss.__name__), id=loss.__name__) for loss in FUNCTIONS]
CLASSES = [
    (SimilarityPreserving, references.similarity_preserving),
    (PKT, references.pkt),
    (RKDDistance, references.rkd_distance),
    (RKDAngle, references.rkd_angle),
]


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@given(
    batch=st.integers(1, 5),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    keep=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_equals_plain_loop(
    loss: Any, reference: Any, batch: int, widths: tuple[int, int], keep: float, seed: int
) -> None:
    """Stops an example's likeness to itself in a mean, one that is left out in it, and a norm of the whole matrix."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for width in widths)
    mask = torch.rand(batch, generator=generator) < keep
    expected = reference(student.tolist(), teacher.tolist(), mask.tolist())
    assert loss(student, teacher, mask).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@pytest.mark.parametrize(
    "check",
    ["zero_for_equals", "ignores_masked", "zero_when_all_masked", "no_gradient_to_teacher", "gradient_is_right"],
)
def test_contract(contract: Any, check: str, loss: Any, reference: Any) -> None:
    """Stops an example that is left out from being a neighbour, an empty mean, a moving teacher, a detached student."""
    getattr(type(contract)((8, 5)), check)(loss)


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_float32_from_half(contract: Any, loss: Any, reference: Any) -> None:
    """Stops differences and products in half precision."""
    type(contract)((8, 5)).float32_from_half(loss, torch.bfloat16)


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_autocast_does_not_round(contract: Any, loss: Any, reference: Any) -> None:
    """Stops autocast from taking the products in bf16, however the inputs are cast before."""
    contract = type(contract)((8, 5))
    student, teacher = contract.student.detach().float(), contract.teacher.float()
    expected = loss(student, teacher, contract.mask).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(student, teacher, contract.mask).item() == expected


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_one_example_is_zero(loss: Any, reference: Any) -> None:
    """Stops the NaN of a mean over no neighbours in the last batch of an epoch."""
    student = torch.randn(1, 3, requires_grad=True)
    value = loss(student, torch.randn(1, 3), torch.tensor([True]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None and student.grad.abs().max() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@pytest.mark.parametrize("same", [2, 4])
def test_gradient_of_equal_examples(loss: Any, reference: Any, same: int) -> None:
    """Stops the infinite gradient of a root at 0, where a text stands twice in a batch or a student gives one state."""
    torch.manual_seed(0)
    student = torch.cat([torch.ones(same, 3), torch.randn(4 - same, 3)]).requires_grad_()
    value = loss(student, torch.randn(4, 3), torch.ones(4, dtype=torch.bool))
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.abs().max() < 10


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@pytest.mark.parametrize("shapes", [((2, 3), (1, 3), (2,)), ((2, 3), (2, 4), (1,)), ((2, 3), (2, 4), (2, 1))])
def test_refuses_other_shapes(loss: Any, reference: Any, shapes: Any) -> None:
    """Stops a broadcast over the batch."""
    student, teacher, mask = (torch.ones(shape) for shape in shapes)
    with pytest.raises(InputError) as error:
        loss(student, teacher, mask.bool())
    assert f"but got {shapes[0]}, {shapes[1]} and {shapes[2]}." in str(error.value)


def test_similarity_sees_no_scale(contract: Any) -> None:
    """Stops the norm of columns for that of rows, and a missing norm."""
    contract = type(contract)((6, 5))
    value = similarity_preserving(contract.student, contract.teacher, contract.mask).item()
    other = similarity_preserving(7 * contract.student, contract.teacher / 3, contract.mask).item()
    assert other == pytest.approx(value, rel=1e-12)


def test_pkt_equals_torch_and_scikit_learn(contract: Any) -> None:
    """Stops the divergence in the other direction, and an example that is its own nearest neighbour."""
    contract = type(contract)((6, 5))
    rows = []
    for x in (contract.student.detach(), contract.teacher):
        kernel = (torch.from_numpy(cosine_similarity(x.numpy())) + 1) / 2
        kernel.fill_diagonal_(0)
        others = kernel[~torch.eye(6, dtype=torch.bool)].view(6, 5)
        rows.append(others / others.sum(-1, keepdim=True))
    expected = F.kl_div(rows[0].log(), rows[1], reduction="batchmean")
    value = pkt(contract.student, contract.teacher, torch.ones(6, dtype=torch.bool))
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_pkt_of_opposite_vectors() -> None:
    """Stops the logarithm of 0 at vectors that point away from each other."""
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = pkt(student, torch.eye(3), torch.ones(3, dtype=torch.bool))
    value.backward()
    assert 0 < value.item() < 20 and student.grad is not None and student.grad.isfinite().all()


def test_relations_equal_torch(contract: Any) -> None:
    """Stops a drift from torch's distances, angles and Huber loss."""
    contract = type(contract)((6, 5))
    everyone = torch.ones(6, dtype=torch.bool)
    distances, cosines = [], []
    for x in (contract.student, contract.teacher):
        each = torch.pdist(x)
        distances.append(each / each.mean())
        i, j, k = torch.tensor(
            [[i, j, k] for i in range(6) for j in range(6) for k in range(6) if len({i, j, k}) == 3]
        ).T
        cosines.append(F.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=-1))
    value = rkd_distance(contract.student, contract.teacher, everyone)
    assert value.item() == pytest.approx(F.huber_loss(*distances).item(), rel=1e-12)
    value = rkd_angle(contract.student, contract.teacher, everyone)
    assert value.item() == pytest.approx(F.huber_loss(*cosines).item(), rel=1e-12)


def test_rkd_of_small_distances_is_exact() -> None:
    """Stops distances by products, which lose in float32 what two long vectors differ by."""
    points = torch.tensor([[1000.0, 0.0], [1000.0, 0.01], [1000.0, 0.03]])
    value = rkd_distance(points - torch.tensor([1000.0, 0.0]), points, torch.ones(3, dtype=torch.bool))
    assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize(("kind", "reference"), CLASSES)
def test_class_sums_weighted_pairs(loss_inputs: Callable[..., Any], kind: Any, reference: Any, pooling: Any) -> None:
    """Stops a class that calls another's formula, a lost weight, and a mask that is not passed on."""
    loss = kind([FeatureMatch(0, 0), FeatureMatch(-1, -1, weight=3.0)], pooling)
    loss.build(NARROW, WIDE)
    torch.manual_seed(0)
    student, teacher = ({i: torch.randn(5, 3, width) for i in range(5)} for width in (4, 6))
    mask = torch.rand(5, 3) < 0.7
    mask[:, 1], mask[3] = True, False
    value = loss(loss_inputs(torch.zeros(5, 2), torch.zeros(5, 2), None, student, teacher, mask))
    expected = 0.0
    for i, j, weight in ((0, 0, 1.0), (2, 4, 3.0)):
        vectors = pool(student[i], mask, pooling), pool(teacher[j], mask, pooling)
        expected += weight * reference(vectors[0].tolist(), vectors[1].tolist(), mask.any(-1).tolist())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert not list(loss.parameters())
