"""Recurrent and convolutional students in int8: what each backend stores, what it predicts, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from lightning_kd import InputError, ModelSource
from lightning_kd.callbacks import QuantizationCallback
from lightning_kd.models import load_config, load_model
from lightning_kd.quantization import (
    DynamicInt8,
    Forward,
    ONNXRuntimeInt4,
    ONNXRuntimeInt8,
    OpenVINOInt8,
    Quantizer,
)
from lightning_kd.quantization.base import quantizable_layers
from tests.conftest import needs_extra
from tests.quantization.test_backends import READERS

SHAPES: dict[str, dict[str, Any]] = {
    "bilstm": {"model_type": "rnn", "cell": "lstm", "embedding_size": 24, "num_hidden_layers": 2},
    "lstm": {"model_type": "rnn", "cell": "lstm", "bidirectional": False, "pooling": "last"},
    "bigru": {"model_type": "rnn", "cell": "gru", "pooling": "last"},
    "cnn": {"model_type": "cnn", "embedding_size": 24, "kernel_sizes": [2, 3], "num_hidden_layers": 2},
}
HEADS = {"classes": AutoModelForSequenceClassification, "tags": AutoModelForTokenClassification}
WORDS = 400


def make(kind: str, head: str = "classes", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"vocab_size": WORDS, "hidden_size": 32, "initializer_range": 1.0, "num_labels": 4}
    source = ModelSource(from_scratch=True, config={**config, **SHAPES[kind], **changes})
    model = load_model(source, HEADS[head], load_config(source)).eval()
    model.config.architectures = [type(model).__name__]
    return model


def inputs(rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows of random tokens, every second of half the length, with the types that a BERT tokenizer writes."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1::2, max(1, length // 2) :] = 0
    ids = torch.randint(1, WORDS, (rows, length), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def convert(quantizer: Quantizer, model: PreTrainedModel, folder: Path, keep_float: list[str] | None = None) -> Forward:
    needs_extra(quantizer)
    batches = [inputs(8, length, seed=100 + length) for length in (5, 8, 12)]
    folder.mkdir()
    quantizer.convert(model, batches if quantizer.needs_calibration else [], folder, keep_float or [])
    model.config.save_pretrained(folder)
    return quantizer.open(folder)


def distance(forward: Forward, model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """How far the logits of real tokens, or of rows, are from the float ones, as a share of those."""
    with torch.no_grad():
        exact = model(**batch).logits
    found = forward(batch)["logits"]
    assert found.shape == exact.shape and found.dtype == torch.float32
    if exact.ndim == 3:
        mask = batch["attention_mask"].bool()
        exact, found = exact[mask], found[mask]
    return ((found - exact).norm() / exact.norm()).item()


WORKS = [
    *((DynamicInt8(), kind) for kind in SHAPES),
    *((ONNXRuntimeInt8(), kind) for kind in ("bilstm", "lstm", "cnn")),
    (OpenVINOInt8(), "cnn"),
    (ONNXRuntimeInt8("static"), "cnn"),
    (ONNXRuntimeInt4(), "cnn"),
    (OpenVINOInt8("float"), "cnn"),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("quantizer", "kind"), WORKS, ids=lambda value: getattr(value, "name", value))
def test_predicts_what_the_float_model_predicts(quantizer: Quantizer, kind: str, head: str, tmp_path: Path) -> None:
    """Stops gates in another backend's order, a graph bound to the length that it was traced with, read padding."""
    model = make(kind, head)
    forward = convert(quantizer, model, tmp_path / "int8")
    close = 0.3 if quantizer.format == "int4" else 0.1
    for rows, length in ((1, 2), (3, 7), (4, 16), (2, 41)):
        assert distance(forward, model, inputs(rows, length, seed=length)) < close
    batch = inputs(4, 6, seed=3)
    other = {**batch, "input_ids": batch["input_ids"] + 7 * (1 - batch["attention_mask"])}
    assert distance(forward, model, other) < close
    before = {name: tuple(p.shape) for name, p in make(kind, head).named_parameters()}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == before, "the model is as it was"


@pytest.mark.parametrize(
    ("quantizer", "kind"), [pair for pair in WORKS if type(pair[0]) in READERS and pair[0].format == "int8"],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_every_matrix_is_stored_in_8_bits(quantizer: Quantizer, kind: str, tmp_path: Path) -> None:
    """Stops an int8 folder whose gates, windows or embeddings are float."""
    model = make(kind)
    convert(quantizer, model, tmp_path / "int8")
    found = READERS[type(quantizer)](tmp_path / "int8")
    weights = [p.numel() for name, p in model.named_parameters() if "weight" in name]
    scales = max(WORDS, 2 * 4 * 32)  # of the table's rows; of both matrices' gates
    assert sum(size for size, is_int8 in found.values() if is_int8) >= sum(weights)
    assert [name for name, (size, is_int8) in found.items() if not is_int8 and size > scales] == []


@pytest.mark.parametrize("quantizer", [DynamicInt8(), ONNXRuntimeInt8()], ids=lambda q: q.name)
def test_recurrent_layers_can_stay_in_float(quantizer: Quantizer, tmp_path: Path) -> None:
    """Stops an LSTM that suffers from being rounded all the same, and an error where it is to be kept."""
    model, batch = make("bilstm"), inputs(4, 9, seed=5)
    everything = quantizable_layers(model)
    assert sum(isinstance(model.get_submodule(name), nn.LSTM) for name in everything) == 4
    assert distance(convert(quantizer, model, tmp_path / "all", everything), model, batch) < 1e-5
    one = everything[2]
    found = {}
    for name, kept in (("one", [one]), ("none", [])):
        convert(quantizer, model, tmp_path / name, kept)
        tensors = READERS[type(quantizer)](tmp_path / name)
        found[name] = sum(size for size, is_int8 in tensors.values() if is_int8)
    gates = sum(p.numel() for name, p in model.get_submodule(one).named_parameters() if "weight" in name)
    assert gates <= found["none"] - found["one"] <= gates + 512  # and its zero points


REFUSED = [
    (ONNXRuntimeInt8(), "bigru", "GRU", "take DynamicInt8, or a student with cell: lstm."),
    (ONNXRuntimeInt8("static"), "bigru", "GRU", "take DynamicInt8; or activations: dynamic, with LSTM alone."),
    (ONNXRuntimeInt8("static"), "lstm", "LSTM", "take DynamicInt8; or activations: dynamic, with LSTM alone."),
    (ONNXRuntimeInt4(), "lstm", "LSTM", "take DynamicInt8."),
    (OpenVINOInt8(), "bigru", "GRU", "take DynamicInt8, or ONNXRuntimeInt8 for LSTM."),
    (OpenVINOInt8("float"), "lstm", "LSTM", "take DynamicInt8, or ONNXRuntimeInt8 for LSTM."),
]


@pytest.mark.parametrize(("quantizer", "kind", "layer", "way_out"), REFUSED, ids=lambda v: getattr(v, "name", v))
def test_what_would_stay_in_float_is_refused(
    quantizer: Quantizer, kind: str, layer: str, way_out: str, tmp_path: Path
) -> None:
    """Stops a folder that is called int8 and computes its recurrent layers in float."""
    with pytest.raises(InputError) as error:
        quantizer.check_model(make(kind))
    assert str(error.value) == (
        f"{type(quantizer).__name__} ({quantizer.name}) cannot quantize {layer} layers such as "
        f"encoder.layers.0.forwards: {way_out}"
    )
    with pytest.raises(InputError, match="cannot quantize"):
        convert(quantizer, make(kind), tmp_path / "int8")


def test_it_is_refused_before_the_first_batch(
    glue: Callable[..., Any], make_trainer: Callable[..., Any], distillation: Callable[..., Any]
) -> None:
    """Stops an hour of training for a student that its backend cannot take."""
    callback = QuantizationCallback(OpenVINOInt8())
    source = ModelSource(from_scratch=True, config={"model_type": "rnn", "cell": "gru", "hidden_size": 8})
    trainer = make_trainer(callbacks=[callback])
    with pytest.raises(InputError, match="cannot quantize GRU layers"):
        trainer.fit(distillation(student=source), datamodule=glue())
    assert trainer.global_step == 0


def test_a_graph_says_nothing_of_the_length_that_it_was_traced_with(tmp_path: Path) -> None:
    """Stops ONNX Runtime from warning of every batch that is not 16 tokens long."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    convert(ONNXRuntimeInt8(), make("bilstm", "tags"), tmp_path / "int8")
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    sizes = [[d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in graph.output]
    assert sizes == [["batch", "length", 4]]
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("DynamicQuantizeLSTM") == 4 and "LSTM" not in kinds
    assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in graph.initializer)
