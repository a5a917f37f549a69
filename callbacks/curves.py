"""How a training went, as a picture and a table."""

from __future__ import annotations

import csv
import io
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd.callbacks._fit_end import is_trial, output_path
from lightning_kd.callbacks._loggers import log_picture
from lightning_kd.charts import draw_curves
from lightning_kd.report import write_text

__all__ = ["TrainingCurves"]


class TrainingCurves(L.Callback):
    """Keeps what a fit logs and, when it ends, writes ``curves.png`` and ``curves.csv``, whatever the logger.

    Each loss term and its share of the loss, weights, temperature and learning rate at every logged step, and the
    metrics of each validation. The picture goes to the loggers that can take one. A resumed fit goes on with the
    values of the first.

    Args:
        path: The folder for the two files; ``trainer.default_root_dir`` unless given.
    """

    of_whole_run = True  # also where the module has several tasks

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        #: One a step: its number, the epoch, and the values by the names under which they are logged.
        self.rows: list[dict[str, float]] = []
        self._logged = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:
            self.rows = []
        self._logged = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set by the trainer's connector
        if trainer.global_step != self._logged and trainer.global_step % every == 0:
            self._logged = trainer.global_step
            self._add(trainer, "train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, "val")

    def _add(self, trainer: L.Trainer, prefix: str) -> None:
        values = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(prefix)}
        if values:
            self.rows.append({"step": trainer.global_step, "epoch": trainer.current_epoch, **values})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or is_trial(trainer) or not self.rows:
            return
        folder = output_path(trainer, self.path, ".")
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(folder / "curves.csv", text.getvalue())
        curves = {}
        for name in names[2:]:
            points = [(int(row["step"]), row[name]) for row in self.rows if name in row]
            curves[name] = ([step for step, _ in points], [value for _, value in points])
        epochs = [max(int(r["step"]) for r in self.rows if r["epoch"] == e) for e in {r["epoch"] for r in self.rows}]
        draw_curves(curves, sorted(epochs), folder / "curves.png")
        log_picture(trainer, "curves", folder / "curves.png")
        rank_zero_info(f"Curves: {folder / 'curves.png'}, and curves.csv beside it")
