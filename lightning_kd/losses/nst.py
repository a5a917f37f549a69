"""NST: similarities between the tokens of two layers."""

from __future__ import annotations

from torch import Tensor

from lightning_kd.losses.base import full_precision
from lightning_kd.losses.layer_pairs import LayerPairLoss, Pair, comparable_pairs

__all__ = ["NST", "nst"]


def nst(student: Pair, teacher: Pair, mask: Tensor) -> Tensor:
    r"""Squared difference of token similarities (NST with MMD, Huang and Wang 2017, arXiv 1707.01219).

    .. math::
        \frac{1}{\sum_b |M_b|^2} \sum_b \sum_{i, j \in M_b}
        \left( \frac{s^0_i \cdot s^1_j}{H} - \frac{t^0_i \cdot t^1_j}{H'} \right)^2

    The paper's polynomial kernel relates a layer to itself; two layers are TextBrewer's form of it.

    Args:
        student: Two of ``(B, L, H)``.
        teacher: Two of ``(B, L, H')``; the width may be another.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over pairs of kept tokens of one example, float32 (float64 for float64 input).

    Raises:
        InputError: If there are not two of each, or the shapes but for the widths differ.

    Example:
        >>> import torch
        >>> student, teacher, mask = torch.ones(1, 2, 3), torch.ones(1, 2, 8), torch.ones(1, 2, dtype=torch.bool)
        >>> nst((student, student), (teacher, 3 * teacher), mask).item()
        4.0
    """
    (s_0, s_1), (t_0, t_1) = comparable_pairs(student, teacher, mask)
    with full_precision(s_0):
        student_similarity = s_0 @ s_1.mT / s_0.shape[-1]
        teacher_similarity = t_0 @ t_1.mT / t_0.shape[-1]
        difference = student_similarity - teacher_similarity  # 0 at what is masked
        return difference.square().sum() / mask.sum(-1).square().sum().clamp(min=1)


class NST(LayerPairLoss):
    """Squared difference of the similarities between tokens of two layers (Huang and Wang 2017, arXiv 1707.01219).

    Neuron selectivity transfer with MMD, in TextBrewer's form for two layers: the ``L x L`` dot products of the tokens
    of one layer with those of the other, divided by the width. The widths may differ, and there is no projection.
    Layers that are given twice, as ``(4, 4)``, are the paper's own form.

    Relations:
        Beside :class:`HiddenStateMSE`, as in TextBrewer's examples, or in its place where no projection is wanted.
        :class:`FSP` relates dimensions, not tokens. :class:`SimilarityPreserving` relates examples.

    Args:
        matches: Two layers of the student and two of the teacher each.

    Raises:
        InputError: If there is no match; in :meth:`build` also if a layer does not exist.
    """

    def distance(self, student: Pair, teacher: Pair, mask: Tensor) -> Tensor:
        return nst(student, teacher, mask)
