"""Pictures of reports and trainings, readable in grey."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_kd.report import Report, threads_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curves", "draw_agreement", "draw_curves", "draw_details", "draw_report"]

#: Of the largest model's point, in square typographical points.
_AREA = 900
#: What tells lines and areas apart without colour.
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")

#: By a value's name, its steps and itself at each of them.
Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Under its final name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial.{path.name}")
    figure.savefig(partial, dpi=150)
    os.replace(partial, path)


def _greys(number: int, lightest: float = 0.75) -> list[str]:
    """Shades that differ as much as they can."""
    return [f"{0.25 + (lightest - 0.25) * i / max(1, number - 1):.2f}" for i in range(number)]


def draw_report(report: Report, path: Path) -> None:
    """The main metric against latency, the area of each point being the model's size on disk."""
    key_rows = -(-len(report.rows) // 2)
    figure = _new_figure(9, 4.2 + 0.2 * key_rows)
    axes = figure.add_subplot()
    largest = max(row.bytes for row in report.rows)
    for number, (row, grey) in enumerate(zip(report.rows, _greys(len(report.rows)), strict=True), 1):
        estimate = row.metrics[report.main_split][report.main_metric]
        x, y = row.latency_p50, estimate.value
        axes.errorbar(x, y, yerr=estimate.standard_error, color="0.4", capsize=3, linewidth=1, zorder=2)
        axes.scatter(x, y, s=_AREA * row.bytes / largest, color=grey, alpha=0.8, edgecolor="black", zorder=3)
        axes.plot([], [], " ", label=f"{number}  {row.name} ({row.bytes / 1e6:.1f} MB, {x:.2f} ms, {y:.4f})")
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
    axes.margins(y=0.6)
    axes.set_xlim(0, 1.1 * max(row.latency_p50 for row in report.rows))
    axes.set_xlabel(f"latency of one text, median, ms ({threads_text(report.setting['threads'])})")
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
    _save(figure, path)


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


# -------------------------------------------------------------------------------------------------- training


def draw_curves(curves: Curves, steps_of_epochs: Sequence[int], path: Path) -> None:
    """How a training went: its loss terms, their shares of the loss, what steers them, and the validation metrics.

    Args:
        curves: The values as they are logged: ``train/loss/<term>``, ``train/weight/<term>``, ``train/temperature``,
            ``train/lr``, ``val/<metric>``.
        steps_of_epochs: The step at which each epoch ended.
        path: Of the PNG.
    """
    terms = {name.removeprefix("train/loss/"): curve for name, curve in curves.items() if "train/loss/" in name}
    metrics = {name: curve for name, curve in curves.items() if name.startswith("val")}
    figure = _new_figure(10, 7)
    losses, validation, shares, settings = figure.subplots(2, 2, sharex=True).flat
    _lines(losses, terms, "loss terms, unweighted, each of one batch", "loss")
    if all(value > 0 for _, values in terms.values() for value in values):
        losses.set_yscale("log")
    _mix(shares, curves, terms)
    other = {n: c for n, c in metrics.items() if not n.endswith("/loss")}
    _lines(validation, other or metrics, "validation, all rows", "metric", marker="o")
    weights = {name.removeprefix("train/"): curve for name, curve in curves.items() if "/weight/" in name}
    steering = {"temperature": curves["train/temperature"]} if "train/temperature" in curves else {}
    _lines(settings, {**weights, **steering}, "weights, temperature and learning rate", "weight, temperature")
    rates = {name.removeprefix("train/"): curve for name, curve in curves.items() if name.startswith("train/lr")}
    if rates:
        right = settings.twinx()
        for name, (x, y) in rates.items():
            right.plot(x, y, color="0.6", linewidth=2.5, label=f"{name} (right)")
        right.set_ylabel("learning rate")
        right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        right.set_ylim(bottom=0)
        right.legend(loc="upper right", fontsize=8)
    for axes in (shares, settings):
        axes.set_xlabel("optimizer step")
    for axes in (losses, validation, shares, settings):
        for step in steps_of_epochs[:-1]:
            axes.axvline(step, color="0.85", linewidth=1, zorder=0)
    figure.suptitle("Vertical lines: ends of epochs.", fontsize=9, x=0.01, ha="left")
    _save(figure, path)


def _lines(axes: Axes, curves: Curves, title: str, unit: str, marker: str = "") -> None:
    for number, ((name, (x, y)), grey) in enumerate(zip(curves.items(), _greys(len(curves), 0.6), strict=True)):
        dots = marker or ("." if len(x) == 1 else "")
        axes.plot(x, y, linestyle=_DASHES[number % len(_DASHES)], color=grey, label=name, marker=dots, markersize=4)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(unit)
    axes.grid(color="0.92")
    if curves:
        axes.legend(fontsize=8, loc="best")
    else:
        axes.text(0.5, 0.5, "nothing was logged", ha="center", va="center", transform=axes.transAxes, color="0.5")


def _mix(axes: Axes, curves: Curves, terms: Curves) -> None:
    """Each weighted term's share of the loss, one on top of the other."""
    parts = {}
    for name, (x, y) in terms.items():
        weights = curves.get(f"train/weight/{name}", (x, [1.0] * len(x)))[1]
        if len(weights) == len(y) and any(weights):
            parts[name] = np.asarray(weights) * np.abs(y)
    axes.set_title("what each weighted term adds to the loss", fontsize=10, loc="left")
    axes.set_ylabel("share of the loss, %")
    axes.set_ylim(0, 100)
    if not parts or len({len(part) for part in parts.values()}) > 1:
        return
    steps = next(iter(terms.values()))[0]
    values = np.stack(list(parts.values()))
    shares = 100 * values / np.maximum(values.sum(0), 1e-12)
    for number, (area, grey) in enumerate(zip(axes.stackplot(steps, shares), _greys(len(parts))[::-1], strict=True)):
        area.set(facecolor=grey, edgecolor="black", hatch=_HATCHES[number % len(_HATCHES)], label=list(parts)[number])
    axes.legend(fontsize=8, loc="lower left", framealpha=1)


# -------------------------------------------------------------------------------------------------- row by row


def draw_agreement(report: Report, path: Path) -> None:
    """How often any two models of a report predict the same."""
    names = [row.name for row in report.rows]
    values = 100 * np.asarray(report.details.agreement)
    low = min(99.0, np.floor(values.min()))  # models that differ in nothing else would all be black
    figure = _new_figure(2.6 + 1.0 * len(names), 1.8 + 0.7 * len(names))
    axes = figure.add_subplot()
    rows = report.split_rows[report.main_split]
    _heat_map(
        axes, values, names, names, f"predict the same, % ({report.main_split}, {rows:,} rows)", low, 100, "{:.1f}"
    )
    _save(figure, path)


def draw_details(report: Report, path: Path) -> None:
    """The models side by side: what each takes for what or, for tags, its F1 of each type of entity."""
    details = report.details
    if details.confusion:
        labels, tables = details.labels, details.confusion
        size = 1.2 + 0.45 * len(labels)
        figure = _new_figure(len(tables) * size + 1.2, size + 1.0)
        panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axes, (model, table) in zip(panels, tables.items(), strict=True):
            counts = np.asarray(table, dtype=float)
            shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
            _heat_map(axes, shares, labels, labels, model, 0, 100, "{:,.0f}", axes is panels[-1], counts)
            axes.set_xlabel("predicted")
        panels[0].set_ylabel("true label")
        figure.suptitle(f"{report.main_split}: numbers of rows; shade: % of the true label's rows", fontsize=10)
    else:
        models = list(next(iter(details.scores.values())))
        values = np.asarray([[by_model[model] for model in models] for by_model in details.scores.values()])
        figure = _new_figure(2.6 + 1.1 * len(models), 1.6 + 0.35 * len(values))
        title = f"by type ({report.main_split})"
        _heat_map(figure.add_subplot(), values, list(details.scores), models, title, 0, 1, "{:.3f}")
    _save(figure, path)


def _heat_map(
    axes: Axes,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    low: float,
    high: float,
    form: str,
    with_bar: bool = True,
    numbers: NDArray[Any] | None = None,
) -> None:
    """A matrix as shades, the darker the more, with its numbers or others."""
    image = axes.imshow(values, cmap="Greys", vmin=low, vmax=high + 0.3 * (high - low), aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    small = len(columns) <= 20
    for (i, j), value in np.ndenumerate(values):
        if small:
            dark = (value - low) / (high - low) > 0.7
            shown = value if numbers is None else numbers[i, j]
            axes.text(j, i, form.format(shown), ha="center", va="center", fontsize=8, color="w" if dark else "k")
    if with_bar:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
        bar.ax.set_ylim(low, high)
