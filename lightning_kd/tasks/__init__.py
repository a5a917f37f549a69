"""Tasks: what differs between classifying texts, tagging words, answering questions and predicting the next word."""

from lightning_kd.tasks.base import Task
from lightning_kd.tasks.language_modeling import LanguageModeling
from lightning_kd.tasks.multi_label_classification import MultiLabelClassification
from lightning_kd.tasks.question_answering import QuestionAnswering
from lightning_kd.tasks.sequence_classification import SequenceClassification
from lightning_kd.tasks.token_classification import TokenClassification

__all__ = [
    "LanguageModeling",
    "MultiLabelClassification",
    "QuestionAnswering",
    "SequenceClassification",
    "Task",
    "TokenClassification",
]
