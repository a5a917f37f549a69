"""Classification of texts: labels in, metrics and records out, against sklearn, scipy and plain torch."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import BertConfig

from lightning_kd import InputError
from lightning_kd.tasks import SequenceClassification

TASK = SequenceClassification()
SKLEARN = {
    "accuracy": sk.accuracy_score,
    "f1": lambda labels, predictions: sk.f1_score(labels, predictions, zero_division=0),
    "matthews": sk.matthews_corrcoef,
}


def compute(metrics: MetricCollection, predictions: Tensor, labels: Tensor, batch_size: int) -> dict[str, float]:
    """The metrics after a pass in batches."""
    for start in range(0, len(labels), batch_size):
        metrics.update(predictions[start : start + batch_size], labels[start : start + batch_size])
    return {name: value.item() for name, value in metrics.compute().items()}


def batch(labels: Tensor) -> dict[str, Tensor]:
    """A batch of texts of 3 tokens, the last one padding."""
    size = len(labels)
    return {
        "input_ids": torch.full((size, 3), 7),
        "token_type_ids": torch.zeros(size, 3, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 0]]).expand(size, 3),
        "labels": labels,
        "index": torch.arange(size),
    }


@pytest.mark.filterwarnings("ignore:A single label was found")  # sklearn's; drawn on purpose
@given(classes=st.integers(2, 4), rows=st.integers(1, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_metrics_equal_sklearn(classes: int, rows: int, batch_size: int, seed: int) -> None:
    """Stops a mean over batches of unlike size, a macro average, and F1 of the first label instead of the second."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator) + F.one_hot(labels, classes)
    names = ["accuracy", "matthews"] + ["f1"] * (classes == 2)
    predictions = TASK.predictions({"logits": logits})
    values = compute(TASK.metrics(names, ["a"] * classes), predictions, labels, batch_size)
    expected = {name: SKLEARN[name](labels.numpy(), logits.argmax(-1).numpy()) for name in names}
    assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:A single label was found")  # sklearn's; drawn on purpose
@pytest.mark.parametrize(
    ("labels", "predictions"),
    [([0, 0, 0], [0, 0, 0]), ([1, 1, 1], [1, 1, 1]), ([0, 1, 0], [1, 1, 1]), ([0, 0, 0], [1, 1, 1]), ([0, 0], [0, 1])],
)
def test_degenerate_matthews_is_0(labels: list[int], predictions: list[int]) -> None:
    """Stops a collapsed student, which predicts one class, from scoring 1 on CoLA: torchmetrics' value there."""
    values = compute(TASK.metrics(["matthews"], ["a", "b"]), torch.tensor(predictions), torch.tensor(labels), 2)
    assert values == {"matthews": 0.0}
    assert sk.matthews_corrcoef(labels, predictions) == 0


@given(rows=st.integers(3, 60), batch_size=st.integers(1, 20), ties=st.booleans(), seed=st.integers(0, 2**32))
def test_correlations_equal_scipy(rows: int, batch_size: int, ties: bool, seed: int) -> None:
    """Stops a mean of the batches' correlations, which is no correlation, and ranks that break ties by position."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0, 5, rows).astype(np.float32)
    scores[:2] = 0, 5
    labels = np.round(scores + generator.normal(size=rows).astype(np.float32), 0 if ties else 4)
    labels[:2] = -4, 9
    scores = np.round(scores) if ties else scores
    logits = {"logits": torch.from_numpy(scores)[:, None]}
    values = compute(
        TASK.metrics(["pearson", "spearman"], None), TASK.predictions(logits), torch.from_numpy(labels), batch_size
    )
    expected = {"pearson": stats.pearsonr(scores, labels)[0], "spearman": stats.spearmanr(scores, labels)[0]}
    assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "num_outputs", "message"),
    [
        (["acuracy"], 2, "among accuracy, f1, matthews, but got 'acuracy'"),
        (["accuracy"], 1, "among pearson, spearman, but got 'accuracy'"),
        (["pearson"], 2, "among accuracy, f1, matthews, but got 'pearson'"),
        (["accuracy", "f1"], 3, "among accuracy, matthews, but got 'f1'"),
    ],
)
def test_refuses_metrics_of_other_data(names: list[str], num_outputs: int, message: str) -> None:
    """Stops a metric that fails, or means something else, only after the first epoch."""
    with pytest.raises(InputError, match=f"`metric_names` to be {message}"):
        TASK.metrics(names, ["a"] * num_outputs if num_outputs > 1 else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_label_loss(dtype: torch.dtype) -> None:
    """Stops cross-entropy on scores, a broadcast of (B, 1) against (B,), and a loss in half precision."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.tensor([0, 2, 1, 1])
    loss = TASK.hard_label_loss({"logits": logits}, batch(labels))
    assert loss.item() == pytest.approx(sk.log_loss(labels, logits.double().softmax(-1), labels=[0, 1, 2]), rel=1e-5)
    scores = torch.tensor([0.5, 3.0, 4.0, 1.0])
    regression = TASK.hard_label_loss({"logits": logits[:, :1]}, batch(scores))
    expected = sk.mean_squared_error(scores, logits[:, 0].float())
    assert regression.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == regression.dtype == torch.float32


def test_labels_are_written_into_the_config() -> None:
    """Stops an exported model that answers LABEL_0, and a loss that the model picks by itself."""
    config = BertConfig(num_labels=5, problem_type="multi_label_classification")
    TASK.configure(config, ["no", "maybe", "yes"])
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    TASK.configure(config, None)
    assert (config.num_labels, config.problem_type) == (1, "regression")


def test_records() -> None:
    """Stops a record that names another label than the highest, a logit as its score, and what JSON cannot hold."""
    config = BertConfig()
    TASK.configure(config, ["no", "maybe", "yes"])
    logits = torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.bfloat16)
    records = json.loads(json.dumps(TASK.records({"logits": logits}, {}, config)))
    assert [record["label"] for record in records] == ["yes", "no"]
    expected = logits.float().softmax(-1).amax(-1).tolist()
    assert [record["score"] for record in records] == pytest.approx(expected, rel=1e-6)
    assert TASK.records({"logits": torch.tensor([[2.5], [-1.0]])}, {}, config) == [{"score": 2.5}, {"score": -1.0}]


def test_batch_to_model_and_masks() -> None:
    """Stops labels from reaching the model, which would then compute a loss of its own, and padding from counting."""
    rows = batch(torch.tensor([0, 1]))
    assert set(TASK.model_inputs(rows)) == {"input_ids", "token_type_ids", "attention_mask"}
    assert TASK.token_masks(rows)[0].tolist() == [[True, True, False]] * 2
    assert TASK.logit_masks(rows)["logits"].tolist() == [True, True]
    output = SimpleNamespace(logits=torch.zeros(2, 2))
    assert TASK.logits(output) == {"logits": output.logits}


def test_predictions() -> None:
    """Stops a score from becoming the label 0, the argmax over its one output."""
    assert TASK.predictions({"logits": torch.tensor([[0.1, 0.9], [2.0, -1.0]])}).tolist() == [1, 0]
    assert TASK.predictions({"logits": torch.tensor([[2.5], [-1.0]])}).tolist() == [2.5, -1.0]


def test_spec_is_plain() -> None:
    """Stops a checkpoint that holds the task as an object and cannot be loaded with weights only."""
    path = "lightning_kd.tasks.sequence_classification.SequenceClassification"
    assert json.loads(json.dumps(TASK.spec())) == {"class_path": path, "init_args": {}}


@pytest.mark.parametrize("scores", [False, True])
def test_rows_without_a_label_take_no_part(scores: bool) -> None:
    """Stops NaN or class -100 in the loss, a mean over all rows, and a gradient on a row without a label."""
    logits = torch.randn(4, 1 if scores else 3, requires_grad=True)
    known, nothing = [0, 2], float("nan") if scores else -100
    labels = torch.tensor([1.5, nothing, 0.5, nothing] if scores else [2, nothing, 0, nothing])
    loss = TASK.hard_label_loss({"logits": logits}, batch(labels))
    truth = labels[known]
    expected = F.mse_loss(logits[known, 0], truth) if scores else F.cross_entropy(logits[known], truth)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None and logits.grad[known].all() and not logits.grad[[1, 3]].any()
    none = TASK.hard_label_loss({"logits": logits}, batch(torch.full_like(labels, nothing)))
    none.backward()
    assert none.item() == 0 and logits.grad.isfinite().all()
