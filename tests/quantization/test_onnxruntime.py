"""What ONNX Runtime's backends share and choose: layers in float, ranges from calibration, 4 bits."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError
from lightning_kd.quantization import Quantizer
from lightning_kd.quantization.base import quantizable_layers
from lightning_kd.quantization.fake_quantize import fake_quantize
from lightning_kd.quantization.onnx_export import export, quiet
from lightning_kd.quantization.onnxruntime import ONNXRuntimeInt4, ONNXRuntimeInt8
from tests.quantization.test_backends import PLAIN, fresh_process, inputs, train

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="needs the extra onnx")
import onnx  # noqa: E402  # once it is known to be there

once = pytest.mark.usefixtures("traced_once")

QUANTIZERS: dict[str, Quantizer] = {
    "dynamic": ONNXRuntimeInt8(),
    "static": ONNXRuntimeInt8("static"),
    "int4": ONNXRuntimeInt4(),
}
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS.keys())
#: A layer that shares its input with others, and the largest table.
LAYERS = {
    "bert": ["bert.encoder.layer.0.attention.self.key", "bert.embeddings.word_embeddings"],
    "distilbert": ["distilbert.transformer.layer.0.attention.k_lin", "distilbert.embeddings.word_embeddings"],
}


@pytest.fixture(scope="module")
def exports() -> Callable[[PreTrainedModel], Any]:
    """Each model is traced once: tracing takes seconds, and quantizing what was traced does not."""
    known = dict[PreTrainedModel, Any]()

    def cached(model: PreTrainedModel) -> Any:
        if model not in known:
            known[model] = export(model)
        return copy.deepcopy(known[model])

    return cached


@pytest.fixture
def traced_once(exports: Callable[[PreTrainedModel], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_kd.quantization.onnxruntime.export", exports)


@pytest.fixture(scope="module", params=LAYERS)
def trained(request: pytest.FixtureRequest) -> PreTrainedModel:
    return train(request.param)


def untrained(model_type: str, **shape: Any) -> PreTrainedModel:
    """Small, and dull: for what does not depend on the weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=60, max_position_embeddings=32, num_labels=2, **shape)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return untrained("distilbert", dim=32, n_layers=1, n_heads=2, hidden_dim=64)


@pytest.fixture(scope="module")
def narrow() -> PreTrainedModel:
    return untrained("distilbert", dim=40, n_layers=1, n_heads=2, hidden_dim=72)


@pytest.fixture(scope="module")
def albert() -> PreTrainedModel:
    shape = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return untrained("albert", num_hidden_layers=2, **shape)


def convert(
    quantizer: Quantizer, model: PreTrainedModel, folder: Path, keep_float: list[str] | None = None
) -> onnx.GraphProto:
    """Write a model and read its graph; calibration batches differ in length, as those of a training do."""
    batches = [inputs(model.config.model_type, 8, length, seed=100 + length) for length in (5, 12, 8)]
    folder.mkdir(exist_ok=True)
    quantizer.convert(model, batches if quantizer.needs_calibration else [], folder, keep_float or [])
    return onnx.load(folder / "model.onnx").graph


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def sqnr(exact: Tensor, rounded: Tensor) -> float:
    """In dB."""
    return float(20 * (exact.norm() / (exact - rounded).norm()).log10())


def layers_in_float(model: PreTrainedModel, graph: onnx.GraphProto) -> set[str]:
    """The layers whose very weights stand in the graph, as they are or transposed."""
    tensors = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in quantizable_layers(model)}
    return {
        name
        for name, weight in weights.items()
        if any(np.array_equal(tensor, weight) or np.array_equal(tensor, weight.T) for tensor in tensors)
    }


@once
@each_quantizer
@pytest.mark.parametrize("which", [0, 1], ids=["linear", "embedding"])
def test_the_layers_to_keep_and_no_others_stay_in_float(
    quantizer: Quantizer, which: int, trained: PreTrainedModel, tmp_path: Path
) -> None:
    """Stops a wrong node from being left out: the graph opens, and the layer that suffers is rounded all the same."""
    name = LAYERS[trained.config.model_type][which]
    graph = convert(quantizer, trained, tmp_path, [name])
    assert layers_in_float(trained, graph) == {name}
    batch = inputs(trained.config.model_type, 60, 9, seed=7)
    assert sqnr(logits(trained, batch), quantizer.open(tmp_path)(batch)["logits"]) > 15


@once
@each_quantizer
def test_with_all_layers_in_float_it_is_the_float_model(
    quantizer: Quantizer, trained: PreTrainedModel, tmp_path: Path
) -> None:
    """Stops products of activations, or what goes into a layer in float, from being rounded where no weight is."""
    names = quantizable_layers(trained)
    graph = convert(quantizer, trained, tmp_path, names)
    assert layers_in_float(trained, graph) == set(names)
    batch = inputs(trained.config.model_type, 8, 9, seed=7)
    exact = logits(trained, batch)
    torch.testing.assert_close(quantizer.open(tmp_path)(batch)["logits"], exact, rtol=0, atol=1e-5)


@once
@each_quantizer
def test_a_layer_that_the_graph_does_not_have_is_refused(
    quantizer: Quantizer, small: PreTrainedModel, tmp_path: Path
) -> None:
    """Stops a layer that was asked for in float from being quantized in silence."""
    with pytest.raises(InputError, match=r"ONNX Runtime cannot keep the layer distilbert\.pooler in float"):
        convert(quantizer, small, tmp_path, ["distilbert.pooler"])


@once
@each_quantizer
def test_a_layer_that_is_called_twice(quantizer: Quantizer, albert: PreTrainedModel, tmp_path: Path) -> None:
    """Stops the second call of ALBERT's layer from being quantized where the first is not, or written once more."""
    name = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query"
    graph = convert(quantizer, albert, tmp_path, [name])
    assert layers_in_float(albert, graph) == {name}
    tensors = [tensor.name for tensor in graph.initializer]
    assert len(tensors) == len(set(tensors))
    batch = inputs("albert", 4, 9)
    assert sqnr(logits(albert, batch), quantizer.open(tmp_path)(batch)["logits"]) > 10


def test_a_table_that_is_read_as_a_whole_is_in_float_anyway(tmp_path: Path) -> None:
    """Stops the search for layers to keep from failing on one that no backend quantizes, after hours of training."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    model = untrained("deberta-v2", norm_rel_ebd="layer_norm", share_att_key=True, **shape, **relative)
    name = "deberta.encoder.rel_embeddings"
    assert name in quantizable_layers(model)
    assert layers_in_float(model, convert(ONNXRuntimeInt8(), model, tmp_path, [name])) == {name}


def test_tracing_makes_the_same_graph_twice_and_leaves_the_model_alone(small: PreTrainedModel) -> None:
    """Stops names drawn at random, and a student that is changed by its conversion."""
    state, config = copy.deepcopy(small.state_dict()), small.config.to_dict()
    modes = [module.training for module in small.modules()]
    with quiet():
        one, two = (export(small).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
    assert small.config.to_dict() == config and [module.training for module in small.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


@once
@each_quantizer
def test_it_writes_the_same_bytes_twice_and_nothing_else(
    quantizer: Quantizer, small: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a report that cannot be repeated, files beside the model, and paths of the machine that made it."""
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for folder in ("one", "two"):
        convert(quantizer, small, tmp_path / folder)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.onnx"]
    written = (tmp_path / "one/model.onnx").read_bytes()
    assert b".py" not in written and os.fsencode(Path(torch.__file__).parents[1]) not in written, "a stack trace"
    assert not list(here.iterdir()) and not list(scratch.iterdir())


@once
def test_the_log_stays_as_it_was(
    small: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stops ONNX Runtime's `logging.basicConfig` from having each library's remarks printed, then or later on."""
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers[:] = []
    try:
        convert(ONNXRuntimeInt4(), small, tmp_path)
        assert root.handlers == [] and root.level == level and logging.root.manager.disable == logging.NOTSET
        assert capfd.readouterr() == ("", "")
    finally:
        root.handlers[:] = handlers


@once
def test_static_loses_no_more_than_dynamic(trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops what leaves a layer, and what is added past it, from being rounded: 8 dB of the logits, in silence."""
    batch = inputs(trained.config.model_type, 60, 9, seed=7)
    found = {}
    for name, quantizer in QUANTIZERS.items():
        convert(quantizer, trained, tmp_path / name)
        found[name] = sqnr(logits(trained, batch), quantizer.open(tmp_path / name)(batch)["logits"])
    assert found["static"] > found["dynamic"] - 3 and found["dynamic"] > found["int4"] > 20, found


@once
def test_only_products_read_rounded_activations(trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops the input of a layer in float from being rounded for its neighbours' sake: its weights alone would be."""
    name = LAYERS[trained.config.model_type][0]
    graph = convert(QUANTIZERS["static"], trained, tmp_path, [name])
    makers = {output: node for node in graph.node for output in node.output}
    weight = trained.get_submodule(name).weight.detach().numpy().T
    (stored,) = (t.name for t in graph.initializer if np.array_equal(onnx.numpy_helper.to_array(t), weight))
    (kept,) = (node for node in graph.node if stored in node.input)
    assert kept.op_type == "MatMul" and makers[kept.input[0]].op_type != "DequantizeLinear"
    quantized = 0
    for node in graph.node:
        sources = [makers[i].op_type == "DequantizeLinear" and makers[i] for i in node.input if i in makers]
        rounded = [source for source in sources if source and source.input[0] in makers]
        if node.op_type in ("MatMul", "Gemm"):
            quantized += bool(rounded)
        else:  # what is looked up in an int8 table is rounded already
            assert all(makers[makers[source.input[0]].input[0]].op_type == "Gather" for source in rounded)
    linears = sum(isinstance(module, nn.Linear) for module in trained.modules())
    assert quantized == linears - 1


@once
@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_static_answers_do_not_depend_on_the_batch(calibration: Any, trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops ranges of the batch at hand from passing for calibrated ones, and histograms from failing on lengths."""
    quantizer = ONNXRuntimeInt8("static", calibration)
    convert(quantizer, trained, tmp_path)
    forward, batch = quantizer.open(tmp_path), inputs(trained.config.model_type, 6, 9, seed=3)
    found = forward(batch)["logits"]
    alone = torch.cat([forward({k: v[i : i + 1] for k, v in batch.items()})["logits"] for i in range(6)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    assert sqnr(logits(trained, batch), found) > 20


@once
def test_calibrations_differ(small: PreTrainedModel, tmp_path: Path) -> None:
    """Stops a name from picking another method than it says."""
    files = []
    for calibration in ("minmax", "entropy", "percentile"):
        convert(ONNXRuntimeInt8("static", calibration), small, tmp_path)
        files.append((tmp_path / "model.onnx").read_bytes())
    assert len(set(files)) == 3


def test_static_needs_batches_and_is_not_trained_for(small: PreTrainedModel, tmp_path: Path) -> None:
    """Stops ranges of a made-up input, and a training for ranges that the backend does not have."""
    static = ONNXRuntimeInt8("static")
    assert static.needs_calibration and not ONNXRuntimeInt8().needs_calibration
    assert static.name != ONNXRuntimeInt8().name == "ONNX Runtime"
    with pytest.raises(InputError, match=r"ONNXRuntimeInt8 needs training batches to calibrate on, but got none"):
        static.convert(small, [], tmp_path)
    with pytest.raises(InputError, match=r"\(mode: ptq\): .* take activations: dynamic"):
        _ = static.rounding


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ONNXRuntimeInt8, {"activations": "float"}, "`activations` to be one of dynamic, static, but got 'float'"),
        (
            ONNXRuntimeInt8,
            {"activations": "static", "calibration": "max"},
            "`calibration` to be one of minmax, entropy",
        ),
        (ONNXRuntimeInt8, {"calibration": "entropy"}, "`calibration` to be left out .* Or set activations: static"),
        (ONNXRuntimeInt4, {"block_size": 24}, "`block_size` to be one of 16, 32, 64, 128, 256, but got 24"),
    ],
)
def test_wrong_options_are_refused(kind: type[Quantizer], arguments: dict[str, Any], message: str) -> None:
    """Stops an option without effect from looking like one that was tried."""
    with pytest.raises(InputError, match=message):
        kind(**arguments)


@once
@pytest.mark.parametrize("block_size", [32, 64])
def test_4_bit_weights_take_4_bits_and_a_scale(block_size: Any, trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops weights from being stored a byte each, or beside the float ones."""
    graph = convert(ONNXRuntimeInt4(block_size), trained, tmp_path)
    assert not layers_in_float(trained, graph)
    weights = sum(trained.get_submodule(name).weight.numel() for name in quantizable_layers(trained))
    rest = sum(p.numel() for p in trained.parameters()) - weights
    bits = (sum(tensor.ByteSize() for tensor in graph.initializer) - 4 * rest) * 8 / weights
    assert bits == pytest.approx(4 + 32 / block_size, rel=0.02)
    beside = (tmp_path / "model.onnx").stat().st_size - bits * weights / 8 - 4 * rest
    assert beside < 200_000, "the graph's own text"


@once
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_a_last_block_may_be_shorter(block_size: Any, narrow: PreTrainedModel, tmp_path: Path) -> None:
    """Stops widths that the block size does not divide from being cut, or padded with what is in memory."""
    quantizer = ONNXRuntimeInt4(block_size)
    convert(quantizer, narrow, tmp_path)
    fake, batch = copy.deepcopy(narrow), inputs("distilbert", 4, 9)
    fake_quantize(fake, quantizer.rounding)
    torch.testing.assert_close(quantizer.open(tmp_path)(batch)["logits"], logits(fake, batch), rtol=0, atol=1e-5)


@once
@pytest.mark.parametrize("name", ["static", "int4"])
def test_it_opens_with_the_plain_runtime(name: str, small: PreTrainedModel, tmp_path: Path) -> None:
    """Stops a file that only this package, or the process that wrote it, can read."""
    convert(QUANTIZERS[name], small, tmp_path)
    batch = inputs("distilbert", 3, 7)
    found = fresh_process(PLAIN, name, tmp_path, json.dumps({k: v.tolist() for k, v in batch.items()}))
    own = QUANTIZERS[name].open(tmp_path)(batch)["logits"]
    torch.testing.assert_close(torch.tensor(found["logits"]), own, rtol=0, atol=1e-6)


@once
@each_quantizer
def test_attention_is_one_node_and_no_norm_takes_in_a_sum(
    quantizer: Quantizer, trained: PreTrainedModel, tmp_path: Path
) -> None:
    """Stops another exporter or runtime from making the graph slower by a third in silence."""
    import onnxruntime

    convert(quantizer, trained, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    layers, norms = trained.config.num_hidden_layers, sum(isinstance(m, nn.LayerNorm) for m in trained.modules())
    assert (kinds["Attention"], kinds["Softmax"], kinds["Transpose"]) == (layers, 0, 0)
    assert (kinds["LayerNormalization"], kinds["SkipLayerNormalization"]) == (norms, 0)
