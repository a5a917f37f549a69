"""FSP: products of the dimensions of two layers."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.losses.base import Projection, check_projection, full_precision, masked_mean, projectors, shapes
from lightning_kd.losses.layer_pairs import LayerPairLoss, LayerPairMatch, Pair, comparable_pairs

__all__ = ["FSP", "fsp"]


def fsp(student: Pair, teacher: Pair, mask: Tensor) -> Tensor:
    r"""Squared difference of FSP matrices, the Gram matrices of two layers (Yim et al. 2017, CVPR).

    .. math::
        \frac{1}{B H^2} \sum_b \lVert G(s^0_b, s^1_b) - G(t^0_b, t^1_b) \rVert_F^2, \qquad
        G(x, y) = \frac{1}{|M_b|} \sum_{i \in M_b} x_i y_i^\top

    Args:
        student: Two of ``(B, L, H)``, projected to the teacher's width where that differs.
        teacher: Two of ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over the examples that have kept tokens and over the entries of the matrix, float32 (float64 for float64
        input).

    Raises:
        InputError: If there are not two of each, or the shapes differ.

    Example:
        >>> import torch
        >>> states, mask = torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
        >>> fsp((states, states), (states, 3 * states), mask).item()
        4.0
    """
    (s_0, s_1), (t_0, t_1) = comparable_pairs(student, teacher, mask)
    if s_0.shape != t_0.shape:
        raise InputError(
            "Expected student and teacher states of one shape (B, L, H) and a mask (B, L), "
            f"but got {shapes(*student, *teacher, mask)}."
        )
    with full_precision(s_0):
        difference = (s_0.mT @ s_1 - t_0.mT @ t_1) / mask.sum(-1).clamp(min=1)[:, None, None]
        return masked_mean(difference.square().mean((-2, -1)), mask.any(-1))


class FSP(LayerPairLoss):
    """Squared difference of FSP matrices of two layers (flow of solution procedure, Yim et al. 2017, CVPR).

    The ``H x H`` products of the dimensions of one layer with those of another, averaged over the tokens. Where student
    and teacher differ in width, both layers of the student get a linear projection of their own, which is trained with
    the student and stays out of the exported student.

    Relations:
        :class:`NST` relates tokens, not dimensions, and needs no projection: take it where widths differ.

    Args:
        matches: Two layers of the student and two of the teacher each; two projections each.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no match or the projection is none of these; in :meth:`build` also if a layer does not
            exist.
    """

    def __init__(
        self,
        matches: list[LayerPairMatch],
        projection: Projection = "auto",
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(matches)
        check_projection(projection, projection_lr)
        self.projection = projection
        self.parameters_lr = projection_lr
        self.projections = nn.ModuleList()  # two for each match

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        self.projections = projectors(student.hidden_size, teacher.hidden_size, self.projection, 2 * len(self.matches))

    def project(self, index: int, states: Pair) -> Pair:
        if not self.projections:
            return states
        first, second = states
        return self.projections[2 * index](first), self.projections[2 * index + 1](second)

    def distance(self, student: Pair, teacher: Pair, mask: Tensor) -> Tensor:
        return fsp(student, teacher, mask)
