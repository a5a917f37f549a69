"""Losses on one vector per example: how it is taken from the hidden states, and what those losses share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_kd._checks import InputError, expected
from lightning_kd.losses.base import FeatureMatch, LayerMap, MatchLoss, floating, shapes
from lightning_kd.outputs import LossInputs

__all__ = ["PooledMatchLoss", "Pooling", "check_pooling", "pairs", "pool", "vectors"]

Pooling = Literal["first", "mean"]


class PooledMatchLoss(MatchLoss):
    """Base of losses that compare the examples of a batch with each other, by one vector per example.

    With several devices each compares the examples of its own part of the batch.

    Args:
        matches: The pairs, or a rule that gives them. A module by its name may have pooled already, ``(B, H)``: that of
            a bi-encoder, ``encoder.pool``, gives both texts of each pair.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.

    Raises:
        InputError: If there is no pair or the pooling is neither; in :meth:`build` also if a layer does not exist.
    """

    token_by_token = False

    def __init__(self, matches: list[FeatureMatch] | LayerMap, pooling: Pooling = "first") -> None:
        super().__init__(matches)
        check_pooling(pooling)
        self.pooling = pooling

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        student, mask = vectors(inputs.student.hidden_states[match.student_layer], inputs.token_mask, self.pooling)
        states = inputs.teacher.hidden_states[match.teacher_layer]
        teacher, _ = vectors(states, inputs.teacher_mask, self.pooling)
        return self.distance(index, student, teacher, mask)

    @abstractmethod
    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """The loss of the ``index``-th pair of layers: vectors ``(B, H)`` under a bool mask ``(B,)``; a scalar."""


def vectors(states: Tensor, mask: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """What a loss compares of a layer, and a bool mask ``(B,)`` of the vectors that count.

    Args:
        states: ``(B, L, H)``, which are pooled; or ``(B, H)``, the output of a module that has pooled them.
        mask: Bool ``(B, L)``, True at real tokens; not read of what is pooled already.
        pooling: As in :func:`pool`.
    """
    if states.dim() == 2:
        return states, torch.ones(len(states), dtype=torch.bool, device=states.device)
    return pool(states, mask, pooling), mask.any(-1)


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector per example from its kept tokens; zeros, with a gradient path, for an example without any.

    Args:
        states: ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens.
        pooling: ``"first"`` or ``"mean"``. The first is each example's first kept token, also with padding before it.

    Returns:
        ``(B, H)``, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes do not fit or the pooling is neither.

    Example:
        >>> states, mask = torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> pool(states, mask, "first").item(), pool(states, mask, "mean").item()
        (2.0, 3.0)
    """
    check_pooling(pooling)
    if states.dim() != 3 or mask.shape != states.shape[:-1]:
        raise InputError(f"Expected states (B, L, H) and a mask (B, L), but got {shapes(states, mask)}.")
    if pooling == "first":
        first = mask.int().argmax(-1)  # 0 if there is none
        (vectors,) = floating(states[torch.arange(len(states), device=states.device), first])
        return vectors.masked_fill(~mask.any(-1, keepdim=True), 0)
    (states,) = floating(states)
    return states.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(-1, keepdim=True).clamp(min=1)


def check_pooling(pooling: str) -> None:
    """Raise unless there is such a pooling."""
    if pooling not in ("first", "mean"):
        raise expected("pooling", "'first' or 'mean'", pooling)


def pairs(mask: Tensor) -> Tensor:
    """Bool ``(B, B)``, True at pairs of two different examples that a bool mask ``(B,)`` both keeps."""
    different = ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    return mask.unsqueeze(0) & mask.unsqueeze(1) & different
