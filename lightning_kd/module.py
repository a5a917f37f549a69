"""The student, its teachers, and what one step does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from transformers import AutoConfig, PreTrainedModel

from lightning_kd._checks import InputError, check_positive, check_range, expected
from lightning_kd.compatibility import (
    check_callbacks,
    check_labels,
    check_loss,
    check_loss_teachers,
    check_state,
    check_strategy,
    check_task,
    check_terms,
)
from lightning_kd.ensemble import Ensemble
from lightning_kd.features import FeatureCapture
from lightning_kd.finite import FiniteCheck
from lightning_kd.folders import FORMAT, check_format
from lightning_kd.hyperparameters import keep_plain
from lightning_kd.labels import label_names_of
from lightning_kd.logit_cache import CachedLogits
from lightning_kd.losses import DistillationLoss
from lightning_kd.losses.base import weighted
from lightning_kd.models import ModelSource, count_parameters, shape_in_words
from lightning_kd.optim import AdamW, Optimization, learning_rates
from lightning_kd.outputs import Needs
from lightning_kd.student import build_student, is_labelled
from lightning_kd.tasks import SequenceClassification, Task
from lightning_kd.teachers import OpenCache, Teachers

__all__ = ["DistillationModule"]


class DistillationModule(L.LightningModule):
    """A student, the frozen teachers that it learns from, and the losses between them.

    The training loss is ``hard_label_weight * hard + sum(loss_weights[n] * losses[n])``. Without a teacher this is
    plain fine-tuning, which is how a teacher is made.

    Models are loaded in ``setup``, when the data's labels are known: the number and names of labels, the vocabulary
    and the metrics follow from the trainer's data module. Teachers are loaded only to fit, are kept out of
    checkpoints, and do not take part in data-parallel wrapping.

    Args:
        student: Where the student starts.
        teachers: By name. A loss learns from all of them together, and from one alone that ``loss_teachers`` names.
        task: What the models do.
        losses: Distillation losses by name.
        loss_weights: Weights of the losses by name; 1 where a name is left out.
        loss_teachers: By the loss's name, the one teacher that it learns from. With several teachers every loss that
            reads more than logits needs one.
        ensemble: How the logits of several teachers become one.
        hard_label_weight: Weight of the supervised loss, 0 or more.
        temperature: Divides the logits of teacher and student in losses on distributions; above 0.
        warmup: Share of the training steps in which the learning rate rises from 0, from 0 to 1. It then falls to 0
            linearly. Without effect if ``lr_scheduler`` is given.
        optimizer: Called with parameter groups.
        lr_scheduler: Called with the optimizer, and stepped after every optimizer step.
        compile: Compile student and teachers to fit, by ``torch.compile``: faster on a GPU after a minute or more.

    Raises:
        InputError: On a value out of range; in ``setup("fit")`` on names, layers, labels and vocabularies that do
            not fit each other.

    Example:
        >>> module = DistillationModule(student=ModelSource("google-bert/bert-base-uncased"), temperature=4.0)
        >>> module.temperature
        4.0
    """

    student: PreTrainedModel | None

    def __init__(
        self,
        student: ModelSource,
        teachers: dict[str, ModelSource] | None = None,
        task: Task = SequenceClassification(),  # noqa: B008  # frozen
        losses: dict[str, DistillationLoss] | None = None,
        loss_weights: dict[str, float] | None = None,
        loss_teachers: dict[str, str] | None = None,
        ensemble: Ensemble = Ensemble(),  # noqa: B008  # frozen
        hard_label_weight: float = 1.0,
        temperature: float = 1.0,
        warmup: float = 0.1,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_range("hard_label_weight", hard_label_weight, 0)
        self.student_source = student
        self.teacher_sources = dict(teachers or {})
        self.task = task
        self.temperature = temperature
        self.hard_label_weight = hard_label_weight
        self.loss_weights: dict[str, float] = {}
        self._optimization = Optimization(optimizer, lr_scheduler, warmup)
        self._compiles = compile
        self._given_weights = dict(loss_weights or {})
        self.loss_teachers = dict(loss_teachers or {})
        self.ensemble = ensemble
        self.losses = nn.ModuleDict()
        for name, loss in (losses or {}).items():
            self.add_loss(name, loss)
        self.student = None
        self.metrics = nn.ModuleDict()
        self._teachers = Teachers(self.teacher_sources, task, ensemble, self.loss_teachers)  # no submodule: no DDP
        self._open_cache: OpenCache | None = None
        self._built: set[str] = set()
        self._capture: FeatureCapture | None = None  # the student's
        self._finite = FiniteCheck()
        self.save_hyperparameters(ignore=["losses", "optimizer", "lr_scheduler"])
        sources = {name: asdict(source) for name, source in self.teacher_sources.items()}
        plain = {"student": asdict(student), "teachers": sources, "ensemble": asdict(ensemble), "task": task.spec()}
        keep_plain(self, plain)

    # ---------------------------------------------------------------------------------------------- building

    def add_loss(self, name: str, loss: DistillationLoss, weight: float = 1.0) -> None:
        """Add a distillation loss; before ``setup("fit")``, as callbacks do in theirs.

        Args:
            name: In ``loss_weights`` and in the log.
            loss: The loss.
            weight: 0 or more; ``loss_weights`` overrides it.

        Raises:
            InputError: If the name is taken or cannot be one.
        """
        if name in self.losses:
            raise expected("name", "a name that no other loss has", name)
        if not name.isidentifier() or name == "hard":
            raise expected("name", "letters, digits and underscores, and not 'hard'", name)
        weight = self._given_weights.get(name, weight)
        check_range(f"loss_weights.{name}", weight, 0)
        self.losses[name] = loss
        self.loss_weights[name] = weight

    @property
    def teachers(self) -> dict[str, PreTrainedModel]:
        """The loaded teachers by name; empty outside of ``fit``, and without those whose logits are cached."""
        return self._teachers.models

    def use_cache(self, open_cache: OpenCache) -> None:
        """Take the logits of teachers from a cache; before ``setup("fit")``, as callbacks do in theirs.

        Args:
            open_cache: Asked for each teacher of which the losses read nothing but logits; where it has none yet, the
                teacher is loaded, and :meth:`replace_teacher` may follow in ``on_fit_start``.
        """
        self._open_cache = open_cache

    def replace_teacher(self, name: str, cached: CachedLogits) -> None:
        """Go on with the logits that a teacher has given for all training rows; the model is forgotten."""
        self._teachers.use(name, cached)

    @property
    def model(self) -> PreTrainedModel:
        """The student, once it is loaded."""
        if self.student is None:
            raise RuntimeError("The student is loaded in setup: run the trainer, or load a checkpoint, first.")
        return self.student

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse callbacks that cannot work here; none are added."""
        check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]  # set by the trainer
        return []

    def setup(self, stage: str) -> None:
        """Load the models and check that everything fits, before the first batch."""
        check_strategy(type(self.trainer.strategy))
        self.configure_model()
        self.task = self.task.with_config(self.model.config)
        self.task.check(self.trainer.datamodule)  # type: ignore[attr-defined]  # set by the trainer
        if stage == "fit":
            self._build_losses_and_teachers()
            self.model.train()  # from_pretrained leaves it in eval mode, and the trainer does not touch it
        if stage == "predict":
            return
        label_names = label_names_of(self.model.config)
        names = list(self._data("metric_names", ["accuracy"]))
        if stage in ("validate", "test"):
            names += [name for name in self.task.detailed_metrics(label_names) if name not in names]
        for loader_name in self._data("evaluation_names", [""]):
            metrics = self.task.metrics(names, label_names)
            # in double precision a sum does not depend on which process had which rows
            metrics.add_metrics({"loss": MeanMetric().set_dtype(torch.float64)})
            self.metrics[f"metrics_{loader_name}"] = metrics

    def configure_model(self) -> None:
        """Load the student and make the projections of the losses, once; what averages the weights needs them early."""
        if self._trainer is None:  # a checkpoint is loaded, which has the student's shape
            return
        fits = self.trainer.state.fn == TrainerFn.FITTING
        data: Any = getattr(self.trainer, "datamodule", None)
        if is_labelled(data):
            check_task(self.task, data)
        if self.student is None:
            whole = not (fits and self.trainer.max_epochs != 0) and self.trainer.ckpt_path is None
            self.student = build_student(self.student_source, self.task, data, whole)
        elif is_labelled(data):
            check_labels("the student", self.student.config, data.label_names, in_order=True)
        if fits:
            self._teachers.load_configs()
            for name, loss in self.losses.items():
                among = [self._teachers.configs[t] for t in self._teachers.of(name) if t in self._teachers.configs]
                if among and name not in self._built:  # once: a second fit goes on with the projections of the first
                    cast(DistillationLoss, loss).build(self.model.config, among[0])
                    self._built.add(name)

    def _data(self, attribute: str, default: Any) -> Any:
        return getattr(self.trainer.datamodule, attribute, default)  # type: ignore[attr-defined]  # set by the trainer

    def _build_losses_and_teachers(self) -> None:
        names = list(self.teacher_sources)
        check_terms(list(self.losses), names, self._given_weights, self._data("num_unlabelled", 0))
        check_loss_teachers(self.loss_teachers, self.losses, self.teacher_sources)
        has_classes = self.model.config.num_labels != 1 and not self.task.multi_label
        self.ensemble.check(names, has_classes)
        self._teachers.task = self.task
        foreign = self._data("teacher_tokenizers", {})
        self._teachers.foreign = frozenset(foreign)
        needs, student_needs = dict.fromkeys(names, Needs()), Needs()
        for name, module in self.losses.items():
            loss = cast(DistillationLoss, module)
            among = self._teachers.of(name)
            check_loss(name, loss, self.task, len(among), any(teacher in foreign for teacher in among))
            student_needs |= loss.needs("student")
            for teacher in among:
                needs[teacher] |= loss.needs("teacher")
        if self._open_cache is not None and (live := [name for name in names if needs[name]]):
            rank_zero_info(f"Losses read more than the logits of {', '.join(live)}: not cached, run with every batch")
        label_names = self._data("label_names", label_names_of(self.model.config))
        self._teachers.load(needs, self._open_cache, label_names)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer
        if hasattr(data, "on_train_batch"):
            data.on_train_batch = None if self._open_cache is None else self._teachers.add_cached
        self._open_cache = None  # that of one fit
        self._teachers.fit_to(data, label_names)
        if self._capture is not None:
            self._capture.remove()
        self._capture = FeatureCapture(self.model, student_needs, self.task.logits)

    def on_fit_start(self) -> None:
        parts = self._teachers.in_words()
        shape = shape_in_words(self.model.config, self.model)
        trained = f", {count_parameters(self, trainable_only=True) / 1e6:.1f} M trained"
        parts.append(f"student: {shape}{trained if self.trainer.max_epochs != 0 else ''}")
        for name, loss in self.losses.items():
            if pairs := cast(DistillationLoss, loss).describe():
                parts.append(f"{name}: layers {pairs}")
        parts.extend(f"{name}: {rows:,} rows" for name, rows in self._data("sizes", {}).items())
        rank_zero_info(" | ".join(parts))

    def on_train_start(self) -> None:
        self._teachers.to(self.device)
        if self._compiles:
            for model in (self.model, *self.teachers.values()):
                model.compile(dynamic=True)  # in place: the names of the weights stay; batches differ in length

    def on_train_end(self) -> None:
        for model in (self.model, *self.teachers.values()):
            model._compiled_call_impl = None  # what takes the student apart wants the plain one; torch has no other way
        self._teachers.release()  # before the student is copied, exported or quantized
        if self._capture is not None:
            self._capture.remove()

    # ---------------------------------------------------------------------------------------------- steps

    def _predict(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.task.logits(self.model(**inputs))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        inputs = self.task.model_inputs(batch)
        assert self._capture is not None  # made in setup
        student = self._capture(inputs)
        hard = self.task.hard_label_loss(student.logits, batch)
        terms: dict[str, Tensor] = {}
        place = self.trainer.current_epoch, batch_idx
        if self.losses:
            seen = self._teachers.loss_inputs(list(self.losses), student, batch, inputs, self.temperature, place)
            terms = {name: loss(seen[name]) for name, loss in self.losses.items()}
        total = weighted([(self.hard_label_weight, hard), *((self.loss_weights[name], terms[name]) for name in terms)])
        losses = {"hard": hard, **terms, "train/loss": total}
        self._finite.add(losses, self._teachers.take_logits(), batch.get("index"), (*place, self.trainer.global_step))
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer's connector
        if (self.trainer.global_step + 1) % max(1, every) == 0:
            self._finite.look()
            self._log_step(losses)
        return total

    def _log_step(self, losses: Mapping[str, Tensor]) -> None:
        names = [name if name == "train/loss" else f"train/loss/{name}" for name in losses]
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values)  # of the batch of all processes
        # On the CPU, in one copy: the trainer reads them again after every batch, and that would be to wait for a GPU.
        self.log_dict(dict(zip(names, values.cpu(), strict=True)), prog_bar=True)
        weights = {**self.loss_weights, "hard": self.hard_label_weight}
        settings = {f"train/weight/{name}": weight for name, weight in weights.items()}
        settings |= {"train/temperature": self.temperature} if self.losses else {}
        settings |= learning_rates(self.trainer.optimizers[0])
        self.log_dict({name: torch.tensor(float(value)) for name, value in settings.items()})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self._predict(self.task.model_inputs(batch))
        metrics = cast(MetricCollection, list(self.metrics.values())[dataloader_idx])
        loss = self.task.hard_label_loss(logits, batch)
        for name, metric in metrics.items():
            if name == "loss":
                counted = sum(mask.sum() for mask in self.task.logit_masks(batch).values())
                metric.update(loss, weight=counted)
            else:
                metric.update(*self.task.outcomes(logits, batch))

    test_step = validation_step

    def _log_metrics(self, stage: str) -> None:
        for loader_name, module in self.metrics.items():
            metrics = cast(MetricCollection, module)
            suffix = loader_name.removeprefix("metrics_")
            values = {name: value.float() for name, value in metrics.compute().items()}
            metrics.reset()
            prefix = f"{stage}_{suffix}" if suffix else stage
            self.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, prog_bar=True)
            if stage == "test":
                break

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        logits = self._predict(self.task.model_inputs(batch))
        records = self.task.records(logits, batch, self.model.config)
        return [{"index": i, **r} for i, r in zip(batch["index"].tolist(), records, strict=True)]

    def configure_optimizers(self) -> Any:
        return self._optimization(self, self.trainer)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def student_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's own state dict, out of that of a checkpoint."""
        prefix = "student."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite.look(self)
        checkpoint["student_config"] = self.model.config.to_dict()
        checkpoint["lightning_kd_format"] = FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "student_config" not in checkpoint:
            raise InputError("This checkpoint is not a DistillationModule's: it has no student configuration.")
        check_format("ckpt_path", "the checkpoint", checkpoint.get("lightning_kd_format"))
        config = AutoConfig.for_model(**checkpoint["student_config"])
        if self.student is None or self.trainer.predicting:  # nothing but the file is needed: data may have no labels
            self.student = self.task.auto_class.from_config(config)
        if self._capture is None:  # not fitting: projections of losses have no place and no use
            own = self.state_dict().keys()
            state = checkpoint["state_dict"]
            for key in [key for key in state if key.startswith("losses.") and key not in own]:
                del state[key]
        check_labels("the checkpoint", config, label_names_of(self.model.config), in_order=True)
        self._check_state(checkpoint["state_dict"])

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        check_state(state, self.state_dict())
