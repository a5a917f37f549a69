"""The losses on distributions once more, one number at a time: slow, plain, and with nothing of torch in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "cwsm",
    "decoupled_kd",
    "dist_loss",
    "flsw",
    "jensen_shannon",
    "logit_standardization_kl",
    "probability_shift",
    "reverse_kl",
    "skewed_kl",
    "skewed_reverse_kl",
    "soft_target_binary_kl",
    "soft_target_cross_entropy",
    "soft_target_kl",
    "standardize",
]

Row = Sequence[float]
Rows = Sequence[Row]
Mask = Sequence[bool]


def _softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def _kl(p: Row, q: Row) -> float:
    """Of two distributions: the sum of p log(p / q), where p = 0 adds nothing."""
    total = 0.0
    for p_c, q_c in zip(p, q, strict=True):
        if p_c > 0:
            total += p_c * (math.log(p_c) - math.log(q_c))
    return total


def _mix(first: Row, second: Row, share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


def _mean(student: Rows, teacher: Rows, mask: Mask, temperatures: Row, row_loss: Callable[[Row, Row], float]) -> float:
    """Mean over kept rows of T^2 times a loss of (q, p), the student's and the teacher's distribution."""
    total, count = 0.0, 0
    for s, t, keep, temperature in zip(student, teacher, mask, temperatures, strict=True):
        if keep:
            total += temperature * temperature * row_loss(_softmax(s, temperature), _softmax(t, temperature))
            count += 1
    return total / count if count else 0.0


def soft_target_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row) -> float:
    """Hinton et al. 2015: KL(p || q), with a temperature for each row."""
    return _mean(student, teacher, mask, temperatures, lambda q, p: _kl(p, q))


def soft_target_cross_entropy(student: Rows, teacher: Rows, mask: Mask, temperatures: Row) -> float:
    """Hinton et al. 2015: -sum p log q."""

    def cross_entropy(q: Row, p: Row) -> float:
        return -sum(p_c * math.log(q_c) for p_c, q_c in zip(p, q, strict=True))

    return _mean(student, teacher, mask, temperatures, cross_entropy)


def reverse_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row) -> float:
    """Gu et al. 2023: KL(q || p)."""
    return _mean(student, teacher, mask, temperatures, lambda q, p: _kl(q, p))


def jensen_shannon(student: Rows, teacher: Rows, mask: Mask, temperatures: Row, beta: float) -> float:
    """Agarwal et al. 2023, eq. 1: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q."""

    def divergence(q: Row, p: Row) -> float:
        mixture = _mix(p, q, beta)
        return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)

    return _mean(student, teacher, mask, temperatures, divergence)


def skewed_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row, alpha: float) -> float:
    """Ko et al. 2024: KL(p || alpha p + (1 - alpha) q)."""
    return _mean(student, teacher, mask, temperatures, lambda q, p: _kl(p, _mix(p, q, alpha)))


def skewed_reverse_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row, alpha: float) -> float:
    """Ko et al. 2024: KL(q || alpha q + (1 - alpha) p)."""
    return _mean(student, teacher, mask, temperatures, lambda q, p: _kl(q, _mix(q, p, alpha)))


def decoupled_kd(
    student: Rows, teacher: Rows, mask: Mask, temperatures: Row, labels: Sequence[int], alpha: float, beta: float
) -> float:
    """Zhao et al. 2022: alpha KL of (p_y, 1 - p_y) plus beta KL of what is left without y, made to sum to 1 again."""
    total, count = 0.0, 0
    for s, t, keep, temperature, y in zip(student, teacher, mask, temperatures, labels, strict=True):
        if not keep or y < 0:
            continue
        q, p = _softmax(s, temperature), _softmax(t, temperature)
        q_rest = sum(value for c, value in enumerate(q) if c != y)
        p_rest = sum(value for c, value in enumerate(p) if c != y)
        tckd = _kl([p[y], p_rest], [q[y], q_rest])
        nckd = _kl(
            [value / p_rest for c, value in enumerate(p) if c != y],
            [value / q_rest for c, value in enumerate(q) if c != y],
        )
        total += temperature * temperature * (alpha * tckd + beta * nckd)
        count += 1
    return total / count if count else 0.0


def _pearson(x: Row, y: Row) -> float | None:
    """Pearson's correlation; ``None`` where one of both does not vary."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    x_power, y_power = sum((a - x_mean) ** 2 for a in x), sum((b - y_mean) ** 2 for b in y)
    for power, values in ((x_power, x), (y_power, y)):
        if power <= 2.220446049250313e-16 * sum(a * a for a in values) + 1e-30:
            return None
    return covariance / math.sqrt(x_power) / math.sqrt(y_power)


def dist_loss(
    student: Rows, teacher: Rows, mask: Mask, temperatures: Row, beta: float, gamma: float, labels: int
) -> float:
    """Huang et al. 2022: T^2 (beta mean of 1 - rho over rows + gamma mean of 1 - rho over columns)."""
    q, p, squares = [], [], []
    for s, t, keep, temperature in zip(student, teacher, mask, temperatures, strict=True):
        if keep:
            q.append(_softmax(s, temperature))
            p.append(_softmax(t, temperature))
            squares.append(temperature * temperature)
    if not q:
        return 0.0
    inter = 0.0
    for q_row, p_row, square in zip(q, p, squares, strict=True):
        rho = _pearson(q_row, p_row)
        inter += 0.0 if rho is None else square * (1 - rho)
    intra = 0.0
    for c in range(labels):
        rho = _pearson([row[c] for row in q], [row[c] for row in p])
        intra += 0.0 if rho is None else 1 - rho
    return beta * inter / len(q) + gamma * (sum(squares) / len(squares)) * intra / labels


def logit_correlation(student: Rows, teacher: Rows, mask: Mask, labels: int) -> float:
    """The mean over the columns of 1 - rho among the kept rows."""
    s, t = ([row for row, keep in zip(rows, mask, strict=True) if keep] for rows in (student, teacher))
    total = 0.0
    for c in range(labels if s else 0):
        rho = _pearson([row[c] for row in s], [row[c] for row in t])
        total += 0.0 if rho is None else 1 - rho
    return total / labels


def standardize(logits: Row) -> list[float]:
    """Sun et al. 2024, as in the authors' code: (l - mean) / (sample deviation + 1e-7)."""
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((logit - mean) ** 2 for logit in logits) / (len(logits) - 1))
    return [(logit - mean) / (deviation + 1e-7) for logit in logits]


def logit_standardization_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row) -> float:
    """Sun et al. 2024: KL of standardized logits."""
    return soft_target_kl([standardize(s) for s in student], [standardize(t) for t in teacher], mask, temperatures)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def soft_target_binary_kl(student: Rows, teacher: Rows, mask: Mask, temperatures: Row) -> float:
    """The mean over kept rows and labels of T^2 KL of (sigmoid, 1 - sigmoid)."""
    total, count = 0.0, 0
    for s, t, keep, temperature in zip(student, teacher, mask, temperatures, strict=True):
        if keep:
            for s_c, t_c in zip(s, t, strict=True):
                q, p = _sigmoid(s_c / temperature), _sigmoid(t_c / temperature)
                q_not, p_not = _sigmoid(-s_c / temperature), _sigmoid(-t_c / temperature)
                total += temperature * temperature * _kl([p, p_not], [q, q_not])
                count += 1
    return total / count if count else 0.0


def probability_shift(teacher: Rows, labels: Sequence[int]) -> list[list[float]]:
    """Wen et al. 2019: where the largest logit is not the true label's, the two change places."""
    shifted = []
    for t, label in zip(teacher, labels, strict=True):
        row = list(t)
        if label >= 0:
            largest = row.index(max(row))
            row[largest], row[label] = row[label], row[largest]
        shifted.append(row)
    return shifted


def _spread(weights: Row, mask: Mask, temperature: float, beta: float, floor: float) -> list[float]:
    kept = [weight for weight, keep in zip(weights, mask, strict=True) if keep]
    mean = sum(kept) / len(kept) if kept else 0.0
    return [max(floor, temperature + beta * (mean - weight)) for weight in weights]


def flsw(
    student: Rows, teacher: Rows, mask: Mask, temperature: float, beta: float, gamma: float, floor: float
) -> list[float]:
    """Wen et al. 2019: T + beta (mean w - w), w = (1 - cosine)^gamma, with TextBrewer's 1e-4 beside each norm."""
    weights = []
    for s, t in zip(student, teacher, strict=True):
        s_norm, t_norm = math.sqrt(sum(a * a for a in s)) + 1e-4, math.sqrt(sum(a * a for a in t)) + 1e-4
        cosine = sum(a / s_norm * b / t_norm for a, b in zip(s, t, strict=True))
        weights.append(max(0.0, 1 - cosine) ** gamma)
    return _spread(weights, mask, temperature, beta, floor)


def cwsm(student: Rows, mask: Mask, temperature: float, beta: float, floor: float) -> list[float]:
    """Wen et al. 2019: T + beta (mean w - w), w = 1 / max q, with TextBrewer's 1e-3 beside the maximum."""
    weights = [1 / (max(_softmax(s)) + 1e-3) for s in student]
    return _spread(weights, mask, temperature, beta, floor)
