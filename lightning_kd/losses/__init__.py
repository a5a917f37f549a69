"""Distillation losses, one family a file: a pure function, and a class that picks its tensors."""

from lightning_kd.losses.base import DistillationLoss, FeatureMatch, LayerMap
from lightning_kd.losses.hidden_state import HiddenStateMSE, hidden_state_mse
from lightning_kd.losses.logit_mse import LogitMSE, logit_mse
from lightning_kd.losses.soft_target import SoftTargetKL, soft_target_kl

__all__ = [
    "DistillationLoss",
    "FeatureMatch",
    "HiddenStateMSE",
    "LayerMap",
    "LogitMSE",
    "SoftTargetKL",
    "hidden_state_mse",
    "logit_mse",
    "soft_target_kl",
]
