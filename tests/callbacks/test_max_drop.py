"""What a QuantizationCallback keeps in float when int8 loses too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.optim import AdamW
from lightning_kd.quantization import (
    DynamicInt8,
    Forward,
    ONNXRuntimeInt4,
    ONNXRuntimeInt8,
    OpenVINOInt8,
    Quantizer,
    TorchAO,
)
from lightning_kd.quantization.analysis import QuantizationScheme
from lightning_kd.quantization.base import quantizable_layers
from lightning_kd.quantization.guard import fewest_in_float, sensitive_layers
from tests.conftest import WORDS, needs_extra

Make = Callable[..., Any]


def make_fragile(model: BertForSequenceClassification, *layers: str) -> None:
    """Give linear layers one huge weight in each row, which only ever meets a 0: in 8 bits it takes all the others.

    The 0 comes from the layer before: the pooler's first output for the classifier, the activations' for the pooler.
    """
    with torch.no_grad():
        if "classifier" in layers:
            model.bert.pooler.dense.weight[0] = 0
            model.bert.pooler.dense.bias[0] = 0
            model.classifier.weight[:, 0] = 1e4
        if "bert.pooler.dense" in layers:
            norm = model.bert.encoder.layer[-1].output.LayerNorm
            norm.weight[0] = norm.bias[0] = 0
            model.bert.pooler.dense.weight[1:, 0] = 1e4


@pytest.fixture
def fragile(tmp_path: Path, tiny_model: Make, write_glue: Make) -> Callable[..., tuple[DistillationModule, Any]]:
    """A module that learns nothing, and data whose labels are what its model says: its accuracy is 1 in float."""

    def make(*layers: str) -> tuple[DistillationModule, GLUEDataModule]:
        folder = tmp_path / "model"
        plain = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = AutoModelForSequenceClassification.from_pretrained(plain)
        make_fragile(model, *layers)
        tokenizer = AutoTokenizer.from_pretrained(plain)
        generator = np.random.default_rng(0)
        texts = [" ".join(generator.choice(WORDS, length)) for length in generator.integers(2, 9, 120)]
        with torch.no_grad():
            scores = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.diff()[:, 0]
            model.classifier.bias[1] -= scores.median()  # as many of one label as of the other
        labels = (scores > scores.median()).long().tolist()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        rows = {"sentence": texts, "label": labels, "idx": list(range(120))}
        data = write_glue({"sst2": {"train": rows, "validation": rows}})
        module = DistillationModule(ModelSource(str(folder)), optimizer=_still)
        return module, GLUEDataModule("sst2", str(data), str(folder), batch_size=8)

    return make


def _model(module: DistillationModule) -> BertForSequenceClassification:
    model: BertForSequenceClassification = AutoModelForSequenceClassification.from_pretrained(
        module.student_source.path
    )
    return model.eval()


def _still(params: Any) -> AdamW:
    return AdamW(params, lr=0.0)


@pytest.mark.parametrize("backend", [DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8], ids=lambda b: b.__name__)
def test_the_fragile_layer_alone_stays_in_float(
    backend: type[Quantizer], fragile: Make, make_trainer: Make, log: pytest.LogCaptureFixture
) -> None:
    """Stops a guard that leaves more in float than it must, or another layer than the one that costs the metric."""
    quantizer = backend()
    needs_extra(quantizer)
    module, data = fragile("classifier")
    callback = QuantizationCallback(quantizer, max_drop=0.1, calibration_batches=4)
    report = CompressionReport()
    make_trainer(callbacks=[StudentExport(), callback, report]).fit(module, datamodule=data)
    assert callback.kept_float == ["classifier"] and callback.folder is not None
    assert f"{quantizer.name} loses" in log.text and "with classifier in float" in log.text
    predicted = [
        record["label"] for record in Runner.open(callback.folder).predict([t for (t,) in data.texts("train")])
    ]
    truth = [data.label_names[i] for i in data._rows["train"].labels]
    assert np.mean([p == t for p, t in zip(predicted, truth, strict=True)]) >= 0.9
    assert report.report is not None
    float_row, int8_row = report.report.rows
    assert int8_row.kept_float == ("classifier",) and float_row.kept_float == ()
    assert float_row.metrics["validation"]["accuracy"].value == 1
    assert int8_row.metrics["validation"]["accuracy"].value >= 0.9
    folder = Path(report.path or callback.folder.parent)
    assert "kept in float: classifier" in (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["rows"][1]["kept_float"] == ["classifier"]


def test_a_student_that_loses_little_has_nothing_in_float(fragile: Make, make_trainer: Make) -> None:
    """Stops a guard that keeps layers in float where nothing is lost."""
    module, data = fragile()
    callback = QuantizationCallback(DynamicInt8(), max_drop=0.1)
    make_trainer(callbacks=[callback]).fit(module, datamodule=data)
    assert callback.kept_float == [] and callback.folder is not None
    state = load_file(callback.folder / DynamicInt8.file_name)
    assert state["classifier.weight"].dtype == torch.int8


def test_what_cannot_be_kept_ends_the_fit(fragile: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a folder that loses more than is allowed from standing under the final name, and a lost float student."""
    module, data = fragile("classifier")

    class Worthless(DynamicInt8):
        def convert(self, model: Any, calibration: Any, folder: Path, keep_float: Any = ()) -> None:
            super().convert(model, calibration, folder)  # and leaves nothing in float

    callbacks = [StudentExport(), QuantizationCallback(Worthless(), max_drop=0.01)]
    trainer = make_trainer(callbacks=callbacks, default_root_dir=tmp_path / "run")
    with pytest.raises(InputError, match=r"loses more accuracy .* than max_drop, 0.01, even with \d+ of its layers"):
        trainer.fit(module, datamodule=data)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["student"]
    assert len(Runner.open(tmp_path / "run" / "student").predict(["ba"])) == 1


def test_groups_that_do_not_fit_are_compared_by_channel(fragile: Make, make_trainer: Make) -> None:
    """Stops a limit on 4 bits from ending a fit in an error where a layer's width is no multiple of the block."""
    module, data = fragile("classifier")
    quantizer = ONNXRuntimeInt4(block_size=16)
    needs_extra(quantizer)
    assert {16, 24} <= {m.weight.shape[1] for m in _model(module).modules() if isinstance(m, torch.nn.Linear)}
    callback = QuantizationCallback(quantizer, max_drop=0.3)
    make_trainer(callbacks=[callback]).fit(module, datamodule=data)
    assert "classifier" in callback.kept_float


def test_a_model_that_cannot_be_quantized_is_refused_before_training(fragile: Make, make_trainer: Make) -> None:
    """Stops a training of hours from ending in a group size that does not fit."""
    module, data = fragile()
    quantizer = TorchAO("int4", group_size=64)
    needs_extra(quantizer)
    trainer = make_trainer(callbacks=[QuantizationCallback(quantizer)])
    with pytest.raises(InputError, match=r"`group_size` to be a divisor of the 16 columns of bert\.embeddings"):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 0


@pytest.mark.parametrize("needed", [0, 3, 4, 7])
def test_what_is_written_is_what_was_found(needed: int, fragile: Make, make_trainer: Make) -> None:
    """Stops the folder from being that of the last attempt, which may be one that lost too much."""
    asked: list[list[str]] = []

    class Asked(DynamicInt8):
        """Predicts as the float model does once enough layers are in float."""

        def convert(self, model: Any, calibration: Any, folder: Path, keep_float: Any = ()) -> None:
            asked.append(list(keep_float))
            super().convert(model, calibration, folder, quantizable_layers(model))

        @classmethod
        def open(cls, folder: Path, threads: int | None = None) -> Forward:
            forward = super().open(folder, threads)
            sign = 1 if len(asked[-1]) >= needed else -1
            return lambda inputs: {name: sign * value for name, value in forward(inputs).items()}

    module, data = fragile()
    callback = QuantizationCallback(Asked(), max_drop=0.1)
    make_trainer(callbacks=[callback]).fit(module, datamodule=data)
    assert len(callback.kept_float) == needed and asked[-1] == callback.kept_float


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_max_drop_is_checked(value: float) -> None:
    """Stops a limit that nothing can break, or nothing can keep."""
    with pytest.raises(InputError, match="`max_drop` to be a finite number, 0 or more"):
        QuantizationCallback(DynamicInt8(), max_drop=value)


def test_a_missing_extra_is_said_before_training(
    distillation: Make, glue: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a training of hours from ending for want of a package."""
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    callback = QuantizationCallback(DynamicInt8(), max_drop=0.1)
    with pytest.raises(
        InputError, match=r"`max_drop` needs the package torchao: pip install 'lightning-kd\[torchao\]'"
    ):
        make_trainer(callbacks=[callback]).fit(distillation(), datamodule=glue())


def test_the_most_sensitive_layers_come_first(fragile: Make) -> None:
    """Stops an order by name or by size; both fragile layers lead, and the model is as it was."""
    module, data = fragile("classifier", "bert.pooler.dense")
    data.setup("fit")
    model = _model(module)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [module.task.model_inputs(batch) for batch in data.calibration_batches(3)]
    order = sensitive_layers(model, batches, QuantizationScheme(8))
    assert set(order[:2]) == {"classifier", "bert.pooler.dense"}
    assert sorted(order) == sorted(quantizable_layers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("needed", range(9))
def test_the_fewest_are_found(needed: int) -> None:
    """Stops a search that overshoots, gives up one too early, or quantizes the same student twice."""
    asked: list[int] = []

    def drop(layers: int) -> float:
        assert layers not in asked
        asked.append(layers)
        return 0.0 if layers >= needed else 1.0

    assert fewest_in_float(drop, 0.5, 7) == (needed if needed <= 7 else None)
    assert max(asked) <= 7
