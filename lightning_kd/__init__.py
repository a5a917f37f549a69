"""lightning-kd: knowledge distillation and quantization of NLP transformers on PyTorch Lightning."""

from pathlib import Path

_HERE = Path(__file__).parent
if not (_HERE / "callbacks").is_dir():  # a source checkout: callbacks/ and datamodules/ stand beside this folder
    __path__.append(str(_HERE.parent))

from lightning_kd._checks import InputError  # noqa: E402
from lightning_kd.lstm import LSTMConfig, LSTMForCausalLM  # noqa: E402
from lightning_kd.models import ModelSource  # noqa: E402
from lightning_kd.module import DistillationModule  # noqa: E402
from lightning_kd.runner import Runner  # noqa: E402

__version__ = "0.1.0"
__all__ = ["DistillationModule", "InputError", "LSTMConfig", "LSTMForCausalLM", "ModelSource", "Runner"]
