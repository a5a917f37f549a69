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
from lightning_kd.tasks.words import EncodedWords, WordEncoder, joined, piece_spans

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


#: Chinese, kana and their punctuation, letters with and without accents, a mark that combines, emoji and a Korean.
CHARACTERS = "我们。「ァー\u3000aZé\u0301😀👍🏽한7。"


@given(words=st.lists(st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=4), max_size=12))
def test_joined_spans_are_the_words(words: list[str]) -> None:
    """Stops places that are counted in bytes or in code units, or that miss the spaces that are not written."""
    text, spans = joined(words)
    assert [text[start:end] for start, end in spans] == words
    between = [text[a:b] for (_, a), (b, _) in itertools.pairwise(spans)]
    assert all(gap in ("", " ") for gap in between)
    assert len(text) == sum(map(len, words)) + sum(map(len, between))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["New", "York", "'s"], "New York 's"),
        (["在", "1", "9", "9", "7", "年", "。", "W", "T", "O"], "在1997年。WTO"),
        (["我", "用", "iPhone", "手", "机"], "我用iPhone手机"),
        (["我", "用", "New", "York", "7", "号"], "我用New York 7号"),
        (["大韓", "민국", "한국", "사람"], "大韓민국 한국 사람"),
        (["I", "am", "😀", "U", "2"], "I am 😀 U 2"),
        ([], ""),
    ],
)
def test_joined_is_how_it_is_written(words: list[str], text: str) -> None:
    """Stops Chinese with spaces between its characters, and other texts without."""
    assert joined(words)[0] == text


@given(
    rows=st.lists(st.lists(st.sampled_from(WORDS), max_size=30), min_size=1, max_size=4),
    max_length=st.integers(6, 20),
    stride=st.integers(0, 3),
)
def test_every_sub_word_is_read_once(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[str]], max_length: int, stride: int
) -> None:
    """Stops a sub-word that is lost between two windows, read twice, or put at another place of the text."""
    encoded = WordEncoder(tokenizer, max_length, stride, every_piece=True).encode(rows)
    assert encoded.pieces is not None
    for i, row in enumerate(rows):
        read = {word: token for ids, words in windows(encoded, i) for token, word in zip(ids, words, strict=True)}
        read.pop(-1)
        expected = [tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id] for word in row]
        assert [read[number] for number in range(len(read))] == list(itertools.chain(*expected))
        assert [word for word, _, _ in encoded.pieces[i].tolist()] == [
            word for word, tokens in enumerate(expected) for _ in tokens
        ]
        text, spans = joined(row)
        of_pieces = piece_spans(spans, encoded.pieces[i])
        assert len(of_pieces) == len(read)
        for (start, end), (word, _, _) in zip(of_pieces, encoded.pieces[i].tolist(), strict=True):
            assert spans[word][0] <= start < end <= spans[word][1] <= len(text)
