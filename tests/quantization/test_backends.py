"""Every backend writes real int8, and what it wrote opens anywhere."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError
from lightning_kd.quantization import DynamicInt8, Forward, ONNXRuntimeInt8, OpenVINOInt8, Quantizer
from lightning_kd.quantization.base import quantizable_layers
from tests.conftest import needs_extra

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[type[Quantizer], tuple[str, ...]] = {
    DynamicInt8: (),
    OpenVINOInt8: ("openvino", "nncf"),
    ONNXRuntimeInt8: ("onnx", "onnxruntime", "onnxscript"),
}
#: Wide enough for its weights to outweigh a graph's own text; one layer and few rows keep it fast.
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128},
    "distilbert": {"dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 128},
}
VOCABULARY, MAX_LENGTH, WORDS = 20_000, 32, 60


def int8_tensors_of_safetensors(folder: Path) -> dict[str, tuple[int, bool]]:
    tensors = load_file(folder / "int8.safetensors")
    return {name: (tensor.numel(), tensor.dtype in (torch.int8, torch.uint8)) for name, tensor in tensors.items()}


def int8_tensors_of_openvino(folder: Path) -> dict[str, tuple[int, bool]]:
    import openvino

    graph = openvino.Core().read_model(folder / "openvino_model.xml")
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    types = ("i8", "u8")
    return {
        op.get_friendly_name(): (int(np.prod(op.get_output_shape(0))), op.get_element_type().get_type_name() in types)
        for op in constants
    }


def int8_tensors_of_onnx(folder: Path) -> dict[str, tuple[int, bool]]:
    import onnx

    types = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    tensors = onnx.load(folder / "model.onnx").graph.initializer
    return {tensor.name: (int(np.prod(tensor.dims)), tensor.data_type in types) for tensor in tensors}


READERS: dict[type[Quantizer], Callable[[Path], dict[str, tuple[int, bool]]]] = {
    DynamicInt8: int8_tensors_of_safetensors,
    OpenVINOInt8: int8_tensors_of_openvino,
    ONNXRuntimeInt8: int8_tensors_of_onnx,
}


def inputs(model_type: str, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows of words of one kind, even or odd, the last word of every second row being padding."""
    generator = torch.Generator().manual_seed(seed)
    words = 2 * torch.randint(1, WORDS // 2, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1::2, -1] = 0
    batch = {"input_ids": (words + torch.arange(rows)[:, None] % 3 % 2) * mask, "attention_mask": mask}
    return batch if model_type == "distilbert" else {**batch, "token_type_ids": torch.zeros_like(mask)}


def train(model_type: str) -> PreTrainedModel:
    """A model that tells rows of even words from rows of odd ones, far from the boundary."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_LENGTH, "num_labels": 2, **SHAPES[model_type]}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(40):
        batch = inputs(model_type, 16, 8, seed=step)
        labels = batch["input_ids"][:, 0] % 2
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.config.architectures = [type(model).__name__]
    return model.eval()


@dataclass(frozen=True)
class Converted:
    """An int8 folder with the model that it was made from."""

    backend: type[Quantizer]
    model: PreTrainedModel
    folder: Path
    before: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        return self.model.config.model_type

    @cached_property
    def forward(self) -> Forward:
        return self.backend.open(self.folder)

    def convert(self, folder: Path) -> None:
        calibration = [inputs(self.model_type, 8, length, seed=100 + length) for length in (5, 8, 12)]
        quantizer = self.backend()
        quantizer.convert(self.model, calibration if quantizer.needs_calibration else [], folder)
        self.model.config.save_pretrained(folder)


@pytest.fixture(scope="module", params=SHAPES)
def trained(request: pytest.FixtureRequest) -> PreTrainedModel:
    return train(request.param)


@pytest.fixture(scope="module", params=EXTRAS, ids=lambda backend: backend.__name__)
def converted(
    request: pytest.FixtureRequest, trained: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    backend: type[Quantizer] = request.param
    needs_extra(backend())
    before = {
        "state": copy.deepcopy(trained.state_dict()),
        "config": trained.config.to_dict(),
        "modes": {name: module.training for name, module in trained.named_modules()},
    }
    made = Converted(backend, trained, tmp_path_factory.mktemp("int8"), before)
    made.convert(made.folder)
    return made


def fresh_process(script: str, *arguments: Path | str) -> dict[str, Any]:
    """What a script prints as JSON in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT.parent,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


OPEN = """
import json, pickle, sys
from pathlib import Path
import torch
def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")
torch.load = torch.jit.load = refuse
import lightning_kd.quantization as quantization
backend, folder = getattr(quantization, sys.argv[1]), Path(sys.argv[2])
batch = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[3]).items()}
pickle.load = pickle.loads = pickle.Unpickler = refuse
torch.set_num_threads(1)
logits = backend.open(folder)(batch)["logits"]
telemetry = sys.modules.get("openvino_telemetry") is not None
print(json.dumps({"bits": logits.contiguous().view(torch.int32).tolist(), "telemetry": telemetry}))
"""


def test_opens_alike_in_another_process_without_unpickling_or_telemetry(converted: Converted) -> None:
    """A folder that lacks a scale opens with other logits; a pickle runs code; telemetry reports its user."""
    batch = inputs(converted.model_type, 6, 9)
    found = fresh_process(
        OPEN, converted.backend.__name__, converted.folder, json.dumps({k: v.tolist() for k, v in batch.items()})
    )
    assert found["bits"] == converted.forward(batch)["logits"].contiguous().view(torch.int32).tolist()
    assert found["telemetry"] is False


def test_converting_sends_no_telemetry(converted: Converted) -> None:
    """NNCF reports each call of `quantize` to Google Analytics unless its telemetry cannot be imported."""
    assert converted.folder.is_dir() and sys.modules.get("openvino_telemetry") is None


def test_predicts_what_the_float_model_predicts(converted: Converted) -> None:
    """A swapped scale or zero point leaves logits that look like logits."""
    batch = inputs(converted.model_type, 60, 9, seed=7)
    with torch.no_grad():
        expected = converted.model(**batch).logits
    labels = batch["input_ids"][:, 0] % 2
    assert (expected.argmax(-1) == labels).float().mean() >= 0.95, "the float model has to know the answer"
    assert 0.2 < labels.float().mean() < 0.8
    assert (converted.forward(batch)["logits"].argmax(-1) == expected.argmax(-1)).float().mean() >= 0.95


def test_weights_are_stored_in_8_bits(converted: Converted) -> None:
    """Fake quantization, or a layer type that a backend leaves out, keeps float weights on disk."""
    found = READERS[converted.backend](converted.folder)
    weights = [m.weight.numel() for m in converted.model.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    widest = max(m.out_features for m in converted.model.modules() if isinstance(m, nn.Linear))
    in_float = {name: size for name, (size, is_int8) in found.items() if not is_int8 and size > widest}
    scales = {name: size for name, size in in_float.items() if size in (VOCABULARY, MAX_LENGTH)}  # one a row
    assert in_float.keys() == scales.keys(), "these are weights in float"
    assert sum(size for size, is_int8 in found.values() if is_int8) >= sum(weights)


def test_is_a_third_of_the_float_file(converted: Converted, tmp_path: Path) -> None:
    """Float weights that stay beside the int8 ones make the folder larger, not smaller."""
    copy.deepcopy(converted.model).save_pretrained(tmp_path)  # it writes the dtype into the configuration
    size = sum(f.stat().st_size for f in converted.folder.iterdir() if f.name != "config.json")
    assert size < 0.35 * (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [2, 7, MAX_LENGTH])
def test_takes_any_batch_and_length(converted: Converted, rows: int, length: int) -> None:
    """A graph traced on one shape is bound to it, or pads and cuts in silence."""
    batch = inputs(converted.model_type, rows, length, seed=length)
    logits = converted.forward(batch)["logits"]
    alone = torch.cat([converted.forward({k: v[i : i + 1] for k, v in batch.items()})["logits"] for i in range(rows)])
    assert logits.shape == (rows, 2) and logits.dtype == torch.float32 and logits.device.type == "cpu"
    with torch.no_grad():
        expected = converted.model(**batch).logits
    assert (logits - expected).abs().max() < 0.5 * expected.abs().max()
    assert (logits - alone).abs().max() < 0.2 * expected.abs().max()  # ranges of activations are those of the batch


def test_ignores_what_is_masked(converted: Converted) -> None:
    """A mask that the conversion folds into a constant lets padding change the answer."""
    batch = inputs(converted.model_type, 4, 6, seed=3)
    batch["attention_mask"][:, -2:] = 0
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -2:] = 1
    cut = {name: value[:, :-2] for name, value in batch.items()}
    scale = converted.forward(batch)["logits"].abs().max()
    for same in (other, cut):
        assert (converted.forward(batch)["logits"] - converted.forward(same)["logits"]).abs().max() < 0.1 * scale


def test_leaves_the_model_as_it_was(converted: Converted) -> None:
    """A conversion in place gives the trainer an int8 student, or one without `return_dict`."""
    assert converted.model.config.to_dict() == converted.before["config"]
    assert {n: m.training for n, m in converted.model.named_modules()} == converted.before["modes"]
    state = converted.model.state_dict()
    assert state.keys() == converted.before["state"].keys()
    assert all(torch.equal(value, converted.before["state"][name]) for name, value in state.items())


def test_converts_alike_twice(converted: Converted, tmp_path: Path) -> None:
    """A conversion that draws random numbers makes a report that cannot be repeated."""
    if converted.model_type != "distilbert":
        pytest.skip("one model is enough: a conversion takes seconds")
    converted.convert(tmp_path)
    batch = inputs(converted.model_type, 6, 9)
    assert torch.equal(converted.backend.open(tmp_path)(batch)["logits"], converted.forward(batch)["logits"])


PLAIN = """
import json, sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning_kd", "torch", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbid())
import numpy as np
batch = {name: np.array(rows, dtype=np.int64) for name, rows in json.loads(sys.argv[3]).items()}
if sys.argv[1] == "OpenVINOInt8":
    import openvino
    model = openvino.Core().compile_model(sys.argv[2] + "/openvino_model.xml", "CPU")
    logits = model(batch)["logits"]
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[2] + "/model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], batch)[0]
print(json.dumps({"logits": logits.tolist()}))
"""


def test_opens_with_the_plain_runtime(converted: Converted) -> None:
    """Inputs or outputs without their names open here alone, where their order is known."""
    if converted.backend is DynamicInt8:
        pytest.skip("torch's own int8 has no other runtime")
    batch = inputs(converted.model_type, 3, 7)
    found = fresh_process(
        PLAIN, converted.backend.__name__, converted.folder, json.dumps({k: v.tolist() for k, v in batch.items()})
    )
    own = converted.forward(batch)["logits"]
    assert (torch.tensor(found["logits"]) - own).abs().max() < 0.05 * own.abs().max()


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [(backend, package, extra) for backend, extra in ((OpenVINOInt8, "openvino"), (ONNXRuntimeInt8, "onnx"))
     for package in EXTRAS[backend]],
)  # fmt: skip
def test_a_missing_extra_is_named(
    backend: type[Quantizer], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ModuleNotFoundError after hours of training does not say what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        backend().check()
    message = str(error.value)
    assert message.endswith(f"pip install 'lightning-kd[{extra}]'.") and "\n" not in message
    assert backend.__name__ in message and package in message


@pytest.mark.parametrize(("backend", "package"), [(OpenVINOInt8, "openvino"), (ONNXRuntimeInt8, "onnxruntime")])
def test_opening_without_the_extra_names_it(
    backend: type[Quantizer], package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The machine that serves is another one than the machine that trained."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'lightning-kd\["):
        backend.open(tmp_path)


def test_static_quantization_needs_batches(tmp_path: Path) -> None:
    """Without batches the range of every activation would be that of a made-up input."""
    with pytest.raises(InputError, match="training batches"):
        OpenVINOInt8().convert(train("distilbert"), [], tmp_path)


def plain_convert(
    quantizer: Quantizer, model: PreTrainedModel, folder: Path, keep_float: Sequence[str] = ()
) -> Forward:
    """Written and opened."""
    batches = [inputs(model.config.model_type, 8, length, seed=100 + length) for length in (5, 8, 12)]
    folder.mkdir()
    quantizer.convert(model, batches if quantizer.needs_calibration else [], folder, keep_float)
    model.config.save_pretrained(folder)
    return quantizer.open(folder)


@pytest.mark.parametrize("quantizer", [DynamicInt8(), OpenVINOInt8(), OpenVINOInt8("float")], ids=lambda q: q.name)
def test_layers_to_keep_stay_in_float(quantizer: Quantizer, trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops a layer that suffers from being rounded all the same, or others from staying in float with it."""
    batch = inputs(trained.config.model_type, 8, 9, seed=3)
    with torch.no_grad():
        exact = trained(**batch).logits
    everything = quantizable_layers(trained)
    kept = plain_convert(quantizer, trained, tmp_path / "all", everything)(batch)["logits"]
    torch.testing.assert_close(kept, exact, rtol=0, atol=2e-5)
    rounded = plain_convert(quantizer, trained, tmp_path / "none")(batch)["logits"]
    assert (rounded - exact).abs().max() > 1e-4
    for name in (next(n for n in everything if "word_embeddings" in n), everything[-1]):
        folder = tmp_path / name
        plain_convert(quantizer, trained, folder, [name])
        found = READERS[type(quantizer)](folder)
        sizes = [m.weight.numel() for n, m in trained.named_modules() if n in everything and n != name]
        assert sum(size for size, is_int8 in found.values() if is_int8) == sum(sizes)


def test_an_unknown_layer_cannot_be_kept(trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops a misspelt name from leaving nothing in float."""
    with pytest.raises(InputError, match=r"OpenVINOInt8 cannot keep no\.such in float"):
        plain_convert(OpenVINOInt8("float"), trained, tmp_path / "int8", ["no.such"])


def test_openvino_quantizes_weights_alone(trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops weight-only from asking for batches, from rounding activations, and from being named as the other is."""
    import openvino

    quantizer = OpenVINOInt8("float")
    assert not quantizer.needs_calibration and OpenVINOInt8().needs_calibration
    assert quantizer.name == "OpenVINO, weight-only" != OpenVINOInt8().name
    assert (quantizer.scheme.bits, quantizer.scheme.activations) == (8, "float")
    batch = inputs(trained.config.model_type, 60, 9, seed=7)
    logits = plain_convert(quantizer, trained, tmp_path / "weights")(batch)["logits"]
    static = plain_convert(OpenVINOInt8(), trained, tmp_path / "static")(batch)["logits"]
    with torch.no_grad():
        exact = trained(**batch).logits
    assert 0 < (logits - exact).norm() < (static - exact).norm()
    operations = [
        {op.get_type_name() for op in openvino.Core().read_model(tmp_path / name / "openvino_model.xml").get_ops()}
        for name in ("weights", "static")
    ]
    assert ["FakeQuantize" in names for names in operations] == [False, True]
    weights = [m.weight.numel() for m in trained.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    found = int8_tensors_of_openvino(tmp_path / "weights")
    assert sum(size for size, is_int8 in found.values() if is_int8) == sum(weights)
    with pytest.raises(InputError, match="`activations` to be static or float, but got 'dynamic'"):
        OpenVINOInt8("dynamic")


@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_a_truncated_file_is_refused(converted: Converted, part: float, tmp_path: Path) -> None:
    """A copy that broke off must not open as a model with zeros at its end."""
    for path in [f for f in converted.folder.iterdir() if f.name != "config.json"]:
        folder = tmp_path / path.name
        shutil.copytree(converted.folder, folder)
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: int(part * len(content))])
        with pytest.raises(InputError, match=r"damaged or does not fit"):
            converted.backend.open(folder)


@pytest.mark.parametrize("change", [{"num_labels": 3}, {"vocab_size": 50}, {"max_position_embeddings": 8}])
def test_a_file_of_another_model_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    """torch's int8 layers take weights of any shape, and `copy_` broadcasts: both would open and answer nonsense."""
    shape: dict[str, Any] = {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("distilbert", **shape))
    DynamicInt8().convert(model.eval(), [], tmp_path)
    config = AutoConfig.for_model("distilbert", **{**shape, **change})
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"int8\.safetensors is damaged or does not fit the files beside it"):
        DynamicInt8.open(tmp_path)


@pytest.mark.parametrize("architectures", [[], ["NoSuchModel"], ["PretrainedConfig"]])
def test_an_unknown_architecture_is_refused(architectures: list[str], tmp_path: Path) -> None:
    """`getattr(transformers, name)` would call whatever the folder's config.json names."""
    config = AutoConfig.for_model("distilbert", architectures=architectures)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="`architectures`"):
        DynamicInt8.open(tmp_path)
