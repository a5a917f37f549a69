"""Predictions as JSON Lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd.callbacks._fit_end import output_path

__all__ = ["PredictionWriter"]


class PredictionWriter(BasePredictionWriter):
    """Writes one JSON record a row when `predict` ends, in the order of the rows.

    Args:
        path: The file; ``<trainer.default_root_dir>/predictions.jsonl`` unless given.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        path = output_path(trainer, self.path, "predictions.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [record for batch in predictions for record in batch]
        part = path.with_name(f"{path.name}.rank{trainer.global_rank}")
        _write(part, records)
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            parts = [path.with_name(f"{path.name}.rank{rank}") for rank in range(trainer.world_size)]
            records = [json.loads(line) for p in parts for line in p.read_text(encoding="utf-8").splitlines()]
            _write(parts[0], sorted(records, key=lambda record: record["index"]))
            os.replace(parts[0], path)
            for p in parts[1:]:
                p.unlink()
            rank_zero_info(f"Predictions: {path} ({len(records):,} rows)")


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
