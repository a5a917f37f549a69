"""`lightning-kd sweep`: the search that a W&B sweep file describes, without W&B."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_kd._arguments import ArgumentParser
from lightning_kd._checks import InputError, expected
from lightning_kd._progress import stage
from lightning_kd.report import markdown_table, print_table, read_report, write_text

__all__ = ["Sweep", "main", "read_sweep", "run_sweep"]

Parameters = dict[str, Any]

_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
_DISTRIBUTIONS = ("categorical", "constant", "int_uniform", "uniform", "q_uniform", "log_uniform_values")


@dataclass(frozen=True)
class Sweep:
    """A search, as a file for ``wandb sweep`` describes it.

    Attributes:
        program: What is run.
        command: The words of the command, with W&B's macros.
        method: ``grid`` or ``random``.
        metric: As it is logged, e.g. ``val/accuracy``.
        maximize: Whether more is better.
        parameters: By option, W&B's description of its values.
        run_cap: The number of runs, if it is limited.
    """

    program: str
    command: list[str]
    method: str
    metric: str
    maximize: bool
    parameters: dict[str, dict[str, Any]]
    run_cap: int | None = None

    def points(self, count: int | None, seed: int) -> Iterator[Parameters]:
        """The parameters of each run: all of a grid in order, or distinct random ones, the same for the same seed.

        Raises:
            InputError: If the file's values cannot be searched so.
        """
        most = self.run_cap if count is None else count
        if self.method == "grid":
            values = []
            for name, about in self.parameters.items():
                if "value" not in about and "values" not in about:
                    raise expected(f"parameters.{name}", "values to go through", about, "Or set method: random.")
                values.append(about["values"] if "values" in about else [about["value"]])
            grid = itertools.product(*values)
            yield from (dict(zip(self.parameters, point, strict=True)) for point in itertools.islice(grid, most))
            return
        if most is None:
            raise InputError("A random search has no end of its own: give --runs, or run_cap in the file.")
        generator = np.random.default_rng(seed)
        seen: set[str] = set()
        for _ in range(100 * most):
            point = {name: _draw(name, about, generator) for name, about in self.parameters.items()}
            if len(seen) < most and (key := _key(point)) not in seen:
                seen.add(key)
                yield point

    def arguments(self, point: Parameters, folder: Path) -> list[str]:
        """The command of one run, as W&B's agent would write it, with a folder of its own."""
        flags = [f"--{name}={value}" for name, value in point.items()]
        macros = {"${env}": [], "${interpreter}": [sys.executable], "${program}": [self.program], "${args}": flags}
        words = [word for part in self.command for word in macros.get(part, [part])]
        words.append(f"--trainer.default_root_dir={folder}")
        if any(word.startswith("--trainer.logger") for word in words):
            words.append(f"--trainer.logger.save_dir={folder}")  # with its logs and checkpoints
        return words


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        InputError: If it is none, or asks for what only W&B can do.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        metric = content["metric"]
        goal, method = metric.get("goal", "minimize"), content["method"]
        found = Sweep(
            program=content.get("program", "train.py"),
            command=[str(word) for word in content.get("command", _COMMAND)],
            method=method,
            metric=metric["name"],
            maximize=goal == "maximize",
            parameters=dict(content["parameters"]),
            run_cap=content.get("run_cap"),
        )
    except OSError as error:
        raise expected("FILE", "a sweep file", str(path), "There is no such file.") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {str(error).splitlines()[0]}"
        raise InputError(f"{path} is no sweep: it needs method, metric.name and parameters ({reason}).") from error
    if method not in ("grid", "random"):
        raise expected("method", "grid or random", method, "The others need W&B: `wandb sweep` takes the same file.")
    if "early_terminate" in content:
        raise InputError("early_terminate needs W&B: leave it out, or run `wandb sweep` with the same file.")
    known = {"${env}", "${interpreter}", "${program}", "${args}"}
    unknown = [word for word in found.command if word.startswith("${") and word not in known]
    if unknown:
        raise expected("command", f"words and {', '.join(sorted(known))}", ", ".join(unknown))
    return found


def _draw(name: str, about: Mapping[str, Any], generator: np.random.Generator) -> Any:
    kind = about.get("distribution")
    if kind is None:
        whole = all(isinstance(about.get(end), int) for end in ("min", "max"))
        kind = "constant" if "value" in about else "categorical" if "values" in about else "uniform"
        kind = "int_uniform" if kind == "uniform" and whole else kind
    if kind not in _DISTRIBUTIONS:
        raise expected(f"parameters.{name}.distribution", f"one of {', '.join(_DISTRIBUTIONS)}", kind)
    try:
        if kind == "constant":
            return about["value"]
        if kind == "categorical":
            chances = about.get("probabilities")
            return about["values"][int(generator.choice(len(about["values"]), p=chances))]
        low, high = about["min"], about["max"]
    except KeyError as error:
        raise expected(f"parameters.{name}", "value, values, or min and max", dict(about)) from error
    if kind == "int_uniform":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log_uniform_values":
        return float(math.exp(generator.uniform(math.log(low), math.log(high))))
    value = float(generator.uniform(low, high))
    step = about.get("q", 1) if kind == "q_uniform" else None
    return value if step is None else round(value / step) * step


def _key(point: Parameters) -> str:
    return json.dumps(point, sort_keys=True)


@dataclass
class _Run:
    """One run and what came of it."""

    point: Parameters
    folder: Path
    score: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def run_sweep(sweep: Sweep, folder: Path, count: int | None = None, jobs: int = 1, seed: int = 0) -> list[_Run]:
    """Run every point that has no result yet, in processes of its own.

    Args:
        sweep: The search.
        folder: Each run has a folder in it, with its log; what is finished there is not run again.
        count: Runs at most; the file's ``run_cap`` unless given.
        jobs: Runs at the same time, 1 or more.
        seed: Of a random search.

    Returns:
        The best first; those that failed last.
    """
    points = list(sweep.points(count, seed))
    runs = [_Run(p, folder / hashlib.sha256(_key(p).encode()).hexdigest()[:10]) for p in points]
    missing = [run for run in runs if not (run.folder / "result.json").is_file()]
    with stage("Sweep", len(missing), "runs") as progress, ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda run: _execute(sweep, run), missing):
            progress.advance()
    for run in runs:
        if (file := run.folder / "result.json").is_file():
            result = json.loads(file.read_text(encoding="utf-8"))
            run.score, run.figures = result["score"], result["figures"]
    sign = -1 if sweep.maximize else 1
    return sorted(runs, key=lambda run: (run.score is None, sign * (run.score or 0)))


def _execute(sweep: Sweep, run: _Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    command = sweep.arguments(run.point, run.folder)
    environment = {"WANDB_MODE": "offline", **os.environ}
    with (run.folder / "log.txt").open("w", encoding="utf-8") as log:
        log.write(shlex.join(command) + "\n")
        log.flush()
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)  # noqa: S603  # the user's
    if done.returncode:
        lines = (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()
        run.failure = f"exit status {done.returncode}: {lines[-1][:200]}"
        return
    try:
        result = {"parameters": run.point, "score": _score(sweep, run.folder), "figures": _figures(run.folder)}
        write_text(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    except InputError as error:  # said at the end, of all runs together
        run.failure = str(error)


def _score(sweep: Sweep, folder: Path) -> float:
    """The metric of the best validation, whose checkpoint is the one that is exported."""
    file = folder / "curves.csv"
    if not file.is_file():
        raise InputError(f"The run has left no {file.name}: its command has to be a `fit` of lightning-kd.")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    values = [float(row[sweep.metric]) for row in rows if row.get(sweep.metric)]
    if not values:
        logged = ", ".join(name for name in rows[0] if name not in ("step", "epoch"))
        raise expected("metric.name", f"one that the run logs ({logged})", sweep.metric)
    return max(values) if sweep.maximize else min(values)


def _figures(folder: Path) -> dict[str, float]:
    """What the run's report says of the models that it made, for the table alone: nothing is chosen by it."""
    if not (folder / "report.json").is_file():
        return {}
    report = read_report(folder)
    figures = {}
    for row in report.rows:
        if not row.name.startswith("teacher"):
            figures[f"{row.name}: {report.main_metric}, {report.main_split}"] = row.metrics[report.main_split][
                report.main_metric
            ].value
            figures[f"{row.name}: MB"] = row.bytes / 1e6
            figures[f"{row.name}: ms"] = row.latency_p50
    return figures


def _table(sweep: Sweep, runs: Sequence[_Run]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    header = ["run", *sweep.parameters, f"best {sweep.metric}", *names]
    cells = []
    for run in runs:
        score = run.failure or "failed" if run.score is None else f"{run.score:.4f}"
        figures = [f"{run.figures[name]:.4f}" if name in run.figures else "" for name in names]
        cells.append([run.folder.name, *(str(run.point[name]) for name in sweep.parameters), score, *figures])
    return header, cells


def main(arguments: Sequence[str]) -> None:
    """Run ``lightning-kd sweep`` with ``arguments``."""
    about = "The search that a W&B sweep file describes, without W&B. Run it again to go on after an interruption."
    parser = ArgumentParser("sweep", about)
    parser.add_argument("file", type=Path, metavar="FILE", help="sweep file, as `wandb sweep` takes it")
    parser.add_argument("--runs", type=int, help="runs at most (default: run_cap in the file, or the whole grid)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of a random search (default: 0)")
    parser.add_argument("--path", type=Path, help="folder of the runs (default: runs/sweeps/<name of the file>)")
    given = parser.parse_args(arguments)
    for name in ("runs", "jobs"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise expected(f"--{name}", "at least 1", value)
    sweep = read_sweep(given.file)
    folder = given.path or Path("runs/sweeps") / given.file.stem
    runs = run_sweep(sweep, folder, given.runs, given.jobs, given.seed)
    header, cells = _table(sweep, runs)
    goal = "most" if sweep.maximize else "least"
    notes = [
        f"Best first: {goal} {sweep.metric}, of the best validation of each run. The other columns choose nothing."
    ]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    write_text(folder / "sweep.csv", text.getvalue())
    write_text(folder / "sweep.md", markdown_table(header, cells, notes))
    print_table(f"Sweep {given.file}", header, cells, notes)
    print(f"Written: {folder / 'sweep.md'}, and sweep.csv beside it; each run's folder has its log.txt")
    if any(run.score is None for run in runs):
        raise InputError(f"{sum(run.score is None for run in runs)} of {len(runs)} runs failed: see the table.")
