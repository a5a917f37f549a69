"""Decoupled distillation: what the teacher says of the true label, and what it says of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd._checks import InputError, check_range
from lightning_kd.losses.logits import ExampleTemperature, LogitLoss, check_labels, scaled_mean, tempered

__all__ = ["DecoupledKD", "decoupled_kd"]


def decoupled_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    scale: bool = True,
) -> Tensor:
    r"""Weighted sum of target-class and non-target-class divergences (Zhao et al. 2022, arXiv 2203.08679).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2 \Bigl(
        \alpha \underbrace{\sum_{b \in \{p_{iy}, 1 - p_{iy}\}} b \log \frac{b}{b'}}_{\mathrm{TCKD}}
        + \beta \underbrace{\sum_{c \neq y} \hat p_{ic} \log \frac{\hat p_{ic}}{\hat q_{ic}}}_{\mathrm{NCKD}} \Bigr),
        \quad \hat p_{ic} = \frac{p_{ic}}{1 - p_{iy}}

    with :math:`p_i = \mathrm{softmax}(t_i / T_i)`, :math:`q_i = \mathrm{softmax}(s_i / T_i)`, :math:`\hat q` as
    :math:`\hat p`, and :math:`b'` the student's of the two probabilities. With ``alpha = 1`` and
    :math:`\beta = 1 - p_{iy}` it would be :func:`soft_target_kl`.

    Args:
        student: Logits ``(..., C)``, at least 2 labels.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        labels: The true class ``y``, int64 ``(...)``; rows with a label below 0 are left out.
        alpha: Weight of the true label against all others, 0 or more.
        beta: Weight of the others among themselves, 0 or more.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0, a weight is below 0 or there is one label only.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 3.0]])
        >>> round(decoupled_kd(student, teacher, torch.tensor([True]), 1.0, torch.tensor([0]), beta=0.0).item(), 4)
        0.4681
    """
    check_range("alpha", alpha, 0)
    check_range("beta", beta, 0)
    student, teacher = tempered(student, teacher, mask, temperature)
    check_labels(labels, mask)
    if student.shape[-1] < 2:
        raise InputError(f"Expected logits of at least 2 labels, but got shape {tuple(student.shape)}.")
    mask = mask & (labels >= 0)
    truth = labels.clamp(min=0).unsqueeze(-1)
    student_target, student_others = _decouple(student, truth)
    teacher_target, teacher_others = _decouple(teacher, truth)
    values = alpha * _kl(student_target, teacher_target) + beta * _kl(student_others, teacher_others)
    return scaled_mean(values, mask, temperature, scale)


def _decouple(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the true label and of its complement ``(..., 2)``, and of the others alone ``(..., C - 1)``.

    The others are gathered instead of masked, so that no infinity comes in.
    """
    index = torch.arange(logits.shape[-1] - 1, device=logits.device)
    others = logits.gather(-1, index + (index >= truth))
    total = logits.logsumexp(-1, keepdim=True)
    target = torch.cat([logits.gather(-1, truth), others.logsumexp(-1, keepdim=True)], dim=-1) - total
    return target, F.log_softmax(others, dim=-1)


def _kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)


class DecoupledKD(LogitLoss):
    """Soft targets in two parts, the true label's and that of the others (Zhao et al. 2022, arXiv 2203.08679).

    In :class:`SoftTargetKL` the second part is weighted by the probability that the teacher gives to the rest: the
    surer the teacher is, the less of it is left. Here its weight is ``beta``.

    Relations:
        For 3 labels or more and a teacher that is sure of itself. With 2 labels there is one label beside the true
        one, the second part is always 0, and what remains is ``alpha`` times :class:`SoftTargetKL`: take that.

    Args:
        alpha: Weight of the true label against all others, 0 or more.
        beta: Weight of the others among themselves, 0 or more; the authors take 8 for several pairs of models on
            CIFAR-100.
        scale_by_t2: Multiply by the squared temperature, as the paper's code does.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: If a weight is below 0; on a batch without true labels.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        scale_by_t2: bool = True,
        probability_shift: bool = False,
        example_temperature: ExampleTemperature | None = None,
    ) -> None:
        super().__init__(scale_by_t2, probability_shift, example_temperature)
        check_range("alpha", alpha, 0)
        check_range("beta", beta, 0)
        self.alpha = alpha
        self.beta = beta

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        labels = self._required(labels)
        return decoupled_kd(student, teacher, mask, temperature, labels, self.alpha, self.beta, self.scale_by_t2)
