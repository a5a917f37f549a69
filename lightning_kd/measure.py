"""Measures models side by side: metrics with their standard errors, and interleaved times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_kd.quantization import Forward
from lightning_kd.tasks import Task

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
        predictions: ``(rows, ...)``, in the order of ``index``.
    """

    metrics: dict[str, Estimate]
    predictions: Tensor


def evaluate(
    forward: Forward, task: Task, batches: Iterable[Mapping[str, Tensor]], names: Sequence[str], num_outputs: int
) -> Evaluation:
    """Run a model over labelled batches.

    Args:
        forward: The model.
        task: From logits to predictions and metrics.
        batches: Each row once, with ``labels``.
        names: The metrics.
        num_outputs: Labels, or 1 for regression.
    """
    predictions, labels = [], []
    for batch in batches:
        predictions.append(task.predictions(forward(task.model_inputs(batch))))
        labels.append(batch["labels"])
    predicted, target = torch.cat(predictions), torch.cat(labels)
    metrics = task.metrics(names, num_outputs)
    for metric in metrics.values():  # this process measures alone: there is nobody to wait for
        metric.distributed_available_fn = lambda: False

    def compute(rows: Tensor) -> dict[str, float]:
        metrics.reset()
        metrics.update(predicted[rows], target[rows])
        return {name: value.item() for name, value in metrics.compute().items()}

    values = compute(torch.arange(len(target)))
    generator = torch.Generator().manual_seed(0)
    samples = [compute(torch.randint(len(target), (len(target),), generator=generator)) for _ in range(_RESAMPLES)]
    return Evaluation(
        {name: Estimate(value, float(np.std([s[name] for s in samples], ddof=1))) for name, value in values.items()},
        predicted,
    )


def time_interleaved(
    forwards: Mapping[str, Forward], batches: Sequence[Mapping[str, Tensor]], rounds: int, threads: int
) -> dict[str, np.ndarray]:
    """Seconds of each model on each batch, all models in turn on the same batch, so that drift hits all alike.

    Args:
        forwards: The models by name; those with threads of their own were opened with as many.
        batches: The models' inputs; each is run once by each model before the clock starts.
        rounds: Times that each batch is measured.
        threads: Threads that torch may use meanwhile.

    Returns:
        By name, ``(rounds * len(batches),)``; entry ``i`` of all models was measured on the same batch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    with _torch_threads(threads):
        for batch in batches:
            for forward in forwards.values():
                forward(batch)
        for _ in range(rounds):
            for batch in batches:
                for name, forward in forwards.items():
                    start = time.perf_counter()
                    forward(batch)
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
