"""Weights as torchao's tensors: stored in 8 or 4 bits, and read back exactly, by this package and without it."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError
from lightning_kd.quantization import Forward
from lightning_kd.quantization import torchao as backend
from lightning_kd.quantization.base import quantizable_layers
from lightning_kd.quantization.torchao import TorchAO
from tests.quantization.test_backends import MAX_LENGTH, SHAPES, fresh_process, inputs, train

pytest.importorskip("torchao", reason="needs the extra torchao")

VARIANTS = {
    "int8": TorchAO(),
    "int8, weight-only": TorchAO(activations="float"),
    "int4": TorchAO("int4"),
    "int4, weight-only": TorchAO("int4", "float", group_size=16),
}
FILE = "torchao.safetensors"


@dataclass(frozen=True)
class Converted:
    """A folder with the model that it was made from."""

    quantizer: TorchAO
    model: PreTrainedModel
    folder: Path
    before: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        return self.model.config.model_type

    @cached_property
    def forward(self) -> Forward:
        return TorchAO.open(self.folder)

    def exact(self, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**batch).logits


@pytest.fixture(scope="module", params=SHAPES)
def trained(request: pytest.FixtureRequest) -> PreTrainedModel:
    return train(request.param)


@pytest.fixture(scope="module", params=VARIANTS)
def converted(
    request: pytest.FixtureRequest, trained: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    before = {
        "state": copy.deepcopy(trained.state_dict()),
        "config": trained.config.to_dict(),
        "kinds": [(type(module), module.training) for module in trained.modules()],
    }
    made = Converted(VARIANTS[request.param], trained, tmp_path_factory.mktemp("torchao"), before)
    export(made.quantizer, trained, made.folder)
    return made


def export(quantizer: TorchAO, model: PreTrainedModel, folder: Path, keep_float: list[str] | None = None) -> None:
    quantizer.convert(model, [], folder, keep_float or [])
    model.config.save_pretrained(folder)


def small(**shape: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "num_labels": 2, **shape}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("distilbert", **shape))
    model.config.architectures = [type(model).__name__]
    return model.eval()


OPEN = """
import json, pickle, sys
from pathlib import Path
import torch
def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")
torch.load = torch.jit.load = refuse
from lightning_kd.quantization.torchao import TorchAO
batch = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}
pickle.load = pickle.loads = pickle.Unpickler = refuse
torch.set_num_threads(1)
logits = {folder: TorchAO.open(Path(folder))(batch)["logits"] for folder in sys.argv[2:]}
print(json.dumps({folder: value.contiguous().view(torch.int32).tolist() for folder, value in logits.items()}))
"""


def plain(batch: Mapping[str, Tensor]) -> str:
    return json.dumps({name: value.tolist() for name, value in batch.items()})


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """One of each variant, of one model."""
    model = small()
    for i, quantizer in enumerate(VARIANTS.values()):
        (tmp_path / str(i)).mkdir()
        export(quantizer, model, tmp_path / str(i))
    return sorted(tmp_path.iterdir())


def test_opens_alike_in_another_process_without_unpickling(folders: list[Path]) -> None:
    """A folder that lacks a scale opens with other logits; a pickle runs code."""
    batch = inputs("distilbert", 6, 9)
    found = fresh_process(OPEN, plain(batch), *folders)
    for folder in folders:
        logits = TorchAO.open(folder)(batch)["logits"]
        assert found[str(folder)] == logits.contiguous().view(torch.int32).tolist()


LINES = [line[8:] for line in str(TorchAO.__doc__).splitlines() if line.startswith("        ")]
START = next(i for i, line in enumerate(LINES) if line.startswith("with safe_open"))
END = next(i for i, line in enumerate(LINES) if line.startswith("model.load_state_dict"))
PLAIN = """
import json, sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lightning_kd":
            raise ImportError(name)
sys.meta_path.insert(0, Forbid())
import torch, torchao.prototype.safetensors.safetensors_support
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification
torch.set_num_threads(1)
batch = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}
logits = {}
for folder in sys.argv[2:]:
    LINES
    with torch.inference_mode():
        logits[folder] = model(**batch).logits.tolist()
print(json.dumps(logits))
""".replace("LINES", "\n    ".join(LINES[START : END + 1]))


def test_opens_without_this_package(folders: list[Path]) -> None:
    """The lines in the class's docstring are what somebody serves the model with: half of them is not enough."""
    batch = inputs("distilbert", 6, 9)
    found = fresh_process(PLAIN, plain(batch), *folders)
    for folder in folders:
        if backend._int8_products() or folder is not folders[0]:
            own = TorchAO.open(folder)(batch)["logits"]
            torch.testing.assert_close(torch.tensor(found[str(folder)]), own, rtol=0, atol=1e-6)


def test_predicts_what_the_float_model_predicts(converted: Converted) -> None:
    """A scale of another row, or the two halves of a byte swapped, leave logits that look like logits."""
    batch = inputs(converted.model_type, 60, 9, seed=7)
    expected = converted.exact(batch)
    labels = batch["input_ids"][:, 0] % 2
    assert (expected.argmax(-1) == labels).float().mean() >= 0.95, "the float model has to know the answer"
    assert 0.2 < labels.float().mean() < 0.8
    assert (converted.forward(batch)["logits"].argmax(-1) == expected.argmax(-1)).float().mean() >= 0.95


def test_each_weight_comes_back_within_half_a_step(converted: Converted) -> None:
    """Predictions survive a layer that is rounded far too coarsely, or not at all."""
    found, exact = TorchAO.load(converted.folder).state_dict(), converted.model.state_dict()
    group, steps = converted.quantizer.group_size, 7.5 if converted.quantizer.weights == "int4" else 127.5
    layers = [name for name, m in converted.model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    assert layers
    for name in layers:
        weight = exact[f"{name}.weight"]
        groups = weight.unflatten(1, (-1, group or weight.shape[1]))
        step = groups.abs().amax(-1, keepdim=True) / steps
        error = (found[f"{name}.weight"].dequantize().unflatten(1, groups.shape[1:]) - groups).abs()
        # the largest weight itself, at 7.5 or 127.5 steps, is cut to 7 or 127
        assert (error <= 0.501 * step + 1e-8).all() and error.max() > 0


def test_weights_are_stored_in_their_bits(converted: Converted) -> None:
    """torchao holds int4 weights in a byte each, and a layer type that is left out keeps float weights on disk."""
    bits = {"int8": 8, "int4": 4}[converted.quantizer.format]
    tensors = load_file(converted.folder / FILE)
    weights = sum(m.weight.numel() for m in converted.model.modules() if isinstance(m, (nn.Linear, nn.Embedding)))
    stored = [tensor for name, tensor in tensors.items() if name.endswith("_qdata")]
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored) * 8 == bits * weights
    columns = min(m.weight.shape[1] for m in converted.model.modules() if isinstance(m, (nn.Linear, nn.Embedding)))
    scales = 5 * weights // (converted.quantizer.group_size or columns)  # 4 bytes, and one of a zero point
    rest = sum(p.numel() * 4 for p in converted.model.parameters() if p.dim() == 1)
    assert (converted.folder / FILE).stat().st_size < weights * bits // 8 + scales + rest + 20_000  # of header


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [2, 7, MAX_LENGTH])
def test_takes_any_batch_and_length(converted: Converted, rows: int, length: int) -> None:
    """Scales of activations are those of a token: what stands beside a row must not change its answer."""
    batch = inputs(converted.model_type, rows, length, seed=length)
    logits = converted.forward(batch)["logits"]
    alone = torch.cat([converted.forward({k: v[i : i + 1] for k, v in batch.items()})["logits"] for i in range(rows)])
    assert logits.shape == (rows, 2) and logits.dtype == torch.float32 and logits.device.type == "cpu"
    scale = converted.exact(batch).abs().max()
    assert (logits - converted.exact(batch)).abs().max() < 0.5 * scale
    assert (logits - alone).abs().max() < 0.02 * scale  # the last bit of a sum can move an activation by a step


def test_ignores_what_is_masked(converted: Converted) -> None:
    """A mask that is lost lets padding change the answer."""
    batch = inputs(converted.model_type, 4, 6, seed=3)
    batch["attention_mask"][:, -2:] = 0
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -2:] = 1
    cut = {name: value[:, :-2] for name, value in batch.items()}
    logits = converted.forward(batch)["logits"]
    for same in (other, cut):
        assert (logits - converted.forward(same)["logits"]).abs().max() < 0.02 * logits.abs().max()


def test_leaves_the_model_as_it_was(converted: Converted) -> None:
    """`quantize_` works in place, and would give the trainer an int8 student."""
    assert converted.model.config.to_dict() == converted.before["config"]
    assert [(type(module), module.training) for module in converted.model.modules()] == converted.before["kinds"]
    state = converted.model.state_dict()
    assert state.keys() == converted.before["state"].keys()
    assert all(type(value) is Tensor for value in state.values())
    assert all(torch.equal(value, converted.before["state"][name]) for name, value in state.items())


def test_converts_alike_twice(converted: Converted, tmp_path: Path) -> None:
    """A conversion that draws random numbers makes a report that cannot be repeated."""
    export(converted.quantizer, converted.model, tmp_path)
    first, second = load_file(converted.folder / FILE), load_file(tmp_path / FILE)
    assert first.keys() == second.keys() and all(torch.equal(second[name], value) for name, value in first.items())
    metadata = [safe_open(folder / FILE, "pt").metadata() for folder in (converted.folder, tmp_path)]
    assert metadata[0] == metadata[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_leaves_the_process_as_it_was(variant: str, tmp_path: Path) -> None:
    """torchao's configurations set options of torch.compile that hold for every other model of the process."""
    import torch._inductor.config as inductor

    with inductor.patch(coordinate_descent_tuning=False):
        export(VARIANTS[variant], small(), tmp_path)
        TorchAO.open(tmp_path)
        assert not inductor.coordinate_descent_tuning


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_that_are_kept_are_float(variant: str, tmp_path: Path) -> None:
    """A name that is overlooked quantizes the one layer that cannot bear it."""
    model = small()
    layers = quantizable_layers(model)
    batch = inputs("distilbert", 3, 7)
    with torch.no_grad():
        exact = model(**batch).logits
    export(VARIANTS[variant], model, tmp_path, layers)
    assert torch.equal(TorchAO.open(tmp_path)(batch)["logits"], exact)
    for kept in (layers[0], layers[-1]):
        export(VARIANTS[variant], model, tmp_path, [kept])
        state = TorchAO.load(tmp_path).state_dict()
        floats = [name for name in layers if type(state[f"{name}.weight"]) is Tensor]
        assert floats == [kept]
        assert torch.equal(state[f"{kept}.weight"], model.state_dict()[f"{kept}.weight"])
        assert not torch.equal(TorchAO.open(tmp_path)(batch)["logits"], exact)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_looked_up_as_torchao_looks_them_up(variant: str, tmp_path: Path) -> None:
    """Dequantizing what was looked up, not the whole table, is ours: with the scale of another row it is wrong."""
    export(VARIANTS[variant], small(), tmp_path)
    table = TorchAO.load(tmp_path).get_input_embeddings()
    ids = torch.arange(60).flip(0).view(4, 15)
    assert torch.equal(table(ids), nn.functional.embedding(ids, table.weight.dequantize()))


def test_int8_products_are_those_of_its_rounding(tmp_path: Path) -> None:
    """Without `VNNI`, torch's int8 products overflow and answer nonsense: float ones take their place."""
    model = small(dim=64, hidden_dim=256)
    export(TorchAO(), model, tmp_path)
    batch = inputs("distilbert", 4, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_int8_products", lambda: False)
        floats = TorchAO.load(tmp_path)
    linear = floats.distilbert.transformer.layer[0].ffn.lin1
    values = torch.randn(2, 5, 64)
    scale = values.abs().amax(-1, keepdim=True) / 127.5
    rounded = (values * (1 / scale)).round().clamp(-128, 127) * scale
    expected = nn.functional.linear(rounded, linear.weight.dequantize(), linear.bias)
    assert (expected - nn.functional.linear(values, linear.weight.dequantize(), linear.bias)).abs().max() > 1e-4
    torch.testing.assert_close(linear(values), expected, rtol=0, atol=1e-5)
    if backend._int8_products():
        real = TorchAO.load(tmp_path)
        torch.testing.assert_close(real.distilbert.transformer.layer[0].ffn.lin1(values), expected, rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(real(**batch).logits, floats(**batch).logits, rtol=0, atol=1e-3)


def test_a_processor_without_int8_products_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is written on one processor and served on another, whose int8 products overflow in silence."""
    model = train("distilbert")
    export(TorchAO(), model, tmp_path)
    batch = inputs("distilbert", 8, 9, seed=7)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):  # on an x86 processor, one without VNNI
        monkeypatch.setitem(os.environ, name, "AVX2")
    found = torch.tensor(fresh_process(OPEN, plain(batch), tmp_path)[str(tmp_path)], dtype=torch.int32)
    own = TorchAO.open(tmp_path)(batch)["logits"]
    assert (found.view(torch.float32) - own).abs().max() < 0.02 * own.abs().max()


def test_a_head_of_few_labels_takes_float_activations(tmp_path: Path) -> None:
    """On a GPU torchao computes a product of two outputs on the CPU, at the price of a transfer for each batch."""
    export(TorchAO(), small(), tmp_path)
    model = TorchAO.load(tmp_path)
    weights = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    floats = [name for name, weight in weights.items() if weight.act_quant_kwargs is None]
    assert floats == ["classifier"] and len(weights) > 5


def test_tied_weights_are_written(tmp_path: Path) -> None:
    """safetensors refuses two names for one memory; a layer that is kept must not lose its weight to the other."""
    model = small()
    model.pre_classifier.weight = model.distilbert.transformer.layer[0].attention.q_lin.weight
    batch = inputs("distilbert", 3, 7)
    with torch.no_grad():
        exact = model(**batch).logits
    export(TorchAO(), model, tmp_path, quantizable_layers(model))
    assert torch.equal(TorchAO.open(tmp_path)(batch)["logits"], exact)
    export(TorchAO(), model, tmp_path, ["pre_classifier"])
    state = TorchAO.load(tmp_path).state_dict()
    assert torch.equal(state["pre_classifier.weight"], model.pre_classifier.weight)
    assert type(state["distilbert.transformer.layer.0.attention.q_lin.weight"]) is not Tensor


@pytest.mark.parametrize("part", [0, 0.5, 0.98])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_truncated_file_is_refused(variant: str, part: float, tmp_path: Path) -> None:
    """A copy that broke off must not open as a model with zeros at its end."""
    export(VARIANTS[variant], small(), tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"torchao\.safetensors is damaged or does not fit"):
        TorchAO.open(tmp_path)


@pytest.mark.parametrize("change", [{"num_labels": 3}, {"vocab_size": 50}, {"dim": 16}, {"n_layers": 2}, {"dim": 24}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_of_another_model_is_refused(variant: str, change: dict[str, int], tmp_path: Path) -> None:
    """A tensor subclass takes values and scales of any shape, and would answer nonsense or fail in the first batch."""
    model = small()
    export(VARIANTS[variant], model, tmp_path)
    model.config.update(change)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"torchao\.safetensors is damaged or does not fit the files beside it"):
        TorchAO.open(tmp_path)


@pytest.mark.parametrize("options", [None, "", "[]", '{"weights": "int3"}', '{"bits": 8}', '{"weights": "int4"}'])
@pytest.mark.parametrize("lost", [False, True])
def test_a_file_of_something_else_is_refused(options: str | None, lost: bool, tmp_path: Path) -> None:
    """What does not say how it was made, or lacks a tensor, must not open as something that was never trained."""
    export(TorchAO(), small(), tmp_path)
    tensors = load_file(tmp_path / FILE)
    metadata = safe_open(tmp_path / FILE, "pt").metadata()
    if lost:
        del tensors["classifier._weight_scale"]
    else:
        del metadata["lightning_kd"]
        metadata |= {} if options is None else {"lightning_kd": options}
    save_file(tensors, tmp_path / FILE, metadata)
    with pytest.raises(InputError, match="damaged or does not fit"):
        TorchAO.open(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """`getattr(transformers, name)` would call whatever the folder's config.json names."""
    export(TorchAO(), small(), tmp_path)
    AutoConfig.for_model("distilbert", architectures=["PretrainedConfig"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="`architectures`"):
        TorchAO.open(tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ModuleNotFoundError after hours of training, or on the machine that serves, does not say what to install."""
    model = small()
    monkeypatch.setitem(sys.modules, "torchao", None)
    for act in (TorchAO().check, lambda: TorchAO().convert(model, [], tmp_path), lambda: TorchAO.open(tmp_path)):
        with pytest.raises(InputError) as error:
            act()
        assert str(error.value) == "TorchAO needs the package torchao: pip install 'lightning-kd[torchao]'."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int2"}, "`weights` to be int8 or int4, but got 'int2'"),
        ({"activations": "static"}, "`activations` to be dynamic or float, but got 'static'"),
        ({"group_size": 32}, "`group_size` to be left out with int8 weights"),
        ({"weights": "int4", "group_size": 0}, "`group_size` to be an even number above 0, but got 0"),
        ({"weights": "int4", "group_size": 3}, "`group_size` to be an even number above 0, but got 3"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    """An option that is taken and not used makes two runs look different that are not."""
    with pytest.raises(InputError, match=message):
        TorchAO(**options)


def test_a_group_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """torchao itself leaves such a layer in float, or fails with an assertion."""
    model = small(dim=24)
    with pytest.raises(InputError, match=r"`group_size` to be a divisor of the 24 columns of .*word_embeddings, but"):
        TorchAO("int4").convert(model, [], tmp_path)
    wide = [name for name in quantizable_layers(model) if model.get_submodule(name).weight.shape[1] == 24]
    export(TorchAO("int4"), model, tmp_path, wide)
    assert type(TorchAO.load(tmp_path).distilbert.transformer.layer[0].ffn.lin2.weight) is not Tensor


def test_reports_can_tell_the_variants_apart() -> None:
    """Two rows of one name in a table are one too many."""
    quantizers = [*VARIANTS.values(), TorchAO("int4", "float", group_size=64)]
    assert len({(quantizer.format, quantizer.name) for quantizer in quantizers}) == len(quantizers)
