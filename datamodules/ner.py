"""Named entities, and any other tags of words."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.batching import TokenizedRows
from lightning_kd.datamodules.loading import load_data
from lightning_kd.models import check_folder
from lightning_kd.tasks.words import WordEncoder

__all__ = ["NERDataModule"]


class NERDataModule(TransformerDataModule):
    """Sentences as lists of words with a tag each: CoNLL-2003, WNUT-17, MSRA, Weibo and any set in their form.

    A word is tagged at its first sub-word; the others, and what is not text, take no part in any loss or metric. A
    sentence that is too long for the model is read in overlapping windows, each word in the one that shows most around
    it: nothing is cut.

    Args:
        path: Hub name, or a local folder in the same layout.
        name: The configuration, where the data set has several.
        words_column: Lists of words.
        tags_column: Lists of tags in IOB2 (``ClassLabel``), as long as the words.
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

    def __init__(
        self,
        path: str,
        name: str | None = None,
        words_column: str = "tokens",
        tags_column: str = "ner_tags",
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
        if not 0 <= stride < max_length - 2:
            raise expected("data.stride", f"from 0 to {max_length - 3} (max_length less the special tokens)", stride)
        self.path = path
        self.name = name
        self.text_columns = (words_column,)
        self.label_column = tags_column
        self.stride = stride

    def _name(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    def load_split(self, split: str) -> Dataset | None:
        return load_data(self.path, self.name).get(split)

    def read_tokenizer(self, option: str, source: str) -> PreTrainedTokenizerBase:
        tokenizer = super().read_tokenizer(option, source)
        if getattr(tokenizer, "add_prefix_space", None) is False:  # or a word has other sub-words than within a text
            tokenizer = type(tokenizer).from_pretrained(source, add_prefix_space=True)
        return tokenizer

    def _read_label_names(self) -> list[str] | None:
        names = super()._read_label_names()
        if names is None:
            raise InputError(
                f"Expected the column {self.label_column!r} of {self._name()} to hold tags (lists of ClassLabel), "
                "but it has plain numbers or strings: cast it to List(ClassLabel(names=[...])) first."
            )
        return names

    def _is_labelled(self, rows: Dataset) -> bool:
        return any(len(tags) for tags in rows[self.label_column])

    def _tokenize(self, rows: Dataset, numbers: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
        chosen = rows if len(numbers) == len(rows) else rows.select(numbers)
        words = list(chosen[self.text_columns[0]])
        has_tags = self.label_column in chosen.column_names  # or they are to be predicted
        tags = list(chosen[self.label_column]) if has_tags else []
        for number, one, other in zip(numbers if has_tags else [], words, tags, strict=False):
            if len(one) != len(other):
                raise InputError(
                    f"Row {number} of {self._name()} has {len(one)} words but {len(other)} tags: mend or drop it."
                )
        encoded = WordEncoder(tokenizer, self.max_length, self.stride).encode(words)
        if encoded.split_rows:
            rank_zero_info(
                f"{encoded.split_rows:,} of {len(words):,} sentences are longer than {self.max_length} tokens and are "
                "read in windows; no word is left out"
            )
        tokens = dict(encoded.tokens)
        if has_tags:
            tokens["labels"] = encoded.spread([np.asarray(row, dtype=np.int64) for row in tags])
        return TokenizedRows(
            tokens=tokens,
            offsets=encoded.offsets,
            index=numbers,
            windows=encoded.windows,
            words=words,
        )
