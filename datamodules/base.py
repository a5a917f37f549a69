"""What all data modules share: tokenizing, holding rows out, batches, loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import lightning as L
import numpy as np
from datasets import ClassLabel, Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected, nearest
from lightning_kd._progress import stage as progress_stage
from lightning_kd._progress import unseen
from lightning_kd.datamodules.batching import (
    BatchLoader,
    BucketBatchSampler,
    Collator,
    TokenizedRows,
    batches_done,
    loader_options,
    overfits,
)
from lightning_kd.datamodules.holdout import hold_out
from lightning_kd.datamodules.loading import load_tokenizer
from lightning_kd.datamodules.token_cache import cached, encode, first_on_each_node, place_of

__all__ = ["TransformerDataModule"]


class TransformerDataModule(L.LightningDataModule):
    """Texts with labels, tokenized once and served in batches of like length.

    A subclass says where the rows come from (:meth:`load_split`), and in which columns the text is
    (``text_columns``); all else is here.

    Args:
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
    """

    text_columns: tuple[str, ...]
    metric_names: Sequence[str] = ("accuracy",)
    evaluation_names: Sequence[str] = ("",)
    #: The splits of the data set that are validated on, one for each of ``evaluation_names``.
    validation_splits: Sequence[str] = ("validation",)
    label_column: str = "label"
    #: The names of the tasks that the rows are for, the usual one first.
    task_names: Sequence[str] = ("SequenceClassification", "MultiLabelClassification")
    #: Rows with the same text in this column are held out together; unless given, rows are held out one by one.
    holdout_column: str | None = None
    #: Whether a row has several labels or none: ``(rows, labels)`` of 0 and 1.
    multi_label: bool = False
    #: Training rows without a label, for the teacher to teach on; they stand behind the others.
    num_unlabelled: int = 0
    #: Whether ``label_names`` is known; rows to predict on may have no labels at all.
    has_labels: bool = False

    def __init__(
        self,
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
        super().__init__()
        for name, value in (
            ("max_length", max_length),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise expected(name, "at least 1", value)
        if num_workers < 0:
            raise expected("num_workers", "0 or more", num_workers)
        if holdout_size < 0:
            raise expected("holdout_size", "0 or more", holdout_size)
        if max_train_rows is not None and max_train_rows < 1:
            raise expected("max_train_rows", "at least 1", max_train_rows)
        self.tokenizer_source = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.holdout_size = holdout_size
        self.max_train_rows = max_train_rows
        self.num_workers = num_workers
        self.holdout_seed = holdout_seed
        self.seed = seed
        self.teacher_tokenizer_sources = dict(teacher_tokenizers or {})
        self.tokenizer: PreTrainedTokenizerBase | None = None
        #: Of the teachers that read another vocabulary, by name; filled to fit.
        self.teacher_tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        #: Of the teachers that read the same tokens with token types, and the student without, or the other way round.
        self.teacher_inputs: dict[str, PreTrainedTokenizerBase] = {}
        self.label_names: list[str] | None = None
        #: Adds to a training batch before it leaves the CPU.
        self.on_train_batch: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._rows: dict[str, TokenizedRows] = {}
        self._on_tokenized: Callable[[float], None] = unseen
        self._train: tuple[Dataset, NDArray[np.int64], NDArray[np.int64]] | None = None

    # ---------------------------------------------------------------------------------------------- for subclasses

    @abstractmethod
    def load_split(self, split: str) -> Dataset | None:
        """The rows of a split, or ``None`` if the data set has no such split."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that ``tokenizer`` names."""
        if self.tokenizer_source is None:
            raise InputError(
                "Expected argument `tokenizer` to be a Hub name or a local folder, but got nothing: "
                "give data.tokenizer, or a student with a path."
            )
        return self.read_tokenizer("data.tokenizer", self.tokenizer_source)

    def read_tokenizer(self, option: str, source: str) -> PreTrainedTokenizerBase:
        """The tokenizer at ``source``, which ``option`` names."""
        return load_tokenizer(option, source)

    # ---------------------------------------------------------------------------------------------- set up

    def prepare_data(self) -> None:
        """Fetch what has to be fetched, on one process of each node."""
        self.load_split("train")

    def setup(self, stage: str) -> None:
        if self.tokenizer is None:
            self.tokenizer = self.load_tokenizer()
        if not self.has_labels and (stage != "predict" or self._finds_labels()):
            self.label_names = self._read_label_names()
            self.has_labels = True
        if stage == "fit":
            self._load_teacher_tokenizers()
            train, kept, _ = self._split_train()
            self._add("train", train, kept)
            if unlabelled := int((kept >= len(train) - self.num_unlabelled).sum()):
                rank_zero_info(
                    f"{unlabelled:,} of {len(kept):,} training rows have no label: the student learns from the "
                    "teacher alone on them"
                )
            self._add_test(required=False)
        if stage in ("fit", "validate"):
            for split in self.validation_splits:
                rows = self.load_split(split)
                if rows is None:
                    raise InputError(f"{self._name()} has no {split!r} split to validate on.")
                self._add(split, rows)
        if stage == "test":
            self._add_test()
        if stage == "predict":
            rows = self.load_split(self._predict_split())
            assert rows is not None  # _predict_split names one that is there
            self._add("predict", rows)

    def _load_teacher_tokenizers(self) -> None:
        own = cast(PreTrainedTokenizerBase, self.tokenizer)
        for name, source in self.teacher_tokenizer_sources.items():
            tokenizer = self.read_tokenizer(f"data.teacher_tokenizers.{name}", source)
            types = ["token_type_ids" in each.model_input_names for each in (tokenizer, own)]
            if tokenizer.get_vocab() != own.get_vocab():
                self.teacher_tokenizers[name] = tokenizer
            elif types[0] != types[1] and len(self.text_columns) > 1:
                self.teacher_inputs[name] = tokenizer
        if self.teacher_tokenizers:
            names = ", ".join(self.teacher_tokenizers)
            rank_zero_info(f"Another vocabulary than the student's is read by {names}: each text is encoded for both")
        for name, tokenizer in self.teacher_inputs.items():
            known = "token_type_ids" in tokenizer.model_input_names
            reads, other = (name, "the student") if known else ("the student", name)
            rank_zero_info(f"{reads} tells two texts by token types, {other} does not: each row is encoded for both")

    def _add_test(self, required: bool = True) -> None:
        """The held-out rows, or else the test split if its labels are known."""
        if self.holdout_size:
            train, _, held_out = self._split_train()
            self._add("test", train, held_out)
            return
        rows = self.load_split("test")
        if rows is not None and self.label_column in rows.column_names and self._is_labelled(rows):
            self._add("test", rows)
        elif required:
            raise InputError(
                f"{self._name()} has no test split with labels. Set data.holdout_size to hold rows out of the "
                "training split, or run `validate`."
            )

    def _is_labelled(self, rows: Dataset) -> bool:
        return min(rows[self.label_column][:], default=-1) >= 0

    def _predict_split(self) -> str:
        splits = ("test", *self.validation_splits)
        return next((split for split in splits if self.load_split(split) is not None), "train")

    def _name(self) -> str:
        return type(self).__name__

    def _finds_labels(self) -> bool:
        splits = (self.load_split(split) for split in (*self.validation_splits, "train"))
        return any(rows is not None and self.label_column in rows.column_names for rows in splits)

    def _read_label_names(self) -> list[str] | None:
        for split in (*self.validation_splits, "train"):
            rows = self.load_split(split)
            if rows is not None:
                self._check_columns(rows, split)
                feature = rows.features[self.label_column]
                feature = getattr(feature, "feature", feature)  # a list of labels, one a word
                return list(feature.names) if isinstance(feature, ClassLabel) else None
        raise InputError(f"{self._name()} has neither a train nor a validation split.")

    def _check_columns(self, rows: Dataset, split: str, labelled: bool = True) -> None:
        for column in (*self.text_columns, *([self.label_column] if labelled else [])):
            if column not in rows.column_names:
                raise InputError(
                    f"Expected {self._name()} to have a column {column!r}, but its {split} split has "
                    f"{', '.join(rows.column_names)}. {nearest(column, rows.column_names)}".strip()
                )

    def _split_train(self) -> tuple[Dataset, NDArray[np.int64], NDArray[np.int64]]:
        """The training split, the rows to train on and the rows held out."""
        if self._train is None:
            rows = self.load_split("train")
            if rows is None:
                raise InputError(f"{self._name()} has no 'train' split: it can be validated on, but not trained on.")
            self._check_columns(rows, "train")
            self._train = (rows, *self._hold_out(rows))
        return self._train

    def _hold_out(self, rows: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        labelled = len(rows) - self.num_unlabelled
        column = self.holdout_column
        columns = self.text_columns if column is None else (column,)
        size, together = self.holdout_size, column is not None
        kept, held_out = hold_out(rows, columns, size, self.holdout_seed, labelled, "holdout_size", together)
        if self.max_train_rows is not None:
            kept = np.random.default_rng(self.seed).permutation(kept)[: self.max_train_rows]
        return np.sort(kept), held_out

    def _add(self, name: str, rows: Dataset, numbers: NDArray[np.int64] | None = None) -> None:
        if name in self._rows:
            return
        self._check_columns(rows, name, labelled=name != "predict")
        numbers = np.arange(len(rows)) if numbers is None else numbers
        if not len(numbers):
            raise InputError(f"The {name} split of {self._name()} has no rows.")
        shown = self.trainer is None or self.trainer.progress_bar_callback is not None
        encodings = {**self.teacher_tokenizers, **self.teacher_inputs}
        total = len(numbers) * (1 + len(encodings))
        with progress_stage(f"Tokenizing {name}", total, "rows", shown) as progress:
            self._on_tokenized = progress.advance
            tokenized = self._tokenize(rows, numbers, cast(PreTrainedTokenizerBase, self.tokenizer))
            teachers = {
                teacher: (self._tokenize(rows, numbers, tokenizer), cast(int, tokenizer.pad_token_id))
                for teacher, tokenizer in encodings.items()
            }
            progress.advance(total - progress.done)
            self._on_tokenized = unseen
        if tokenized.truncated:
            rank_zero_info(
                f"{tokenized.truncated:,} of {len(tokenized):,} rows of {name} are cut to {self.max_length} tokens"
            )
        self._rows[name] = replace(tokenized, teachers=teachers)

    def _tokenize(self, rows: Dataset, numbers: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
        chosen = rows if len(numbers) == len(rows) else rows.select(numbers)
        place = place_of(rows, numbers, self.text_columns, tokenizer, self.max_length)
        texts = chosen.select_columns(list(self.text_columns))
        with first_on_each_node(None if place is None else self.trainer):
            encoded = cached(place, lambda: encode(texts, tokenizer, self.max_length, self._on_tokenized))
        labels: Any = None
        if self.label_column in chosen.column_names:
            is_float = self.label_names is None or self.multi_label
            labels = np.asarray(chosen[self.label_column][:]).astype(np.float32 if is_float else np.int64)
        return TokenizedRows(
            tokens=encoded.tokens,
            offsets=encoded.offsets,
            labels=labels,
            index=numbers,
            truncated=encoded.truncated,
        )

    # ---------------------------------------------------------------------------------------------- loaders

    def tokenizer_of(self, teacher: str) -> PreTrainedTokenizerBase | None:
        """What writes the rows as a teacher reads them: its own tokenizer, or the student's."""
        return self.teacher_tokenizers.get(teacher, self.teacher_inputs.get(teacher, self.tokenizer))

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split that is loaded."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def longest(self, teacher: str | None = None) -> int:
        """Tokens in the longest loaded row, as the student reads it, or a teacher with a tokenizer of its own."""
        rows = [self.token_rows(name, teacher).lengths for name in self._rows]
        return max((int(lengths.max()) for lengths in rows if len(lengths)), default=0)

    def texts(self, name: str) -> list[tuple[str, ...]]:
        """The texts of a loaded split, in the order of its rows, for what reads words rather than tokens."""
        split = {"test": "train" if self.holdout_size else "test", "predict": self._predict_split()}.get(name, name)
        chosen = cast(Dataset, self.load_split(split)).select(self._rows[name].index)
        return list(zip(*(chosen[column][:] for column in self.text_columns), strict=True))

    @property
    def _on_gpu(self) -> bool:
        """Whether batches go to a GPU: from pinned memory, or the copy waits for all that runs there."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _loader(self, name: str, shuffle: bool = False) -> DataLoader[Any]:
        assert self.tokenizer is not None, "Call setup first"
        rows = self._rows[name]
        trainer = self.trainer
        sampler = BucketBatchSampler(
            rows.lengths,
            self.batch_size if shuffle else self.eval_batch_size,
            shuffle,
            self.seed,
            trainer.world_size if trainer else 1,
            trainer.global_rank if trainer else 0,
            same_batches=overfits(trainer),
        )
        collate = Collator(rows, cast(int, self.tokenizer.pad_token_id), with_texts=name == "predict")
        if shuffle:
            done = lambda loader: batches_done(self.trainer, loader)  # noqa: E731  # a trainer may come later
            return BatchLoader(rows, sampler, collate, self.num_workers, done, self._on_gpu)
        return DataLoader(**loader_options(rows, sampler, collate, self.num_workers, self._on_gpu))

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._loader(split) for split in self.validation_splits]

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("predict")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.on_train_batch is None or self.trainer is None or not self.trainer.training:
            return batch
        batch = self.on_train_batch(batch)
        if self._on_gpu:
            cached = {t: {k: v.pin_memory() for k, v in logits.items()} for t, logits in batch["cached"].items()}
            batch = {**batch, "cached": cached}
        return batch

    def batches_of(self, name: str, groups: Iterable[list[int]]) -> list[dict[str, Tensor]]:
        """One batch for each group of row numbers of a loaded split, on this process alone."""
        assert self.tokenizer is not None  # set in setup
        collate = Collator(self._rows[name], cast(int, self.tokenizer.pad_token_id))
        return [collate(numbers) for numbers in groups]

    def token_rows(self, name: str, teacher: str | None = None) -> TokenizedRows:
        """The rows of a loaded split, as the student reads them, or a teacher with a tokenizer of its own."""
        rows = self._rows[name]
        return rows.teachers[teacher][0] if teacher is not None and teacher in rows.teachers else rows

    def calibration_batches(self, count: int) -> list[dict[str, Tensor]]:
        """``count`` training batches, the same for the same seed, whatever the rank and the epoch."""
        sampler = BucketBatchSampler(self._rows["train"].lengths, self.batch_size, shuffle=True, seed=self.seed)
        return self.batches_of("train", islice(sampler, count))

    def evaluation_batches(self, name: str) -> list[dict[str, Tensor]]:
        """All batches of a loaded split, every row once."""
        sampler = BucketBatchSampler(self._rows[name].lengths, self.eval_batch_size, shuffle=False)
        return self.batches_of(name, sampler)

    def describe(self) -> str:
        """The data in a few words, as reports name it."""
        held_out = f"; test: {self.holdout_size:,} rows held out of train, seed {self.holdout_seed}"
        return self._name() + (held_out if self.holdout_size else "")
