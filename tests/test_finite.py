"""Losses, teachers and weights that are no number any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule, InputError
from lightning_kd._checks import RunError
from lightning_kd.callbacks import TeacherCache
from lightning_kd.compatibility import check_strategy
from lightning_kd.finite import FiniteCheck, NonFiniteError
from lightning_kd.losses import DistillationLoss, SoftTargetKL
from lightning_kd.outputs import LossInputs

Make = Callable[..., Any]
ROWS = torch.arange(100, 130)


class Breaks(DistillationLoss):
    """NaN from a step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def forward(self, inputs: LossInputs) -> Tensor:
        self.left -= 1
        value = inputs.student.logits["logits"].float().mean()
        return value * float("nan") if self.left < 0 else value * 0


def test_names_term_step_and_rows(distillation: Make, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a training that goes on for hours with weights of NaN, and an error that says nothing of where."""
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    seen: list[list[int]] = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch["index"].tolist())

    module = distillation(losses={"soft": SoftTargetKL(), "odd": Breaks(2)})
    with pytest.raises(NonFiniteError) as error:
        make_trainer(callbacks=[callback, Spy()], max_epochs=2).fit(module, datamodule=glue())
    rows = ", ".join(map(str, seen[2]))
    assert f"The loss 'odd' is nan in step 2 (epoch 0, batch 2), on the rows {rows}." in str(error.value)
    assert len(seen) == 3 and not error.value.too_late
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_batches_of_a_plain_loader_need_no_numbers(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a loader of the user's own, whose rows have no numbers, from ending in a KeyError."""
    data = glue()
    data.setup("fit")
    batches = [{k: v for k, v in batch.items() if k != "index"} for batch in data.train_dataloader()]
    loader: Any = DataLoader(batches, batch_size=None)
    make_trainer().fit(distillation(), train_dataloaders=loader)
    broken = distillation(losses={"soft": SoftTargetKL(), "odd": Breaks(1)})
    with pytest.raises(NonFiniteError, match=r"The loss 'odd' is nan in step 1 \(epoch 0, batch 1\)\. Most often"):
        make_trainer().fit(broken, train_dataloaders=loader)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_names_the_teacher(value: float, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the blame from falling on the loss, where a teacher's weights are broken."""
    module = distillation()

    class Break(L.Callback):
        def on_train_start(self, trainer: Any, module: DistillationModule) -> None:
            torch.nn.init.constant_(module.teachers["teacher"].classifier.bias[:1], value)

    with pytest.raises(NonFiniteError, match="The teacher 'teacher' gives logits that are NaN or infinite in step 0 "):
        make_trainer(callbacks=[Break()]).fit(module, datamodule=glue())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "The teacher 'teacher' gives logits that are NaN or infinite among the training rows"),
        (float("inf"), "The teacher 'teacher' gives logits that are NaN or infinite among the training rows"),
        (1e5, "which float16 cannot hold: give TeacherCache dtype float32"),
    ],
)
def test_keeps_no_logits_that_are_not_finite(
    value: float, message: str, distillation: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a cache of infinite logits, which would break every training that reads it."""

    class Break(L.Callback):
        def on_fit_start(self, trainer: Any, module: DistillationModule) -> None:
            torch.nn.init.constant_(module.teachers["teacher"].classifier.bias[:1], value)

    with pytest.raises(RunError, match=message):
        make_trainer(callbacks=[Break(), TeacherCache(str(tmp_path))]).fit(distillation(), datamodule=glue())
    assert not (tmp_path / "teacher").exists()


def test_a_class_that_is_ruled_out_is_no_error() -> None:
    """Stops a teacher with a logit of minus infinity, which is a probability of 0, from being refused."""
    check = FiniteCheck()
    check.add({"soft": torch.tensor(1.0)}, {"big": {"logits": torch.tensor([[-torch.inf, 0.0]])}}, ROWS, (0, 0, 0))
    check.look()


def test_elsewhere_than_on_the_cpu_it_looks_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a wait for the device in every step, and a step between two looks that is not looked at."""
    check = FiniteCheck()
    monkeypatch.setattr(Tensor, "device", torch.device("meta"))
    values = [1.0, 2.0, float("inf"), 3.0]
    for step, value in enumerate(values):
        check.add({"hard": torch.tensor(1.0), "soft": torch.tensor(value)}, {}, ROWS, (1, step, 10 + step))
    monkeypatch.undo()
    with pytest.raises(NonFiniteError, match=r"The loss 'soft' is inf in step 12 \(epoch 1, batch 2\).* and 10 more\."):
        check.look()
    check.look()


def test_refuses_to_save_weights_that_are_not_finite(
    distillation: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a checkpoint from which nobody can go on: a gradient can be NaN where the loss is not."""

    class Break(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: DistillationModule, *_: Any) -> None:
            if trainer.global_step == 2:
                module.model.classifier.bias.data[0] = float("nan")

    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(NonFiniteError, match=r"student\.classifier\.bias among them, and are not saved"):
        make_trainer(callbacks=[Break(), callback]).fit(distillation(), datamodule=glue())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    FiniteCheck().look(torch.nn.Identity())


@pytest.mark.parametrize("name", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_3", "x.y.FSDPStrategy"])
def test_refuses_to_cut_a_student_into_pieces(name: str) -> None:
    """Stops a training in a way that nobody has tried, with a teacher that every process holds whole."""
    with pytest.raises(InputError, match=r"Expected argument `trainer\.strategy` to be auto or ddp, but got"):
        check_strategy(name)


def test_refuses_strategies_by_their_class_and_takes_others() -> None:
    """Stops a subclass from getting past, and DDP from being refused."""
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

    with pytest.raises(InputError, match="got 'Own'"):
        check_strategy(type("Own", (FSDPStrategy,), {}))
    for kind in (DDPStrategy, SingleDeviceStrategy, "auto", "ddp", "ddp_find_unused_parameters_true"):
        check_strategy(kind)
