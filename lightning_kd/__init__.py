"""lightning-kd: knowledge distillation and quantization of NLP transformers on PyTorch Lightning."""

import logging
from pathlib import Path

_HERE = Path(__file__).parent
if not (_HERE / "callbacks").is_dir():  # a source checkout: callbacks/ and datamodules/ stand beside this folder
    __path__.append(str(_HERE.parent))

#: Of no use to anybody: which kernels for GPUs torchao cannot load, if it is installed, as transformers imports it.
_TALKATIVE = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
for _logger in _TALKATIVE:
    _logger.setLevel(logging.ERROR)

from lightning_kd._checks import InputError  # noqa: E402
from lightning_kd.models import ModelSource  # noqa: E402
from lightning_kd.module import DistillationModule  # noqa: E402
from lightning_kd.multi_task import MultiTaskModule, TaskDistillation  # noqa: E402
from lightning_kd.runner import Runner  # noqa: E402
from lightning_kd.students import LSTMConfig, LSTMForCausalLM  # noqa: E402

for _logger in _TALKATIVE:
    _logger.setLevel(logging.NOTSET)

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
