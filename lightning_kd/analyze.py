"""`lightning-kd analyze`: which layers of a student stand how few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.measure import evaluate
from lightning_kd.models import ModelSource, load_trained
from lightning_kd.module import DistillationModule
from lightning_kd.quantization.analysis import Activations, Granularity, QuantizationScheme, analyze
from lightning_kd.quantization.analysis_report import draw_heat_map, print_worst, write_csv
from lightning_kd.runner import forward_of

__all__ = ["AnalyzingTrainer"]


class AnalyzingTrainer(L.Trainer):
    """Lightning's trainer with one more thing to run, which the command line offers as a subcommand."""

    def analyze(
        self,
        model: DistillationModule,
        datamodule: L.LightningDataModule,
        student: str | None = None,
        bits: list[int] | None = None,
        symmetric: bool = True,
        granularity: Granularity = "channel",
        group_size: int = 32,
        activations: Activations = "float",
        calibration_batches: int = 4,
        path: str | None = None,
    ) -> None:
        """Quantize each layer of an exported student by itself: its error, and the metric on the validation split.

        Needs the extra ``torchao``. Prints the costliest layers and writes ``analysis.csv`` and ``analysis.png``. On
        the CPU.

        Args:
            model: For its task alone.
            datamodule: Of :mod:`lightning_kd.datamodules`.
            student: Folder of the float student; ``<trainer.default_root_dir>/student`` unless given.
            bits: Bits of a weight, each from 2 to 8; all of these unless given.
            symmetric: Whether the zero point is 0.
            granularity: What shares a scale.
            group_size: Weights that share a scale with ``granularity: group``.
            activations: What goes into ``Linear`` layers: float, or 8 bits with the range of each batch (dynamic) or
                that of the calibration batches (static).
            calibration_batches: Training batches to run the layers on, above 0.
            path: Folder of the two files; ``<trainer.default_root_dir>/analysis`` unless given.

        Raises:
            InputError: If the extra or the student is missing, or a value is out of its range.
        """
        schemes = [QuantizationScheme(b, symmetric, granularity, group_size, activations) for b in bits or range(2, 9)]
        if calibration_batches < 1:
            raise expected("calibration_batches", "at least 1", calibration_batches)
        if not hasattr(datamodule, "evaluation_batches"):
            raise InputError("`analyze` needs a data module of lightning_kd.datamodules.")
        folder = Path(student or Path(self.default_root_dir) / "student")
        if not (folder / "config.json").is_file():
            raise expected("student", "the folder of a float student", str(folder), "Run `fit` first.")
        trained = load_trained(ModelSource(str(folder)), model.task.auto_class, "student")
        data: Any = datamodule
        data.tokenizer_source = str(folder)
        data.prepare_data()
        data.setup("fit")
        task, name, split = model.task, data.metric_names[0], data.validation_splits[0]
        rows = data.evaluation_batches(split)
        batches = [task.model_inputs(batch) for batch in data.calibration_batches(calibration_batches)]

        def score(changed: nn.Module) -> tuple[float, np.ndarray]:
            done = evaluate(forward_of(cast(PreTrainedModel, changed), task), task, rows, [name], data.label_names)
            return done.metrics[name].value, done.samples[name]

        metric = task.metrics([name], data.label_names)[name]
        rank_zero_info(f"Analyzing {folder}: {name} on {data.sizes[split]:,} rows, for each layer and number of bits")
        found = analyze(trained, schemes, batches, score, metric.higher_is_better is not False)
        out = Path(path or Path(self.default_root_dir) / "analysis")
        out.mkdir(parents=True, exist_ok=True)
        write_csv(found, out / "analysis.csv")
        draw_heat_map(found, out / "analysis.png", name)
        print_worst(found, name)
        rank_zero_info(f"Analysis: {out / 'analysis.csv'}, and analysis.png beside it")
