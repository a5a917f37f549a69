"""Texts of one's own: classes, scores, several labels, rows without a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray

from lightning_kd._checks import InputError, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.holdout import hold_out
from lightning_kd.datamodules.labels import Labels, class_names, label_values, read_labels
from lightning_kd.datamodules.loading import load_data

__all__ = ["TextDataModule"]

_METRICS = {
    "class": ("accuracy",),
    "score": ("pearson", "spearman"),
    "several": ("f1_micro", "f1_macro", "accuracy"),
}


class TextDataModule(TransformerDataModule):
    """Texts, or pairs of texts, with labels: from a file, from a folder of files or from the Hub.

    What the labels are follows from how they are written:

    - Strings and whole numbers are classes. Their order is that of the data's ``ClassLabel``, else the alphabet's, or
      by value where all are whole numbers.
    - Numbers with a decimal point are scores (regression).
    - Lists of names, or of a 0 or 1 for each label, are several labels or none (not in CSV); they need the task
      :class:`lightning_kd.tasks.MultiLabelClassification`.

    A training row without a label (an empty cell, ``null``) is for the teacher alone: no hard-label loss is taken of
    it. An empty text is a row as any other, and a text longer than ``max_length`` is cut and counted. `predict` reads
    the test split, or else the validation split, or else the training split, and needs no labels.

    Args:
        path: A file (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``), a folder with such files called ``train``,
            ``validation`` and ``test``, a Hub name, or a local folder in the Hub's layout. Files are read as UTF-8.
        name: The configuration, where a data set of the Hub has several.
        text_column: Where the text is.
        text_pair_column: Where the second text is, if a row is a pair.
        label_column: Where the label is.
        validation_size: Rows taken out of the training split, to validate on, where there is no validation split; as
            rows are held out, with ``holdout_seed``.
        unlabelled_path: More rows to train on, without labels and with the same text columns: as ``path``, of which
            the training split is taken.
        tokenizer: Hub name or local folder; on the command line, the student's unless given.
        max_length: Longest row in tokens; a longer one is cut, and the number of those is logged.
        batch_size: Rows in a training batch, on each device.
        eval_batch_size: Rows in an evaluation batch.
        holdout_size: Rows taken out of the training split, to test on: never trained on and never used to choose a
            checkpoint. Rows whose text equals that of a held-out row leave the training split, too.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer; the batches then hold
            the rows as it reads them, too, unless its vocabulary is that of ``tokenizer``. On the command line, each
            teacher's own unless given.

    Raises:
        InputError: In ``setup``, if a file, a column, a text or a label is not what it should be.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str = "label",
        validation_size: int = 0,
        unlabelled_path: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        holdout_size: int = 0,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        holdout_seed: int = 0,
        seed: int = 0,
        teacher_tokenizers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            holdout_size,
            max_train_rows,
            num_workers,
            holdout_seed,
            seed,
            teacher_tokenizers,
        )
        if validation_size < 0:
            raise expected("data.validation_size", "0 or more", validation_size)
        self.path = path
        self.name = name
        self.text_columns = (text_column,) if text_pair_column is None else (text_column, text_pair_column)
        self.label_column = label_column
        self.validation_size = validation_size
        self.unlabelled_path = unlabelled_path
        self._labels = Labels("class")
        self._splits: dict[str, Dataset] = {}

    def _name(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    def prepare_data(self) -> None:
        load_data(self.path, self.name)

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate") and self.load_split("validation") is None:
            raise InputError(
                f"{self._name()} has no validation split: add one, or set data.validation_size to the number of "
                "rows to take out of the training split for it."
            )
        super().setup(stage)

    def load_split(self, split: str) -> Dataset | None:
        if split == "predict":
            data = load_data(self.path, self.name)
            return self._texts_of(data[next(s for s in ("test", "validation", *data) if s in data)], split)
        if not self._splits:
            self._splits = self._read_splits()
        return self._splits.get(split)

    def _predict_split(self) -> str:
        return "predict"

    def _finds_labels(self) -> bool:
        return False  # those of the model count: the rows to predict on may have any

    def _is_labelled(self, rows: Dataset) -> bool:
        return True

    def _read_label_names(self) -> list[str] | None:
        self.load_split("train")
        rank_zero_info(f"Labels of {self._name()}: {self._labels}")
        spellings: dict[str, list[str]] = {}
        for label in self._labels.names or []:
            spellings.setdefault(label.strip().casefold(), []).append(repr(label))
        for alike in spellings.values():
            if len(alike) > 1:
                rank_zero_info(f"Labels that differ by case or spaces alone are several: {', '.join(alike)}")
        self.metric_names = _METRICS[self._labels.kind]
        self.multi_label = self._labels.kind == "several"
        return self._labels.names

    # ---------------------------------------------------------------------------------------------- reading

    def _read_splits(self) -> dict[str, Dataset]:
        data = load_data(self.path, self.name)
        rows = {split: data[split] for split in ("train", "validation", "test") if split in data}
        if self.validation_size and "validation" in rows:
            raise InputError(
                f"{self._name()} has a validation split, so that no rows need to be taken out of train for it: leave "
                "data.validation_size out."
            )
        values: dict[str, list[Any]] = {}
        for split in rows:
            if split != "test":
                self._check_columns(rows[split], split)
            if self.label_column in rows[split].column_names:
                found = label_values(rows[split], self.label_column)
                if split != "test" or any(value is not None for value in found):
                    values[split] = found
        trained = any(value is not None for value in values.get("train", []))
        known = values["train"] if trained else [value for each in values.values() for value in each]
        names = next((class_names(rows[split], self.label_column) for split in values), None)
        self._labels = read_labels(known, names, self._name())
        splits = {split: self._texts_of(rows[split], split) for split in rows}
        for split, found in values.items():
            if split != "train":
                self._check_labels(found, split)
                splits[split] = self._labelled(splits[split], self._labels.numbers(found, f"the {split} split"))
        if "train" in splits:
            numbers = self._labels.numbers(values["train"], "the train split")
            splits |= self._split_train_rows(splits["train"], numbers)
        return splits

    def _texts_of(self, rows: Dataset, split: str) -> Dataset:
        self._check_columns(rows, split, labelled=False)
        texts = rows.select_columns(list(self.text_columns))
        for column in self.text_columns:
            for number, text in enumerate(texts[column][:]):
                if not isinstance(text, str):
                    raise InputError(
                        f"Row {number} of the {split} split of {self._name()} has {text!r} in the column {column!r}, "
                        "where a text was expected."
                    )
        return texts

    def _check_labels(self, values: list[Any], split: str) -> None:
        missing = [number for number, value in enumerate(values) if value is None]
        if missing:
            raise InputError(
                f"Row {missing[0]} of the {split} split of {self._name()} has no label, nor have "
                f"{len(missing) - 1:,} others: rows to {'validate' if split == 'validation' else split} on need one."
            )

    def _labelled(self, texts: Dataset, numbers: NDArray[Any]) -> Dataset:
        return texts.add_column(self.label_column, list(numbers))  # which leaves the texts where they are

    def _split_train_rows(self, texts: Dataset, numbers: NDArray[Any]) -> dict[str, Dataset]:
        """The training split, its rows without a label behind the others, and what is taken out to validate on."""
        if self.unlabelled_path is not None:
            more = load_data(self.unlabelled_path)
            more_texts = self._texts_of(more[next(s for s in ("train", *more) if s in more)], "unlabelled")
            nothing = self._labels.numbers([None] * len(more_texts), "the unlabelled rows")
            texts, numbers = concatenate_datasets([texts, more_texts]), np.concatenate([numbers, nothing])
        missing = self._labels.missing(numbers)
        order = np.argsort(missing, kind="stable")
        labelled = int((~missing).sum())
        texts, numbers = texts.select(order), numbers[order]
        columns, size = self.text_columns, self.validation_size
        kept, taken = hold_out(texts, columns, size, self.holdout_seed, labelled, "validation_size")
        kept = np.sort(kept)
        self.num_unlabelled = int((kept >= labelled).sum())
        found = {"train": self._labelled(texts.select(kept), numbers[kept])}
        if len(taken):
            found["validation"] = self._labelled(texts.select(taken), numbers[taken])
        return found
