"""Answers carried from one tokenizer's tokens to another's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_kd.tasks.passages import PassageEncoder
from lightning_kd.tasks.positions import carry_positions
from lightning_kd.tasks.question_answering import answer_positions
from lightning_kd.tasks.windows import all_windows
from tests.test_vocabularies import TOKENIZERS

#: Row and the tokens' characters of each window.
Windows = list[tuple[int, list[tuple[int, int]]]]


def written(windows: Windows) -> dict[str, Tensor]:
    """A batch from the row and the tokens' characters of each window, behind the "no answer" token and a question."""
    width = 2 + max(len(tokens) for _, tokens in windows)
    places = [[(0, 0), (-1, -1), *tokens, *[(-1, -1)] * (width - 2 - len(tokens))] for _, tokens in windows]
    starts, ends = torch.tensor(places).unbind(-1)
    example = torch.tensor([row for row, _ in windows])
    return {"char_starts": starts, "char_ends": ends, "example": example, "index": torch.arange(int(example.max()) + 1)}


def test_a_worked_case() -> None:
    """Stops mass from reaching the token before or behind: "unbelievable" is un|believ|able and unbel|ievable here."""
    own = written([(0, [(0, 2), (2, 8), (8, 12)])])
    batch = written([(0, [(0, 5), (5, 12)])])
    chances = torch.tensor([[0.1, 0.0, 0.2, 0.3, 0.4]])
    first = carry_positions(chances.log(), own, batch, last=False).exp()
    torch.testing.assert_close(first[0, [0, 2, 3]], torch.tensor([0.1, 0.2 + 0.3, 0.4]))
    final = carry_positions(chances.log(), own, batch, last=True).exp()
    torch.testing.assert_close(final[0, [0, 2, 3]], torch.tensor([0.1, 0.2, 0.3 + 0.4]))


def test_a_longer_token_gives_to_one_of_its_parts() -> None:
    """Stops a start from being spread over the middle of a word; what none goes to is as unlikely as any."""
    own = written([(0, [(0, 4), (5, 12)])])
    batch = written([(0, [(0, 2), (2, 4), (5, 8), (8, 12)])])
    chances = torch.tensor([[0.2, 0.0, 0.1, 0.7]])
    first = carry_positions(chances.log(), own, batch, last=False).exp()
    torch.testing.assert_close(first[0, [0, 2, 3, 4, 5]], torch.tensor([0.2, 0.1, 0.1, 0.7, 0.1]))
    final = carry_positions(chances.log(), own, batch, last=True).exp()
    torch.testing.assert_close(final[0, [0, 2, 3, 4, 5]], torch.tensor([0.2, 0.1, 0.1, 0.1, 0.7]))


def test_what_a_window_does_not_hold_is_no_answer() -> None:
    """Stops a window without the answer from being taught that the answer is somewhere in it."""
    own = written([(0, [(0, 2), (2, 4), (4, 6)])])
    batch = written([(0, [(0, 2), (2, 4)]), (0, [(2, 4), (4, 6)])])
    chances = torch.tensor([[0.1, 0.0, 0.6, 0.2, 0.1]])
    found = carry_positions(chances.log(), own, batch, last=False).exp()
    torch.testing.assert_close(found[:, [0, 2, 3]], torch.tensor([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1]]))


@given(data=st.data())
def test_it_is_the_slow_loop(data: st.DataObject) -> None:
    """Stops tokens that cross, or windows that do, from losing or doubling what they carry."""
    rows = data.draw(st.integers(1, 3))
    texts = [data.draw(st.integers(0, 12)) for _ in range(rows)]

    def read() -> Windows:
        windows: Windows = []
        for row, length in enumerate(texts):
            cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=6))})
            tokens = list(pairwise(cuts))
            size = data.draw(st.integers(3, 8))
            step = data.draw(st.integers(1, size - 1))
            count = max(0, -(-(len(tokens) - size) // step)) + 1
            windows += [(row, tokens[k * step : k * step + size]) for k in range(count)]
        return windows

    own, batch = read(), read()
    theirs = written(own)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(theirs["char_ends"].shape, generator=generator) * 3
    for last in (False, True):
        found = carry_positions(logits, theirs, written(batch), last)
        for i, expected in enumerate(slow(logits, own, batch, last)):
            torch.testing.assert_close(found[i, [0, *range(2, 1 + len(expected))]], torch.tensor(expected))


def slow(
    logits: Tensor,
    own: list[tuple[int, list[tuple[int, int]]]],
    batch: list[tuple[int, list[tuple[int, int]]]],
    last: bool,
) -> list[list[float]]:
    """Character by character; of each window "no answer" and then the passage's tokens."""
    out = []
    for row, tokens in batch:
        windows = [i for i, (of, _) in enumerate(own) if of == row]
        silent = min(logits[i, 0].item() for i in windows)
        known: dict[tuple[int, int], float] = {}
        for i in windows:
            spans = own[i][1]
            for k, span in enumerate(spans):
                known[span] = max(known.get(span, -math.inf), logits[i, 2 + k].item())
        mass = [math.exp(silent)] + [0.0] * len(tokens)
        for (start, end), logit in known.items():
            character = end - 1 if last else start
            holder = [k for k, (low, high) in enumerate(tokens) if low <= character < high]
            whole = tokens and tokens[0][0] <= start and end <= tokens[-1][1]
            mass[1 + holder[0] if holder and whole else 0] += math.exp(logit)
        lowest = min([silent, *known.values()])
        out.append([math.log(m) if m else lowest for m in mass])
    return out


@given(
    words=st.lists(st.text(st.sampled_from("abnigsëZ中\u0301😀"), min_size=1, max_size=7), min_size=1, max_size=12),
    pair=st.permutations(TOKENIZERS),
    lengths=st.tuples(st.integers(15, 40), st.integers(15, 40)),
    answer=st.tuples(st.integers(0, 11), st.integers(0, 3)),
)
def test_the_answer_is_where_the_data_have_it(
    words: list[str], pair: list[PreTrainedTokenizerBase], lengths: tuple[int, int], answer: tuple[int, int]
) -> None:
    """Stops a teacher that is right from teaching a wrong place, with real tokenizers and windows that cross."""
    text = " ".join(words)
    ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
    first = answer[0] % len(words)
    final = min(first + answer[1], len(words) - 1)
    labels = torch.tensor([[ends[first] - len(words[first]), ends[final]]])
    batches = [read(tokenizer, text, length) for tokenizer, length in zip(pair, lengths, strict=False)]
    student, teacher = ({**batch, "labels": labels} for batch in batches)
    own, wanted = answer_positions(teacher), answer_positions(student)
    if (own[0] < 0).any() or (wanted[0] < 0).any():
        return  # no window holds the answer whole, or it has no token: the data have no label either
    for last in (False, True):
        logits = torch.full(teacher["input_ids"].shape, -20.0).scatter(1, own[last].unsqueeze(1), 20.0)
        found = carry_positions(logits, teacher, student, last)
        allowed = student["char_ends"] >= 0
        best = found.masked_fill(~allowed, -1e9).argmax(1)
        partly = (student["char_starts"] < labels[0, 1]) & (student["char_ends"] > labels[0, 0])
        whole = wanted[0] != (student["char_ends"] == 0).int().argmax(1)
        sure = whole | ~partly.any(1)
        assert torch.equal(best[sure], wanted[last][sure])


def read(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Mapping[str, Tensor]:
    encoded = PassageEncoder(tokenizer, length, stride=5).encode(["ba?"], [text])
    return all_windows(encoded.tokens, encoded.offsets, encoded.windows, 0)


@pytest.mark.parametrize("last", [False, True])
def test_one_tokenizer_changes_nothing(last: bool) -> None:
    """Stops the way through characters from costing anything where it is not needed."""
    batch = read(TOKENIZERS[0], "banings dinings ba ko", 40)
    logits = torch.randn(batch["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    allowed = batch["char_ends"] >= 0
    torch.testing.assert_close(carry_positions(logits, batch, batch, last)[allowed], logits[allowed])
