"""A fake-quantized model computes what the converted one does."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd import InputError
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8, Quantizer, TorchAO
from lightning_kd.quantization.fake_quantize import (
    Rounding,
    fake_quantize,
    fake_quantize_activation,
    fake_quantize_weight,
    restore,
)
from lightning_kd.quantization.onnxruntime import ONNXRuntimeInt4
from tests.conftest import needs_extra
from tests.quantization.test_backends import inputs, train

COARSE = Rounding(weight_steps=4, weight_range=(-4, 4), activation_steps=15, embedding="table")
GROUPS = Rounding(weight_steps=8, weight_range=(-8, 7), activation_steps=127, embedding="weight", group_size=2)


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def trained(request: pytest.FixtureRequest) -> PreTrainedModel:
    return train(request.param)


@pytest.mark.parametrize(
    "quantizer",
    [
        DynamicInt8(),
        ONNXRuntimeInt8(),
        ONNXRuntimeInt8(reduce_range=False),
        ONNXRuntimeInt4(),
        ONNXRuntimeInt4(block_size=128),
        ONNXRuntimeInt4(block_size=16, int8_activations=False),
        TorchAO(),
        TorchAO(activations="float"),
    ],
    ids=[
        *("torch", "onnx", "onnx-8-bits", "onnx-4-bits", "onnx-4-bits-128", "onnx-4-bits-weight-only"),
        *("torchao", "torchao-weight-only"),
    ],
)
def test_it_computes_what_the_backend_computes(quantizer: Quantizer, trained: PreTrainedModel, tmp_path: Path) -> None:
    """Stops a student from being trained for another rounding than that which it is served with."""
    needs_extra(quantizer)
    quantizer.convert(trained, [], tmp_path)
    trained.config.save_pretrained(tmp_path)
    forward = quantizer.open(tmp_path)
    fake = copy.deepcopy(trained)
    fake_quantize(fake, quantizer.rounding)
    model_type = trained.config.model_type
    batches = [inputs(model_type, 1, 7), inputs(model_type, 8, 12, seed=5)]
    if getattr(quantizer, "reduce_range", True) is False and not _has_int8_dot_products():
        pytest.skip("this processor adds pairs of 8-bit products in 16 bits, which overflow")
    for batch in batches:
        with torch.no_grad():
            real, rounded, exact = forward(batch)["logits"], fake(**batch).logits, trained(**batch).logits
        # With a scale a token, noise in the sixth digit may take a value of one token over to the next integer.
        near = 1e-4 if quantizer.rounding.by_token else 2e-5
        assert (real - exact).abs().max() > 4 * near, "or the test could not fail"
        torch.testing.assert_close(real, rounded, rtol=0, atol=near)


def _has_int8_dot_products() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "vnni" in flags.read_text()


@given(
    weight=st.lists(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    steps=st.sampled_from([(4.0, (-4, 4)), (7.5, (-8, 7)), (64.0, (-64, 64)), (127.5, (-128, 127))]),
)
def test_weights_are_rounded_by_channel(weight: list[list[float]], steps: tuple[float, tuple[int, int]]) -> None:
    """Stops one large weight from costing the other channels their precision."""
    rounding = Rounding(*steps, activation_steps=255, embedding="row")
    found = fake_quantize_weight(torch.tensor(weight), rounding)
    for row, got in zip(weight, found.tolist(), strict=True):
        largest = max(map(abs, row))
        scale = max(largest / steps[0], 1e-38)
        for value, rounded in zip(row, got, strict=True):
            assert min(abs(rounded - k * scale) for k in range(steps[1][0], steps[1][1] + 1)) <= 1e-5
            assert abs(rounded - value) <= scale * (0.5 if value < largest or steps[0] == steps[1][1] else 1) + 1e-5


@given(values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), steps=st.sampled_from([15, 127, 255]))
def test_activations_are_rounded_together(values: list[float], steps: int) -> None:
    """Stops a 0, as of a ReLU or of a mask, from coming back as something else, and large values from being cut."""
    rounding = Rounding(64, (-64, 64), activation_steps=steps, embedding="row")
    low, high = min(0.0, *values), max(0.0, *values)
    scale = (high - low) / steps
    found = fake_quantize_activation(torch.tensor([0.0, *values]), rounding)
    assert found[0] == 0
    assert (found[1:] - torch.tensor(values)).abs().max() <= scale + 1e-5
    assert len(found.unique()) <= steps + 1


matrices = st.lists(st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5), min_size=1, max_size=3)


@given(matrices)
def test_weights_are_rounded_by_group(matrix: list[list[float]]) -> None:
    """Stops a group's largest weight from landing on 7 steps, or with another sign: ONNX Runtime has it on -8."""
    found = fake_quantize_weight(torch.tensor(matrix), GROUPS).tolist()
    for row, got in zip(matrix, found, strict=True):
        for start in range(0, 5, 2):
            group = row[start : start + 2]
            largest = max(group, key=abs)
            step = abs(largest) / 8
            assert len(got) == 5
            for value, rounded in zip(group, got[start : start + 2], strict=True):
                if abs(value) == abs(largest):  # or the opposite of it, which has one step less
                    assert min(abs(rounded - value), abs(rounded - value * 7 / 8)) <= 1e-5
                else:
                    assert abs(rounded - value) <= step * (0.5 if value * largest > -7 / 8 * largest**2 else 1) + 1e-5
            if largest and -largest not in group:
                assert abs(got[start + group.index(largest)] - largest) <= 1e-5


@given(matrices)
def test_activations_are_rounded_by_token_and_group(matrix: list[list[float]]) -> None:
    """Stops one token's outlier from costing the others their precision, which the backend keeps apart."""
    found = fake_quantize_activation(torch.tensor(matrix), GROUPS)
    assert found.shape == (len(matrix), 5) and found.isfinite().all()
    for row, got in zip(matrix, found.tolist(), strict=True):
        for start in range(0, 5, 2):
            step = max(map(abs, row[start : start + 2])) / 127
            for value, rounded in zip(row[start : start + 2], got[start : start + 2], strict=True):
                assert abs(rounded - value) <= step / 2 + 1e-5


def test_activations_can_stay_in_float() -> None:
    """Stops weight-only training from rounding inputs that the backend does not."""
    layer, values = nn.Linear(5, 3, bias=False), torch.randn(4, 5)
    fake_quantize(layer, replace(GROUPS, activation_steps=None))
    assert torch.equal(layer(values), values @ fake_quantize_weight(layer.weight, GROUPS).T)


def test_what_is_kept_in_float_is_not_rounded() -> None:
    """Stops a student from being trained for a rounding that its export leaves out."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    fake_quantize(model, COARSE, keep_float=["0", "2"])
    assert [type(module) in (nn.Embedding, nn.Linear) for module in model] == [True, False, True]
    restore(model)
    assert [type(module) for module in model] == [nn.Embedding, nn.Linear, nn.Linear]


@pytest.mark.parametrize("rounding", [COARSE, GROUPS], ids=["channels", "groups"])
def test_the_gradient_passes_straight_through(rounding: Rounding) -> None:
    """Stops training from standing still: the derivative of rounding is 0 almost everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    fake_quantize(model, rounding)
    ids, target = torch.tensor([[1, 2], [3, 4]]), torch.randn(2, 2, 3)
    (model(ids) * target).sum().backward()
    embedding, linear = model
    rows = fake_quantize_activation(embedding(ids), rounding).detach()
    assert linear.weight.grad is not None and embedding.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, torch.einsum("blo,bli->oi", target, rows))
    rounded = fake_quantize_weight(linear.weight, rounding).detach()
    torch.testing.assert_close(embedding.weight.grad[1:], (target @ rounded).flatten(0, 1))


def test_it_leaves_no_trace(trained: PreTrainedModel) -> None:
    """Stops a checkpoint of the training from being one that only the training can load."""
    model = copy.deepcopy(trained)
    kinds = [type(module) for module in model.modules()]
    batch = inputs(model.config.model_type, 4, 9)
    fake_quantize(model, COARSE)
    assert model.state_dict().keys() == trained.state_dict().keys()
    assert all(model.state_dict()[name].equal(value) for name, value in trained.state_dict().items())
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, trained(**batch).logits)
        restore(model)
        assert torch.equal(model(**batch).logits, trained(**batch).logits)
    assert [type(module) for module in model.modules()] == kinds


def test_mixed_precision_rounds_in_float32() -> None:
    """Stops scales of a few bits from hiding the rounding that is to be trained for."""
    torch.manual_seed(0)
    layer, values = nn.Linear(16, 8), torch.randn(4, 16)
    fake_quantize(layer, COARSE)

    def products(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    exact = layer(values)
    assert products(values).dtype == torch.bfloat16
    torch.testing.assert_close(products(values).float(), exact, rtol=2e-2, atol=2e-2)


def test_a_backend_that_cannot_be_trained_for_says_so() -> None:
    """Stops a training that rounds otherwise than the backend does."""
    with pytest.raises(InputError, match=r"OpenVINOInt8 quantizes after training alone .* ONNXRuntimeInt8"):
        _ = OpenVINOInt8().rounding
    with pytest.raises(InputError, match="TorchAO trains for int8 weights alone"):
        _ = TorchAO(weights="int4").rounding
