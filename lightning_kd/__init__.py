"""lightning-kd: knowledge distillation and quantization of NLP transformers on PyTorch Lightning."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_kd._checks import InputError
    from lightning_kd.models import ModelSource
    from lightning_kd.module import DistillationModule
    from lightning_kd.multi_task import MultiTaskModule, TaskDistillation
    from lightning_kd.runner import Runner
    from lightning_kd.students import LSTMConfig, LSTMForCausalLM

_HERE = Path(__file__).parent
if not (_HERE / "callbacks").is_dir():  # a source checkout: callbacks/ and datamodules/ stand beside this folder
    __path__.append(str(_HERE.parent))


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not so: which kernels for GPUs torchao, if it is installed, cannot load as transformers imports it."""
    useless = ("Failed to load", "cpp extensions", "register_constant() on Enum")
    return not any(words in record.getMessage() for words in useless)


for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_of_use)

__version__ = "0.1.0"
__all__ = [
    "DistillationModule",
    "InputError",
    "LSTMConfig",
    "LSTMForCausalLM",
    "ModelSource",
    "MultiTaskModule",
    "Runner",
    "TaskDistillation",
]

#: Where the names of this package come from, on first use: torch, transformers and Lightning take seconds to import.
_HOMES = {
    "DistillationModule": "module",
    "InputError": "_checks",
    "LSTMConfig": "students",
    "LSTMForCausalLM": "students",
    "ModelSource": "models",
    "MultiTaskModule": "multi_task",
    "Runner": "runner",
    "TaskDistillation": "multi_task",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")  # lightning_kd.losses without an import of its own
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
