"""What a compression report holds, and how it is written: JSON, Markdown, and a table on the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_kd._checks import InputError, expected
from lightning_kd.measure import Estimate

__all__ = [
    "Details",
    "Disagreement",
    "Report",
    "ReportRow",
    "Times",
    "installed_versions",
    "markdown_table",
    "metrics_of",
    "print_table",
    "read_report",
    "report_notes",
    "report_table",
    "threads_text",
    "write_text",
]

#: What a report's notes say of its setting.
_SETTING = ("data", "processor", "threads")
#: Larger numbers and longer names are no report's.
_MOST, _LONGEST = 1e15, 1000


@dataclass(frozen=True)
class Times:
    """How fast a model is with some number of threads.

    Attributes:
        latency_p50: Milliseconds for one text.
        latency_p95: Milliseconds for one text.
        throughput: Texts a second in batches of 32.
        times_faster: Median over paired measurements of the reference's time over this model's, one text; None without
            a reference.
    """

    latency_p50: float
    latency_p95: float
    throughput: float
    times_faster: float | None


@dataclass(frozen=True)
class ReportRow:
    """One model of a report.

    Ratios are to the first teacher; where none is measured, to the float model if it was quantized.

    Attributes:
        name: ``teacher``, ``student`` (``model`` without a teacher), ``int8, <backend>`` or a baseline's name.
        parameters: Number of parameters; of an int8 model, those of the float model it was made from.
        bytes: On disk, weights and graph.
        metrics: By split, by metric.
        kept: Percent of the reference's main metric on the main split; None without a reference, and for a metric of
            which less is better.
        agreement: Share of rows of the main split on which an int8 model predicts the same as its float model.
        latency_p50: Milliseconds for one text.
        latency_p95: Milliseconds for one text.
        throughput: Texts a second in batches of 32.
        times_smaller: Bytes of the reference over bytes.
        times_faster: Median over paired measurements of the reference's time over this model's, one text.
        kept_float: The layers of a quantized model that ``max_drop`` kept in float.
        more_threads: The times with other numbers of threads, by their number.
    """

    name: str
    parameters: int
    bytes: int
    metrics: dict[str, dict[str, Estimate]]
    latency_p50: float
    latency_p95: float
    throughput: float
    kept: float | None = None
    agreement: float | None = None
    times_smaller: float | None = None
    times_faster: float | None = None
    kept_float: tuple[str, ...] = ()
    more_threads: dict[int, Times] = field(default_factory=dict)


@dataclass(frozen=True)
class Disagreement:
    """A row on which student and teacher differ much.

    Attributes:
        row: Its number in its data set's split.
        distance: How far the two are apart: of probabilities the total variation distance, from 0 to 1, mean over what
            is predicted of the row; of scores their difference.
        texts: What the models read; None if texts are kept out of reports.
        label: The true one; empty where it is no class, score or tag.
        student: What the student predicts; of tags, those that the teacher has otherwise.
        teacher: What the teacher predicts.
    """

    row: int
    distance: float
    texts: list[str] | None
    label: str
    student: str
    teacher: str


@dataclass(frozen=True)
class Details:
    """What the models of a report do with each row of the main split.

    Attributes:
        agreement: The share of rows, of words or of single labels that two models predict alike: models by models in
            the report's order. Empty for scores.
        labels: The labels' names, in the order of ``confusion``.
        confusion: By model, true labels by predicted labels: numbers of rows. Empty unless a row has one label.
        scores: By metric, e.g. the F1 of each type of entity, by model. Empty unless the task has such metrics.
        disagreements: The rows on which the student is farthest from the first teacher, farthest first.
    """

    agreement: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What :class:`CompressionReport` measured.

    Attributes:
        rows: One a model; the teacher first.
        main_metric: The metric that ``kept`` is about.
        main_split: The split that it is about: rows never used to choose a checkpoint, if there are any.
        split_rows: Rows of each split.
        setting: Data, seed, threads, processor and versions.
        details: What the models do row by row.
    """

    rows: list[ReportRow]
    main_metric: str
    main_split: str
    split_rows: dict[str, int]
    setting: dict[str, Any] = field(default_factory=dict)
    details: Details = field(default_factory=Details)

    def json(self) -> str:
        """The report as :func:`read_report` reads it."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_report(path: Path) -> Report:
    """The report in a run's folder, or in a file.

    Raises:
        InputError: If there is none, or it is damaged.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [_row(each) for each in content.pop("rows")]
        details = content.pop("details", {})
        found = [Disagreement(**each) for each in details.pop("disagreements", [])]
        report = Report(rows, **content, details=Details(**details, disagreements=found))
        _check(report)
        return report
    except OSError as error:
        raise expected("RUN", "a run's folder with a report.json", str(path), "Run `fit` first.") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not a report, or is damaged: run the experiment again.") from error


def _row(content: dict[str, Any]) -> ReportRow:
    metrics = {split: {n: Estimate(**e) for n, e in by_name.items()} for split, by_name in content["metrics"].items()}
    threads = {int(number): Times(**times) for number, times in content.get("more_threads", {}).items()}
    kept = tuple(content.get("kept_float", ()))
    return ReportRow(**{**content, "metrics": metrics, "more_threads": threads, "kept_float": kept})


def _check(report: Report) -> None:
    """Raise unless the figures can be what was measured, and there is one of the main metric of each model."""
    numbers: list[Any] = [report.split_rows[report.main_split], *report.split_rows.values()]
    texts: list[Any] = [report.main_metric, *report.split_rows, *(str(report.setting[k]) for k in _SETTING)]
    for row in report.rows:
        numbers += [row.parameters, row.bytes]
        speeds: list[ReportRow | Times] = [row, *row.more_threads.values()]
        for times in speeds:
            numbers += [times.latency_p50, times.latency_p95, times.throughput]
            numbers += [] if times.times_faster is None else [times.times_faster]
        numbers += [each for each in (row.kept, row.agreement, row.times_smaller) if each is not None]
        texts += [row.name, *row.metrics, *row.kept_float]
        row.metrics[report.main_split][report.main_metric]
        for estimate in (each for by_name in row.metrics.values() for each in by_name.values()):
            if not all(type(each) in (int, float) and abs(each) < _MOST for each in (estimate.value, _error(estimate))):
                raise ValueError("a metric that is no number")
    if not report.rows or not all(isinstance(text, str) and len(text) < _LONGEST for text in texts):
        raise ValueError("no model, or a name that is no text")
    if not all(type(number) in (int, float) and 0 <= number < _MOST for number in numbers):
        raise ValueError("a size or a time that is no number")


def _error(estimate: Estimate) -> float:
    """The standard error; 0 where there is none, as with one row."""
    error = estimate.standard_error
    return 0.0 if isinstance(error, float) and math.isnan(error) else error


def installed_versions() -> dict[str, str]:
    """Versions of what a figure may depend on, of the packages that are there."""
    found = {}
    for package in ("lightning-kd", "torch", "lightning", "transformers", "openvino", "nncf", "onnxruntime", "torchao"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra
            continue
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file under its final name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def metrics_of(report: Report) -> list[tuple[str, str]]:
    """Splits and metrics of all rows; of several runs some may have metrics that others have not."""
    by_row = [(split, metric) for row in report.rows for split, metrics in row.metrics.items() for metric in metrics]
    return list(dict.fromkeys(by_row))


def report_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a report; columns that no model has a value for are left out."""
    columns = metrics_of(report)
    header = ["model", "parameters", "size", *(f"{metric}, {split}" for split, metric in columns)]
    header += ["kept", "agrees with float", "ms, p50", "ms, p95", "texts/s", "smaller", "faster"]
    for threads in report.rows[0].more_threads:
        header += [f"{name}, {threads_text(threads)}" for name in ("ms, p50", "ms, p95", "texts/s", "faster")]
    cells = []
    for row in report.rows:
        line = [row.name, f"{row.parameters / 1e6:.1f} M", f"{row.bytes / 1e6:.1f} MB"]
        found = [row.metrics.get(split, {}).get(metric) for split, metric in columns]
        line += ["" if each is None else f"{each.value:.4f} ± {each.standard_error:.4f}" for each in found]
        line += [
            "" if row.kept is None else f"{row.kept:.1f} %",
            "" if row.agreement is None else f"{100 * row.agreement:.1f} %",
            *_speed(row)[:3],
            "" if row.times_smaller is None else f"{row.times_smaller:.1f} x",
            _speed(row)[3],
        ]
        for times in row.more_threads.values():
            line += _speed(times)
        cells.append(line)
    used = [i for i in range(len(header)) if any(line[i] for line in cells)]
    return [header[i] for i in used], [[line[i] for i in used] for line in cells]


def _speed(times: ReportRow | Times) -> list[str]:
    faster = "" if times.times_faster is None else f"{times.times_faster:.1f} x"
    return [f"{times.latency_p50:.2f}", f"{times.latency_p95:.2f}", f"{times.throughput:.0f}", faster]


def threads_text(number: int | str) -> str:
    """How many threads, in words."""
    return f"{number} thread{'s' if str(number) != '1' else ''}"


def report_notes(report: Report) -> list[str]:
    """What stands below the table: where the rows come from, and what the columns mean."""
    rows = ", ".join(f"{split} {rows:,}" for split, rows in report.split_rows.items())
    chosen = (
        "never used to choose a checkpoint"
        if report.main_split == "test"
        else "also used to choose the checkpoint: hold rows out to measure without that bias"
    )
    has_teacher = report.rows[0].name.rpartition(": ")[2].startswith("teacher")  # of one of several runs: behind it
    notes = [
        f"Data: {report.setting['data']}. Rows: {rows}. Those of {report.main_split} are {chosen}.",
        "±: standard error.",
    ]
    if any(row.kept is not None for row in report.rows):
        notes.append(
            f"Kept: {report.main_metric} on {report.main_split}, as a share of that of the "
            f"{'teacher' if has_teacher else 'float model'}; smaller and faster are to the same."
        )
    notes += [f"{row.name}: kept in float: {', '.join(row.kept_float)}." for row in report.rows if row.kept_float]
    notes.append(
        f"Times: {threads_text(report.setting['threads'])}, {report.setting['processor']}; forward pass without the "
        "tokenizer; ms for one text, texts/s in batches of 32; all models interleaved."
    )
    return notes


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A Markdown table with notes below it."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] + [f"{note}\n" for note in notes])


def print_table(title: str, header: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table: a row a model where the terminal is wide enough, else a column a model."""
    console = Console(markup=False)  # a name may have brackets
    width = sum(max(len(line[i]) for line in [header, *cells]) + 3 for i in range(len(header)))
    lines = [list(line) for line in [header, *cells]]
    if width > console.width:
        lines = [list(line) for line in zip(*lines, strict=True)]
    grid = Table(title=title, title_justify="left")
    for i, name in enumerate(lines[0]):
        grid.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for line in lines[1:]:
        grid.add_row(*line)
    console.print(grid)
    for note in notes:
        console.print(note, style="dim", highlight=False)
