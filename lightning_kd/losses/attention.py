"""Attention transfer: the student's heads learn where the teacher's look."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, expected
from lightning_kd.losses.base import FeatureMatch, LayerMap, MatchLoss, Role, floating, masked_mean, shapes
from lightning_kd.outputs import Features, LossInputs, Needs

__all__ = [
    "AttentionCrossEntropy",
    "AttentionKL",
    "AttentionMSE",
    "AttentionMatchLoss",
    "attention_cross_entropy",
    "attention_kl",
    "attention_mse",
    "attention_scores",
]


def attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    r"""Attention scores before mask and softmax (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    .. math:: A_{ij} = \frac{q_i \cdot k_j}{\sqrt{d}}

    Args:
        queries: ``(B, heads, L, d)``.
        keys: The same shape.

    Returns:
        ``(B, heads, L, L)``, float32 (float64 for float64 input), under autocast, too.

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> attention_scores(torch.ones(1, 1, 1, 4), 3 * torch.ones(1, 1, 1, 4)).item()
        6.0
    """
    if queries.shape != keys.shape or queries.dim() != 4:
        raise InputError(
            f"Expected queries and keys of one shape (B, heads, L, d), but got {shapes(queries, keys)}.",
        )
    return _scaled_product(queries, keys, 1 / math.sqrt(queries.shape[-1]))


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Mean squared difference of attention scores between real tokens (Jiao et al. 2020, arXiv 1909.10351, eq. 7).

    .. math:: \frac{1}{h \sum_b n_b^2} \sum_b \sum_{a=1}^{h} \sum_{i, j \in M_b} (s_{baij} - t_{baij})^2,
        \quad n_b = |M_b|

    Every pair of kept tokens of the batch weighs the same, so a text of ``n`` tokens counts as ``n ** 2`` pairs, each
    in ``h`` heads. That is TextBrewer's ``attention_mse`` under its mask.

    Args:
        student: Scores before the softmax, ``(B, h, L, L)``.
        teacher: Scores, the same shape.
        mask: Bool ``(B, L)``, True at real tokens. A pair is kept if its query and its key are.

    Returns:
        Mean over kept pairs and heads, in squared scores, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes do not fit.

    Example:
        >>> scores = torch.ones(1, 1, 2, 2)
        >>> attention_mse(scores, 3 * scores, torch.tensor([[True, False]])).item()
        4.0
    """
    student, teacher, pairs = _comparable(student, teacher, mask)
    # Filled, not multiplied by 0: a masked score may be inf, and inf * 0 is NaN.
    difference = (student - teacher).masked_fill_(~pairs, 0)
    return difference.square().sum() / (pairs.sum() * student.shape[1]).clamp(min=1)


def attention_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Cross-entropy of the student's attention under the teacher's (TextBrewer, Yang et al. 2020, arXiv 2002.12620).

    .. math:: -\frac{1}{h \sum_b n_b} \sum_b \sum_{a=1}^{h} \sum_{i \in M_b} \sum_{j \in M_b}
        p_{baij} \log q_{baij}, \quad p = \mathrm{softmax}_{j \in M_b}(t),\ q = \mathrm{softmax}_{j \in M_b}(s)

    Every kept query of the batch weighs the same, whether its text is short or long. TextBrewer divides by the same
    number, but lets masked keys into its softmax unless the scores hold the model's mask already.

    Args:
        student: Scores before the softmax, ``(B, h, L, L)``.
        teacher: Scores, the same shape.
        mask: Bool ``(B, L)``, True at real tokens. Masked keys have probability 0, masked queries no part.

    Returns:
        Mean over kept queries and heads, in nats, float32 (float64 for float64 input). The least that a student can
        reach is the entropy of the teacher's attention, not 0.

    Raises:
        InputError: If the shapes do not fit.

    Example:
        >>> scores = torch.zeros(1, 1, 2, 2)  # each of two tokens looks at both
        >>> round(attention_cross_entropy(scores, scores, torch.tensor([[True, True]])).item(), 4)
        0.6931
    """
    student_log, teacher_log = _log_attention(student, teacher, mask)
    rows = -(teacher_log.exp() * student_log).sum(-1)
    return masked_mean(rows, mask.unsqueeze(1).expand_as(rows))


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence between attention distributions (Wang et al. 2020, arXiv 2002.10957, sec. 3.1).

    .. math:: \frac{1}{h \sum_b n_b} \sum_b \sum_{a=1}^{h} \sum_{i \in M_b} \sum_{j \in M_b}
        p_{baij} (\log p_{baij} - \log q_{baij}),
        \quad p = \mathrm{softmax}_{j \in M_b}(t),\ q = \mathrm{softmax}_{j \in M_b}(s)

    Every kept query of the batch weighs the same, whether its text is short or long.

    Args:
        student: Scores before the softmax, ``(B, h, L, L)``.
        teacher: Scores, the same shape.
        mask: Bool ``(B, L)``, True at real tokens. Masked keys have probability 0, masked queries no part.

    Returns:
        Mean over kept queries and heads, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes do not fit.

    Example:
        >>> scores = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> attention_kl(scores, scores + 1, torch.tensor([[True, True]])).item()
        0.0
    """
    student_log, teacher_log = _log_attention(student, teacher, mask)
    return mean_row_kl(student_log, teacher_log, mask)


class AttentionMatchLoss(MatchLoss):
    """Base of losses that compare what is inside the attention of pairs of layers; the first layer is number 1.

    Queries, keys and values are read before the fused attention, which stays on; no model has to return its attentions.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them.

    Raises:
        InputError: If there is no pair; in :meth:`build` also if a layer does not exist.
    """

    first_layer = 1
    #: What the loss reads of the matched layers.
    reads: tuple[Literal["queries", "keys", "values"], ...] = ("queries", "keys")

    def needs(self, role: Role) -> Needs:
        layers = frozenset(layer for layer in self.layers(role) if isinstance(layer, int))  # `build` refused names
        return Needs(**{kind: layers for kind in self.reads})


class _ScoresLoss(AttentionMatchLoss):
    """Base of losses on attention scores: of each head, or of the heads together."""

    #: What `heads` may be.
    ways: tuple[str, ...] = ("each", "mean")

    def __init__(self, matches: list[FeatureMatch] | LayerMap, heads: Literal["each", "mean"] = "each") -> None:
        super().__init__(matches)
        if heads not in self.ways:
            raise expected("heads", _either(self.ways), heads)
        self.heads: str = heads

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        if self.heads == "each":
            others = _either(tuple(f"heads={way!r}" for way in self.ways[1:]), quoted=False)
            check_heads(type(self).__name__, student, teacher, f"Use {others}, or the loss MiniLMv2.")

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        student = self._scores(inputs.student, match.student_layer)
        return self.distance(student, self._scores(inputs.teacher, match.teacher_layer), inputs.token_mask)

    def _scores(self, features: Features, layer: int | str) -> Tensor:
        queries, keys = features.queries[layer], features.keys[layer]  # type: ignore[index]  # `build` refused names
        if self.heads == "each":
            return attention_scores(queries, keys)
        # The sum over heads of q k is one product of the heads side by side: no scores of single heads are made.
        _, heads, _, head_dim = queries.shape
        queries, keys = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (queries, keys))
        return _scaled_product(queries, keys, 1 / math.sqrt(head_dim) / (heads if self.heads == "mean" else 1))

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """The loss of two scores ``(B, h, L, L)`` under a bool mask ``(B, L)``; a scalar."""


class AttentionMSE(_ScoresLoss):
    """Mean squared error between attention scores of matched layers (Jiao et al. 2020, arXiv 1909.10351, eq. 7).

    The scores are those before the softmax, with which TinyBERT learned faster. TextBrewer's ``attention_mse`` is
    ``heads="each"``, its ``attention_mse_sum`` is ``heads="sum"``.

    Relations:
        Beside :class:`HiddenStateMSE`, as in TinyBERT, when the student has as many heads as the teacher and each can
        learn from its own. :class:`AttentionKL` where only the distribution matters: adding a number to all scores of
        a query changes no attention but this loss. :class:`MiniLMv2` where heads and widths differ.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them.
        heads: ``"each"`` head learns from its own, which takes equal numbers of heads. ``"sum"`` and ``"mean"``
            compare the scores summed or averaged over the heads of each model; where the numbers of heads differ, only
            the averages have one scale.

    Raises:
        InputError: If there is no pair or ``heads`` is none of these; in :meth:`build` also if a layer does not exist,
            or the numbers of heads differ under ``"each"``.
    """

    ways = ("each", "sum", "mean")

    def __init__(self, matches: list[FeatureMatch] | LayerMap, heads: Literal["each", "sum", "mean"] = "each") -> None:
        super().__init__(matches, heads)  # type: ignore[arg-type]  # `ways` has one more

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_mse(student, teacher, mask)


class AttentionCrossEntropy(_ScoresLoss):
    """Cross-entropy between attention distributions (TextBrewer, Yang et al. 2020, arXiv 2002.12620).

    TextBrewer's ``attention_ce`` is ``heads="each"``, its ``attention_ce_mean`` is ``heads="mean"``.

    Relations:
        The gradient is that of :class:`AttentionKL`, whose value is smaller by the entropy of the teacher's attention
        and shows how far the student is from it. Take this one to compare with runs of TextBrewer.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them.
        heads: ``"each"`` head learns from its own, which takes equal numbers of heads. ``"mean"`` averages the scores
            over the heads of each model, before the softmax.

    Raises:
        InputError: If there is no pair or ``heads`` is none of these; in :meth:`build` also if a layer does not exist,
            or the numbers of heads differ under ``"each"``.
    """

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_cross_entropy(student, teacher, mask)


class AttentionKL(_ScoresLoss):
    """KL divergence from the teacher's to the student's attention (Wang et al. 2020, arXiv 2002.10957, sec. 3.1).

    Relations:
        Half of :class:`MiniLM`, for any pairs of layers; 0 once the attentions agree, unlike
        :class:`AttentionCrossEntropy`. :class:`AttentionMSE` compares the scores themselves.

    Args:
        matches: The pairs of layers, by number, or a rule that gives them.
        heads: ``"each"`` head learns from its own, which takes equal numbers of heads. ``"mean"`` averages the scores
            over the heads of each model, before the softmax.

    Raises:
        InputError: If there is no pair or ``heads`` is none of these; in :meth:`build` also if a layer does not exist,
            or the numbers of heads differ under ``"each"``.
    """

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_kl(student, teacher, mask)


def check_heads(loss: str, student: PretrainedConfig, teacher: PretrainedConfig, way_out: str) -> None:
    """Refuse models of different numbers of heads; ``way_out`` is a sentence that says what to use."""
    counts = student.num_attention_heads, teacher.num_attention_heads
    if counts[0] != counts[1]:
        raise InputError(
            f"{loss} compares head with head, but the student has {counts[0]} and the teacher {counts[1]}. {way_out}"
        )


def mean_row_kl(student_log: Tensor, teacher_log: Tensor, mask: Tensor) -> Tensor:
    """Mean over kept rows of the KL divergence between log distributions ``(B, h, L, L)``; uses up the teacher's."""
    probabilities = teacher_log.exp()
    negative_entropy = teacher_log.mul_(probabilities).sum(-1)  # apart, as it has no gradient: a third less time
    rows = negative_entropy - (probabilities * student_log).sum(-1)
    return masked_mean(rows, mask.unsqueeze(1).expand_as(rows))


def _either(words: tuple[str, ...], quoted: bool = True) -> str:
    shown = [repr(word) if quoted else word for word in words]
    return " or ".join(part for part in (", ".join(shown[:-1]), shown[-1]) if part)


def _scaled_product(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    queries, keys = floating(queries, keys)
    # Half precision would round scores of 20 to the nearest 1/8; and scaled queries are fewer than scores.
    with torch.autocast(queries.device.type, enabled=False):
        return (queries * scale) @ keys.transpose(-1, -2)


def _comparable(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both scores in float32 (float64 if either is), the teacher's detached, and the kept pairs ``(B, 1, L, L)``."""
    fits = student.dim() == 4 and student.shape == teacher.shape and student.shape[2] == student.shape[3]
    if not fits or mask.shape != (student.shape[0], student.shape[2]):
        raise InputError(
            "Expected scores of student and teacher of one shape (B, heads, L, L) and a mask of shape (B, L), "
            f"but got {shapes(student, teacher, mask)}."
        )
    student, teacher = floating(student, teacher.detach())
    return student, teacher, mask[:, None, :, None] & mask[:, None, None, :]


def _log_attention(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The log attention of both over the kept keys. A masked query looks at all alike, so that nothing is NaN."""
    student, teacher, pairs = _comparable(student, teacher, mask)
    low = lowest(student.dtype)
    return (
        F.log_softmax(student.masked_fill(~pairs, low), dim=-1),
        F.log_softmax(teacher.masked_fill(~pairs, low), dim=-1),
    )


def lowest(dtype: torch.dtype) -> float:
    """The score of what is masked: finite, for 0 * log(0) has to be 0, and half, for the row's maximum goes off it."""
    return torch.finfo(dtype).min / 2
