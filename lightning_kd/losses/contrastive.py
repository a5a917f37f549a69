"""Contrastive representation distillation with the negatives of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.losses.base import FeatureMatch, LayerMap, floating, full_precision, masked_mean, projectors, shapes
from lightning_kd.losses.pooled import PooledMatchLoss, Pooling

__all__ = ["CRD", "crd_loss"]


def crd_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, tau: float = 0.07, mask: Tensor | None = None
) -> Tensor:
    r"""InfoNCE of student embeddings against the teacher's of the batch (after Tian et al. 2020, arXiv 1910.10699).

    .. math:: -\frac{1}{B} \sum_i \log \frac{\exp(s_i \cdot t_i / \tau)}{\sum_j \exp(s_i \cdot t_j / \tau)}

    with all vectors normalised. The paper contrasts with a memory of 16,384 negatives; here they are the batch's other
    examples. Both embeddings get a gradient, since both are trained: detach what lies before them.

    Args:
        student_embeddings: ``(B, D)``, the anchors.
        teacher_embeddings: ``(B, D)``; the anchor's own is the positive, all others are negatives.
        tau: Temperature, above 0.
        mask: Bool ``(B,)``, True at examples that are anchors and negatives; ``None`` for all.

    Returns:
        Mean over kept examples in nats, float32 (float64 for float64 input); 0 for a single example.

    Raises:
        InputError: If the shapes differ or ``tau`` is not above 0.

    Example:
        >>> apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(crd_loss(apart, apart, tau=1.0).item(), 4)
        0.3133
    """
    check_positive("tau", tau)
    if mask is None:
        mask = torch.ones(student_embeddings.shape[:-1], dtype=torch.bool, device=student_embeddings.device)
    if student_embeddings.shape != teacher_embeddings.shape or mask.shape != student_embeddings.shape[:1]:
        raise InputError(
            "Expected student and teacher embeddings of one shape (B, D) and a mask (B,), "
            f"but got {shapes(student_embeddings, teacher_embeddings, mask)}."
        )
    left_out = ~mask.unsqueeze(-1)
    student, teacher = floating(
        student_embeddings.masked_fill(left_out, 0), teacher_embeddings.masked_fill(left_out, 0)
    )
    with full_precision(student):
        scores = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT / tau
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    targets = torch.arange(len(scores), device=scores.device)
    return masked_mean(F.cross_entropy(scores, targets, reduction="none"), mask)


class CRD(PooledMatchLoss):
    """Contrastive representation distillation with in-batch negatives (after Tian et al. 2020, arXiv 1910.10699).

    One vector per example of student and teacher, each through a linear embedding of its own and normalised; the
    student's is to find the teacher's of the same example among those of the batch (InfoNCE). Both embeddings are
    trained with the student and stay out of the exported student. Left out of the paper are its memory of negatives,
    its noise-contrastive estimate, and negatives from other classes only. With several devices the negatives are those
    of each device's own part of the batch.

    Relations:
        Wants a batch of 32 or more; for smaller ones take :class:`PatientKD`, which compares each example with its own
        teacher vector alone. :class:`PKT` compares neighbourhoods without trained embeddings.

    Args:
        matches: The pairs, or a rule that gives them; two embeddings each. The paper's is the last layer with the last.
        pooling: ``"first"`` takes each example's first real token, ``"mean"`` the mean of its real tokens.
        embedding_dim: Width of the embeddings, 1 or more.
        tau: Temperature of the similarities, above 0; it is not the module's ``temperature``.
        projection_lr: Peak learning rate of the embeddings, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair or an argument is out of range; in :meth:`build` also if a layer does not exist.
    """

    def __init__(
        self,
        matches: list[FeatureMatch] | LayerMap,
        pooling: Pooling = "first",
        embedding_dim: int = 128,
        tau: float = 0.07,
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(matches, pooling)
        if embedding_dim < 1:
            raise expected("embedding_dim", "1 or more", embedding_dim)
        check_positive("tau", tau)
        if projection_lr is not None:
            check_positive("projection_lr", projection_lr)
        self.embedding_dim = embedding_dim
        self.tau = tau
        self.parameters_lr = projection_lr
        self.student_embeddings = nn.ModuleList()
        self.teacher_embeddings = nn.ModuleList()

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        for config, embeddings in ((student, self.student_embeddings), (teacher, self.teacher_embeddings)):
            embeddings.extend(projectors(config.hidden_size, self.embedding_dim, "linear", len(self.matches)))

    def distance(self, index: int, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        student = _embed(self.student_embeddings[index], student)
        teacher = _embed(self.teacher_embeddings[index], teacher.detach())
        return crd_loss(student, teacher, self.tau, mask)


def _embed(linear: nn.Module, vectors: Tensor) -> Tensor:
    return linear(vectors.to(next(linear.parameters()).dtype))  # a model in half precision has its losses in it, too
