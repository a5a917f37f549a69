"""Errors of quantized matrices against slow loops and torch's own quantization, and what the analysis leaves behind."""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError, LSTMConfig, LSTMForCausalLM
from lightning_kd.quantization.analysis import (
    QuantizationScheme,
    activation_ranges,
    analyze,
    output_sqnr,
    quantized,
    round_trip,
    weight_matrices,
    weight_sqnr,
)
from lightning_kd.quantization.analysis_report import draw_heat_map, print_worst, write_csv
from lightning_kd.quantization.dynamic import _quantize

utils = pytest.importorskip("torchao.quantization.utils", reason="needs the extra torchao")

SCHEMES = [
    QuantizationScheme(bits, symmetric, granularity, group_size=4)
    for bits in (2, 3, 5, 8)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel", "group")
]


def matrix(rows: int = 6, columns: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.arange(1, rows + 1)[:, None] + 0.3


def slow_round_trip(values: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """One scale for all values, one value at a time."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    smallest, largest = min(0.0, *values.tolist()), max(0.0, *values.tolist())
    if symmetric:
        scale, zero = np.float32(max(-smallest, largest)) / np.float32((high - low) / 2), 0
    else:
        scale = np.float32(largest - smallest) / np.float32(high - low)
        zero = int(np.clip(low - np.round(np.float32(smallest) / scale), low, high))
    inverse = np.float32(1) / scale
    levels = [min(max(int(np.round(value * inverse)) + zero, low), high) for value in values]
    return np.array([np.float32(level - zero) * scale for level in levels], dtype=np.float32)


def slow(weight: Tensor, scheme: QuantizationScheme) -> np.ndarray:
    array = weight.numpy().astype(np.float32)
    size = {"tensor": array.size, "channel": array.shape[1], "group": scheme.group_size}[scheme.granularity]
    blocks = array.reshape(-1, size)
    return np.stack([slow_round_trip(b, scheme.bits, scheme.symmetric) for b in blocks]).reshape(array.shape)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_is_that_of_a_slow_loop(scheme: QuantizationScheme) -> None:
    """Stops a block along the wrong dimension, a zero point that is lost, and levels beyond those of the bits."""
    weight = matrix()
    expected = slow(weight, scheme)
    found = round_trip(weight, scheme)
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    signal = sum(float(w) ** 2 for w in weight.flatten())
    noise = sum((float(w) - float(e)) ** 2 for w, e in zip(weight.flatten(), expected.flatten(), strict=True))
    assert weight_sqnr(weight, scheme) == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert weight_sqnr(weight, scheme) == pytest.approx(utils.compute_error(weight, found).item(), abs=1e-3)
    block = {"tensor": found, "channel": found[0], "group": found[0, :4]}[scheme.granularity]
    assert block.unique().numel() <= 2**scheme.bits


def test_int8_per_channel_is_that_of_the_kernels() -> None:
    """Stops an analysis of weights that DynamicInt8 does not have."""
    layer = nn.Linear(32, 16)
    layer.weight.data = matrix(16, 32)
    weight = layer.weight.detach()
    own = _quantize(nn.Sequential(layer))[0].weight().dequantize()
    scheme = QuantizationScheme(8)
    assert torch.allclose(round_trip(weight, scheme), own, atol=1e-5)
    signal, noise = weight.square().sum(), (weight - own).square().sum()
    assert weight_sqnr(weight, scheme) == pytest.approx(10 * torch.log10(signal / noise).item(), abs=0.01)


def test_more_bits_and_finer_scales_lose_less() -> None:
    """Stops a table whose columns are swapped."""
    weight = matrix(32, 64)
    by_bits = [weight_sqnr(weight, QuantizationScheme(bits)) for bits in range(2, 9)]
    assert by_bits == sorted(by_bits) and by_bits[-1] - by_bits[-2] == pytest.approx(6.02, abs=1)  # 6 dB a bit
    scales = [weight_sqnr(weight, QuantizationScheme(4, granularity=g)) for g in ("tensor", "channel", "group")]
    assert scales == sorted(scales)
    assert weight_sqnr(torch.zeros(2, 4), QuantizationScheme(4)) == float("inf")


def language_model(**shape: Any) -> LSTMForCausalLM:
    torch.manual_seed(0)
    return LSTMForCausalLM(LSTMConfig(vocab_size=20, hidden_size=8, **shape)).eval()


def words(rows: int = 3, length: int = 5) -> dict[str, Tensor]:
    ids = torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_matrices_are_found_gate_by_gate() -> None:
    """Stops gates out of torch's order, and a reverse direction or a layer that is left out."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2), nn.GRU(4, 3))
    found = weight_matrices(model)
    assert [m.name for m in found[:5]] == ["0", *(f"1.weight_ih_l0.{g}" for g in ("input", "forget", "cell", "output"))]
    assert {m.name for m in found} >= {"1.weight_hr_l1_reverse.projection", "2.weight_hh_l0.new"}
    sizes = sum(m.weight.numel() for m in found)
    assert sizes == sum(p.numel() for p in model.parameters() if p.ndim == 2)


@torch.no_grad()
def test_one_gate_is_quantized_and_no_other() -> None:
    """Stops a gate's error from being that of the whole matrix."""
    torch.manual_seed(0)
    layer = nn.LSTM(4, 3, batch_first=True)
    scheme = QuantizationScheme(3)
    inputs = torch.randn(2, 5, 4)
    for i, one in enumerate(weight_matrices(layer)):
        by_hand = copy.deepcopy(layer)
        target = getattr(by_hand, "weight_ih_l0" if i < 4 else "weight_hh_l0")
        rows = slice(3 * (i % 4), 3 * (i % 4) + 3)
        target[rows] = round_trip(target[rows].clone(), scheme)
        before = layer(inputs)[0]
        with quantized(one, scheme, {}):
            during = layer(inputs)[0]
        assert torch.equal(during, by_hand(inputs)[0]) and not torch.equal(during, before)
        assert torch.equal(layer(inputs)[0], before)


@torch.no_grad()
def test_output_error_is_for_the_float_input_and_without_padding() -> None:
    """Stops errors of earlier layers, and outputs at padding, from being counted at a layer."""
    model, batches = language_model(), [words(), words(2, 4)]
    batches[1]["attention_mask"] = torch.ones(2, 4, dtype=torch.int64)
    matrices = weight_matrices(model)
    scheme = QuantizationScheme(3)
    found = output_sqnr(model, matrices, [scheme], batches, {})
    decoder = matrices[-1]
    assert decoder.name == "decoder"
    signal = noise = 0.0
    for batch in batches:
        states = model(**batch, output_hidden_states=True).hidden_states[-1]
        for row, length in zip(states, batch["attention_mask"].sum(1).tolist(), strict=True):
            for state in row[:length]:
                exact = model.decoder(state)
                rounded = nn.functional.linear(state, round_trip(decoder.weight, scheme), model.decoder.bias)
                signal += exact.square().sum().item()
                noise += (exact - rounded).square().sum().item()
    assert found[decoder, scheme] == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert len(found) == len(matrices) == 2 + 2 * 8 and all(np.isfinite(value) for value in found.values())


class Caller(nn.Module):
    """A model with an argument by name, as batches have it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values)


@torch.no_grad()
def test_activations_are_quantized_where_they_should_be() -> None:
    """Stops static ranges that are taken from the batch at hand, and dynamic ones from another."""
    layer = nn.Linear(4, 2, bias=False)
    (one,) = weight_matrices(layer)
    calibration, inputs = matrix(3, 4) * 0.1, matrix(5, 4, seed=1)
    ranges = activation_ranges(Caller(layer), [{"values": calibration}, {"values": calibration * 0.5}])
    assert ranges[layer].tolist() == [calibration.min(), calibration.max()]
    for kind in ("dynamic", "static"):
        scheme = QuantizationScheme(8, activations=kind)
        with quantized(one, scheme, ranges):
            found = layer(inputs)
        flat = inputs.flatten().numpy()
        if kind == "static":  # what lies beyond the range is cut
            flat = np.clip(flat, calibration.min().item(), calibration.max().item())
            flat = slow_round_trip(np.append(flat, ranges[layer].numpy()), 8, symmetric=False)[:-2]
        else:
            flat = slow_round_trip(flat, 8, symmetric=False)
        expected = torch.from_numpy(flat.reshape(inputs.shape)) @ round_trip(layer.weight, scheme).T
        assert torch.allclose(found, expected, atol=0.02 * ranges[layer].abs().max().item())
        assert not torch.equal(found, inputs @ round_trip(layer.weight, scheme).T)


@pytest.fixture(scope="module")
def classifier(tiny_model: Callable[..., Path]) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(tiny_model()).eval()


def texts() -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (6, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def closeness(reference: Tensor) -> Any:
    """A metric of one model: minus the mean distance of its logits from some others, for all rows and without each."""

    def score(model: nn.Module) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            rows = -(model(**texts()).logits - reference).abs().mean(1)
        return rows.mean().item(), np.array([(rows.sum() - row).item() / (len(rows) - 1) for row in rows])

    return score


@pytest.mark.parametrize("activations", ["float", "dynamic", "static"])
def test_leaves_the_model_exactly_as_it_was(classifier: PreTrainedModel, activations: Any) -> None:
    """Stops the second layer's sensitivity from being that of two layers, and an exported model from being rounded."""
    parameters = dict(classifier.named_parameters())
    values = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.no_grad():
        logits = classifier(**texts()).logits
    schemes = [QuantizationScheme(bits, activations=activations) for bits in (2, 8)]
    rows = analyze(classifier, schemes, [texts()], closeness(logits))
    assert len(rows) == 2 * len(weight_matrices(classifier))
    after = dict(classifier.named_parameters())
    assert all(after[name] is value for name, value in parameters.items()) and after.keys() == parameters.keys()
    assert all(torch.equal(value, values[name]) for name, value in classifier.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in classifier.modules())
    with torch.no_grad():
        assert torch.equal(classifier(**texts()).logits, logits)


def test_restores_after_an_error(classifier: PreTrainedModel) -> None:
    """Stops an interrupted analysis in a notebook from leaving a rounded model behind."""
    before = dict(classifier.named_parameters())
    calls = []

    def fail(model: nn.Module) -> tuple[float, np.ndarray]:
        if calls:
            raise RuntimeError("interrupted")
        calls.append(model)
        return 0.0, np.zeros(2)

    with pytest.raises(RuntimeError, match="interrupted"):
        analyze(classifier, [QuantizationScheme(4, activations="dynamic")], [texts()], fail)
    assert all(value is before[name] for name, value in classifier.named_parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in classifier.modules())


def test_finds_the_layer_that_was_made_fragile(classifier: PreTrainedModel) -> None:
    """Stops a ranking that has nothing to do with the layers: an outlier takes the scale from all other weights."""
    model = copy.deepcopy(classifier)
    fragile = "bert.encoder.layer.1.output.dense"
    with torch.no_grad():
        weight = model.get_submodule(fragile).weight
        weight[3, 5] = 60 * weight.abs().max()
        logits = model(**texts()).logits
    rows = analyze(model, [QuantizationScheme(6, granularity="tensor")], [texts()], closeness(logits))
    assert max(rows, key=lambda row: row.drop or 0).layer == fragile
    assert min(rows, key=lambda row: row.weight_sqnr).layer == fragile
    healed = analyze(model, [QuantizationScheme(6, granularity="group", group_size=8)], [texts()], closeness(logits))
    by_layer = {row.layer: row.drop for row in healed}
    assert by_layer[fragile] < 0.5 * max(row.drop or 0 for row in rows)


def test_drop_has_a_sign_and_a_paired_standard_error(classifier: PreTrainedModel) -> None:
    """Stops a rise of perplexity from counting as a gain, and a drop from having the error of the metric."""
    values = iter([(10.0, np.array([9.0, 11.0, 10.0])), *[(12.0, np.array([11.0, 13.0, 12.0]))] * 100])
    rows = analyze(classifier, [QuantizationScheme(4)], [texts()], lambda _: next(values), higher_is_better=False)
    assert {(row.metric, row.drop, row.standard_error) for row in rows} == {(12.0, 2.0, 0.0)}


def test_tied_weights_are_quantized_one_layer_at_a_time() -> None:
    """Stops the embedding's error from being that of embedding and decoder."""
    model = language_model(tie_word_embeddings=True)
    assert model.decoder.weight is model.embedding.weight
    embedding = weight_matrices(model)[0]
    kept = model.decoder.weight.clone()
    with quantized(embedding, QuantizationScheme(2), {}):
        assert torch.equal(model.decoder.weight, kept) and not torch.equal(model.embedding.weight, kept)
    assert model.decoder.weight is model.embedding.weight


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 1}, "`bits` to be between 2 and 8, but got 1"),
        ({"bits": 9}, "`bits` to be between 2 and 8, but got 9"),
        ({"granularity": "row"}, "`granularity` to be one of tensor, channel, group, but got 'row'"),
        ({"activations": "int8"}, "`activations` to be one of float, dynamic, static, but got 'int8'"),
    ],
)
def test_schemes_are_checked(values: dict[str, Any], message: str) -> None:
    """Stops 16 bits from being rounded to int8, and a mistyped granularity from being a KeyError."""
    with pytest.raises(InputError, match=message):
        QuantizationScheme(**values)


def test_what_does_not_fit_is_refused_before_the_first_batch(
    classifier: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a run of an hour from ending at its last layer."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(classifier), "forward", never)
    with pytest.raises(InputError, match="`group_size` to be a divisor of the 16 columns of every matrix, but got 5"):
        analyze(classifier, [QuantizationScheme(4, granularity="group", group_size=5)], [texts()])
    with pytest.raises(InputError, match="needs batches"):
        analyze(classifier, [QuantizationScheme(4)], [])
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"package torchao: pip install 'lightning-kd\[torchao\]'\."):
        analyze(classifier, [QuantizationScheme(4)], [texts()])


def test_results_are_written(classifier: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops a file with the columns of one matrix under the name of another."""
    with torch.no_grad():
        logits = classifier(**texts()).logits
    schemes = [QuantizationScheme(bits, granularity="tensor") for bits in (2, 4)]
    rows = analyze(classifier, schemes, [texts()], closeness(logits))
    write_csv(rows, tmp_path / "a.csv")
    draw_heat_map(rows, tmp_path / "a.png", "closeness")
    draw_heat_map(analyze(classifier, schemes, [texts()]), tmp_path / "b.png")
    print_worst(rows, "closeness", count=3)
    with (tmp_path / "a.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(r["layer"], int(r["bits"]), float(r["drop"])) for r in read] == [
        (row.layer, row.scheme.bits, row.drop) for row in rows
    ]
    assert {r["granularity"] for r in read} == {"tensor"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
    worst = max(rows, key=lambda row: row.drop or 0)
    assert f"{worst.drop:.4f}" in capsys.readouterr().out
