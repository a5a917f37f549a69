"""Quantization at the end of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, check_range, expected
from lightning_kd._progress import Tracked
from lightning_kd.callbacks._cards import write_card
from lightning_kd.callbacks._fit_end import (
    best_student,
    callbacks_of,
    check_output,
    data_of,
    is_trial,
    on_rank_zero,
    output_path,
    write_folder,
)
from lightning_kd.callbacks.export import save_tokenizer
from lightning_kd.folders import FORMAT
from lightning_kd.measure import evaluate
from lightning_kd.module import DistillationModule
from lightning_kd.quantization import Forward, Quantizer
from lightning_kd.quantization.analysis import primitives
from lightning_kd.quantization.base import quantizable_layers, try_out
from lightning_kd.quantization.fake_quantize import fake_quantize, restore
from lightning_kd.quantization.guard import fewest_in_float, sensitive_layers
from lightning_kd.runner import forward_of

__all__ = ["QuantizationCallback"]

#: Training batches on which layers are compared with each other.
_SENSITIVITY_BATCHES = 4


class QuantizationCallback(L.Callback):
    """Quantizes the student of the best checkpoint when training ends, and writes it to a folder.

    Post-training quantization (``ptq``) rounds what was trained in float. Quantization-aware training (``qat``, Jacob
    et al. 2018, arXiv 1712.05877) lets the student compute with the backend's rounding while it trains: every loss, the
    teacher's too, is that of the rounded student, and so are the validation metrics of the whole fit, by which the best
    checkpoint is chosen. Its checkpoints are those of a float student.

    With ``max_drop`` the quantized student is compared with the float one on the validation split. If it loses more,
    the layers whose quantization moves the logits most on training batches stay in float: as few of them as are needed,
    at most half of all. ``kept_float``, the log and the report say which. If that is not enough, nothing is written and
    the fit ends with an error; the float student has been exported by then.

    The module's student is float again when training ends. The folder holds the int8 model, ``config.json`` with the
    label names and the tokenizer; :class:`lightning_kd.Runner` opens it.

    Args:
        quantizer: The backend.
        export_dir: The folder; ``<trainer.default_root_dir>/int8`` unless given. What stands there is replaced.
        calibration_batches: Training batches that a static backend finds the range of the activations on, above 0.
        mode: ``ptq`` or ``qat``.
        start_epoch: The epoch from which on ``qat`` rounds, at least 0; 1.5 is the middle of the second.
        max_drop: How much of the data's first metric may be lost, in the metric's own unit: 0.005 of an accuracy is
            half a point. Any loss unless given. Needs the extra ``torchao``.

    Raises:
        InputError: Before the first batch, if an extra is missing, the backend cannot take the student or be trained
            for, or training ends before ``start_epoch``; at the end of a fit, if the student loses more than
            ``max_drop``.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        export_dir: str | None = None,
        calibration_batches: int = 32,
        mode: Literal["ptq", "qat"] = "ptq",
        start_epoch: float = 0.0,
        max_drop: float | None = None,
    ) -> None:
        if calibration_batches < 1:
            raise expected("calibration_batches", "at least 1", calibration_batches)
        if not 0 <= start_epoch < float("inf"):
            raise expected("start_epoch", "at least 0", start_epoch)
        if max_drop is not None:
            check_range("max_drop", max_drop, 0)
        self.quantizer = quantizer
        self.mode = mode
        self.start_epoch = start_epoch
        self.export_dir = export_dir
        self.calibration_batches = calibration_batches
        self._started = self._rounds = False
        self.max_drop = max_drop
        #: The layers that ``max_drop`` kept in float.
        self.kept_float: list[str] = []
        #: Where the int8 model is, once it is written.
        self.folder: Path | None = None

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.quantizer.format}, {self.quantizer.name}, {self.export_dir}]"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.quantizer.check()
        if self.max_drop is not None:
            primitives("`max_drop`")
            if not hasattr(data_of(trainer), "evaluation_batches"):
                raise InputError("`max_drop` needs a data module of lightning_kd.datamodules.")
        folder = output_path(trainer, self.export_dir, "int8")
        if not is_trial(trainer):
            sources = cast(DistillationModule, pl_module).teacher_sources.values()
            check_output("export_dir", folder, (source.path for source in sources))
        for other in callbacks_of(trainer):
            if other is not self and isinstance(other, QuantizationCallback):
                if output_path(trainer, other.export_dir, "int8") == folder:
                    raise InputError(f"Two QuantizationCallbacks write to {folder}: give one of them an export_dir.")
                if self.mode == other.mode == "qat":
                    raise InputError("Two QuantizationCallbacks have mode: qat, but a student trains for one backend.")
        if self.mode == "qat":
            _ = self.quantizer.rounding  # or refuse
            if trainer.max_epochs == 0:
                raise expected("mode", "ptq, as nothing is trained", self.mode)
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.start_epoch:
                raise expected("start_epoch", f"below trainer.max_epochs, {trainer.max_epochs}", self.start_epoch)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = cast(DistillationModule, pl_module).model
        if self.mode == "qat" and model.dtype != torch.float32:  # scales in less would be others than the int8 model's
            raise InputError(
                f"The student's weights are {str(model.dtype).removeprefix('torch.')}, and `mode: qat` rounds float32: "
                "take trainer.precision: bf16-mixed, or 32-true, and leave model.student.dtype out."
            )
        self.quantizer.check_model(model)
        try_out(self.quantizer, model)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.mode == "qat" and not self._started:
            epoch = trainer.current_epoch + batch_idx / trainer.num_training_batches
            if epoch >= self.start_epoch:
                self._started = True
                self._round(pl_module, True)
                rank_zero_info(f"The student computes with the rounding of {self.quantizer.name} from now on")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.mode == "qat" and trainer.state.fn == TrainerFn.FITTING:
            self._round(pl_module, True)  # before the start, too: epochs have to be compared by the same metric

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._round(pl_module, self._started)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end(pl_module)

    def _end(self, module: L.LightningModule) -> None:
        self._started = False
        self._round(module, False)

    def _round(self, module: L.LightningModule, rounds: bool) -> None:
        if rounds != self._rounds:
            model = cast(DistillationModule, module).model
            if rounds:
                fake_quantize(model, self.quantizer.rounding)
            else:
                restore(model)
            self._rounds = rounds

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.export_dir, "int8")

        def write(partial: Path) -> None:
            model = best_student(trainer, pl_module)
            model.config.architectures = [type(model).__name__]
            model.config.lightning_kd_format = FORMAT
            model.config.save_pretrained(partial)
            save_tokenizer(trainer, partial)
            shown = trainer.progress_bar_callback is not None
            batches = Tracked(self._calibration(trainer, pl_module), "Calibrating", "batches", shown)
            if self.max_drop is None:
                self.quantizer.convert(model, batches, partial)
            else:
                self.kept_float = self._convert_within(self.max_drop, model, batches, partial, trainer, pl_module)
            write_card(trainer, pl_module, partial, folder.name, self.about())

        rank_zero_info(f"Quantizing the student with {self.quantizer.name}")
        on_rank_zero(trainer, lambda: write_folder(folder, write))
        self.folder = folder
        rank_zero_info(f"{self.quantizer.format.capitalize()} student: {folder}")

    def _convert_within(
        self,
        max_drop: float,
        model: PreTrainedModel,
        calibration: Sequence[dict[str, Any]],
        folder: Path,
        trainer: L.Trainer,
        module: DistillationModule,
    ) -> list[str]:
        """Write the model with as few layers in float as ``max_drop`` asks for; their names."""
        data, task = data_of(trainer), module.task
        name, split = data.metric_names[0], data.validation_splits[0]
        rows = data.evaluation_batches(split)
        sign = -1 if task.metrics([name], data.label_names)[name].higher_is_better is False else 1

        def score(forward: Forward) -> float:
            return sign * evaluate(forward, task, rows, [name], data.label_names).metrics[name].value

        reference = score(forward_of(model, task))
        order: list[str] = []
        written = 0

        def drop(layers: int) -> float:
            nonlocal written
            if layers and not order:
                rank_zero_info("Comparing layers: which of them, quantized alone, moves the logits most")
                batches = self._training_batches(trainer, module, _SENSITIVITY_BATCHES)
                order.extend(sensitive_layers(model, batches, self.quantizer.scheme))
            self.quantizer.convert(model, calibration, folder, order[:layers])
            written = layers
            lost = reference - score(self.quantizer.open(folder))
            kept = f" with {', '.join(order[:layers])} in float" if layers else ""
            rank_zero_info(f"{self.quantizer.name} loses {lost:.4f} of {name} on the {split} split{kept}")
            return lost

        most = max(1, len(quantizable_layers(model)) // 2)
        layers = fewest_in_float(drop, max_drop, most)
        if layers is None:
            raise InputError(
                f"The quantized student loses more {name} on the {split} split than max_drop, {max_drop:g}, even with "
                f"{most} of its layers in float, and is not written: allow more, take another quantizer or `mode: qat`."
            )
        if written != layers:
            self.quantizer.convert(model, calibration, folder, order[:layers])
        return order[:layers]

    def about(self) -> dict[str, str]:
        """The ``form`` of the weights with the backend, and ``how`` they were quantized."""
        how = [f"{type(self.quantizer).__name__}, {'while training' if self.mode == 'qat' else 'after training'}"]
        if self.quantizer.needs_calibration:
            how.append(f"calibrated on {self.calibration_batches} training batches")
        if self.kept_float:
            how.append(f"in float: {', '.join(self.kept_float)}")
        return {"form": f"{self.quantizer.format}, {self.quantizer.name}", "how": "; ".join(how)}

    def _calibration(self, trainer: L.Trainer, module: DistillationModule) -> list[dict[str, Any]]:
        if not self.quantizer.needs_calibration:
            return []
        return self._training_batches(trainer, module, self.calibration_batches)

    @staticmethod
    def _training_batches(trainer: L.Trainer, module: DistillationModule, count: int) -> list[dict[str, Any]]:
        data = data_of(trainer)
        if hasattr(data, "calibration_batches"):
            batches = data.calibration_batches(count)
        else:
            batches = list(islice(trainer.train_dataloader or [], count))
        return [module.task.model_inputs(batch) for batch in batches]
