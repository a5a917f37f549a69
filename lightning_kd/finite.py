"""Losses that are no number any more: noticed, and told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_kd._checks import RunError

__all__ = ["FiniteCheck", "NonFiniteError", "non_finite_teacher"]

#: Steps that are kept unseen at most.
_KEPT = 1000

#: Rows that a message names at most.
_NAMED = 20


class NonFiniteError(RunError):
    """A loss, a teacher or a weight that is NaN or infinite.

    Args:
        message: What the user reads.
        too_late: Whether the weights have been moved by it.
    """

    def __init__(self, message: str, too_late: bool) -> None:
        super().__init__(message)
        self.too_late = too_late


@dataclass(frozen=True)
class _Step:
    names: list[str]
    values: Tensor  # (names,) float32: the losses, and the sum of each teacher's logits
    index: Tensor | None
    where: tuple[int, int, int]  # epoch, batch, optimizer step


class FiniteCheck:
    """Ends a training whose loss is NaN or infinite, with the term's or the teacher's name, the step and the rows.

    On the CPU each step is looked at, before it moves a weight. On another device to look is to wait for it, so the
    values stay there until the trainer waits anyway: for a step that is logged, or a checkpoint.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(
        self,
        losses: Mapping[str, Tensor],
        teacher_logits: Mapping[str, Mapping[str, Tensor]],
        index: Tensor | None,
        where: tuple[int, int, int],
    ) -> None:
        """Note one step.

        Args:
            losses: By name, scalars.
            teacher_logits: By the teacher's name, its logits.
            index: ``(rows,)``, the rows' numbers in the data set, where the batch has them.
            where: Epoch, batch and optimizer step, each from 0 on.

        Raises:
            NonFiniteError: On the CPU.
        """
        on_cpu = all(value.device.type == "cpu" for value in losses.values())
        if on_cpu and all(math.isfinite(value.item()) for value in losses.values()):
            return
        with torch.no_grad():
            sums = [
                reduce(torch.add, (each.sum(dtype=torch.float32) for each in logits.values()))
                for logits in teacher_logits.values()
            ]
            values = torch.stack([*(value.float() for value in losses.values()), *sums])
        self._steps.append(_Step([*losses, *(f"teacher {name}" for name in teacher_logits)], values, index, where))
        if on_cpu or len(self._steps) == _KEPT:
            self._look(too_late=not on_cpu)

    def look(self, module: nn.Module | None = None) -> None:
        """Look at the steps since the last time, and at a module's weights; waits for the device.

        Args:
            module: If given, what is about to be saved.

        Raises:
            NonFiniteError: If anything is not finite.
        """
        self._look(too_late=True)
        if module is not None:
            _check_weights(module)

    def _look(self, too_late: bool) -> None:
        steps, self._steps = self._steps, []
        if not steps:
            return
        found = torch.cat([step.values for step in steps]).cpu()
        for step in steps:
            values, found = found[: len(step.names)].tolist(), found[len(step.names) :]
            wrong = [name for name, value in zip(step.names, values, strict=True) if not abs(value) < float("inf")]
            terms = [name for name in wrong if not name.startswith("teacher ")]
            if not terms:  # a teacher may rule out a class by a logit of minus infinity
                continue
            epoch, batch, number = step.where
            rows = f"step {number} (epoch {epoch}, batch {batch})"
            if step.index is not None:
                rows += f", on the rows {_named(step.index.tolist())}"
            if len(wrong) > len(terms):
                teacher = wrong[len(terms)].removeprefix("teacher ")
                raise non_finite_teacher(teacher, f"in {rows}", too_late)
            value = values[step.names.index(terms[0])]
            raise NonFiniteError(
                f"The loss {terms[0]!r} is {value} in {rows}. Most often the learning rate is too high, "
                "gradient_clip_val is missing, or trainer.precision is too low for it.",
                too_late,
            )


def non_finite_teacher(name: str, where: str, too_late: bool = False) -> NonFiniteError:
    """The error of a teacher whose logits are not finite."""
    return NonFiniteError(
        f"The teacher {name!r} gives logits that are NaN or infinite {where}: see whether its weights are, or whether "
        "trainer.precision or its dtype is too low for it.",
        too_late,
    )


def _check_weights(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        return
    finite = torch.stack([each.detach().isfinite().all() for each in parameters.values()]).tolist()
    wrong = [name for name, each in zip(parameters, finite, strict=True) if not each]
    if wrong:
        raise NonFiniteError(
            f"{len(wrong)} of {len(parameters)} weights are NaN or infinite, {wrong[0]} among them, and are not saved: "
            "a gradient was, though the loss was not. Set gradient_clip_val, or a lower learning rate.",
            too_late=True,
        )


def _named(rows: Sequence[int]) -> str:
    more = len(rows) - _NAMED
    return ", ".join(map(str, rows[:_NAMED])) + (f" and {more} more" if more > 0 else "")
