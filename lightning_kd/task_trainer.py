"""The trainer of several tasks, as one of them sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L

__all__ = ["TaskTrainer", "is_for_one_task"]


class TaskTrainer:
    """The trainer as the module and the callbacks of one task see it: with that task's data, callbacks and folders.

    Args:
        trainer: The trainer.
        task: The task's name.
    """

    def __init__(self, trainer: L.Trainer, task: str) -> None:
        self.whole = trainer
        self.task = task

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # not there yet, while this is copied
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def datamodule(self) -> Any:
        """The task's own data module."""
        return self.whole.datamodule.tasks[self.task]  # type: ignore[attr-defined]  # set by the trainer

    @property
    def callbacks(self) -> list[L.Callback]:
        """The task's own callbacks, and those of the whole trainer."""
        all_of_them: list[Any] = self.whole.callbacks  # type: ignore[attr-defined]  # set by the trainer
        own = [each.for_task(self.task) if hasattr(each, "for_task") else each for each in all_of_them]
        return [each for each in own if each is not None]

    @property
    def predict_loop(self) -> Any:
        """What was predicted for the task's rows."""
        loop = self.whole.predict_loop
        place = list(self.whole.datamodule.tasks).index(self.task)  # type: ignore[attr-defined]  # set by the trainer
        predictions = loop.predictions if loop.num_dataloaders == 1 else loop.predictions[place]
        return SimpleNamespace(predictions=predictions, epoch_batch_indices=[loop.epoch_batch_indices[place]])


def is_for_one_task(callback: L.Callback) -> bool:
    """Whether a callback works on the module of one task: all of this library's do, but those that say otherwise."""
    own = any(kind.__module__.startswith("lightning_kd.callbacks") for kind in type(callback).__mro__)
    return own and not getattr(callback, "of_whole_run", False)
