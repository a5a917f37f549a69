"""`lightning-kd compare`: the reports of many runs as one table and one chart."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_kd._arguments import ArgumentParser
from lightning_kd._checks import InputError
from lightning_kd.charts import draw_report
from lightning_kd.report import (
    Report,
    markdown_table,
    metrics_of,
    print_table,
    read_report,
    report_notes,
    report_table,
    write_text,
)

__all__ = ["compare", "main"]

#: With more models than that, the terminal has the short columns alone.
_FEW = 4
_SHORT = ("model", "size", "kept", "ms, p50", "faster")


def compare(paths: Sequence[Path]) -> Report:
    """The reports of several runs as one, each model called by its run and its own name.

    A model that stands in several reports with the same size and metrics, as a shared teacher does, is shown once.

    Args:
        paths: Folders of runs, or files.

    Raises:
        InputError: If there is no report, or they are not about the same metric on equally many rows of one split.
    """
    reports = {path: read_report(path) for path in dict.fromkeys(paths)}
    names = _short_names(list(reports))
    (first_path, first), *others = reports.items()
    for path, report in others:
        for what in ("main_metric", "main_split"):
            one, other = getattr(first, what), getattr(report, what)
            if one != other:
                raise InputError(
                    f"Expected runs with the same {what.replace('_', ' ')}, but {first_path} is about {one} and "
                    f"{path} about {other}: compare them in two calls."
                )
        if first.split_rows[first.main_split] != report.split_rows[first.main_split]:
            raise InputError(
                f"Expected runs that were measured on the same rows, but {first_path} has "
                f"{first.split_rows[first.main_split]:,} of {first.main_split} and {path} "
                f"{report.split_rows[first.main_split]:,}: compare them in two calls."
            )
    rows, seen = [], set()
    for path, report in reports.items():
        for row in report.rows:
            same = (row.name, row.bytes, row.parameters, str(row.metrics))
            if row.name.startswith("teacher") and same in seen:
                continue
            seen.add(same)
            rows.append(replace(row, name=f"{names[path]}: {row.name}", more_threads={}))
    settings = [report.setting for report in reports.values()]
    setting = {
        key: " / ".join(dict.fromkeys(str(each.get(key)) for each in settings))
        for key in ("data", "processor", "threads")
    }
    return Report(rows, first.main_metric, first.main_split, first.split_rows, setting)


def _short_names(paths: list[Path]) -> dict[Path, str]:
    """Each run's path without what is the same in all of them."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    shortest = min(map(len, parts))
    front = next((i for i in range(shortest - 1) if len({each[i] for each in parts}) > 1), shortest - 1)
    names = ["/".join(each[front:]) for each in parts]
    return dict(zip(paths, names, strict=True))


def main(arguments: Sequence[str]) -> None:
    """Run ``lightning-kd compare`` with ``arguments``."""
    parser = ArgumentParser("compare", "The reports of many runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with a report.json, or such a file")
    help_text = "folder for compare.md, compare.csv and compare.png (default: runs/compare)"
    parser.add_argument("--path", type=Path, default=Path("runs/compare"), help=help_text)
    given = parser.parse_args(arguments)
    report = compare([Path(run) for run in given.runs])
    header, cells = report_table(report)
    notes = report_notes(report)
    if len(given.runs) > 1:
        notes.append(
            "Each run was timed by itself: compare times of two runs by how much faster each is than its teacher."
        )
    shown = [i for i, name in enumerate(header) if len(cells) <= _FEW or name in _SHORT or report.main_split in name]
    table = [header[i] for i in shown], [[line[i] for i in shown] for line in cells]
    print_table("Runs side by side", *table, notes)
    write_text(given.path / "compare.md", markdown_table(header, cells, notes))
    write_text(given.path / "compare.csv", _csv(report))
    draw_report(report, given.path / "compare.png")
    print(f"Written: {given.path / 'compare.md'}, compare.csv and compare.png beside it")


def _csv(report: Report) -> str:
    """All figures with all of their digits."""
    text = io.StringIO(newline="")
    metrics = metrics_of(report)
    plain = ["name", "parameters", "bytes", "kept", "agreement", "latency_p50", "latency_p95", "throughput"]
    plain += ["times_smaller", "times_faster"]
    writer = csv.writer(text, lineterminator="\n")
    errors = [f"{m}, {s}, standard error" for s, m in metrics]
    writer.writerow([*plain, *(f"{m}, {s}" for s, m in metrics), *errors])
    for row in report.rows:
        found = [row.metrics.get(s, {}).get(m) for s, m in metrics]
        values = [getattr(row, name) for name in plain] + [e and e.value for e in found]
        writer.writerow([*values, *(e and e.standard_error for e in found)])
    return text.getvalue()
