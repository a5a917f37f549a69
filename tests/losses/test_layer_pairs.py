"""Matches of two layers with two layers: how they are written, resolved and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import BertConfig

from lightning_kd import InputError
from lightning_kd.losses import DistillationLoss
from lightning_kd.losses.layer_pairs import LayerPairLoss, LayerPairMatch, comparable_pairs
from lightning_kd.losses.nst import NST

NARROW = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2)
WIDE = BertConfig(hidden_size=6, num_hidden_layers=4, num_attention_heads=2)


class Weighted(LayerPairLoss):
    """Tells its four states apart."""

    def distance(self, student: Any, teacher: Any, mask: Tensor) -> Tensor:
        return student[0].mean() + 10 * student[1].mean() + 100 * teacher[0].mean() + 1000 * teacher[1].mean()


def test_layers_are_resolved_needed_and_read_in_order(loss_inputs: Callable[..., Any]) -> None:
    """Stops layers that are swapped within a pair or between pairs, -1 as the last but one, and a lost weight."""
    loss = Weighted([LayerPairMatch((0, -1), (1, -2)), LayerPairMatch((2, 1), (4, 4), weight=2.0)])
    loss.build(NARROW, WIDE)
    assert loss.needs("student").hidden_states == {0, 1, 2}
    assert loss.needs("teacher").hidden_states == {1, 3, 4}
    assert loss.describe() == "(0,2)<-(1,3), (2,1)<-(4,4) x 2"
    student, teacher = ({i: torch.full((1, 1, 1), float(i)) for i in range(5)} for _ in range(2))
    value = loss(loss_inputs(torch.zeros(1, 2), torch.zeros(1, 2), None, student, teacher))
    assert value.item() == (0 + 20 + 100 + 3000) + 2 * (2 + 10 + 400 + 4000)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (LayerPairMatch((0, 3), (0, 1)), r"`student_layers` .* a layer of the student, .* but got 3\."),
        (LayerPairMatch((0, 1), (-6, 1)), r"`teacher_layers` .* a layer of the teacher, .* but got -6\."),
    ],
)
def test_refuses_missing_layers(match: LayerPairMatch, message: str) -> None:
    """Stops a number past the end from wrapping around to another layer."""
    with pytest.raises(InputError, match=message):
        NST([match]).build(NARROW, WIDE)


def test_refuses_other_than_pairs() -> None:
    """Stops a third layer from being ignored, a weight that turns the loss around, and a loss of nothing."""
    with pytest.raises(InputError, match=r"`student_layers` to be two layers' numbers, but got \(0, 1, 2\)\."):
        LayerPairMatch((0, 1, 2), (0, 1))
    with pytest.raises(InputError, match="`weight` to be a number above 0"):
        LayerPairMatch((0, 1), (0, 1), -1.0)
    with pytest.raises(InputError, match="`matches` to hold at least one match"):
        NST([])
    with pytest.raises(InputError, match="`teacher` to be the states of two layers, but got 1"):
        comparable_pairs((torch.ones(1, 1, 1),) * 2, (torch.ones(1, 1, 1),), torch.ones(1, 1))


def test_yaml_gives_lists() -> None:
    """Stops a match that can be written in Python alone: YAML has no tuples."""
    assert LayerPairMatch([0, 1], [0, 2]) == LayerPairMatch((0, 1), (0, 2))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=DistillationLoss)
    match = {"student_layers": [0, -1], "teacher_layers": [0, 4], "weight": 2.0}
    config = parser.parse_object(
        {"loss": {"class_path": "lightning_kd.losses.nst.NST", "init_args": {"matches": [match]}}}
    )
    assert parser.instantiate(config).loss.matches == (LayerPairMatch((0, -1), (0, 4), 2.0),)
