"""The next word of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.base import IGNORED, Task

__all__ = ["LanguageModeling", "Perplexity"]


class Perplexity(Metric):
    """``exp`` of the mean negative log-likelihood of a word.

    Example:
        >>> metric = Perplexity()
        >>> metric.update(-torch.tensor([[0.5, 0.125]]).log(), torch.tensor([[3, 7]]))
        >>> round(metric.compute().item(), 4)  # one over the geometric mean of the probabilities
        4.0
    """

    higher_is_better = False
    total: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("words", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, target: Tensor) -> None:
        """Count some rows.

        Args:
            losses: ``(rows, L)`` float32, the negative log-likelihood of each word.
            target: The same shape, int64, the words; negative where there is none.
        """
        counted = target >= 0
        self.total += losses[counted].double().sum()
        self.words += counted.sum()

    def compute(self) -> Tensor:
        return (self.total / self.words).exp().float()


@dataclass(frozen=True)
class LanguageModeling(Task):
    """The next word at every word of a text, by a model that reads forwards.

    Metrics: ``perplexity``, lower is better.
    """

    auto_class: ClassVar[Any] = AutoModelForCausalLM
    per_token: ClassVar[bool] = True

    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        if label_names != []:
            raise InputError("LanguageModeling needs text without labels, as RunningTextDataModule gives it.")

    def logits(self, output: Any) -> dict[str, Tensor]:
        return {"logits": output.logits}

    def logit_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": batch["labels"] != IGNORED}

    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": batch["labels"].clamp(min=0)}

    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        total = self._losses(logits, batch).sum()  # 0 where there is no word
        return total / (batch["labels"] != IGNORED).sum().clamp(min=1)

    def _losses(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        scores, labels = logits["logits"].float(), batch["labels"]
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)

    def metrics(self, names: Sequence[str], label_names: Sequence[str] | None) -> MetricCollection:
        for name in names:
            if name != "perplexity":
                raise expected("metrics", "made of perplexity", name)
        return MetricCollection({name: Perplexity() for name in names})

    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self._losses(logits, batch), batch["labels"]

    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        losses, words = self._losses(logits, batch), (batch["labels"] != IGNORED).sum(1)
        means = losses.sum(1) / words
        return [{"perplexity": p, "words": n} for p, n in zip(means.exp().tolist(), words.tolist(), strict=True)]

    def encode(self, texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Each text as a line of its own: behind the end of another one, and with its own end."""
        end = tokenizer.eos_token
        batch = dict(tokenizer([f"{end} {text} {end}" for text in texts], padding=True, return_tensors="pt"))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
        return {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "labels": labels}
