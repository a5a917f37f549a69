"""Several tasks in one student: one encoder, a head for each task, and each task's own teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd._checks import InputError, check_range, expected, nearest
from lightning_kd.compatibility import check_callbacks
from lightning_kd.ensemble import Ensemble
from lightning_kd.folders import FORMAT
from lightning_kd.hyperparameters import keep_plain
from lightning_kd.losses import DistillationLoss
from lightning_kd.models import ModelSource, count_parameters
from lightning_kd.module import DistillationModule
from lightning_kd.optim import AdamW, Optimization
from lightning_kd.sharing import share_encoder
from lightning_kd.task_trainer import TaskTrainer, is_for_one_task
from lightning_kd.tasks import SequenceClassification, Task

__all__ = ["MultiTaskModule", "TaskDistillation"]

#: What is logged without a task's name: all tasks have the same.
_COMMON = frozenset({"train/lr"})


@dataclass(frozen=True)
class TaskDistillation:
    """What one task of several is learned from; all but ``weight`` is as in :class:`DistillationModule`.

    Args:
        task: What the student and these teachers do.
        teachers: By name.
        losses: Distillation losses by name.
        loss_weights: Weights of the losses by name; 1 where a name is left out.
        loss_teachers: By the loss's name, the one teacher that it learns from.
        ensemble: How the logits of several teachers become one.
        hard_label_weight: Weight of the supervised loss, 0 or more.
        temperature: Above 0.
        weight: Of the task's whole loss, 0 or more.
    """

    task: Task = SequenceClassification()  # noqa: RUF009  # frozen
    teachers: dict[str, ModelSource] = field(default_factory=dict)
    losses: dict[str, DistillationLoss] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    loss_teachers: dict[str, str] = field(default_factory=dict)
    ensemble: Ensemble = Ensemble()  # noqa: RUF009  # frozen
    hard_label_weight: float = 1.0
    temperature: float = 1.0
    weight: float = 1.0

    def spec(self) -> dict[str, Any]:
        """All but the losses as plain data, so that a checkpoint can hold it."""
        plain = {"task": self.task.spec(), "ensemble": dataclasses.asdict(self.ensemble)}
        plain["teachers"] = {name: dataclasses.asdict(source) for name, source in self.teachers.items()}
        rest = ("loss_weights", "loss_teachers", "hard_label_weight", "temperature", "weight")
        return {**plain, **{name: getattr(self, name) for name in rest}}


class _OneTask(DistillationModule):
    """One task of a :class:`MultiTaskModule`: a student whose encoder others have, too."""

    def __init__(self, name: str, student: ModelSource, options: TaskDistillation, whole: Any) -> None:
        super().__init__(
            student,
            options.teachers,
            options.task,
            options.losses,
            options.loss_weights,
            options.loss_teachers,
            options.ensemble,
            options.hard_label_weight,
            options.temperature,
        )
        check_range("weight", options.weight, 0)
        self.name = name
        self.weight = options.weight
        self.logged: dict[str, Any] = {}
        #: Of a checkpoint that is about to be loaded: the weights that all students share.
        self.shared_state: dict[str, Tensor] = {}
        self._log_in_whole = whole.log_dict  # a method: the whole is no submodule of its part

    @property
    def data(self) -> Any:
        """The task's own data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Those of the whole are saved."""

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # named
        """Log ``val/f1`` of this task as ``val/<task>/f1``."""
        self.logged.update(dictionary)
        self._log_in_whole({self._key(key): value for key, value in dictionary.items()}, *args, **kwargs)

    def _key(self, key: str) -> str:
        stage, _, rest = key.partition("/")
        return key if key in _COMMON else f"{stage}/{self.name}/{rest}"

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        prefix = f"student.{self.model.base_model_prefix}."
        super()._check_state({**state, **{prefix + key: value for key, value in self.shared_state.items()}})

    def student_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stem, prefix = f"tasks.{self.name}.student.", self.model.base_model_prefix
        own = {key.removeprefix(stem): value for key, value in state.items() if key.startswith(stem)}
        shared = {key.removeprefix("shared."): value for key, value in state.items() if key.startswith("shared.")}
        return {**own, **{f"{prefix}.{key}": value for key, value in shared.items()}}


class MultiTaskModule(L.LightningModule):
    """One student for several tasks: a shared encoder, and a head and teachers for each task.

    A batch is of one task, which its only key names; its loss is ``weight`` times that of a :class:`DistillationModule`
    of this task alone. Metrics are logged as ``val/<task>/<metric>``, and the mean over the tasks of each one's first
    metric as ``val/mean``. The trainer's data module has to be a
    :class:`~lightning_kd.datamodules.MultiTaskDataModule` with the same names.

    A head, its pooler and its losses' projections are moved by the batches of their own task alone. A checkpoint holds
    the shared weights once. Callbacks of this library work on one task each: see
    :class:`~lightning_kd.callbacks.PerTask`.

    Args:
        student: Where the encoder starts; every task's student is loaded from it.
        tasks: By name, which is letters, digits and underscores, what each task is learned from.
        warmup: Share of the training steps in which the learning rate rises from 0, from 0 to 1. It then falls to 0
            linearly. Without effect if ``lr_scheduler`` is given.
        optimizer: Called with parameter groups.
        lr_scheduler: Called with the optimizer, and stepped after every optimizer step.

    Raises:
        InputError: On a value out of range, a name that cannot be one, or no task; in ``setup``, if data and tasks do
            not have the same names, and whatever a single task would be refused for.

    Example:
        >>> encoder = ModelSource("google-bert/bert-base-uncased")
        >>> module = MultiTaskModule(encoder, {"mrpc": TaskDistillation(), "sst2": TaskDistillation(weight=0.5)})
        >>> list(module.tasks)
        ['mrpc', 'sst2']
    """

    def __init__(
        self,
        student: ModelSource,
        tasks: dict[str, TaskDistillation],
        warmup: float = 0.1,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if not tasks:
            raise expected("tasks", "at least one task by its name", tasks)
        for name in tasks:
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                what = "named by letters, digits and underscores, and by no word of torch's"
                raise expected("tasks", what, name)
        self.student_source = student
        self._optimization = Optimization(optimizer, lr_scheduler, warmup)
        self.tasks = nn.ModuleDict()
        for name, options in tasks.items():
            with _named(name):
                self.tasks[name] = _OneTask(name, student, options, self)
        self._shared: list[str] = []
        self._drawn: set[str] = set()  # since the last optimizer step
        self.register_state_dict_post_hook(_once)
        self.register_load_state_dict_pre_hook(_for_all)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        specs = {name: options.spec() for name, options in tasks.items()}
        keep_plain(self, {"student": dataclasses.asdict(student), "tasks": specs})

    def _each(self) -> Iterator[_OneTask]:
        return iter(cast("list[_OneTask]", list(self.tasks.values())))

    def _of(self, name: str) -> _OneTask:
        return cast(_OneTask, self.tasks[name])

    # ---------------------------------------------------------------------------------------------- building

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse what does not fit, before anything is set up: other names, callbacks of one task. None are added."""
        self._check_names(getattr(self.trainer.datamodule, "tasks", None))  # type: ignore[attr-defined]  # the trainer's
        check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]  # set by the trainer
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by the trainer
            if is_for_one_task(callback):
                kind = type(callback).__name__
                raise InputError(
                    f"{kind} works on one task, but the module has several: give the trainer PerTask({kind}(...))."
                )
        return []

    def setup(self, stage: str) -> None:
        """Load every task's student and teachers, and have the students share their encoder."""
        self.configure_model()
        for one in self._each():
            with _named(one.name):
                one.setup(stage)
                self._check_metric(one)

    def configure_model(self) -> None:
        """Load every task's student, once, and have them share their encoder."""
        if self._trainer is None:  # a checkpoint is loaded, which has the students' shape
            return
        for one in self._each():
            one.trainer = cast(L.Trainer, TaskTrainer(self.trainer, one.name))
            with _named(one.name):
                one.configure_model()
        self._share()

    def _check_names(self, data: Mapping[str, Any] | None) -> None:
        if data is None:
            raise InputError("MultiTaskModule needs the MultiTaskDataModule of lightning_kd.datamodules.")
        for name in self.tasks:
            if name not in data:
                raise expected("model.tasks", f"named as the data are ({', '.join(data)})", name, nearest(name, data))
        if unknown := [name for name in data if name not in self.tasks]:
            what = f"named as the model's tasks are ({', '.join(self.tasks)})"
            raise expected("data.tasks", what, unknown[0], nearest(unknown[0], self.tasks))

    @staticmethod
    def _check_metric(one: _OneTask) -> None:
        data, name = one.data, one.data.metric_names[0]
        if data.has_labels and one.task.metrics([name], data.label_names)[name].higher_is_better is False:
            raise InputError(f"Several tasks are compared by the mean of their metrics, but less {name} is better.")

    def _share(self) -> None:
        self._shared = share_encoder([one.model for one in self._each()])

    def on_fit_start(self) -> None:
        first = next(self._each())
        shared = sum(first.model.base_model.get_parameter(name).numel() for name in self._shared)
        total = count_parameters(self, trainable_only=True)
        rank_zero_info(
            f"Encoder of {', '.join(self.tasks)}: {shared / 1e6:.1f} M parameters; {total / 1e6:.1f} M trained in all"
        )
        for one in self._each():
            rank_zero_info(f"Task {one.name}:")
            one.on_fit_start()

    def on_train_start(self) -> None:
        for one in self._each():
            one.on_train_start()

    def on_train_end(self) -> None:
        for one in self._each():
            one.on_train_end()

    # ---------------------------------------------------------------------------------------------- steps

    def training_step(self, batch: dict[str, dict[str, Any]], batch_idx: int) -> Tensor:
        ((name, own),) = batch.items()
        self._drawn.add(name)
        loss = self._of(name).weight * self._of(name).training_step(own, batch_idx)
        if self.trainer.world_size > 1:  # DDP waits for a gradient of every parameter
            for p in self._idle({name}):
                loss = loss + 0.0 * p.flatten()[0].to(loss.dtype)
        return loss

    def _idle(self, drawn: set[str]) -> list[nn.Parameter]:
        """What belongs to the heads of other tasks than those drawn."""
        used = {id(p) for one in self._each() if one.name in drawn for p in one.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in used]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for p in self._idle(self._drawn):
            p.grad = None  # rather than 0, by which momentum and weight decay would move it
        self._drawn.clear()

    def _at(self, attribute: str, dataloader_idx: int) -> tuple[_OneTask, int]:
        """The task of an evaluation loader, and the loader's number in that task."""
        for one in self._each():
            loaders = len(getattr(one.data, attribute)) if attribute else 1
            if dataloader_idx < loaders:
                return one, dataloader_idx
            dataloader_idx -= loaders
        raise IndexError(dataloader_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        one, number = self._at("evaluation_names", dataloader_idx)
        one.validation_step(batch, batch_idx, number)

    def on_validation_epoch_end(self) -> None:
        for one in self._each():
            one.on_validation_epoch_end()
        self._log_mean("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._at("", dataloader_idx)[0].test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        for one in self._each():
            one.on_test_epoch_end()
        self._log_mean("test")

    def _log_mean(self, stage: str) -> None:
        firsts = [one.logged[f"{stage}/{one.data.metric_names[0]}"] for one in self._each()]
        self.log(f"{stage}/mean", torch.stack(firsts).mean(), prog_bar=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        return self._at("", dataloader_idx)[0].predict_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self._optimization(self, self.trainer)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for one in self._each():
            one._finite.look(one)
        checkpoint["student_configs"] = {one.name: one.model.config.to_dict() for one in self._each()}
        checkpoint["lightning_kd_format"] = FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        configs = checkpoint.get("student_configs")
        if configs is None:
            raise InputError("This checkpoint is not a MultiTaskModule's: it has no configurations of students.")
        if set(configs) != set(self.tasks):
            raise InputError(f"This checkpoint is of the tasks {', '.join(configs)}, not of {', '.join(self.tasks)}.")
        state = checkpoint["state_dict"]
        shared = {key.removeprefix("shared."): value for key, value in state.items() if key.startswith("shared.")}
        for one in self._each():
            one.shared_state = shared
            stem = f"tasks.{one.name}."
            own = {key.removeprefix(stem): value for key, value in state.items() if key.startswith(stem)}
            given = list(own)
            about = {"student_config": configs[one.name], "lightning_kd_format": checkpoint.get("lightning_kd_format")}
            one.on_load_checkpoint({**about, "state_dict": own})
            one.shared_state = {}
            for key in given:
                if key not in own:
                    del state[stem + key]
        self._share()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says of which task an error is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"Task {name!r}: {error}") from error


def _students_keys(module: MultiTaskModule, name: str) -> list[str]:
    """The keys of a shared parameter in all students."""
    return [f"tasks.{one.name}.student.{one.model.base_model_prefix}.{name}" for one in module._each()]


def _once(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in module._shared:
        values = [state.pop(prefix + key) for key in _students_keys(module, name)]
        state[f"{prefix}shared.{name}"] = values[0]


def _for_all(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in module._shared:
        if (value := state.pop(f"{prefix}shared.{name}", None)) is not None:
            state.update({prefix + key: value for key in _students_keys(module, name)})
