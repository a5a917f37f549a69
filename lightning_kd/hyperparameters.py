"""What a checkpoint remembers of the arguments that a module was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

__all__ = ["keep_plain"]


def keep_plain(module: L.LightningModule, plain: Mapping[str, Any]) -> None:
    """Have a module that was made by hand keep hyperparameters that a checkpoint may hold.

    Args:
        module: Whose hyperparameters are saved; one that the command line has made has plain ones.
        plain: By name, the arguments that are none, as plain data.
    """
    if "_instantiator" not in module.hparams:
        module.hparams.update(plain, _instantiator="lightning.pytorch.cli.instantiate_module")
        module._hparams_initial = dict(module.hparams)  # type: ignore[assignment]  # a mapping, as Lightning has it
