"""A model as an ONNX graph, and which node of it came from which layer."""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError
from lightning_kd.quantization.base import example_inputs, logits_alone

__all__ = ["WEIGHTED", "export", "float_nodes", "forget_source", "quiet"]

#: What the exporter makes of a ``Linear`` with three-dimensional input, of one with two, of an ``Embedding``, and of an
#: ``LSTM``.
WEIGHTED = ["MatMul", "Gemm", "Gather", "LSTM"]
_SCOPES = "pkg.torch.onnx.name_scopes"
#: The first version of ONNX's operators in which attention is one of them; 21 is the first with 4-bit tensors.
_OPSET = 23


def export(model: PreTrainedModel) -> Any:
    """A model's float graph as onnx's ``ModelProto``, batch and length open.

    Args:
        model: The model; it is not changed.
    """
    example = example_inputs(model)
    traced, outputs = logits_alone(model, example)
    for name, module in list(traced.named_modules()):
        if _is_plain(module):
            traced.set_submodule(name, _Recurrent(module))
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    program: Any = torch.onnx.export(
        traced,
        (),
        kwargs=example,
        output_names=outputs,
        opset_version=_OPSET,
        dynamic_shapes={name: {0: batch, 1: length} for name in example},
        dynamo=True,
        verbose=False,
    )
    exported = program.model_proto
    _sums_before_norms(exported.graph)
    _attention_cuts_heads(exported.graph)
    _rotations_by_row(exported.graph)
    return exported


def _sums_before_norms(graph: Any) -> None:
    """Write what a layer adds to its input as ``Sum``, which is ``Add`` for any number of inputs.

    ONNX Runtime makes one node of ``Add`` and ``LayerNormalization``, which takes six times as long as the two: a
    quarter of a MiniLM's time in int8.
    """
    weights = {tensor.name for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            added = makers.get(node.input[0])
            if added is not None and added.op_type == "Add" and not weights.intersection(added.input):
                added.op_type = "Sum"


def _attention_cuts_heads(graph: Any) -> None:
    """Give attention the rows as the projections make them, for it to cut into heads itself.

    The exporter puts a ``Reshape`` and a ``Transpose`` around each of its inputs and its output, which copy them: a
    tenth of a MiniLM's time in int8.
    """
    from onnx import helper

    makers: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    reading: dict[str, Any] = {name: node for node in graph.node for name in node.input}
    count = Counter(name for node in graph.node for name in node.input)
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    for node in [node for node in graph.node if node.op_type == "Attention"]:
        swaps: list[Any] = [makers.get(name) for name in node.input[:3]]
        splits: list[Any] = [makers.get(swap.input[0]) for swap in swaps if _swaps_heads(swap)]
        back = reading.get(node.output[0])
        joined = reading.get(back.output[0]) if back is not None and _swaps_heads(back) else None
        query, key, value = ([*shapes.get(name, []), 0, 0][1] for name in node.input[:3])  # their heads
        if len(splits) < 3 or not all(map(_reshapes, [*splits, joined])) or not query or not key == value > 0:
            continue
        if joined is None or back is None or count[node.output[0]] + count[back.output[0]] > 2:
            continue
        for i, split in enumerate(splits):
            node.input[i] = split.input[0]
        node.output[0] = joined.output[0]
        heads = {"q_num_heads": query, "kv_num_heads": key}
        node.attribute.extend(helper.make_attribute(name, number) for name, number in heads.items())
        graph.node.remove(back)
        graph.node.remove(joined)
        for part in [*swaps, *splits]:
            if part in graph.node and not any(part.output[0] in other.input for other in graph.node):
                graph.node.remove(part)


def _rotations_by_row(graph: Any) -> None:
    """Repeat the angles of rotary positions for each row of a batch.

    The exporter writes them once, which the operator does not allow: ONNX Runtime runs one row and refuses two.
    """
    from onnx import TensorProto, helper

    turned = [node for node in graph.node if node.op_type == "RotaryEmbedding" and len(node.input) == 3]
    if not turned:
        return
    ones = helper.make_tensor("rotation_ones", TensorProto.INT64, [2], [1, 1])
    rows = helper.make_node("Shape", [graph.input[0].name], ["rotation_rows"], start=0, end=1)
    shape = helper.make_node("Concat", ["rotation_rows", ones.name], ["rotation_shape"], axis=0)
    graph.initializer.append(ones)
    graph.node.insert(0, rows)
    graph.node.insert(1, shape)
    for name in dict.fromkeys(name for node in turned for name in node.input[1:]):
        repeated = helper.make_node("Expand", [name, shape.output[0]], [f"{name}_by_row"], name=f"{name}_by_row")
        first = min(i for i, node in enumerate(graph.node) if name in node.input)
        graph.node.insert(first, repeated)
        for node in turned:
            for i, given in enumerate(node.input):
                if given == name:
                    node.input[i] = repeated.output[0]


def _swaps_heads(node: Any) -> bool:
    return getattr(node, "op_type", "") == "Transpose" and [*node.attribute[0].ints] == [0, 2, 1, 3]


def _reshapes(node: Any) -> bool:
    return getattr(node, "op_type", "") == "Reshape"


def _is_plain(module: nn.Module) -> bool:
    return (
        isinstance(module, (nn.LSTM, nn.GRU))
        and (module.num_layers, module.bidirectional, module.proj_size) == (1, False, 0)
        and module.batch_first
        and module.bias
    )


class _Recurrent(nn.Module):
    """A recurrent layer as the one operator that it is in ONNX; torch traces its steps, as many as the example has."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.width = layer.hidden_size
        state = {name.removesuffix("_l0"): value.detach() for name, value in layer.named_parameters()}
        self.weight_ih, self.weight_hh = (self._gates(state[f"weight_{part}"])[None] for part in ("ih", "hh"))
        self.bias = torch.cat([self._gates(state[f"bias_{part}"]) for part in ("ih", "hh")])[None]

    def _gates(self, values: Tensor) -> Tensor:
        """The gates in the order of ONNX: LSTM i, o, f, c for torch's i, f, c, o; GRU z, r, h for torch's r, z, h."""
        gates = values.chunk(len(values) // self.width)
        return torch.cat([gates[i] for i in ((0, 3, 1, 2) if self.kind == "LSTM" else (1, 0, 2))])

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        rows, length = inputs.shape[:2]
        attributes = {"hidden_size": self.width, **({} if self.kind == "LSTM" else {"linear_before_reset": 1})}
        output = torch.onnx.ops.symbolic(
            self.kind,
            (inputs.transpose(0, 1), self.weight_ih, self.weight_hh, self.bias),
            attributes,
            dtype=inputs.dtype,
            shape=(length, 1, rows, self.width),
        )
        return output.squeeze(1).transpose(0, 1), None


def float_nodes(graph: Any, keep_float: Collection[str]) -> list[str]:
    """The names of the products and look-ups that stay in float: those of some layers, and those without a weight.

    Args:
        graph: What :func:`export` wrote, as onnx reads it.
        keep_float: Dotted names of layers.

    Raises:
        InputError: If the graph does not say where a layer is.
    """
    import onnx

    matrices = {t.name for t in graph.initializer if len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT}
    nodes = [node for node in graph.node if node.op_type in WEIGHTED]
    layers = {n.name: _layer(n) for n in nodes if n.op_type == "LSTM" or matrices.intersection(n.input)}
    # a table that is read as a whole, as that of DeBERTa's relative positions, is in no such node, and in float anyway
    elsewhere = matrices.difference(*(node.input for node in nodes))
    for name in keep_float:
        if name not in layers.values() and f"{name}.weight" not in elsewhere:
            raise InputError(f"ONNX Runtime cannot keep the layer {name} in float: its graph has no node for it.")
    return [node.name for node in nodes if layers.get(node.name) in (None, *keep_float)]


def forget_source(graph: Any) -> None:
    """Take out what the exporter notes of each part: stack traces, with the paths of the machine that it ran on."""
    for parts in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for part in parts:
            del part.metadata_props[:]


def _layer(node: Any) -> str:
    """The dotted name of the layer that a node computes, or nothing."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    # outermost first, the operation last; what is called for the second time is marked by @1
    modules = ["", *ast.literal_eval(scopes)[:-1]]
    return re.sub(r"@\d+", "", modules[-1])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of exporter and quantizer, which a user can do nothing about, and the log as it was."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    level, handlers = root.level, list(root.handlers)
    logging.disable(max(disabled, logging.WARNING))  # no level of a logger: the 4-bit quantizer sets the root's
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # the histograms of ONNX Runtime print
            warnings.simplefilter("ignore")  # those remarks
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers  # the 4-bit quantizer calls logging.basicConfig when it is imported
        root.setLevel(level)
