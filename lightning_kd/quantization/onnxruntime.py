"""Int8 and 4-bit models run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.quantization.analysis import QuantizationScheme
from lightning_kd.quantization.base import (
    Forward,
    Quantizer,
    fed,
    graph_of,
    named_logits,
    refuse_decoder,
    refuse_layers,
    unreadable,
)
from lightning_kd.quantization.fake_quantize import Rounding
from lightning_kd.quantization.onnx_export import WEIGHTED, export, float_nodes, forget_source, quiet

__all__ = ["ONNXRuntimeInt4", "ONNXRuntimeInt8"]

_Activations = Literal["dynamic", "static"]
_Calibration = Literal["minmax", "entropy", "percentile"]
_BlockSize = Literal[16, 32, 64, 128, 256]
#: Matrix products; ONNX Runtime makes one node of them and of what dequantizes their inputs.
_PRODUCTS = ["MatMul", "Gemm"]


class _ONNXRuntime(Quantizer):
    """One ONNX graph, however it is quantized."""

    file_name: ClassVar[str] = "model.onnx"

    def check(self) -> None:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise _missing(type(self))

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing(cls) from error
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(folder / cls.file_name, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no base of their own
            raise unreadable(folder / cls.file_name) from error
        names = {port.name for port in session.get_inputs()}
        outputs = [port.name for port in session.get_outputs() if port.name.endswith("logits")]

        def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = zip(outputs, session.run(outputs, fed(inputs, names)), strict=True)
            return named_logits({name: torch.from_numpy(values) for name, values in found})

        return forward


class ONNXRuntimeInt8(_ONNXRuntime):
    """Int8 weights per output channel in one ONNX graph, activations quantized on the fly or by fixed ranges.

    Matrix products compute in int8, embeddings are stored in int8. The folder opens with plain ONNX Runtime
    (``model.onnx``) and with optimum-onnx. Needs the extra ``onnx``.

    Relations:
        The fastest for one short text on every processor that it was measured on. Where there are int8 dot products,
        :class:`~lightning_kd.quantization.OpenVINOInt8` is faster in batches and on passages.
        :class:`~lightning_kd.quantization.ONNXRuntimeInt4` makes a file of less than two thirds.

    Args:
        activations: ``dynamic``: the range is that of each batch, without calibration, and the student can be trained
            for it (mode: qat). ``static``: the range is that of the calibration batches, so that a row's answer does
            not depend on the other rows of its batch; what lies beyond the range is cut. Neither is the faster.
        calibration: What the range of ``static`` is: ``minmax``, all that the calibration batches hold; ``entropy``,
            where the rounded distribution stays nearest to the float one (Migacz 2017, 8-bit inference with TensorRT);
            ``percentile``, all but the outermost 0.001 % of the values.
        reduce_range: Use 7 of the 8 bits of a weight. Without int8 dot products the processor adds pairs of products
            in 16 bits, which overflow with 8-bit weights; leave it on unless the model is served with VNNI or AMX.

    Raises:
        InputError: If ``calibration`` is given for ``dynamic``.
    """

    def __init__(
        self, activations: _Activations = "dynamic", calibration: _Calibration = "minmax", reduce_range: bool = True
    ) -> None:
        if activations not in get_args(_Activations):
            raise expected("activations", f"one of {', '.join(get_args(_Activations))}", activations)
        if calibration not in get_args(_Calibration):
            raise expected("calibration", f"one of {', '.join(get_args(_Calibration))}", calibration)
        if activations == "dynamic" and calibration != "minmax":
            raise expected(
                "calibration", "left out where activations are dynamic", calibration, "Or set activations: static."
            )
        self.activations = activations
        self.calibration = calibration
        self.reduce_range = reduce_range
        self.needs_calibration = activations == "static"
        self.name = "ONNX Runtime" if activations == "dynamic" else "ONNX Runtime, static"

    def check_model(self, model: PreTrainedModel) -> None:
        refuse_decoder(self, model)
        if self.activations == "static":
            refuse_layers(self, model, (nn.LSTM, nn.GRU), "take DynamicInt8; or activations: dynamic, with LSTM alone.")
        refuse_layers(self, model, (nn.GRU,), "take DynamicInt8, or a student with cell: lstm.")

    @property
    def scheme(self) -> QuantizationScheme:
        return QuantizationScheme(7 if self.reduce_range else 8, activations=self.activations)

    @property
    def rounding(self) -> Rounding:
        if self.activations == "static":
            raise InputError(
                "ONNXRuntimeInt8 with activations: static quantizes after training alone (mode: ptq): for "
                "quantization-aware training take activations: dynamic."
            )
        steps = 64 if self.reduce_range else 127
        return Rounding(steps, (-steps, steps), activation_steps=255, embedding="table")

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.check()
        self.check_model(model)
        if self.needs_calibration and not calibration:
            raise InputError("ONNXRuntimeInt8 needs training batches to calibrate on, but got none.")
        import onnx

        with tempfile.TemporaryDirectory() as scratch, quiet():
            graph = Path(scratch) / "float.onnx"
            with graph_of(self, model):
                exact = export(model)
            in_float = float_nodes(exact.graph, keep_float)
            forget_source(exact.graph)
            onnx.save(exact, graph)
            if self.activations == "static":
                self._quantize_static(graph, calibration, folder / self.file_name, in_float)
            else:
                self._quantize_dynamic(graph, folder / self.file_name, in_float)

    def _quantize_dynamic(self, graph: Path, path: Path, in_float: list[str]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=WEIGHTED,
            # it first makes a product and a sum of each Gemm, by another name
            nodes_to_exclude=[*in_float, *(f"{name}_MatMul" for name in in_float)],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=self.reduce_range,
            extra_options={"MatMulConstBOnly": True},
        )

    def _quantize_static(
        self, graph: Path, batches: Sequence[Mapping[str, Tensor]], path: Path, in_float: list[str]
    ) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        ports = [port.name for port in onnx.load(graph).graph.input]
        quantized = graph.with_name("static.onnx")
        quantize_static(
            graph,
            quantized,
            _Reader(batches, ports),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=WEIGHTED,
            nodes_to_exclude=in_float,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=self.reduce_range,
            calibrate_method={
                "minmax": CalibrationMethod.MinMax,
                "entropy": CalibrationMethod.Entropy,
                "percentile": CalibrationMethod.Percentile,
            }[self.calibration],
            extra_options={
                "OpTypesToExcludeOutputQuantization": _PRODUCTS,  # sums and norms that follow need more than 8 bits
                "CalibStridedMinMax": 1,  # batch by batch, for every method: shapes differ, and memory is small
            },
        )
        model = onnx.load(quantized)
        _products_alone(model.graph, in_float)
        onnx.save(model, path)


class ONNXRuntimeInt4(_ONNXRuntime):
    """4-bit weights with a scale per block in one ONNX graph: the smallest file.

    A block's weights are integers from -8 to 7 times a float32 scale, those of embeddings too, so that a weight takes
    4 + 32 / ``block_size`` bits. No calibration. The folder opens with plain ONNX Runtime (``model.onnx``), whose
    operators ``MatMulNBits`` and ``GatherBlockQuantized`` are not part of the ONNX standard: other runtimes do not open
    it. Needs the extra ``onnx``.

    Relations:
        Where size or memory counts. :class:`~lightning_kd.quantization.ONNXRuntimeInt8` is nearer to the float model
        and about twice as fast; with large batches 4 bits are slower than float. Train for 4 bits (mode: qat), or keep
        the layers that suffer most in float.

    Args:
        block_size: Neighbouring weights of an output channel, or of an embedding's row, that share a scale: 16, 32, 64,
            128 or 256. The smaller, the nearer to the float model and the larger the file.
        int8_activations: Compute in int8, with a scale per token and block; otherwise weights alone are rounded, and
            products compute in float.

    Raises:
        InputError: If ``block_size`` is none of these.
    """

    format = "int4"

    def __init__(self, block_size: _BlockSize = 32, int8_activations: bool = True) -> None:
        if block_size not in get_args(_BlockSize):
            raise expected("block_size", f"one of {', '.join(map(str, get_args(_BlockSize)))}", block_size)
        self.block_size = block_size
        self.int8_activations = int8_activations
        self.name = "ONNX Runtime" if int8_activations else "ONNX Runtime, weight-only"

    def check_model(self, model: PreTrainedModel) -> None:
        refuse_decoder(self, model)
        refuse_layers(self, model, (nn.LSTM, nn.GRU), "take DynamicInt8.")

    @property
    def scheme(self) -> QuantizationScheme:
        activations: Literal["dynamic", "float"] = "dynamic" if self.int8_activations else "float"
        return QuantizationScheme(4, granularity="group", group_size=self.block_size, activations=activations)

    @property
    def rounding(self) -> Rounding:
        steps = 127 if self.int8_activations else None
        return Rounding(8, (-8, 7), activation_steps=steps, embedding="weight", group_size=self.block_size)

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.check()
        self.check_model(model)
        import onnx

        with quiet():
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            with graph_of(self, model):
                graph = export(model)
            in_float = float_nodes(graph.graph, keep_float)
            forget_source(graph.graph)
            _gemms_to_products(graph.graph, in_float)
            quantizer = MatMulNBitsQuantizer(
                graph,
                block_size=self.block_size,
                is_symmetric=True,
                accuracy_level=4 if self.int8_activations else 1,
                nodes_to_exclude=in_float,
                op_types_to_quantize=("MatMul", "Gather"),
                quant_axes=(("MatMul", 0), ("Gather", 1)),
            )
            quantizer.process()
            quantized = quantizer.model.model
            _once(quantized.graph)
            onnx.save(quantized, folder / self.file_name)


class _Reader:
    """Calibration batches as ONNX Runtime asks for them; it needs no more than these methods."""

    def __init__(self, batches: Sequence[Mapping[str, Tensor]], ports: Collection[str]) -> None:
        self._batches, self._ports = batches, ports
        self._range = iter(range(len(batches)))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Any] | None:
        index = next(self._range, None)
        if index is None:
            return None
        return fed(self._batches[index], self._ports)


def _products_alone(graph: Any, in_float: Collection[str]) -> None:
    """Leave rounded activations to the quantized products.

    ONNX Runtime's quantizer hands them to every reader of the same tensor, so that what is added past a layer, and
    layers that are to stay in float, would be rounded along: 2 dB of a MiniLM's output.
    """
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in _PRODUCTS and node.name not in in_float):
            continue
        for index, name in enumerate(node.input):
            dequantize = makers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in makers:
                continue  # the last is a weight
            exact = makers[dequantize.input[0]].input[0]
            # rows of an int8 table lose nothing by it, and would else be read from a float copy of the table
            if exact not in makers or makers[exact].op_type != "Gather" or makers[exact].name in in_float:
                node.input[index] = exact


def _gemms_to_products(graph: Any, in_float: Collection[str]) -> None:
    """Rewrite each product with a bias that is to be quantized, as 4 bits are for ``MatMul`` alone."""
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.name in in_float:
            nodes.append(node)
            continue
        values, weight, *bias = node.input  # the exporter writes values @ weight.T + bias, and nothing else
        transposed = f"{weight}_transposed"
        if transposed not in weights:
            tensor = numpy_helper.from_array(numpy_helper.to_array(weights[weight]).T.copy(), transposed)
            weights[transposed] = tensor
            graph.initializer.append(tensor)
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [values, transposed], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, *bias], node.output, name=f"{node.name}_bias"))
    del graph.node[:]
    graph.node.extend(nodes)


def _once(graph: Any) -> None:
    """Write the weight of a layer that is called more than once, as in ALBERT, only once."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    del graph.initializer[:]
    graph.initializer.extend(tensors.values())


def _missing(kind: type[Quantizer]) -> InputError:
    return InputError(
        f"{kind.__name__} needs the packages onnx, onnxruntime and onnxscript: pip install 'lightning-kd[onnx]'."
    )
