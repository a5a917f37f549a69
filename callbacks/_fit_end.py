"""What the callbacks that work at the end of a fit share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import PreTrainedModel

from lightning_kd._checks import expected
from lightning_kd.models import freeze
from lightning_kd.module import DistillationModule
from lightning_kd.quantization.base import float_copy

__all__ = [
    "best_student",
    "callbacks_of",
    "check_file",
    "check_output",
    "data_of",
    "is_trial",
    "on_rank_zero",
    "output_path",
    "task_of",
    "write_folder",
]

T = TypeVar("T")


def on_rank_zero(trainer: L.Trainer, work: Callable[[], T]) -> T | None:
    """Run ``work`` on rank 0 while the others wait; if it fails, every rank raises.

    There must be no collective operation in ``work``.
    """
    result: T | None = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = work()
        except Exception as caught:  # raised again below, once the other ranks know
            error = caught
    message = trainer.strategy.broadcast(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(f"Rank 0 failed: {message}")
    return result


def best_student(trainer: L.Trainer, module: DistillationModule) -> PreTrainedModel:
    """A frozen copy of the student on the CPU in float32, with the weights of the best checkpoint.

    The best is that of the first ``ModelCheckpoint`` with a monitored metric; without one, the last weights.
    """
    model = float_copy(module.model)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            state = torch.load(callback.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            model.load_state_dict(module.student_state(state))
            break
    return freeze(model)


def is_trial(trainer: L.Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by the trainer


def data_of(trainer: L.Trainer) -> Any:
    """The data module, or None."""
    return trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks in the order in which they run."""
    return trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer


def output_path(trainer: L.Trainer, given: str | None, default: str) -> Path:
    """``given``, or ``default`` under the trainer's root folder.

    For one task of several it is that task's own folder in there, or its own file beside it.
    """
    path = Path(given) if given is not None else Path(trainer.default_root_dir) / default
    task = task_of(trainer)
    return path.with_name(f"{path.stem}-{task}{path.suffix}") if task and Path(default).suffix else path / task


def task_of(trainer: L.Trainer) -> str:
    """The name of the task, where the module has several; else an empty one."""
    return getattr(trainer, "task", "")


def check_output(name: str, folder: Path, sources: Iterable[str | None] = ()) -> None:
    """Refuse a folder that a model cannot be written to: it would replace what is no model, or one that is read.

    Args:
        name: The argument that names it.
        folder: What stands there is replaced.
        sources: The folders that models come from.
    """
    if folder.exists() and not folder.is_dir():
        raise expected(name, "a folder", str(folder), "There is a file of that name.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        way_out = "It is replaced as a whole: give a folder that is new, empty or holds a model (a config.json)."
        raise expected(name, "the folder of a model", str(folder), way_out)
    for source in sources:
        if source is not None and folder.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise expected(name, "another folder than those of the models that are read", str(folder))


def check_file(name: str, path: Path) -> None:
    """Refuse a file that cannot be written, as a folder has its name."""
    if path.is_dir():
        raise expected(name, "a file", str(path), "There is a folder of that name.")


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new folder, and only then give it its final name; what stood there before is replaced."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # there is one if a run was killed; what stays is in mkdir's way
    partial.mkdir(parents=True)
    try:
        write(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the error to tell of is the first one
        raise
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # as above; what stays is in rename's way
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)  # the new one stands, and the next run tries again
