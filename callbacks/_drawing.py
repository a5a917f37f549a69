"""A report as a table and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lightning_kd.callbacks.report import Report, ReportRow, Times

__all__ = ["draw_chart", "markdown_table", "print_table", "table"]

#: Of the largest model's point, in square typographical points.
_AREA = 900


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a report; columns that no model has a value for are left out."""
    header = ["model", "parameters", "size"]
    header += [f"{metric}, {split}" for split, metrics in report.rows[0].metrics.items() for metric in metrics]
    header += ["kept", "agrees with float", "ms, p50", "ms, p95", "texts/s", "smaller", "faster"]
    for threads in report.rows[0].more_threads:
        header += [f"{name}, {_threads(threads)}" for name in ("ms, p50", "ms, p95", "texts/s", "faster")]
    cells = []
    for row in report.rows:
        line = [row.name, f"{row.parameters / 1e6:.1f} M", f"{row.bytes / 1e6:.1f} MB"]
        for metrics in row.metrics.values():
            line += [f"{estimate.value:.4f} ± {estimate.standard_error:.4f}" for estimate in metrics.values()]
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


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _notes(report: Report) -> list[str]:
    rows = ", ".join(f"{split} {rows:,}" for split, rows in report.split_rows.items())
    chosen = (
        "never used to choose a checkpoint"
        if report.main_split == "test"
        else "also used to choose the checkpoint: hold rows out to measure without that bias"
    )
    has_teacher = report.rows[0].name.startswith("teacher")
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
        f"Times: {_threads(report.setting['threads'])}, {report.setting['processor']}; forward pass without the "
        "tokenizer; ms for one text, texts/s in batches of 32; all models interleaved."
    )
    return notes


def markdown_table(report: Report) -> str:
    """The report as a Markdown table with its notes."""
    header, cells = table(report)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""] + [f"{n}\n" for n in _notes(report)])


def print_table(report: Report) -> None:
    """Print the report: a row a model where the terminal is wide enough, else a column a model."""
    header, cells = table(report)
    console = Console()
    width = sum(max(len(line[i]) for line in [header, *cells]) + 3 for i in range(len(header)))
    lines = [header, *cells]
    if width > console.width:
        lines = [list(line) for line in zip(*lines, strict=True)]
    grid = Table(title="Compression report", title_justify="left")
    for i, name in enumerate(lines[0]):
        grid.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for line in lines[1:]:
        grid.add_row(*line)
    console.print(grid)
    for note in _notes(report):
        console.print(note, style="dim", highlight=False)


def draw_chart(report: Report, path: Path) -> None:
    """The main metric against latency, the area of each point being the model's size on disk."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    largest = max(row.bytes for row in report.rows)
    for number, row in enumerate(report.rows, 1):
        estimate = row.metrics[report.main_split][report.main_metric]
        x, y = row.latency_p50, estimate.value
        grey = f"{0.25 + 0.5 * (number - 1) / max(1, len(report.rows) - 1):.2f}"
        axes.errorbar(x, y, yerr=estimate.standard_error, color="0.4", capsize=3, linewidth=1, zorder=2)
        axes.scatter(x, y, s=_AREA * row.bytes / largest, color=grey, alpha=0.8, edgecolor="black", zorder=3)
        axes.plot([], [], " ", label=f"{number}  {row.name}: {row.bytes / 1e6:.1f} MB, {x:.2f} ms, {y:.3f}")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        handlelength=0,
        fontsize=9,
    )
    axes.margins(x=0.1, y=0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"latency of one text, median, ms ({_threads(report.setting['threads'])})")
    axes.set_ylabel(f"{report.main_metric}, {report.main_split} ({report.split_rows[report.main_split]:,} rows)")
    axes.set_title("Area of a point: size on disk. Bars: standard error.", fontsize=9, loc="left")
    axes.grid(color="0.9", zorder=0)
    figure.draw_without_rendering()  # from here on it is known where on the paper a point is
    points = [(row.latency_p50, row.metrics[report.main_split][report.main_metric].value) for row in report.rows]
    centres = axes.transData.transform(points) * 72 / figure.dpi
    radii = np.sqrt(_AREA / np.pi * np.asarray([row.bytes / largest for row in report.rows]))
    for number, (point, offset) in enumerate(zip(points, _label_offsets(centres, radii), strict=True), 1):
        axes.annotate(
            str(number),
            point,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            weight="bold",
            arrowprops={"arrowstyle": "-", "color": "0.6"} if np.hypot(*offset) > radii[number - 1] + 15 else None,
            zorder=4,
        )
    figure.savefig(path, dpi=150)


def _label_offsets(centres: NDArray[np.float64], radii: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Where the number of each point stands: to its side, as near as it is clear of all points and other numbers.

    Args:
        centres: ``(points, 2)``, in typographical points.
        radii: ``(points,)``.

    Returns:
        Of each point the way from its centre to that of its number.
    """
    placed: list[NDArray[np.float64]] = []
    offsets = []
    directions = np.radians([0, 180, 45, 135, -45, -135, 90, -90])
    for centre, radius in zip(centres, radii, strict=True):
        ways = [
            (radius + distance) * np.asarray([np.cos(angle), np.sin(angle)])
            for distance in (9, 22, 35)
            for angle in directions
        ]

        def room(way: NDArray[np.float64], centre: NDArray[np.float64] = centre) -> float:
            """Free points around the number; more than it needs is no better."""
            from_points = np.hypot(*(centres - centre - way).T) - radii
            from_numbers = [float(np.hypot(*(other - centre - way))) - 7 for other in placed]
            return min(7.0, *from_points, *from_numbers)

        best = max(ways, key=room)  # the first of equals: the nearest
        placed.append(centre + best)
        offsets.append((float(best[0]), float(best[1])))
    return offsets
