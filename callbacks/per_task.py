"""Callbacks that work on one task, for each task of several."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_kd._checks import InputError, expected, nearest
from lightning_kd.callbacks.theseus import Theseus
from lightning_kd.multi_task import MultiTaskModule
from lightning_kd.task_trainer import TaskTrainer

__all__ = ["PerTask"]

#: What is called with the trainer and the module, but for the hooks of evaluation batches.
_HOOKS = [
    name
    for name in vars(L.Callback)
    if (name.startswith("on_") or name in ("setup", "teardown"))
    and not name.startswith(("on_validation_batch", "on_test_batch", "on_predict_batch"))
]


class PerTask(L.Callback):
    """Runs a copy of a callback for each task of a :class:`~lightning_kd.MultiTaskModule`, or for some of them.

    A copy sees its task's module and data alone, and the training batches of its task; hooks of evaluation batches are
    not passed on. What it writes goes into a folder with the task's name, in the folder where it would go:
    ``StudentExport`` writes ``student/<task>``. The command line does this by itself for every callback of this
    library, and for all tasks.

    Args:
        callback: Works on the module of one task; not ``Theseus``, whose student starts as its only teacher.
        tasks: The names of the tasks; all unless given.

    Raises:
        InputError: If it is ``Theseus``; in ``setup``, if there is no such task or the module has none.

    Example:
        >>> from lightning_kd.callbacks import StudentExport
        >>> export = PerTask(StudentExport())
        >>> export.for_task("mrpc") is export.for_task("mrpc"), export.for_task("mrpc") is export.for_task("rte")
        (True, False)
    """

    of_whole_run = True  # it passes on to those that are not

    def __init__(self, callback: L.Callback, tasks: list[str] | None = None) -> None:
        if isinstance(callback, Theseus):
            raise InputError(
                "Theseus starts a student as its teacher, which no encoder of several tasks is: leave it out."
            )
        self.callback = callback
        self.tasks = tasks
        self._copies: dict[str, L.Callback] = {}

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.callback.state_key}, {self.tasks}]"

    def for_task(self, task: str) -> L.Callback | None:
        """The copy that works on a task; ``None`` where it is left out."""
        if self.tasks is not None and task not in self.tasks:
            return None
        if task not in self._copies:
            self._copies[task] = copy.deepcopy(self.callback)
        return self._copies[task]

    def state_dict(self) -> dict[str, Any]:
        return {task: state for task, each in self._copies.items() if (state := each.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for task, state in state_dict.items():
            if (each := self.for_task(task)) is not None:
                each.load_state_dict(state)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(self.callback, BasePredictionWriter) and not trainer.predict_loop.return_predictions:
            kind = type(self.callback).__name__
            raise InputError(f"PerTask({kind}(...)) needs the predictions: leave return_predictions=False out.")
        for _, each, view, one in self._each(trainer, pl_module):
            each.on_predict_start(view, one)

    def _each(self, trainer: L.Trainer, module: L.LightningModule) -> Iterator[tuple[str, L.Callback, Any, Any]]:
        """Name, copy, trainer and module of each task."""
        if not isinstance(module, MultiTaskModule):
            kind = type(self.callback).__name__
            raise InputError(f"PerTask is for a MultiTaskModule: give the trainer the {kind} itself.")
        for task in self.tasks or ():
            if task not in module.tasks:
                what = f"among {', '.join(module.tasks)}"
                raise expected("tasks", what, task, nearest(task, module.tasks))
        for task, one in module.tasks.items():
            if (each := self.for_task(task)) is not None:
                yield task, each, TaskTrainer(trainer, task), one


def _passed_on(hook: str) -> Any:
    def call(self: PerTask, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        for _, each, view, one in self._each(trainer, pl_module):
            getattr(each, hook)(view, one, *args, **kwargs)

    return call


def _of_its_batches(hook: str) -> Any:
    def call(self: PerTask, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        *before, batch, batch_idx = args  # on_train_batch_end has the outputs first
        for task, each, view, one in self._each(trainer, pl_module):
            if task in batch:
                getattr(each, hook)(view, one, *before, batch[task], batch_idx)

    return call


for _hook in (name for name in _HOOKS if name not in vars(PerTask)):
    setattr(PerTask, _hook, (_of_its_batches if _hook.startswith("on_train_batch") else _passed_on)(_hook))
