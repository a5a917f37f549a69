"""Whether models, task, losses and data fit each other; asked before the first batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig

from lightning_kd._checks import InputError, expected, nearest
from lightning_kd.labels import label_names_of, label_order
from lightning_kd.losses import DistillationLoss
from lightning_kd.models import ModelSource, has_tokenizer, num_positions
from lightning_kd.tasks import Task

__all__ = [
    "check_callbacks",
    "check_labels",
    "check_length",
    "check_loss",
    "check_loss_teachers",
    "check_state",
    "check_strategy",
    "check_task",
    "check_terms",
    "check_vocabulary",
]


#: Callbacks of Lightning's that want another module than this, and what to do.
_CALLBACKS = {
    BackboneFinetuning: "a student has no `backbone`: derive from BaseFinetuning, and call pl_module.configure_model() "
    "before you freeze parts of pl_module.student",
    LearningRateFinder: "the learning rate is an option of `model.optimizer`: try several with `lightning-kd sweep`",
    ModelPruning: "zeros make a model neither smaller nor faster: take `lightning-kd prune` or GradualPruning",
}
#: Strategies that cut a model into pieces, by the class's name or the name that the trainer knows them by.
_SHARDED = ("fsdp", "deepspeed", "modelparallel")


def check_strategy(strategy: str | type) -> None:
    """Refuse to train a student in pieces, which nothing here has been tried with.

    Args:
        strategy: The class, or how the trainer's option names it.
    """
    names = [strategy] if isinstance(strategy, str) else [base.__name__ for base in strategy.__mro__]
    if any(name.rpartition(".")[2].lower().replace("_", "").startswith(_SHARDED) for name in names):
        raise expected(
            "trainer.strategy",
            "auto or ddp",
            names[0],
            "A student fits on one device. A teacher that does not fit beside it: give it dtype: bfloat16, or have its "
            "logits cached (lightning_kd.callbacks.TeacherCache).",
        )


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Refuse those of Lightning's callbacks that cannot work here, or whose work would be lost.

    Args:
        callbacks: The trainer's.
    """
    kept = [each.monitor for each in callbacks if isinstance(each, ModelCheckpoint) and each.monitor]
    for callback in callbacks:
        for kind, way_out in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise InputError(f"{kind.__name__} cannot be used: {way_out}.")
        if isinstance(callback, StochasticWeightAveraging) and kept:
            raise InputError(
                "StochasticWeightAveraging averages after the last epoch, and what is exported is the checkpoint with "
                f"the best {kept[0]}: take EMAWeightAveraging or WeightAveraging, whose average stands in checkpoints, "
                "or a ModelCheckpoint without `monitor`."
            )


def _in_brackets(names: list[str] | None) -> str:
    return f" ({', '.join(names)})" if names else ""


def check_task(task: Task, data: Any) -> None:
    """Refuse a task that is not the data's: for one label a row where they have several, for tags, for answers.

    Args:
        task: The task.
        data: The data module; it serves any task unless it has ``task_names``.
    """
    multi_label, tasks = getattr(data, "multi_label", False), getattr(data, "task_names", ())
    if tasks and not {kind.__name__ for kind in type(task).__mro__} & set(tasks):
        raise InputError(
            f"The data are for {' or '.join(tasks)}, but the task is {type(task).__name__}: set model.task.class_path "
            f"to lightning_kd.tasks.{tasks[0]}, or take other data."
        )
    if task.multi_label != multi_label:
        labels = "any number of labels" if multi_label else "one label"
        kind = "MultiLabelClassification" if multi_label else "SequenceClassification"
        raise InputError(
            f"A row of the data has {labels}, but the task is {type(task).__name__}: set model.task.class_path to "
            f"lightning_kd.tasks.{kind}."
        )


def check_labels(who: str, config: PretrainedConfig, label_names: list[str] | None, in_order: bool = False) -> None:
    """Refuse a model whose labels are not the data's; text alone has none.

    Args:
        who: What the model is, in messages.
        config: Its configuration.
        label_names: The data's labels; ``None`` for a score.
        in_order: Refuse another order, too.
    """
    if label_names == []:
        return
    if config.num_labels != (1 if label_names is None else len(label_names)):
        wanted = "1 output (regression)" if label_names is None else f"{len(label_names)} labels"
        raise InputError(
            f"The data has {wanted}{_in_brackets(label_names)}, "
            f"but {who} has {config.num_labels}: use a model with the data's labels."
        )
    own = label_names_of(config)
    if not own or not label_names or own[0].startswith("LABEL_"):
        return
    way_out = "use a model with the data's labels. If they mean the same, say so by id2label in its config."
    if in_order:
        way_out = "names and order must be the same."
    order = label_order(own, label_names)
    if order is None or (in_order and order != sorted(order)):
        raise InputError(
            f"The data's labels are {', '.join(label_names)}, but those of {who} are {', '.join(own)}: {way_out}"
        )


def check_length(name: str, model: nn.Module, data: Any, teacher: str | None = None) -> None:
    """Refuse rows that are longer than a model has positions for.

    Args:
        name: The argument that names the model.
        model: With a table of positions, or without, then any length will do.
        data: The data module; any length will do of one that does not know its longest row.
        teacher: The model's name, if it may read the rows by a tokenizer of its own.
    """
    positions = num_positions(model)
    longest = data.longest(teacher) if hasattr(data, "longest") else 0
    if positions is not None and longest > positions:
        raise InputError(
            f"The longest row of the data has {longest} tokens, but `{name}` has {positions} positions: set "
            "`data.max_length` to that, or take a longer model."
        )


def check_state(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse the weights of a checkpoint that are not those of the module.

    Args:
        stored: From the checkpoint, by name.
        own: What the module has.
    """
    wrong = sorted(set(stored) ^ set(own))
    shapes = [key for key in own if key in stored and getattr(stored[key], "shape", None) != own[key].shape]
    if wrong or shapes:
        key = (wrong or shapes)[0]
        what = f"{key} of another shape" if not wrong else f"{'no ' if key in own else ''}{key}"
        raise InputError(
            f"Expected argument `ckpt_path` to be a checkpoint of this student and these losses, but it has {what}: "
            "take the configuration that it was trained with, or leave ckpt_path out."
        )


def check_vocabulary(
    name: str, source: ModelSource, config: PretrainedConfig, tokenizer: Any, pairs: bool = False
) -> None:
    """Refuse a model that reads another vocabulary than a tokenizer writes, or token types that it does not.

    Args:
        name: The argument that names the model.
        source: Where the model is.
        config: Its configuration.
        tokenizer: Whose tokens it is to read.
        pairs: Whether a row has two texts that token types tell apart, and the model is trained to read them.
    """
    remedy = (
        "the model's own tokenizer as data.tokenizer"
        if name == "model.student"
        else "the teacher's in teacher_tokenizers"
    )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"The tokenizer of the data has {len(tokenizer)} tokens, but `{name}` has embeddings for "
            f"{config.vocab_size}: give the data module {remedy}."
        )
    if source.path is None or source.from_scratch or not has_tokenizer(source.path):
        return
    own = AutoTokenizer.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    if own.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"`{name}` ({source.path}) reads another vocabulary than the data's tokenizer writes: "
            f"give the data module {remedy}."
        )
    if pairs and "token_type_ids" in set(own.model_input_names) - set(tokenizer.model_input_names):
        raise InputError(
            f"`{name}` ({source.path}) tells the two texts of a row by token types, which the data's tokenizer does "
            f"not write: give the data module {remedy}."
        )


def check_loss(name: str, loss: DistillationLoss, task: Task, num_teachers: int, other_vocabulary: bool) -> None:
    """Refuse a loss that the task, the number of teachers or their vocabulary leaves without sense."""
    if task.masks_classes and not loss.masks_classes:
        raise InputError(
            f"The loss {name!r} ({type(loss).__name__}) compares all classes of a row, but "
            f"{type(task).__name__} leaves some out of each row. Use SoftTargetKL instead."
        )
    needs = loss.needs("teacher")
    if needs and num_teachers > 1:
        raise InputError(
            f"The loss {name!r} compares inner states, which needs exactly one teacher, but there are {num_teachers}: "
            f"name one in loss_teachers.{name}."
        )
    at_tokens = needs.queries or needs.keys or needs.values or (loss.token_by_token and not task.transfers_tokens)
    if needs and other_vocabulary and at_tokens:
        raise InputError(
            f"The loss {name!r} compares student and teacher token by token, but the teacher reads another "
            "vocabulary than the student. Use losses on logits, or on one vector an example (PatientKD, PKT, "
            "RKDDistance, RKDAngle, SimilarityPreserving, CRD)."
        )


def check_terms(losses: Sequence[str], teachers: Sequence[str], weights: Iterable[str], unlabelled: int) -> None:
    """Refuse weights of losses that are not there, and losses, teachers and rows that lack each other.

    Args:
        losses: Their names.
        teachers: Their names.
        weights: The names of losses that have a weight.
        unlabelled: Training rows without a label.
    """
    unknown = next((name for name in weights if name not in losses), None)
    if unknown is not None:
        valid = ", ".join(losses) or "none: this module has no losses"
        raise expected("loss_weights", f"names of losses ({valid})", unknown, nearest(unknown, losses))
    if losses and not teachers:
        raise InputError(f"The losses {', '.join(losses)} need a teacher, but there is none: add one to `teachers`.")
    if unlabelled and not teachers:
        raise InputError(
            f"{unlabelled:,} training rows have no label, and there is no teacher to learn from on them: add one "
            "to `teachers`, or leave these rows out of the training file."
        )
    if teachers and not losses:
        raise InputError(
            "There is a teacher, but no loss that learns from it: add one to `losses`, or a DistillationLossCallback."
        )


def check_loss_teachers(loss_teachers: Mapping[str, str], losses: Iterable[str], teachers: Iterable[str]) -> None:
    """Refuse names of losses and teachers that are not there.

    Args:
        loss_teachers: By the loss's name, that of its teacher.
        losses: The names that there are.
        teachers: The names that there are.
    """
    losses, teachers = list(losses), list(teachers)
    for loss, teacher in loss_teachers.items():
        if loss not in losses:
            valid = ", ".join(losses) or "none: this module has no losses"
            raise expected("loss_teachers", f"names of losses ({valid})", loss, nearest(loss, losses))
        if teacher not in teachers:
            what = f"the name of a teacher ({', '.join(teachers) or 'none'})"
            raise expected(f"loss_teachers.{loss}", what, teacher, nearest(teacher, teachers))
