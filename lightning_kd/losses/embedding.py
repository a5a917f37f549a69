"""Distance of sentence embeddings."""

from __future__ import annotations

from torch import Tensor

from lightning_kd.losses.base import FeatureMatch, LayerMap, ProjectedMatchLoss, Projection, comparable, masked_mean
from lightning_kd.losses.pooled import Pooling, check_pooling, vectors
from lightning_kd.outputs import LossInputs

__all__ = ["EmbeddingMSE", "embedding_mse"]


def embedding_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Mean squared difference of embeddings (Reimers and Gurevych 2020, arXiv 2004.09813, sec. 2).

    .. math:: \frac{1}{|M| H} \sum_{b \in M} \lVert s_b - t_b \rVert_2^2

    Args:
        student: ``(B, H)``, an embedding for each text, projected to the teacher's width where that differs.
        teacher: ``(B, H)``.
        mask: Bool ``(B,)``, True at texts that have one.

    Returns:
        Mean over kept texts and dimensions, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> import torch
        >>> texts = torch.ones(2, 3)
        >>> embedding_mse(texts, 3 * texts, torch.tensor([True, False])).item()
        4.0
    """
    student, teacher = comparable(student, teacher, mask)
    return masked_mean((student - teacher).square().mean(-1), mask)


class EmbeddingMSE(ProjectedMatchLoss):
    """Mean squared error between sentence embeddings (Reimers and Gurevych 2020, arXiv 2004.09813, sec. 2).

    An embedding is pooled from a matched layer's hidden states. Two bi-encoders are matched by the name of the module
    that pools, ``encoder.pool``: both texts of each pair are compared, pooled as each model does it. Where student and
    teacher differ in width, a linear projection is made and trained as in :class:`HiddenStateMSE`.

    Relations:
        For students whose embeddings are what is used, by a search for instance; :class:`LogitMSE` teaches a bi-encoder
        the scores of a cross-encoder, which has no embedding of one text. :class:`RKDDistance` and
        :class:`SimilarityPreserving` need no projection, and leave everything but distances free.

    Args:
        matches: The pairs, or a rule that gives them; a projection each.
        pooling: Of hidden states: ``"mean"`` takes the mean of each text's real tokens, ``"first"`` the first of them.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair, or the pooling or the projection is none of these; in :meth:`build` also if a
            layer does not exist.
    """

    token_by_token = False

    def __init__(
        self,
        matches: list[FeatureMatch] | LayerMap,
        pooling: Pooling = "mean",
        projection: Projection = "auto",
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(matches, projection, projection_lr)
        check_pooling(pooling)
        self.pooling = pooling

    def distance(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        student, mask = vectors(student, inputs.token_mask, self.pooling)
        teacher, _ = vectors(teacher, inputs.teacher_mask, self.pooling)
        return embedding_mse(student, teacher, mask)
