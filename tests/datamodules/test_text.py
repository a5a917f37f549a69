"""Texts of one's own: files of every kind, labels of every kind, rows without a label, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import Tensor
from transformers import AutoModelForTokenClassification

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import PredictionWriter
from lightning_kd.datamodules import GLUEDataModule, NERDataModule, TextDataModule
from lightning_kd.losses import DecoupledKD, SoftTargetKL
from lightning_kd.tasks import SequenceClassification, TokenClassification

Make = Callable[..., Any]
Rows = list[dict[str, Any]]

TEXTS = ["ba de", "", 'fi, "go"', "ko\nba", "de de de", "gan", "bun", "din"]


def rows(labels: list[Any], texts: list[str] = TEXTS) -> Rows:
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=False)]


def write(path: Path, content: Rows) -> Path:
    """Rows as a file of the path's ending, written by pandas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(content)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


@pytest.fixture
def text(tiny_model: Make) -> Make:
    """Makes a data module: ``text(path, stage, **options)``, set up unless the stage is empty."""

    def make(path: Path | str, stage: str = "fit", **options: Any) -> TextDataModule:
        data = TextDataModule(str(path), **{"tokenizer": str(tiny_model()), "batch_size": 3, **options})
        if stage:
            data.prepare_data()
            data.setup(stage)
        return data

    return make


def served(data: TextDataModule, name: str) -> list[tuple[tuple[str, ...], Any]]:
    """The texts of a split with their labels as the batches have them."""
    labels: dict[int, Any] = {}
    for batch in data.evaluation_batches(name):
        labels |= dict(zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True))
    return list(zip(data.texts(name), [labels[i] for i in sorted(labels)], strict=True))


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["pos", "neg"] * 4, ["neg", "pos"], [1, 0] * 4),
        ([10, 9] * 4, ["9", "10"], [1, 0] * 4),
        ([0.5, 2.0] * 4, None, [0.5, 2.0] * 4),
    ],
)
def test_every_kind_of_file(
    ending: str, labels: list[Any], names: list[str] | None, numbers: list[Any], tmp_path: Path, text: Make
) -> None:
    """Stops a comma, a quote, a line break or an empty text from moving labels, and a format with rules of its own."""
    data = text(write(tmp_path / f"a{ending}", rows(labels)), validation_size=2)
    assert data.label_names == names
    everything = served(data, "train") + served(data, "validation")
    assert sorted(everything) == sorted(zip([(t,) for t in TEXTS], numbers, strict=True))
    assert data.sizes == {"train": 6, "validation": 2}
    assert next(iter(data.train_dataloader()))["labels"].dtype == (torch.int64 if names else torch.float32)
    assert data.metric_names == (("accuracy",) if names else ("pearson", "spearman"))
    SequenceClassification().metrics(data.metric_names, data.label_names)


@pytest.mark.parametrize("endings", [(".csv", ".jsonl", ".parquet"), (".jsonl", ".csv", ".csv")])
def test_a_folder_of_splits(endings: tuple[str, ...], tmp_path: Path, text: Make) -> None:
    """Stops validation on training rows, and labels that get other numbers in a split which lacks one of them."""
    for split, ending, labels in zip(("train", "dev", "test"), endings, ("cab", "bb", "ca"), strict=True):
        write(tmp_path / f"{split}{ending}", rows(list(labels)))
    data = text(tmp_path)
    assert data.label_names == ["a", "b", "c"]
    assert [label for _, label in served(data, "train")] == [2, 0, 1]
    assert [label for _, label in served(data, "validation")] == [1, 1]
    assert [label for _, label in served(data, "test")] == [2, 0]


def test_the_hubs_layout(tmp_path: Path, text: Make) -> None:
    """Stops names of the data's own from being sorted: the numbers of a published model would mean other labels."""
    features = Features({"a": Value("string"), "b": Value("string"), "y": ClassLabel(names=["yes", "no", "maybe"])})
    columns = {"a": TEXTS[:4], "b": TEXTS[4:], "y": [0, 1, 2, 0]}
    for split in ("train", "validation"):
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    data = text(tmp_path, text_column="a", text_pair_column="b", label_column="y")
    assert data.label_names == ["yes", "no", "maybe"]
    pairs = list(zip(TEXTS[:4], TEXTS[4:], strict=True))
    assert served(data, "train") == list(zip(pairs, [0, 1, 2, 0], strict=True))


def test_several_labels(tmp_path: Path, text: Make) -> None:
    """Stops names in the order in which they come up, and a row to which no label applies from being dropped."""
    by_name = [["b", "a"], [], ["c"], ["a"]]
    data = text(write(tmp_path / "names.jsonl", rows(by_name)), validation_size=1)
    assert data.label_names == ["a", "b", "c"] and data.multi_label
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    both = served(data, "train") + served(data, "validation")
    assert sorted(both) == sorted(zip([(t,) for t in TEXTS], expected, strict=False))
    data = text(write(tmp_path / "places.parquet", rows(expected)), validation_size=1)
    assert data.label_names == ["0", "1", "2"]
    assert sorted(served(data, "train") + served(data, "validation")) == sorted(both)
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["c", "a", "b"]))})
    table = Dataset.from_dict({"text": TEXTS[:4], "label": [[2, 1], [], [0], [1]]}, features=features)
    table.to_parquet(tmp_path / "hub.parquet")
    data = text(tmp_path / "hub.parquet", validation_size=1)
    assert data.label_names == ["c", "a", "b"] and sum(sum(label) for _, label in served(data, "train")) in (2, 3, 4)


def test_a_changed_file_is_read_again(tmp_path: Path, text: Make) -> None:
    """Stops the rows of a file, or of another of the same name, from being served for those that it has now."""
    for folder, number in (("one", 2), ("other", 3), ("one", 4)):
        path = write(tmp_path / folder / "data.csv", rows(["x", "y"] * number))
        os.utime(path, (number, number))
        assert sum(text(path, validation_size=1).sizes.values()) == 2 * number


def test_byte_order_mark_and_line_separators(tmp_path: Path, text: Make) -> None:
    """Stops Excel's first column from being called '\\ufefftext', and U+2028 within a text from cutting its row."""
    (tmp_path / "a.csv").write_bytes("text,label\nba\u2028de,x\nfi,y\ngo,y\n".encode("utf-8-sig"))
    line = '{"text": "ba\u2028de", "label": "x"}\n'
    (tmp_path / "b.jsonl").write_text(line + line.replace('"x"', '"y"') + "\n", encoding="utf-8")
    assert ("ba\u2028de",) in text(tmp_path / "a.csv", "predict").texts("predict")
    assert text(tmp_path / "b.jsonl", "predict").texts("predict") == [("ba\u2028de",)] * 2


def test_empty_and_very_long_texts(tmp_path: Path, text: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops an empty text from being dropped, and a long one from being cut without a word."""
    content = rows(["x", "y", "x"], ["", "ba " * 10_000, "de"])
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.csv", content)
    data = text(tmp_path, max_length=12)
    (batch,) = data.evaluation_batches("train")
    assert batch["attention_mask"].sum(1).sort().values.tolist() == [2, 3, 12]
    assert "1 of 3 rows of train are cut to 12 tokens" in log.text
    assert "2 labels, one a row (x, y)" in log.text


# ---------------------------------------------------------------------------------------------- rows without a label


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_rows_without_a_label(ending: str, tmp_path: Path, text: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops an unlabelled row from being validated or tested on, trained on as class -1, or dropped."""
    path = write(tmp_path / f"a{ending}", rows(["x", None, "y", "x", None, "y", "x", "y"]))
    more = write(tmp_path / f"more{ending}", [{"text": "fin fin"}, {"text": "gon"}])
    data = text(path, unlabelled_path=str(more), validation_size=2, holdout_size=1)
    known = {TEXTS[i]: "xy".index(label) for i, label in enumerate("x-yx-yxy") if label != "-"}
    seen = {split: served(data, split) for split in ("train", "validation", "test")}
    assert {split: len(each) for split, each in seen.items()} == {"train": 7, "validation": 2, "test": 1}
    for (one,), label in [row for each in seen.values() for row in each]:
        assert label == known.get(one, -100)
    assert {one for (one,), label in seen["train"] if label == -100} == {TEXTS[1], TEXTS[4], "fin fin", "gon"}
    assert "4 of 7 training rows have no label" in log.text and data.num_unlabelled == 4


@pytest.mark.parametrize(("labels", "width"), [([0.5, None, 1.5, 2.5], None), ([["a"], None, ["b"], []], 2)])
def test_scores_and_lists_without_a_label_are_nan(labels: Any, width: int | None, tmp_path: Path, text: Make) -> None:
    """Stops the score 0, or no label at all, in the place of an unknown one."""
    data = text(write(tmp_path / "a.jsonl", rows(labels)), validation_size=1)
    missing = [label for (one,), label in served(data, "train") if one == TEXTS[1]]
    assert np.isnan(missing).all() and np.shape(missing) == ((1,) if width is None else (1, width))


def test_split_is_the_same_with_and_without_unlabelled_rows(tmp_path: Path, text: Make) -> None:
    """Stops a student from training on rows that its teacher was measured on, as it alone reads unlabelled ones."""
    labelled = rows(list("xyxyxyxy"))
    plain = write(tmp_path / "plain.csv", labelled)
    mixed = write(tmp_path / "mixed.csv", [*labelled[:3], {"text": "gon", "label": None}, *labelled[3:]])
    for name in ("test", "validation"):
        one, other = (text(path, validation_size=2, holdout_size=3).texts(name) for path in (plain, mixed))
        assert one == other


def test_copies_leave_the_training_rows(tmp_path: Path, text: Make) -> None:
    """Stops a text from being validated on whose copy was trained on."""
    data = text(write(tmp_path / "a.csv", rows(list("xyxyxyxy"), ["ba", "de", "fi", "go"] * 2)), validation_size=2)
    assert not set(data.texts("train")) & set(data.texts("validation"))


class Recorder(DistillationModule):
    """Keeps each batch's losses."""

    seen: list[tuple[Tensor, ...]]

    def _log_step(self, losses: Mapping[str, Tensor]) -> None:
        self.seen.append(tuple(loss.detach() for name, loss in losses.items() if name != "train/loss"))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("labels", [[None] * 6 + ["x", "y"], ["x", None, "y", None, "x", "y", None, "y"]])
def test_training_with_rows_without_a_label(
    shift: bool, labels: list[Any], tmp_path: Path, text: Make, tiny_model: Make, make_trainer: Make
) -> None:
    """Stops NaN from a batch without labels, and losses that read the placeholder -100 as a class."""
    write(tmp_path / "train.jsonl", rows(labels))
    write(tmp_path / "validation.jsonl", rows(list("xyxy")))
    terms = {"soft": SoftTargetKL(probability_shift=shift), "decoupled": DecoupledKD()}
    source, teacher = (ModelSource(str(tiny_model(seed=seed))) for seed in (1, 0))
    module = Recorder(source, {"teacher": teacher}, losses=terms)
    module.seen = []
    data = text(tmp_path, "", batch_size=2)
    make_trainer(log_every_n_steps=1).fit(module, datamodule=data)
    assert len(module.seen) == 4 and all(p.isfinite().all() for p in module.parameters())
    for hard, soft, decoupled in module.seen:
        assert hard.isfinite() and soft.item() > 0
        assert (hard == 0) == (decoupled == 0)  # both read labels; soft targets do not
    assert (0 in [hard.item() for hard, *_ in module.seen]) == (labels[0] is None)


def test_unlabelled_rows_need_a_teacher(tmp_path: Path, text: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops fine-tuning that looks as if it used all rows."""
    data = text(write(tmp_path / "a.csv", rows(["x", None, "y", "x", "y"])), "", validation_size=1)
    module = DistillationModule(ModelSource(str(tiny_model())))
    with pytest.raises(InputError, match="1 training rows have no label, and there is no teacher"):
        make_trainer().fit(module, datamodule=data)


# ---------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predict_without_labels(ending: str, tmp_path: Path, text: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops a file of new texts from being refused, and its rows from being split, reordered or named by its labels."""
    write(tmp_path / "train.csv", rows(list("zxy")))
    write(tmp_path / "validation.csv", rows(list("zxy")))
    source = ModelSource(str(tiny_model(num_labels=3)))
    trainer = make_trainer(enable_checkpointing=True, max_epochs=1)
    trainer.fit(DistillationModule(source), datamodule=text(tmp_path, ""))
    checkpoint = tmp_path / "last.ckpt"
    trainer.save_checkpoint(checkpoint)
    new = write(tmp_path / f"new{ending}", [{"text": one} for one in TEXTS])
    records = []
    for path in (new, write(tmp_path / f"labelled{ending}", rows(["other"] * 8))):
        writer = PredictionWriter(str(tmp_path / "out.jsonl"))
        predictor = make_trainer(callbacks=[writer])
        data = text(path, "", validation_size=3, unlabelled_path="/nowhere.csv")
        predictor.predict(DistillationModule(source), data, ckpt_path=checkpoint, return_predictions=False)
        records.append([json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()])
        assert [record["index"] for record in records[-1]] == list(range(8))
        assert {record["label"] for record in records[-1]} <= {"x", "y", "z"}
        assert data.texts("predict") == [(one,) for one in TEXTS]
    assert records[0] == records[1]


def test_predict_without_labels_on_other_data(
    tmp_path: Path, write_glue: Make, tiny_model: Make, make_trainer: Make
) -> None:
    """Stops `predict` of a data module from asking for the labels that are to be predicted."""
    glue = GLUEDataModule("sst2", str(write_glue({"sst2": {"test": {"sentence": ["ba", "de"]}}})), str(tiny_model()))
    module = DistillationModule(ModelSource(str(tiny_model(num_labels=3))))
    (records,) = make_trainer().predict(module, datamodule=glue)
    assert {record["label"] for record in records} <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    (tmp_path / "ner").mkdir()
    Dataset.from_dict({"tokens": [["ba", "de"], ["fi"]]}).to_parquet(tmp_path / "ner" / "test-00000-of-00001.parquet")
    encoder, tags = str(tiny_model(head=False)), {0: "O", 1: "B-PER"}
    AutoModelForTokenClassification.from_pretrained(encoder, id2label=tags).save_pretrained(tmp_path / "tagger")
    source = ModelSource(str(tmp_path / "tagger"))
    ner = NERDataModule(str(tmp_path / "ner"), tokenizer=encoder)
    (records,) = make_trainer().predict(DistillationModule(source, task=TokenClassification()), datamodule=ner)
    assert [record["index"] for record in records] in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.CSV", ","), ("a.Tsv", "\t")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_cells_are_separated_as_in_the_header(name: str, separator: str, end: str, tmp_path: Path, text: Make) -> None:
    """Stops the CSV of half of the world's spreadsheets, and the files that GLUE once came in, from being refused."""
    cells = [("text", '"label, or ""verdict"""'), ("ba, de", "x"), ('"fi; ""go"""', "y"), ('"ba\tde"', "x")]
    cells += [("fi", "y"), ("ba", "x")]
    if separator == ",":
        cells[1] = ('"ba, de"', "x")
    (tmp_path / name).write_bytes(end.join(separator.join(row) for row in cells).encode())
    data = text(tmp_path / name, validation_size=1, label_column='label, or "verdict"')
    found = {*data.texts("train"), *data.texts("validation")}
    assert found == {("ba, de",), ('fi; "go"',), ("ba\tde",), ("fi",), ("ba",)}
    assert data.label_names == ["x", "y"]


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.csv", b"text,label\nba,x\nde,fi,y\n", r"Line 3 of .*a.csv has 3 cells, but the header has 2: a text with"),
        ("a.csv", b"text;label\nba;x\nde;fi;y\n", r"Line 3 .* has 3 cells, .* with a semicolon in it stands between"),
        ("a.tsv", b"text,label\tx\nba,x\n", r"Line 2 .* has 1 cells, .* a text with a tab in it stands between"),
        ("a.csv", b'text,label\n"ba,x\n', "a.csv is no CSV: unexpected end of data, line 2"),
        ("a.csv", b"text,text\nba,x\n", "Two columns of .*a.csv have the same name: its header is text, text"),
        ("a.csv", b"text,label\nba,x\nd\xe9,y\n", r"is not UTF-8: byte 0xe9 in line 3 \(offset 17\)"),
        ("a.jsonl", b'{"text": "ba"}\n{"text": \xff}\n', r"a.jsonl is not UTF-8: byte 0xff in line 2 \(offset 24\)"),
        ("a.jsonl", b'{"text": "ba"}\n{"text"}\n', "Line 2 of .*a.jsonl is no JSON: Expecting ':'"),
        ("a.jsonl", b'["ba"]\n', "Line 1 of .*a.jsonl is no object"),
        ("a.parquet", b"PAR1", "a.parquet is no whole Parquet file"),
        ("a.txt", b"ba", r"`data.path` to be a file that ends in .csv, .tsv, .jsonl, .parquet, but got '.*a.txt'"),
        ("a.csv", b"text,lable\nba,x\n", "to have a column 'label', but .* text, lable. Did you mean `lable`"),
        ("a.csv", b"txt,label\nba,x\nde,y\n", "to have a column 'text', but .* txt, label. Did you mean `txt`"),
        ("a.csv", b"text,label\nba,\nde,\n", "No row of .*a.csv has a label"),
        ("a.csv", b"text,label\nba,x\nde,x\n", "All rows of .*a.csv have the label 'x'"),
        ("a.csv", b"text,label\nba,1.5\nde,n/a\n", "Row 1 of .* has the label 'n/a', but other labels are scores"),
        ("a.jsonl", b'{"text": null, "label": "x"}\n{"label": "y"}\n{"text": "ba"}', "Row 0 of .* has None in the"),
        ("a.jsonl", b'{"text": "ba", "label": [0, 1]}\n{"text": "b", "label": [1]}', r"\[1\], but 2 of 0 and 1"),
    ],
)  # fmt: skip
def test_refused_files(name: str, content: bytes, message: str, tmp_path: Path, text: Make) -> None:
    """Stops a traceback from deep inside, and rows that are read as something else."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        text(tmp_path / name, validation_size=1)
    assert "\n" not in str(error.value)


def test_refused_splits(tmp_path: Path, text: Make) -> None:
    """Stops a validation on unknown labels, on none, or on two files at once."""
    train = write(tmp_path / "train.csv", rows(list("xyxy")))
    with pytest.raises(InputError, match=r"has no validation split: add one, or set data.validation_size"):
        text(tmp_path)
    with pytest.raises(InputError, match="`validation_size` to be below the 4 rows"):
        text(train, validation_size=4)
    with pytest.raises(InputError, match=r"`data.validation_size` to be 0 or more, but got -1"):
        text(train, "", validation_size=-1)
    write(tmp_path / "validation.csv", rows(["x", "why"]))
    with pytest.raises(InputError, match="Row 1 of the validation split has the label 'why', which no"):
        text(tmp_path)
    write(tmp_path / "validation.csv", rows(["x", None, "y", None]))
    with pytest.raises(InputError, match=r"Row 1 of the validation split of .* has no label, nor have 1 others"):
        text(tmp_path)
    with pytest.raises(InputError, match="has a validation split, so that no rows need to be taken out of train"):
        text(tmp_path, validation_size=1)
    more = write(tmp_path / "more.jsonl", [{"txt": "ba"}])
    write(tmp_path / "validation.csv", rows(["x"]))
    with pytest.raises(InputError, match=r"to have a column 'text', but its unlabelled split has txt"):
        text(tmp_path, unlabelled_path=str(more))
    write(tmp_path / "dev.jsonl", rows(["x"]))
    with pytest.raises(InputError, match=r"are both the validation split: keep one"):
        text(tmp_path)
    write(tmp_path / "else" / "reviews.csv", rows(["x"]))
    with pytest.raises(InputError, match=r"called train.csv, validation and test, but it has reviews.csv"):
        text(tmp_path / "else")
    with pytest.raises(InputError, match=r"`data.path` to be a file, a folder or a Hub name, .* There is no such file"):
        text(tmp_path / "nothing.csv")


def test_labels_that_look_alike_are_named(tmp_path: Path, text: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops a student of two classes from learning four, of which nobody notices two."""
    data = text(write(tmp_path / "a.csv", rows(["x", "y", "X", " x", "y", "Y"])), validation_size=1)
    assert data.label_names == [" x", "X", "Y", "x", "y"]
    said = [message for message in log.messages if "by case or spaces" in message]
    assert said == [
        "Labels that differ by case or spaces alone are several: ' x', 'X', 'x'",
        "Labels that differ by case or spaces alone are several: 'Y', 'y'",
    ]
    log.clear()
    text(write(tmp_path / "b.csv", rows(["x", "y"] * 3)), validation_size=1)
    assert not any("by case or spaces" in message for message in log.messages)


def test_columns_of_several_types_are_left_out(tmp_path: Path, text: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops a column that nobody asked for from making a file unreadable, and from vanishing in silence."""
    content = [{**row, "meta": meta} for row, meta in zip(rows(list("xyxy")), [1, "n/a", {"a": 1}, None], strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, content)))
    assert text(tmp_path / "a.jsonl", validation_size=1).sizes == {"train": 3, "validation": 1}
    assert "The column 'meta' of" in log.text and "is left out" in log.text


def test_the_task_must_fit(tmp_path: Path, text: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops cross-entropy against lists of 0 and 1, which it would take for probabilities."""
    data = text(write(tmp_path / "a.jsonl", rows([["a"], ["b"], [], ["a"]])), "", validation_size=1)
    module = DistillationModule(ModelSource(str(tiny_model(head=False))))
    with pytest.raises(InputError, match="has any number of labels, but the task is SequenceClassification: set"):
        make_trainer().fit(module, datamodule=data)


# ---------------------------------------------------------------------------------------------- real data


def test_sick(shared: Path, text: Make) -> None:
    """Stops a real set of the Hub from being read in another order than `datasets` has it."""
    vocabulary = str(shared / "data" / "vocab" / "bert-base-uncased")
    options = {"text_column": "sentence_A", "text_pair_column": "sentence_B", "tokenizer": vocabulary}
    data = text(shared / "data" / "sick", holdout_size=500, **options)
    assert data.label_names == ["entailment", "neutral", "contradiction"]
    assert data.sizes["test"] == 500 and data.sizes["validation"] == 375 and 3_900 < data.sizes["train"] <= 4_000
    scores = text(shared / "data" / "sick", label_column="relatedness_score", **options)
    assert scores.label_names is None and 1 <= min(label for _, label in served(scores, "validation"))
