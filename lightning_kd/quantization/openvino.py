"""Static int8 by NNCF, run by OpenVINO."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.quantization.analysis import QuantizationScheme
from lightning_kd.quantization.base import (
    Forward,
    Quantizer,
    example_inputs,
    fed,
    graph_of,
    logits_alone,
    named_logits,
    refuse_decoder,
    refuse_layers,
    unreadable,
)

__all__ = ["OpenVINOInt8"]


class OpenVINOInt8(Quantizer):
    """Int8 weights and activations in one OpenVINO graph: NNCF's post-training quantization for transformers.

    Weights are quantized per channel, embeddings too; activations statically, with SmoothQuant (Xiao et al. 2023,
    arXiv 2211.10438) and fast bias correction, or not at all. The folder opens with plain OpenVINO
    (``openvino_model.xml``) and with optimum-intel. Needs the extra ``openvino``.

    Relations:
        On processors with int8 dot products (AVX-512 VNNI, AVX-VNNI, AMX) the fastest in batches and on passages.
        :class:`~lightning_kd.quantization.DynamicInt8` needs no extra and no calibration.

    Args:
        activations: ``static``: 8 bits, with the range of the calibration batches; ``float``: only weights are
            quantized, which makes the file as small and loses next to nothing; a little slower than ``static``.
        reduce_range: Use 7 of the 8 bits of a weight. Without int8 dot products the processor adds pairs of products
            in 16 bits, which overflow with 8-bit weights; leave it on unless the model is served with VNNI or AMX.
            Weights that meet activations in float have all 8.

    Raises:
        InputError: If ``activations`` is neither.
    """

    file_name: ClassVar[str] = "openvino_model.xml"

    def __init__(self, activations: Literal["static", "float"] = "static", reduce_range: bool = True) -> None:
        if activations not in ("static", "float"):
            raise expected("activations", "static or float", activations)
        self.activations = activations
        self.reduce_range = reduce_range
        self.needs_calibration = activations == "static"
        self.name = "OpenVINO" if activations == "static" else "OpenVINO, weight-only"

    @property
    def scheme(self) -> QuantizationScheme:
        return QuantizationScheme(
            7 if self.reduce_range and self.needs_calibration else 8, activations=self.activations
        )

    def check(self) -> None:
        _openvino()
        if importlib.util.find_spec("nncf") is None:
            raise _missing()

    def check_model(self, model: PreTrainedModel) -> None:
        refuse_decoder(self, model)
        # a GRU stays in float; one LSTM that is to stay so among int8 ones makes a graph that does not open
        refuse_layers(self, model, (nn.LSTM, nn.GRU), "take DynamicInt8, or ONNXRuntimeInt8 for LSTM.")

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.check_model(model)
        if self.needs_calibration and not calibration:
            raise InputError("OpenVINOInt8 needs training batches to calibrate on, but got none.")
        openvino = _openvino()
        import nncf

        with graph_of(self, model):
            graph = _convert(model, dict(calibration[0]) if calibration else example_inputs(model))
        ignored = nncf.IgnoredScope(names=_nodes_of(graph, keep_float))
        nncf_log = logging.getLogger("nncf")
        level = nncf_log.level
        nncf_log.setLevel(logging.ERROR)
        try:
            if self.activations == "float":
                mode = nncf.CompressWeightsMode.INT8_SYM
                quantized = nncf.compress_weights(graph, mode=mode, ignored_scope=ignored)
            else:
                fix = nncf.OverflowFix.ENABLE if self.reduce_range else nncf.OverflowFix.DISABLE
                read = {name for port in graph.inputs for name in port.get_names()}
                quantized = nncf.quantize(
                    graph,
                    nncf.Dataset(list(calibration), lambda batch: fed(batch, read)),
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=len(calibration),
                    ignored_scope=ignored,
                    advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
                )
        finally:
            nncf_log.setLevel(level)
        openvino.save_model(quantized, folder / self.file_name, compress_to_fp16=False)

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        openvino = _openvino()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = openvino.Core().compile_model(folder / cls.file_name, "CPU", options)
        except RuntimeError as error:
            raise unreadable(folder / cls.file_name) from error
        request = compiled.create_infer_request()
        names = {name for port in compiled.inputs for name in port.get_names()}
        outputs = [name for port in compiled.outputs for name in port.get_names() if name.endswith("logits")]

        def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = request.infer(fed(inputs, names), share_inputs=True)
            return named_logits({name: torch.from_numpy(found[name]) for name in outputs})

        return forward


def _convert(model: PreTrainedModel, example: dict[str, Tensor]) -> Any:
    """The float graph, batch and length open."""
    traced, outputs = logits_alone(model, example)
    parts = [part.config for part in traced.modules() if isinstance(part, PreTrainedModel)]
    if any("sliding_attention" in (getattr(part, "layer_types", None) or ()) for part in parts):
        # what a window shows padding alone is NaN in OpenVINO's attention; written out it is a mean that nobody reads
        traced.set_attn_implementation("eager")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on transformers' own Python branches
        graph = _openvino().convert_model(traced, example_input=example)
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    return graph


def _nodes_of(graph: Any, layers: Collection[str]) -> list[str]:
    """The names of the operations that have the layers' weights."""
    nodes = []
    for layer in layers:
        own = [
            op.get_friendly_name()
            for op in graph.get_ops()
            if op.get_type_name() in ("MatMul", "Gather") and op.get_friendly_name().startswith(f"__module.{layer}/")
        ]
        if not own:
            raise InputError(f"OpenVINOInt8 cannot keep {layer} in float: the graph has no operation of that name.")
        nodes += own
    return nodes


def _openvino() -> Any:
    """The openvino package, without the telemetry that it and NNCF send unless the package for it is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    try:
        import openvino
    except ImportError as error:
        raise _missing() from error
    return openvino


def _missing() -> InputError:
    return InputError("OpenVINOInt8 needs the packages openvino and nncf: pip install 'lightning-kd[openvino]'.")
