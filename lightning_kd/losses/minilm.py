"""MiniLM: the student's attention and the relations between its tokens learn from the teacher's."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.losses.attention import (
    AttentionMatchLoss,
    attention_kl,
    attention_scores,
    check_heads,
    lowest,
    mean_row_kl,
)
from lightning_kd.losses.base import FeatureMatch, LayerMap, floating, shapes
from lightning_kd.outputs import LossInputs

__all__ = ["MiniLM", "MiniLMv2", "relation_heads", "relation_kl"]

_KINDS: tuple[Literal["queries", "keys", "values"], ...] = ("queries", "keys", "values")


def relation_heads(vectors: Tensor, num_relation_heads: int) -> Tensor:
    """Queries, keys or values of all heads side by side, split anew (Wang et al. 2021, arXiv 2012.15828, sec. 3.1).

    Args:
        vectors: ``(B, heads, L, d)``.
        num_relation_heads: A divisor of ``heads * d``.

    Returns:
        ``(B, num_relation_heads, L, heads * d / num_relation_heads)``.

    Raises:
        InputError: If the number does not divide the width.

    Example:
        >>> import torch
        >>> tuple(relation_heads(torch.zeros(2, 12, 5, 64), 48).shape)
        (2, 48, 5, 16)
    """
    check_positive("num_relation_heads", num_relation_heads)
    width = vectors.shape[1] * vectors.shape[-1]
    if width % num_relation_heads:
        raise expected("num_relation_heads", f"a divisor of the width {width}", num_relation_heads)
    return vectors.transpose(1, 2).flatten(2).unflatten(-1, (num_relation_heads, -1)).transpose(1, 2)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence between relations of tokens (Wang et al. 2021, arXiv 2012.15828, sec. 3.1).

    .. math:: \frac{1}{r \sum_b n_b} \sum_b \sum_{a=1}^{r} \sum_{i \in M_b}
        \mathrm{KL}\left(R^T_{bai} \,\middle\|\, R^S_{bai}\right), \quad
        R_{baij} = \mathrm{softmax}_{j \in M_b}\left(\frac{x_{bai} \cdot x_{baj}}{\sqrt{d}}\right), \quad n_b = |M_b|

    ``x`` are the queries, the keys or the values. Every kept token of the batch weighs the same.

    Args:
        student: ``(B, r, L, d)``.
        teacher: ``(B, r, L, d')`` of any ``d'``: the relations have no width.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over kept tokens and the ``r`` relation heads, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> narrow = torch.tensor([[[[1.0], [2.0]]]])  # repeated 4 times: dot products grow 4-fold, their scale 2-fold
        >>> wide = narrow.repeat(1, 1, 1, 4) / 2**0.5
        >>> abs(relation_kl(narrow, wide, torch.tensor([[True, True]])).item()) < 1e-6
        True
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:3] == teacher.shape[:3]
    if not fits or mask.shape != (student.shape[0], student.shape[2]):
        raise InputError(
            "Expected student (B, heads, L, d), teacher (B, heads, L, any d) and a mask of shape (B, L), "
            f"but got {shapes(student, teacher, mask)}."
        )
    student, teacher = floating(student, teacher.detach())
    return mean_row_kl(_log_relations(student, mask), _log_relations(teacher, mask), mask)


class MiniLM(AttentionMatchLoss):
    """KL divergences of attention and of value relation, summed (Wang et al. 2020, arXiv 2002.10957, sec. 3).

    The value relation is the softmax of the scaled dot products between the values of a head. Widths may differ,
    numbers of heads may not.

    Relations:
        Needs no projection and only one layer of each model. :class:`MiniLMv2` where the numbers of heads differ, and
        in general the stronger one in its paper; :class:`AttentionKL` for the attention alone.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them; ``None`` for the last layer of both, as in
            the paper.

    Raises:
        InputError: If there is no pair; in :meth:`build` also if a layer does not exist or the numbers of heads differ.
    """

    reads = _KINDS

    def __init__(self, matches: list[FeatureMatch] | LayerMap | None = None) -> None:
        super().__init__([FeatureMatch(-1, -1)] if matches is None else matches)

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        check_heads("MiniLM", student, teacher, "Use MiniLMv2, for which the numbers may differ.")

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        i, j = match.student_layer, match.teacher_layer
        student, teacher, mask = inputs.student, inputs.teacher, inputs.token_mask
        attention = attention_kl(
            attention_scores(student.queries[i], student.keys[i]),  # type: ignore[index]  # `build` refused names
            attention_scores(teacher.queries[j], teacher.keys[j]),  # type: ignore[index]  # as above
            mask,
        )
        return attention + relation_kl(student.values[i], teacher.values[j], mask)  # type: ignore[index]  # as above


class MiniLMv2(AttentionMatchLoss):
    """KL divergences of query, key and value relations, summed (Wang et al. 2021, arXiv 2012.15828, sec. 3.1).

    The heads' vectors are put side by side and split into relation heads, as many for the student as for the teacher,
    so that neither numbers of heads nor widths have to agree. The paper's loss is a sum over pairs of queries, keys and
    values with weights of 0 or 1, and it takes the three pairs of a kind with itself: here, too, they are summed and
    not averaged.

    Relations:
        The first to try between different architectures: it needs no projection and only one layer of each model.
        :class:`MiniLM` is its predecessor, for equal numbers of heads.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them; ``None`` for the last layer of both. For a
            teacher of 24 layers the paper takes the 21st.
        num_relation_heads: Divides the hidden sizes of both models. The paper's 48 is for teachers of BERT-base's
            size, 64 for those of BERT-large's.
        relations: Of which vectors, each once; ``None`` for queries, keys and values.

    Raises:
        InputError: If there is no pair, or the relations are none of these; in :meth:`build` also if a layer does not
            exist, or the number of relation heads does not divide both hidden sizes.
    """

    def __init__(
        self,
        matches: list[FeatureMatch] | LayerMap | None = None,
        num_relation_heads: int = 48,
        relations: list[Literal["queries", "keys", "values"]] | None = None,
    ) -> None:
        super().__init__([FeatureMatch(-1, -1)] if matches is None else matches)
        check_positive("num_relation_heads", num_relation_heads)
        self.num_relation_heads = num_relation_heads
        self.reads = _KINDS if relations is None else tuple(relations)
        if not self.reads or not set(self.reads) <= set(_KINDS) or len(set(self.reads)) < len(self.reads):
            raise expected("relations", "some of 'queries', 'keys' and 'values', each once", relations)

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        shared = math.gcd(student.hidden_size, teacher.hidden_size)
        if shared % self.num_relation_heads:
            valid = ", ".join(str(n) for n in range(1, shared + 1) if shared % n == 0)
            raise expected(
                "num_relation_heads",
                f"a divisor of the hidden sizes of the student, {student.hidden_size}, and of the teacher, "
                f"{teacher.hidden_size}, one of {valid}",
                self.num_relation_heads,
            )

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        terms = [
            relation_kl(
                relation_heads(getattr(inputs.student, kind)[match.student_layer], self.num_relation_heads),
                relation_heads(getattr(inputs.teacher, kind)[match.teacher_layer], self.num_relation_heads),
                inputs.token_mask,
            )
            for kind in self.reads
        ]
        return sum(terms[1:], terms[0])


def _log_relations(vectors: Tensor, mask: Tensor) -> Tensor:
    """The log relations of the kept tokens; a masked token is related to all kept ones alike."""
    vectors = vectors.masked_fill(~mask[:, None, :, None], 0)
    # As no score is inf now, the mask is added in place: a fill would copy the largest tensor of all.
    masked_keys = (~mask[:, None, None, :]).to(vectors.dtype) * lowest(vectors.dtype)
    return F.log_softmax(attention_scores(vectors, vectors).add_(masked_keys), dim=-1)
