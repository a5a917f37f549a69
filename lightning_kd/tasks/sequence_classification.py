"""One label, or one score, per text or pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.base import IGNORED, Task, labelled_mean

__all__ = ["MatthewsCorrCoef", "SequenceClassification"]


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Matthews correlation with the usual value of 0 where it is undefined.

    It is undefined where all predictions, or all labels, are one class. torchmetrics gives 1 or -1 there, sklearn 0.
    """

    def compute(self) -> Tensor:
        labels, predictions = self.confmat.sum(1), self.confmat.sum(0)
        if (labels > 0).sum() < 2 or (predictions > 0).sum() < 2:
            return torch.zeros((), device=self.confmat.device)
        return super().compute()


@dataclass(frozen=True)
class SequenceClassification(Task):
    """Classification and, where the data has scores instead of labels, regression of whole texts or pairs.

    Metrics: ``accuracy``, ``f1`` (of the second of two labels), ``matthews``; ``pearson``, ``spearman``.
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        if label_names is None:
            config.num_labels = 1
            config.problem_type = "regression"
        elif not label_names:
            raise InputError("SequenceClassification needs data with labels, but these are text alone.")
        else:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: i for i, name in enumerate(label_names)}
            config.problem_type = "single_label_classification"

    def logits(self, output: Any) -> dict[str, Tensor]:
        return {"logits": output.logits}

    def logit_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch["attention_mask"]
        return {"logits": torch.ones(len(mask), dtype=torch.bool, device=mask.device)}

    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = batch["labels"]
        return {} if labels.is_floating_point() else {"logits": labels}

    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        values, labels = logits["logits"].float(), batch["labels"]
        if labels.is_floating_point():
            return labelled_mean((values[:, 0] - labels.nan_to_num()).square(), ~labels.isnan())
        total = F.cross_entropy(values, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def metrics(self, names: Sequence[str], label_names: Sequence[str] | None) -> MetricCollection:
        known = self._known_metrics(len(label_names or [None]))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise expected("metric_names", f"among {', '.join(sorted(known))}", ", ".join(unknown))
        return MetricCollection({name: known[name]() for name in names}, compute_groups=False)

    def _known_metrics(self, num_outputs: int) -> dict[str, Callable[[], Metric]]:
        if num_outputs == 1:
            return {"pearson": lambda: PearsonCorrCoef().set_dtype(torch.float64), "spearman": SpearmanCorrCoef}
        known: dict[str, Callable[[], Metric]] = {
            "accuracy": lambda: MulticlassAccuracy(num_outputs, average="micro"),
            "matthews": lambda: MatthewsCorrCoef(num_outputs),
        }
        return known | {"f1": BinaryF1Score} if num_outputs == 2 else known

    def predictions(self, logits: Mapping[str, Tensor]) -> Tensor:
        """The label, or the score, that the logits stand for, ``(rows,)``."""
        values = logits["logits"].float()
        return values[:, 0] if values.shape[1] == 1 else values.argmax(-1)

    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        predicted, labels = self.predictions(logits), batch["labels"]
        if labels.is_floating_point():  # or the sums depend on which process had which rows
            return predicted.double(), labels.double()
        return predicted, labels

    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        values = logits["logits"].float()
        if values.shape[1] == 1:
            return [{"score": score} for score in values[:, 0].tolist()]
        scores, labels = values.softmax(-1).max(-1)
        names = config.id2label or {}
        return [
            {"label": names[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
