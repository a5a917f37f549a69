"""Patient KD: directions of the first token's hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_kd._checks import InputError
from lightning_kd.losses.base import ProjectedMatchLoss, floating, shapes
from lightning_kd.losses.pooled import pool
from lightning_kd.outputs import LossInputs

__all__ = ["PatientKD", "patient_kd"]


def patient_kd(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of normalised first-token states (Sun et al. 2019, arXiv 1908.09355).

    .. math:: \frac{1}{B} \sum_b \left\lVert
        \frac{s_b}{\lVert s_b \rVert_2} - \frac{t_b}{\lVert t_b \rVert_2} \right\rVert_2^2

    Args:
        student: ``(B, H)``, the state of each example's first token, projected to the teacher's width where that
            differs.
        teacher: ``(B, H)``.

    Returns:
        Mean over examples, from 0 to 4, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> import torch
        >>> patient_kd(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])).item()
        2.0
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise InputError(f"Expected student and teacher of one shape (B, H), but got {shapes(student, teacher)}.")
    student, teacher = floating(student, teacher.detach())
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()


class PatientKD(ProjectedMatchLoss):
    """Squared distance of normalised first-token states in matched layers (Sun et al. 2019, arXiv 1908.09355).

    Where student and teacher differ in width, a linear projection is made and trained as in :class:`HiddenStateMSE`.
    ``LayerMap("last")`` is the paper's PKD-last, ``LayerMap("uniform")`` its PKD-skip; the paper leaves out the last
    layer. The paper weighs the loss, a mean of small values, by 10 to 1000.

    Relations:
        For classification of whole texts, which read the first token alone; :class:`HiddenStateMSE` and
        :class:`HiddenStateCosine` for tasks on tokens.

    Args:
        matches: The pairs, or a rule that gives them; a projection each.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair or the projection is none of these; in :meth:`build` also if a layer does not
            exist.
    """

    token_by_token = False

    def distance(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        return patient_kd(pool(student, inputs.token_mask, "first"), pool(teacher, inputs.teacher_mask, "first"))
