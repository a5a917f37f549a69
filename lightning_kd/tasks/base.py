"""What differs between tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lightning_kd._checks import InputError

__all__ = ["IGNORED", "Task", "labelled_mean"]

#: What a batch may hold beside the model's inputs.
_NOT_INPUTS = frozenset(
    {"labels", "index", "words", "example", "texts", "spans", "teachers", "cached"}
    | {"char_starts", "char_ends", "ids", "contexts", "answers"}
)

#: The label of what is no example: padding, all but the first sub-word of a word, a text without a label.
IGNORED = -100


def labelled_mean(losses: Tensor, labelled: Tensor) -> Tensor:
    """Mean over the rows that have a label; 0, with a gradient path, if none has.

    Args:
        losses: ``(rows, ...)``, finite.
        labelled: ``(rows,)`` bool.
    """
    each = losses.reshape(len(losses), -1).mean(-1)
    return (each * labelled).sum() / labelled.sum().clamp(min=1)


@dataclass(frozen=True)
class Task(ABC):
    """From a batch to logits, loss, metrics and predictions.

    A task is plain data, so that a checkpoint can name it.
    """

    #: The transformers auto class that loads a model with the task's head.
    auto_class: ClassVar[Any]
    #: Whether a row has several labels or none.
    multi_label: ClassVar[bool] = False

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a batch that go into a model."""
        return {name: value for name, value in batch.items() if name not in _NOT_INPUTS}

    @abstractmethod
    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        """Write the labels into a model's configuration; ``None`` stands for regression, ``[]`` for text alone."""

    def with_config(self, config: PretrainedConfig) -> Task:
        """The task as a model does it whose configuration says more about it."""
        return self

    def check(self, data: Any) -> None:  # noqa: B027  # most tasks take what their data module gives
        """Refuse a data module whose rows the task cannot learn from, before the first batch."""

    def check_teacher(self, name: str, config: PretrainedConfig) -> None:
        """Refuse a teacher that was trained for another variant of the task."""
        kinds = {"single_label_classification": "one label", "multi_label_classification": "any number of labels"}
        own = kinds.get(config.problem_type or "")
        wanted = kinds["multi_label_classification" if self.multi_label else "single_label_classification"]
        if own is not None and own != wanted:
            raise InputError(
                f"Expected the teacher {name!r} to be trained on rows with {wanted}, as the data have, but its "
                f"problem_type is {config.problem_type}: take another teacher, or other data."
            )

    @abstractmethod
    def logits(self, output: Any) -> dict[str, Tensor]:
        """A model's logits by name, from its output."""

    @abstractmethod
    def logit_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the logits' names: bool, True where a distribution counts."""

    #: Whether a model gives logits for every token rather than for every text.
    per_token: ClassVar[bool] = False
    #: Whether there are :meth:`class_masks`.
    masks_classes: ClassVar[bool] = False

    def class_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the logits' names: bool in the shape of the logits, False at classes that cannot be."""
        return {}

    @abstractmethod
    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the logits' names: the true class, int64 in the shape of the logits' mask; nothing where there is none."""

    @abstractmethod
    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The supervised loss, a float32 scalar, mean over what has a label in the batch."""

    @abstractmethod
    def metrics(self, names: Sequence[str], label_names: Sequence[str] | None) -> MetricCollection:
        """The metrics by name, for :meth:`outcomes`; ``None`` stands for regression."""

    def detailed_metrics(self, label_names: Sequence[str] | None) -> list[str]:
        """Names of further metrics, which `validate` and `test` add to the data's own."""
        return []

    @abstractmethod
    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What is predicted and what it is measured by, each ``(rows, ...)``, as the metrics take them."""

    @abstractmethod
    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        """One JSON-able record a row, as ``predict`` writes it."""

    def show(
        self, outcome: Tensor, texts: Sequence[Any] | None, label_names: Sequence[str] | None, other: Tensor
    ) -> str:
        """One row of what :meth:`outcomes` gives, in words.

        Args:
            outcome: A prediction or a true label.
            texts: What the model read, one for each of the data's text columns; None if it must not be shown.
            label_names: The labels; ``None`` stands for scores.
            other: Another outcome of the same row, for tasks that show what is different in it.
        """
        return f"{outcome.item():.4f}" if label_names is None else label_names[int(outcome)]

    def encode(self, texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """A batch of texts to predict on."""
        # on the side on which students are trained to have it
        return dict(tokenizer(list(texts), padding=True, padding_side="right", truncation=True, return_tensors="pt"))

    def spec(self) -> dict[str, Any]:
        """The task as a ``class_path`` with ``init_args``."""
        kind = type(self)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(vars(self))}

    #: Whether :meth:`transfer` can carry hidden states over.
    transfers_tokens: ClassVar[bool] = False

    def transfer(self, name: str, values: Tensor, own: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """A teacher's logits where the student reads the same, for a teacher that reads another vocabulary.

        Args:
            name: The logits' name; ``hidden_states`` for those.
            values: One set of logits, or hidden states where ``transfers_tokens``, of the batch ``own``.
            own: The rows as the teacher reads them.
            batch: The same rows as the student reads them.

        Returns:
            As for ``batch``; 0 where nothing is to be compared.
        """
        return values

    def token_masks(
        self, batch: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's tokens that losses on hidden states compare, each ``(B, L)`` bool.

        Args:
            batch: The rows as the student reads them.
            own: The rows as the teacher reads them, if that is not the same.
        """
        mask = batch["attention_mask"].to(torch.bool)
        return mask, mask if own is None else own["attention_mask"].to(torch.bool)
