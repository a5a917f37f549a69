"""What each kind of logger can take: W&B and TensorBoard figures, tables and pictures, any other the figures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError
from lightning_kd.report import Report, markdown_table, report_notes, report_table

__all__ = ["check_loggers", "finish_loggers", "log_folders", "log_picture", "log_report"]

Table = tuple[list[str], list[list[Any]]]


def check_loggers(loggers: Iterable[Logger]) -> None:
    """Refuse a W&B run that would have to ask for an account.

    Raises:
        InputError: If the run is to be sent and there is no key to send it with.
    """
    ours = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    for logger in ours:
        Path(logger.save_dir or ".").mkdir(parents=True, exist_ok=True)  # or W&B says that it is missing
    if all(logger._offline for logger in ours) or os.environ.get("WANDB_MODE", "online") != "online":
        os.environ.setdefault("WANDB_SILENT", "true")  # nothing can fail on its way: finish_loggers says where it is
        return
    import wandb

    if wandb.run is not None:
        return
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "WandbLogger sends the run to W&B, but no account is set up here: run `wandb login` once, or give "
            "`--trainer.logger.offline true`, which needs neither account nor network."
        )


def finish_loggers(trainer: L.Trainer) -> None:
    """End the W&B runs, and say where they are."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            run = logger.experiment
            offline, url, folder = run.offline, run.url, Path(run.dir).parent
            run.finish()
            if offline:
                rank_zero_info(f"W&B: offline; `wandb sync {os.path.relpath(folder)}` sends the run")
            else:
                rank_zero_info(f"W&B: {url}")


def log_report(trainer: L.Trainer, report: Report, pictures: Mapping[str, Path], task: str = "") -> None:
    """Send a report to every logger.

    Args:
        trainer: Whose loggers they are.
        report: The report.
        pictures: By name, the PNG files.
        task: The name of the task, of several.
    """
    figures = {}
    title = f"report/{task}" if task else "report"
    for row in report.rows:
        prefix = f"{title}/{row.name}"
        figures[f"{prefix}/megabytes"] = row.bytes / 1e6
        figures[f"{prefix}/latency_p50_ms"] = row.latency_p50
        for split, metrics in row.metrics.items():
            figures.update({f"{prefix}/{split}/{name}": estimate.value for name, estimate in metrics.items()})
    tables = {"report": report_table(report), **_detail_tables(report)}
    step = trainer.global_step
    for logger in trainer.loggers:
        logger.log_metrics(figures, step)
        for name, (header, cells) in tables.items():
            if isinstance(logger, WandbLogger):
                logger.log_table(_named(name, task), columns=header, data=cells, step=step)
            elif isinstance(logger, TensorBoardLogger):
                notes = report_notes(report) if name == "report" else []
                text = markdown_table(header, [[str(cell) for cell in line] for line in cells], notes)
                logger.experiment.add_text(_named(name, task), text, step)
        logger.save()
    for name, path in pictures.items():
        log_picture(trainer, _named(name, task), path)


def _named(name: str, task: str) -> str:
    return f"{name}/{task}" if task else name


def _detail_tables(report: Report) -> dict[str, Table]:
    """The details as tables, the models side by side."""
    models, details = [row.name for row in report.rows], report.details
    tables: dict[str, Table] = {}
    if details.agreement:
        cells = [[name, *line] for name, line in zip(models, details.agreement, strict=True)]
        tables["agreement"] = ["model", *models], cells
    if details.confusion:
        pairs = [(i, j) for i in range(len(details.labels)) for j in range(len(details.labels))]
        cells = [
            [details.labels[i], details.labels[j], *(table[i][j] for table in details.confusion.values())]
            for i, j in pairs
        ]
        tables["confusion"] = ["label", "predicted", *details.confusion], cells
    if details.scores:
        cells = [[metric, *by_model.values()] for metric, by_model in details.scores.items()]
        tables["scores"] = ["metric", *next(iter(details.scores.values()))], cells
    if details.disagreements:
        with_texts = details.disagreements[0].texts is not None
        header = ["row", "distance", "label", "student", "teacher", *(["texts"] if with_texts else [])]
        cells = [
            [d.row, d.distance, d.label, d.student, d.teacher, *([" | ".join(d.texts)] if d.texts is not None else [])]
            for d in details.disagreements
        ]
        tables["disagreements"] = header, cells
    return tables


def log_picture(trainer: L.Trainer, name: str, path: Path) -> None:
    """Send a PNG to the loggers that show pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(name, imread(path), trainer.global_step, dataformats="HWC")
        logger.save()


def log_folders(trainer: L.Trainer, report: Report, folders: Mapping[str, Path], task: str = "") -> None:
    """Send model folders to W&B as artifacts, where ``WandbLogger(log_model=...)`` allows uploads.

    Args:
        trainer: Whose loggers they are.
        report: Where the metadata of each folder come from.
        folders: By the name that the report has for the model.
        task: The name of the task, of several, which is that of each folder in another.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger) and logger._log_model]
    if not loggers:
        return
    import wandb

    rows = {row.name: asdict(row) for row in report.rows}
    for logger in loggers:
        for name, folder in folders.items():
            metadata = {**rows[name], "main_metric": report.main_metric, "main_split": report.main_split}
            metadata["setting"] = report.setting
            stem = f"{folder.parent.name}-{task}" if task else folder.name
            artifact = wandb.Artifact(f"{stem}-{logger.experiment.id}", "model", metadata=metadata)
            artifact.add_dir(str(folder))
            logger.experiment.log_artifact(artifact)
