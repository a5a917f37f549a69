"""Which layers stay in float, so that a quantized model loses no more than it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_kd.quantization.analysis import (
    QuantizationScheme,
    WeightMatrix,
    activation_ranges,
    quantized,
    real_positions,
    weight_matrices,
)
from lightning_kd.quantization.base import named_logits, quantizable_layers

__all__ = ["fewest_in_float", "sensitive_layers"]


@torch.no_grad()
def sensitive_layers(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], scheme: QuantizationScheme
) -> list[str]:
    """The layers of ``model`` that backends quantize, the most sensitive first.

    A layer is as sensitive as the logits are far, in squares, from those of the float model when it alone is quantized.
    Unlike a metric, which moves in steps of a row, that tells layers apart on a few batches.

    Args:
        model: In eval mode; it is as it was afterwards.
        batches: The model's inputs by name, at least one.
        scheme: How a layer is quantized; a matrix whose columns a group does not divide, by channel.

    Returns:
        Dotted names, as of :func:`~lightning_kd.quantization.base.quantizable_layers`.

    Raises:
        InputError: If the extra ``torchao`` is missing.
    """
    ranges = activation_ranges(model, batches) if scheme.activations == "static" else {}
    modules = dict(model.named_modules())
    matrices = weight_matrices(model)
    exact = [named_logits(model(**batch)) for batch in batches]
    noise: dict[str, float] = {}
    for name in quantizable_layers(model):
        with ExitStack() as stack:
            for matrix in matrices:
                if matrix.module is modules[name]:
                    stack.enter_context(quantized(matrix, _fitting(scheme, matrix), ranges))
            noise[name] = sum(
                real_positions((value - before[key]).double().square(), batch).sum().item()
                for batch, before in zip(batches, exact, strict=True)
                for key, value in named_logits(model(**batch)).items()
            )
    return sorted(noise, key=noise.__getitem__, reverse=True)


def _fitting(scheme: QuantizationScheme, matrix: WeightMatrix) -> QuantizationScheme:
    uneven = scheme.granularity == "group" and matrix.weight.shape[1] % scheme.group_size
    return replace(scheme, granularity="channel") if uneven else scheme


def fewest_in_float(drop: Callable[[int], float], max_drop: float, most: int) -> int | None:
    """How many of the most sensitive layers have to stay in float: by doubling, then by halving the interval.

    Args:
        drop: What is lost when so many stay in float, from 0 on; the same number may be asked for once only.
        max_drop: What may be lost.
        most: How many may stay in float, 1 or more.

    Returns:
        The number, the smallest if more layers in float never lose more; ``None`` if ``most`` of them are too few.

    Example:
        >>> fewest_in_float(lambda layers: 0.1 / (1 + layers), 0.015, 16)
        6
    """
    if drop(0) <= max_drop:
        return 0
    low, high = 0, 1
    while drop(high) > max_drop:
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if drop(middle) <= max_drop:
            high = middle
        else:
            low = middle
    return high
