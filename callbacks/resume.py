"""What makes an interrupted run and its continuation one run."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import distributed

from lightning_kd._checks import InputError, RunError
from lightning_kd.callbacks._fit_end import is_trial
from lightning_kd.finite import NonFiniteError

__all__ = ["Resume", "last_checkpoint"]

#: Of what the callback keeps in a checkpoint.
_KEY = "lightning_kd_resume"

#: What a shell shows for a process that SIGTERM has ended.
_TERMINATED = 128 + signal.SIGTERM


class Resume(L.Callback):
    """Lets a run go on where it was interrupted, to the same weights and the same metrics, and has it end in order.

    Every checkpoint also holds the random states of Python, numpy and torch on each process, the metrics that
    schedulers and other callbacks look at, and where the epoch stands, so that the next batch is the next one and a
    validation that was due is not left out. A checkpoint within an accumulation of gradients is one of its beginning.

    SIGTERM, which batch systems send before they end a job, lets the current batch finish on all processes, writes
    ``last.ckpt`` and ends the process with exit code 143. So does, on a single process, whatever else ends the
    training, if the weights are those of a whole step; the code is then another.

    The command line adds it. Elsewhere it has to be the first of the callbacks.

    Raises:
        InputError: Before the first batch, if a run cannot go on in the middle of an epoch, for its batches are others.
    """

    of_whole_run = True  # also where the module has several tasks

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None  # until it is all put back
        self._before: dict[str, Any] | None = None  # the random state at the first batch of an accumulation
        self._behind: dict[str, Any] = {}  # that at the end of the last batch
        self._evaluating = False
        self._failed = False
        self._whole = True  # whether the weights are those of a whole step
        self._terminated = False
        self._folder: Path | None = None  # where the run writes

    # ---------------------------------------------------------------------------------------------- to a checkpoint

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._folder is not None and not self._failed and not self._folder.exists():
            raise RunError(f"The output folder {self._folder} has been removed during the run.")
        own: dict[str, Any] = {"num_batches": trainer.num_training_batches, "row": None}
        own["metrics"] = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        state = None
        if self._trains(trainer) and self._before is not None:
            state = self._write_place(trainer, checkpoint["loops"]["fit_loop"], own)
        state = state or _random_state(pl_module.device)
        states = [state]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            distributed.all_gather_object(states, state)
        own["random"] = states
        checkpoint[_KEY] = own

    def _write_place(self, trainer: L.Trainer, loops: dict[str, Any], own: dict[str, Any]) -> dict[str, Any] | None:
        """Make the loops' state one from which the trainer goes on without leaving out or repeating anything.

        Returns:
            The random state there, unless it is that of now.
        """
        loop = trainer.fit_loop.epoch_loop
        now: Any = loop.batch_progress.current
        evaluation = loops["epoch_loop.val_loop.batch_progress"]
        for counted in (evaluation["total"], evaluation["current"]):
            counted.update(ready=0, started=0, processed=0, completed=0)
        counters, logged = loops["epoch_loop.batch_progress"], loops["epoch_loop.state_dict"]

        def place(batches: int, ends_batch: bool = False) -> None:
            """So many are done; with ``ends_batch`` the trainer counts the last of them as done, and logged, itself."""
            for counted in (counters["current"], counters["total"]):
                done = batches + counted["ready"] - now.ready
                counted.update(ready=done, started=done, processed=done, completed=done - ends_batch)

        in_batch = now.ready > now.processed
        between = self._failed and now.ready == now.completed and not loop._num_ready_batches_reached()
        if in_batch or loop._should_accumulate() or (between and not self._evaluating):
            done = now.ready - in_batch
            first = done - done % trainer.accumulate_grad_batches
            place(first, ends_batch=first > 0)
            counters["is_last_batch"] = False
            # the trainer adds 1 when it goes on behind a batch, or leaves out a validation that it takes for done
            logged["_batches_that_stepped"] -= first > 0 or _is_due(trainer, counters["total"]["ready"], first)
            return self._before if in_batch or first < done else None
        ends_batch = now.processed > now.completed
        if ends_batch and trainer._logger_connector.should_update_logs:
            row = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
            own["row"] = (row | {"epoch": trainer.current_epoch}, loop._batches_that_stepped) if row else None
        fetcher: Any = trainer.fit_loop._data_fetcher
        if self._evaluating or (ends_batch and loop._should_check_val_fx(fetcher)):
            place(now.ready)
            # one has begun, as far as the trainer can see, and is run from its start
            evaluation["total"].update(ready=1, started=1)
        elif ends_batch and loop._num_ready_batches_reached():
            place(now.ready)  # what is left is the end of the epoch
            logged["_batches_that_stepped"] += 1
        return self._behind if self._evaluating else None

    # ---------------------------------------------------------------------------------------------- from a checkpoint

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._restored = checkpoint.get(_KEY)
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                _follow(state, callback.dirpath, Path(str(trainer.ckpt_path)).parent)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluating = self._failed = self._terminated = False
        self._whole = True
        self._before = None
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._folder = folder if folder.exists() else None
        if threading.current_thread() is threading.main_thread():  # no other may
            signal.signal(signal.SIGTERM, lambda signum, _: self._on_signal(trainer, signum))  # the trainer resets it
        own = self._restored
        if own is None:
            return
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if 0 < batches < own["num_batches"] != trainer.num_training_batches:
            raise InputError(
                f"The checkpoint is from the middle of an epoch of {own['num_batches']:,} batches, but now there are "
                f"{trainer.num_training_batches:,}: go on with the same rows, data.batch_size times "
                "trainer.devices and trainer.limit_train_batches, or from a checkpoint of an epoch's end."
            )
        if len(own["random"]) != trainer.world_size:
            rank_zero_info(
                f"The checkpoint is of {len(own['random'])} processes and this run has {trainer.world_size}: the "
                "batches are those of an uninterrupted run, but dropout is not"
            )
            own["random"] = None
        trainer.callback_metrics.update({name: value.to(pl_module.device) for name, value in own["metrics"].items()})
        if own["row"] is not None:  # logged after the checkpoint was written, and perhaps not any more
            metrics, step = own["row"]
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)
                logger.save()
        self._put_back(trainer, pl_module)

    def _put_back(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._restored is not None and self._restored["random"] is not None:
            _set_random_state(self._restored["random"][trainer.global_rank], module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_back(trainer, pl_module)
        self._restored = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._put_back(trainer, pl_module)  # in the middle of an epoch: what came before has drawn, but not then
        self._restored = None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._before = _random_state(pl_module.device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restored = None

    # ---------------------------------------------------------------------------------------------- to an end

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._whole = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._whole = True
        self._behind = _random_state(pl_module.device)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if trainer.strategy.reduce_boolean_decision(self._terminated, all=False):
            raise SIGTERMException(_TERMINATED if trainer.is_global_zero else 0)  # a launcher kills all for one's code

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluating = True
            self._restored = None  # what validation draws is not to be drawn again

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._terminated and trainer.world_size == 1 and self._trains(trainer):
            raise SIGTERMException(_TERMINATED)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluating = False  # before a checkpoint of the end of it

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._trains(trainer) or trainer.sanity_checking or is_trial(trainer) or not trainer.global_step:
            return
        self._failed = True
        terminated = isinstance(exception, SIGTERMException)
        last = None
        whole = self._whole and not (isinstance(exception, NonFiniteError) and exception.too_late)
        if trainer.checkpoint_callbacks and (terminated or (whole and trainer.world_size == 1)):
            try:
                last = _last_path(trainer)
                trainer.save_checkpoint(last)
            except Exception as error:  # the one that ended the training is the one to be told of
                rank_zero_info(f"The state at the end could not be saved: {error}")
                last = None
        name = "SIGTERM" if terminated else type(exception).__name__
        where = f"in epoch {trainer.current_epoch}, after {trainer.global_step:,} steps"
        goes_on = "there is no checkpoint of it" if last is None else f"--ckpt_path last goes on from {last}"
        rank_zero_info(f"{name} {where}: {goes_on}")

    def _on_signal(self, trainer: L.Trainer, signum: int) -> None:
        if not self._terminated and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)
        self._terminated = True

    @staticmethod
    def _trains(trainer: L.Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and (trainer.training or trainer.validating)


def _is_due(trainer: L.Trainer, total: int, batches: int) -> bool:
    """Whether the trainer validates after so many batches in all, or of the epoch."""
    every, per_epoch = trainer.val_check_batch, trainer.check_val_every_n_epoch is not None
    if every is None or every == float("inf") or not trainer.fit_loop.epoch_loop._should_check_val_epoch():
        return False
    return (batches if per_epoch else total) % every == 0


def _random_state(device: torch.device) -> dict[str, Any]:
    """Of what a training step may draw from, in types that a checkpoint may hold."""
    kind, keys, *rest = np.random.get_state()  # that of others, too
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    states["numpy"] = (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _follow(state: dict[str, Any], folder: Any, found_in: Path) -> None:
    """Let a ``ModelCheckpoint`` know its best checkpoint again, where its folder is another or has been moved."""

    def moved(path: str) -> str:
        here = found_in / Path(path).name
        return str(here) if path and not Path(path).exists() and here.exists() else path

    state["dirpath"] = folder
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state.get(name, ""))
    state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}


def _last_path(trainer: L.Trainer) -> str:
    """Where the state at an interruption goes: beside the checkpoints of the first ``ModelCheckpoint``."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return callback.last_model_path or str(Path(callback.dirpath) / "last.ckpt")
    return str(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")


def last_checkpoint(trainer: L.Trainer) -> Path | None:
    """The newest checkpoint of earlier runs of this training, from which all can be restored.

    Looked for where its ``ModelCheckpoint`` callbacks write: in their ``dirpath``, or in the folders of all versions of
    the first logger.
    """
    found: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.save_weights_only:
            continue
        if callback.dirpath is not None:
            found += Path(callback.dirpath).glob("*.ckpt")
        elif trainer.loggers:
            logger = trainer.loggers[0]
            root = Path(logger.save_dir or trainer.default_root_dir)
            found += (root / str(logger.name)).glob("*/checkpoints/*.ckpt")
        else:
            found += (Path(trainer.default_root_dir) / "checkpoints").glob("*.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
