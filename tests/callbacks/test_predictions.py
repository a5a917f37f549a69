"""Predictions as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import ModelSource
from lightning_kd.callbacks import PredictionWriter

Make = Callable[..., Any]


@pytest.mark.parametrize("name", ["sst2", "mnli", "stsb"])
def test_every_row_once_in_the_rows_order(
    name: str, tmp_path: Path, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops predictions in the order of the batches, which are sorted by length: each would stand at another's row."""
    outputs = {"sst2": 2, "mnli": 3, "stsb": 1}[name]
    source = ModelSource(str(tiny_model(num_labels=outputs, seed=2)))
    data = glue(name, eval_batch_size=3)
    path = tmp_path / "new" / "predictions.jsonl"
    trainer = make_trainer(callbacks=[PredictionWriter(str(path))])
    trainer.predict(distillation(student=source, teachers={}, losses={}), datamodule=data, return_predictions=False)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(7))
    assert [p.name for p in path.parent.iterdir()] == ["predictions.jsonl"]
    model = AutoModelForSequenceClassification.from_pretrained(source.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    for record, texts in zip(records, data.texts("predict"), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0]
        if name == "stsb":
            assert set(record) == {"index", "score"}
            assert record["score"] == pytest.approx(logits.item(), abs=1e-5)
        else:
            assert set(record) == {"index", "label", "score"}
            assert record["label"] == data.label_names[logits.argmax()]
            assert record["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)


def test_default_place(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops predictions from landing in the folder that the command was typed in."""
    trainer = make_trainer(callbacks=[PredictionWriter()])
    trainer.predict(distillation(teachers={}, losses={}), datamodule=glue(), return_predictions=False)
    assert [p.name for p in Path(trainer.default_root_dir).iterdir()] == ["predictions.jsonl"]
