"""Modules of a teacher that the student's layers replace: against a plain loop over models that are put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import QuantizationCallback, StudentExport, Theseus
from lightning_kd.ensemble import Ensemble
from lightning_kd.losses import AttentionMSE, FeatureMatch, HiddenStateMSE, LogitMSE
from lightning_kd.outputs import LossInputs
from lightning_kd.quantization import DynamicInt8
from lightning_kd.schedules import Constant, Linear, Schedule, Step
from tests.callbacks.test_schedules import StopAfterEpoch

Make = Callable[..., Any]
FAMILIES = ["bert", "distilbert", "roberta", "electra"]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LR = 0.5


def teacher_of(tiny_model: Make, family: str = "bert", **config: Any) -> Path:
    """Four layers without dropout."""
    if family == "distilbert":
        return tiny_model(family, n_layers=4, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **config)
    return tiny_model(family, **{"num_hidden_layers": 4, **STILL, **config})


def module_of(path: Path, keep: list[int] | None = None, **more: Any) -> DistillationModule:
    """A student that starts from some of the layers of the model in ``path``, and is trained by plain SGD."""
    return DistillationModule(
        ModelSource(str(path), keep_layers=[0, 2] if keep is None else keep),
        optimizer=partial(torch.optim.SGD, lr=LR),
        lr_scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        **more,
    )


def theseus(path: Path, schedule: Schedule, **more: Any) -> Theseus:
    return Theseus(schedule, teacher=str(path), **more)


class Draws(L.Callback):
    """Keeps what each batch draws, and the batch."""

    def __init__(self, callback: Theseus) -> None:
        self.callback = callback
        self.seen: list[tuple[float, list[bool]]] = []
        self.batches: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((self.callback.rate, list(self.callback.drawn)))
        self.batches.append(batch)


def layers_of(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """What holds the layers, and the layers."""
    stack = model.base_model.transformer if model.config.model_type == "distilbert" else model.base_model.encoder
    return stack, stack.layer


def load(path: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path)


def state_of(module: DistillationModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("family", FAMILIES)
def test_each_step_is_that_of_the_model_put_together(
    tiny_model: Make, glue: Make, make_trainer: Make, family: str
) -> None:
    """Stops a module that stands in for another layer, trained embeddings while p < 1, and a frozen head after."""
    path = teacher_of(tiny_model, family)
    callback = theseus(path, Step([0.5, 1.0], [0.6]))
    draws, module = Draws(callback), module_of(path)
    make_trainer(max_epochs=4, callbacks=[callback, draws]).fit(module, datamodule=glue(tokenizer=str(path)))

    student, teacher = load(path), load(path)
    stack, layers = layers_of(student)
    own = [layers[0], layers[2]]
    rest = [each for name, each in student.named_parameters() if ".layer." not in name]
    theirs = list(layers_of(teacher)[1])
    kinds = {tuple(drawn) for _, drawn in draws.seen}
    assert len(draws.seen) == 12 and len(kinds) >= 3 and {rate for rate, _ in draws.seen} == {0.5, 1.0}
    for (rate, drawn), batch in zip(draws.seen, draws.batches, strict=True):
        chosen: list[nn.Module] = []
        for i in range(2):
            chosen += [own[i]] if drawn[i] else theirs[2 * i : 2 * i + 2]
        stack.layer = nn.ModuleList(chosen)
        inputs = module.task.model_inputs(batch)
        loss = nn.functional.cross_entropy(student.train()(**inputs).logits, batch["labels"])
        trained = [p for layer, runs in zip(own, drawn, strict=True) if runs for p in layer.parameters()]
        trained += rest if rate == 1 else []
        for parameter, slope in zip(trained, torch.autograd.grad(loss, trained), strict=True) if trained else ():
            parameter.data -= LR * slope
    stack.layer = nn.ModuleList(own)
    assert_close(state_of(module), student.state_dict(), atol=1e-5)
    start = load(path).state_dict()
    assert sum((value - start[name]).abs().max() > 1e-3 for name, value in student.state_dict().items()) > 20


@pytest.mark.parametrize("distilled", [False, True])
def test_with_every_layer_drawn_it_is_plain_fine_tuning(
    tiny_model: Make, glue: Make, make_trainer: Make, distilled: bool
) -> None:
    """Stops the callback from moving dropout, the learning rate, or anything else once nothing stands in."""
    path = tiny_model(num_hidden_layers=4)
    more: dict[str, Any] = {}
    if distilled:
        more = {"teachers": {"big": ModelSource(str(path))}, "loss_weights": {"soft": 2.0}}
    states = []
    for callbacks in ([], [Theseus(Constant(1.0), teacher="big" if distilled else str(path))]):
        losses = {"losses": {"soft": LogitMSE()}} if distilled else {}
        module = DistillationModule(ModelSource(str(path), keep_layers=[0, 3]), **more, **losses)
        make_trainer(max_epochs=2, gradient_clip_val=1.0, callbacks=callbacks).fit(module, datamodule=glue())
        states.append(state_of(module))
    assert_close(states[1], states[0])


def watched(kind: type, *arguments: Any) -> tuple[Any, list[float]]:
    """A loss of ``kind`` and the values that it gives."""
    values: list[float] = []

    class Watched(kind):
        def forward(self, inputs: LossInputs) -> Tensor:
            value = super().forward(inputs)
            values.append(value.item())
            return value

    return Watched(*arguments), values


def test_without_a_drawn_layer_it_is_the_teacher(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops hidden states that are read in front of the exchange, in a first fit and in a second, and a masked text."""
    path = teacher_of(tiny_model)
    logits, of_logits = watched(LogitMSE)
    pairs = [FeatureMatch(0, 0), FeatureMatch(1, 2), FeatureMatch(2, 4)]
    states, of_states = watched(HiddenStateMSE, pairs)
    module = module_of(path, teachers={"teacher": ModelSource(str(path))}, losses={"logits": logits, "states": states})
    for _ in range(2):
        make_trainer(callbacks=[Theseus(Constant(0.0))]).fit(module, datamodule=glue())
    assert max(of_logits) < 1e-10 and max(of_states) < 1e-10 and len(of_logits) == len(of_states) == 6
    start = state_of(module)
    make_trainer(callbacks=[]).fit(module, datamodule=glue())
    assert min(of_logits[6:]) > 1e-3 and min(of_states[6:]) > 1e-3
    assert_close(start, kept(path))


def kept(path: Path) -> dict[str, Tensor]:
    model = load(path)
    stack, layers = layers_of(model)
    stack.layer = nn.ModuleList([layers[0], layers[2]])
    return dict(model.state_dict())


def test_losses_on_attention_find_what_they_read(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a layer that is not drawn from having no queries, which is an error at some batch of some epoch."""
    path = teacher_of(tiny_model)
    loss, values = watched(AttentionMSE, [FeatureMatch(1, 1)])
    module = module_of(path, teachers={"t": ModelSource(str(path))}, losses={"attention": loss})
    make_trainer(callbacks=[Theseus(Constant(0.0))]).fit(module, datamodule=glue())
    assert len(values) == 3 and np.isfinite(values).all()


def test_a_resumed_run_ends_where_a_whole_one_does(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops draws and rates that start anew, and teacher's layers in a checkpoint."""
    path = teacher_of(tiny_model)
    found, drawn = [], []
    for extra, checkpoint in (
        ([], None),
        ([StopAfterEpoch(), ModelCheckpoint(tmp_path, save_last=True)], None),
        ([], tmp_path / "last.ckpt"),
    ):
        callback = theseus(path, Linear(0.2, 1.0), num_steps=8)
        module = DistillationModule(ModelSource(str(path), keep_layers=[0, 2]))  # its optimizer has a state
        draws = Draws(callback)
        trainer = make_trainer(max_epochs=4, callbacks=[callback, draws, *extra])
        trainer.fit(module, datamodule=glue(), ckpt_path=checkpoint)
        found.append(state_of(module))
        drawn.append(draws.seen)
    assert drawn[0] == drawn[1] + drawn[2] and len(drawn[0]) == 12
    assert_close(found[2], found[0])
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in stored if name.startswith("student.")} == {f"student.{name}" for name in found[0]}
    assert not [name for name in stored if name.startswith("student.") and ".layer.2." in name]


def test_validation_and_export_are_of_the_student_alone(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a checkpoint from being chosen by the teacher's accuracy, and hooks from outliving the fit."""
    path = teacher_of(tiny_model)
    module = module_of(path)
    callbacks = [theseus(path, Constant(0.0)), StudentExport(), QuantizationCallback(DynamicInt8())]
    trainer = make_trainer(callbacks=callbacks, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=glue())
    during = trainer.callback_metrics["val/loss"].item()
    (after,) = make_trainer().validate(module, datamodule=glue(), verbose=False)
    (teachers,) = make_trainer().validate(DistillationModule(ModelSource(str(path))), datamodule=glue(), verbose=False)
    assert during == pytest.approx(after["val/loss"], abs=1e-6)
    assert abs(during - teachers["val/loss"]) > 1e-3
    assert_close(load(tmp_path / "student").state_dict(), state_of(module))
    assert not any(layer._forward_hooks for layer in layers_of(module.model)[1])


class Fails(L.Callback):
    """Breaks off in the second batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            assert all(layer._forward_hooks for layer in layers_of(pl_module.model)[1])
            raise RuntimeError("the disk is full")


def test_an_exception_undoes_it(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a student that goes on in a notebook from being its teacher still."""
    path = teacher_of(tiny_model)
    module = module_of(path)
    with pytest.raises(RuntimeError, match="the disk is full"):
        make_trainer(callbacks=[theseus(path, Constant(0.0)), Fails()]).fit(module, datamodule=glue())
    assert not any(layer._forward_hooks for layer in layers_of(module.model)[1])


# ---------------------------------------------------------------------------------------------- draws


def drawn_by(callback: Theseus, batches: int, steps: int, epoch: int = 0) -> np.ndarray:
    """What so many batches of an epoch draw for 3 layers, ``(batches, 3)``."""
    callback.steps, callback.drawn = steps, [False] * 3
    found = []
    for i in range(batches):
        trainer: Any = SimpleNamespace(global_step=i, current_epoch=epoch)
        callback.on_train_batch_start(trainer, SimpleNamespace(log=lambda *_: None), None, i)
        found.append(callback.drawn)
    return np.array(found)


def test_the_share_of_drawn_layers_is_the_replacing_rate() -> None:
    """Stops the teacher from running where the student should, and layers that are drawn together."""
    constant = drawn_by(Theseus(Constant(0.3)), 4000, 4000)
    assert constant.mean(0) == pytest.approx([0.3] * 3, abs=0.03)  # 4 standard errors
    assert np.abs(np.corrcoef(constant.T) - np.eye(3)).max() < 0.07
    rising = drawn_by(Theseus(Linear(0.5, 1.0), num_steps=3000), 4000, 3000)
    shares = rising.reshape(8, 500 * 3).mean(1)
    middles = 0.5 + 0.5 * (np.arange(6) * 500 + 250) / 3000
    assert shares == pytest.approx([*middles, 1, 1], abs=0.05)
    assert rising[3000:].all() and not drawn_by(Theseus(Constant(0.0)), 500, 500).any()


def test_draws_follow_from_seed_epoch_and_batch_alone() -> None:
    """Stops processes that draw apart, epochs that draw alike, and a teacher that is drawn with the first layer."""
    first = drawn_by(Theseus(Constant(0.5)), 400, 400)
    np.random.seed(7)  # the global state is what must not matter
    torch.manual_seed(7)
    assert (drawn_by(Theseus(Constant(0.5)), 400, 400) == first).all()
    for other in (drawn_by(Theseus(Constant(0.5), seed=1), 400, 400), drawn_by(Theseus(Constant(0.5)), 400, 400, 1)):
        assert 0.4 < (other == first).mean() < 0.6
    ensemble = Ensemble("draw")
    teachers = [ensemble.asked(["a", "b"], 0, i) == ["a"] for i in range(400)]
    assert all(0.4 < (first[:, i] == teachers).mean() < 0.6 for i in range(3))


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("teacher", "student", "sentence"),
    [
        (
            {},
            {"keep": [0, 1, 2]},
            "`teacher` to be a model with a multiple of 3 layers, but got '{path}'. That one has 4, and each of the "
            "student's stands for the same number of them.",
        ),
        (
            {"hidden_size": 32},
            {},
            "`teacher` to be a model of the student's width, 16, but got '{path}'. That one has 32: start the student "
            "from its teacher, with keep_layers.",
        ),
        ({"family": "electra"}, {}, "the student's type, bert, but got '{path}'. That one has electra: start the"),
        ({"vocab_size": 140}, {}, "the student's size of vocabulary, 127, but got '{path}'. That one has 140: start"),
        (
            {"seed": 3},
            {},
            "Theseus starts with the teacher's embeddings and head, but bert.embeddings.word_embeddings.weight of the "
            "student is not that of {path}: set model.student.path to it, and keep_layers.",
        ),
    ],
)
def test_a_teacher_whose_layers_do_not_fit_is_refused(
    tiny_model: Make, glue: Make, make_trainer: Make, teacher: dict[str, Any], student: dict[str, Any], sentence: str
) -> None:
    """Stops a mix of layers that computes, and means nothing."""
    path = teacher_of(tiny_model, **teacher)
    trainer = make_trainer(callbacks=[theseus(path, Constant(0.5))])
    module = module_of(teacher_of(tiny_model), **student)
    with pytest.raises(InputError) as error:
        trainer.fit(module, datamodule=glue())
    assert sentence.format(path=path) in str(error.value) and "\n" not in str(error.value)
    assert trainer.global_step == 0 and not any(layer._forward_hooks for layer in layers_of(module.model)[1])


def test_albert_is_refused(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops one shared layer from being taken for all of them."""
    path = tiny_model("albert")
    trainer = make_trainer(callbacks=[theseus(path, Constant(0.5))])
    with pytest.raises(InputError) as error:
        trainer.fit(DistillationModule(ModelSource(str(path))), datamodule=glue())
    assert str(error.value) == (
        "Theseus exchanges layers of bert, distilbert, roberta, electra, but the student is of the type albert: use a "
        "distillation loss instead."
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": Linear(0.5, 1.5)}, "`schedule` to be between 0 and 1, but got 1.5."),
        ({}, "`teacher` to be a local folder or a Hub name, but got 'nothing'. The module has no teachers."),
        ({"teacher": "./nowhere"}, "`teacher.path` to be a local folder or a Hub name, but got './nowhere'."),
    ],
)
def test_wrong_values_are_refused_before_the_first_batch(
    tiny_model: Make, glue: Make, make_trainer: Make, options: dict[str, Any], sentence: str
) -> None:
    """Stops a rate above 1, and a fit that replaces nothing."""
    trainer = make_trainer(callbacks=[Theseus(**{"schedule": Constant(0.5), **options})])
    with pytest.raises(InputError) as error:
        trainer.fit(module_of(teacher_of(tiny_model)), datamodule=glue())
    assert sentence in str(error.value) and trainer.global_step == 0


def test_one_of_several_teachers_has_to_be_named(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the first of several teachers from being taken in silence; and a seed below 0."""
    source = distillation().teacher_sources["teacher"]
    with pytest.raises(InputError) as error:
        make_trainer(callbacks=[Theseus(Constant(0.5))]).fit(
            distillation(teachers={"a": source, "b": source}), datamodule=glue()
        )
    assert "`teacher` to be one of a, b, but got 'nothing'. The module has 2 teachers." in str(error.value)
    with pytest.raises(InputError, match="`seed` to be a finite number, 0 or more, but got -1"):
        Theseus(Constant(0.5), seed=-1)
