"""The student, its teachers, and what one step does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from transformers import AutoConfig, PreTrainedModel, get_linear_schedule_with_warmup

from lightning_kd._checks import InputError, check_positive, check_range, expected, nearest
from lightning_kd.compatibility import check_labels, check_loss, check_task, check_vocabulary, label_names_of
from lightning_kd.embeddings import start_embeddings
from lightning_kd.features import FeatureCapture
from lightning_kd.losses import DistillationLoss
from lightning_kd.models import ModelSource, count_parameters, load_config, load_model, load_trained
from lightning_kd.optim import AdamW, parameter_groups
from lightning_kd.outputs import Features, LossInputs, Needs
from lightning_kd.tasks import SequenceClassification, Task

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
        teachers: By name. The mean of their logits is what the student learns; losses on hidden states need
            exactly one teacher.
        task: What the models do.
        losses: Distillation losses by name.
        loss_weights: Weights of the losses by name; 1 where a name is left out.
        hard_label_weight: Weight of the supervised loss, 0 or more.
        temperature: Divides the logits of teacher and student in losses on distributions; above 0.
        warmup: Share of the training steps in which the learning rate rises from 0, from 0 to 1. It then falls to 0
            linearly. Without effect if ``lr_scheduler`` is given.
        optimizer: Called with parameter groups.
        lr_scheduler: Called with the optimizer, and stepped after every optimizer step.

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
        hard_label_weight: float = 1.0,
        temperature: float = 1.0,
        warmup: float = 0.1,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_range("warmup", warmup, 0, 1)
        check_range("hard_label_weight", hard_label_weight, 0)
        self.student_source = student
        self.teacher_sources = dict(teachers or {})
        self.task = task
        self.temperature = temperature
        self.hard_label_weight = hard_label_weight
        self.loss_weights: dict[str, float] = {}
        self.warmup = warmup
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._given_weights = dict(loss_weights or {})
        self.losses = nn.ModuleDict()
        for name, loss in (losses or {}).items():
            self.add_loss(name, loss)
        self.student = None
        self.metrics = nn.ModuleDict()
        self._teachers: dict[str, PreTrainedModel] = {}  # a plain dict: no submodule, so no checkpoint and no DDP
        self._built: set[str] = set()
        self._captures: dict[str, FeatureCapture] = {}  # by teacher; the student's under ""
        self.save_hyperparameters(ignore=["losses", "optimizer", "lr_scheduler"])
        if "_instantiator" not in self.hparams:  # made by hand rather than by the command line: keep it plain, too
            self.hparams["student"] = dataclasses.asdict(student)
            self.hparams["teachers"] = {name: dataclasses.asdict(source) for name, source in (teachers or {}).items()}
            self.hparams["task"] = task.spec()
            self.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
            self._hparams_initial = dict(self.hparams)

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
        """The loaded teachers by name; empty outside of ``fit``."""
        return self._teachers

    @property
    def model(self) -> PreTrainedModel:
        """The student, once it is loaded."""
        if self.student is None:
            raise RuntimeError("The student is loaded in setup: run the trainer, or load a checkpoint, first.")
        return self.student

    def setup(self, stage: str) -> None:
        """Load the models and check that everything fits, before the first batch."""
        self._build_student()
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
            metrics.add_metrics({"loss": MeanMetric()})
            self.metrics[f"metrics_{loader_name}"] = metrics

    def _data(self, attribute: str, default: Any) -> Any:
        return getattr(self.trainer.datamodule, attribute, default)  # type: ignore[attr-defined]  # set by the trainer

    def _build_student(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        has_data = getattr(data, "has_labels", hasattr(data, "label_names"))
        label_names = self._data("label_names", None)
        if has_data:
            check_task(self.task, self._data("multi_label", False))
        if self.student is not None:
            if has_data:
                check_labels("the student", self.student.config, label_names)
            return
        source = self.student_source
        config = load_config(source, "model.student")
        if has_data:
            if "num_labels" in source.config:
                check_labels("model.student.config", config, label_names)
            self.task.configure(config, label_names)
        tokenizer = self._data("tokenizer", None)
        if tokenizer is not None:
            if source.from_scratch and "vocab_size" not in source.config:
                config.vocab_size = len(tokenizer)
                config.pad_token_id = tokenizer.pad_token_id
            check_vocabulary("model.student", source, config, tokenizer)
        self.student = load_model(source, self.task.auto_class, config, "model.student")
        start_embeddings(self.student, source, tokenizer)

    def _build_losses_and_teachers(self) -> None:
        unknown = [name for name in self._given_weights if name not in self.losses]
        if unknown:
            valid = ", ".join(self.losses) or "none: this module has no losses"
            raise expected("loss_weights", f"names of losses ({valid})", unknown[0], nearest(unknown[0], self.losses))
        if self.losses and not self.teacher_sources:
            raise InputError(
                f"The losses {', '.join(self.losses)} need a teacher, but there is none: add one to `teachers`."
            )
        unlabelled = self._data("num_unlabelled", 0)
        if unlabelled and not self.teacher_sources:
            raise InputError(
                f"{unlabelled:,} training rows have no label, and there is no teacher to learn from on them: add one "
                "to `teachers`, or leave these rows out of the training file."
            )
        if self.teacher_sources and not self.losses:
            raise InputError(
                "There is a teacher, but no loss that learns from it: "
                "add one to `losses`, or a DistillationLossCallback."
            )
        tokenizer = self._data("tokenizer", None)
        for name, source in self.teacher_sources.items():
            if name not in self._teachers:
                teacher = load_trained(source, self.task.auto_class, f"model.teachers.{name}")
                label_names = self._data("label_names", label_names_of(self.model.config))
                check_labels(f"the teacher {name!r}", teacher.config, label_names)
                self.task.check_teacher(name, teacher.config)
                own = self._data("teacher_tokenizers", {}).get(name, tokenizer)
                if own is not None:
                    check_vocabulary(f"model.teachers.{name}", source, teacher.config, own)
                self._teachers[name] = teacher
        student_needs, teacher_needs = Needs(), Needs()
        for name, module in self.losses.items():
            loss = cast(DistillationLoss, module)
            if name not in self._built:  # once: a second fit goes on with the projections of the first
                loss.build(self.model.config, next(iter(self._teachers.values())).config)
                self._built.add(name)
            check_loss(name, loss, self.task, len(self._teachers), bool(self._data("teacher_tokenizers", {})))
            student_needs |= loss.needs("student")
            teacher_needs |= loss.needs("teacher")
        self._release()
        logits = self.task.logits
        self._captures = {
            name: FeatureCapture(teacher, teacher_needs, logits, "teacher") for name, teacher in self._teachers.items()
        }
        self._captures[""] = FeatureCapture(self.model, student_needs, logits)

    def _release(self) -> None:
        for capture in self._captures.values():
            capture.remove()
        self._captures = {}

    def on_fit_start(self) -> None:
        self._move_teachers()
        parts = []
        for name, teacher in self._teachers.items():
            title = "teacher" if name == "teacher" else f"teacher {name}"
            parts.append(f"{title}: {_describe(teacher)}, frozen")
        trained = count_parameters(self, trainable_only=True)
        parts.append(f"student: {_describe(self.model)}, {trained / 1e6:.1f} M trained")
        for name, loss in self.losses.items():
            if pairs := cast(DistillationLoss, loss).describe():
                parts.append(f"{name}: layers {pairs}")
        parts.extend(f"{name}: {rows:,} rows" for name, rows in self._data("sizes", {}).items())
        rank_zero_info(" | ".join(parts))

    def on_train_end(self) -> None:
        self._release()  # before the student is copied, exported or quantized

    def on_fit_end(self) -> None:
        self._move_teachers()

    def _move_teachers(self) -> None:
        for teacher in self._teachers.values():
            cast(nn.Module, teacher).to(self.device)

    # ---------------------------------------------------------------------------------------------- steps

    def _predict(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.task.logits(self.model(**inputs))

    @torch.no_grad()  # not inference_mode: its tensors break the backward pass of a projection
    def _teach(self, batch: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Features:
        each = []
        for name in self._teachers:
            own = batch.get("teachers", {}).get(name)
            features = self._captures[name](inputs if own is None else self.task.model_inputs(own))
            each.append(features if own is None else self._transferred(features, own, batch))
        if len(each) == 1:
            return each[0]
        names = each[0].logits
        return Features(logits={name: torch.stack([f.logits[name].float() for f in each]).mean(0) for name in names})

    def _transferred(self, features: Features, own: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Features:
        """What a teacher gave that reads another vocabulary, where the student reads the same."""
        logits = {name: self.task.transfer(name, values, own, batch) for name, values in features.logits.items()}
        states = features.hidden_states
        if self.task.transfers_tokens:
            states = {layer: self.task.transfer("hidden_states", v, own, batch) for layer, v in states.items()}
        return Features(logits, states)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        inputs = self.task.model_inputs(batch)
        student = self._captures[""](inputs)
        hard = self.task.hard_label_loss(student.logits, batch)
        total = self.hard_label_weight * hard
        terms: dict[str, Tensor] = {}
        if self.losses:
            own = next(iter(batch.get("teachers", {}).values()), None)
            token_mask, teacher_token_mask = self.task.token_masks(batch, own)
            loss_inputs = LossInputs(
                student=student,
                teacher=self._teach(batch, inputs),
                token_mask=token_mask,
                teacher_token_mask=teacher_token_mask,
                logit_masks=self.task.logit_masks(batch),
                temperature=self.temperature,
                hard_labels=self.task.hard_labels(batch),
                class_masks=self.task.class_masks(batch),
            )
            for name, loss in self.losses.items():
                terms[name] = loss(loss_inputs)
                total = total + self.loss_weights[name] * terms[name]  # a weight of 0 is multiplied: DDP needs the path
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the trainer's connector
        if (self.trainer.global_step + 1) % max(1, every) == 0:
            self._log_step(total, hard, terms)
        return total

    def _log_step(self, total: Tensor, hard: Tensor, terms: Mapping[str, Tensor]) -> None:
        losses = {"train/loss": total, "train/loss/hard": hard}
        losses.update({f"train/loss/{name}": value for name, value in terms.items()})
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        settings = {f"train/weight/{name}": weight for name, weight in self.loss_weights.items()}
        settings["train/weight/hard"] = self.hard_label_weight
        if terms:
            settings["train/temperature"] = self.temperature
        settings["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(settings)

    def _evaluate(self, batch: dict[str, Tensor], dataloader_idx: int) -> None:
        logits = self._predict(self.task.model_inputs(batch))
        metrics = cast(MetricCollection, list(self.metrics.values())[dataloader_idx])
        loss = self.task.hard_label_loss(logits, batch)
        for name, metric in metrics.items():
            if name == "loss":
                counted = sum(mask.sum() for mask in self.task.logit_masks(batch).values())
                metric.update(loss, weight=counted)
            else:
                metric.update(*self.task.outcomes(logits, batch))

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

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        logits = self._predict(self.task.model_inputs(batch))
        records = self.task.records(logits, batch, self.model.config)
        return [{"index": i, **r} for i, r in zip(batch["index"].tolist(), records, strict=True)]

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(parameter_groups(self))
        if self._lr_scheduler is not None:
            scheduler = self._lr_scheduler(optimizer)
        else:
            steps = self.trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):
                raise InputError(
                    "The learning rate falls to 0 over the whole training, so its length must be known: "
                    "set trainer.max_epochs or trainer.max_steps, or give an lr_scheduler."
                )
            scheduler = get_linear_schedule_with_warmup(optimizer, round(self.warmup * steps), int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["student_config"] = self.model.config.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "student_config" not in checkpoint:
            raise InputError("This checkpoint is not a DistillationModule's: it has no student configuration.")
        if self.student is None or self.trainer.predicting:  # nothing but the file is needed: data may have no labels
            config = AutoConfig.for_model(**checkpoint["student_config"])
            self.student = self.task.auto_class.from_config(config)
        if not self._teachers:  # not fitting: projections of losses have no place and no use
            own = self.state_dict().keys()
            state = checkpoint["state_dict"]
            for key in [key for key in state if key.startswith("losses.") and key not in own]:
                del state[key]


def _describe(model: PreTrainedModel) -> str:
    layers = getattr(model.config, "num_hidden_layers", "?")
    return f"{model.config.model_type}, {layers} layers, {count_parameters(model) / 1e6:.1f} M parameters"
