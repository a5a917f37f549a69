"""Probabilistic knowledge transfer: which examples of a batch are each other's neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import aligned, full_precision, masked_mean
from lightning_kd.losses.pooled import PooledMatchLoss, pairs

__all__ = ["PKT", "pkt"]

_LEAST = 1e-7  # of a kernel's value: opposite vectors have 0, whose logarithm is infinite


def pkt(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Divergence of neighbour probabilities of examples (PKT, Passalis and Tefas 2018, arXiv 1803.10837).

    .. math:: \frac{1}{B} \sum_i \sum_{j \ne i} p_{j|i} \log \frac{p_{j|i}}{q_{j|i}}, \qquad
        p_{j|i} = \frac{K(t_i, t_j)}{\sum_{k \ne i} K(t_i, t_k)}, \quad
        K(a, b) = \frac{1}{2} \left( \frac{a \cdot b}{\lVert a \rVert_2 \lVert b \rVert_2} + 1 \right)

    with :math:`q` the same of the student, over the ``B`` kept examples. Kernel values below 1e-7 count as 1e-7.

    Args:
        student: ``(B, D)``.
        teacher: ``(B, D')``; the width may be another.
        mask: Bool ``(B,)``, True at examples to compare.

    Returns:
        Mean over kept examples in nats, float32 (float64 for float64 input); 0 with fewer than three examples, of which
        each has but one neighbour.

    Raises:
        InputError: If the shapes but for the widths differ.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> pkt(student, 4 * student, torch.tensor([True, True, True])).item()
        0.0
    """
    student, teacher = aligned(student, teacher, mask)
    kept = pairs(mask)
    log_q, log_p = _log_probabilities(student, kept), _log_probabilities(teacher, kept)
    each = (log_p.exp() * (log_p - log_q)).masked_fill(~kept, 0)
    return masked_mean(each.sum(-1), mask)


def _log_probabilities(vectors: Tensor, kept: Tensor) -> Tensor:
    directions = F.normalize(vectors, dim=-1)
    with full_precision(vectors):
        kernel = ((directions @ directions.mT + 1) / 2).clamp(min=_LEAST)
    total = (kernel * kept).sum(-1, keepdim=True)
    return kernel.log() - torch.where(total > 0, total, 1).log()


class PKT(PooledMatchLoss):
    """Divergence between the neighbour probabilities of a batch's examples (Passalis and Tefas 2018, arXiv 1803.10837).

    Each example has a distribution over the others by cosine similarity; the student's is to be the teacher's. The
    widths may differ, and nothing is projected. With several devices each compares the examples of its own part of the
    batch.

    Relations:
        :class:`SimilarityPreserving` takes the similarities as they are and sees the lengths of the vectors, too.
        :class:`CRD` wants each example near its own teacher vector, which needs trained embeddings.

    Args:
        matches: The pairs, or a rule that gives them; the paper's is the last layer with the last.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.

    Raises:
        InputError: If there is no pair or the pooling is neither; in :meth:`build` also if a layer does not exist.
    """

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return pkt(student, teacher, mask)
