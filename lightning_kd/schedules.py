"""Schedules: a pure function from progress in [0, 1] to a value."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass

from lightning_kd._checks import check_positive, expected

__all__ = ["Constant", "Cosine", "Cubic", "Exponential", "Linear", "Piecewise", "Schedule", "Step"]


class Schedule(ABC):
    """A value as a function of progress: the share that is done of the training, or of its first steps.

    Being pure, a schedule needs no state in a checkpoint: a resumed run reads the same values.
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value at ``progress``, a number from 0 (first step) to 1 (last step)."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout.

    Example:
        >>> Constant(4.0)(0.3)
        4.0
    """

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from ``start`` to ``end``.

    Example:
        >>> Linear(8.0, 2.0)(0.5)
        5.0
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from ``start`` to ``end``: flat at both ends.

    Example:
        >>> round(Cosine(1.0, 0.0)(0.5), 6)
        0.5
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Cubic(Schedule):
    """From ``start`` to ``end``, fast at first: ``end + (start - end) * (1 - progress)^3``.

    The course of sparsity in gradual pruning (Zhu and Gupta 2017, arXiv 1710.01878).

    Example:
        >>> Cubic(0.0, 1.0)(0.5)
        0.875
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1.0 - progress) ** 3


@dataclass(frozen=True)
class Exponential(Schedule):
    """From ``start`` to ``end``, by the same factor in each step; both above 0.

    Example:
        >>> round(Exponential(8.0, 2.0)(0.5), 6)
        4.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("end", self.end)

    def __call__(self, progress: float) -> float:
        return float(self.start ** (1 - progress) * self.end**progress)


@dataclass(frozen=True)
class Step(Schedule):
    """One value after the other; it changes at each milestone.

    Args:
        values: One more than there are milestones.
        milestones: Rising, within (0, 1): from each of them on, the next value holds.

    Raises:
        InputError: If the numbers of values and milestones do not fit, or the milestones do not rise.

    Example:
        >>> schedule = Step(values=[8.0, 4.0, 1.0], milestones=[0.3, 0.6])
        >>> schedule(0.0), schedule(0.3), schedule(1.0)
        (8.0, 4.0, 1.0)
    """

    values: list[float]
    milestones: list[float]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.milestones) + 1:
            raise expected("values", f"one value more than the {len(self.milestones)} milestones", self.values)
        _check_rising(self.milestones)

    def __call__(self, progress: float) -> float:
        return self.values[bisect_right(self.milestones, progress)]


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines from point to point; constant before the first and after the last.

    Args:
        values: The value at each milestone.
        milestones: Rising, from 0 to 1, as many as there are values; at least one.

    Raises:
        InputError: If the numbers of values and milestones differ, or the milestones do not rise.

    Example:
        >>> warm_up_and_fall = Piecewise(values=[0.0, 1.0, 0.5], milestones=[0.0, 0.1, 1.0])
        >>> warm_up_and_fall(0.05), warm_up_and_fall(0.1), warm_up_and_fall(1.0)
        (0.5, 1.0, 0.5)
    """

    values: list[float]
    milestones: list[float]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.milestones):
            raise expected("values", f"as many as the {len(self.milestones)} milestones, at least one", self.values)
        _check_rising(self.milestones)

    def __call__(self, progress: float) -> float:
        after = bisect_right(self.milestones, progress)
        if after == 0 or after == len(self.values):
            return self.values[max(after - 1, 0)]
        left, right = self.milestones[after - 1], self.milestones[after]
        low, high = self.values[after - 1], self.values[after]
        return low + (high - low) * (progress - left) / (right - left)


def _check_rising(milestones: list[float]) -> None:
    rising = all(a < b for a, b in itertools.pairwise(milestones))
    if not rising or any(not 0 <= m <= 1 for m in milestones):
        raise expected("milestones", "rising numbers from 0 to 1", milestones)
