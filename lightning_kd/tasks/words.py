"""Words into windows of sub-words, each word read at its first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.base import IGNORED

__all__ = ["EncodedWords", "WordEncoder", "joined"]


@dataclass(frozen=True)
class EncodedWords:
    """Rows of words as windows of tokens.

    Attributes:
        tokens: ``(total tokens,)`` int32: ``input_ids``, ``token_type_ids`` if the model has them, and ``words``: the
            number of the word that is read at a token, or -1.
        offsets: ``(windows + 1,)``; window ``i`` has the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
        windows: ``(rows + 1,)``; row ``i`` has the windows from ``windows[i]`` to ``windows[i + 1]``.
        split_rows: How many rows have more than one window.
    """

    tokens: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    windows: NDArray[np.int64]
    split_rows: int

    def spread(self, values: Sequence[NDArray[np.int64]]) -> NDArray[np.int32]:
        """``(total tokens,)``: each word's value at the token where it is read, ``IGNORED`` elsewhere."""
        words = self.tokens["words"]
        starts = np.cumsum([0, *(len(row) for row in values)])[:-1]
        flat = np.concatenate([np.zeros(0, np.int64), *values])
        row_of_window = np.repeat(np.arange(len(values)), np.diff(self.windows))
        row = np.repeat(row_of_window, np.diff(self.offsets))
        out = np.full(len(words), IGNORED, dtype=np.int32)
        at = words >= 0
        out[at] = flat[starts[row[at]] + words[at]]
        return out


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A text of words with a space between each two, and where each word is in it.

    Example:
        >>> joined(["New", "York"])
        ('New York', [(0, 3), (4, 8)])
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), spans


class WordEncoder:
    """Cuts words into sub-words, and rows that are too long into overlapping windows.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Tokens in a window at most, special ones included.
        stride: Tokens that a window shares with the next one.

    Raises:
        InputError: If the tokenizer is not a fast one, or a window has no room for text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "Tagging words needs a fast tokenizer, which knows the words that tokens are of, but "
                f"{type(tokenizer).__name__} is none: save the tokenizer as tokenizer.json."
            )
        self.tokenizer = tokenizer
        whole = tokenizer(["a"], is_split_into_words=True)["input_ids"]
        inner = tokenizer(["a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        first = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        self.prefix, self.suffix = whole[:first], whole[first + len(inner) :]
        self.room = max_length - len(self.prefix) - len(self.suffix)
        if self.room <= stride:
            taken = stride + max_length - self.room
            raise expected("max_length", f"above {taken} (the stride and the special tokens)", max_length)
        self.stride = stride

    def encode(self, rows: Sequence[Sequence[str]]) -> EncodedWords:
        """The windows of rows of words. A word that the tokenizer drops is read as its unknown token."""
        ids: list[int] = []
        words: list[int] = []
        lengths: list[int] = []
        counts: list[int] = []
        for start in range(0, len(rows), 10_000):
            part = [list(row) for row in rows[start : start + 10_000]]
            encodings = self.tokenizer(part, is_split_into_words=True, add_special_tokens=False).encodings or []
            for row, encoding in zip(part, encodings, strict=True):
                tokens, firsts = self._with_every_word(len(row), encoding.ids, encoding.word_ids)
                before = len(lengths)
                for low, high, read in self._windows(len(tokens), firsts):
                    window = [-1] * (high - low)
                    for word in read:
                        window[firsts[word] - low] = word
                    ids += [*self.prefix, *tokens[low:high], *self.suffix]
                    words += [-1] * len(self.prefix) + window + [-1] * len(self.suffix)
                    lengths.append(len(self.prefix) + high - low + len(self.suffix))
                counts.append(len(lengths) - before)
        arrays = {"input_ids": np.asarray(ids, dtype=np.int32), "words": np.asarray(words, dtype=np.int32)}
        if "token_type_ids" in self.tokenizer.model_input_names:
            arrays["token_type_ids"] = np.zeros(len(ids), dtype=np.int32)
        return EncodedWords(
            arrays,
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            windows=np.cumsum([0, *counts], dtype=np.int64),
            split_rows=sum(count > 1 for count in counts),
        )

    def _with_every_word(
        self, num_words: int, ids: Sequence[int], word_ids: Sequence[int | None]
    ) -> tuple[list[int], list[int]]:
        """The tokens, and the place of each word's first one."""
        tokens: list[int] = []
        firsts: list[int] = []
        for token, word in zip(ids, word_ids, strict=True):
            while word is not None and len(firsts) <= word:
                if len(firsts) < word:  # a word of characters that the tokenizer takes out, e.g. a zero-width space
                    firsts.append(len(tokens))
                    tokens.append(self.tokenizer.unk_token_id)
                else:
                    firsts.append(len(tokens))
            tokens.append(token)
        while len(firsts) < num_words:
            firsts.append(len(tokens))
            tokens.append(self.tokenizer.unk_token_id)
        return tokens, firsts

    def _windows(self, num_tokens: int, firsts: Sequence[int]) -> list[tuple[int, int, list[int]]]:
        """First token, token behind the last, and words read, of each window."""
        if num_tokens <= self.room:
            return [(0, num_tokens, list(range(len(firsts))))]
        step = self.room - self.stride
        last = -(-(num_tokens - self.room) // step)
        read: list[list[int]] = [[] for _ in range(last + 1)]
        for word, first in enumerate(firsts):  # half of what two windows share is read in either
            read[min(max((first - self.stride // 2) // step, 0), last)].append(word)
        return [(k * step, min(k * step + self.room, num_tokens), read[k]) for k in range(last + 1)]
