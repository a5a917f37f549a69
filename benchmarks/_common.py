"""What the benchmarks share: their options, their table, their JSON."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

__all__ = ["fit", "parser", "quiet", "report", "setting", "spread"]

ROOT = Path(__file__).resolve().parents[1]


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a smaller run of less than a minute, to see that it works")
    made.add_argument("--json", type=Path, help="write the figures to this file, too")
    made.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    return made


def fit(
    config: str, folder: Path, callbacks: Sequence[dict[str, Any]] = (), **options: object
) -> dict[str, dict[str, float]]:
    """Run a config with other options, its last weights being the student, unless its report is there.

    Args:
        config: The config.
        folder: Of the run.
        callbacks: Instead of the config's.
        options: By their names on the command line.

    Returns:
        By the name of the model in the report, its scores on the held-out rows.
    """
    if not (folder / "report.json").is_file():
        fixed = {
            "trainer.default_root_dir": folder,
            "trainer.logger": "false",
            "trainer.callbacks": json.dumps(list(callbacks) or None),
            "trainer.enable_progress_bar": "false",
        }
        arguments = [f"--{name}={value}" for name, value in {"config": config, **options, **fixed}.items()]
        done = subprocess.run(
            [sys.executable, "train.py", "fit", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{config}: {done.stderr.strip().splitlines()[-1]}")
    models = json.loads((folder / "report.json").read_text())["rows"]
    return {row["name"]: {key: v["value"] for key, v in row["metrics"]["test"].items()} for row in models}


def spread(scores: Sequence[float]) -> dict[str, float]:
    """The mean over the seeds, and how far they lie apart."""
    return {"mean": statistics.mean(scores), "lowest": min(scores), "highest": max(scores)}


def quiet() -> None:
    """Leave out what Lightning and transformers tell of a run: a benchmark has many."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # a table is what a benchmark prints


def setting(**more: Any) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    packages = {name: version(name) for name in ("torch", "transformers", "lightning")}
    return (
        {"processor": platform.processor(), "machine": platform.machine(), "threads": torch.get_num_threads()}
        | packages
        | more
    )


def report(title: str, rows: Sequence[dict[str, Any]], about: dict[str, Any], path: Path | None) -> None:
    """Print the rows as a table, and write them with their setting."""
    table = Table(title=title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)  # in a file as wide as it is
    if path is not None:
        text = json.dumps({"setting": about, "rows": list(rows)}, indent=2) + "\n"
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
        print(f"wrote {path}")
