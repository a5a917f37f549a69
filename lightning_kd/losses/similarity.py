"""Similarity-preserving KD: products between the examples of a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import aligned, full_precision
from lightning_kd.losses.pooled import PooledMatchLoss

__all__ = ["SimilarityPreserving", "similarity_preserving"]


def similarity_preserving(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Squared difference of similarities of examples (Tung and Mori 2019, arXiv 1907.09682).

    .. math:: \frac{1}{B^2} \lVert \bar G(S) - \bar G(T) \rVert_F^2, \qquad G(X) = X X^\top

    with each row of :math:`\bar G` of length 1, over the ``B`` kept examples.

    Args:
        student: ``(B, D)``.
        teacher: ``(B, D')``; the width may be another.
        mask: Bool ``(B,)``, True at examples to compare.

    Returns:
        Mean over ordered pairs of kept examples, each with itself too, float32 (float64 for float64 input). A sum of
        ``B`` differences of unit vectors over ``B^2``, it falls as the batch grows.

    Raises:
        InputError: If the shapes but for the widths differ.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 3.0]])
        >>> round(similarity_preserving(student, teacher, torch.tensor([True, True])).item(), 4)
        0.2929
    """
    student, teacher = aligned(student, teacher, mask)
    with full_precision(student):
        difference = F.normalize(student @ student.mT, dim=-1) - F.normalize(teacher @ teacher.mT, dim=-1)
        return difference.square().sum() / mask.sum().square().clamp(min=1)  # 0 at what is masked


class SimilarityPreserving(PooledMatchLoss):
    """Squared difference of the similarities of a batch's examples (Tung and Mori 2019, arXiv 1907.09682).

    The ``B x B`` dot products of the examples, each row normalised. The widths may differ, and nothing is projected.
    With several devices each compares the examples of its own part of the batch. The paper weighs the loss, a mean of
    small values, by thousands.

    Relations:
        :class:`NST` does the same with the tokens of a text. :class:`PKT` makes probabilities of the rows;
        :class:`RKDDistance` compares distances, which, unlike dot products, do not see a shift of all states.

    Args:
        matches: The pairs, or a rule that gives them.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.

    Raises:
        InputError: If there is no pair or the pooling is neither; in :meth:`build` also if a layer does not exist.
    """

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return similarity_preserving(student, teacher, mask)
