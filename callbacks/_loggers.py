"""What each kind of logger can take of a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_kd.callbacks._drawing import markdown_table, table

if TYPE_CHECKING:
    from lightning_kd.callbacks.report import Report

__all__ = ["log_report"]


def log_report(loggers: Iterable[Logger], report: Report, chart: Path, task: str = "") -> None:
    """Send the figures to every logger; table and chart to W&B and TensorBoard. Of several tasks, under its name."""
    figures = {}
    title = f"report/{task}" if task else "report"
    for row in report.rows:
        prefix = f"{title}/{row.name}"
        figures[f"{prefix}/megabytes"] = row.bytes / 1e6
        figures[f"{prefix}/latency_p50_ms"] = row.latency_p50
        for split, metrics in row.metrics.items():
            figures.update({f"{prefix}/{split}/{name}": estimate.value for name, estimate in metrics.items()})
    for logger in loggers:
        logger.log_metrics(figures)
        if isinstance(logger, WandbLogger):
            header, cells = table(report)
            logger.log_table(title, columns=header, data=cells)
            logger.log_image(f"{title}_chart", [str(chart)])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(title, markdown_table(report))
        logger.save()
