"""How far a run is, on a terminal and in a log."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.progress import Progress

from lightning_kd._progress import Clock, duration, end_time, is_terminal, new_bar, rate_text

__all__ = ["StageProgress"]


class StageProgress(ProgressBar):
    """One bar for a whole training, with its rate and the time at which it will end; in a log, one line at its end.

    The rate is that of training batches alone. The end counts the batches that are left to train on and to validate
    on, each kind at the pace of those that are done; what follows a training, quantization and report, has bars of its
    own. Where standard error is no terminal (a file, CI) nothing is drawn.

    In place of Lightning's own bars; the command line adds it unless the config has a progress bar.

    Args:
        refresh_rate: Batches between two drawings, above 0.
    """

    of_whole_run = True  # also where the module has several tasks

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__()
        self.refresh_rate = max(1, refresh_rate)
        self._clock: Clock = time.monotonic
        self._shown = True
        self._bar: Progress | None = None
        self._task: Any = None
        #: Seconds and batches of each kind of this fit so far.
        self._seconds = {"train": 0.0, "val": 0.0}
        self._batches = {"train": 0, "val": 0}
        self._since = 0.0

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    # ---------------------------------------------------------------------------------------------- training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._seconds, self._batches = {"train": 0.0, "val": 0.0}, {"train": 0, "val": 0}

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = self._clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since = self._clock()
        self._open("Training", self._train_total(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tick("train")
        if self._bar is not None and self._batches["train"] % self.refresh_rate == 0:
            epochs = "" if trainer.max_epochs is None or trainer.max_epochs < 1 else f" of {trainer.max_epochs}"
            text = f"Epoch {trainer.current_epoch + 1}{epochs}{self._losses(trainer)}"
            self._bar.update(
                self._task,
                description=text,
                completed=self._batches["train"],
                rate_and_end=self.rate_and_end(trainer),
            )

    @staticmethod
    def _losses(trainer: L.Trainer) -> str:
        """The loss and what is validated, without the single terms."""
        values = {n: v for n, v in trainer.progress_bar_metrics.items() if n == "train/loss" or n.startswith("val")}
        return "".join(f", {name} {value:.4g}" for name, value in values.items() if not name.endswith("val/loss"))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._start_stage("Validating", trainer.num_val_batches)
        elif self._bar is not None:
            self._bar.update(self._task, description="Validating")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit":
            self._tick("val")
        else:
            self._advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._end_stage("Validating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        batches, seconds = self._batches["train"], sum(self._seconds.values())
        if self._shown and batches:
            rate = rate_text(batches / max(self._seconds["train"], 1e-9), "batches")
            line = f"Training: {trainer.global_step:,} steps, {batches:,} batches in {duration(seconds)}, {rate}"
            rank_zero_info(line + self._losses(trainer))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _tick(self, kind: str) -> None:
        now = self._clock()
        self._seconds[kind] += now - self._since
        self._batches[kind] += 1
        self._since = now

    @staticmethod
    def _train_total(trainer: L.Trainer) -> int | None:
        """Training batches of this fit, if that can be known: of a resumed one, those that are left."""
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        totals = []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0 and batches < float("inf"):
            totals.append(int((trainer.max_epochs - trainer.current_epoch) * batches))
        if trainer.max_steps >= 0:
            totals.append((trainer.max_steps - trainer.global_step) * accumulated)
        return max(0, min(totals)) if totals else None

    def seconds_left(self, trainer: L.Trainer, total: int | None) -> float:
        """Until the training ends: batches left of each kind at the pace of those that are done; inf if unknown."""
        done = self._batches["train"]
        if total is None or not done:
            return float("inf")
        pace = self._seconds["train"] / done
        left = (total - done) * pace
        an_epoch = sum(int(number) for number in trainer.num_val_batches)
        if self._batches["val"] and an_epoch and trainer.enable_validation:
            every = min(
                float(trainer.val_check_batch or float("inf")),
                float(trainer.num_training_batches * (trainer.check_val_every_n_epoch or 1)),
            )
            left += -(-(total - done) // every) * an_epoch * self._seconds["val"] / self._batches["val"]
        return left

    def rate_and_end(self, trainer: L.Trainer) -> str:
        """What stands behind the bar."""
        assert self._bar is not None  # asked for while there is one
        total = self._bar.tasks[0].total
        rate = self._batches["train"] / max(self._seconds["train"], 1e-9)
        left = self.seconds_left(trainer, None if total is None else int(total))
        return f"{rate_text(rate, 'batches')}  {end_time(left)}"

    # ---------------------------------------------------------------------------------------------- other stages

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_stage("Testing", trainer.num_test_batches)

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_stage("Testing")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_stage("Predicting", trainer.num_predict_batches)

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_stage("Predicting")

    def _start_stage(self, name: str, batches: Any) -> None:
        self._batches["val"], self._since = 0, self._clock()
        total = sum(batches) if isinstance(batches, list) else batches
        self._open(name, int(total) if total < float("inf") else None)

    def _advance(self) -> None:
        self._batches["val"] += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._batches["val"])

    def _end_stage(self, name: str) -> None:
        self._close()
        seconds, batches = self._clock() - self._since, self._batches["val"]
        if self._shown:
            rate = rate_text(batches / max(seconds, 1e-9), "batches")
            rank_zero_info(f"{name}: {batches:,} batches in {duration(seconds)}, {rate}")

    def _open(self, name: str, total: int | None) -> None:
        if self._shown and is_terminal():
            self._bar = new_bar()
            self._task = self._bar.add_task(name, total=total, unit="batches", rate_and_end=None)
            self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None
