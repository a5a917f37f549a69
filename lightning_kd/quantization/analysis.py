"""Where the error of quantization comes from: each matrix of a model by itself, at any number of bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd._checks import InputError, check_range, expected

__all__ = [
    "Activations",
    "Granularity",
    "LayerError",
    "QuantizationScheme",
    "Ranges",
    "Score",
    "WeightMatrix",
    "activation_ranges",
    "analyze",
    "output_sqnr",
    "primitives",
    "quantized",
    "real_positions",
    "round_trip",
    "sensitivity",
    "weight_matrices",
    "weight_sqnr",
]

Granularity = Literal["tensor", "channel", "group"]
Activations = Literal["float", "dynamic", "static"]

#: A model to its metric on some rows, and on bootstrap samples of them, ``(samples,)``: the same rows at every call.
Score = Callable[[nn.Module], tuple[float, np.ndarray]]

#: By layer, ``(2,)``: the lowest and the highest value that goes into it.
Ranges = dict[nn.Module, Tensor]

#: The rows of a recurrent layer's matrices, in torch's order.
_GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}


@dataclass(frozen=True)
class QuantizationScheme:
    """How a matrix is quantized.

    Attributes:
        bits: Of a weight, from 2 to 8.
        symmetric: The zero point is 0.
        granularity: What shares a scale: the matrix, an output channel (a row; of an embedding a word) or
            ``group_size`` neighbouring weights of a row.
        group_size: For ``group``, a divisor of the columns of every matrix.
        activations: What goes into a ``Linear``: left in float, or quantized to 8 bits, asymmetric, per tensor, with
            the range of each batch (``dynamic``) or that of calibration batches (``static``). What goes into recurrent
            layers stays in float.

    Example:
        >>> QuantizationScheme(bits=4, granularity="group", group_size=64).activations
        'float'
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = "channel"
    group_size: int = 32
    activations: Activations = "float"

    def __post_init__(self) -> None:
        check_range("bits", self.bits, 2, 8)
        check_range("group_size", self.group_size, 1)
        for name, choices in (("granularity", get_args(Granularity)), ("activations", get_args(Activations))):
            if getattr(self, name) not in choices:
                raise expected(name, f"one of {', '.join(choices)}", getattr(self, name))


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """What is quantized at a time: the weight of a layer, or the rows of one gate in a recurrent layer's.

    Attributes:
        name: The layer's dotted name; of a gate with the parameter's and the gate's, e.g. ``lstm.weight_ih_l0.forget``.
        kind: ``Linear``, ``Embedding``, ``LSTM`` or ``GRU``.
        module: The layer.
        parameter: The parameter's name in it.
        rows: Those of the parameter.
    """

    name: str
    kind: str
    module: nn.Module
    parameter: str
    rows: slice

    @property
    def weight(self) -> Tensor:
        """``(rows, columns)``, as it is now."""
        return getattr(self.module, self.parameter).detach()[self.rows]


@dataclass(frozen=True)
class LayerError:
    """What quantizing one matrix costs.

    Attributes:
        layer: The matrix's name.
        kind: ``Linear``, ``Embedding``, ``LSTM`` or ``GRU``.
        parameters: Weights in the matrix.
        scheme: How it is quantized.
        weight_sqnr: dB, of the weight.
        output_sqnr: dB, of the layer's output for the float model's input.
        metric: The model's metric with this matrix alone quantized; None where none was measured.
        drop: How much worse that is than the float model's metric, above 0 if it is worse.
        standard_error: Of the drop: the rows are the same before and after.
    """

    layer: str
    kind: str
    parameters: int
    scheme: QuantizationScheme
    weight_sqnr: float
    output_sqnr: float
    metric: float | None = None
    drop: float | None = None
    standard_error: float | None = None


def weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The matrices of ``model`` in its own order: ``Linear``, ``Embedding``, and ``LSTM`` and ``GRU`` gate by gate.

    Example:
        >>> [matrix.name for matrix in weight_matrices(nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 3)))][:3]
        ['0', '1.weight_ih_l0.reset', '1.weight_ih_l0.update']
    """
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, (nn.Linear, nn.Embedding)):
            found.append(WeightMatrix(name, kind, module, "weight", slice(None)))
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            for parameter in (own for own, _ in module.named_parameters() if own.startswith("weight_")):
                gates = _GATES[module.mode] if not parameter.startswith("weight_hr") else ("projection",)
                size = len(getattr(module, parameter)) // len(gates)
                for i, gate in enumerate(gates):
                    rows = slice(i * size, (i + 1) * size)
                    found.append(WeightMatrix(f"{name}.{parameter}.{gate}", kind, module, parameter, rows))
    return found


def round_trip(weight: Tensor, scheme: QuantizationScheme) -> Tensor:
    """``weight`` as it comes back from its quantized form.

    Args:
        weight: ``(rows, columns)``.
        scheme: How; symmetric schemes use all ``2**bits`` levels, as torch's kernels do.

    Raises:
        InputError: If the extra ``torchao`` is missing, or the columns cannot be divided into groups.
    """
    rows, columns = weight.shape
    if scheme.granularity == "group" and columns % scheme.group_size:
        raise expected("group_size", f"a divisor of the {columns} columns of every matrix", scheme.group_size)
    block = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, scheme.group_size)}
    return _round_trip(weight, weight, block[scheme.granularity], scheme.bits, scheme.symmetric)


def _round_trip(values: Tensor, source: Tensor, block: Sequence[int], bits: int, symmetric: bool) -> Tensor:
    """``values`` quantized and back, with the ranges of the blocks of ``source``."""
    torchao = primitives()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    mapping = torchao.MappingType.SYMMETRIC if symmetric else torchao.MappingType.ASYMMETRIC
    scale, zero_point = torchao.choose_qparams_affine(
        source, mapping, block, torch.int8, low, high, zero_point_dtype=torch.int32
    )
    block = block if source is values else values.shape
    levels = torchao.quantize_affine(values, block, scale, zero_point, torch.int8, low, high)
    return torchao.dequantize_affine(levels, block, scale, zero_point, torch.int8, low, high, output_dtype=values.dtype)


def weight_sqnr(weight: Tensor, scheme: QuantizationScheme) -> float:
    """Signal-to-quantization-noise ratio of a matrix: ``10 log10(|w|^2 / |w - q(w)|^2)``.

    Args:
        weight: ``(rows, columns)``.
        scheme: How it is quantized.

    Returns:
        dB; infinite where nothing is lost.
    """
    signal, difference = weight.double(), weight.double() - round_trip(weight, scheme).double()
    return _decibels(signal.square().sum(), difference.square().sum())


def _decibels(signal: Tensor, noise: Tensor) -> float:
    return float("inf") if noise == 0 else 10 * torch.log10(signal / noise).item()


@contextmanager
def quantized(matrix: WeightMatrix, scheme: QuantizationScheme, ranges: Ranges) -> Iterator[None]:
    """Within, the layer computes with this matrix quantized; afterwards it has its own parameter back.

    Args:
        matrix: Which; layers that share the parameter keep it in float.
        scheme: How.
        ranges: From :func:`activation_ranges`; only ``static`` schemes read them.
    """
    module, original = matrix.module, getattr(matrix.module, matrix.parameter)
    changed = original.detach().clone()
    changed[matrix.rows] = round_trip(changed[matrix.rows], scheme)
    setattr(module, matrix.parameter, nn.Parameter(changed, requires_grad=original.requires_grad))

    def quantize_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = args[0].contiguous()
        source = ranges[module] if scheme.activations == "static" else values
        return (_round_trip(values, source, source.shape, 8, symmetric=False), *args[1:])

    hook = None
    if scheme.activations != "float" and isinstance(module, nn.Linear):
        hook = module.register_forward_pre_hook(quantize_input)
    try:
        yield
    finally:
        setattr(module, matrix.parameter, original)
        if hook is not None:
            hook.remove()


def activation_ranges(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Ranges:
    """The range of what goes into each ``Linear`` on some batches."""
    ranges: Ranges = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        both = torch.stack(args[0].aminmax())
        ranges[module] = torch.stack(torch.cat([both, ranges.get(module, both)]).aminmax())

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    _run(model, batches, hooks)
    return ranges


@torch.no_grad()
def _run(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], hooks: Sequence[Any]) -> None:
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def output_sqnr(
    model: nn.Module,
    matrices: Sequence[WeightMatrix],
    schemes: Sequence[QuantizationScheme],
    batches: Sequence[Mapping[str, Tensor]],
    ranges: Ranges,
) -> dict[tuple[WeightMatrix, QuantizationScheme], float]:
    """The signal-to-quantization-noise ratio of each layer's output, with one matrix quantized and the float input.

    What layers take and give for one batch is kept at a time. What stands at padding is left out.

    Args:
        model: In eval mode; it is as it was afterwards.
        matrices: Those of ``model`` to quantize, one at a time.
        schemes: How.
        batches: The model's inputs by name.
        ranges: From :func:`activation_ranges`; only ``static`` schemes read them.

    Returns:
        dB over all batches; ``nan`` for a layer that did not run.
    """
    owned: dict[nn.Module, list[WeightMatrix]] = {}
    for matrix in matrices:
        owned.setdefault(matrix.module, []).append(matrix)
    powers = {(m, s): torch.zeros(2, dtype=torch.float64) for m in matrices for s in schemes}
    calls: list[tuple[Any, ...]] = []
    for batch in batches:
        calls.clear()
        hooks = [m.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True) for m in owned]
        _run(model, [batch], hooks)
        for module, args, kwargs, output in calls:
            signal = _outputs(output, batch)
            for matrix in owned[module]:
                for scheme in schemes:
                    with quantized(matrix, scheme, ranges):
                        noise = _outputs(module(*args, **kwargs), batch) - signal
                    powers[matrix, scheme] += torch.stack([signal.square().sum(), noise.square().sum()]).cpu()
    return {key: _decibels(*power) if power[0] > 0 else float("nan") for key, power in powers.items()}


def _outputs(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """What a layer gives, without what stands at padding."""
    return real_positions((output[0] if isinstance(output, tuple) else output).double(), batch)


def real_positions(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Values by row and position without those at padding; other values as they are.

    Args:
        values: ``(rows, L, ...)``, or of another shape than the batch's ``attention_mask``.
        batch: The model's inputs by name.
    """
    mask = batch.get("attention_mask")
    return values[mask.bool()] if mask is not None and values.shape[:2] == mask.shape else values


def sensitivity(
    model: nn.Module,
    matrix: WeightMatrix,
    scheme: QuantizationScheme,
    score: Score,
    reference: tuple[float, np.ndarray],
    ranges: Ranges,
    higher_is_better: bool = True,
) -> tuple[float, float, float]:
    """The metric with one matrix quantized, its drop, and the drop's standard error.

    Args:
        model: In eval mode; it is as it was afterwards.
        matrix: Which.
        scheme: How.
        score: From a model to its metric.
        reference: What ``score`` gave for the float model.
        ranges: From :func:`activation_ranges`; only ``static`` schemes read them.
        higher_is_better: Of the metric; otherwise a rise is the drop.
    """
    with quantized(matrix, scheme, ranges):
        value, samples = score(model)
    sign = 1 if higher_is_better else -1
    return value, sign * (reference[0] - value), float(np.std(reference[1] - samples, ddof=1))


def analyze(
    model: nn.Module,
    schemes: Sequence[QuantizationScheme],
    batches: Sequence[Mapping[str, Tensor]],
    score: Score | None = None,
    higher_is_better: bool = True,
) -> list[LayerError]:
    """What it costs to quantize each matrix of ``model`` by itself.

    Args:
        model: In eval mode, on the device of the batches; it is as it was afterwards.
        schemes: How; each matrix is quantized with each of them.
        batches: Inputs by name, at least one: for the outputs, and for the ranges of static activations.
        score: Measures the metric; left out where there is none, once for each matrix and scheme is a long time.
        higher_is_better: Of the metric.

    Returns:
        By matrix, then by scheme.

    Raises:
        InputError: If the extra ``torchao`` is missing, there are no batches, or a group size does not fit.
    """
    primitives()
    if not batches:
        raise InputError("The analysis needs batches to run the layers on, but got none.")
    matrices = weight_matrices(model)
    for matrix in matrices:  # all that can be refused, before the first minute is spent
        for scheme in schemes:
            round_trip(matrix.weight[:1], scheme)
    ranges = activation_ranges(model, batches)
    outputs = output_sqnr(model, matrices, schemes, batches, ranges)
    rows = [
        LayerError(m.name, m.kind, m.weight.numel(), scheme, weight_sqnr(m.weight, scheme), value)
        for (m, scheme), value in outputs.items()
    ]
    if score is None:
        return rows
    reference = score(model)
    measured = []
    for row, (matrix, scheme) in zip(rows, outputs, strict=True):
        found = sensitivity(model, matrix, scheme, score, reference, ranges, higher_is_better)
        measured.append(replace(row, metric=found[0], drop=found[1], standard_error=found[2]))
    return measured


def primitives(user: str = "The analysis") -> Any:
    """The arithmetic of torchao.

    Args:
        user: Who needs it, as an error says it.

    Raises:
        InputError: If the extra ``torchao`` is missing.
    """
    try:
        from torchao.quantization import quant_primitives
    except ImportError as error:
        raise InputError(f"{user} needs the package torchao: pip install 'lightning-kd[torchao]'.") from error
    return quant_primitives
