"""Squared difference and cosine distance of hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import ProjectedMatchLoss, comparable, masked_mean
from lightning_kd.outputs import LossInputs

__all__ = ["HiddenStateCosine", "HiddenStateMSE", "hidden_state_cosine", "hidden_state_mse"]


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
        >>> import torch
        >>> states = torch.ones(1, 2, 3)
        >>> hidden_state_mse(states, 3 * states, torch.tensor([[True, False]])).item()
        4.0
    """
    student, teacher = comparable(student, teacher, mask)
    return masked_mean((student - teacher).square().mean(-1), mask)


def hidden_state_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Mean cosine distance of hidden states over real tokens (Sanh et al. 2019, arXiv 1910.01108, sec. 2).

    .. math:: \frac{1}{|M|} \sum_{i \in M} 1 - \frac{s_i \cdot t_i}{\lVert s_i \rVert_2 \lVert t_i \rVert_2}

    Args:
        student: ``(B, L, H)``, projected to the teacher's width where that differs.
        teacher: ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over kept tokens, from 0 to 2, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
        >>> hidden_state_cosine(student, teacher, torch.tensor([[True]])).item()
        1.0
    """
    student, teacher = comparable(student, teacher, mask)
    return masked_mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


class HiddenStateMSE(ProjectedMatchLoss):
    """Mean squared error between matched hidden states (Jiao et al. 2020, arXiv 1909.10351, eq. 8).

    Where student and teacher differ in width, a linear projection from the student's to the teacher's is made and
    trained with the student; it stays out of the exported student. A match of layer 0 with layer 0 is TinyBERT's
    embedding-layer loss (eq. 9).

    Relations:
        Beside :class:`SoftTargetKL`, when the student keeps some of the teacher's layers or is trained for long.
        :class:`HiddenStateCosine` leaves the length of the states free.

    Args:
        matches: The pairs, or a rule that gives them; a projection each.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair or the projection is none of these; in :meth:`build` also if a layer does not
            exist.
    """

    def distance(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        return hidden_state_mse(student, teacher, inputs.token_mask)


class HiddenStateCosine(ProjectedMatchLoss):
    """Mean cosine distance between matched hidden states (Sanh et al. 2019, arXiv 1910.01108, sec. 2).

    DistilBERT's loss on hidden states: it aligns the directions and leaves the lengths free. Where student and teacher
    differ in width, a linear projection is made and trained as in :class:`HiddenStateMSE`.

    Relations:
        Instead of :class:`HiddenStateMSE` where a few dimensions with large values would take most of its sum;
        :class:`PatientKD` compares directions of the first token alone.

    Args:
        matches: The pairs, or a rule that gives them; a projection each.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair or the projection is none of these; in :meth:`build` also if a layer does not
            exist.
    """

    def distance(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        return hidden_state_cosine(student, teacher, inputs.token_mask)
