"""Linear CKA: similarity of two spaces of hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_kd.losses.base import FeatureMatch, MatchLoss, aligned, full_precision
from lightning_kd.outputs import LossInputs

__all__ = ["LinearCKA", "cka_distance"]


def cka_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""One minus the linear CKA of hidden states over real tokens (Kornblith et al. 2019, arXiv 1905.00414).

    .. math:: 1 - \frac{\lVert T^\top S \rVert_F^2}{\lVert S^\top S \rVert_F \, \lVert T^\top T \rVert_F}

    with a row for each kept token of the batch, centred over them.

    Args:
        student: ``(B, L, H)``.
        teacher: ``(B, L, H')``; the width may be another.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        From 0 to 1, float32 (float64 for float64 input); 0 where all states of one model are the same, as with a
        single token.

    Raises:
        InputError: If the shapes but for the widths differ.

    Example:
        >>> states, mask = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]]), torch.tensor([[True, True]])
        >>> cka_distance(5 * states.flip(-1), states, mask).item()  # a rotation and a scale are free
        0.0
    """
    student, teacher = aligned(student, teacher, mask)
    student, teacher = _centred(student, mask), _centred(teacher, mask)
    with full_precision(student):
        norm = torch.linalg.matrix_norm(student.mT @ student) * torch.linalg.matrix_norm(teacher.mT @ teacher)
        shared = (teacher.mT @ student).square().sum()
    varies = norm > 0
    return torch.where(varies, 1 - shared / torch.where(varies, norm, 1), shared)


def _centred(states: Tensor, mask: Tensor) -> Tensor:
    """Rows of ``states``, 0 where masked, less their mean over the others."""
    rows, left_out = states.flatten(0, -2), ~mask.reshape(-1, 1)
    mean = rows.sum(0) / mask.sum().clamp(min=1)
    return (rows - mean).masked_fill(left_out, 0)


class LinearCKA(MatchLoss):
    """One minus the linear CKA of matched hidden states (Kornblith et al. 2019, arXiv 1905.00414).

    It does not see rotations, shifts and a scale of either space, so the widths may differ and nothing is projected.
    All tokens of a batch make one comparison; with several devices each compares its own part of the batch. The cost
    is three products, two of them with a gradient: ``B L H^2``, ``B L H H'`` and ``B L H'^2`` multiplications.

    Relations:
        In place of :class:`HiddenStateMSE` where widths differ and a projection would learn in the student's stead. On
        few tokens, fewer than the width, CKA is near 1 for any two spaces: it wants a large batch.

    Args:
        matches: The pairs, or a rule that gives them.

    Raises:
        InputError: If there is no pair; in :meth:`build` also if a layer does not exist.
    """

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        student = inputs.student.hidden_states[match.student_layer]
        teacher = inputs.teacher.hidden_states[match.teacher_layer]
        return cka_distance(student, teacher, inputs.token_mask)
