"""The result of an analysis as a table, a CSV file and a heat map."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lightning_kd.quantization.analysis import LayerError

__all__ = ["draw_heat_map", "print_worst", "write_csv"]


def print_worst(rows: Sequence[LayerError], metric: str | None = None, count: int = 20) -> None:
    """Print the rows that cost the most: by the drop of the metric or, without one, by the error of the output.

    Args:
        rows: From :func:`~lightning_kd.quantization.analysis.analyze`.
        metric: The metric's name, if one was measured.
        count: How many rows.
    """
    worst = sorted(rows, key=lambda row: row.output_sqnr if row.drop is None else -row.drop)[:count]
    title = f"The {len(worst)} costliest of {len(rows)}, one layer quantized at a time. SQNR in dB."
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    for name in ("bits", "weight", "output", *([] if metric is None else [f"{metric}, worse by"])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in worst:
        cells = [row.layer, str(row.scheme.bits), f"{row.weight_sqnr:.1f}", f"{row.output_sqnr:.1f}"]
        table.add_row(*cells, *([] if row.drop is None else [f"{row.drop:.4f} ± {row.standard_error:.4f}"]))
    Console().print(table)


def write_csv(rows: Sequence[LayerError], path: Path) -> None:
    """Write all rows, the parts of the scheme in columns of their own."""
    records = []
    for row in rows:
        values = asdict(row)
        first = {key: values.pop(key) for key in ("layer", "kind", "parameters")}
        records.append({**first, **values.pop("scheme"), **values})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def draw_heat_map(rows: Sequence[LayerError], path: Path, metric: str | None = None) -> None:
    """Draw the errors of weight and output and, if one was measured, the metric's drop: layers by bits.

    Args:
        rows: Every layer with the same schemes, which differ in their bits alone.
        path: Of the PNG.
        metric: The metric's name, if one was measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize, SymLogNorm
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in rows))
    bits = list(dict.fromkeys(row.scheme.bits for row in rows))

    def grid(attribute: str) -> np.ndarray:
        return np.array([getattr(row, attribute) for row in rows], dtype=float).reshape(len(layers), len(bits))

    ratios = {"weight": grid("weight_sqnr"), "output": grid("output_sqnr")}
    finite = np.concatenate([values[np.isfinite(values)] for values in ratios.values()])
    norm = Normalize(finite.min(), finite.max())
    panels: list[tuple[str, np.ndarray, Normalize, str, int]]
    panels = [(f"SQNR of {name}, dB", values, norm, "viridis", 0) for name, values in ratios.items()]
    if metric is not None:
        drops = grid("drop")
        # What lies below is noise, or little beside the largest.
        small = max(float(np.median(grid("standard_error"))), 0.01 * drops.max(), 1e-6)
        shades = SymLogNorm(small, vmin=0, vmax=max(drops.max(), 2 * small))
        panels.append((f"{metric}, worse by", drops, shades, "Reds", 1 if drops.max() >= 10 else 3))
    width = max(map(len, layers)) * 0.075 + len(panels) * max(1.8, 0.4 + 0.5 * len(bits))
    figure = Figure(figsize=(width, 1.6 + 0.24 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values, scale, colors, digits) in zip(all_axes, panels, strict=True):
        image = axes.imshow(values, cmap=colors, norm=scale, aspect="auto")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(bits)), [str(b) for b in bits])
        axes.set_xlabel("bits")
        for (i, j), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(scale(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    all_axes[0].set_yticks(range(len(layers)), layers, fontsize=8)
    scheme = rows[0].scheme
    shared = scheme.granularity if scheme.granularity != "group" else f"group of {scheme.group_size}"
    kind = "symmetric" if scheme.symmetric else "asymmetric"
    figure.suptitle(
        f"One layer quantized at a time: {kind}, per {shared}, {scheme.activations} activations", fontsize=10
    )
    figure.savefig(path, dpi=150)
