"""Questions about passages, whose answers are stretches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.batching import Collator, TokenizedRows
from lightning_kd.datamodules.loading import load_data
from lightning_kd.datamodules.qa_files import load_files
from lightning_kd.models import check_folder
from lightning_kd.tasks.base import IGNORED
from lightning_kd.tasks.passages import PassageEncoder
from lightning_kd.tasks.question_answering import answer_positions

__all__ = ["QADataModule", "find_answer"]


def find_answer(context: str, text: str, start: int) -> tuple[int, int] | None:
    """The first character of an answer and the one behind its last, without white space around it.

    Where another text stands at its offset, the nearest place where the answer does stand is taken.

    Args:
        context: The passage.
        text: The answer.
        start: The offset that the data give.

    Returns:
        ``None`` if the passage does not hold the answer, or it is white space alone.

    Example:
        >>> find_answer("Rome, not Rome", "Rome", 9)
        (10, 14)
    """
    start += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        return None
    if start < 0 or not context.startswith(text, start):
        places = list(_occurrences(context, text))
        if not places:
            return None
        start = min(places, key=lambda place: abs(place - start))
    return start, start + len(text)


def _occurrences(context: str, text: str) -> Iterator[int]:
    place = context.find(text)
    while place >= 0:
        yield place
        place = context.find(text, place + 1)


class QADataModule(TransformerDataModule):
    """Questions with passages and answers: SQuAD v1.1 and v2, CMRC 2018 and any set in their form.

    A passage that is too long for the model is read in overlapping windows, all of a question in one batch. A window
    that does not hold the answer is labelled "no answer", in sets where every question has one, too. Of several true
    answers the first is learned. An answer that does not stand at its offset is taken from the nearest place where it
    does; a training row whose passage does not hold its answer at all is left out, and both are counted in the log.

    Args:
        path: Hub name, or a local folder: in the Hub's layout, or with JSON files, see
            :func:`~lightning_kd.datamodules.qa_files.load_files`.
        name: The configuration, where the data set has several.
        tokenizer: Hub name or local folder; on the command line, the student's unless given.
        max_length: Longest window in tokens, question and passage together.
        stride: Tokens of the passage that a window shares with the next one, 0 or more. An answer of more tokens may be
            whole in no window; such rows have no label, and are counted in the log.
        batch_size: Questions in a training batch, on each device.
        eval_batch_size: Questions in an evaluation batch.
        holdout_size: Questions taken out of the training split, to test on: never trained on and never used to choose
            a checkpoint. Passages are drawn, each with all of its questions, so that none of them is trained on.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer; the batches then hold
            the rows as it reads them, too, unless its vocabulary is that of ``tokenizer``. On the command line, each
            teacher's own unless given.
    """

    text_columns = ("question", "context")
    label_column = "answers"
    holdout_column = "context"
    metric_names = ("f1", "exact_match")
    task_names = ("QuestionAnswering",)

    def __init__(
        self,
        path: str,
        name: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 384,
        stride: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 32,
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
        if stride < 0:
            raise expected("data.stride", "0 or more", stride)
        self.path = path
        self.name = name
        self.stride = stride

    @property
    def num_unanswerable(self) -> int:
        """Questions without an answer in the splits that are loaded with their labels."""
        labels = [rows.labels for name, rows in self._rows.items() if name != "predict"]
        return sum(int((values[:, 1] == 0).sum()) for values in labels if values is not None)

    def _name(self) -> str:
        return f"{self.path} ({self.name})" if self.name else self.path

    def load_split(self, split: str) -> Dataset | None:
        files = load_files(Path(self.path)) if Path(self.path).is_dir() else None
        return (files or load_data(self.path, self.name)).get(split)

    def _read_label_names(self) -> list[str] | None:
        super()._read_label_names()  # which looks for the columns
        return ["start", "end"]

    def _is_labelled(self, rows: Dataset) -> bool:
        return any(answers["text"] for answers in rows[self.label_column])

    def _hold_out(self, rows: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept, held_out = super()._hold_out(rows)
        labels = [self._label(row, int(i)) for i, row in zip(kept, rows.select(kept), strict=True)]
        moved = sum(label[2] for label in labels)
        lost = np.asarray([label[0] < 0 for label in labels], dtype=bool)
        if moved:
            rank_zero_info(f"{moved:,} answers do not stand at their offset; the nearest place where they do is taken")
        if lost.any():
            rank_zero_info(f"{lost.sum():,} training rows are left out: their passage does not hold their answer")
        return kept[~lost], held_out

    def _label(self, row: Mapping[str, Any], number: int) -> tuple[int, int, bool]:
        """First character and the one behind the last of a row's first answer, and whether its offset was wrong."""
        answers = row[self.label_column]
        for column in self.text_columns:
            if not isinstance(row[column], str):
                raise InputError(f"Row {number} of {self._name()} has no text as {column!r}: mend or drop it.")
        text = next((text for text in answers["text"] if text), None)
        if text is None:
            return 0, 0, False
        start = answers["answer_start"][answers["text"].index(text)]
        place = find_answer(row["context"], text, start)
        return (IGNORED, IGNORED, False) if place is None else (*place, not row["context"].startswith(text, start))

    def _tokenize(self, rows: Dataset, numbers: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> TokenizedRows:
        chosen = rows if len(numbers) == len(rows) else rows.select(numbers)
        labels = np.asarray([self._label(row, int(i))[:2] for i, row in zip(numbers, chosen, strict=True)])
        contexts: dict[str, str] = {}
        shared = [contexts.setdefault(context, context) for context in chosen["context"][:]]  # one string a passage
        encoder = PassageEncoder(tokenizer, self.max_length, self.stride)
        encoded = encoder.encode(chosen["question"][:], shared, self._on_tokenized)
        if encoded.split_rows:
            rank_zero_info(
                f"{encoded.split_rows:,} of {len(chosen):,} questions are about passages longer than a window of "
                f"{self.max_length} tokens, which are read in several; nothing of them is left out"
            )
        if encoded.cut_questions:
            rank_zero_info(f"{encoded.cut_questions:,} of {len(chosen):,} questions are cut: they fill half a window")
        ids = chosen["id"][:] if "id" in chosen.column_names else [str(number) for number in numbers]
        tokenized = TokenizedRows(
            tokens=encoded.tokens,
            offsets=encoded.offsets,
            index=numbers,
            labels=labels,
            windows=encoded.windows,
            extras={
                "ids": list(ids),
                "contexts": shared,
                "answers": [list(answers["text"]) for answers in chosen[self.label_column][:]],
            },
        )
        torn = self._torn(tokenized)
        if torn:
            rank_zero_info(
                f"{torn:,} of {len(chosen):,} answers are whole in no window and have no label: raise data.stride"
            )
        return tokenized

    @staticmethod
    def _torn(rows: TokenizedRows) -> int:
        """How many known answers no window holds whole."""
        collate, torn = Collator(rows, 0), 0
        for start in range(0, len(rows), 1000):
            batch = collate(list(range(start, min(start + 1000, len(rows)))))
            unlabelled = (answer_positions(batch)[0] == IGNORED) & (batch["labels"][batch["example"], 0] >= 0)
            torn += len(batch["example"][unlabelled].unique())
        return torn
