"""Squared difference of hidden states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.losses.base import DistillationLoss, FeatureMatch, comparable, masked_mean
from lightning_kd.outputs import LossInputs

__all__ = ["HiddenStateMSE", "hidden_state_mse"]


def hidden_state_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Mean squared difference of hidden states over real tokens (Jiao et al. 2020, arXiv 1909.10351, eq. 8).

    .. math:: \frac{1}{|M| H} \sum_{i \in M} \lVert s_i - t_i \rVert_2^2

    Args:
        student: ``(B, L, H)``, projected to the teacher's width where that differs.
        teacher: ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over kept tokens and dimensions, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> states = torch.ones(1, 2, 3)
        >>> hidden_state_mse(states, 3 * states, torch.tensor([[True, False]])).item()
        4.0
    """
    student, teacher = comparable(student, teacher, mask)
    return masked_mean((student - teacher).square().mean(-1), mask)


class HiddenStateMSE(DistillationLoss):
    """Mean squared error between matched hidden states (Jiao et al. 2020, arXiv 1909.10351, eq. 8).

    Where student and teacher differ in width, a linear projection from the student's to the teacher's is made and
    trained with the student; it stays out of the exported student.

    Relations:
        Beside :class:`SoftTargetKL`, when the student keeps some of the teacher's layers or is trained for long.

    Args:
        matches: Pairs of layers; the loss is the sum of the pairs' errors, each times its weight.
        projection: ``"auto"`` projects only where the widths differ, ``"linear"`` always.

    Raises:
        InputError: If there is no match; in :meth:`build` also if a layer does not exist.
    """

    def __init__(self, matches: list[FeatureMatch], projection: Literal["auto", "linear"] = "auto") -> None:
        super().__init__()
        if not matches:
            raise InputError("Expected argument `matches` to hold at least one pair of layers, but got none.")
        if projection not in ("auto", "linear"):
            raise InputError(f"Expected argument `projection` to be 'auto' or 'linear', but got {projection!r}.")
        self.projection = projection
        self.matches = tuple(matches)
        self.projections = nn.ModuleList()

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        self._resolve(self.matches, student, teacher)
        if self.projection == "linear" or student.hidden_size != teacher.hidden_size:
            self.projections = nn.ModuleList(
                _projection(student.hidden_size, teacher.hidden_size) for _ in self.matches
            )

    def forward(self, inputs: LossInputs) -> Tensor:
        terms = []
        for i, match in enumerate(self.matches):
            state = inputs.student.hidden_states[match.student_layer]
            if self.projections:
                state = self.projections[i](state)
            teacher = inputs.teacher.hidden_states[match.teacher_layer]
            terms.append(match.weight * hidden_state_mse(state, teacher, inputs.token_mask))
        return torch.stack(terms).sum()


def _projection(student_dim: int, teacher_dim: int) -> nn.Linear:
    layer = nn.Linear(student_dim, teacher_dim)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
