"""The frozen teachers of a fit: live or from a cache, each asked only for what the losses read of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightning_kd.compatibility import check_labels, check_length, check_vocabulary
from lightning_kd.ensemble import Ensemble
from lightning_kd.features import FeatureCapture
from lightning_kd.logit_cache import CachedLogits
from lightning_kd.models import ModelSource, load_config, load_trained, pad_with, shape_in_words
from lightning_kd.outputs import Features, LossInputs, Needs
from lightning_kd.tasks import Task

__all__ = ["OpenCache", "Teachers"]

#: By a teacher's name: its logits of all training rows, or None where they have to be computed yet.
OpenCache = Callable[[str], CachedLogits | None]


class Teachers:
    """The teachers by name.

    Args:
        sources: Where each comes from.
        task: What they do.
        ensemble: How several become one.
        loss_teachers: By the loss's name, the one that it learns from; all together where a name is left out.
    """

    def __init__(
        self, sources: Mapping[str, ModelSource], task: Task, ensemble: Ensemble, loss_teachers: Mapping[str, str]
    ) -> None:
        self.sources = dict(sources)
        self.task = task
        self.ensemble = ensemble
        self.loss_teachers = loss_teachers
        self.configs: dict[str, PretrainedConfig] = {}
        #: Those that read another vocabulary than the student.
        self.foreign: frozenset[str] = frozenset()
        #: Those that run; without the ones whose logits come from a cache.
        self.models: dict[str, PreTrainedModel] = {}
        self._cached: dict[str, CachedLogits] = {}
        self._captures: dict[str, FeatureCapture] = {}
        self._logits: dict[str, Mapping[str, Tensor]] = {}

    def of(self, loss: str) -> list[str]:
        """The teachers that a loss learns from: one alone, or all together."""
        return [self.loss_teachers[loss]] if loss in self.loss_teachers else list(self.sources)

    def in_words(self) -> list[str]:
        """What each is, and whether it runs."""
        parts = []
        for name, config in self.configs.items():
            title = "teacher" if name == "teacher" else f"teacher {name}"
            model = self.models.get(name)
            parts.append(f"{title}: {shape_in_words(config, model)}, {'cached' if model is None else 'frozen'}")
        return parts

    def load_configs(self) -> None:
        """What is known of the teachers without their weights."""
        for name, source in self.sources.items():
            self.configs.setdefault(name, load_config(source, f"model.teachers.{name}"))

    def load(self, needs: Mapping[str, Needs], open_cache: OpenCache | None, label_names: Sequence[str] | None) -> None:
        """Load what has to run, and get the rest out of a cache.

        Args:
            needs: By the teacher's name, what is read of it beside the logits.
            open_cache: Asked for every teacher of which nothing else is read.
            label_names: The data's, in whose order the logits are to be.
        """
        self._cached = {}
        for name, source in self.sources.items():
            cached = open_cache(name) if open_cache is not None and not needs[name] else None
            if cached is not None:
                self._cached[name] = cached
                self.models.pop(name, None)
            elif name not in self.models:
                role = f"model.teachers.{name}"
                self.models[name] = load_trained(source, self.task.auto_class, role, label_names)
        self.release()
        logits = self.task.logits
        self._captures = {n: FeatureCapture(model, needs[n], logits, "teacher") for n, model in self.models.items()}

    def fit_to(self, data: Any, label_names: list[str] | None) -> None:
        """Check that each can teach on the data, and tell it what its rows are padded with.

        Args:
            data: The data module, or ``None``.
            label_names: The data's.

        Raises:
            InputError: If labels, variant of the task, vocabulary or lengths do not fit.
        """
        same = getattr(data, "tokenizer", None)
        pairs = len(getattr(data, "text_columns", ())) > 1
        for name, source in self.sources.items():
            config, role = self.configs[name], f"model.teachers.{name}"
            tokenizer = data.tokenizer_of(name) if hasattr(data, "tokenizer_of") else same
            if name in self.models:
                check_length(role, self.models[name], data, name)
                pad_with(self.models[name], tokenizer)
            check_labels(f"the teacher {name!r}", config, label_names)
            self.task.check_teacher(name, config)
            if tokenizer is not None:
                check_vocabulary(role, source, config, tokenizer, pairs)

    def use(self, name: str, cached: CachedLogits) -> None:
        """Go on with a teacher's cached logits, and forget the model."""
        self._captures.pop(name).remove()
        del self.models[name]
        self._cached[name] = cached

    def release(self) -> None:
        """Take the hooks off."""
        for capture in self._captures.values():
            capture.remove()

    def to(self, device: torch.device) -> None:
        """Move the models; they are no submodules of what the trainer moves."""
        for model in self.models.values():
            cast(nn.Module, model).to(device)

    # ---------------------------------------------------------------------------------------------- batches

    def add_cached(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch on the CPU with what is cached of its rows, under ``cached`` by the teacher's name."""
        found = {}
        for name, cached in self._cached.items():
            own = batch.get("teachers", {}).get(name, batch)
            found[name] = cached(batch["index"], own["attention_mask"])
        return {**batch, "cached": found}

    def loss_inputs(
        self,
        losses: Sequence[str],
        student: Features,
        batch: Mapping[str, Any],
        inputs: Mapping[str, Tensor],
        temperature: float,
        place: tuple[int, int],
    ) -> dict[str, LossInputs]:
        """What each loss may look at, by its name; every teacher runs once at most.

        Args:
            losses: Their names.
            student: The student's features.
            batch: From :meth:`add_cached`.
            inputs: The student's inputs, which are those of a teacher that reads the same vocabulary.
            temperature: Above 0.
            place: The epoch and the batch's number in it.
        """
        together = tuple(self.ensemble.asked(list(self.sources), *place))
        among = {loss: tuple(self.of(loss)) if loss in self.loss_teachers else together for loss in losses}
        names = dict.fromkeys(name for each in among.values() for name in each)
        features = {name: self._features(name, batch, inputs) for name in names}
        self._logits = {name: each.logits for name, each in features.items()}
        logit_masks, hard_labels = self.task.logit_masks(batch), self.task.hard_labels(batch)
        class_masks = self.task.class_masks(batch)
        found: dict[tuple[str, ...], LossInputs] = {}
        for each in dict.fromkeys(among.values()):
            own = batch["teachers"][each[0]] if len(each) == 1 and each[0] in self.foreign else None
            token_mask, teacher_token_mask = self.task.token_masks(batch, own)
            teacher = features[each[0]]
            if len(each) > 1:
                logits = {
                    key: self.ensemble(
                        {name: features[name].logits[key] for name in each},
                        temperature,
                        hard_labels.get(key),
                        class_masks.get(key),
                    )
                    for key in teacher.logits
                }
                teacher = Features(logits)
            found[each] = LossInputs(
                student=student,
                teacher=teacher,
                token_mask=token_mask,
                teacher_token_mask=teacher_token_mask,
                logit_masks=logit_masks,
                temperature=temperature,
                hard_labels=hard_labels,
                class_masks=class_masks,
            )
        return {loss: found[each] for loss, each in among.items()}

    def take_logits(self) -> dict[str, Mapping[str, Tensor]]:
        """The logits of the last batch by the teacher's name, once."""
        logits, self._logits = self._logits, {}
        return logits

    @torch.no_grad()  # not inference_mode: its tensors break the backward pass of a projection
    def _features(self, name: str, batch: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Features:
        """What one teacher gives for a batch, where the student reads the same."""
        own = batch.get("teachers", {}).get(name)
        if name in self._cached:
            features = Features(batch["cached"][name])
        else:
            features = self._captures[name](inputs if own is None else self.task.model_inputs(own))
        if own is None or name not in self.foreign:
            return features
        logits = {key: self.task.transfer(key, values, own, batch) for key, values in features.logits.items()}
        states = features.hidden_states
        if self.task.transfers_tokens:
            states = {layer: self.task.transfer("hidden_states", v, own, batch) for layer, v in states.items()}
        return Features(logits, states)
