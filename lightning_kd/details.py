"""What several models do with the same rows: where they agree, what they confuse, and where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.measure import Evaluation
from lightning_kd.report import Details, Disagreement
from lightning_kd.tasks import Task
from lightning_kd.tasks.base import IGNORED

__all__ = ["agreement", "confusion", "details_of", "disagreements", "row_distances"]

#: Labels beyond which a confusion matrix is no longer readable.
_MOST_LABELS = 50


def agreement(one: Tensor, other: Tensor) -> float | None:
    """The share of equal predictions: of rows, of words or of single labels; None for scores.

    Args:
        one: ``(rows, ...)``; what is negative is no prediction.
        other: Of the same rows.
    """
    if one.is_floating_point():
        return None
    if one.ndim > 1 and one.shape[1] != other.shape[1]:  # of a model that cuts rows elsewhere
        width = max(one.shape[1], other.shape[1])
        one, other = (F.pad(each, (0, width - each.shape[1]), value=IGNORED) for each in (one, other))
    return (one == other)[one >= 0].float().mean().item()


def confusion(predictions: Tensor, target: Tensor, num_labels: int) -> list[list[int]]:
    """True labels by predicted labels: numbers of rows, those without a label left out.

    Args:
        predictions: ``(rows,)`` int64.
        target: ``(rows,)`` int64.
        num_labels: How many labels there are.

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
        [[1, 1], [0, 1]]
    """
    labelled = target >= 0
    places = target[labelled] * num_labels + predictions[labelled]
    return torch.bincount(places, minlength=num_labels**2).reshape(num_labels, num_labels).tolist()


def row_distances(
    task: Task,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    own: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """How far two models are apart on each row of a batch, ``(rows,)``.

    Of probabilities ``1/2 sum |p - q|``, the total variation distance, from 0 to 1; mean over what is predicted of the
    row: over its words, or over start and end of an answer in each window. Of independent labels the mean of
    ``|p - q|``; of scores ``|a - b|``.

    Args:
        task: Of both models.
        student: Logits by name.
        teacher: Logits by name.
        batch: The rows as the student reads them.
        own: The rows as the teacher reads them, if that is not the same.
    """
    masks, classes = task.logit_masks(batch), task.class_masks(batch)
    rows = batch["index"]
    total, count = torch.zeros(len(rows)), torch.zeros(len(rows))
    for name, values in student.items():
        others = teacher[name] if own is None else task.transfer(name, teacher[name], own, batch)
        values, others = values.float(), others.float()
        if values.shape[-1] == 1 or task.multi_label:
            single = values.shape[-1] == 1
            apart = (values - others if single else values.sigmoid() - others.sigmoid()).abs().mean(-1)
        else:
            if name in classes:
                values, others = (each.masked_fill(~classes[name], -float("inf")) for each in (values, others))
            apart = (values.softmax(-1) - others.softmax(-1)).abs().sum(-1).nan_to_num() / 2  # NaN: no class at all
        at = masks[name]
        of_row = batch.get("example", torch.arange(len(at)))
        if at.ndim > 1:
            of_row = of_row.unsqueeze(1).expand_as(at)
        total.index_add_(0, of_row[at], apart[at])
        count.index_add_(0, of_row[at], torch.ones(int(at.sum())))
    return total / count.clamp(min=1)


def disagreements(
    task: Task,
    distances: Tensor,
    index: Tensor,
    student: Evaluation,
    teacher: Evaluation,
    texts: Mapping[int, Sequence[Any]],
    label_names: Sequence[str] | None,
    count: int,
    with_texts: bool,
) -> list[Disagreement]:
    """The ``count`` rows with the largest distances, the largest first; rows that do not differ are left out.

    Args:
        task: From predictions to words.
        distances: ``(rows,)``.
        index: ``(rows,)``, the rows' numbers.
        student: Predictions in the same order.
        teacher: Predictions in the same order.
        texts: By a row's number.
        label_names: The labels; ``None`` for scores.
        count: How many.
        with_texts: Whether the texts go along.
    """
    found = []
    for place in distances.argsort(descending=True, stable=True)[:count].tolist():
        if distances[place] <= 0:
            break
        row = int(index[place])
        read = texts[row]
        shown = [_shorter(text if isinstance(text, str) else " ".join(text)) for text in read]
        one, other, true = student.predictions[place], teacher.predictions[place], student.target[place]
        words = read if with_texts else None
        found.append(
            Disagreement(
                row=row,
                distance=float(distances[place]),
                texts=shown if with_texts else None,
                label=task.show(true, words, label_names, one) if true.shape == one.shape else "",
                student=task.show(one, words, label_names, other),
                teacher=task.show(other, words, label_names, one),
            )
        )
    return found


def _shorter(text: str, most: int = 1000) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def details_of(
    task: Task,
    evaluations: Mapping[str, Evaluation],
    label_names: Sequence[str] | None,
    found: list[Disagreement],
) -> Details:
    """All of it.

    Args:
        task: Of the models.
        evaluations: By model, of the same rows.
        label_names: The labels; ``None`` for scores.
        found: From :func:`disagreements`.
    """
    shares = [[agreement(a.predictions, b.predictions) for b in evaluations.values()] for a in evaluations.values()]
    matrix = [[share for share in line if share is not None] for line in shares]
    labels = list(label_names or [])
    first = next(iter(evaluations.values()))
    single = first.predictions.ndim == first.target.ndim == 1 and not first.target.is_floating_point()
    tables = {}
    if single and 1 < len(labels) <= _MOST_LABELS:
        tables = {name: confusion(e.predictions, e.target, len(labels)) for name, e in evaluations.items()}
    scores: dict[str, dict[str, float]] = {}
    if names := task.detailed_metrics(label_names):
        for model, each in evaluations.items():
            metrics = task.metrics(names, label_names)
            for metric in metrics.values():  # this process measures alone: there is nobody to wait for
                metric.distributed_available_fn = lambda: False
            metrics.update(each.predictions, each.target)
            for name, value in metrics.compute().items():
                scores.setdefault(name, {})[model] = value.item()
    return Details(
        agreement=matrix if all(matrix) else [],
        labels=labels if tables else [],
        confusion=tables,
        scores=scores,
        disagreements=found,
    )
