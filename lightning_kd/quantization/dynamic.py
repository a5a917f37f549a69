"""Dynamic int8 with the kernels that torch brings."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd.quantization.base import (
    Forward,
    Quantizer,
    empty_model,
    named_logits,
    quantizable_layers,
    uncalled_layers,
    unreadable,
)
from lightning_kd.quantization.fake_quantize import Rounding

__all__ = ["DynamicInt8"]

_SCALE = "_scale"


class DynamicInt8(Quantizer):
    """Int8 weights per output channel, activations quantized on the fly: torch's own CPU kernels.

    ``Linear``, ``LSTM`` and ``GRU`` layers compute in int8 and embeddings are stored in 8 bits a row. No calibration
    and no extra package. The folder holds safetensors; nothing in it is unpickled.

    Relations:
        Always at hand. :class:`~lightning_kd.quantization.OpenVINOInt8` also removes Python from the forward pass,
        and is faster on processors with int8 dot products (AVX-512 VNNI, AVX-VNNI, AMX).
    """

    name = "torch"
    file_name: ClassVar[str] = "int8.safetensors"

    @property
    def rounding(self) -> Rounding:
        return Rounding(127.5, (-128, 127), activation_steps=127, embedding="row")

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        save_file(_state(_quantize(model, {*keep_float, *uncalled_layers(model)})), folder / self.file_name)

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        empty = empty_model(folder)
        try:
            state = load_file(folder / cls.file_name)
        except (OSError, SafetensorError) as error:
            raise unreadable(folder / cls.file_name) from error
        quantized = {key.removesuffix(_SCALE).rpartition(".")[0] for key in state if key.endswith(_SCALE)}
        model = _quantize(empty, set(quantizable_layers(empty)) - quantized)
        if _layout(state) != _layout(_state(model)):
            raise unreadable(folder / cls.file_name)
        for name, module in list(model.named_modules()):
            if _is_quantized(module):
                _pack(module, {key: state.pop(f"{name}.{key}") for key in _unpack(module)})
                module.register_forward_pre_hook(_contiguous)
        with torch.no_grad():  # not load_state_dict: torch's quantized embedding cannot go without its own entries
            for name, tensor in _floats(model).items():
                tensor.copy_(state[name])

        def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with torch.inference_mode():
                return named_logits(model(**inputs))

        return forward


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.ao is deprecated in favour of torchao, which has no CPU kernels for eager mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which says that
        warnings.simplefilter("ignore", UserWarning)  # its own use of deprecated storages
        yield


def _quantize(model: PreTrainedModel, keep_float: Collection[str] = ()) -> nn.Module:
    with _quiet():
        from torch.ao.quantization import (
            float_qparams_weight_only_qconfig,
            per_channel_dynamic_qconfig,
            quantize_dynamic,
        )

        layers: dict[Any, Any] = dict.fromkeys((nn.Linear, nn.LSTM, nn.GRU), per_channel_dynamic_qconfig)
        layers[nn.Embedding] = float_qparams_weight_only_qconfig
        layers.update(dict.fromkeys(keep_float))
        return quantize_dynamic(copy.deepcopy(model).eval(), layers)


def _is_quantized(module: nn.Module) -> bool:
    from torch.ao.nn.quantized import Embedding
    from torch.ao.nn.quantized.dynamic import GRU, LSTM, Linear

    return isinstance(module, (Embedding, Linear, LSTM, GRU))


def _state(quantized: nn.Module) -> dict[str, Tensor]:
    """All that the file holds."""
    state: dict[str, Tensor] = {}
    for name, module in quantized.named_modules():
        if _is_quantized(module):
            state.update({f"{name}.{key}": value for key, value in _unpack(module).items()})
    return {**state, **{name: tensor.contiguous() for name, tensor in _floats(quantized).items()}}


def _layout(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs as torch's quantized embedding wants them; BERT's own token types are one row that is repeated."""
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """The entries of the state dict that belong to no quantized layer."""
    quantized = [f"{name}." for name, module in model.named_modules() if _is_quantized(module)]
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(tuple(quantized))}


def _unpack(module: Any) -> dict[str, Tensor]:
    """The tensors of one quantized layer."""
    if hasattr(module, "get_weight"):  # LSTM and GRU: several of each
        weights, biases = module.get_weight(), module.get_bias()
    else:
        weights, bias = {"weight": module.weight()}, module.bias() if hasattr(module, "bias") else None
        biases = {} if bias is None else {"bias": bias}
    tensors = {}  # copies: those of an embedding point into the module's memory, and do not keep it alive
    for name, weight in weights.items():
        tensors[name] = weight.int_repr()
        tensors[f"{name}{_SCALE}"] = weight.q_per_channel_scales().clone()
        tensors[f"{name}_zero_point"] = weight.q_per_channel_zero_points().clone()
    return {**tensors, **{name: bias.detach().clone() for name, bias in biases.items()}}


def _pack(module: Any, tensors: Mapping[str, Tensor]) -> None:
    scales = {name.removesuffix(_SCALE): scale for name, scale in tensors.items() if name.endswith(_SCALE)}
    weights = {
        name: torch._make_per_channel_quantized_tensor(tensors[name], scale, tensors[f"{name}_zero_point"], 0)
        for name, scale in scales.items()
    }
    biases = {name: tensor for name, tensor in tensors.items() if name.startswith("bias")}
    if hasattr(module, "get_weight"):
        module.set_weight_bias({**weights, **biases})
    elif hasattr(module, "set_weight_bias"):
        module.set_weight_bias(weights["weight"], biases.get("bias"))
    else:
        module.set_weight(weights["weight"])
