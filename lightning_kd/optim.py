"""The optimizer and the learning rate that encoders are fine-tuned with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["AdamW", "parameter_groups"]


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
    """Trainable parameters in two groups; vectors (biases, norms) in the second, without weight decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
