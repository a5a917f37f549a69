"""Predictions as JSON Lines, and as GLUE takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import InputError, ModelSource
from lightning_kd.callbacks import GLUESubmission, PredictionWriter

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


#: What gluebenchmark.com takes: the file's name, and its predictions; None for scores.
FILES = {
    "cola": ("CoLA.tsv", {"0", "1"}),
    "mnli": ("MNLI-m.tsv", {"entailment", "neutral", "contradiction"}),
    "mrpc": ("MRPC.tsv", {"0", "1"}),
    "qnli": ("QNLI.tsv", {"entailment", "not_entailment"}),
    "qqp": ("QQP.tsv", {"0", "1"}),
    "rte": ("RTE.tsv", {"entailment", "not_entailment"}),
    "sst2": ("SST-2.tsv", {"0", "1"}),
    "stsb": ("STS-B.tsv", None),
    "wnli": ("WNLI.tsv", {"0", "1"}),
}


@pytest.mark.parametrize("name", FILES)
def test_glue_submission(name: str, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a submission with another set's labels, in the order of the batches, or with rows left out."""
    outputs = {"mnli": 3, "stsb": 1}.get(name, 2)
    source = ModelSource(str(tiny_model(num_labels=outputs, seed=3)))
    data = glue(name, eval_batch_size=3)
    trainer = make_trainer(callbacks=[PredictionWriter(), GLUESubmission()])
    trainer.predict(distillation(student=source, teachers={}, losses={}), datamodule=data, return_predictions=False)
    root = Path(trainer.default_root_dir)
    file_name, known = FILES[name]
    assert [path.name for path in (root / "submission").iterdir()] == [file_name]
    lines = [line.split("\t") for line in (root / "submission" / file_name).read_text().splitlines()]
    assert lines[0] == ["index", "prediction"]
    assert [line[0] for line in lines[1:]] == [str(i) for i in range(7)]
    records = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    for (_, value), record in zip(lines[1:], records, strict=True):
        if known is None:
            assert float(value) == pytest.approx(min(max(record["score"], 0), 5), abs=5e-4) and value[-4] == "."
        else:
            assert value in known
            assert record["label"] == (data.label_names[int(value)] if value.isdigit() else value)


def test_submission_of_mismatched_rows(distillation: Make, glue: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops the matched rows' predictions under the mismatched ones' name."""
    data = glue("mnli", mnli_test="mismatched")
    trainer = make_trainer(callbacks=[GLUESubmission()])
    module = distillation(student=ModelSource(str(tiny_model(num_labels=3))), teachers={}, losses={})
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert (Path(trainer.default_root_dir) / "submission" / "MNLI-mm.tsv").is_file()
    stored = load_dataset("parquet", data_files=f"{data.path}/mnli/test_mismatched-*.parquet", split="train")
    assert data.texts("predict") == list(zip(stored["premise"], stored["hypothesis"], strict=True))
    with pytest.raises(InputError, match=r"`data.mnli_test` to be left out, as sst2 has one test split"):
        glue(mnli_test="mismatched")


def test_scores_are_clipped(glue: Make) -> None:
    """Stops scores that gluebenchmark.com refuses."""
    records = [{"index": i, "score": score} for i, score in enumerate([-0.2, 0, 1.23456, 4.9996, 5.7, 3, 2])]
    _, text = glue("stsb").submission(records)
    assert text.split()[3::2] == ["0.000", "0.000", "1.235", "5.000", "5.000", "3.000", "2.000"]


def test_refused_submissions(distillation: Make, glue: Make, make_trainer: Make, write_glue: Make) -> None:
    """Stops a submission of the validation rows, of a part of the rows, and of another set's labels."""
    rows = {"sentence": ["ba", "de"], "label": [0, 1]}
    bare = glue()
    bare.path = str(write_glue({"sst2": {"train": rows, "validation": rows}}))
    module = distillation(teachers={}, losses={})
    with pytest.raises(InputError, match="needs the rows of the test split, but these data have none"):
        make_trainer(callbacks=[GLUESubmission()]).predict(module, datamodule=bare)
    trainer = make_trainer(callbacks=[GLUESubmission()], limit_predict_batches=1)
    with pytest.raises(InputError, match="for each of the 7 rows of the test split, but got 4"):
        trainer.predict(module, datamodule=glue(), return_predictions=False)
    with pytest.raises(InputError, match=r"labels of sst2 are negative, positive, but the model's are {'LABEL_0'}"):
        glue().submission([{"index": i, "label": "LABEL_0"} for i in range(7)])
