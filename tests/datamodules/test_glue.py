"""GLUE: all nine sets from tiny folders in the Hub's layout, and two real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_kd import InputError
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.tasks import SequenceClassification

WriteGlue = Callable[..., Path]

#: Text columns, labels and metrics, from the paper and the Hub's data card; no labels stand for scores.
SETS: dict[str, tuple[list[str], list[str] | None, list[str]]] = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], ["matthews"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], ["accuracy"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ["accuracy", "f1"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ["accuracy"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], ["accuracy", "f1"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["accuracy"]),
    "sst2": (["sentence"], ["negative", "positive"], ["accuracy"]),
    "stsb": (["sentence1", "sentence2"], None, ["pearson", "spearman"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], ["accuracy"]),
}


@pytest.fixture(scope="session")
def tokenizer_folder(tiny_model: Callable[..., Path]) -> str:
    """A tokenizer that writes token types."""
    return str(tiny_model("bert"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: str) -> PreTrainedTokenizerBase:
    """The same, loaded."""
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def make(glue_folder: Path, tokenizer_folder: str) -> Callable[..., GLUEDataModule]:
    """Makes a data module on the tiny sets: ``make(name, stage, **options)``, set up unless the stage is empty."""

    def data(name: str = "sst2", stage: str = "fit", path: Path | str = glue_folder, **options: Any) -> GLUEDataModule:
        module = GLUEDataModule(name, str(path), **{"tokenizer": tokenizer_folder, "batch_size": 4, **options})
        if stage:
            module.prepare_data()
            module.setup(stage)
        return module

    return data


def rows_of(loader: Any) -> dict[int, dict[str, list[int] | float]]:
    """What a loader serves, by the row's number: its real tokens, the types of these, its label."""
    rows = {}
    for batch in loader:
        for i, index in enumerate(batch["index"].tolist()):
            mask = batch["attention_mask"][i].bool()
            assert index not in rows
            rows[index] = {name: batch[name][i][mask].tolist() for name in ("input_ids", "token_type_ids")}
            rows[index]["label"] = batch["labels"][i].item()
    return rows


@pytest.mark.parametrize("name", SETS)
def test_all_sets(make: Callable[..., GLUEDataModule], glue_folder: Path, tokenizer: Any, name: str) -> None:
    """Stops a set that is read from another's columns, a pair in the wrong order, and labels beside their rows."""
    columns, label_names, metric_names = SETS[name]
    data = make(name)
    assert data.label_names == label_names
    assert list(data.metric_names) == metric_names
    SequenceClassification().metrics(data.metric_names, label_names)
    stored = load_dataset("parquet", data_files=str(glue_folder / name / "train-*.parquet"), split="train")
    served = rows_of(data.train_dataloader())
    assert sorted(served) == list(range(24))
    for row, values in served.items():
        encoded = tokenizer(*(stored[row][column] for column in columns))
        assert values["input_ids"] == encoded["input_ids"]
        assert values["token_type_ids"] == encoded["token_type_ids"]
        assert values["label"] == pytest.approx(stored[row]["label"])
    labels = next(iter(data.train_dataloader()))["labels"]
    assert labels.dtype == (torch.int64 if label_names else torch.float32)


@pytest.mark.parametrize("name", [name for name in SETS if name != "mnli"])
def test_one_validation_loader(make: Callable[..., GLUEDataModule], glue_folder: Path, name: str) -> None:
    """Stops validation on training rows."""
    data = make(name, "validate")
    (loader,) = data.val_dataloader()
    stored = load_dataset("parquet", data_files=str(glue_folder / name / "validation-*.parquet"), split="train")
    assert {row: values["label"] for row, values in rows_of(loader).items()} == pytest.approx(
        dict(enumerate(stored["label"]))
    )
    assert data.sizes == {"validation": 10}


def test_mnli_has_two_validation_loaders(make: Callable[..., GLUEDataModule], glue_folder: Path) -> None:
    """Stops the matched rows from being reported as the mismatched ones too."""
    data = make("mnli")
    assert len(data.evaluation_names) == 2 and data.evaluation_names[0] == ""
    matched, mismatched = map(rows_of, data.val_dataloader())
    assert matched != mismatched
    for served, split in ((matched, "matched"), (mismatched, "mismatched")):
        file = str(glue_folder / "mnli" / f"validation_{split}-*.parquet")
        stored = list(load_dataset("parquet", data_files=file, split="train")["label"])
        assert [served[row]["label"] for row in sorted(served)] == stored
    stored = load_dataset("parquet", data_files=str(glue_folder / "mnli" / "test_matched-*.parquet"), split="train")
    pairs = zip(stored["premise"], stored["hypothesis"], strict=True)
    assert make("mnli", "predict").texts("predict") == list(pairs)


# ---------------------------------------------------------------------------------------------- held-out rows


def test_held_out_rows_are_not_trained_on(make: Callable[..., GLUEDataModule]) -> None:
    """Stops a test accuracy on rows that were trained on."""
    data = make(holdout_size=7)
    train, test = rows_of(data.train_dataloader()), rows_of(data.test_dataloader())
    assert data.sizes == {"train": 17, "test": 7, "validation": 10}
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(range(24))


def test_held_out_rows_depend_on_their_seed_alone(make: Callable[..., GLUEDataModule]) -> None:
    """Stops `test`, or a student of another seed, from testing on rows that `fit` or the teacher trained on."""
    fitted = rows_of(make(holdout_size=7).test_dataloader())
    for other in (make(stage="test", holdout_size=7), make(holdout_size=7, batch_size=2, max_train_rows=3, seed=1)):
        assert rows_of(other.test_dataloader()) == fitted
    assert rows_of(make(stage="test", holdout_size=7, holdout_seed=1).test_dataloader()) != fitted


def test_drawn_rows_depend_on_the_seed(make: Callable[..., GLUEDataModule]) -> None:
    """Stops runs of several seeds from training on the same few rows, and a draw that repeats a row."""
    drawn = [rows_of(make(holdout_size=7, max_train_rows=9, seed=seed).train_dataloader()) for seed in (0, 0, 1)]
    assert sorted(drawn[0]) == sorted(drawn[1]) != sorted(drawn[2])
    assert len(set(drawn[2])) == 9


def test_equal_texts_leave_the_training_split(
    make: Callable[..., GLUEDataModule], write_glue: WriteGlue, log: pytest.LogCaptureFixture
) -> None:
    """Stops a held-out row from being learnt by heart in its second copy; half a pair alone is no copy."""
    first = ["ba", "ba", "de", "de", "fi", "fi", "go", "ko"] * 2
    second = ["ba", "be", "ba", "be", "ba", "be", "ba", "be"] * 2
    train = {"sentence1": first, "sentence2": second, "label": [0, 1] * 8}
    path = write_glue({"mrpc": {"train": train, "validation": train}})
    data = make("mrpc", path=path, holdout_size=3)
    served = {name: data.texts(name) for name in ("train", "test")}
    left_out = sum(served["test"].count(pair) == 1 for pair in served["test"])  # the other copy was in training
    assert left_out > 0
    assert len(served["train"]) == 16 - 3 - left_out
    assert not set(served["train"]) & set(served["test"])
    assert f"{left_out} training rows equal a held-out row and are left out" in log.text


@pytest.mark.parametrize("size", [24, 100])
def test_refuses_to_hold_everything_out(make: Callable[..., GLUEDataModule], size: int) -> None:
    """Stops a run without training rows."""
    with pytest.raises(
        InputError, match=f"`holdout_size` to be below the 24 rows of the training split, but got {size}"
    ):
        make(holdout_size=size)


def test_max_train_rows(make: Callable[..., GLUEDataModule]) -> None:
    """Stops a subset that is the head of a sorted file, and one that reaches into the held-out rows."""
    data = make(max_train_rows=6, holdout_size=5)
    train = set(rows_of(data.train_dataloader()))
    assert len(train) == 6
    assert set(rows_of(make(max_train_rows=6).train_dataloader())) != set(range(6))
    assert not train & set(rows_of(data.test_dataloader()))
    assert train == set(rows_of(make(max_train_rows=6, holdout_size=5).train_dataloader()))


# ---------------------------------------------------------------------------------------------- test and predict


def test_refuses_test_split_without_labels(make: Callable[..., GLUEDataModule]) -> None:
    """Stops an accuracy against GLUE's placeholder label -1."""
    with pytest.raises(InputError, match=r"no test split with labels. Set data.holdout_size .* or run `validate`"):
        make(stage="test")


def test_takes_test_split_with_labels(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops a data set of one's own, with a labelled test split, from being refused."""
    rows = {"sentence": ["ba de", "fi", "go ba"], "label": [1, 0, 1]}
    data = make(stage="test", path=write_glue({"sst2": {"train": rows, "validation": rows, "test": rows}}))
    assert {row: values["label"] for row, values in rows_of(data.test_dataloader()).items()} == {0: 1, 1: 0, 2: 1}


def test_predict_runs_on_the_test_split(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops predictions of the wrong split, and a crash where there is no test split (MRPC as some mirrors have it)."""
    data = make(stage="predict")
    assert sorted(rows_of(data.predict_dataloader())) == list(range(7))
    assert len(data.texts("predict")) == 7
    rows = {"sentence": ["ba de", "fi"], "label": [1, 0]}
    bare = make(stage="predict", path=write_glue({"sst2": {"train": rows, "validation": rows}}))
    assert bare.texts("predict") == [("ba de",), ("fi",)]


def test_validates_without_training_split(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops a set that has no training rows here from being unusable, and a crash in the place of the reason."""
    path = write_glue({"sst2": {"validation": {"sentence": ["ba", "de"], "label": [0, 1]}}})
    assert make(stage="validate", path=path).sizes == {"validation": 2}
    with pytest.raises(InputError, match="no 'train' split"):
        make(path=path)


# ---------------------------------------------------------------------------------------------- batches


def test_texts_are_in_the_order_of_the_rows(make: Callable[..., GLUEDataModule], tokenizer: Any) -> None:
    """Stops a cache of teacher outputs, or a BiLSTM's words, that belong to other rows."""
    data = make("rte", holdout_size=6)
    for name in ("train", "test", "validation"):
        served = {batch["index"][i].item(): batch["input_ids"][i] for batch in data.evaluation_batches(name)
                  for i in range(len(batch["index"]))}  # fmt: skip
        texts = data.texts(name)
        assert len(texts) == len(served) == data.sizes[name]
        for (_, ids), pair in zip(sorted(served.items()), texts, strict=True):
            assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(pair)


def test_calibration_batches_repeat(make: Callable[..., GLUEDataModule]) -> None:
    """Stops a quantized model that differs from run to run, and calibration on held-out rows."""
    data = make(holdout_size=6)
    next(iter(data.train_dataloader()))
    batches, again = data.calibration_batches(3), make(holdout_size=6).calibration_batches(3)
    assert len(batches) == 3
    for one, other in zip(batches, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    held_out = set(rows_of(data.test_dataloader()))
    assert not held_out & {index for batch in batches for index in batch["index"].tolist()}


def test_cut_rows_are_counted(
    make: Callable[..., GLUEDataModule], tokenizer: Any, log: pytest.LogCaptureFixture
) -> None:
    """Stops a max_length that cuts most of the texts without a word."""
    full = make("sst2").train_dataloader()
    too_long = sum(len(values["input_ids"]) > 6 for values in rows_of(full).values())
    assert "are cut to" not in log.text
    short = rows_of(make("sst2", max_length=6).train_dataloader())
    assert max(len(values["input_ids"]) for values in short.values()) == 6
    assert all(values["input_ids"][-1] == tokenizer.sep_token_id for values in short.values())
    assert 0 < too_long < 24
    assert f"{too_long} of 24 rows of train are cut to 6 tokens" in log.text


# ---------------------------------------------------------------------------------------------- what is refused


def test_refuses_missing_column(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops a KeyError from deep inside; the message shows what there is."""
    rows = {"text": ["ba", "de"], "label": [0, 1]}
    path = write_glue({"sst2": {"train": rows, "validation": rows}})
    with pytest.raises(
        InputError, match=r"\(sst2\) to have a column 'sentence', but its validation split has text, label"
    ):
        make(path=path)


def test_two_folders_of_one_name(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops `datasets` from serving one folder's rows for another's: its cache knows a folder by its last name."""
    for parent, words in (("one", ["ba", "de"]), ("other", ["fi", "go"])):
        rows = {"sentence": words, "label": [0, 1]}
        path = write_glue({"sst2": {"train": rows, "validation": rows}}, parent)
        assert make(path=path).texts("train") == [(word,) for word in words]


def test_refuses_empty_split(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops metrics over nothing."""
    rows = {"sentence": ["ba", "de"], "label": [0, 1]}
    path = write_glue({"sst2": {"train": rows, "validation": {"sentence": [], "label": []}}})
    with pytest.raises(InputError, match='"validation" corresponds to no data'):
        make(path=path)


def test_refuses_training_split_of_held_out_texts(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops an epoch of no steps, where every training row equals a held-out one."""
    rows = {"sentence": ["ba"] * 4, "label": [0, 1, 0, 1]}
    with pytest.raises(InputError, match="`holdout_size` to be small enough to leave rows to train on, but got 1"):
        make(path=write_glue({"sst2": {"train": rows, "validation": rows}}), holdout_size=1)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "no-such-data-set"])
def test_refuses_wrong_path(make: Callable[..., GLUEDataModule], path: str) -> None:
    """Stops a mistyped folder from being looked for on the Hub, and a page of traceback where it is not found."""
    with pytest.raises(InputError, match=rf"`data.path` to be .* but got '{path}'") as error:
        make(path=path)
    assert "\n" not in str(error.value)


def test_refuses_set_that_the_folder_lacks(make: Callable[..., GLUEDataModule], write_glue: WriteGlue) -> None:
    """Stops the advice to check a path that is right; the message names what the folder has."""
    rows = {"sentence": ["ba", "de"], "label": [0, 1]}
    with pytest.raises(InputError, match=r"with its files and the set 'cola', .*sst2.*"):
        make("cola", path=write_glue({"sst2": {"train": rows, "validation": rows}}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sst-2"}, "`data.name` to be one of cola, mnli, .*, wnli, but got 'sst-2'"),
        ({"batch_size": 0}, "`batch_size` to be at least 1, but got 0"),
        ({"eval_batch_size": -1}, "`eval_batch_size` to be at least 1, but got -1"),
        ({"max_length": 0}, "`max_length` to be at least 1, but got 0"),
        ({"holdout_size": -1}, "`holdout_size` to be 0 or more, but got -1"),
        ({"max_train_rows": 0}, "`max_train_rows` to be at least 1, but got 0"),
        ({"tokenizer": "/nowhere/at/all"}, "`data.tokenizer` to be a local folder"),
        ({"tokenizer": "no-such-tokenizer"}, "`data.tokenizer` to be a Hub name or a local folder with a tokenizer"),
        ({"tokenizer": None}, "`tokenizer` to be .* but got nothing: give data.tokenizer"),
    ],
)
def test_refuses_arguments(make: Callable[..., GLUEDataModule], options: dict[str, Any], message: str) -> None:
    """Stops a value that would train on nothing, on all rows but the last, or without words."""
    with pytest.raises(InputError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("name", "train_rows"), [("sst2", 67_349), ("mrpc", 3_668)])
def test_real_sets(shared: Path, name: str, train_rows: int) -> None:
    """Stops a tiny folder that looks like GLUE from being all that ever worked."""
    vocabulary = str(shared / "data" / "vocab" / "bert-base-uncased")
    data = GLUEDataModule(name, str(shared / "data" / "glue"), vocabulary, holdout_size=200, max_train_rows=500)
    data.setup("fit")
    train, validation = data.load_split("train"), data.load_split("validation")
    assert train is not None and len(train) == train_rows and validation is not None
    assert data.sizes == {"train": 500, "test": 200, "validation": len(validation)}
    assert not set(data.texts("train")) & set(data.texts("test"))
    served = rows_of(data.val_dataloader()[0])
    assert [served[row]["label"] for row in sorted(served)] == list(validation["label"])
