"""How sure a question answerer must be that there is no answer."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError, expected
from lightning_kd.callbacks._fit_end import best_student, data_of, is_trial, on_rank_zero
from lightning_kd.module import DistillationModule
from lightning_kd.runner import forward_of
from lightning_kd.tasks import QuestionAnswering
from lightning_kd.tasks.answers import best_null_threshold

__all__ = ["NullThreshold"]


class NullThreshold(L.Callback):
    """When training ends, finds the null threshold of the best student on training rows (Rajpurkar et al. 2018).

    It is the one with the highest F1 on these rows, never on those that the student is measured on. The exported
    student and its int8 forms have it in their configuration, as ``null_threshold``, and the report uses it.

    Args:
        num_rows: Training rows to find it on, drawn at random; at least 1.

    Raises:
        InputError: In ``setup("fit")``, if the task answers every question or the data module serves no such rows.
    """

    def __init__(self, num_rows: int = 2000) -> None:
        if num_rows < 1:
            raise expected("num_rows", "at least 1", num_rows)
        self.num_rows = num_rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DistillationModule)
        if stage != "fit":
            return
        if not isinstance(pl_module.task, QuestionAnswering) or pl_module.task.null_threshold is None:
            raise InputError(
                "NullThreshold needs the task QuestionAnswering with a null_threshold to begin with: "
                "set model.task.init_args.null_threshold to 0."
            )
        if not hasattr(data_of(trainer), "batches_of"):
            raise InputError("NullThreshold needs a data module of lightning_kd.datamodules.")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the student is exported, quantized and measured, which is when the fit ends."""
        assert isinstance(pl_module, DistillationModule)
        if is_trial(trainer):
            return
        threshold = trainer.strategy.broadcast(on_rank_zero(trainer, lambda: self._find(trainer, pl_module)))
        assert isinstance(pl_module.task, QuestionAnswering)  # checked in setup
        pl_module.task = replace(pl_module.task, null_threshold=threshold)
        pl_module.model.config.null_threshold = threshold
        rank_zero_info(f"Null threshold: {threshold:.3f}")

    def _find(self, trainer: L.Trainer, module: DistillationModule) -> float:
        data, task = data_of(trainer), module.task
        assert isinstance(task, QuestionAnswering)  # checked in setup
        forward = forward_of(best_student(trainer, module), task)
        rows = np.random.default_rng(0).permutation(data.sizes["train"])[: self.num_rows].tolist()
        size = data.eval_batch_size
        found = [
            task.null_outcomes(forward(task.model_inputs(batch)), batch)
            for batch in data.batches_of("train", (rows[i : i + size] for i in range(0, len(rows), size)))
        ]
        values = torch.cat(found).numpy()
        values = values[np.isfinite(values[:, 0])]  # where a passage is empty there is nothing to choose
        return best_null_threshold(*values.T) if len(values) else float(task.null_threshold or 0)
