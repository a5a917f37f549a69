"""Plain text, to predict the next word of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import cast

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightning_kd._checks import expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.batching import TokenizedRows
from lightning_kd.datamodules.loading import load_data
from lightning_kd.models import check_folder

__all__ = ["RunningTextDataModule"]

_UNKNOWN, _END = "<unk>", "<eos>"


class RunningTextDataModule(TransformerDataModule):
    """Running text in windows of ``max_length`` words, each word labelled with the next one.

    The lines of a split are one stream of words with an ``<eos>`` behind every line, empty ones included; every word of
    it is predicted once. A row is a window, and starts without what stands before it.

    The vocabulary is that of the training text; all other words are ``<unk>``, and the number of those is logged.

    Args:
        path: Hub name, or a local folder with Parquet files or with ``train.txt``, ``validation.txt`` and, if there is
            one, ``test.txt``.
        name: The configuration, where there are several.
        text_column: Strings of any number of lines.
        separate_punctuation: Read "you," as two words. ``False`` for text that is split into words already, as WikiText
            is.
        min_count: How often a word stands in the training text to be in the vocabulary, at least 1.
        tokenizer: Hub name or local folder; on the command line, the student's unless given. One for the words of the
            training text if there is none.
        max_length: Words in a window.
        batch_size: Windows in a training batch, on each device.
        eval_batch_size: Windows in an evaluation batch.
        holdout_size: Lines at the end of the training text, to test on: never trained on, never used to choose a
            checkpoint, and not read for the vocabulary.
        max_train_rows: Train on the first so many lines.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        seed: Of the order of batches.

    Raises:
        InputError: If a number is out of its range, or there is no such data.
    """

    metric_names = ("perplexity",)
    task_names = ("LanguageModeling",)

    def __init__(
        self,
        path: str,
        name: str | None = None,
        text_column: str = "text",
        separate_punctuation: bool = True,
        min_count: int = 2,
        tokenizer: str | None = None,
        max_length: int = 64,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        holdout_size: int = 0,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            holdout_size,
            max_train_rows,
            num_workers,
            seed=seed,
        )
        check_folder("data.path", path)
        if min_count < 1:
            raise expected("data.min_count", "at least 1", min_count)
        self.path = path
        self.name = name
        self.text_columns = (text_column,)
        self.label_column = text_column  # the labels are the text's own words
        self.separate_punctuation = separate_punctuation
        self.min_count = min_count
        self._splits: dict[str, Dataset | None] = {}

    def _name(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    def load_split(self, split: str) -> Dataset | None:
        """The lines of a split, one a row."""
        if split not in self._splits:
            rows = load_data(self.path, self.name).get(split)
            if rows is not None:
                self._check_columns(rows, split)
                texts = (text.removesuffix("\n").split("\n") for text in rows[self.label_column][:])
                rows = Dataset.from_dict({self.label_column: [line for lines in texts for line in lines]})
            self._splits[split] = rows
        return self._splits[split]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return super().load_tokenizer()
        rows, kept, _ = self._split_train()
        return _word_tokenizer(rows.select(kept)[self.label_column], self.separate_punctuation, self.min_count)

    def _read_label_names(self) -> list[str]:
        return []  # text alone

    def _is_labelled(self, rows: Dataset) -> bool:
        return True

    def _hold_out(self, rows: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.holdout_size >= len(rows):
            raise expected("holdout_size", f"below the {len(rows):,} lines of the training text", self.holdout_size)
        kept, held_out = np.split(np.arange(len(rows)), [len(rows) - self.holdout_size])
        return kept[: self.max_train_rows], held_out

    def _tokenize(self, rows: Dataset, numbers: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
        lines = tokenizer(rows.select(numbers)[self.label_column][:], add_special_tokens=False)["input_ids"]
        end = cast(int, tokenizer.eos_token_id)
        stream = np.fromiter((word for line in ([], *lines) for word in (*line, end)), dtype=np.int32)
        total = len(stream) - 1  # the first word stands behind the end of a line, too
        unknown = int((stream == tokenizer.unk_token_id).sum())
        rank_zero_info(f"{unknown:,} of {total:,} words of {len(lines):,} lines are not in the vocabulary")
        offsets = np.append(np.arange(0, total, self.max_length), total)
        return TokenizedRows(
            tokens={"input_ids": stream[:-1], "labels": stream[1:]},
            offsets=offsets,
            index=np.arange(len(offsets) - 1),
        )

    def texts(self, name: str) -> list[tuple[str, ...]]:
        """The words of each window of a loaded split, those that are not in the vocabulary as ``<unk>``."""
        rows, tokenizer = self._rows[name], cast(PreTrainedTokenizerBase, self.tokenizer)
        windows = np.split(rows.tokens["labels"], rows.offsets[1:-1])
        return [(" ".join(tokenizer.convert_ids_to_tokens(window.tolist())),) for window in windows]


def _word_tokenizer(lines: Iterable[str], separate_punctuation: bool, min_count: int) -> PreTrainedTokenizerBase:
    """One token for each frequent word, the most frequent first."""
    splitter = pre_tokenizers.Whitespace() if separate_punctuation else pre_tokenizers.WhitespaceSplit()
    counts = Counter(word for line in lines for word, _ in splitter.pre_tokenize_str(line))
    special = [_UNKNOWN, _END]
    words = sorted((w for w, n in counts.items() if n >= min_count and w not in special), key=lambda w: (-counts[w], w))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token=_UNKNOWN))
    backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=_UNKNOWN,
        eos_token=_END,
        pad_token=_END,
        model_input_names=["input_ids", "attention_mask"],
    )
