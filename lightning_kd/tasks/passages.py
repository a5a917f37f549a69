"""Questions and passages into windows of tokens that know their characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected

__all__ = ["EncodedPassages", "PassageEncoder"]

_Pieces = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True)
class EncodedPassages:
    """Questions, each with its passage, as windows of tokens.

    Attributes:
        tokens: ``(total tokens,)`` int32: ``input_ids``, ``token_type_ids`` if the model has them, ``char_starts`` and
            ``char_ends``: the first character of the passage that a token is of, and the one behind its last. Both are
            0 at the token that stands for "no answer", and -1 at those that no answer begins or ends with.
        offsets: ``(windows + 1,)``; window ``i`` has the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
        windows: ``(rows + 1,)``; row ``i`` has the windows from ``windows[i]`` to ``windows[i + 1]``.
        split_rows: How many rows have more than one window.
        cut_questions: How many questions are cut.
    """

    tokens: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    windows: NDArray[np.int64]
    split_rows: int
    cut_questions: int


class PassageEncoder:
    """Writes each question before its passage, and reads a passage that is too long in overlapping windows.

    The first special token, ``[CLS]``, stands for "no answer" (Devlin et al. 2019, arXiv 1810.04805). An answer of at
    most ``stride`` tokens is whole in one window at least. A question has at most half of the room that ``stride``
    leaves; the rest of it is cut.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Tokens in a window at most, special ones included.
        stride: Tokens of the passage that a window shares with the next one.

    Raises:
        InputError: If the tokenizer is not a fast one or has no token for "no answer", or a window has no room.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "Answers need a fast tokenizer, which knows the characters that tokens are of, but "
                f"{type(tokenizer).__name__} is none: save the tokenizer as tokenizer.json."
            )
        self.tokenizer = tokenizer
        (template,) = tokenizer(["a"], ["a"]).encodings or []
        parts = template.sequence_ids
        first, second = parts.index(0), parts.index(1)
        behind_first, behind_second = len(parts) - parts[::-1].index(0), len(parts) - parts[::-1].index(1)
        if tokenizer.cls_token_id not in template.ids[:first]:
            raise InputError(
                f"{type(tokenizer).__name__} writes no [CLS] before a question, which stands for 'no answer': "
                "take a model of BERT's kind."
            )
        self.prefix = np.asarray(template.ids[:first], dtype=np.int32)
        self.middle = np.asarray(template.ids[behind_first:second], dtype=np.int32)
        self.suffix = np.asarray(template.ids[behind_second:], dtype=np.int32)
        types = template.type_ids
        #: Of the prefix, the question, what is between, the passage and the suffix.
        self.types = (types[0], types[first], types[behind_first], types[second], types[-1])
        self.null = int(np.flatnonzero(self.prefix == tokenizer.cls_token_id)[0])
        self.room = max_length - len(self.prefix) - len(self.middle) - len(self.suffix)
        self.longest_question = (self.room - stride) // 2
        if self.longest_question < 1:
            taken = stride + max_length - self.room + 1
            raise expected("max_length", f"above {taken} (the stride, the special tokens and a question)", max_length)
        self.stride = stride

    def encode(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        on_done: Callable[[float], None] = lambda rows: None,
    ) -> EncodedPassages:
        """The windows of questions and their passages; a passage of several questions is tokenized once.

        Args:
            questions: One a row.
            contexts: The passage of each.
            on_done: Told how many rows more are done.
        """
        asked, read = self._tokenize(questions), self._tokenize(contexts)
        columns: dict[str, list[NDArray[np.int32]]] = {"input_ids": [], "char_starts": [], "char_ends": []}
        if "token_type_ids" in self.tokenizer.model_input_names:
            columns["token_type_ids"] = []
        lengths: list[int] = []
        counts: list[int] = []
        cut = 0
        for question, context in zip(questions, contexts, strict=True):
            words = asked[question][0]
            cut += len(words) > self.longest_question
            words = words[: self.longest_question]
            head = np.concatenate([self.prefix, words, self.middle])
            nowhere = np.full(len(head), -1, dtype=np.int32)
            nowhere[self.null] = 0
            ids, starts, ends = read[context]
            windows = self._windows(len(ids), self.room - len(words))
            counts.append(len(windows))
            for low, high in windows:
                columns["input_ids"] += [head, ids[low:high], self.suffix]
                for name, values in (("char_starts", starts), ("char_ends", ends)):
                    columns[name] += [nowhere, values[low:high], np.full(len(self.suffix), -1, dtype=np.int32)]
                sizes = [len(self.prefix), len(words), len(self.middle), high - low, len(self.suffix)]
                if "token_type_ids" in columns:
                    columns["token_type_ids"].append(np.repeat(np.asarray(self.types, dtype=np.int32), sizes))
                lengths.append(sum(sizes))
            on_done(1)
        return EncodedPassages(
            {name: np.concatenate(parts) for name, parts in columns.items()},
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            windows=np.cumsum([0, *counts], dtype=np.int64),
            split_rows=sum(count > 1 for count in counts),
            cut_questions=cut,
        )

    def _tokenize(self, texts: Sequence[str]) -> dict[str, _Pieces]:
        """Token ids and places of the distinct texts, without the space before a word; of no character, no place."""
        distinct = list(dict.fromkeys(texts))
        found: dict[str, _Pieces] = {}
        for begin in range(0, len(distinct), 10_000):
            part = distinct[begin : begin + 10_000]
            encodings = self.tokenizer(part, add_special_tokens=False, verbose=False).encodings or []
            for text, encoding in zip(part, encodings, strict=True):
                trimmed = [(start + text[start : start + 1].isspace(), end) for start, end in encoding.offsets]
                places = np.asarray(trimmed, dtype=np.int32).reshape(-1, 2)
                places[places[:, 0] >= places[:, 1]] = -1
                found[text] = (np.asarray(encoding.ids, dtype=np.int32), places[:, 0], places[:, 1])
        return found

    def _windows(self, num_tokens: int, room: int) -> list[tuple[int, int]]:
        """First token and token behind the last of each window."""
        step = room - self.stride
        more = max(0, -(-(num_tokens - room) // step))
        return [(k * step, min(k * step + room, num_tokens)) for k in range(more + 1)]
