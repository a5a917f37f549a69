r"""Accuracy by distillation method: every recipe of configs/methods/, one epoch on 4,096 rows of SST-2, three seeds.

Each run is the recipe itself through the command line, with fewer rows. The accuracy is that of the last weights on
held-out rows, which no run trains on and nothing is chosen by; the spread is over the seeds, each of which draws other
training rows. The teacher is that of configs/sst2/teacher.yaml after one epoch on all rows. A run that has its report
under --out is not run again. From local folders:

    python benchmarks/methods.py --data ../shared/data/glue --encoder ../shared/models/all-MiniLM-L6-v2 \
        --json benchmarks/results/methods.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from _common import fit, parser, report, setting, spread

#: In the order of the table. TinyBERT's task stage goes on from its general stage.
METHODS = (
    "no_distillation",
    "soft_targets",
    "distilbert",
    "bert_pkd",
    "tinybert_general",
    "tinybert_task",
    "minilm",
    "minilmv2",
    "textbrewer",
    "dkd",
    "crd",
)

#: Recipes with one thing changed, which --only can name: why some do worse than no distillation.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "minilm_w0.1": ("minilm", {"model.loss_weights.minilm": 0.1}),
    "minilmv2_w0.1": ("minilmv2", {"model.loss_weights.minilmv2": 0.1}),
    "tinybert_task_only": ("tinybert_task", {"model.student.keep_layers": [0, 2, 4]}),
}


def run(method: str, seed: int, rows: int, data: dict[str, object], out: Path) -> float:
    """Accuracy of the student after one run of a recipe."""
    teacher = out / "teacher" / "student"
    start = out / f"tinybert_general-{seed}" / "student" if method == "tinybert_task" else teacher
    recipe, changed = VARIANTS.get(method, (method, {}))
    options = {"seed_everything": seed, "data.seed": seed, "data.max_train_rows": rows, "model.student.path": start}
    if method != "no_distillation":
        options["model.teachers.teacher.path"] = teacher
    models = fit(f"configs/methods/{recipe}.yaml", out / f"{method}-{seed}", **data, **options, **changed)
    return models["student" if "student" in models else "model"]["accuracy"]


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", default="nyu-mll/glue", help="GLUE: Hub name or local folder")
    arguments.add_argument(
        "--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="the teacher's encoder: Hub name or folder"
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/methods"), help="folder of the runs")
    arguments.add_argument("--only", nargs="*", default=list(METHODS), help="names of methods")
    options = arguments.parse_args()
    seeds, rows, held_out = ([0], 64, 64) if options.quick else ([0, 1, 2], 4096, 6000)
    methods = options.only[:2] if options.quick else options.only
    out = options.out.resolve() / ("quick" if options.quick else "full")
    data: dict[str, object] = {
        "data.path": options.data,
        "data.holdout_size": held_out,
        "trainer.max_epochs": 1,
    }
    few = {"data.max_train_rows": rows} if options.quick else {}
    fit("configs/sst2/teacher.yaml", out / "teacher", **data, **few, **{"model.student.path": options.encoder})
    table = []
    for method in methods:
        table.append({"method": method} | spread([run(method, seed, rows, data, out) for seed in seeds]))
        print(*table[-1].values(), file=sys.stderr)
    about = setting(seeds=seeds, train_rows=rows, held_out_rows=held_out, epochs=1)
    report("Accuracy on held-out rows of SST-2", table, about, options.json)


if __name__ == "__main__":
    main()
