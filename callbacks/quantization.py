"""Quantization at the end of a fit."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError, expected
from lightning_kd.callbacks._fit_end import (
    best_student,
    callbacks_of,
    data_of,
    is_trial,
    on_rank_zero,
    output_path,
    write_folder,
)
from lightning_kd.callbacks.export import save_tokenizer
from lightning_kd.module import DistillationModule
from lightning_kd.quantization import Quantizer

__all__ = ["QuantizationCallback"]


class QuantizationCallback(L.Callback):
    """Quantizes the student of the best checkpoint to int8 when training ends (PTQ), and writes it to a folder.

    The module's student stays float. The folder holds the int8 model, ``config.json`` with the label names and the
    tokenizer; :class:`lightning_kd.Runner` opens it.

    Args:
        quantizer: The backend.
        export_dir: The folder; ``<trainer.default_root_dir>/int8`` unless given. What stands there is replaced.
        calibration_batches: Training batches that a static backend finds the range of the activations on, above 0.

    Raises:
        InputError: In ``setup("fit")``, if the backend's extra is missing.
    """

    def __init__(self, quantizer: Quantizer, export_dir: str | None = None, calibration_batches: int = 32) -> None:
        if calibration_batches < 1:
            raise expected("calibration_batches", "at least 1", calibration_batches)
        self.quantizer = quantizer
        self.export_dir = export_dir
        self.calibration_batches = calibration_batches
        #: Where the int8 model is, once it is written.
        self.folder: Path | None = None

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.quantizer.name}, {self.export_dir}]"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.quantizer.check()
        folder = output_path(trainer, self.export_dir, "int8")
        for other in callbacks_of(trainer):
            if other is not self and isinstance(other, QuantizationCallback):
                if output_path(trainer, other.export_dir, "int8") == folder:
                    raise InputError(f"Two QuantizationCallbacks write to {folder}: give one of them an export_dir.")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)  # noqa: S101  # the callbacks belong to this module
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.export_dir, "int8")

        def write(partial: Path) -> None:
            model = best_student(trainer, pl_module)
            self.quantizer.convert(model, self._calibration(trainer, pl_module), partial)
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(partial)
            save_tokenizer(trainer, partial)

        rank_zero_info(f"Quantizing the student with {self.quantizer.name}")
        on_rank_zero(trainer, lambda: write_folder(folder, write))
        self.folder = folder
        rank_zero_info(f"Int8 student: {folder}")

    def _calibration(self, trainer: L.Trainer, module: DistillationModule) -> list[dict[str, Any]]:
        if not self.quantizer.needs_calibration:
            return []
        data = data_of(trainer)
        if hasattr(data, "calibration_batches"):
            batches = data.calibration_batches(self.calibration_batches)
        else:
            batches = list(islice(trainer.train_dataloader or [], self.calibration_batches))
        return [module.task.model_inputs(batch) for batch in batches]
