"""Dynamic int8 run by ONNX Runtime."""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_kd._checks import InputError
from lightning_kd.quantization.base import Forward, Quantizer, logit_outputs, named_logits, unreadable
from lightning_kd.quantization.fake_quantize import Rounding

__all__ = ["ONNXRuntimeInt8"]


class ONNXRuntimeInt8(Quantizer):
    """Int8 weights per output channel in one ONNX graph, activations quantized on the fly by ONNX Runtime.

    Matrix products compute in int8, embeddings are stored in int8. No calibration. The folder opens with plain
    ONNX Runtime (``model.onnx``) and with optimum-onnx. Needs the extra ``onnx``.

    Relations:
        Fast on every processor, and the fastest where there are no int8 dot products (AVX2 alone). Where there are,
        compare it with :class:`~lightning_kd.quantization.OpenVINOInt8`.

    Args:
        reduce_range: Use 7 of the 8 bits of a weight. Without int8 dot products the processor adds pairs of products
            in 16 bits, which overflow with 8-bit weights; leave it on unless the model is served with VNNI or AMX.
    """

    name = "ONNX Runtime"
    file_name: ClassVar[str] = "model.onnx"

    def __init__(self, reduce_range: bool = True) -> None:
        self.reduce_range = reduce_range

    @property
    def rounding(self) -> Rounding:
        steps = 64 if self.reduce_range else 127
        return Rounding(steps, (-steps, steps), activation_steps=255, embedding="table")

    def check(self) -> None:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise _missing()

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.check()
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as scratch, _quiet():
            graph = Path(scratch) / "float.onnx"
            _export(model, graph)
            quantize_dynamic(
                graph,
                folder / self.file_name,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=self.reduce_range,
                extra_options={"MatMulConstBOnly": True},
            )

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing() from error
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
            arrays = {name: value.numpy() for name, value in inputs.items() if name in names}
            found = zip(outputs, session.run(outputs, arrays), strict=True)
            return named_logits({name: torch.from_numpy(values) for name, values in found})

        return forward


def _export(model: PreTrainedModel, path: Path) -> None:
    """Write the float graph, batch and length open."""
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        example["token_type_ids"] = torch.zeros(2, 16, dtype=torch.int64)
    traced = copy.deepcopy(model).eval()
    outputs = logit_outputs(traced, example)
    traced.config.return_dict = False
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    torch.onnx.export(
        traced,
        (),
        path,
        kwargs=example,
        output_names=outputs,
        dynamic_shapes={name: {0: batch, 1: length} for name in example},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantizer's remarks, which a user can do nothing about."""
    root, exporter = logging.getLogger(), logging.getLogger("torch.onnx")
    levels = root.level, exporter.level
    root.setLevel(logging.ERROR)
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(levels[0])
        exporter.setLevel(levels[1])


def _missing() -> InputError:
    return InputError(
        "ONNXRuntimeInt8 needs the packages onnx, onnxruntime and onnxscript: pip install 'lightning-kd[onnx]'."
    )
