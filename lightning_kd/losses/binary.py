"""Soft targets of labels that are independent of each other: one sigmoid a label, in place of one softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.losses.logits import LogitLoss, scaled_mean, tempered

__all__ = ["SoftTargetBinaryKL", "soft_target_binary_kl"]


def soft_target_binary_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool = True
) -> Tensor:
    r"""KL divergence between tempered sigmoids, label by label (after Hinton et al. 2015, arXiv 1503.02531).

    .. math:: \frac{1}{|M| C} \sum_{i \in M} T_i^2 \sum_c p_{ic} \log \frac{p_{ic}}{q_{ic}}
        + (1 - p_{ic}) \log \frac{1 - p_{ic}}{1 - q_{ic}},
        \quad p_i = \mathrm{sigmoid}(t_i / T_i),\ q_i = \mathrm{sigmoid}(s_i / T_i)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the rows to compare.
        temperature: ``T``, above 0: a number, or one for each row ``(...)``.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept rows and the labels, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ or a temperature is not above 0.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 90.0]])
        >>> round(soft_target_binary_kl(student, teacher, torch.tensor([True]), temperature=1.0).item(), 4)
        0.3466
    """
    student, teacher = tempered(student, teacher, mask, temperature)
    student_log = torch.stack([F.logsigmoid(student), F.logsigmoid(-student)])
    teacher_log = torch.stack([F.logsigmoid(teacher), F.logsigmoid(-teacher)])
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(0).mean(-1)
    return scaled_mean(divergence, mask, temperature, scale)


class SoftTargetBinaryKL(LogitLoss):
    """KL divergence between tempered sigmoids for multi-label models (after Hinton et al. 2015, arXiv 1503.02531).

    The mean is over the labels, too, so that one loss weight fits 5 labels and 5,000.

    Relations:
        For models whose labels are independent of each other. Where one label is true, :class:`SoftTargetKL`: logits
        that were trained under a softmax mean nothing one by one, as a number added to all of them changes nothing.
        :class:`LogitMSE` is its limit at high temperature, up to a factor.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the paper does.

    Raises:
        InputError: In :meth:`build` if the model is not one of independent labels.
    """

    def __init__(self, scale_by_t2: bool = True) -> None:
        super().__init__(scale_by_t2)  # neither a shift nor a temperature by example: both are about the one true label

    @property
    def masks_classes(self) -> bool:
        return False  # the mean is over all classes

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        independent = student.problem_type == "multi_label_classification"
        if student.problem_type == "regression" or (student.num_labels == 1 and not independent):
            raise InputError(
                f"{type(self).__name__} compares the probabilities of labels, but the model's output is a score "
                "(regression). Use LogitMSE instead."
            )
        if student.problem_type == "single_label_classification":
            raise InputError(
                f"{type(self).__name__} compares labels that are independent of each other, but of this model's labels "
                "one is true (single_label_classification). Use SoftTargetKL instead."
            )

    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        return soft_target_binary_kl(student, teacher, mask, temperature, self.scale_by_t2)
