"""What losses on layers share: which layers they name, and the projections between widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig

from lightning_kd import InputError
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, LayerMap
from lightning_kd.losses.base import aligned, full_precision
from lightning_kd.outputs import Needs


def config(layers: int, width: int = 4) -> BertConfig:
    """A model of this many layers."""
    return BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2)


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "pairs"),
    [
        (LayerMap("uniform"), 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT's g(m) = 3 m
        (LayerMap("uniform", embeddings=True), 3, 12, [(0, 0), (1, 4), (2, 8), (3, 12)]),  # TextBrewer's L3
        (LayerMap("uniform", embeddings=True), 6, 12, [(i, 2 * i) for i in range(7)]),  # TextBrewer's L6
        (LayerMap("uniform"), 5, 12, [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]),
        (LayerMap("last"), 3, 6, [(1, 4), (2, 5), (3, 6)]),
        (LayerMap("first"), 3, 6, [(1, 1), (2, 2), (3, 3)]),
        (LayerMap("last"), 2, 2, [(1, 1), (2, 2)]),
    ],
)
def test_layer_map(layer_map: LayerMap, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    """Stops a map that leaves out the teacher's last layer, and one that counts the embeddings as a layer."""
    assert [(m.student_layer, m.teacher_layer) for m in layer_map.expand(student, teacher)] == pairs


@given(strategy=st.sampled_from(["uniform", "last", "first"]), student=st.integers(1, 12), more=st.integers(0, 20))
def test_layer_map_is_in_range_and_rises(strategy: Any, student: int, more: int) -> None:
    """Stops two student layers from one teacher layer, and a layer past the teacher's last."""
    matches = LayerMap(strategy, weight=0.5).expand(student, student + more)
    teacher_layers = [m.teacher_layer for m in matches]
    assert [m.student_layer for m in matches] == list(range(1, student + 1))
    assert teacher_layers == sorted(set(teacher_layers)) and 1 <= min(teacher_layers) <= max(teacher_layers)
    assert max(teacher_layers) <= student + more and {m.weight for m in matches} == {0.5}
    if strategy != "first":
        assert teacher_layers[-1] == student + more


def test_loss_expands_its_map_for_the_models() -> None:
    """Stops a map that is expanded before the depths are known, or not shown to the user."""
    loss = HiddenStateMSE(LayerMap("last", embeddings=True, weight=2.0))
    loss.build(config(2), config(6))
    assert loss.describe() == "0<-0 x 2, 1<-5 x 2, 2<-6 x 2"
    assert loss.needs("student") == Needs(hidden_states=frozenset({0, 1, 2}))
    assert loss.needs("teacher") == Needs(hidden_states=frozenset({0, 5, 6}))


def test_module_names_are_left_to_the_models() -> None:
    """Stops a module's name from being taken for a number, or counted against the depth."""
    loss = HiddenStateMSE([FeatureMatch("bert.encoder.layer.0.output", -1)])
    loss.build(config(2), config(6))
    assert loss.matches == (FeatureMatch("bert.encoder.layer.0.output", 6),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerMap("skip"), "`strategy` to be 'uniform', 'last' or 'first', but got 'skip'"),
        (lambda: LayerMap(weight=0.0), "`weight` to be a number above 0, but got 0.0"),
        (lambda: LayerMap().expand(6, 3), "the student has 6 and the teacher 3: write the pairs out"),
        (lambda: HiddenStateMSE([FeatureMatch(0, 0)], projection_lr=0.0), "`projection_lr` to be a number above 0"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    """Stops a student that is deeper than its teacher from learning one layer twice."""
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("projection", "kinds"),
    [("auto", [nn.Linear]), ("linear", [nn.Linear]), ("relu", [nn.Linear, nn.ReLU]), ("tanh", [nn.Linear, nn.Tanh])],
)
def test_projection_kinds(projection: Any, kinds: list[type]) -> None:
    """Stops a nonlinearity that is dropped, and weights of another scale than TextBrewer's N(0, 0.02)."""
    loss = HiddenStateMSE([FeatureMatch(1, 1)], projection)
    loss.build(config(1, 256), config(1, 512))
    layers = [m for m in loss.projections.modules() if isinstance(m, (nn.Linear, nn.ReLU, nn.Tanh))]
    assert [type(layer) for layer in layers] == kinds
    linear = layers[0]
    assert isinstance(linear, nn.Linear) and not linear.bias.any()
    assert linear.weight.shape == (512, 256) and linear.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_aligned_detaches_and_clears() -> None:
    """Stops garbage, NaN too, at what is masked from reaching a product, and a teacher that moves."""
    student = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    teacher = torch.tensor([[2.0, 3.0], [float("inf"), 1.0]], dtype=torch.float64, requires_grad=True)
    s, t = aligned(student, teacher, torch.tensor([True, False]))
    assert s.tolist() == [[1], [0]] and t.tolist() == [[2, 3], [0, 0]]
    assert s.dtype == t.dtype == torch.float64 and s.requires_grad and not t.requires_grad
    with pytest.raises(InputError, match=r"in all but the widths, but got \(2, 3\), \(1, 3\) and \(2,\)"):
        aligned(torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, dtype=torch.bool))


def test_full_precision_ends_autocast() -> None:
    """Stops bf16 products of float32 tensors under autocast, and autocast that stays off behind it."""
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(ones):
            assert (ones @ ones).dtype == torch.float32
        assert (ones @ ones).dtype == torch.bfloat16
