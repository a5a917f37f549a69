"""Schedules: a pure function from progress in [0, 1] to a value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Constant", "Cosine", "Linear", "Schedule"]


class Schedule(ABC):
    """A value as a function of the share of the training steps that are done.

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
