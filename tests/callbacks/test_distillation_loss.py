"""A loss attached as a callback is the same as one in the module's `losses`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import DistillationLossCallback
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, LogitMSE, SoftTargetKL
from lightning_kd.optim import AdamW

Make = Callable[..., Any]


@pytest.mark.parametrize("loss_weights", [None, {"hidden": 0.125}])
def test_trains_the_same_weights(
    loss_weights: dict[str, float] | None,
    tiny_model: Callable[..., Path],
    distillation: Make,
    glue: Make,
    make_trainer: Make,
) -> None:
    """Stops a callback's loss from coming after the optimizer, which then never trains its projection."""
    teacher = ModelSource(str(tiny_model(hidden_size=32)))

    def run(as_callback: bool) -> DistillationModule:
        torch.manual_seed(0)
        hidden = HiddenStateMSE([FeatureMatch(1, 2)])
        weights = {"hidden": 0.25} if loss_weights is None and not as_callback else loss_weights
        module = distillation(
            teachers={"teacher": teacher},
            losses={"soft": SoftTargetKL()} if as_callback else {"soft": SoftTargetKL(), "hidden": hidden},
            loss_weights=weights,
            optimizer=partial(AdamW, lr=1e-2),
        )
        callbacks = [DistillationLossCallback("hidden", hidden, weight=0.25)] if as_callback else []
        make_trainer(max_epochs=2, callbacks=callbacks).fit(module, datamodule=glue())
        return module

    own, attached = run(False).state_dict(), run(True).state_dict()
    assert "losses.hidden.projections.0.weight" in own
    assert list(own) == list(attached)
    for name, value in own.items():
        assert value.equal(attached[name]), name


def test_is_the_only_loss_that_a_teacher_needs(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the check for losses from running before the callbacks have added theirs."""
    module = distillation(losses=None)
    callbacks = [DistillationLossCallback("a", SoftTargetKL()), DistillationLossCallback("b", LogitMSE(), 0.5)]
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, datamodule=glue())
    assert module.loss_weights == {"a": 1.0, "b": 0.5}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, datamodule=glue())  # the same objects again: nothing is added twice
    assert module.loss_weights == {"a": 1.0, "b": 0.5}


def test_taken_name_is_refused(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a callback from replacing the loss that the configuration names."""
    trainer = make_trainer(callbacks=[DistillationLossCallback("soft", LogitMSE())])
    with pytest.raises(InputError, match="a name that no other loss has, but got 'soft'"):
        trainer.fit(distillation(), datamodule=glue())
