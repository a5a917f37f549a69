"""Layers of the student that take the places of the teacher's, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from lightning_kd._checks import InputError, check_range, expected
from lightning_kd.callbacks.schedules import ScheduleCallback
from lightning_kd.labels import label_names_of
from lightning_kd.models import ModelSource, layer_list, load_config, load_trained
from lightning_kd.module import DistillationModule
from lightning_kd.schedules import Schedule

__all__ = ["Theseus"]

#: Types of models whose layers take hidden states first and give hidden states alone.
_KINDS = ("bert", "distilbert", "roberta", "electra")


class Theseus(ScheduleCallback):
    """Progressive module replacing: BERT-of-Theseus (Xu et al. 2020, arXiv 2002.02925).

    The teacher (the paper's predecessor) is cut into as many modules of consecutive layers as the student (the
    successor) has layers. In each training batch ``y_i = r_i * student_i(y) + (1 - r_i) * module_i(y)`` stands for the
    i-th of them, with ``r_i ~ Bernoulli(p)``; the schedule moves p, the replacing rate. The teacher's layers are frozen
    and have no dropout. While p is below 1 the student's embeddings and head, which are the teacher's, are kept, as in
    the paper; with p = 1 this is plain fine-tuning. No distillation loss is needed, and any may be added.

    Validation, checkpoints and exports are of the student alone. All of the student's layers run in every batch, so
    that each has a gradient, 0 where it is not drawn, and losses on attention find what they read; a layer that is not
    drawn costs that much more than in the paper.

    Args:
        schedule: From progress in [0, 1] to a replacing rate from 0 to 1. The paper's curriculum is ``Linear`` from
            about 0.5 to 1.
        teacher: The name of one of the module's teachers, or else a local folder or Hub name; the module's only teacher
            unless given. It is loaded a second time where it teaches, too.
        num_steps: Optimizer steps that the schedule takes, from the first on; then its last value holds. ``None`` for
            the whole training, which leaves no step but the last to plain fine-tuning.
        seed: Of the draws, 0 or more. They depend on it, the epoch and the batch alone, and are those of all processes.

    Raises:
        InputError: If ``num_steps`` or ``seed`` is out of range; before the first batch, if the schedule leaves [0, 1],
            or the layers of the teacher cannot stand in for those of the student.
    """

    def __init__(
        self, schedule: Schedule, teacher: str | None = None, num_steps: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(schedule, num_steps)
        check_range("seed", seed, 0)
        self.teacher = teacher
        self.seed = seed
        #: The replacing rate of the current batch.
        self.rate = 0.0
        #: By the student's layer, whether it is drawn in the current batch.
        self.drawn: list[bool] = []
        self._handles: list[RemovableHandle] = []

    def check(self, value: float) -> None:
        check_range("schedule", value, 0, 1)

    def write(self, module: Any, value: float) -> None:
        self.rate = value

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        student, source = pl_module.model, self._source(pl_module)
        _check_shapes(student.config, load_config(source, "teacher"), str(source.path))
        teacher = load_trained(source, pl_module.task.auto_class, "teacher", label_names_of(student.config))
        own = _layers(student)
        parameter = next(own.parameters())
        cast(nn.Module, teacher).to(dtype=parameter.dtype)  # of a trainer's precision, bf16-true
        if trainer.ckpt_path is None:  # what is resumed may be past p = 1
            _check_rest(student, teacher, str(source.path))
        layers = _layers(teacher).to(parameter.device)
        size = len(layers) // len(own)
        self.drawn = [False] * len(own)
        for i, layer in enumerate(own):
            module = list(layers[i * size : (i + 1) * size])
            # in front of transformers' own hooks, which keep a layer's output for the losses on hidden states
            self._handles.append(layer.register_forward_hook(self._stand_in(i, module), with_kwargs=True, prepend=True))
        rank_zero_info(f"Each of the student's layers stands for {size} of {source.path}")

    def _source(self, module: DistillationModule) -> ModelSource:
        """Where the teacher is, loaded as the student was: both read one attention mask, in the form of one."""
        sources = module.teacher_sources
        if self.teacher is None and len(sources) != 1:
            what = "a local folder or a Hub name" if not sources else f"one of {', '.join(sources)}"
            raise expected("teacher", what, "nothing", f"The module has {len(sources) or 'no'} teachers.")
        given = next(iter(sources)) if self.teacher is None else self.teacher
        student = module.student_source
        return replace(sources.get(given, ModelSource(given)), dtype=student.dtype, attention=student.attention)

    def _stand_in(self, i: int, module: Sequence[nn.Module]) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if self.drawn[i] or not layer.training:
                return output
            states = args[0]
            for each in module:
                states = each(states, *args[1:], **kwargs)
            return states + 0 * output  # DDP waits for a gradient of every parameter

        return hook

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        generator = np.random.default_rng((self.seed, trainer.current_epoch, batch_idx, 1))  # 1: not the ensemble's
        self.drawn = (generator.random(len(self.drawn)) < self.rate).tolist()
        pl_module.log("train/replacing_rate", self.rate)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self.rate < 1:
            for _, parameter in _rest(cast(DistillationModule, pl_module).model):
                parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []  # and with them the teacher's layers


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    return cast(nn.ModuleList, model.get_submodule(layer_list(model, "teacher")))


def _rest(model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are in no layer: embeddings, pooler and head."""
    stem = layer_list(model, "teacher")
    return [(name, each) for name, each in model.named_parameters() if not name.startswith(f"{stem}.")]


def _check_shapes(student: PretrainedConfig, teacher: PretrainedConfig, path: str) -> None:
    for who, config in (("the student", student), (path, teacher)):
        if config.model_type not in _KINDS:
            raise InputError(
                f"Theseus exchanges layers of {', '.join(_KINDS)}, but {who} is of the type "
                f"{config.model_type}: use a distillation loss instead."
            )
    for name, what in (("model_type", "type"), ("hidden_size", "width"), ("vocab_size", "size of vocabulary")):
        own, other = getattr(student, name), getattr(teacher, name)
        if own != other:
            way_out = f"That one has {other}: start the student from its teacher, with keep_layers."
            raise expected("teacher", f"a model of the student's {what}, {own}", path, way_out)
    depth, layers = student.num_hidden_layers, teacher.num_hidden_layers
    if layers % depth:
        way_out = f"That one has {layers}, and each of the student's stands for the same number of them."
        raise expected("teacher", f"a model with a multiple of {depth} layers", path, way_out)


def _check_rest(student: PreTrainedModel, teacher: PreTrainedModel, path: str) -> None:
    others = dict(_rest(teacher))
    for name, own in _rest(student):
        if name not in others or not torch.equal(own.detach().cpu(), others[name]):
            raise InputError(
                f"Theseus starts with the teacher's embeddings and head, but {name} of the student is not that of "
                f"{path}: set model.student.path to it, and keep_layers."
            )
