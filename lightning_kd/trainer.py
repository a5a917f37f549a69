"""`lightning-kd quantize`, `analyze` and `prune`: what a trained model can do without."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.callbacks import QuantizationCallback
from lightning_kd.callbacks._fit_end import callbacks_of, check_output, write_folder
from lightning_kd.compatibility import check_labels
from lightning_kd.cutting import check_prunable, named_tokens, reduce_embeddings
from lightning_kd.describe import parts_of, table_of
from lightning_kd.folders import FORMAT
from lightning_kd.labels import label_names_of, order_outputs
from lightning_kd.measure import evaluate
from lightning_kd.models import ModelSource, freeze, load_config, load_trained
from lightning_kd.models import keep_layers as keep
from lightning_kd.module import DistillationModule
from lightning_kd.pruning import Shape, importance, narrow, search_layers
from lightning_kd.quantization.analysis import Activations, Granularity, QuantizationScheme, analyze
from lightning_kd.quantization.analysis_report import draw_heat_map, print_worst, write_csv
from lightning_kd.runner import forward_of
from lightning_kd.tasks import Task
from lightning_kd.vocabulary import compare, kept_tokens, save_reduced

__all__ = ["CompressionTrainer"]


class CompressionTrainer(L.Trainer):
    """Lightning's trainer with three more things to run, which the command line offers as subcommands."""

    #: What was typed to start it; None of a run from Python.
    command: str | None = None

    def quantize(
        self, model: DistillationModule, datamodule: L.LightningDataModule, student: str | None = None
    ) -> None:
        """Quantize a trained model as it is, and measure it: a fit in which nothing is trained.

        Every ``QuantizationCallback`` writes its folder, and the report has the model beside what became of it and its
        ``baselines``. Training rows serve calibration alone.

        Args:
            model: For its task, and for where the trained model is unless ``student`` names it.
            datamodule: Of :mod:`lightning_kd.datamodules`: what to calibrate and to measure on.
            student: Folder or Hub name of the trained model; ``model.student.path`` unless given.

        Raises:
            InputError: If the model is not trained for the task, or no callback quantizes.
        """
        _check_data(datamodule, "quantize")
        if student is not None:
            model.student_source = ModelSource(student)
            load_config(model.student_source, "student")
            cast(Any, datamodule).tokenizer_source = student
        for name in ("from_scratch", "keep_layers", "embeddings_from"):
            if value := getattr(model.student_source, name):
                way_out = "Or name the trained model: `--student`."
                raise expected(f"model.student.{name}", "left out, as nothing is trained", value, way_out)
        if not any(isinstance(callback, QuantizationCallback) for callback in callbacks_of(self)):
            raise InputError(
                "`quantize` needs a QuantizationCallback among trainer.callbacks: "
                "--trainer.callbacks+=QuantizationCallback --trainer.callbacks.quantizer=DynamicInt8."
            )
        epochs, self.fit_loop.max_epochs = self.fit_loop.max_epochs, 0
        try:
            self.fit(model, datamodule=datamodule)
        finally:
            self.fit_loop.max_epochs = epochs

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
        _check_data(datamodule, "analyze")
        folder = Path(student or Path(self.default_root_dir) / "student")
        if not (folder / "config.json").is_file():
            raise expected("student", "the folder of a float student", str(folder), "Run `fit` first.")
        trained = load_trained(ModelSource(str(folder)), model.task.auto_class, "student")
        data: Any = datamodule
        data.tokenizer_source = str(folder)
        data.prepare_data()
        data.setup("fit")
        _take_labels(trained, data)
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

    def prune(
        self,
        model: DistillationModule,
        datamodule: L.LightningDataModule,
        student: str | None = None,
        keep_layers: list[int] | None = None,
        num_layers: int | None = None,
        intermediate_size: int | None = None,
        hidden_size: int | None = None,
        num_attention_heads: int | None = None,
        vocabulary: bool = False,
        min_count: int = 1,
        importance_batches: int = 32,
        path: str | None = None,
    ) -> None:
        """Write a smaller student: some layers, neurons, dimensions and tokens of a trained model, as a plain folder.

        What stays of a layer is what its loss on training batches depends on most, to first order (Michel et al. 2019,
        Molchanov et al. 2017). The folder is what a distillation then names as its student. On the CPU.

        Args:
            model: For its task, and for where the trained model is unless ``student`` names it.
            datamodule: Of :mod:`lightning_kd.datamodules`.
            student: Folder of the trained model; ``model.student.path`` unless given.
            keep_layers: The transformer layers to keep, 0 being the first, in the order given; all unless given.
            num_layers: How many to keep instead, 1 or more: layers are dropped one by one, each time the one without
                which the loss on ``importance_batches`` training batches is lowest.
            intermediate_size: Feed-forward neurons to keep in each layer.
            hidden_size: Dimensions of the residual stream to keep, a multiple of the size of a head.
            num_attention_heads: Heads to keep in each layer; follows from ``hidden_size``.
            vocabulary: Keep the tokens of the training texts alone, and all single characters.
            min_count: With ``vocabulary``, how often a token stands in the training texts to be kept, 1 or more.
            importance_batches: Training batches that importance and the losses of layers are measured on, above 0.
            path: The folder; ``<trainer.default_root_dir>/pruned`` unless given. What stands there is replaced.

        Raises:
            InputError: If there is no trained model, its kind cannot be cut, or a value is out of its range.
        """
        shape = Shape(intermediate_size, hidden_size, num_attention_heads)
        for name, value in (("min_count", min_count), ("importance_batches", importance_batches)):
            if value < 1:
                raise expected(name, "at least 1", value)
        if keep_layers is not None and num_layers is not None:
            raise InputError("Both keep_layers and num_layers say which layers stay: leave one of them out.")
        _check_data(datamodule, "prune")
        if keep_layers is None and num_layers is None and shape == Shape() and not vocabulary:
            raise InputError(
                "Nothing to prune: give keep_layers, num_layers, intermediate_size, hidden_size or vocabulary: true."
            )
        given, role = (ModelSource(student), "student") if student else (model.student_source, "model.student")
        source = given.path
        if source is None:
            raise expected("student", "the folder of a trained model", "nothing", "Give it, or model.student.path.")
        folder = Path(path or Path(self.default_root_dir) / "pruned")
        if folder.resolve() == Path(source).resolve():
            raise expected("path", "another folder than the trained model's", str(folder))
        check_output("path", folder, [source])
        trained = load_trained(given, model.task.auto_class, role)
        check_prunable(trained)
        shape.check(trained)
        depth = trained.config.num_hidden_layers
        if num_layers is not None and not 1 <= num_layers <= depth:
            raise expected("num_layers", f"from 1 to {depth}, which the model has", num_layers)
        data, again = cast(Any, datamodule), copy.deepcopy(cast(Any, datamodule))
        data.tokenizer_source = source
        data.prepare_data()
        data.setup("fit")
        _take_labels(trained, data)
        task = model.task.with_config(trained.config)
        smaller, layers = trained, list(range(depth))
        if num_layers is not None:
            batches = data.calibration_batches(importance_batches)
            for keep_layers, loss in search_layers(trained, task, batches, num_layers):
                rank_zero_info(f"Loss of the layers {keep_layers} on {len(batches)} training batches: {loss:.4f}")
        if keep_layers is not None:
            smaller, layers = keep(trained, keep_layers), keep_layers
        if shape != Shape():
            rank_zero_info(f"Measuring what matters on {importance_batches} training batches")
            scores = importance(trained, task, data.calibration_batches(importance_batches))
            smaller = narrow(smaller, shape, scores.of_layers(layers))
        tokenizer = data.read_tokenizer("student", source)
        kept = _kept_tokens(data, trained, min_count) if vocabulary else []
        if vocabulary:
            smaller = reduce_embeddings(smaller, kept)

        def write(partial: Path) -> None:
            smaller.save_pretrained(partial)
            if vocabulary:
                save_reduced(tokenizer, kept, partial)
            else:
                tokenizer.save_pretrained(partial)

        smaller.config.lightning_kd_format = FORMAT
        write_folder(folder, write)
        if vocabulary:
            reduced = again.read_tokenizer("path", str(folder))
            for split in ("train", data.validation_splits[0]):
                rank_zero_info(f"{split}: {compare(tokenizer, reduced, _texts(data, split))}")
        again.tokenizer_source = str(folder)
        again.setup("validate")
        rank_zero_info(f"Measuring both on the {data.validation_splits[0]} split")
        measured = {"before": (trained, data), "after": (freeze(smaller), again)}
        titles = {f"{when}: {_score(m, task, rows)}": parts_of(m) for when, (m, rows) in measured.items()}
        Console().print(table_of(titles))
        rank_zero_info(f"Pruned: {folder}")


def _take_labels(trained: PreTrainedModel, data: Any) -> None:
    """Refuse a model of other labels than the data's, and put its outputs into their order."""
    check_labels("the trained model", trained.config, data.label_names)
    order_outputs(trained, label_names_of(trained.config), data.label_names, "the trained model")


def _check_data(datamodule: L.LightningDataModule, subcommand: str) -> None:
    if not hasattr(datamodule, "evaluation_batches"):
        raise InputError(f"`{subcommand}` needs a data module of lightning_kd.datamodules, of one task.")


def _texts(data: Any, split: str) -> list[str]:
    """All texts of a split, words with a space between them."""
    return [text if isinstance(text, str) else " ".join(text) for row in data.texts(split) for text in row]


def _kept_tokens(data: Any, model: PreTrainedModel, min_count: int) -> list[int]:
    """The tokens that the training rows need, and those that the model itself refers to."""
    counts = np.zeros(model.config.vocab_size, dtype=np.int64)
    for batch in data.evaluation_batches("train"):
        read = batch["input_ids"][batch["attention_mask"].bool()]
        counts += np.bincount(read.numpy(), minlength=len(counts))
    return kept_tokens(data.tokenizer, counts, _texts(data, "train"), min_count, named_tokens(model))


def _score(model: PreTrainedModel, task: Task, data: Any) -> str:
    """The data's first metric on the validation split, in words."""
    name, rows = data.metric_names[0], data.evaluation_batches(data.validation_splits[0])
    found = evaluate(forward_of(model, task), task, rows, [name], data.label_names).metrics[name]
    return f"{name} {found.value:.4f} ± {found.standard_error:.4f}"
