"""Relational KD: distances and angles between the examples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import aligned, full_precision, masked_mean
from lightning_kd.losses.pooled import PooledMatchLoss, pairs

__all__ = ["RKDAngle", "RKDDistance", "rkd_angle", "rkd_distance"]


def rkd_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Huber loss between the normalised distances of examples (Park et al. 2019, arXiv 1904.05068).

    .. math:: \frac{1}{|P|} \sum_{(i, j) \in P} \ell_1\left(
        \frac{\lVert s_i - s_j \rVert_2}{\mu_S}, \frac{\lVert t_i - t_j \rVert_2}{\mu_T} \right)

    with the Huber loss :math:`\ell_1`, the pairs ``P`` of two different kept examples, and the mean distance
    :math:`\mu` over them.

    Args:
        student: ``(B, D)``.
        teacher: ``(B, D')``; the width may be another.
        mask: Bool ``(B,)``, True at examples to compare.

    Returns:
        Mean over pairs of examples, float32 (float64 for float64 input); 0 with fewer than two examples.

    Raises:
        InputError: If the shapes but for the widths differ.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> rkd_distance(points, 7 - 2 * points, torch.tensor([True, True, True])).item()
        0.0
    """
    student, teacher = aligned(student, teacher, mask)
    kept = pairs(mask)
    return masked_mean(F.huber_loss(_distances(student, kept), _distances(teacher, kept), reduction="none"), kept)


def rkd_angle(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Huber loss between the angles that examples form (Park et al. 2019, arXiv 1904.05068).

    .. math:: \frac{1}{|P|} \sum_{(i, j, k) \in P} \ell_1\left(
        \cos \angle s_i s_j s_k, \, \cos \angle t_i t_j t_k \right)

    with the Huber loss :math:`\ell_1` and the triples ``P`` of three different kept examples.

    Args:
        student: ``(B, D)``.
        teacher: ``(B, D')``; the width may be another.
        mask: Bool ``(B,)``, True at examples to compare.

    Returns:
        Mean over triples of examples, from 0 to 1.5, float32 (float64 for float64 input); 0 with fewer than three
        examples. The cosine is 0 where two of the three are the same.

    Raises:
        InputError: If the shapes but for the widths differ.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(rkd_angle(points, 3 * points + 1, torch.tensor([True, True, True])).item(), 6)
        0.0
    """
    student, teacher = aligned(student, teacher, mask)
    pair = pairs(mask)
    triples = pair.unsqueeze(2) & pair.unsqueeze(1) & pair.unsqueeze(0)
    return masked_mean(F.huber_loss(_cosines(student), _cosines(teacher), reduction="none"), triples)


def _distances(vectors: Tensor, kept: Tensor) -> Tensor:
    """Distances of all pairs, over their mean over the kept ones."""
    # From differences and not from products, which lose the small distances; its gradient at 0 is 0.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = masked_mean(distances, kept)
    return distances / torch.where(mean > 0, mean, 1)


def _cosines(vectors: Tensor) -> Tensor:
    """``[j, i, k]`` is the cosine of the angle at ``j`` between ``i`` and ``k``."""
    differences = vectors.unsqueeze(0) - vectors.unsqueeze(1)
    squares = differences.square().sum(-1, keepdim=True)
    # The root of 0 has an infinite gradient.
    directions = differences / torch.where(squares > 0, squares, 1).sqrt()
    with full_precision(vectors):
        return directions @ directions.mT


class RKDDistance(PooledMatchLoss):
    """Huber loss between normalised distances of the examples of a batch (Park et al. 2019, arXiv 1904.05068).

    Each layer's distances are divided by their mean, so that the widths and scales may differ and nothing is
    projected. With several devices each compares the examples of its own part of the batch.

    Relations:
        With :class:`RKDAngle`, at half of its weight in the paper. :class:`SimilarityPreserving` and :class:`PKT`
        compare products and probabilities of examples in place of distances.

    Args:
        matches: The pairs, or a rule that gives them; the paper's is the last layer with the last.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.

    Raises:
        InputError: If there is no pair or the pooling is neither; in :meth:`build` also if a layer does not exist.
    """

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return rkd_distance(student, teacher, mask)


class RKDAngle(PooledMatchLoss):
    """Huber loss between the angles that triples of examples of a batch form (Park et al. 2019, arXiv 1904.05068).

    Angles do not see shifts and scale, so the widths may differ and nothing is projected. Memory grows with the cube of
    the batch size, and with its square times the width. With several devices each compares the examples of its own part
    of the batch.

    Relations:
        With :class:`RKDDistance`, at twice its weight in the paper.

    Args:
        matches: The pairs, or a rule that gives them; the paper's is the last layer with the last.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.

    Raises:
        InputError: If there is no pair or the pooling is neither; in :meth:`build` also if a layer does not exist.
    """

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return rkd_angle(student, teacher, mask)
