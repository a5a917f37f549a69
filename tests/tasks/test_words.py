"""Words into windows of sub-words: every word is read once, at its first sub-word, however long the row is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_kd import InputError
from lightning_kd.tasks.words import EncodedWords, WordEncoder, joined

#: Whole words, words of several sub-words, unknown ones, and one that the tokenizer takes out altogether.
WORDS = ["ba", "bas", "banings", "bingss", "xyz", "中", "émile", "😀", "\u200b"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model())


def windows(encoded: EncodedWords, row: int) -> list[tuple[list[int], list[int]]]:
    """Token ids and words of each window of a row."""
    bounds = encoded.offsets[encoded.windows[row] : encoded.windows[row + 1] + 1]
    return [
        (encoded.tokens["input_ids"][a:b].tolist(), encoded.tokens["words"][a:b].tolist())
        for a, b in itertools.pairwise(bounds)
    ]


@given(
    rows=st.lists(st.lists(st.sampled_from(WORDS), max_size=30), min_size=1, max_size=4),
    max_length=st.integers(6, 20),
    stride=st.integers(0, 3),
)
def test_every_word_is_read_once_at_its_first_sub_word(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[str]], max_length: int, stride: int
) -> None:
    """Stops a word from being lost between two windows, read twice, or read at another word's sub-word."""
    encoded = WordEncoder(tokenizer, max_length, stride).encode(rows)
    values = [np.arange(len(row)) + 100 * i for i, row in enumerate(rows)]
    spread = encoded.spread(values)
    assert spread[spread >= 0].tolist() == sorted(np.concatenate(values).tolist())
    for i, row in enumerate(rows):
        seen = []
        for ids, words in windows(encoded, i):
            assert len(ids) <= max_length and ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
            for token, word in zip(ids, words, strict=True):
                if word >= 0:
                    own = tokenizer(row[word], add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id]
                    assert token == own[0]
                    seen.append(word)
        assert seen == list(range(len(row)))


@given(length=st.integers(1, 60), stride=st.integers(0, 6))
def test_a_word_is_read_where_most_is_around_it(tokenizer: PreTrainedTokenizerBase, length: int, stride: int) -> None:
    """Stops a word at the edge of one window from being read there, although it stands further inside the next."""
    encoded = WordEncoder(tokenizer, 12, stride).encode([["ba"] * length])
    parts = windows(encoded, 0)
    assert encoded.split_rows == (length > 10)
    for i, (ids, words) in enumerate(parts):
        read = [at - 1 for at, word in enumerate(words) if word >= 0]
        size = len(ids) - 2
        assert min(read) >= (0 if i == 0 else stride // 2)
        assert size - 1 - max(read) >= (0 if i == len(parts) - 1 else stride - stride // 2 - 1)


def test_short_rows_are_what_the_tokenizer_gives(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stops special tokens of our own making."""
    rows = [["ba", "banings"], ["bas"], []]
    encoded = WordEncoder(tokenizer, 64, 8).encode(rows)
    theirs = tokenizer(rows, is_split_into_words=True)
    assert [windows(encoded, i)[0][0] for i in range(3)] == theirs["input_ids"]
    assert windows(encoded, 2)[0][1] == [-1, -1]


def test_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stops windows that share all they have and so never end."""
    with pytest.raises(InputError, match=r"`max_length` to be above 6 .* but got 6"):
        WordEncoder(tokenizer, 6, 4)


def test_joined_spans_are_the_words() -> None:
    """Stops places that are counted in bytes or in code units."""
    words = ["Zoë", "😀", "中文", ""]
    text, spans = joined(words)
    assert [text[start:end] for start, end in spans] == words
