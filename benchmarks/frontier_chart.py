"""The chart and the table of frontier.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "markdown"]

#: By the beginning of a form's name.
_MARKERS = {"float": "o", "int8, ONNX Runtime": "s", "int8, OpenVINO": "^", "int8, torch": "v", "int4": "D"}
#: What is asked for: so many times smaller and faster, at this share of the teacher's accuracy.
_TIMES, _KEPT = 10, 0.97


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against size, and against the speed for one text: a colour a model, a marker a form.

    The speed is that in turns with the float teacher, as a processor's clock changes between two models.

    Args:
        rows: As frontier.py measures them, the float teacher first.
        path: The PNG; written under another name until it is whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    colours = {model: f"C{number}" if number else "black" for number, model in enumerate(models)}
    tenth = rows[0]["bytes"] * 1e-6 / _TIMES
    for axes, key, scale, wanted in ((panels[0], "bytes", 1e-6, tenth), (panels[1], "faster", 1.0, _TIMES)):
        for model in models:
            own = sorted((row for row in rows if row["model"] == model), key=lambda row: row[key])
            axes.plot([row[key] * scale for row in own], [row["held out"] for row in own], color=colours[model], lw=0.8)
            for row in own:
                marker = next(shape for start, shape in _MARKERS.items() if row["form"].startswith(start))
                axes.errorbar(
                    row[key] * scale,
                    row["held out"],
                    yerr=row["held out, error"],
                    color=colours[model],
                    marker=marker,
                    markersize=6,
                    elinewidth=0.6,
                )
        axes.axvline(wanted, color="0.4", linestyle=":", linewidth=1)
        axes.axhline(rows[0]["held out"] * _KEPT, color="0.4", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.tick_params(axis="x", which="minor", labelsize=8)
        axes.grid(color="0.93", which="both")
        axes.set_axisbelow(True)
    panels[0].set_xlabel("MB on disk, weights and graph")
    panels[1].set_xlabel("times faster than the float teacher, one text, one thread")
    panels[0].set_ylabel("accuracy, held-out rows")
    panels[0].set_title(
        f"Dotted: a tenth of the float teacher's size, {_TIMES} times its speed, {100 * _KEPT:.0f} % of its accuracy. "
        "Bars: standard error.",
        fontsize=9,
        loc="left",
    )
    used = {row["form"]: None for row in rows}
    handles = [Line2D([], [], color=colours[model], label=model) for model in models]
    for form in used:
        marker = next(shape for start, shape in _MARKERS.items() if form.startswith(start))
        handles.append(Line2D([], [], color="0.4", linestyle="", marker=marker, label=form))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    unfinished = path.with_name(f"partial.{path.name}")
    figure.savefig(unfinished, dpi=150)
    unfinished.replace(path)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    header = ["model", "form", "size", "accuracy, held out", "validation", "kept", "ms", "smaller", "faster"]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    model = None
    for row in rows:
        both = (f"{row[split]:.4f} ± {row[f'{split}, error']:.4f}" for split in ("held out", "validation"))
        ratios = (f"{100 * row['kept']:.1f} %", f"{row['ms']:.2f}", f"{row['smaller']:.1f} x", f"{row['faster']:.1f} x")
        own = "" if row["model"] == model else row["model"]
        lines.append([own, row["form"], f"{row['bytes'] / 1e6:.1f} MB", *both, *ratios])
        model = row["model"]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
