"""Other divergences between the teacher's and the student's distribution than the KL of soft targets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd._checks import expected
from lightning_kd.losses.logits import ExampleTemperature, LogitLoss, scaled_mean, tempered

__all__ = [
    "JensenShannon",
    "ReverseKL",
    "SkewedKL",
    "SkewedReverseKL",
    "jensen_shannon",
    "reverse_kl",
    "skewed_kl",
    "skewed_reverse_kl",
]


def reverse_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool = True
) -> Tensor:
    r"""KL divergence from the student's to the teacher's distribution (Gu et al. 2023, arXiv 2306.08543).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2 \sum_c q_{ic} (\log q_{ic} - \log p_{ic}),
        \quad p_i = \mathrm{softmax}(t_i / T_i),\ q_i = \mathrm{softmax}(s_i / T_i)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ or a temperature is not above 0.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 9.0]]), torch.tensor([[0.0, 0.0]])
        >>> round(reverse_kl(student, teacher, torch.tensor([True]), temperature=1.0).item(), 3)
        0.692
    """
    student_log, teacher_log = _log_distributions(student, teacher, mask, temperature)
    return scaled_mean(_kl(student_log, teacher_log), mask, temperature, scale)


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    beta: float = 0.5,
    scale: bool = True,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence (Agarwal et al. 2023, arXiv 2306.13649, eq. 1).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2 \bigl(\beta\, \mathrm{KL}(p_i \Vert m_i)
        + (1 - \beta)\, \mathrm{KL}(q_i \Vert m_i)\bigr), \quad m_i = \beta p_i + (1 - \beta) q_i,
        \quad p_i = \mathrm{softmax}(t_i / T_i),\ q_i = \mathrm{softmax}(s_i / T_i)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        beta: Share of the teacher in the mixture, above 0 and below 1. At 0.5 the divergence is symmetric. Towards 0
            its gradient is ``beta`` times that of :func:`soft_target_kl`, towards 1 ``1 - beta`` times that of
            :func:`reverse_kl`.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, without ``T ** 2`` at most ln 2; float32 (float64 for float64
        input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0 or ``beta`` is not between 0 and 1.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 0.0]])
        >>> round(jensen_shannon(student, teacher, torch.tensor([True]), temperature=1.0).item(), 4)
        0.6931
    """
    _check_share("beta", beta, "At 0 it is 0; take SoftTargetKL or, at 1, ReverseKL.")
    student_log, teacher_log = _log_distributions(student, teacher, mask, temperature)
    mixture_log = _log_mixture(teacher_log, student_log, beta)
    values = beta * _kl(teacher_log, mixture_log) + (1 - beta) * _kl(student_log, mixture_log)
    return scaled_mean(values, mask, temperature, scale)


def skewed_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    alpha: float = 0.1,
    scale: bool = True,
) -> Tensor:
    r"""KL divergence from the teacher to a mixture of both (Ko et al. 2024, arXiv 2402.03898).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2\, \mathrm{KL}(p_i \Vert \alpha p_i + (1 - \alpha) q_i),
        \quad p_i = \mathrm{softmax}(t_i / T_i),\ q_i = \mathrm{softmax}(s_i / T_i)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        alpha: Share of the teacher in the mixture, above 0 and below 1.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, without ``T ** 2`` at most ``-ln alpha``; float32 (float64 for
        float64 input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0 or ``alpha`` is not between 0 and 1.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 0.0]])
        >>> round(skewed_kl(student, teacher, torch.tensor([True]), temperature=1.0, alpha=0.1).item(), 4)
        2.3026
    """
    _check_share("alpha", alpha, "At 0 it is SoftTargetKL.")
    student_log, teacher_log = _log_distributions(student, teacher, mask, temperature)
    values = _kl(teacher_log, _log_mixture(teacher_log, student_log, alpha))
    return scaled_mean(values, mask, temperature, scale)


def skewed_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float | Tensor,
    alpha: float = 0.1,
    scale: bool = True,
) -> Tensor:
    r"""KL divergence from the student to a mixture of both (Ko et al. 2024, arXiv 2402.03898).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2\, \mathrm{KL}(q_i \Vert \alpha q_i + (1 - \alpha) p_i),
        \quad p_i = \mathrm{softmax}(t_i / T_i),\ q_i = \mathrm{softmax}(s_i / T_i)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        alpha: Share of the student in the mixture, above 0 and below 1.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, without ``T ** 2`` at most ``-ln alpha``; float32 (float64 for
        float64 input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0 or ``alpha`` is not between 0 and 1.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 0.0]])
        >>> round(skewed_reverse_kl(student, teacher, torch.tensor([True]), temperature=1.0, alpha=0.1).item(), 4)
        2.3026
    """
    _check_share("alpha", alpha, "At 0 it is ReverseKL.")
    student_log, teacher_log = _log_distributions(student, teacher, mask, temperature)
    values = _kl(student_log, _log_mixture(student_log, teacher_log, alpha))
    return scaled_mean(values, mask, temperature, scale)


class ReverseKL(LogitLoss):
    """KL divergence from student to teacher, MiniLLM's direction (Gu et al. 2023, arXiv 2306.08543).

    The student is punished for what the teacher finds unlikely, and not for what it leaves out.

    Relations:
        For a student too small to follow the whole distribution, with many labels; with few of them,
        :class:`SoftTargetKL`. :class:`JensenShannon` lies between the two, :class:`SkewedReverseKL` has a gradient
        that cannot grow without bound.

    Args:
        scale_by_t2: Multiply by the squared temperature.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.
    """

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return reverse_kl(student, teacher, mask, temperature, self.scale_by_t2)


class JensenShannon(LogitLoss):
    """Generalised Jensen-Shannon divergence, between KL and reverse KL (Agarwal et al. 2023, arXiv 2306.13649, eq. 1).

    Relations:
        Bounded, so that no single row rules the batch. :class:`SoftTargetKL` and :class:`ReverseKL` are its ends, once
        divided by ``beta`` and ``1 - beta``: near the ends raise the loss's weight.

    Args:
        beta: Share of the teacher in the mixture, above 0 and below 1.
        scale_by_t2: Multiply by the squared temperature.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: If ``beta`` is not between 0 and 1.
    """

    def __init__(
        self,
        beta: float = 0.5,
        scale_by_t2: bool = True,
        probability_shift: bool = False,
        example_temperature: ExampleTemperature | None = None,
    ) -> None:
        super().__init__(scale_by_t2, probability_shift, example_temperature)
        _check_share("beta", beta, "At 0 it is 0; take SoftTargetKL or, at 1, ReverseKL.")
        self.beta = beta

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return jensen_shannon(student, teacher, mask, temperature, self.beta, self.scale_by_t2)


class _Skewed(LogitLoss):
    """Base of both skewed divergences."""

    def __init__(
        self,
        alpha: float = 0.1,
        scale_by_t2: bool = True,
        probability_shift: bool = False,
        example_temperature: ExampleTemperature | None = None,
    ) -> None:
        super().__init__(scale_by_t2, probability_shift, example_temperature)
        _check_share("alpha", alpha, "At 0 it is SoftTargetKL or ReverseKL.")
        self.alpha = alpha


class SkewedKL(_Skewed):
    """KL divergence from the teacher to a mixture of both, DistiLLM's SKL (Ko et al. 2024, arXiv 2402.03898).

    Relations:
        :class:`SoftTargetKL` with a bound: where the student finds the teacher's label impossible, its gradient stays
        small. For many labels, as in language modelling.

    Args:
        alpha: Share of the teacher in the mixture, above 0 and below 1.
        scale_by_t2: Multiply by the squared temperature.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: If ``alpha`` is not between 0 and 1.
    """

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return skewed_kl(student, teacher, mask, temperature, self.alpha, self.scale_by_t2)


class SkewedReverseKL(_Skewed):
    """KL divergence from the student to a mixture of both, DistiLLM's SRKL (Ko et al. 2024, arXiv 2402.03898).

    Relations:
        :class:`ReverseKL` with a bound, for the same students. The paper finds it the best of its family on text that
        the student wrote.

    Args:
        alpha: Share of the student in the mixture, above 0 and below 1.
        scale_by_t2: Multiply by the squared temperature.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: If ``alpha`` is not between 0 and 1.
    """

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return skewed_reverse_kl(student, teacher, mask, temperature, self.alpha, self.scale_by_t2)


def _check_share(name: str, value: float, way_out: str) -> None:
    if not 0 < value < 1:
        raise expected(name, "above 0 and below 1", value, way_out)


def _log_distributions(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    student, teacher = tempered(student, teacher, mask, temperature)
    return F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)


def _kl(first_log: Tensor, second_log: Tensor) -> Tensor:
    """KL(first || second) of log-probabilities over the last dimension."""
    return F.kl_div(second_log, first_log, reduction="none", log_target=True).sum(-1)


def _log_mixture(first_log: Tensor, second_log: Tensor, share: float) -> Tensor:
    """Log of ``share`` of the first distribution and the rest of the second, without leaving log space."""
    return torch.logaddexp(first_log + math.log(share), second_log + math.log1p(-share))
