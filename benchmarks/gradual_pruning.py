r"""Neurons that go while a student is distilled, against those cut in front of it: SST-2, the same size and steps.

The student of configs/sst2/gradual_pruning.yaml (three layers of the teacher) keeps some of its 1,536 feed-forward
neurons a layer. `one-shot` cuts them out of the teacher with `prune` and then distils, `gradual` has them go in the
first half of the distillation, and `whole` keeps all of them. All see the same rows in the same order, for the same
number of steps; the accuracy is that of the last weights on 6,000 held-out rows, which nothing is chosen by. A run that
has its report under --out is not run again. From local folders:

    python benchmarks/gradual_pruning.py --data ../shared/data/glue \
        --json benchmarks/results/gradual_pruning_sst2.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import fit, parser, report, setting, spread
from frontier import pruned

CONFIG, LAYERS, WHOLE = "configs/sst2/gradual_pruning.yaml", [0, 2, 4], 1536


def draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against the number of neurons; bars from the lowest to the highest seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for marker, way in (("o", "gradual"), ("s", "one-shot")):
        rows = [row for row in table if row["way"] == way]
        ends = [[row["mean"] - row["lowest"] for row in rows], [row["highest"] - row["mean"] for row in rows]]
        where = [row["neurons"] for row in rows]
        axes.errorbar(where, [row["mean"] for row in rows], yerr=ends, marker=marker, capsize=3, label=way)
    for row in table:
        if row["way"] == "whole":
            axes.axhline(row["mean"], color="0.4", linestyle=":", label="whole")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["neurons"] for row in table if row["way"] != "whole"}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"feed-forward neurons a layer, of {WHOLE:,}")
    axes.set_ylabel("accuracy, held-out rows")
    axes.grid(color="0.93")
    axes.legend(frameon=False)
    unfinished = path.with_name(f"partial.{path.name}")
    figure.savefig(unfinished, dpi=150)
    unfinished.replace(path)


def main() -> None:
    """Run, print, write, draw."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", default="nyu-mll/glue", help="GLUE: Hub name or local folder")
    arguments.add_argument("--teacher", type=Path, default=Path("runs/sst2/teacher/student"), help="its folder")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/gradual_pruning"), help="folder of runs")
    arguments.add_argument("--cache", type=Path, help="the teacher's logits; under --out unless given")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[384, 192, 96], help="neurons a layer")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=1900, help="of each training, batches of 32")
    options = arguments.parse_args()
    out = options.out.resolve() / ("quick" if options.quick else "full")
    seeds, sizes = (options.seeds[:1], options.sizes[:1]) if options.quick else (options.seeds, options.sizes)
    teacher, data = options.teacher.resolve(), options.data
    if Path(data).is_dir():
        data = str(Path(data).resolve())
    common = {"data.path": data, "model.teachers.teacher.path": teacher, "report.teacher": "false"}
    common |= {"trainer.max_epochs": -1, "trainer.max_steps": 4 if options.quick else options.steps}
    common |= {"trainer.check_val_every_n_epoch": 1000}
    if options.quick:
        common["data.max_train_rows"] = 256
    cache = str((options.cache or out / "teacher_cache").resolve())
    cached = {"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"path": cache}}
    table: list[dict[str, Any]] = []
    for size, way in [*((size, way) for size in sizes for way in ("one-shot", "gradual")), (WHOLE, "whole")]:
        own: dict[str, Any] = {"model.student.path": teacher}
        callbacks = [cached]
        if way == "one-shot":
            cut = {"keep_layers": LAYERS, "intermediate_size": size}
            own = {"model.student.path": pruned(cut, data, teacher, out / f"pruned_{size}")}
            own["model.student.keep_layers"] = "null"
        elif way == "gradual":
            settings = {"intermediate_size": size, "num_cuts": 2 if options.quick else 10}
            callbacks.append({"class_path": "lightning_kd.callbacks.GradualPruning", "init_args": settings})
        scores = []
        for seed in seeds:
            run = out / f"{way}_{size}_{seed}"
            done = fit(CONFIG, run, callbacks, **common, **own, **{"seed_everything": seed, "data.seed": seed})
            scores.append(done["student"]["accuracy"])
            print(way, size, seed, scores[-1], file=sys.stderr, flush=True)
        table.append({"neurons": size, "way": way} | spread(scores))
    about = setting(seeds=seeds, steps=common["trainer.max_steps"], config=CONFIG)
    report("Neurons that go gradually", table, about, options.json)
    if options.json:
        draw(table, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
