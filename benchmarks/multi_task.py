r"""One student with three heads against three students, on MRPC, RTE and 8,000 rows of SST-2.

Every run is configs/multi_task/glue.yaml, with all of its tasks or with one of them: the same encoder to start from,
the same teachers, rows and epochs, and as many batches in all. The scores are those of the best checkpoint on the
validation split, by the mean over the run's tasks: on that split, and on held-out rows, which no run trains on, the
teachers neither, and nothing is chosen by. A run that has its reports under --out is not run again. Needs the teachers
of configs/mrpc/teacher.yaml, configs/rte/teacher.yaml and configs/sst2/teacher.yaml. From local folders:

    python benchmarks/multi_task.py --data ../shared/data/glue --encoder ../shared/models/all-MiniLM-L6-v2 \
        --json benchmarks/results/multi_task.json
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from _common import ROOT, parser, report, setting

CONFIG = ROOT / "configs" / "multi_task" / "glue.yaml"
Scores = dict[str, dict[str, Any]]


def fit(config: dict[str, Any], folder: Path, *more: str) -> dict[str, Scores]:
    """Run a config, unless its reports are there; by the task, by the model's name, its metrics on both splits."""
    tasks = list(config["model"]["tasks"])
    if not all((folder / task / "report.json").is_file() for task in tasks):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "input.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        arguments = ["fit", f"--config={folder / 'input.yaml'}", f"--trainer.default_root_dir={folder}", *more]
        done = subprocess.run(
            [sys.executable, "train.py", *arguments], cwd=ROOT, text=True, capture_output=True, check=False
        )
        if done.returncode:
            sys.exit(f"{folder}: {done.stderr.strip().splitlines()[-1]}")
    reports = {task: json.loads((folder / task / "report.json").read_text(encoding="utf-8")) for task in tasks}
    return {task: {row["name"]: row for row in found["rows"]} for task, found in reports.items()}


def only(config: dict[str, Any], task: str) -> dict[str, Any]:
    """The config with one of its tasks."""
    single = copy.deepcopy(config)
    for tasks in (single["model"], single["data"]["init_args"]):
        tasks["tasks"] = {task: tasks["tasks"][task]}
    return single


def line(name: str, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A row of the table; the mean is of the tasks' accuracies."""
    cells, means = {"student": name}, {}
    for split in ("test", "validation"):
        title = "held out" if split == "test" else split
        for task, row in found.items():
            for metric, value in row["metrics"][split].items():
                text = f"{100 * value['value']:.1f} ± {100 * value['standard_error']:.1f}"
                cells[f"{task} {metric}, {title}"] = text
        accuracies = [row["metrics"][split]["accuracy"]["value"] for row in found.values()]
        means[f"mean accuracy, {title}"] = f"{100 * sum(accuracies) / len(accuracies):.1f}"
    return {**cells, **means}


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", default="nyu-mll/glue", help="GLUE: Hub name or local folder")
    arguments.add_argument(
        "--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="the encoder: Hub name or folder"
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/multi_task"), help="folder of the runs")
    arguments.add_argument("--epochs", type=int, default=5, help="epochs of each run")
    arguments.add_argument("--tau", type=float, nargs="*", default=[1.0, 0.5], help="of the runs with all tasks")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    out = options.out.resolve() / ("quick" if options.quick else "full")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["model"]["student"]["path"] = options.encoder
    for data in config["data"]["init_args"]["tasks"].values():
        few = {"max_train_rows": 64, "holdout_size": 64} if options.quick else {}
        data["init_args"] |= {"path": options.data, **few}
    keep = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "val/mean", "mode": "max"},
    }
    cache = {"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"path": str(out / "cache")}}
    config["trainer"] |= {"callbacks": [keep, cache], "logger": False, "enable_progress_bar": False}
    config["trainer"]["max_epochs"] = 1 if options.quick else options.epochs
    tasks = list(config["model"]["tasks"])
    no_teacher = "--report.teacher=false"
    rows: list[dict[str, Any]] = []
    for number, tau in enumerate(options.tau):
        config["data"]["init_args"]["tau"] = tau
        found = fit(config, out / f"tau-{tau:g}", *([no_teacher] if number else []))
        if not number:
            rows.append(line("teachers, 6 layers", {task: found[task]["teacher"] for task in tasks}))
            single = {task: fit(only(config, task), out / task, no_teacher)[task]["student"] for task in tasks}
            rows.append(line("three students", single))
        rows.append(line(f"one student, tau {tau:g}", {task: found[task]["student"] for task in tasks}))
        print(*rows[-1].values(), file=sys.stderr)
    about = setting(epochs=config["trainer"]["max_epochs"], seed=config["seed_everything"])
    report("Accuracy and F1 in percent", rows, about, options.json)
    print(
        "\n".join(
            "| " + " | ".join(map(str, cells)) + " |" for cells in zip(*(row.values() for row in rows), strict=True)
        )
    )


if __name__ == "__main__":
    main()
