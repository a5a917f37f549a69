"""Whether a checkpoint can be read, before anything is made."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_kd._checks import expected
from lightning_kd.folders import check_format

__all__ = ["check_checkpoint"]


def check_checkpoint(option: str, path: str) -> None:
    """Refuse a file that is no whole checkpoint of a :class:`lightning_kd.DistillationModule`; nothing is unpickled.

    Args:
        option: The argument's name in messages.
        path: The file.

    Raises:
        InputError: If there is no such file, it is damaged or holds more than plain values, is of another module, or
            of a version that is not read.
    """
    what = "a checkpoint file, best or last"
    if not Path(path).is_file():
        raise expected(option, what, path, "That is a folder." if Path(path).is_dir() else "There is no such file.")
    damaged = "It is no checkpoint, or is cut off or damaged: take another one."
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself compares no checksums
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()) or archive.testzip():
                raise expected(option, what, path, damaged)
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        way_out = "It holds more than tensors and plain values, which are never unpickled."
        raise expected(option, what, path, way_out) from error
    except (
        zipfile.BadZipFile,
        ArithmeticError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise expected(option, what, path, damaged) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise expected(option, what, path, "It has no weights of a module in it.")
    if not isinstance(content.get("student_config", content.get("student_configs")), dict):
        raise expected(option, "a DistillationModule's checkpoint", path, "It has no student configuration.")
    check_format(option, path, content.get("lightning_kd_format"))
