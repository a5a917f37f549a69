"""Tags of words: entities as seqeval counts them, the loss over words alone, places in the text."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from torch import Tensor
from transformers import AutoTokenizer, BertConfig

from lightning_kd import InputError
from lightning_kd.tasks import TokenClassification
from lightning_kd.tasks.token_classification import EntityScore, entities
from lightning_kd.tasks.words import joined

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
TASK = TokenClassification()
sentences = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8), min_size=1, max_size=5)


def padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-100] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # seqeval's, of 0 / 0
@given(rows=sentences, split=st.integers(0, 5))
def test_equals_seqeval(rows: list[list[tuple[int, int]]], split: int) -> None:
    """Stops counted tokens instead of entities, an I that begins none, and means of batches."""
    names = ["f1", "precision", "recall", "f1_PER", "f1_LOC", "f1_MISC"]
    metrics = TASK.metrics(names, TAGS)
    for part in (rows[:split], rows[split:]):
        if part:
            metrics.update(padded([[p for p, _ in row] for row in part]), padded([[t for _, t in row] for row in part]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    predicted = [[TAGS[p] for p, _ in row] for row in rows]
    actual = [[TAGS[t] for _, t in row] for row in rows]
    assert values["f1"] == pytest.approx(f1_score(actual, predicted, zero_division=0))
    assert values["precision"] == pytest.approx(precision_score(actual, predicted, zero_division=0))
    assert values["recall"] == pytest.approx(recall_score(actual, predicted, zero_division=0))
    if any(tag != "O" for row in actual + predicted for tag in row):
        by_type = classification_report(actual, predicted, output_dict=True, zero_division=0)
        for kind in ("PER", "LOC", "MISC"):
            expected = by_type[kind]["f1-score"] if kind in by_type else 0.0
            assert values[f"f1_{kind}"] == pytest.approx(expected)


def test_words_behind_the_end_are_not_read() -> None:
    """Stops an entity that is predicted on padding, and one that padding cuts off, from being counted."""
    score = EntityScore(TAGS, "f1")
    score.update(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, -100, -100]]))
    assert score.compute() == 1
    assert score.predicted.sum() == score.actual.sum() == 1


def test_entities_of_one_row() -> None:
    """Stops two neighbours of one type from being one entity."""
    prefixes, types = torch.tensor([0, 1, 2, 1, 2, 1, 2]), torch.tensor([0, 2, 2, 0, 0, 1, 1])
    starts, ends = entities(torch.tensor([[1, 2, 1, 4, 4, 0, 2]]), prefixes, types)
    found = [(int(starts[0, i]), i, int(ends[0, i])) for i in (starts[0] >= 0).nonzero()[:, 0].tolist()]
    assert found == [(2, 0, 1), (2, 2, 2), (0, 3, 4), (2, 6, 6)]


def test_loss_is_over_words_alone() -> None:
    """Stops padding and later sub-words from being trained on, and the NaN of a batch without a word."""
    logits = {"logits": torch.randn(2, 3, 7, requires_grad=True)}
    labels = torch.tensor([[-100, 3, -100], [-100, 0, 1]])
    batch = {"labels": labels, "words": torch.tensor([[-1, 0, -1], [-1, 0, 1]])}
    flat = logits["logits"][labels >= 0], labels[labels >= 0]
    assert TASK.hard_label_loss(logits, batch).item() == pytest.approx(F.cross_entropy(*flat).item())
    assert TASK.logit_masks(batch)["logits"].equal(labels >= 0)
    nothing = TASK.hard_label_loss(logits, {"labels": torch.full((2, 3), -100)})
    nothing.backward()
    assert nothing == 0


def test_outcomes_put_windows_together() -> None:
    """Stops the windows of one sentence from being counted as two, which cuts an entity in halves."""
    batch = {
        "labels": torch.tensor([[-100, 1, 2, -100], [-100, -100, 2, 0], [-100, 3, -100, -100]]),
        "words": torch.tensor([[-1, 0, 1, -1], [-1, -1, 2, 3], [-1, 0, -1, -1]]),
        "example": torch.tensor([0, 0, 1]),
        "index": torch.tensor([7, 9]),
    }
    logits = {"logits": F.one_hot(batch["labels"].clamp(min=0), 7).float()}
    predicted, target = TASK.outcomes(logits, batch)
    assert target.tolist() == predicted.tolist() == [[1, 2, 2, 0], [3, -100, -100, -100]]


def test_records_name_places_in_the_text(tiny_model: Callable[..., Path]) -> None:
    """Stops places in bytes, in tokens or in another sentence; raw texts and lists of words give the same."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    config = BertConfig()
    TASK.configure(config, TAGS)
    texts = ["  ba Zoë-ban  😀 din", ["ba", "Zoë", "-", "ban", "😀", "din"]]
    batch = TASK.encode(texts, tokenizer)
    tags = torch.zeros_like(batch["words"])
    for word, tag in ((1, 1), (2, 2), (3, 2), (4, 3)):
        tags[batch["words"] == word] = tag
    records = TASK.records({"logits": 20.0 * F.one_hot(tags, 7).float()}, batch, config)
    assert json.loads(json.dumps(records)) == records
    found = [[(e["label"], e["text"], e["start"], e["end"]) for e in record["entities"]] for record in records]
    assert found[0] == [("PER", "Zoë-ban", 5, 12), ("LOC", "😀", 14, 15)]
    assert found[1] == [("PER", "Zoë - ban", 3, 12), ("LOC", "😀", 13, 14)]
    assert all(e["score"] > 0.99 for record in records for e in record["entities"])


PIECES = ["ba", "bas", "banings", "Zoë", "e\u0301", "我", "们", "。", "😀", "xyz", "7", "din"]


@given(
    words=st.lists(st.sampled_from(PIECES), min_size=1, max_size=90),
    spans=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 3])), max_size=30),
    as_text=st.booleans(),
)
def test_an_entity_is_the_characters_of_its_words(
    tiny_model: Callable[..., Path], words: list[str], spans: list[tuple[int, int]], as_text: bool
) -> None:
    """Stops an entity that is cut at an accent or an emoji, or shifted behind Chinese text or at a window's edge."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    config = BertConfig()
    TASK.configure(config, TAGS)
    given_text, places = joined(words)
    batch = TASK.encode([given_text if as_text else words], tokenizer)
    (text,), (found,) = batch["texts"], batch["spans"]
    assert text == given_text
    if as_text:  # the words are then the tokenizer's own: between them is nothing but space
        cut = [text[a:b] for a, b in itertools.pairwise([0, *itertools.chain(*found), len(text)])][::2]
        assert not "".join(cut).strip() and all(text[a:b].strip() == text[a:b] for a, b in found)
        assert not any(unicodedata.combining(text[start]) for start, _ in found)
    else:
        assert found == places
    tags = torch.zeros_like(batch["words"])
    expected, first = [], 0
    for length, tag in spans:
        last = first + length
        if last >= len(found):
            break
        if tag:
            for word in range(first, last + 1):
                tags[batch["words"] == word] = tag + (word > first)
            expected.append((found[first][0], found[last][1]))
        first = last + 1
    (record,) = TASK.records({"logits": 20.0 * F.one_hot(tags, 7).float()}, batch, config)
    assert [(e["start"], e["end"]) for e in record["entities"]] == expected
    assert all(e["text"] == text[e["start"] : e["end"]] for e in record["entities"])


def test_chinese_texts_are_read_by_character(tiny_model: Callable[..., Path]) -> None:
    """Stops a Chinese sentence from being one word, which has one tag."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    batch = TASK.encode(["我们在Zoë家。bas", list("我们在")], tokenizer)
    assert [batch["texts"][0][a:b] for a, b in batch["spans"][0]] == ["我", "们", "在", "Zoë", "家", "。", "bas"]
    assert batch["texts"][1] == "我们在" and batch["spans"][1] == [(0, 1), (1, 2), (2, 3)]


def test_refused() -> None:
    """Stops tags of another scheme from being read as IOB2, and a metric that is not there."""
    with pytest.raises(InputError, match=r"tags in IOB2 .* but got 'S-PER'"):
        TASK.configure(BertConfig(), ["O", "S-PER"])
    with pytest.raises(InputError, match="needs data with tags"):
        TASK.configure(BertConfig(), None)
    with pytest.raises(InputError, match="`metric_names` to be among f1, precision, recall, f1_LOC"):
        TASK.metrics(["accuracy"], TAGS)
