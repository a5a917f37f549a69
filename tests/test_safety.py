"""Nothing is unpickled, and no code is run, out of a file that a user names."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_kd import InputError
from lightning_kd.describe import describe
from lightning_kd.models import ModelSource, load_trained
from source_tree import modules

#: Calls that unpickle, run code or write outside of a folder whatever their arguments are.
REFUSED = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "torch.hub.load",
    "torch.jit.load",
    "shutil.unpack_archive",
    "os.system",
}
#: Calls that are safe with one argument.
SAFE_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
#: Methods that would run what stands beside a model.
REMOTE = {"AutoConfig", "AutoTokenizer", "AutoModel", "auto_class"}


def calls() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Every call of the package: where, what, and its keyword arguments that are constants."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
                yield f"{module}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_call_unpickles_or_runs_code() -> None:
    """Stops a convenient call from making a file that somebody sent into a program."""
    wrong, seen = [], set()
    for where, name, keywords in calls():
        if name in REFUSED or name.endswith((".extractall", ".extract")):
            wrong.append(f"{where}: {name}")
        if name in SAFE_WITH:
            seen.add(name)
            key, value = SAFE_WITH[name]
            if keywords.get(key) is not value:
                wrong.append(f"{where}: {name} without {key}={value}")
        stem, _, method = name.rpartition(".")
        if method == "from_pretrained" and stem in REMOTE:
            seen.add(stem)
            if keywords.get("trust_remote_code") is not False:
                wrong.append(f"{where}: {name} without trust_remote_code=False")
        if name in ("load_dataset", "load_dataset_builder") and keywords.get("trust_remote_code"):
            wrong.append(f"{where}: {name} runs scripts")
    assert wrong == []
    assert seen == {*SAFE_WITH, *REMOTE}, "the test looks for calls that are there"


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.mark, "w")


@pytest.mark.parametrize("opened", ["load_trained", "describe"])
def test_pickled_weights_run_nothing(opened: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Stops a folder with a pytorch_model.bin from running what was pickled into it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model().iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"weight": Hostile(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError):
        if opened == "describe":
            describe([str(folder)])
        else:
            from transformers import AutoModelForSequenceClassification

            load_trained(ModelSource(str(folder)), AutoModelForSequenceClassification)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "executed")))  # which does run it
    assert (tmp_path / "executed").exists()


def test_a_graph_names_no_file_elsewhere(tmp_path: Path) -> None:
    """Stops an ONNX graph from reading, as its weights, a file outside of its folder."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from lightning_kd.quantization import ONNXRuntimeInt8

    (tmp_path / "secret").write_bytes(b"\0" * 16)
    folder = tmp_path / "int8"
    folder.mkdir()
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=1)
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["logits"])
    graph = onnx.helper.make_graph([node], "graph", [], [logits], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="damaged"):
        ONNXRuntimeInt8.open(folder)
    weight.external_data[0].value = "weights"
    del graph.initializer[:]
    graph.initializer.append(weight)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "weights").write_bytes(b"\0" * 16)
    assert ONNXRuntimeInt8.open(folder)({})["logits"].tolist() == [0, 0, 0, 0]
