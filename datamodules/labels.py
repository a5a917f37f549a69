"""Labels as people write them, as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from lightning_kd._checks import InputError, nearest
from lightning_kd.tasks.base import IGNORED

__all__ = ["Labels", "class_names", "label_values", "read_labels"]

_INTEGER = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def label_values(rows: Dataset, column: str) -> list[Any]:
    """A column of labels, names in the place of their numbers, and ``None`` where there is no label.

    No label is: nothing, an empty string, not-a-number, -1 in a column of ``ClassLabel``.
    """
    names, values = class_names(rows, column), rows[column][:]
    if names is not None and isinstance(rows.features[column], ClassLabel):
        return [None if value is None or value < 0 else names[value] for value in values]
    if names is not None:
        return [None if value is None else [names[i] for i in value] for value in values]
    return [None if value == "" or (isinstance(value, float) and math.isnan(value)) else value for value in values]


def class_names(rows: Dataset, column: str) -> list[str] | None:
    """The names of a column that has them, in their order."""
    feature = rows.features[column]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set are.

    Attributes:
        kind: One name a row, one score a row, or several names or none.
        names: Of the labels; ``None`` for scores.
        by_place: Several labels a row are written as 0 and 1, not by their names.
    """

    kind: Literal["class", "score", "several"]
    names: list[str] | None = None
    by_place: bool = False

    def __str__(self) -> str:
        if self.names is None:
            return "scores (regression)"
        shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
        return (
            f"{len(self.names):,} labels, {'any number of them' if self.kind == 'several' else 'one'} a row ({shown})"
        )

    def numbers(self, values: Sequence[Any], where: str) -> NDArray[Any]:
        """The labels of rows as numbers.

        Args:
            values: As :func:`label_values` gives them.
            where: The split, for messages.

        Returns:
            ``(rows,)`` int64 for classes, ``IGNORED`` where there is no label; ``(rows,)`` float32 for scores or
            ``(rows, labels)`` of 0 and 1, NaN where there is no label.

        Raises:
            InputError: If a label is of another kind or has no number.
        """
        if self.names is None:
            return np.asarray([self._score(i, value, where) for i, value in enumerate(values)], dtype=np.float32)
        places = {name: i for i, name in enumerate(self.names)}
        if self.kind == "class":
            found = (IGNORED if v is None else self._place(places, i, v, where) for i, v in enumerate(values))
            return np.fromiter(found, dtype=np.int64, count=len(values))
        numbers = np.zeros((len(values), len(places)), dtype=np.float32)
        for i, value in enumerate(values):
            if value is None:
                numbers[i] = np.nan
            elif self.by_place:
                numbers[i] = _zeros_and_ones(i, value, len(places), where)
            elif not isinstance(value, list):
                raise InputError(f"Row {i} of {where} has the label {value!r}, but others are lists.")
            else:
                numbers[i, [self._place(places, i, name, where) for name in value]] = 1
        return numbers

    def missing(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """``(rows,)``, True where :meth:`numbers` found no label."""
        return numbers == IGNORED if self.kind == "class" else np.isnan(numbers.reshape(len(numbers), -1)[:, 0])

    def _place(self, places: Mapping[str, int], row: int, value: Any, where: str) -> int:
        name = str(value)
        if name not in places:
            near = nearest(name, places)
            raise InputError(f"Row {row} of {where} has the label {name!r}, which no training row has. {near}".strip())
        return places[name]

    def _score(self, row: int, value: Any, where: str) -> float:
        if value is None:
            return math.nan
        if not _is_number(value):
            raise InputError(f"Row {row} of {where} has the label {value!r}, but other labels are scores (numbers).")
        return float(value)


def read_labels(values: Iterable[Any], names: Sequence[str] | None, where: str) -> Labels:
    """What labels are, from those of all rows.

    Whole numbers and strings are classes, numbers with a decimal point are scores, and lists several labels.

    Args:
        values: As :func:`label_values` gives them.
        names: Of the labels, if the data name them.
        where: The data, for messages.

    Raises:
        InputError: If there is no label, or one alone.
    """
    found = [value for value in values if value is not None]
    if not found:
        raise InputError(f"No row of {where} has a label.")
    if isinstance(found[0], list):
        each = {value for row in found if isinstance(row, list) for value in row}
        if not each:
            raise InputError(f"No row of {where} has a label.")
        by_place = names is None and not any(isinstance(value, str) for value in each)
        if by_place:
            return Labels("several", [str(i) for i in range(len(found[0]))], by_place=True)
        return Labels("several", list(names or _sorted(each)))
    if names is None and any(_is_number(value) and not _INTEGER.fullmatch(str(value)) for value in found):
        return Labels("score")
    known = list(names or _sorted(found))
    if len(known) < 2:
        raise InputError(f"All rows of {where} have the label {known[0]!r}: there is nothing to tell apart.")
    return Labels("class", known)


def _sorted(values: Iterable[Any]) -> list[str]:
    """Different names in their order; by value where all are whole numbers."""
    names = sorted({str(value) for value in values})
    return sorted(names, key=int) if all(map(_INTEGER.fullmatch, names)) else names


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_NUMBER.fullmatch(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _zeros_and_ones(row: int, value: Any, count: int, where: str) -> Any:
    if not isinstance(value, list) or len(value) != count or not set(value) <= {0, 1}:
        raise InputError(
            f"Row {row} of {where} has the labels {value!r}, but {count} of 0 and 1 were expected: write 0 or 1 for "
            "each label, or the names of those that apply."
        )
    return value
