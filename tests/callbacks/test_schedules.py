"""The temperature and the weights that each step sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_kd import DistillationModule, InputError
from lightning_kd.callbacks import DistillationLossCallback, LossWeightSchedule, TemperatureSchedule
from lightning_kd.losses import LogitMSE
from lightning_kd.outputs import LossInputs
from lightning_kd.schedules import Constant, Cosine, Linear

Make = Callable[..., Any]
Seen = tuple[float, float, float, float]


class Witness(LogitMSE):
    """Keeps the temperature that it is given and the weights of that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.module: list[DistillationModule] = []  # a list: no submodule
        self.seen: list[Seen] = []

    def forward(self, inputs: LossInputs) -> Tensor:
        (module,) = self.module
        weights = module.loss_weights
        self.seen.append((inputs.temperature, weights["witness"], weights["late"], module.hard_label_weight))
        return super().forward(inputs)


class StopAfterEpoch(L.Callback):
    """Ends the training after its first epoch, as an interruption does."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


def callbacks() -> list[L.Callback]:
    """A schedule for each thing that can have one."""
    return [
        DistillationLossCallback("late", LogitMSE()),
        TemperatureSchedule(Linear(8.0, 2.0)),
        LossWeightSchedule("witness", Cosine(1.0, 0.0)),
        LossWeightSchedule("late", Constant(0.25)),
        LossWeightSchedule("hard", Linear(0.0, 1.0)),
    ]


def formula(step: int, steps: int) -> Seen:
    """What the step is to see."""
    progress = step / (steps - 1)
    return 8 - 6 * progress, 0.5 + 0.5 * math.cos(math.pi * progress), 0.25, progress


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_sees_the_formula(accumulate: int, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a schedule that runs a step late, never arrives, or counts batches where gradients are accumulated."""
    witness = Witness()
    module = distillation(losses={"witness": witness})
    witness.module.append(module)
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=callbacks())
    trainer.fit(module, datamodule=glue())
    numbers = [0, 1, 2, 3, 4, 5] if accumulate == 1 else [0, 0, 1, 2, 2, 3]  # an epoch's last batch is always a step
    np.testing.assert_allclose(witness.seen, [formula(step, numbers[-1] + 1) for step in numbers], atol=1e-12)


def test_resumed_steps_see_the_formula(tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a resumed run from starting its schedules anew."""
    witness = Witness()
    for extra, path in (
        ([StopAfterEpoch(), ModelCheckpoint(tmp_path, save_last=True)], None),
        ([], tmp_path / "last.ckpt"),
    ):
        module = distillation(losses={"witness": witness})
        witness.module[:] = [module]
        trainer = make_trainer(max_epochs=2, callbacks=[*callbacks(), *extra])
        trainer.fit(module, datamodule=glue(), ckpt_path=path)
    np.testing.assert_allclose(witness.seen, [formula(step, 6) for step in range(6)], atol=1e-12)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (TemperatureSchedule(Linear(4.0, 0.0)), "Expected argument `schedule` to be a number above 0, but got 0.0."),
        (
            LossWeightSchedule("soft", Linear(1.0, -1.0)),
            "Expected argument `schedule` to be a finite number, 0 or more, but got -1.0.",
        ),
        (
            LossWeightSchedule("sofd", Constant(1.0)),
            "Expected argument `loss` to be one of soft, hard, but got 'sofd'. Did you mean `soft`?",
        ),
    ],
)
def test_refused_before_the_first_step(
    callback: L.Callback, message: str, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a division by 0 at the last step of a long run, and a schedule that moves nothing."""
    trainer = make_trainer(callbacks=[callback])
    with pytest.raises(InputError) as error:
        trainer.fit(distillation(), datamodule=glue())
    assert str(error.value) == message
    assert trainer.global_step == 0


def test_endless_training_is_refused(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a share of infinitely many steps, which is 0 for ever."""
    module = distillation(lr_scheduler=torch.optim.lr_scheduler.ConstantLR)
    trainer = make_trainer(max_epochs=-1, callbacks=[TemperatureSchedule(Linear(4.0, 2.0))])
    with pytest.raises(InputError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        trainer.fit(module, datamodule=glue())


def test_one_step_is_the_start_of_the_schedule(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a division by 0 in a run of one step."""
    module = distillation()
    make_trainer(max_steps=1, callbacks=[TemperatureSchedule(Linear(8.0, 2.0))]).fit(module, datamodule=glue())
    assert module.temperature == 8.0


def test_schedule_of_the_first_steps(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a schedule by steps from being stretched over the training, and from going on past its end."""
    seen: list[float] = []

    class Temperatures(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
            assert isinstance(pl_module, DistillationModule)
            seen.append(pl_module.temperature)

    schedule = TemperatureSchedule(Linear(8.0, 2.0), num_steps=3)
    make_trainer(max_epochs=2, callbacks=[schedule, Temperatures()]).fit(distillation(), datamodule=glue())
    assert seen == [8.0, 5.0, 2.0, 2.0, 2.0, 2.0]
    with pytest.raises(InputError, match="`num_steps` to be a number above 0, but got 0"):
        TemperatureSchedule(Linear(8.0, 2.0), num_steps=0)
