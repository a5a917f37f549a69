"""Writes the tables of docs/speed.md from the JSON of the benchmarks: python docs/make_speed.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("speed.md")
RESULTS = PAGE.parents[1] / "benchmarks" / "results"

#: What a GPU can send and receive at once among so many, bytes a second; assumptions, not measured.
BANDWIDTH = {8: 300e9, 64: 40e9}
BATCH = 32


def table(rows: list[dict[str, str]]) -> list[str]:
    """Markdown."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---', *['---:'] * (len(names) - 1)])} |"]
    return lines + [f"| {' | '.join(row.values())} |" for row in rows]


def spread(row: dict[str, Any], name: str, low: str, high: str, digits: int) -> str:
    """A figure, and in brackets how far it goes."""
    return f"{row[name]:,.{digits}f} ({row[low]:,.{digits}f} to {row[high]:,.{digits}f})"


def about(setting: dict[str, Any]) -> str:
    """What the figures were measured on."""
    threads = setting["threads"]
    where = setting.get("device", "cpu").replace("cpu", f"{threads} thread{'s' if threads > 1 else ''} of a CPU")
    more = [f"{key} {setting[key]}" for key in ("precision", "clock") if key in setting]
    more += ["compiled"] if setting.get("compiled") else []
    return ", ".join([where, f"torch {setting['torch']}", f"transformers {setting['transformers']}", *more])


def busy(row: dict[str, Any]) -> dict[str, str]:
    """How much of a step kernels run, where that was measured."""
    if "kernels trainer, ms" not in row:
        return {}
    shares = [f"{100 * row[f'kernels {arm}, ms'] / row[f'{arm}, ms']:.0f} %" for arm in ("by hand", "trainer")]
    return {"GPU at work, by hand / trainer": " / ".join(shares)}


def step(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of step.py."""
    return [
        {
            "step": row["step"],
            "module": row.get("module", "ours"),
            "logger and bar": row["logger and bar"],
            "by hand, ms": f"{row['by hand, ms']:.1f}",
            "trainer, ms": f"{row['trainer, ms']:.1f}",
            "ratio (quartiles)": spread(row, "ratio", "ratio, p25", "ratio, p75", 3),
            "added, ms (quartiles)": spread(row, "added, ms", "added, ms, p25", "added, ms, p75", 2),
            **busy(row),
            "students apart": row["weights apart"],
        }
        for row in rows
    ]


def epoch(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of epoch.py."""
    made = []
    for row in rows:
        cells = {"": row[""], "s (range)": spread(row, "s", "lowest", "highest", 1), "rows/s": f"{row['rows/s']:,.0f}"}
        for name in ("x by hand", "x TextBrewer", "x TextBrewer, short"):
            if name in row:
                cells[name.replace("x ", "times faster than ")] = f"{row[name]:.2f}"
        made.append(cells | {"held-out rows": f"{row['test']:.4f}", "validation": f"{row['validation']:.4f}"})
    return made


def data(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of data.py."""
    return [
        {
            "rows": row["rows"],
            "batches": row["batches"],
            "tokens/s (range)": spread(row, "tokens/s", "lowest", "highest", 0),
            "rows/s": f"{row['rows/s']:,}",
            "ms a batch": f"{row['ms a batch']:.2f}",
            "padding": f"{100 * row['padding']:.0f} %",
            "what a model computes": f"{row['work of bucketed']:.2f} x",
        }
        for row in rows
    ]


def memory(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of memory.py."""
    return [
        {
            "run": row["run"],
            "peak, MB (range)": spread(row, "peak, MB", "lowest", "highest", 0),
            "over no teacher, MB": f"{row['over no teacher, MB']:,.0f}",
        }
        for row in rows
    ]


def scaling(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of scaling.py."""
    return [
        {
            "rows": f"{row['rows']:,}",
            "start": row["start"],
            "setup, s": f"{row['setup, s']:.2f}",
            "rows/s": f"{row['rows/s']:,}",
            "200 batches, s": f"{row['200 batches, s']:.2f}",
            "own memory, MB": f"{row['anonymous, MB']:,.0f}",
            "mapped, MB": f"{row['mapped, MB']:,.0f}",
        }
        for row in rows
    ]


def startup(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of startup.py."""
    return [
        {
            "process": f"`{row['process']}`",
            "s (range)": spread(row, "s", "lowest", "highest", 2),
            "over the imports of both, s": f"{row['over the imports, s']:.2f}",
            "files of models and data opened": str(row["files opened"]),
        }
        for row in rows
    ]


def loading() -> float:
    """Seconds that the loader takes for a batch."""
    return BATCH / next(row["rows/s"] for row in read("data")["rows"] if row["batches"] == "bucketed, ours")


def reducing(row: dict[str, Any], count: int) -> float:
    """Seconds of an all-reduce of the gradients among so many GPUs."""
    return 2 * (count - 1) / count * 4e6 * row["M trained"] / BANDWIDTH[count] if count > 1 else 0.0


def enough(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """How long a step has to be for several GPUs to be worth it, by the formula of the page."""
    load = loading()
    return [
        {
            "student": row["step"].split(" to ")[1].split(",")[0],
            "GPUs": str(count),
            "all-reduce, MB": f"{4 * row['M trained']:.0f}",
            "all-reduce, ms": f"{(reduce := reducing(row, count)) * 1e3:.2f}",
            "loader, ms": f"{load * 1e3:.2f}",
            "at least 90 % of linear from a step of, ms": f"{900 * max(reduce, load):.2f} to "
            f"{1e3 * max(9 * reduce, 0.9 * load):.1f}",
        }
        for row in rows
        if row["logger and bar"] == "on"
        for count in BANDWIDTH
    ]


def gpus(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the step of one GPU comes to on several, by the formula of the page."""
    load = loading()
    made = []
    for row in (row for row in rows if row["logger and bar"] == "on"):
        alone = row["trainer, ms"] / 1e3
        for count in (1, *BANDWIDTH):
            reduce = reducing(row, count)
            worst, best = max(alone + reduce, load), max(alone, reduce, load)
            made.append(
                {
                    "step": row["step"],
                    "GPUs": str(count),
                    "step alone, ms": f"{alone * 1e3:.1f}",
                    "all-reduce, ms": f"{reduce * 1e3:.1f}",
                    "rows/s": f"{count * BATCH / worst:,.0f} to {count * BATCH / best:,.0f}",
                    "of linear": f"{100 * alone / worst:.0f} to {100 * alone / best:.0f} %",
                }
            )
    return made


#: By the name of a place in the page: the JSON, its table, and the command.
PLACES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], list[dict[str, str]]]]] = {
    "step": ("step", step),
    "step_cuda": ("step_cuda", step),
    "step_compiled": ("step_cuda_compiled", step),
    "epoch": ("epoch", epoch),
    "epoch_longer": ("epoch_longer", epoch),
    "data": ("data", data),
    "memory": ("memory", memory),
    "scaling": ("scaling", scaling),
    "startup": ("startup", startup),
    "enough": ("step", enough),
    "gpus": ("step_cuda", gpus),
}


def read(name: str) -> Any:
    """A benchmark's JSON, or None."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def filled(name: str) -> str:
    """What stands in a place of the page."""
    source, make = PLACES[name]
    found = read(source)
    missing = next((each for each in (source, *["data"] * (name in ("enough", "gpus"))) if read(each) is None), None)
    if missing is not None:
        return f"Not measured yet: there is no `benchmarks/results/{missing}.json`."
    lines = [*table(make(found["rows"])), "", f"({about(found['setting'])}.)"]
    if name == "scaling" and "rows/s, slope" in found["setting"]:
        slope, start = found["setting"]["rows/s, slope"], found["setting"]["seconds at no rows"]
        lines += ["", f"A first start takes {start:.2f} s and {1e6 / slope:,.1f} s more for each million rows."]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with all of its places filled."""
    for name in PLACES:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no place for {name}.")
        text = pattern.sub(lambda match, own=name: f"{match[1]}{filled(own)}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
