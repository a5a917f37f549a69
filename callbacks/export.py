"""The best student as a transformers folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lightning_kd.callbacks._cards import write_card
from lightning_kd.callbacks._fit_end import best_student, data_of, is_trial, on_rank_zero, output_path, write_folder
from lightning_kd.module import DistillationModule

__all__ = ["StudentExport", "save_tokenizer"]


class StudentExport(L.Callback):
    """Writes the student of the best checkpoint at the end of a fit, with its tokenizer and label names.

    Its ``README.md`` is a model card, to which a report adds its figures. The folder is plain transformers:
    ``pipeline("text-classification", model=folder)`` opens it.

    Args:
        path: The folder; ``<trainer.default_root_dir>/student`` unless given. What stands there is replaced.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        #: Where the student is, once it is written.
        self.folder: Path | None = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)  # noqa: S101  # the callbacks belong to this module
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.path, "student")

        def write(partial: Path) -> None:
            best_student(trainer, pl_module).save_pretrained(partial)
            save_tokenizer(trainer, partial)
            write_card(trainer, pl_module, partial, folder.name)

        on_rank_zero(trainer, lambda: write_folder(folder, write))
        self.folder = folder
        rank_zero_info(f"Student: {folder}")


def save_tokenizer(trainer: L.Trainer, folder: Path) -> None:
    """Save the data module's tokenizer, if there is one, with the training's length limit."""
    data = data_of(trainer)
    tokenizer: PreTrainedTokenizerBase | None = getattr(data, "tokenizer", None)
    if tokenizer is None:
        return
    tokenizer.model_max_length = data.max_length
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # or the saved one would go on padding and cutting as it last did here
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)
