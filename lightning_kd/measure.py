"""Measures models side by side: metrics with their standard errors, and interleaved times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.quantization import Forward
from lightning_kd.tasks import Task
from lightning_kd.tasks.base import IGNORED

__all__ = ["Estimate", "Evaluation", "evaluate", "paired_speedup", "time_interleaved"]

_RESAMPLES = 200


@dataclass(frozen=True)
class Estimate:
    """A metric on a sample of rows.

    Attributes:
        value: The metric on all rows.
        standard_error: Its standard deviation over 200 bootstrap samples of the rows (Efron 1979).
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class Evaluation:
    """What a model did on one split.

    Attributes:
        metrics: By name.
        predictions: ``(rows, ...)``, in the order of the batches.
        target: ``(rows, ...)``, what they are measured by.
        samples: By name, ``(200,)``: the metrics on the bootstrap samples, which are of the same rows for every model
            on the same batches: differences between two models are paired.
    """

    metrics: dict[str, Estimate]
    predictions: Tensor
    target: Tensor
    samples: dict[str, np.ndarray]


def evaluate(
    forward: Forward,
    task: Task,
    batches: Iterable[Mapping[str, Tensor]],
    names: Sequence[str],
    label_names: Sequence[str] | None,
) -> Evaluation:
    """Run a model over labelled batches.

    Args:
        forward: The model.
        task: From logits to predictions and metrics.
        batches: Each row once, with ``labels``.
        names: The metrics.
        label_names: The labels; ``None`` for regression.
    """
    outcomes = [task.outcomes(forward(task.model_inputs(batch)), batch) for batch in batches]
    predicted, target = (_concatenate(parts) for parts in zip(*outcomes, strict=True))
    metrics = task.metrics(names, label_names)
    for metric in metrics.values():  # this process measures alone: there is nobody to wait for
        metric.distributed_available_fn = lambda: False

    def compute(rows: Tensor) -> dict[str, float]:
        metrics.reset()
        metrics.update(predicted[rows], target[rows])
        return {name: value.item() for name, value in metrics.compute().items()}

    values = compute(torch.arange(len(target)))
    generator = torch.Generator().manual_seed(0)
    drawn = [compute(torch.randint(len(target), (len(target),), generator=generator)) for _ in range(_RESAMPLES)]
    samples = {name: np.asarray([sample[name] for sample in drawn]) for name in values}
    return Evaluation(
        {name: Estimate(value, float(np.std(samples[name], ddof=1))) for name, value in values.items()},
        predicted,
        target,
        samples,
    )


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all parts; where they are sequences, the shorter ones are filled up."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=IGNORED) for part in parts])


def time_interleaved(
    forwards: Mapping[str, Forward], batches: Mapping[str, Sequence[Mapping[str, Tensor]]], rounds: int, threads: int
) -> dict[str, np.ndarray]:
    """Seconds of each model on each batch, in rounds in which all models have their turn, so that drift hits all alike.

    In its turn a model runs all batches, as it would alone: its weights are in the processor's caches, and no thread of
    another model still spins after its work and keeps it from the cores. The first call of a turn is not measured.

    Args:
        forwards: The models by name; those with threads of their own were opened with as many.
        batches: Each model's inputs, by its name, of the same rows in the same order; each is run once by its model
            before the clock starts.
        rounds: Times that each batch is measured.
        threads: Threads that torch may use meanwhile.

    Returns:
        By name, ``(rounds * batches,)``; entry ``i`` of all models was measured on the same batch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    numbers = range(min(len(batches[name]) for name in forwards))
    with _torch_threads(threads):
        for round_ in range(rounds + 1):
            for name, forward in forwards.items():
                forward(batches[name][0])
                for number in numbers:
                    start = time.perf_counter()
                    forward(batches[name][number])
                    if round_:  # the first warms up
                        seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def paired_speedup(reference: np.ndarray, other: np.ndarray) -> float:
    """How many times faster ``other`` is than ``reference``: the median of the ratios of neighbouring measurements."""
    return float(np.median(reference / other))


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
