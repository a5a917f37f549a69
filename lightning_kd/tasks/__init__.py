"""Tasks: what differs between classifying texts, tagging tokens and answering questions."""

from lightning_kd.tasks.base import Task
from lightning_kd.tasks.sequence_classification import SequenceClassification

__all__ = ["SequenceClassification", "Task"]
