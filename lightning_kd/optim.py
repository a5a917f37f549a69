"""The optimizer and the learning rate that encoders are fine-tuned with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from transformers import get_linear_schedule_with_warmup

from lightning_kd._checks import InputError, check_range

__all__ = ["AdamW", "Optimization", "learning_rates", "parameter_groups"]


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the defaults that encoders are fine-tuned with, and its fused kernel.

    Args:
        params: Parameters or groups of them.
        lr: Peak learning rate.
        betas: Decay of the running averages.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay; biases and norms get none.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True)


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters by what the optimizer is to do with them.

    Vectors (biases, norms) get no weight decay. The parameters of a submodule that has a ``parameters_lr`` get that
    learning rate; the others the optimizer's.
    """
    rates: dict[int, float | None] = {}
    for part in module.modules():
        if getattr(part, "parameters_lr", None) is not None:
            rates.update((id(p), part.parameters_lr) for p in part.parameters())  # type: ignore[misc]  # a float
    grouped: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            grouped.setdefault((rates.get(id(p)), p.ndim < 2), []).append(p)
    groups = []
    for (rate, is_vector), params in grouped.items():
        group: dict[str, Any] = {"params": params}
        if rate is not None:
            group["lr"] = rate
        if is_vector:
            group["weight_decay"] = 0.0
        groups.append(group)
    return groups


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """``train/lr``, and ``train/lr/<n>`` of each group that began with another rate, as they are logged."""
    groups = optimizer.param_groups
    others = [i for i, group in enumerate(groups) if group.get("initial_lr") != groups[0].get("initial_lr")]
    return {"train/lr": groups[0]["lr"], **{f"train/lr/{i}": groups[i]["lr"] for i in others}}


class Optimization:
    """What a module's ``configure_optimizers`` returns: the optimizer and its learning rate schedule.

    A copy of a module shares it: what the command line makes of a config to call knows the whole run.

    Args:
        optimizer: Called with parameter groups.
        lr_scheduler: Called with the optimizer.
        warmup: Without a scheduler, the share of the steps in which the learning rate rises from 0; it then falls to 0.

    Raises:
        InputError: If ``warmup`` is not from 0 to 1; in a call, if the optimizer cannot be made, or, without a
            scheduler, the length of the training is not known.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None, warmup: float) -> None:
        check_range("warmup", warmup, 0, 1)
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._warmup = warmup

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimization:
        return self

    def __call__(self, module: nn.Module, trainer: L.Trainer) -> dict[str, Any]:
        """For the parameters of ``module``; ``trainer`` knows how many steps there are."""
        try:
            made = self._optimizer(parameter_groups(module))
        except (TypeError, ValueError) as error:
            raise InputError(f"The optimizer that `model.optimizer` describes cannot be made: {error}.") from error
        if self._lr_scheduler is not None:
            scheduler: Any = self._lr_scheduler(made)
        else:
            steps = trainer.estimated_stepping_batches
            if not 0 < steps < float("inf"):
                raise InputError(
                    "The learning rate falls to 0 over the whole training, so its length must be known: "
                    "set trainer.max_epochs or trainer.max_steps, or give an lr_scheduler."
                )
            scheduler = get_linear_schedule_with_warmup(made, round(self._warmup * steps), int(steps))
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
