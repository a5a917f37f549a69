"""Standard errors, and the order in which models are timed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_kd.measure import evaluate, paired_speedup, time_interleaved
from lightning_kd.tasks import SequenceClassification

TASK = SequenceClassification()


def labelled(labels: Tensor, predictions: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    """Batches whose only input is what the model is to predict."""
    rows = zip(labels.split(batch_size), predictions.split(batch_size), strict=True)
    return [{"input_ids": predicted, "labels": truth, "index": truth} for truth, predicted in rows]


def echo(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model that predicts its input, and refuses to be shown the labels."""
    assert set(inputs) == {"input_ids"}
    return {"logits": torch.nn.functional.one_hot(inputs["input_ids"], 2).float()}


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.95])
def test_standard_error_of_accuracy_is_binomial(accuracy: float) -> None:
    """Stops a standard error of resampled batches, or of resampled predictions against unmoved labels."""
    rows = 400
    labels = torch.arange(rows) % 2
    wrong = torch.arange(rows) >= round(accuracy * rows)
    evaluation = evaluate(echo, TASK, labelled(labels, labels ^ wrong.long(), 7), ["accuracy", "f1"], ["a", "b"])
    estimate = evaluation.metrics["accuracy"]
    assert estimate.value == pytest.approx(accuracy)
    assert estimate.standard_error == pytest.approx((accuracy * (1 - accuracy) / rows) ** 0.5, rel=0.15)
    assert evaluation.predictions.equal(labels ^ wrong.long())
    assert 0 < evaluation.metrics["f1"].standard_error < 0.1


def test_same_rows_give_the_same_standard_error() -> None:
    """Stops two reports on the same models from differing, and the global seed from being moved."""
    labels = torch.arange(50) % 2
    state = torch.get_rng_state()
    first, second = (
        evaluate(echo, TASK, labelled(labels, labels.roll(3), 8), ["accuracy"], ["a", "b"]).metrics for _ in range(2)
    )
    assert first == second
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("threads", [1, 2])
def test_models_take_turns(threads: int) -> None:
    """Stops one model from being timed while the machine is busy and the other while it is not.

    And one from being timed while another's threads are still spinning, or its weights fill the caches.
    """
    calls: list[tuple[str, int, int]] = []

    def run(name: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        calls.append((name, int(batch["x"]), torch.get_num_threads()))
        return {}

    forwards = {name: partial(run, name) for name in "abc"}
    batches = {name: [{"x": torch.tensor(i)} for i in range(2)] for name in "abc"}
    before = torch.get_num_threads()
    seconds = time_interleaved(forwards, batches, rounds=3, threads=threads)
    turns = [(name, i, threads) for name in "abc" for i in (0, 0, 1)]  # the first is not timed
    assert calls == turns * 4  # the first round is not timed, either
    assert {name: values.shape for name, values in seconds.items()} == {"a": (6,), "b": (6,), "c": (6,)}
    assert all((values > 0).all() for values in seconds.values())
    assert torch.get_num_threads() == before


def test_threads_are_restored_after_an_error() -> None:
    """Stops a model that fails while it is timed from slowing down all that comes after."""

    def fail(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise RuntimeError("no kernel")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no kernel"):
        time_interleaved({"a": fail}, {"a": [{}]}, rounds=1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_speedup_is_paired() -> None:
    """Stops a ratio of medians, which one slow spell that hits both models alike turns into a gain."""
    reference = np.array([2.0, 4.0, 40.0, 60.0, 80.0])
    other = np.array([1.0, 2.0, 20.0, 20.0, 20.0])
    assert paired_speedup(reference, other) == 2.0
    assert paired_speedup(other, other) == 1.0
