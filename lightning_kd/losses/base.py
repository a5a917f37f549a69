"""What every distillation loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.outputs import LossInputs

__all__ = ["DistillationLoss", "FeatureMatch", "comparable", "masked_mean"]


@dataclass(frozen=True)
class FeatureMatch:
    """One student layer and the teacher layer that it learns from.

    Args:
        student_layer: 0 is the output of the embeddings, ``i`` that of layer ``i``; -1 is the last layer.
        teacher_layer: Counted in the same way.
        weight: Of this pair within its loss, above 0.
    """

    student_layer: int
    teacher_layer: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)


class DistillationLoss(nn.Module, ABC):
    """Base of all distillation losses.

    A loss returns one unweighted float32 scalar, the mean over what it compares; its weight is the module's.
    What it reads of the models is stated before the first batch, in :meth:`build`.
    """

    #: Pairs of hidden states that the loss compares; the module keeps only these.
    matches: tuple[FeatureMatch, ...] = ()

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Check the loss against both models and make the parameters that it needs; called once, before training.

        Args:
            student: The student's configuration.
            teacher: The teacher's configuration.

        Raises:
            InputError: If the two models cannot be compared in this way.
        """

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss of one batch, a float32 scalar."""

    def _resolve(self, matches: tuple[FeatureMatch, ...], student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Replace negative layer numbers of ``matches`` and refuse those that do not exist."""
        resolved = [
            FeatureMatch(
                _layer("student_layer", match.student_layer, student.num_hidden_layers, "student"),
                _layer("teacher_layer", match.teacher_layer, teacher.num_hidden_layers, "teacher"),
                match.weight,
            )
            for match in matches
        ]
        self.matches = tuple(resolved)


def _layer(name: str, index: int, num_layers: int, role: str) -> int:
    if not -num_layers - 1 <= index <= num_layers:
        raise expected(
            name,
            f"a layer of the {role}, from 0 (the embeddings) to {num_layers}, or from -{num_layers + 1} to -1",
            index,
        )
    return index % (num_layers + 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over the entries where ``mask`` is True; 0, with a gradient path, if there are none.

    Args:
        values: Any shape.
        mask: Bool, the same shape.
    """
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def comparable(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in float32 (float64 if either is), the teacher's detached, once their shapes are seen to fit.

    Args:
        student: ``(..., D)``.
        teacher: The same shape.
        mask: Bool ``(...)``.

    Raises:
        InputError: If the shapes do not fit.
    """
    if student.shape != teacher.shape or mask.shape != student.shape[:-1]:
        raise InputError(
            "Expected student and teacher of one shape (..., D) and a mask of shape (...), "
            f"but got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(mask.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)
