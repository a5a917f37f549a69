"""Correlations instead of a divergence: the student keeps the teacher's preferences, not its probabilities."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd._checks import check_range
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.logits import ExampleTemperature, LogitLoss, kept_rows, scaled_mean, tempered
from lightning_kd.outputs import LossInputs

__all__ = ["DIST", "LogitCorrelation", "dist_loss", "logit_correlation"]


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    scale: bool = True,
) -> Tensor:
    r"""One minus the correlations of rows and of columns of distributions (Huang et al. 2022, arXiv 2205.10536).

    .. math:: \frac{T^2 \beta}{|M|} \sum_{i \in M} (1 - \rho(q_{i,:}, p_{i,:}))
        + \frac{T^2 \gamma}{C} \sum_c (1 - \rho(q_{M,c}, p_{M,c})),
        \quad p_i = \mathrm{softmax}(t_i / T),\ q_i = \mathrm{softmax}(s_i / T)

    with :math:`\rho` Pearson's correlation. Where a row or a column does not vary (one kept row, say, or a student
    without any preference) there is none: its term is 0, without gradient.

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``; the columns then take the mean of its
            square.
        beta: Weight of the relation between labels, within each row; 0 or more.
        gamma: Weight of the relation within each label, between the kept rows; 0 or more.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept rows plus mean over the labels, without ``T ** 2`` from 0 to ``2 * (beta + gamma)``, no
        unit; float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0 or a weight is below 0.

    Example:
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> round(dist_loss(-teacher, teacher, torch.tensor([True, True]), temperature=1.0).item(), 2)
        3.83
    """
    check_range("beta", beta, 0)
    check_range("gamma", gamma, 0)
    student, teacher = tempered(student, teacher, mask, temperature)
    q, p = F.softmax(student, dim=-1), F.softmax(teacher, dim=-1)
    inter = _one_minus_correlation(q, p, torch.ones_like(mask).unsqueeze(-1))
    return scaled_mean(beta * inter + gamma * _intra(q, p, mask), mask, temperature, scale)


def logit_correlation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""One minus the correlation of each logit between the rows of a batch (after Huang et al. 2022, arXiv 2205.10536).

    .. math:: \frac{1}{C} \sum_c (1 - \rho(s_{M,c}, t_{M,c}))

    with :math:`\rho` Pearson's correlation. Where a logit does not vary there is none: its term is 0, without gradient.

    Args:
        student: Logits ``(..., C)``; scores are ``(B, 1)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the rows to compare.

    Returns:
        Mean over the logits, from 0 to 2, no unit; float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> teacher = torch.tensor([[0.0], [2.0], [5.0]])
        >>> keep = torch.tensor([True, True, True])
        >>> [round(logit_correlation(scores, teacher, keep).item(), 4) for scores in (1 + 2 * teacher, -teacher)]
        [0.0, 2.0]
    """
    return _intra(*kept_rows(student, teacher, mask), mask)


def _intra(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One minus the correlation within each column, among the kept rows; mean over the columns."""
    columns = (mask.unsqueeze(-1), student, teacher)
    rows, student, teacher = (values.reshape(-1, values.shape[-1]).transpose(0, 1) for values in columns)
    return _one_minus_correlation(student, teacher, rows).mean()


def _one_minus_correlation(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """1 - Pearson over the last dimension, among the entries of a mask that broadcasts; 0 where one does not vary."""
    kept = mask.to(x.dtype)
    x, x_varies = _standard(x, kept)
    y, y_varies = _standard(y, kept)
    return torch.where(x_varies & y_varies, 1 - (x * y).sum(-1), 0)


def _standard(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept values centred and of length 1, and whether they vary by more than what rounding leaves of them."""
    mean = (values * kept).sum(-1, keepdim=True) / kept.expand_as(values).sum(-1, keepdim=True).clamp(min=1)
    centred = (values - mean) * kept
    power = centred.square().sum(-1, keepdim=True)
    # The bound is relative, as the correlation is; probabilities below 1e-15 have no digits left for their square.
    bound = torch.finfo(values.dtype).eps * (values * kept).square().sum(-1, keepdim=True) + 1e-30
    varies = power > bound
    return centred / torch.where(varies, power, 1).sqrt(), varies.squeeze(-1)


class DIST(LogitLoss):
    """One minus Pearson's correlation between labels and between examples (Huang et al. 2022, arXiv 2205.10536).

    A strong teacher's probabilities are out of a small student's reach; the order and the spacing of its preferences
    are not. With 2 labels the correlation within a row is always 1 or -1 and has no gradient: the relation between
    labels teaches nothing then, and only that between examples (``gamma``) is left.

    Relations:
        For a teacher much stronger than the student, where :class:`SoftTargetKL` gains little; 3 labels or more, and
        batches that are not small: the relation between examples is that within one batch (of one device).
        :class:`LogitStandardizationKL` lifts the same demand on the logits' scale within the divergence.

    Args:
        beta: Weight of the relation between labels, within each row; 0 or more.
        gamma: Weight of the relation within each label, between the rows of a batch; 0 or more.
        scale_by_t2: Multiply by the squared temperature, as the paper's code does.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: If a weight is below 0.
    """

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        scale_by_t2: bool = True,
        probability_shift: bool = False,
        example_temperature: ExampleTemperature | None = None,
    ) -> None:
        super().__init__(scale_by_t2, probability_shift, example_temperature)
        check_range("beta", beta, 0)
        check_range("gamma", gamma, 0)
        self.beta = beta
        self.gamma = gamma

    @property
    def masks_classes(self) -> bool:
        return False  # the correlations are over all classes

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return dist_loss(student, teacher, mask, temperature, self.beta, self.gamma, self.scale_by_t2)


class LogitCorrelation(DistillationLoss):
    """One minus Pearson's correlation of scores between a batch's texts (after Huang et al. 2022, arXiv 2205.10536).

    The second term of :class:`DIST`, on raw logits in the place of probabilities, so that it works on the one score of
    a regression. It sees neither shift nor scale, and the temperature has no part in it. With several devices each
    compares the texts of its own part of the batch.

    Relations:
        For regression that is measured by a correlation, as similarity is, beside :class:`LogitMSE` or the hard labels,
        which hold the scale. For classes, :class:`DIST`.
    """

    def forward(self, inputs: LossInputs) -> Tensor:
        terms = [
            logit_correlation(logits, inputs.teacher.logits[name], inputs.logit_masks[name])
            for name, logits in inputs.student.logits.items()
        ]
        return reduce(torch.add, terms)
