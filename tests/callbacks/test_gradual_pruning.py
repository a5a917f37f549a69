"""Parts that go while the student learns: against the model that is cut at once and trained like any other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import GradualPruning, QuantizationCallback, StudentExport
from lightning_kd.cutting import Kept, cut
from lightning_kd.losses import SoftTargetKL
from lightning_kd.pruning import Shape, importance, narrow
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8
from lightning_kd.schedules import Constant, Linear
from lightning_kd.tasks import SequenceClassification
from tests.callbacks.test_schedules import StopAfterEpoch

Make = Callable[..., Any]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def student_of(tiny_model: Make, family: str = "bert") -> Path:
    """Without dropout, which would draw other masks for another width."""
    if family == "distilbert":
        return tiny_model(family, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    return tiny_model(family, **STILL, **({"embedding_size": 16} if family == "electra" else {}))


def module_of(path: Path, teacher: Path | None = None) -> DistillationModule:
    """Trained by plain SGD: Adam would make noise of 1e-8 in a gradient of 0 a whole step."""
    taught: dict[str, Any] = {}
    if teacher is not None:
        taught = {"teachers": {"teacher": ModelSource(str(teacher))}, "losses": {"soft": SoftTargetKL()}}
    return DistillationModule(
        ModelSource(str(path)),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        lr_scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        **taught,
    )


def half(model: Any) -> Shape:
    """Half of the heads, with their dimensions, and a third of the neurons."""
    config = model.config
    return Shape(8, config.hidden_size // 2)


def pruning(path: Path, **options: Any) -> GradualPruning:
    shape = half(AutoModelForSequenceClassification.from_pretrained(path))
    return GradualPruning(shape.intermediate_size, shape.hidden_size, **options)


def state_of(module: DistillationModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.model.state_dict().items()}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


class Watch(L.Callback):
    """Keeps what is left in each batch, and what each validation sees."""

    def __init__(self, callback: GradualPruning) -> None:
        self.callback = callback
        self.kept: list[Kept] = []
        self.gaps: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.kept.append(self.callback.kept)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        kept = self.callback.kept
        if kept.heads is not None and kept.hidden is not None:
            size = pl_module.model.config.hidden_size // pl_module.model.config.num_attention_heads
            if len(kept.hidden) == size * kept.heads.shape[1]:
                smaller = cut(pl_module.model, kept).eval()
                inputs = pl_module.task.model_inputs(batch)
                with torch.no_grad():
                    gap = smaller(**inputs).logits - pl_module.model(**inputs).logits
                self.gaps.append(gap.abs().max().item())


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_all_at_once_is_pruning_and_then_training(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path, family: str
) -> None:
    """Stops masked parts that learn or that the loss sees, importance of other rows, and a cut of other parts."""
    path, teacher = student_of(tiny_model, family), tiny_model(seed=5)
    callback = pruning(path, num_cuts=1, importance_batches=2)
    module = module_of(path, teacher if family == "bert" else None)
    options: dict[str, Any] = {"max_epochs": 2, "gradient_clip_val": 0.5}
    make_trainer(callbacks=[callback], **options).fit(module, datamodule=glue(tokenizer=str(path)))

    whole = AutoModelForSequenceClassification.from_pretrained(path).eval()
    data = glue(tokenizer=str(path))
    data.setup("fit")
    scores = importance(whole, SequenceClassification(), data.calibration_batches(2))
    start = narrow(whole, half(whole), scores)
    start.save_pretrained(tmp_path)
    other = module_of(tmp_path, teacher if family == "bert" else None)
    make_trainer(callbacks=[], **options).fit(other, datamodule=glue(tokenizer=str(path)))

    assert_close(state_of(module), state_of(other), atol=2e-6)
    moved = [(value - start.state_dict()[name]).abs().max() for name, value in state_of(other).items()]
    assert max(moved) > 1e-2 and module.model.config.to_dict() == other.model.config.to_dict() | {
        "_name_or_path": module.model.config._name_or_path
    }


def test_the_schedule_says_how_much_is_left(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops cuts at other steps, parts that come back, an unmasked validation, and a student left in eval mode."""
    path = student_of(tiny_model)
    callback = pruning(path, schedule=Linear(0.0, 1.0), num_steps=8, num_cuts=4, importance_batches=1)
    watch, module = Watch(callback), module_of(path)
    modes: list[bool] = []

    class Modes(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            modes.append(all(each.training for each in pl_module.model.modules()))

    trainer = make_trainer(max_epochs=4, callbacks=[callback, watch, Modes()])
    trainer.fit(module, datamodule=glue(tokenizer=str(path)))
    own, config = 24, AutoModelForSequenceClassification.from_pretrained(path).config
    wanted = [own - round((own - 8) * min(4, 1 + step // 2) / 4) for step in range(12)]
    assert [len(kept.neurons[0]) for kept in watch.kept if kept.neurons is not None] == wanted
    assert all(modes) and len(modes) == 12
    for before, after in zip(watch.kept, watch.kept[1:], strict=False):
        for name in ("neurons", "heads", "hidden"):
            for old, new in zip(
                getattr(before, name).reshape(-1, getattr(before, name).shape[-1]),
                getattr(after, name).reshape(-1, getattr(after, name).shape[-1]),
                strict=True,
            ):
                assert set(new.tolist()) <= set(old.tolist())
    assert len(watch.gaps) >= 2 and max(watch.gaps) < 1e-5
    assert module.model.config.intermediate_size == 8
    assert module.model.config.hidden_size == config.hidden_size // 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.model.modules())


def test_half_of_the_training_unless_said(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a last cut that leaves the student no step to get over it."""
    path = student_of(tiny_model)
    callback = GradualPruning(8, num_cuts=3, importance_batches=1)
    watch = Watch(callback)
    make_trainer(max_epochs=4, callbacks=[callback, watch]).fit(module_of(path), datamodule=glue())
    sizes = [kept.neurons.shape[1] for kept in watch.kept if kept.neurons is not None]
    assert sizes[:2] > sizes[2:4] > [8, 8] and sizes[4:] == [8] * 8


def test_a_resumed_run_ends_where_a_whole_one_does(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops masks that are lost with the process, or chosen anew from all parts."""
    path = student_of(tiny_model)
    found, seen = [], []
    for extra, checkpoint in (
        ([], None),
        ([StopAfterEpoch(), ModelCheckpoint(tmp_path, save_last=True)], None),
        ([], tmp_path / "last.ckpt"),
    ):
        callback = pruning(path, num_steps=6, num_cuts=3, importance_batches=1)
        module, watch = module_of(path), Watch(callback)
        trainer = make_trainer(max_epochs=4, callbacks=[callback, watch, *extra])
        trainer.fit(module, datamodule=glue(tokenizer=str(path)), ckpt_path=checkpoint)
        found.append(state_of(module))
        seen.append([kept.neurons.tolist() for kept in watch.kept if kept.neurons is not None])
    assert seen[0] == seen[1] + seen[2] and len(seen[0]) == 12
    assert_close(found[2], found[0])


def test_what_is_left_goes_at_the_end(
    tiny_model: Make, glue: Make, make_trainer: Make, log: pytest.LogCaptureFixture
) -> None:
    """Stops a training that was stopped early from exporting a student of another size, silently."""
    path = student_of(tiny_model)
    callback = pruning(path, num_steps=100, num_cuts=5, importance_batches=1)
    module = module_of(path)
    make_trainer(callbacks=[callback]).fit(module, datamodule=glue(tokenizer=str(path)))
    assert (
        module.model.config.intermediate_size == 8 and module.model.bert.encoder.layer[0].output.dense.in_features == 8
    )
    assert "after 1 of 5 cuts" in log.text


# ---------------------------------------------------------------------------------------------- what is written


class Falling(L.Callback):
    """A metric by which the first epoch is the best."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", float(-trainer.current_epoch))


def test_the_export_is_of_the_best_epoch_of_the_small_student(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a checkpoint of a larger student from being the best, and a best one that cannot be loaded."""
    path = student_of(tiny_model)
    callback = pruning(path, num_steps=6, num_cuts=2, importance_batches=1)  # the last cut: in front of step 3
    kept: list[Kept] = []

    class Last(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            kept.append(callback.kept)

    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", monitor="score", mode="max")
    export = StudentExport(str(tmp_path / "student"))
    int8 = QuantizationCallback(DynamicInt8(), str(tmp_path / "int8"))
    trainer = make_trainer(max_epochs=4, callbacks=[callback, Falling(), Last(), export, int8, checkpoint])
    module = module_of(path)
    trainer.fit(module, datamodule=glue(tokenizer=str(path)))

    assert Path(checkpoint.best_model_path).name == "epoch=1.ckpt"
    stored = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    whole = AutoModelForSequenceClassification.from_pretrained(path)
    whole.load_state_dict({name.removeprefix("student."): value for name, value in stored.items()})
    wanted = cut(whole, kept[-1])
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert_close(dict(exported.state_dict()), dict(wanted.state_dict()))
    assert exported.config.hidden_size == whole.config.hidden_size // 2
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "student", path)]
    assert sizes[0] < 0.6 * sizes[1]
    assert int8.folder is not None and int8.folder.is_dir()
    module.load_state_dict(stored)  # what `trainer.test(ckpt_path="best")` does
    assert_close(state_of(module), dict(wanted.state_dict()))


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to prune"),
        ({"intermediate_size": 8, "num_cuts": 0}, "`num_cuts` to be at least 1"),
        ({"intermediate_size": 8, "importance_batches": 0}, "`importance_batches` to be at least 1"),
        ({"intermediate_size": 8, "num_steps": 0}, "`num_steps`"),
    ],
)
def test_a_wrong_number_is_refused(options: dict[str, Any], said: str) -> None:
    """Stops a callback that does nothing."""
    with pytest.raises(InputError, match=said):
        GradualPruning(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"intermediate_size": 25}, "`intermediate_size` to be from 1 to 24"),
        ({"hidden_size": 3}, "the size of a head"),
        ({"intermediate_size": 8, "schedule": Linear(0.0, 2.0)}, "shares from 0 to 1"),
        ({"intermediate_size": 8, "schedule": Constant(0.5)}, "rise to 1"),
        ({"intermediate_size": 8, "schedule": Linear(1.0, 0.0)}, "rise to 1"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_the_first_batch(
    tiny_model: Make, glue: Make, make_trainer: Make, options: dict[str, Any], said: str
) -> None:
    """Stops an error at the end of a long training."""
    module, path = module_of(student_of(tiny_model)), student_of(tiny_model)
    with pytest.raises(InputError, match=said):
        make_trainer(callbacks=[GradualPruning(**options)]).fit(module, datamodule=glue(tokenizer=str(path)))
    assert module.global_step == 0


def test_rounding_beside_it_is_refused(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a student that is cut while its layers are others."""
    callbacks = [GradualPruning(8), QuantizationCallback(ONNXRuntimeInt8(), mode="qat")]
    with pytest.raises(InputError, match="quantization-aware"):
        make_trainer(callbacks=callbacks).fit(module_of(student_of(tiny_model)), datamodule=glue())


def test_another_kind_is_refused_by_name(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a student without known parts from being trained for nothing."""
    config = {"model_type": "rnn", "cell": "gru", "embedding_size": 8, "hidden_size": 8}
    module = DistillationModule(ModelSource(from_scratch=True, config=config))
    with pytest.raises(InputError, match="type rnn"):
        make_trainer(callbacks=[GradualPruning(8)]).fit(module, datamodule=glue())
