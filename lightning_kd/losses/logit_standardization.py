"""Soft targets of standardized logits: the student is free to choose the scale of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.losses.base import floating
from lightning_kd.losses.logits import LogitLoss, kept_rows
from lightning_kd.losses.soft_target import soft_target_kl

__all__ = ["LogitStandardizationKL", "logit_standardization_kl", "standardize"]

_EPS = 1e-7


def standardize(logits: Tensor) -> Tensor:
    r"""Each row's logits with mean 0 and standard deviation 1 (Sun et al. 2024, arXiv 2403.01427).

    .. math:: z_{ic} = \frac{l_{ic} - \bar l_i}{\sigma_i + \epsilon}, \quad
        \sigma_i^2 = \frac{1}{C - 1} \sum_c (l_{ic} - \bar l_i)^2, \quad \epsilon = 10^{-7}

    The sample deviation (with ``C - 1``) is that of the authors' code. A row whose logits are all the same becomes 0,
    without gradient.

    Args:
        logits: ``(..., C)``, at least 2 labels.

    Returns:
        ``(..., C)``, in standard deviations, float32 (float64 for float64 input).

    Raises:
        InputError: If there is one label only.

    Example:
        >>> standardize(torch.tensor([[10.0, 30.0, 50.0]]))
        tensor([[-1.,  0.,  1.]])
    """
    if logits.shape[-1] < 2:
        raise InputError(f"Expected logits of at least 2 labels, but got shape {tuple(logits.shape)}.")
    (logits,) = floating(logits)
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    rounding = 4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(-1, keepdim=True)
    varies = deviation > (_EPS + rounding) ** 2
    return torch.where(varies, centred, 0) / (torch.where(varies, deviation, 1).sqrt() + _EPS)


def logit_standardization_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool = True
) -> Tensor:
    r"""KL divergence between the distributions of standardized logits (Sun et al. 2024, arXiv 2403.01427).

    .. math:: \frac{1}{|M|} \sum_{i \in M} T_i^2\, \mathrm{KL}\bigl(\mathrm{softmax}(\mathcal{Z}(t_i) / T_i) \Vert
        \mathrm{softmax}(\mathcal{Z}(s_i) / T_i)\bigr)

    with :math:`\mathcal{Z}` as in :func:`standardize`.

    Args:
        student: Logits ``(..., C)``, at least 3 labels.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0, the paper's base temperature: a number, or one for each row ``(...)``.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ, a temperature is not above 0 or there are fewer than 3 labels.

    Example:
        >>> teacher = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(logit_standardization_kl(3 * teacher + 5, teacher, torch.tensor([True]), temperature=2.0).item(), 6)
        0.0
    """
    student, teacher = kept_rows(student, teacher, mask)
    if student.shape[-1] < 3:
        raise _too_few("logit_standardization_kl", f"the logits have shape {tuple(student.shape)}")
    return soft_target_kl(standardize(student), standardize(teacher), mask, temperature, scale)


class LogitStandardizationKL(LogitLoss):
    """KL divergence between distributions of standardized logits (Sun et al. 2024, arXiv 2403.01427).

    The student learns how the teacher's logits relate to each other, and need not grow logits as large as the
    teacher's.

    Relations:
        :class:`SoftTargetKL` for a student much smaller than its teacher, and 3 labels or more. As the logits' scale
        is gone, let the hard labels teach it, and a temperature near 2 is already high: the authors take 2 with a loss
        weight of 9. :class:`DIST` lifts the same demand with correlations.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the paper does.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: In :meth:`build` if there are fewer than 3 labels, and on a batch whose logits have fewer.
    """

    @property
    def masks_classes(self) -> bool:
        return False  # the mean and the deviation are over all classes

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        if student.num_labels == 2 and student.problem_type is not None:  # 2 is also what a language model's is set to
            raise _too_few(type(self).__name__, "the model has 2")

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return logit_standardization_kl(student, teacher, mask, temperature, self.scale_by_t2)


def _too_few(name: str, found: str) -> InputError:
    return InputError(
        f"{name} needs at least 3 labels, but {found}: two standardized logits are always the same number, once with "
        "plus and once with minus, so nothing but their order is left to learn. Use SoftTargetKL instead."
    )
