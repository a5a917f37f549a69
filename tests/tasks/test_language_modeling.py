"""Perplexity against torchmetrics and by hand, and texts of any length on their own."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torchmetrics.text import Perplexity as ReferencePerplexity
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from lightning_kd import InputError
from lightning_kd.tasks import LanguageModeling
from lightning_kd.tasks.base import IGNORED

TASK = LanguageModeling()


def example(rows: int = 5, length: int = 6, words: int = 7) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(words, (rows, length), generator=generator)
    labels[-1, 2:] = IGNORED
    return {"logits": 3 * torch.randn(rows, length, words, generator=generator)}, {"labels": labels}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_perplexity_is_that_of_torchmetrics(batch_size: int) -> None:
    """Stops a mean of the batches' or of the rows' perplexities, and padding from being counted as words."""
    logits, batch = example()
    reference = ReferencePerplexity(ignore_index=IGNORED)
    reference.update(logits["logits"], batch["labels"])
    metrics = TASK.metrics(["perplexity"], None)
    for start in range(0, 5, batch_size):
        part = slice(start, start + batch_size)
        rows = {"logits": logits["logits"][part]}, {"labels": batch["labels"][part]}
        metrics.update(*TASK.outcomes(*rows))
    assert metrics.compute()["perplexity"].item() == pytest.approx(reference.compute().item(), rel=1e-5)
    assert metrics["perplexity"].higher_is_better is False


def test_loss_is_the_mean_over_words() -> None:
    """Stops the short window at the end of a text from weighing as much as the others."""
    logits, batch = example()
    expected, count = 0.0, 0
    for row, labels in zip(logits["logits"].softmax(-1).tolist(), batch["labels"].tolist(), strict=True):
        for distribution, label in zip(row, labels, strict=True):
            if label != IGNORED:
                expected, count = expected - math.log(distribution[label]), count + 1
    assert TASK.hard_label_loss(logits, batch).item() == pytest.approx(expected / count, rel=1e-5)
    assert TASK.logit_masks(batch)["logits"].sum() == count
    empty = {"labels": torch.full_like(batch["labels"], IGNORED)}
    scores = logits["logits"].requires_grad_()
    loss = TASK.hard_label_loss({"logits": scores}, empty)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None


def test_a_text_is_predicted_from_its_first_word_to_its_end() -> None:
    """Stops the first word, or the end, from being left out of a text's perplexity, and padding from being in it."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    batch = TASK.encode(["a b zz", ""], tokenizer)
    assert batch["input_ids"].tolist()[0] == [1, 2, 3, 0] and batch["labels"].tolist()[0] == [2, 3, 0, 1]
    assert batch["labels"].tolist()[1] == [1, *[IGNORED] * 3]
    logits = {"logits": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))}
    records = TASK.records(logits, batch, PretrainedConfig())
    log = logits["logits"].log_softmax(-1)
    means = [sum(log[0, i, label].item() for i, label in enumerate((2, 3, 0, 1))) / 4, log[1, 0, 1].item()]
    assert [record["words"] for record in records] == [4, 1]
    assert [record["perplexity"] for record in records] == pytest.approx([math.exp(-mean) for mean in means], rel=1e-5)


def test_labels_are_refused() -> None:
    """Stops a classifier's data from being read as text with the wrong metric."""
    for names in (["negative", "positive"], None):
        with pytest.raises(InputError, match="text without labels"):
            TASK.configure(PretrainedConfig(), names)
    with pytest.raises(InputError, match="`metrics` to be made of perplexity, but got 'accuracy'"):
        TASK.metrics(["accuracy"], None)
