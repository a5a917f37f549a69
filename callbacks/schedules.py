"""Schedules of the temperature and of loss weights."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_kd._checks import InputError, check_positive, check_range, expected, nearest
from lightning_kd.module import DistillationModule
from lightning_kd.schedules import Schedule

__all__ = ["LossWeightSchedule", "TemperatureSchedule"]


class ScheduleCallback(L.Callback):
    """Writes a value before every training batch, as a function of the share of the steps done."""

    def __init__(self, schedule: Schedule, num_steps: int | None = None) -> None:
        if num_steps is not None:
            check_positive("num_steps", num_steps)
        self.schedule = schedule
        self.num_steps = num_steps

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            values = [self.schedule(thousandth / 1000) for thousandth in range(1001)]
            self.check(min(values))
            self.check(max(values))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps = self.num_steps or trainer.estimated_stepping_batches
        if not 0 < self.steps < float("inf"):
            raise InputError(
                "A schedule runs over the whole training: set trainer.max_epochs or trainer.max_steps, "
                "or give it a num_steps."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.write(pl_module, self.schedule(min(1.0, trainer.global_step / max(1, self.steps - 1))))

    def check(self, value: float) -> None:
        """Refuse a value that the schedule must not take."""
        raise NotImplementedError

    def write(self, module: Any, value: float) -> None:
        """Set the value in the module."""
        raise NotImplementedError


class TemperatureSchedule(ScheduleCallback):
    """Moves the module's temperature over the training.

    Args:
        schedule: From progress in [0, 1] to a temperature above 0.
        num_steps: Optimizer steps that the schedule takes, from the first on; then its last value holds. ``None`` for
            the whole training.

    Raises:
        InputError: If ``num_steps`` is not above 0; in ``setup``, if the schedule goes to 0 or below.
    """

    def check(self, value: float) -> None:
        check_positive("schedule", value)

    def write(self, module: DistillationModule, value: float) -> None:
        module.temperature = value


class LossWeightSchedule(ScheduleCallback):
    """Moves the weight of one loss over the training.

    Args:
        loss: The loss's name, or ``hard`` for the supervised loss.
        schedule: From progress in [0, 1] to a weight of 0 or more.
        num_steps: Optimizer steps that the schedule takes, from the first on; then its last value holds. ``None`` for
            the whole training.

    Raises:
        InputError: If ``num_steps`` is not above 0; in ``setup`` if the schedule goes below 0, at the
            start of training if there is no such loss.
    """

    def __init__(self, loss: str, schedule: Schedule, num_steps: int | None = None) -> None:
        super().__init__(schedule, num_steps)
        self.loss = loss

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.loss}]"

    def check(self, value: float) -> None:
        check_range("schedule", value, 0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        names = [*pl_module.losses, "hard"]
        if self.loss not in names:
            raise expected("loss", f"one of {', '.join(names)}", self.loss, nearest(self.loss, names))

    def write(self, module: DistillationModule, value: float) -> None:
        if self.loss == "hard":
            module.hard_label_weight = value
        else:
            module.loss_weights[self.loss] = value
