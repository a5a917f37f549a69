"""Checkpoints that are whole or not there."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and gives it its name once it is on the disk.

    Lightning's own writes it to the system's temporary folder and moves it, which is a copy wherever that folder is
    another file system: a process that is killed then leaves half a checkpoint under the name of a whole one. The
    command line uses this one unless ``trainer.plugins`` has another. For local folders; other places are written as
    Lightning does.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``path``.

        Args:
            checkpoint: What to write.
            path: The file.
            storage_options: Not used.

        Raises:
            OSError: If it cannot be written; what stood under that name still does.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch's own writer to a file hides what the system answers
        torch.save(checkpoint, content)
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f"{final.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(final)
        except BaseException as error:  # a dead worker, too, is told of by a signal, wherever the process is
            partial.unlink(missing_ok=True)  # it may not have been opened
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(final)
            raise
