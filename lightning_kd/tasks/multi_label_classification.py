"""Any number of labels per text or pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.tasks.base import labelled_mean
from lightning_kd.tasks.sequence_classification import SequenceClassification

__all__ = ["MultiLabelClassification"]


@dataclass(frozen=True)
class MultiLabelClassification(SequenceClassification):
    """Labels of whole texts or pairs that are independent of each other: one sigmoid a label, true above 0.5.

    A batch's ``labels`` are ``(rows, labels)`` of 0 and 1, float32; NaN in a row without a label.

    Metrics: ``f1_micro`` over all decisions, ``f1_macro``, the mean of the labels' F1, and ``accuracy``, the share of
    rows whose labels are all right. F1 is 0 where a label is neither there nor predicted, as in sklearn.
    """

    multi_label: ClassVar[bool] = True

    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        if label_names is None:
            raise InputError("MultiLabelClassification needs data with lists of labels, but these have scores.")
        if len(label_names) < 2:
            raise InputError(
                f"MultiLabelClassification needs at least 2 labels, but there is {label_names[0]!r} alone: write two "
                "classes, with it and without it, for SequenceClassification."
            )
        super().configure(config, label_names)
        config.problem_type = "multi_label_classification"

    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}  # none of them is the true class

    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        values, labels = logits["logits"].float(), batch["labels"]
        losses = F.binary_cross_entropy_with_logits(values, labels.nan_to_num(), reduction="none")
        return labelled_mean(losses, ~labels.isnan().any(-1))

    def _known_metrics(self, num_outputs: int) -> dict[str, Callable[[], Metric]]:
        return {
            "f1_micro": lambda: MultilabelF1Score(num_outputs, average="micro"),
            "f1_macro": lambda: MultilabelF1Score(num_outputs, average="macro"),
            "accuracy": lambda: MultilabelExactMatch(num_outputs),
        }

    def predictions(self, logits: Mapping[str, Tensor]) -> Tensor:
        """``(rows, labels)``: 1 where the probability is above 0.5, else 0."""
        return (logits["logits"] > 0).long()

    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.predictions(logits), batch["labels"].long()

    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        names = cast(dict[int, str], config.id2label or {})
        records = []
        for scores in logits["logits"].float().sigmoid().tolist():
            found = [{"label": names[i], "score": score} for i, score in enumerate(scores) if score > 0.5]
            records.append({"labels": sorted(found, key=lambda label: -label["score"])})
        return records

    def show(
        self, outcome: Tensor, texts: Sequence[Any] | None, label_names: Sequence[str] | None, other: Tensor
    ) -> str:
        return ", ".join(name for name, has in zip(label_names or [], outcome.tolist(), strict=True) if has == 1)
