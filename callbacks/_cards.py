"""Model cards of what a fit exports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_kd.callbacks._fit_end import callbacks_of, data_of
from lightning_kd.callbacks.schedules import ScheduleCallback
from lightning_kd.model_card import CardFacts, card_name, model_card
from lightning_kd.models import ModelSource, count_parameters
from lightning_kd.module import DistillationModule
from lightning_kd.report import Report, installed_versions, write_text

__all__ = ["write_card"]


def write_card(
    trainer: L.Trainer,
    module: DistillationModule,
    folder: Path,
    name: str,
    quantization: dict[str, str] | None = None,
    report: Report | None = None,
    row_name: str | None = None,
) -> None:
    """Write the README.md of an exported folder.

    Args:
        trainer: Of the fit that has ended.
        module: Of the same.
        folder: Where the model is.
        name: The folder's final name.
        quantization: ``form`` (e.g. ``int8, torch``) and ``how`` of a quantized model.
        report: What was measured, once it is.
        row_name: The model's name in the report.
    """
    facts = _facts(trainer, module, name, quantization)
    write_text(folder / "README.md", model_card(facts, report, row_name))


def _facts(trainer: L.Trainer, module: DistillationModule, name: str, quantization: dict[str, str] | None) -> CardFacts:
    data, model, source = data_of(trainer), module.model, module.student_source
    is_trained = trainer.max_epochs != 0
    teachers = module.teacher_sources if is_trained else {}
    layers = getattr(model.config, "num_hidden_layers", None)
    kind = f"{model.config.model_type}, {f'{layers} layers, ' if layers else ''}{count_parameters(model) / 1e6:.1f} M"
    origin = f"distilled from {', '.join(_source(s) for s in teachers.values())}" if teachers else "fine-tuned"
    if not is_trained:
        origin = "quantized" if quantization else "measured"
    form = f"The {quantization['form']} form of a student" if quantization and teachers else "A student"
    if not teachers:
        form = f"The {quantization['form']} form of a model" if quantization else "A model"
    described = data.describe() if hasattr(data, "describe") else type(data).__name__
    made = {"starts from": _source(source)}
    made |= {f"teacher `{key}`" if len(teachers) > 1 else "teacher": _source(s) for key, s in teachers.items()}
    if is_trained:
        made |= {"loss": _loss(module), "schedules": _schedules(trainer)}
    made["data"] = described
    sizes = getattr(data, "sizes", {})
    made["rows"] = ", ".join(f"{split} {rows:,}" for split, rows in sizes.items())
    epochs = f"{trainer.current_epoch} epoch{'s' if trainer.current_epoch != 1 else ''}"
    made["training"] = f"{epochs}, {trainer.global_step:,} steps{_checkpoint(trainer)}" if is_trained else "none"
    made["seed"] = os.environ.get("PL_GLOBAL_SEED", "")
    if quantization:
        made["quantization"] = quantization["how"]
    made["versions"] = ", ".join(f"{package} {number}" for package, number in installed_versions().items())
    paths = [s.path or s.embeddings_from for s in (source, *teachers.values())]
    return CardFacts(
        name=card_name(name),
        what=f"{form} ({kind} parameters), {origin} with lightning-kd.",
        made={key: value for key, value in made.items() if value},
        task=module.task,
        is_distilled=bool(teachers),
        quantization=quantization["form"] if quantization else None,
        base_models=[path for path in paths if path],
        data_path=getattr(data, "path", None),
        data_name=described,
        command=getattr(trainer, "command", None),
    )


def _source(source: ModelSource) -> str:
    """Where a model is, as it was given."""
    if source.path is None:
        return (
            f"random weights, word embeddings of {source.embeddings_from}"
            if source.embeddings_from
            else "random weights"
        )
    layers = "" if source.keep_layers is None else f", layers {', '.join(map(str, source.keep_layers))}"
    return f"{'random weights in the shape of ' if source.from_scratch else ''}{source.path}{layers}"


def _loss(module: DistillationModule) -> str:
    """The sum that was minimized, with the weights and the temperature that the training began with."""
    given: Any = module.hparams  # the module of one task of several has none
    weights = given.get("loss_weights") or {}
    terms = [f"{given.get('hard_label_weight', module.hard_label_weight):g} x hard labels"]
    for name, loss in module.losses.items():
        weight = weights.get(name, module.loss_weights[name])
        terms.append(f"{weight:g} x {name} ({type(loss).__name__})")
    return " + ".join(terms) + (
        f", temperature {given.get('temperature', module.temperature):g}" if len(terms) > 1 else ""
    )


def _schedules(trainer: L.Trainer) -> str:
    found = []
    for callback in callbacks_of(trainer):
        if isinstance(callback, ScheduleCallback):
            found.append(f"{callback.state_key}: {callback.schedule}")
    return "; ".join(found)


def _checkpoint(trainer: L.Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return f"; the checkpoint with the best {callback.monitor}"
    return ""
