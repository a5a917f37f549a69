"""Whether the folder of a model can be what it says: asked before anything is made of it."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError

__all__ = [
    "FORMAT",
    "check_config",
    "check_format",
    "check_size",
    "check_tokenizer",
    "why_no_config",
    "why_no_weights",
]

#: The version of what is written into checkpoints and exported folders. It is raised when a version of this package
#: that reads the older one would get them wrong.
FORMAT = 1
#: The oldest version that is still read.
_OLDEST = 1
#: Files that tell the folder of a quantized model.
QUANTIZED = ("int8.safetensors", "torchao.safetensors", "openvino_model.xml", "model.onnx")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"}
_WEIGHTS = (".safetensors", ".bin", ".onnx", ".data")
#: More layers than any model has, and few enough to be made in a second.
_MOST_LAYERS = 1000
#: Parameters that a folder's weights may lack: a new head, a pooler, the embeddings of a byte vocabulary.
_SLACK = 2**26


def check_format(name: str, path: str, found: Any) -> None:
    """Refuse a checkpoint or a folder of a version that is not read here.

    Args:
        name: The argument that names it.
        path: Where it is.
        found: Its version; None where it has none, as with models that others have made.
    """
    if found is None:
        return
    if not isinstance(found, int) or isinstance(found, bool) or not _OLDEST <= found <= FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        way_out = "Update lightning-kd." if newer else "Make it again, or take the lightning-kd that wrote it."
        read = f"of version {FORMAT}" if _OLDEST == FORMAT else f"of a version from {_OLDEST} to {FORMAT}"
        raise InputError(f"Expected argument `{name}` to be {read}, but {path} has version {found!r}. {way_out}")


def check_config(name: str, path: str, config: PretrainedConfig) -> None:
    """Refuse a configuration whose version is not read, or whose numbers no model has.

    Args:
        name: The argument that names the folder.
        path: The folder.
        config: What was read of it.
    """
    check_format(name, path, getattr(config, "lightning_kd_format", None))
    layers = getattr(config, "num_hidden_layers", 1)
    wrong = next((key for key, v in vars(config).items() if isinstance(v, float) and not math.isfinite(v)), None)
    if not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS:
        wrong = "num_hidden_layers"
    kinds = getattr(config, "architectures", None)
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        wrong = "architectures"
    if wrong is not None:
        raise InputError(
            f"The config.json of `{name}` ({path}) has {wrong} = {getattr(config, wrong)}, which no model has: it is "
            "damaged, copy or export the folder again."
        )


def check_tokenizer(name: str, path: str, tokenizer: Any, config: PretrainedConfig) -> None:
    """Refuse a tokenizer that writes what the model beside it cannot read.

    Args:
        name: The argument that names the folder.
        path: The folder.
        tokenizer: The tokenizer.
        config: The model's configuration.
    """
    names, last = tokenizer.model_input_names, max(tokenizer.get_vocab().values(), default=-1)
    known = isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)
    known = known and {"input_ids", "attention_mask"} <= set(names) <= _INPUTS
    length = tokenizer.model_max_length  # a very large one where there is no limit
    known = known and isinstance(length, int) and not isinstance(length, bool) and length > 0
    if not known or tokenizer.pad_token_id is None or last >= getattr(config, "vocab_size", last + 1):
        raise InputError(
            f"The tokenizer in `{name}` ({path}) is not that of the model beside it, or is damaged: copy or export the "
            "folder again."
        )


def check_size(name: str, path: str, kind: Any, config: PretrainedConfig) -> None:
    """Refuse a local folder whose configuration asks for a far larger model than its weights are, before it is made.

    Args:
        name: The argument that names the folder.
        path: The folder; nothing is asked of a name on the Hub.
        kind: The model's class, or an auto class.
        config: The model's configuration.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _WEIGHTS)
    make = getattr(kind, "from_config", None) or kind._from_config
    try:
        with torch.device("meta"):  # no memory
            model: nn.Module = make(copy.deepcopy(config))
    except Exception:  # what is wrong with the shape is said where the model is made
        return
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > 2 * stored + _SLACK:  # 4 bits a parameter
        raise InputError(
            f"The config.json of `{name}` ({path}) describes {parameters:,} parameters, but its weights take "
            f"{stored:,} bytes: it is damaged, or of another model."
        )


def why_no_config(path: str) -> str:
    """Why a configuration cannot be read."""
    if not Path(path).is_dir():
        return "Check the spelling, and that the Hub can be reached."
    if not (Path(path) / "config.json").is_file():
        return "There is no config.json in it."
    return "Its config.json is damaged, or of a model that transformers does not know; code beside it is never run."


def why_no_weights(path: str, error: Exception) -> str:
    """Why weights cannot be read."""
    folder, reason = Path(path), str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    if not folder.is_dir():
        return f"{reason}."
    if any((folder / file).is_file() for file in QUANTIZED):
        return "That is a quantized model, int8 or int4: give the float student that it was made from."
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return "There are no weights (model.safetensors) in it."
    if isinstance(error, pickle.UnpicklingError):
        return "Its weights are pickled with more than tensors, which is never read: save them as safetensors."
    return f"Its weights are damaged, cut off or of another shape than its config.json: {reason}."
