"""The formulas of the losses once more, one number at a time: slow, plain, and with nothing of torch in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["hidden_state_mse", "logit_mse", "soft_target_kl"]

Rows = Sequence[Sequence[float]]


def _softmax(logits: Sequence[float], temperature: float) -> list[float]:
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def soft_target_kl(student: Rows, teacher: Rows, mask: Sequence[bool], temperature: float) -> float:
    """Hinton et al. 2015: T^2 times the mean over kept rows of KL(teacher || student), both softened by T."""
    total, count = 0.0, 0
    for s, t, keep in zip(student, teacher, mask, strict=True):
        if keep:
            q, p = _softmax(s, temperature), _softmax(t, temperature)
            for p_c, q_c in zip(p, q, strict=True):
                total += p_c * (math.log(p_c) - math.log(q_c))
            count += 1
    return temperature * temperature * total / count if count else 0.0


def logit_mse(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Ba and Caruana 2014: the mean over kept rows and labels of the squared difference of logits."""
    total, count = 0.0, 0
    for s, t, keep in zip(student, teacher, mask, strict=True):
        if keep:
            for s_c, t_c in zip(s, t, strict=True):
                total += (s_c - t_c) ** 2
                count += 1
    return total / count if count else 0.0


def hidden_state_mse(student: Sequence[Rows], teacher: Sequence[Rows], mask: Sequence[Sequence[bool]]) -> float:
    """Jiao et al. 2020, eq. 8: the mean over all kept tokens of all rows, and over dimensions, of the squared error."""
    total, tokens, width = 0.0, 0, 0
    for student_row, teacher_row, mask_row in zip(student, teacher, mask, strict=True):
        for s, t, keep in zip(student_row, teacher_row, mask_row, strict=True):
            if keep:
                for s_h, t_h in zip(s, t, strict=True):
                    total += (s_h - t_h) ** 2
                tokens += 1
                width = len(s)
    return total / (tokens * width) if tokens else 0.0
