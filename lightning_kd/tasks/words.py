"""Words into windows of sub-words, each word read at its first, or at all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.base import IGNORED

__all__ = ["EncodedWords", "WordEncoder", "joined", "piece_spans"]

#: Chinese characters, kana, their punctuation and fullwidth forms: what is written without spaces.
_UNSPACED = re.compile("[\u2e80-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class EncodedWords:
    """Rows of words as windows of tokens.

    Attributes:
        tokens: ``(total tokens,)`` int32: ``input_ids``, ``token_type_ids`` if the model has them, and ``words``: the
            number of the word that is read at a token, or -1; of the sub-word where each is read.
        offsets: ``(windows + 1,)``; window ``i`` has the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
        windows: ``(rows + 1,)``; row ``i`` has the windows from ``windows[i]`` to ``windows[i + 1]``.
        split_rows: How many rows have more than one window.
        pieces: Where each sub-word is read: of each row ``(sub-words, 3)``, the word, and from where to where in it a
            sub-word is. ``None`` where words are read.
    """

    tokens: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    windows: NDArray[np.int64]
    split_rows: int
    pieces: Sequence[NDArray[np.int32]] | None = None

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
    """A text of words as it is written, and where each word is in it.

    Two words have a space between them, unless one of the characters that meet is Chinese or Japanese (kana, their
    punctuation and fullwidth forms included; Korean has spaces). In a row with such a character, two words of one
    character each have none either: sets that tag characters have "1", "9", "9", "7".

    Example:
        >>> joined(["New", "York"])
        ('New York', [(0, 3), (4, 8)])
        >>> joined(["我", "用", "iPhone", "7", "上", "网"])
        ('我用iPhone 7上网', [(0, 1), (1, 2), (2, 8), (9, 10), (10, 11), (11, 12)])
    """
    has_unspaced = any(_UNSPACED.search(word) for word in words)
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    end = 0
    for number, word in enumerate(words):
        if number and not (has_unspaced and _touch(words[number - 1], word)):
            parts.append(" ")
            end += 1
        parts.append(word)
        spans.append((end, end + len(word)))
        end += len(word)
    return "".join(parts), spans


def _touch(word: str, following: str) -> bool:
    meeting = word[-1:] + following[:1]
    return len(word) == len(following) == 1 or _UNSPACED.search(meeting) is not None


def piece_spans(spans: Sequence[tuple[int, int]], pieces: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Where the sub-words of a row are in its text.

    Args:
        spans: Where its words are.
        pieces: As in :class:`EncodedWords`.
    """
    return [(spans[word][0] + start, spans[word][0] + end) for word, start, end in pieces.tolist()]


class WordEncoder:
    """Cuts words into sub-words, and rows that are too long into overlapping windows.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Tokens in a window at most, special ones included.
        stride: Tokens that a window shares with the next one.
        every_piece: Read each sub-word rather than each word.

    Raises:
        InputError: If the tokenizer is not a fast one, or a window has no room for text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, every_piece: bool = False
    ) -> None:
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
        self.every_piece = every_piece

    def encode(
        self, rows: Sequence[Sequence[str]], on_done: Callable[[float], None] = lambda rows: None
    ) -> EncodedWords:
        """The windows of rows of words. A word that the tokenizer drops is read as its unknown token.

        Args:
            rows: Words.
            on_done: Told how many rows more are done.
        """
        ids: list[int] = []
        words: list[int] = []
        lengths: list[int] = []
        counts: list[int] = []
        all_pieces: list[NDArray[np.int32]] = []
        for start in range(0, len(rows), 2_000):
            part = [list(row) for row in rows[start : start + 2_000]]
            encodings = self.tokenizer(part, is_split_into_words=True, add_special_tokens=False).encodings or []
            for row, encoding in zip(part, encodings, strict=True):
                tokens, pieces = self._with_every_word(row, encoding.ids, encoding.word_ids, encoding.offsets)
                places = list(range(len(tokens)))
                if self.every_piece:
                    all_pieces.append(np.asarray(pieces, dtype=np.int32).reshape(-1, 3))
                else:
                    places = [i for i in places if i == 0 or pieces[i][0] != pieces[i - 1][0]]
                before = len(lengths)
                for low, high, read in self._windows(len(tokens), places):
                    window = [-1] * (high - low)
                    for number in read:
                        window[places[number] - low] = number
                    ids += [*self.prefix, *tokens[low:high], *self.suffix]
                    words += [-1] * len(self.prefix) + window + [-1] * len(self.suffix)
                    lengths.append(len(self.prefix) + high - low + len(self.suffix))
                counts.append(len(lengths) - before)
            on_done(len(part))
        arrays = {"input_ids": np.asarray(ids, dtype=np.int32), "words": np.asarray(words, dtype=np.int32)}
        if "token_type_ids" in self.tokenizer.model_input_names:
            arrays["token_type_ids"] = np.zeros(len(ids), dtype=np.int32)
        return EncodedWords(
            arrays,
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            windows=np.cumsum([0, *counts], dtype=np.int64),
            split_rows=sum(count > 1 for count in counts),
            pieces=all_pieces if self.every_piece else None,
        )

    def _with_every_word(
        self,
        words: Sequence[str],
        ids: Sequence[int],
        word_ids: Sequence[int | None],
        offsets: Sequence[tuple[int, int]],
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The tokens, and of each its word and where in this it is."""
        tokens: list[int] = []
        pieces: list[tuple[int, int, int]] = []

        def add_dropped(behind: int) -> None:
            """Words of characters that the tokenizer takes out, e.g. a zero-width space."""
            for word in range(pieces[-1][0] + 1 if pieces else 0, behind):
                tokens.append(cast(int, self.tokenizer.unk_token_id))
                pieces.append((word, 0, len(words[word])))

        for token, word, (start, end) in zip(ids, word_ids, offsets, strict=True):
            number = cast(int, word)  # without special tokens, every token is of a word
            add_dropped(number)
            tokens.append(token)
            pieces.append((number, start, end))
        add_dropped(len(words))
        return tokens, pieces

    def _windows(self, num_tokens: int, places: Sequence[int]) -> list[tuple[int, int, list[int]]]:
        """First token, token behind the last, and the numbers of the ``places`` that are read, of each window."""
        if num_tokens <= self.room:
            return [(0, num_tokens, list(range(len(places))))]
        step = self.room - self.stride
        last = -(-(num_tokens - self.room) // step)
        read: list[list[int]] = [[] for _ in range(last + 1)]
        for number, place in enumerate(places):  # half of what two windows share is read in either
            read[min(max((place - self.stride // 2) // step, 0), last)].append(number)
        return [(k * step, min(k * step + self.room, num_tokens), read[k]) for k in range(last + 1)]
