"""Soft targets: the student learns the teacher's distribution over the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive
from lightning_kd.losses.base import DistillationLoss, comparable, masked_mean
from lightning_kd.outputs import LossInputs

__all__ = ["SoftTargetKL", "soft_target_kl"]


def soft_target_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, scale: bool = True) -> Tensor:
    r"""Kullback-Leibler divergence between tempered distributions (Hinton et al. 2015, arXiv 1503.02531).

    .. math:: T^2 \cdot \frac{1}{|M|} \sum_{i \in M} \sum_c p_{ic} (\log p_{ic} - \log q_{ic}),
        \quad p = \mathrm{softmax}(t / T),\ q = \mathrm{softmax}(s / T)

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the distributions to compare.
        temperature: ``T``, above 0.
        scale: Multiply by ``T ** 2``, so that the gradient keeps its size as ``T`` grows.

    Returns:
        Mean over the kept distributions, in nats, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ or the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> soft_target_kl(logits, logits, torch.tensor([True]), temperature=4.0).item()
        0.0
    """
    check_positive("temperature", temperature)
    student, teacher = comparable(student, teacher, mask)
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
    loss = masked_mean(divergence, mask)
    return loss * temperature**2 if scale else loss


class SoftTargetKL(DistillationLoss):
    """KL divergence from the teacher's to the student's tempered distribution (Hinton et al. 2015, arXiv 1503.02531).

    The temperature is the module's, so that a schedule moves it for every loss at once.

    Relations:
        The first loss to try. :class:`LogitMSE` is its limit at high temperature, and the one for regression.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the paper does. Some published settings leave it out.
    """

    def __init__(self, scale_by_t2: bool = True) -> None:
        super().__init__()
        self.scale_by_t2 = scale_by_t2

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        if student.num_labels == 1:
            raise InputError(
                "SoftTargetKL compares distributions over at least 2 labels, but the model has one output "
                "(regression). Use LogitMSE instead."
            )

    def forward(self, inputs: LossInputs) -> Tensor:
        terms = [
            soft_target_kl(
                logits, inputs.teacher.logits[name], inputs.logit_masks[name], inputs.temperature, self.scale_by_t2
            )
            for name, logits in inputs.student.logits.items()
        ]
        return torch.stack(terms).sum()
