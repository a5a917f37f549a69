"""Int8 and int4 weights as torchao's tensors, for GPUs and torch.compile."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.quantization.analysis import QuantizationScheme
from lightning_kd.quantization.base import Forward, Quantizer, empty_model, named_logits, uncalled_layers, unreadable
from lightning_kd.quantization.fake_quantize import Rounding

__all__ = ["TorchAO"]

_OPTIONS = "lightning_kd"
_LAYERS = (nn.Linear, nn.Embedding)


class TorchAO(Quantizer):
    """Int8 or int4 weights as torchao's tensors in a transformers model: torch code that runs on any device.

    ========= ============ =============================================================================================
    weights   activations  what computes
    ========= ============ =============================================================================================
    ``int8``  ``dynamic``  Int8 products: a scale for each token's activations and for each output channel's weights.
    ``int8``  ``float``    Float products with int8 weights, a scale for each output channel.
    ``int4``  ``float``    Float products with int4 weights, a scale for each group in a row.
    ``int4``  ``dynamic``  The same with activations rounded to 8 bits, a scale and a zero point for each token:
                           ExecuTorch's ``8da4w``, but computed in float.
    ========= ============ =============================================================================================

    All scales of weights are symmetric, and nothing is calibrated. ``Embedding`` layers are quantized as weights are, a
    row being a channel. A ``Linear`` whose inputs or outputs are not a multiple of 8, such as a head of two labels,
    takes its activations in float: GPUs have no int8 product for it. ``LSTM`` and ``GRU`` layers stay in float. Int4
    weights take half a byte in the file and a whole one in memory; they save disk alone. Needs the extra ``torchao``.

    The file is read without unpickling anything, by torchao itself, too::

        with safe_open(f"{folder}/torchao.safetensors", "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        for name, pairs in tensors.items():
            if pairs.dtype == torch.uint8:  # int4
                tensors[name] = torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).to(torch.int8) - 8
        state, _ = torchao.prototype.safetensors.safetensors_support.unflatten_tensor_state_dict(tensors, metadata)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).eval()
        model.load_state_dict(state, assign=True)

    Relations:
        For serving on GPUs, or compiled: ``torch.compile(TorchAO.load(folder).to("cuda"))``, and before it, as these
        settings hold for the whole process, ``torchao.quantization.utils.recommended_inductor_config_setter()``. What
        :meth:`open` returns is not compiled, and slower on a CPU than the float model: there, take
        :class:`~lightning_kd.quantization.ONNXRuntimeInt8` or :class:`~lightning_kd.quantization.OpenVINOInt8`, or
        :class:`~lightning_kd.quantization.DynamicInt8`, which has int8 ``LSTM`` layers as well.

    Args:
        weights: ``int8`` or ``int4``.
        activations: ``dynamic``: rounded to 8 bits on the fly; ``float``: left as they are.
        group_size: Weights in a row that share a scale, an even number that divides the columns of every layer; 32
            unless given. With int8 weights there are no groups.

    Raises:
        InputError: If a value is not among these; in :meth:`check_model` and :meth:`convert`, if ``group_size`` does
            not divide the columns of a layer.
    """

    file_name: ClassVar[str] = "torchao.safetensors"

    def __init__(
        self,
        weights: Literal["int8", "int4"] = "int8",
        activations: Literal["dynamic", "float"] = "dynamic",
        group_size: int | None = None,
    ) -> None:
        if weights not in ("int8", "int4"):
            raise expected("weights", "int8 or int4", weights)
        if activations not in ("dynamic", "float"):
            raise expected("activations", "dynamic or float", activations)
        if weights == "int8" and group_size is not None:
            raise expected(
                "group_size", "left out with int8 weights, which have a scale per output channel", group_size
            )
        if group_size is not None and (group_size < 2 or group_size % 2):
            raise expected("group_size", "an even number above 0", group_size)
        self.weights = weights
        self.activations: Literal["dynamic", "float"] = activations
        self.group_size = 32 if weights == "int4" and group_size is None else group_size
        self.format = weights
        self.name = "torchao" if activations == "dynamic" else "torchao, weight-only"
        if self.group_size is not None:
            self.name += f", groups of {self.group_size}"

    @property
    def scheme(self) -> QuantizationScheme:
        if self.group_size is None:
            return QuantizationScheme(8, activations=self.activations)
        return QuantizationScheme(4, granularity="group", group_size=self.group_size, activations=self.activations)

    @property
    def rounding(self) -> Rounding:
        if self.weights != "int8":
            raise InputError(
                "TorchAO trains for int8 weights alone: set weights to int8, take ONNXRuntimeInt4, or leave mode: qat "
                "out."
            )
        steps = 255 if self.activations == "dynamic" else None
        return Rounding(127.5, (-128, 127), steps, embedding="weight", by_token=True, multiple_of=8)

    def check(self) -> None:
        if importlib.util.find_spec("torchao") is None:
            raise InputError("TorchAO needs the package torchao: pip install 'lightning-kd[torchao]'.")

    def check_model(self, model: PreTrainedModel, keep_float: Collection[str] = ()) -> None:
        for name, module in model.named_modules():
            if self.group_size is not None and type(module) in _LAYERS and name not in keep_float:
                columns: int = cast(Tensor, module.weight).shape[1]
                if columns % self.group_size:
                    raise expected("group_size", f"a divisor of the {columns} columns of {name}", self.group_size)

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.check()
        tensors, metadata = self._flatten(self._quantize(model, {*keep_float, *uncalled_layers(model)}))
        options = {"weights": self.weights, "activations": self.activations, "group_size": self.group_size}
        save_file(tensors, folder / self.file_name, {**metadata, _OPTIONS: json.dumps(options)})

    @classmethod
    def load(cls, folder: Path) -> PreTrainedModel:
        """The model that :meth:`convert` wrote, to be moved to a device or compiled.

        Args:
            folder: Where it is, with its ``config.json``.

        Returns:
            A transformers model in eval mode on the CPU, its weights torchao's tensors.

        Raises:
            InputError: If the extra is missing, or the files are damaged or do not fit each other.
        """
        cls().check()
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        path, empty = folder / cls.file_name, empty_model(folder)
        try:
            with safe_open(path, "pt") as file:
                options, tensors = file.metadata()[_OPTIONS], {name: file.get_tensor(name) for name in file.keys()}
            kept = [name for name, _ in empty.named_modules() if f"{name}.weight" in tensors]
            quantizer = cls(**json.loads(options))
            model = quantizer._quantize(empty, kept)
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unreadable(path) from error
        random, metadata = quantizer._flatten(model)
        if _layout(tensors) != _layout(random):
            raise unreadable(path)
        tensors = {name: _unpack(tensor) if tensor.dtype == torch.uint8 else tensor for name, tensor in tensors.items()}
        model.load_state_dict(unflatten_tensor_state_dict(tensors, metadata)[0], assign=True)
        _replace_forward(model)
        return model

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        model = cls.load(folder)

        def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with torch.inference_mode():
                return named_logits(model(**inputs))

        return forward

    def _quantize(self, model: PreTrainedModel, keep_float: Collection[str]) -> PreTrainedModel:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8DynamicActivationIntxWeightConfig,
            Int8WeightOnlyConfig,
            IntxWeightOnlyConfig,
            PerGroup,
            quantize_,
        )

        self.check_model(model, keep_float)

        def is_chosen(module: nn.Module, name: str) -> bool:
            return type(module) in _LAYERS and name not in keep_float

        def is_dynamic(module: nn.Module, name: str) -> bool:
            if self.activations == "float" or not isinstance(module, nn.Linear):
                return False
            return is_chosen(module, name) and module.in_features % 8 == 0 and module.out_features % 8 == 0

        def is_weight_only(module: nn.Module, name: str) -> bool:
            return is_chosen(module, name) and not is_dynamic(module, name)

        dynamic: Any
        weight_only: Any
        if self.group_size is None:  # its settings of torch.compile would be those of the whole process
            dynamic = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
            weight_only = Int8WeightOnlyConfig(set_inductor_config=False)
        else:
            group = PerGroup(self.group_size)
            int4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # torch's stubs lack it
            dynamic = Int8DynamicActivationIntxWeightConfig(int4, group)
            weight_only = IntxWeightOnlyConfig(int4, group)
        quantized = copy.deepcopy(model).eval()
        with torch.no_grad():
            quantize_(quantized, weight_only, is_weight_only)
            quantize_(quantized, dynamic, is_dynamic)
        return quantized

    def _flatten(self, quantized: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the file holds: plain tensors, and what makes torchao's tensors of them."""
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, metadata = flatten_tensor_state_dict(quantized.state_dict())
        for name, tensor in tensors.items():
            if self.weights == "int4" and name.endswith("._weight_qdata"):
                tensors[name] = _pack(tensor)
            else:  # a copy: weights that are tied share their memory, which the file does not
                tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        return tensors, metadata


def _pack(values: Tensor) -> Tensor:
    """-8 to 7, two to a byte."""
    low, high = (values.to(torch.uint8) + 8).unflatten(1, (-1, 2)).unbind(-1)
    return low | high << 4


def _unpack(pairs: Tensor) -> Tensor:
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).to(torch.int8) - 8


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


class _Embedding(nn.Embedding):
    """Looks rows up, and then dequantizes them: torchao dequantizes the whole table in every forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        values, scale, zero = (part[input] for part in (weight.qdata, weight.scale, weight.zero_point))
        groups = values.unflatten(-1, (scale.shape[-1], -1)).to(weight.dtype) - zero.unsqueeze(-1).to(weight.dtype)
        return (groups * scale.unsqueeze(-1)).flatten(-2)


class _Linear(nn.Linear):
    """Int8 layers on a processor that has no int8 products: the rounding is the same, the products are in float."""

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        if input.device.type != "cpu":
            return super().forward(input)
        tokens = type(weight).from_hp(input, weight.act_quant_kwargs.granularity)
        return F.linear(tokens.dequantize(), weight.dequantize(), self.bias)


def _replace_forward(model: nn.Module) -> None:
    products = _int8_products()
    for module in model.modules():
        if type(module) is nn.Embedding and hasattr(module.weight, "qdata"):
            module.__class__ = _Embedding
        elif type(module) is nn.Linear and getattr(module.weight, "act_quant_kwargs", None) and not products:
            module.__class__ = _Linear


def _int8_products() -> bool:
    """Whether int8 products are exact: with AVX2 and no VNNI, torch adds pairs of them in 16 bits, which overflow."""
    from torchao.kernel import int_scaled_matmul

    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return bool((int_scaled_matmul(largest, largest.t(), torch.ones(64, 1)) == 64 * 127 * 127).all())
