"""Squared difference of logits."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from lightning_kd.losses.base import DistillationLoss, comparable, masked_mean
from lightning_kd.outputs import LossInputs

__all__ = ["LogitMSE", "logit_mse"]


def logit_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""Mean squared difference of raw logits (Ba and Caruana 2014, arXiv 1312.6184).

    .. math:: \frac{1}{|M| C} \sum_{i \in M} \sum_c (s_{ic} - t_{ic})^2

    Args:
        student: Logits ``(..., C)``.
        teacher: Logits, the same shape.
        mask: Bool ``(...)``, True at the rows to compare.

    Returns:
        Mean over the kept rows and the labels, in squared logits, float32 (float64 for float64 input).

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> logit_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([True])).item()
        2.0
    """
    student, teacher = comparable(student, teacher, mask)
    return masked_mean((student - teacher).square().mean(-1), mask)


class LogitMSE(DistillationLoss):
    """Mean squared error between student and teacher logits (Ba and Caruana 2014, arXiv 1312.6184).

    The temperature has no part in it.

    Relations:
        For regression, where there is no distribution. For classes, :class:`SoftTargetKL` is the first to try.
    """

    @property
    def masks_classes(self) -> bool:
        return False  # the mean is over all classes

    def forward(self, inputs: LossInputs) -> Tensor:
        terms = [
            logit_mse(logits, inputs.teacher.logits[name], inputs.logit_masks[name])
            for name, logits in inputs.student.logits.items()
        ]
        return reduce(torch.add, terms)
