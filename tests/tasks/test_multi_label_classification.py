"""Any number of labels a text: losses and metrics against torch and sklearn, and a run from the data to int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from transformers import BertConfig, pipeline

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, PredictionWriter, QuantizationCallback, StudentExport
from lightning_kd.datamodules import TextDataModule
from lightning_kd.losses import SoftTargetBinaryKL, SoftTargetKL
from lightning_kd.optim import AdamW
from lightning_kd.quantization import DynamicInt8
from lightning_kd.tasks import MultiLabelClassification, SequenceClassification, Task

Make = Callable[..., Any]
TASK = MultiLabelClassification()


@given(labels=st.integers(2, 5), rows=st.integers(1, 30), batch_size=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_metrics_equal_sklearn(labels: int, rows: int, batch_size: int, seed: int) -> None:
    """Stops a share of single decisions in the place of whole rows, a mean over batches, and an F1 of some labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, labels, generator=generator)
    target = (torch.rand(rows, labels, generator=generator) < 0.4).float()
    metrics = TASK.metrics(["f1_micro", "f1_macro", "accuracy"], [str(i) for i in range(labels)])
    for start in range(0, rows, batch_size):
        part = slice(start, start + batch_size)
        metrics.update(*TASK.outcomes({"logits": logits[part]}, {"labels": target[part]}))
    predicted, actual = (logits.sigmoid() > 0.5).int().numpy(), target.int().numpy()
    expected = {"accuracy": sk.accuracy_score(actual, predicted)}
    for average in ("micro", "macro"):
        expected[f"f1_{average}"] = sk.f1_score(actual, predicted, average=average, zero_division=0)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(expected, abs=1e-5)


def test_hard_label_loss() -> None:
    """Stops a sum over labels, NaN from a row without a label, and a gradient on it."""
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([[0.0, 1, 1], [float("nan")] * 3, [0, 0, 0], [1, 0, 1]])
    loss = TASK.hard_label_loss({"logits": logits}, {"labels": labels})
    known = [0, 2, 3]
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits[known], labels[known]).item())
    loss.backward()
    assert logits.grad is not None and logits.grad[known].all() and not logits.grad[1].any()
    nothing = TASK.hard_label_loss({"logits": logits}, {"labels": torch.full((4, 3), float("nan"))})
    nothing.backward()
    assert nothing.item() == 0


def test_records_and_configuration() -> None:
    """Stops scores of a softmax, labels in no order, and a row of no labels that vanishes."""
    config = BertConfig()
    TASK.configure(config, ["a", "b", "c"])
    assert config.problem_type == "multi_label_classification" and config.num_labels == 3
    logits = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])
    found, none = TASK.records({"logits": logits}, {}, config)
    assert [label["label"] for label in found["labels"]] == ["c", "a"] and none == {"labels": []}
    assert found["labels"][0]["score"] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    with pytest.raises(InputError, match="needs data with lists of labels, but these have scores"):
        TASK.configure(config, None)
    with pytest.raises(InputError, match="at least 2 labels, but there is 'spam' alone: write two classes"):
        TASK.configure(config, ["spam"])
    with pytest.raises(InputError, match=r"`metric_names` to be among accuracy, f1_macro, f1_micro, but got 'f1'"):
        TASK.metrics(["f1"], ["a", "b"])


def write(path: Path, size: int, seed: int) -> list[dict[str, Any]]:
    """Texts whose labels are those of their words, as JSON Lines."""
    generator = np.random.default_rng(seed)
    content = []
    for _ in range(size):
        words = generator.choice(["ba", "de", "fi", "go"], generator.integers(1, 4)).tolist()
        labels = sorted({{"ba": "bar", "de": "den", "fi": "fin"}[word] for word in words if word != "go"})
        content.append({"text": " ".join(words), "labels": labels})
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return content


def test_from_teacher_to_int8(tiny_model: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops labels that train but cannot be exported, quantized, reported, opened or asked; or that softmax reads."""
    for split, size in (("train", 160), ("validation", 20), ("test", 15)):
        write(tmp_path / f"{split}.jsonl", size, size)
    (tmp_path / "more.jsonl").write_text('{"text": "ba go"}\n{"text": "fi de"}\n')
    options = {"label_column": "labels", "batch_size": 8, "tokenizer": str(tiny_model())}
    teacher_trainer = make_trainer(default_root_dir=tmp_path / "teacher", callbacks=[StudentExport()], max_epochs=30)
    source = ModelSource(str(tiny_model(head=False)))
    module = DistillationModule(source, task=TASK, optimizer=partial(AdamW, lr=5e-3))
    teacher_trainer.fit(module, datamodule=TextDataModule(str(tmp_path), **options))
    assert teacher_trainer.callback_metrics["val/f1_micro"] > 0.7
    taught = ModelSource(str(tmp_path / "teacher" / "student"))
    module = DistillationModule(
        ModelSource(taught.path, keep_layers=[0, 2]),
        {"teacher": taught},
        TASK,
        {"soft": SoftTargetBinaryKL()},
        hard_label_weight=0.5,
        temperature=2.0,
    )
    report = CompressionReport()
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8()), report, PredictionWriter()]
    trainer = make_trainer(default_root_dir=tmp_path / "run", callbacks=callbacks, max_epochs=2)
    data = TextDataModule(str(tmp_path), unlabelled_path=str(tmp_path / "more.jsonl"), **options)
    trainer.fit(module, datamodule=data)
    assert report.report is not None and report.report.main_metric == "f1_micro"
    assert [row.name for row in report.report.rows] == ["teacher", "student", "int8, torch"]
    assert report.report.split_rows == {"test": 15, "validation": 20}
    assert 0.5 < report.report.rows[2].agreement <= 1
    trainer.test(module, datamodule=data, verbose=False)
    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    trainer.predict(module, datamodule=data)
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    records = Runner.open(tmp_path / "run" / "student").predict(texts)
    theirs = pipeline("text-classification", model=str(tmp_path / "run" / "student"), top_k=None)(texts)
    for one, record, every in zip(written, records, theirs, strict=True):
        above = {label["label"]: pytest.approx(label["score"], abs=1e-5) for label in every if label["score"] > 0.5}
        for found in (one, record):
            assert {label["label"]: label["score"] for label in found["labels"]} == above
    assert {label["label"] for record in records for label in record["labels"]} <= {"bar", "den", "fin"}
    int8 = Runner.open(tmp_path / "run" / "int8")
    assert isinstance(int8.task, MultiLabelClassification) and "labels" in int8.predict(texts[:1])[0]


def test_refuses_a_softmax_loss_and_other_data(tmp_path: Path, tiny_model: Make, make_trainer: Make) -> None:
    """Stops soft targets that make independent labels compete, and one sigmoid a class where one label is true."""
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", 20, 0)
    data = TextDataModule(str(tmp_path), label_column="labels", tokenizer=str(tiny_model()))
    source = ModelSource(str(tiny_model(num_labels=3)))
    module = DistillationModule(source, {"teacher": source}, TASK, {"soft": SoftTargetKL()})
    with pytest.raises(InputError, match=r"labels are independent .* Use SoftTargetBinaryKL instead"):
        make_trainer().fit(module, datamodule=data)
    (tmp_path / "one.csv").write_text("text,label\nba,x\nde,y\nfi,x\n")
    data = TextDataModule(str(tmp_path / "one.csv"), validation_size=1, tokenizer=str(tiny_model()))
    with pytest.raises(InputError, match=r"has one label, but the task is MultiLabelClassification: set model.task"):
        make_trainer().fit(DistillationModule(source, task=TASK), datamodule=data)


@pytest.mark.parametrize(
    ("task", "kind", "refused"),
    [
        (TASK, "single_label_classification", True),
        (TASK, "multi_label_classification", False),
        (TASK, None, False),
        (SequenceClassification(), "multi_label_classification", True),
        (SequenceClassification(), "single_label_classification", False),
        (SequenceClassification(), "regression", False),
    ],
)
def test_a_teacher_of_the_other_kind_is_refused(task: Task, kind: str | None, refused: bool) -> None:
    """Stops a student from taking logits of independent labels for those of a softmax, or the other way round."""
    config = BertConfig(problem_type=kind, num_labels=1 if kind == "regression" else 2)
    if not refused:
        task.check_teacher("t", config)
        return
    with pytest.raises(InputError, match=f"the teacher 't' to be trained on rows with .* problem_type is {kind}"):
        task.check_teacher("t", config)
