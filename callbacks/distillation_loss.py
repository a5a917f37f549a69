"""A distillation loss attached as a callback."""

from __future__ import annotations

from itertools import takewhile

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging

from lightning_kd._checks import InputError
from lightning_kd.callbacks._fit_end import callbacks_of
from lightning_kd.losses import DistillationLoss
from lightning_kd.module import DistillationModule

__all__ = ["DistillationLossCallback"]


class DistillationLossCallback(L.Callback):
    """Adds a loss to the module at the start of a fit: the same as an entry of the module's ``losses``.

    Args:
        name: The loss's name in the log and in ``loss_weights``; no other loss may have it.
        loss: The loss.
        weight: 0 or more; an entry of ``loss_weights`` overrides it.
    """

    def __init__(self, name: str, loss: DistillationLoss, weight: float = 1.0) -> None:
        self.name = name
        self.loss = loss
        self.weight = weight

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DistillationModule)
        if stage == "fit" and pl_module.losses._modules.get(self.name) is not self.loss:
            for callback in takewhile(lambda each: each is not self, callbacks_of(trainer)):
                if isinstance(callback, WeightAveraging):  # it has copied the module, without this loss's projections
                    kind = type(callback).__name__
                    raise InputError(f"{kind} must come after every DistillationLossCallback in trainer.callbacks.")
            pl_module.add_loss(self.name, self.loss, self.weight)
