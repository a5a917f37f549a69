"""The student of a module, as its source describes it and its data want it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lightning_kd.compatibility import check_labels, check_length, check_vocabulary
from lightning_kd.embeddings import start_embeddings
from lightning_kd.labels import label_names_of, order_outputs
from lightning_kd.models import ModelSource, load_config, load_model, pad_with
from lightning_kd.tasks import Task

__all__ = ["build_student", "is_labelled"]


def is_labelled(data: Any) -> bool:
    """Whether a data module says what its labels are; to predict it need not."""
    return bool(getattr(data, "has_labels", hasattr(data, "label_names")))


def build_student(source: ModelSource, task: Task, data: Any, whole: bool) -> PreTrainedModel:
    """The student, in train mode, with the number, names and order of the data's labels and their tokenizer's padding.

    Args:
        source: Where it starts.
        task: What it does.
        data: The data module, or None.
        whole: Whether every weight has to be stored, as nothing will be trained.

    Raises:
        InputError: If it cannot be loaded, or does not fit the data.
    """
    label_names = getattr(data, "label_names", None)
    config = load_config(source, "model.student")
    stored = None if source.from_scratch else label_names_of(config)
    if is_labelled(data):
        if (whole and not source.from_scratch) or "num_labels" in source.config:
            check_labels("model.student" if whole else "model.student.config", config, label_names)
        task.configure(config, label_names)
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None:
        if source.from_scratch and "vocab_size" not in source.config:
            config.vocab_size = len(tokenizer)
            config.pad_token_id = tokenizer.pad_token_id
        check_vocabulary("model.student", source, config, tokenizer)
    student = load_model(source, task.auto_class, config, "model.student", whole)
    order_outputs(student, stored, label_names, "`model.student`")
    pad_with(student, tokenizer)
    check_length("model.student", student, data)
    start_embeddings(student, source, tokenizer)
    return student
