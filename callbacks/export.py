"""The best student as a transformers folder, and the encoder of a bi-encoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lightning_kd._checks import expected
from lightning_kd.callbacks._cards import write_card
from lightning_kd.callbacks._fit_end import (
    best_student,
    check_output,
    data_of,
    is_trial,
    on_rank_zero,
    output_path,
    write_folder,
)
from lightning_kd.folders import FORMAT
from lightning_kd.models import load_config
from lightning_kd.module import DistillationModule
from lightning_kd.students import BiEncoderConfig, BiEncoderModel

__all__ = ["SentenceEncoderExport", "StudentExport", "save_tokenizer"]


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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and not is_trial(trainer):
            assert isinstance(pl_module, DistillationModule)
            folder = output_path(trainer, self.path, "student")
            check_output("export.path", folder, (source.path for source in pl_module.teacher_sources.values()))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.path, "student")

        def write(partial: Path) -> None:
            student = best_student(trainer, pl_module)
            student.config.lightning_kd_format = FORMAT
            student.save_pretrained(partial)
            save_tokenizer(trainer, partial)
            write_card(trainer, pl_module, partial, folder.name)

        on_rank_zero(trainer, lambda: write_folder(folder, write))
        self.folder = folder
        rank_zero_info(f"Student: {folder}")


class SentenceEncoderExport(L.Callback):
    """Writes the encoder of the best bi-encoder at the end of a fit, to embed single texts with.

    The folder is plain transformers, ``AutoModel.from_pretrained(folder)``, and ``SentenceTransformer(folder)`` opens
    it with the student's pooling.

    Args:
        path: The folder; ``<trainer.default_root_dir>/sentence_encoder`` unless given. What stands there is replaced.

    Raises:
        InputError: In ``setup("fit")`` if the student is no bi-encoder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DistillationModule)
        if stage != "fit":
            return
        kind = load_config(pl_module.student_source, "model.student").model_type
        if kind != BiEncoderConfig.model_type:
            raise expected(
                "model.student", "a bi-encoder for SentenceEncoderExport", kind, "Set config: {model_type: bi_encoder}."
            )
        check_output("path", output_path(trainer, self.path, "sentence_encoder"))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.path, "sentence_encoder")

        def write(partial: Path) -> None:
            save_tokenizer(trainer, partial)
            cast(BiEncoderModel, best_student(trainer, pl_module).base_model).save_sentence_encoder(
                partial, data_of(trainer).max_length
            )

        on_rank_zero(trainer, lambda: write_folder(folder, write))
        rank_zero_info(f"Sentence encoder: {folder}")


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
