"""Predictions as JSON Lines, and as GLUE takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError
from lightning_kd.callbacks._fit_end import check_file, data_of, output_path

__all__ = ["GLUESubmission", "PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes one JSON record a row when `predict` ends, in the order of the rows.

    Args:
        path: The file; ``<trainer.default_root_dir>/predictions.jsonl`` unless given.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            check_file("predictions.path", output_path(trainer, self.path, "predictions.jsonl"))

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        path = output_path(trainer, self.path, "predictions.jsonl")
        records = _gathered(trainer, predictions, path)
        if trainer.is_global_zero:
            _write(path, _lines(records))
            rank_zero_info(f"Predictions: {path} ({len(records):,} rows)")


class GLUESubmission(BasePredictionWriter):
    """Writes the file that gluebenchmark.com takes when `predict` ends, e.g. ``SST-2.tsv``.

    MNLI has three of them, one a run: see ``mnli_test`` of :class:`lightning_kd.datamodules.GLUEDataModule`.

    Args:
        path: The folder; ``<trainer.default_root_dir>/submission`` unless given.

    Raises:
        InputError: In ``setup("predict")``, if the data is no set of GLUE or has no test split; at the end if a row
            is missing.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        data = data_of(trainer)
        if not hasattr(data, "submission"):
            raise InputError("GLUESubmission needs lightning_kd.datamodules.GLUEDataModule: leave the callback out.")
        if data.load_split("test") is None:
            raise InputError("GLUESubmission needs the rows of the test split, but these data have none.")

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        folder = output_path(trainer, self.path, "submission")
        records = _gathered(trainer, predictions, folder / "predictions")
        if trainer.is_global_zero:
            name, text = data_of(trainer).submission(records)
            _write(folder / name, text)
            rank_zero_info(f"GLUE submission: {folder / name} ({len(records):,} rows)")


def _gathered(trainer: L.Trainer, predictions: Any, path: Path) -> list[dict[str, Any]]:
    """The records of all ranks in the order of the rows, on rank 0, by way of files beside ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f"{path.name}.rank{rank}") for rank in range(trainer.world_size)]
    _write(parts[trainer.global_rank], _lines(record for batch in predictions for record in batch))
    trainer.strategy.barrier("predictions")
    if not trainer.is_global_zero:
        return []
    records = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line]
    for part in parts:
        part.unlink()
    return sorted(records, key=lambda record: record["index"])


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    """Write a file that stands under its name only when it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
