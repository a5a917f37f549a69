"""Named entities, and any other tags of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.batching import TokenizedRows
from lightning_kd.datamodules.conll import column_files, read_columns
from lightning_kd.datamodules.loading import load_data, load_tokenizer
from lightning_kd.datamodules.tags import in_iob2
from lightning_kd.models import check_folder
from lightning_kd.tasks.base import IGNORED
from lightning_kd.tasks.words import WordEncoder

__all__ = ["NERDataModule"]


class NERDataModule(TransformerDataModule):
    """Sentences as lists of words with a tag each: CoNLL-2003, WNUT-17, MSRA, Weibo, and sentences of one's own.

    A word is tagged at its first sub-word, or at each of them where the task says so (``label_all_subwords``); the
    others, and what is not text, take no part in any loss or metric. A sentence that is too long for the model is read
    in overlapping windows, each word in the one that shows most around it: nothing is cut. A sentence without words is
    a row without entities.

    Tags are read as IOB2. IOB1, BIOES, BILOU and BMES are converted, which changes no entity. The labels are those of
    all splits: a tag that the training split lacks cannot be learned, but is counted in the metrics, and the log says
    so.

    A training sentence without tags (null) is for the teacher alone: no hard-label loss is taken of it.

    Args:
        path: Hub name, or a local folder in the same layout, or a folder with ``train``, ``dev`` (or ``valid``,
            ``validation``) and ``test`` as CoNLL column files (``.txt``, ``.conll``, ``.bio``; the word in the first
            column, the tag in the last) or as JSON Lines.
        name: The configuration, where the data set has several.
        words_column: Lists of words.
        tags_column: Lists of tags, as long as the words: strings or ``ClassLabel``.
        unlabelled_path: More sentences to train on, without tags: as ``path``, of which the training split is taken. A
            column file without tags has one column.
        tokenizer: Hub name or local folder; on the command line, the student's unless given.
        max_length: Longest window in tokens.
        stride: Tokens that a window shares with the next one, below ``max_length`` by more than the special tokens.
        batch_size: Sentences in a training batch, on each device.
        eval_batch_size: Sentences in an evaluation batch.
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

    metric_names = ("f1", "precision", "recall")
    task_names = ("TokenClassification",)

    def __init__(
        self,
        path: str,
        name: str | None = None,
        words_column: str = "tokens",
        tags_column: str = "ner_tags",
        unlabelled_path: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 128,
        stride: int = 32,
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
        check_folder("data.path", path)
        check_folder("data.unlabelled_path", unlabelled_path or "")
        if not 0 <= stride < max_length - 2:
            raise expected("data.stride", f"from 0 to {max_length - 3} (max_length less the special tokens)", stride)
        self.path = path
        self.name = name
        self.unlabelled_path = unlabelled_path
        self.text_columns = (words_column,)
        self.label_column = tags_column
        self.stride = stride
        #: Training rows without tags, for the teacher to teach on; they stand behind the others.
        self.num_unlabelled = 0
        self._splits: dict[str, Dataset] = {}

    def _name(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    def load_split(self, split: str) -> Dataset | None:
        if not self._splits:
            self._splits = self._read_splits()
        return self._splits.get(split)

    def read_tokenizer(self, option: str, source: str) -> PreTrainedTokenizerBase:
        tokenizer = super().read_tokenizer(option, source)
        if getattr(tokenizer, "add_prefix_space", None) is False:  # or a word has other sub-words than within a text
            tokenizer = load_tokenizer(option, source, add_prefix_space=True)
        return tokenizer

    # ---------------------------------------------------------------------------------------------- reading

    def _read_splits(self) -> dict[str, Dataset]:
        splits = in_iob2(self._load(self.path, self.name), self.label_column, self._name())
        for split, rows in splits.items():
            if self.label_column not in rows.column_names:
                continue
            untagged = [number for number, tags in enumerate(rows[self.label_column][:]) if tags is None]
            if split == "train":
                tagged = sorted(set(range(len(rows))) - set(untagged))
                splits[split] = rows.select([*tagged, *untagged]) if untagged else rows
                self.num_unlabelled = len(untagged)
            elif untagged and (split != "test" or len(untagged) < len(rows)):
                raise InputError(
                    f"Row {untagged[0]} of the {split} split of {self._name()} has no tags: leave it out, or move it "
                    "to train, where a teacher can label it."
                )
        if self.unlabelled_path is not None and "train" in splits:
            rows = self._load(self.unlabelled_path).get("train")
            words = self.text_columns[0]
            if rows is None or words not in rows.column_names:
                what = f"data with a training split that has a column {words!r}"
                raise expected("data.unlabelled_path", what, self.unlabelled_path)
            features = splits["train"].select_columns([words, self.label_column]).features
            untagged = Dataset.from_dict(
                {words: rows[words][:], self.label_column: [None] * len(rows)}, features=features
            )
            splits["train"] = concatenate_datasets([splits["train"], untagged])
            self.num_unlabelled += len(rows)
        return splits

    def _load(self, path: str, name: str | None = None) -> DatasetDict:
        files = column_files(Path(path)) if Path(path).is_dir() else {}
        if not files:
            return load_data(path, name)
        words, tags = self.text_columns[0], self.label_column
        return DatasetDict({split: read_columns(file, words, tags) for split, file in files.items()})

    def _read_label_names(self) -> list[str] | None:
        names = super()._read_label_names()
        if names is None:
            raise InputError(
                f"Expected the column {self.label_column!r} of {self._name()} to hold tags (lists of strings or of "
                "ClassLabel), but it has plain numbers: cast it to List(ClassLabel(names=[...])) first."
            )
        return names

    def _is_labelled(self, rows: Dataset) -> bool:
        return any(rows[self.label_column])

    # ---------------------------------------------------------------------------------------------- tokenizing

    @property
    def _every_piece(self) -> bool:
        """Whether the task tags every sub-word."""
        module = getattr(self.trainer, "lightning_module", None)
        return getattr(getattr(module, "task", None), "label_all_subwords", False)

    def _load_teacher_tokenizers(self) -> None:
        super()._load_teacher_tokenizers()
        if self.teacher_tokenizers and self._every_piece:
            raise InputError(
                "With label_all_subwords a teacher must read the student's vocabulary, but "
                f"{', '.join(self.teacher_tokenizers)} has other sub-words: leave label_all_subwords out."
            )

    def _tokenize(self, rows: Dataset, numbers: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
        chosen = rows if len(numbers) == len(rows) else rows.select(numbers)
        words = chosen[self.text_columns[0]][:]
        has_tags = self.label_column in chosen.column_names  # or they are to be predicted
        tags: list[NDArray[np.int64]] = []
        given = chosen[self.label_column][:] if has_tags else [None] * len(words)
        for number, one, other in zip(numbers, words, given, strict=True):
            if other is not None and len(one) != len(other):
                raise InputError(
                    f"Row {number} of {self._name()} has {len(one)} words but {len(other)} tags: mend or drop it."
                )
            tags.append(np.asarray([IGNORED] * len(one) if other is None else other, dtype=np.int64))
        encoder = WordEncoder(tokenizer, self.max_length, self.stride, self._every_piece)
        encoded = encoder.encode(words, self._on_tokenized)
        if encoded.split_rows:
            rank_zero_info(
                f"{encoded.split_rows:,} of {len(words):,} sentences are longer than {self.max_length} tokens and are "
                "read in windows; no word is left out"
            )
        if encoded.pieces is not None:
            tags = [self._tags_of_pieces(*row) for row in zip(tags, encoded.pieces, strict=True)]
        return TokenizedRows(
            tokens={**encoded.tokens, "labels": encoded.spread(tags)} if has_tags else encoded.tokens,
            offsets=encoded.offsets,
            index=numbers,
            windows=encoded.windows,
            words=words,
            pieces=encoded.pieces,
        )

    def _tags_of_pieces(self, tags: NDArray[np.int64], pieces: NDArray[np.int32]) -> NDArray[np.int64]:
        """A word's tag at its first sub-word, ``I-`` with the same type at the others."""
        names = self.label_names or []
        inside = np.asarray([names.index(f"I-{n[2:]}") if n != "O" else i for i, n in enumerate(names)])
        own = tags[pieces[:, 0]]
        is_later = np.diff(pieces[:, 0], prepend=-1) == 0
        return np.where(is_later & (own >= 0), inside[own], own)
