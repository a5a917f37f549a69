"""Soft targets: the student learns the teacher's distribution over the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.logits import LogitLoss, scaled_mean, tempered

__all__ = ["SoftTargetCrossEntropy", "SoftTargetKL", "soft_target_cross_entropy", "soft_target_kl"]


def soft_target_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool = True
) -> Tensor:
    r"""Kullback-Leibler divergence between tempered distributions (Hinton et al. 2015, arXiv 1503.02531).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2 \sum_c p_{ic} (\log p_{ic} - \log q_{ic}),
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
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> soft_target_kl(logits, logits, torch.tensor([True]), temperature=4.0).item()
        0.0
    """
    student, teacher = tempered(student, teacher, mask, temperature)
    student_log, teacher_log = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
    return scaled_mean(divergence, mask, temperature, scale)


def soft_target_cross_entropy(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool = True
) -> Tensor:
    r"""Cross-entropy of the student under the teacher's distribution (Hinton et al. 2015, arXiv 1503.02531).

    .. math:: -\frac{1}{|M|} \sum_{i \in M} T_i^2 \sum_c p_{ic} \log q_{ic},
        \quad p_i = \mathrm{softmax}(t_i / T_i),\ q_i = \mathrm{softmax}(s_i / T_i)

    It is :func:`soft_target_kl` plus the teacher's entropy, which the student cannot change: the gradient is the same,
    and the value does not fall to 0. TextBrewer calls it ``ce`` and has no ``T ** 2``.

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
        >>> import torch
        >>> logits = torch.tensor([[1.0, 1.0]])
        >>> round(soft_target_cross_entropy(logits, logits, torch.tensor([True]), temperature=1.0).item(), 4)
        0.6931
    """
    student, teacher = tempered(student, teacher, mask, temperature)
    values = -(F.softmax(teacher, dim=-1) * F.log_softmax(student, dim=-1)).sum(-1)
    return scaled_mean(values, mask, temperature, scale)


class SoftTargetKL(LogitLoss):
    """KL divergence from the teacher's to the student's tempered distribution (Hinton et al. 2015, arXiv 1503.02531).

    The temperature is the module's, so that a schedule moves it for every loss at once.

    Relations:
        The first loss to try. :class:`LogitMSE` is its limit at high temperature, and the one for regression;
        :class:`SoftTargetBinaryKL` is the one for labels that are independent of each other. :class:`DecoupledKD`
        weighs the true label and the others apart; :class:`ReverseKL` suits a student too small for all that the
        teacher knows.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the paper does. Some published settings leave it out.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.
    """

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return soft_target_kl(student, teacher, mask, temperature, self.scale_by_t2)


class SoftTargetCrossEntropy(LogitLoss):
    """Cross-entropy of the student under the teacher's distribution (Hinton et al. 2015, arXiv 1503.02531).

    Relations:
        :class:`SoftTargetKL` has the same gradient and falls to 0, so its curve is easier to read. Take this one to
        repeat a run of TextBrewer, whose ``ce`` it is with ``scale_by_t2=False``.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the paper does; TextBrewer leaves it out.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.
    """

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return soft_target_cross_entropy(student, teacher, mask, temperature, self.scale_by_t2)
