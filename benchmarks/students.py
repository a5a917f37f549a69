r"""Students of every shape, with and without their teacher: 16,384 rows of SST-2, and CoNLL-2003, three seeds.

Two teachers of different seeds are fine-tuned on the rows that the students train on, and the one that is better on
the validation split teaches all of them. The students: three of the teacher's layers; all of its layers, half as wide,
as `lightning-kd prune` cuts them; a BiGRU and a text CNN that start from the teacher's word embeddings. Without a
teacher the same start is trained on the hard labels; with one, on its soft targets alone. The three layers are also
trained on those of both teachers together, and the BiGRU on soft targets and labels. The score is that of the last
weights on held-out rows, which no model trains on and nothing is chosen by. A run that has its report under --out is
not run again. From local folders:

    python benchmarks/students.py --data ../shared/data --encoder ../shared/models/all-MiniLM-L6-v2 \
        --json benchmarks/results/students.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _common import ROOT, fit, parser, report, setting, spread

Options = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A set: its place on the Hub and under --data, its score, and the epochs of students of few and of many layers."""

    hub: str
    folder: str
    score: str
    holdout: int
    rows: int | None
    teacher_epochs: int
    epochs: dict[str, int]


SETS = {
    "sst2": Setting(
        "nyu-mll/glue", "glue", "accuracy", 6000, 16384, 3, {"3 layers": 2, "narrow": 3, "BiGRU": 4, "CNN": 4}
    ),
    "conll2003": Setting(
        "eriktks/conll2003", "conll2003", "f1", 2000, None, 4, {"3 layers": 4, "narrow": 4, "BiGRU": 8, "CNN": 8}
    ),
}
CNN = {"model_type": "cnn", "embedding_size": 128, "hidden_size": 300, "kernel_sizes": [3, 4, 5]}
NO_TEACHER: Options = {"model.teachers": "{}", "model.losses": "{}", "model.hard_label_weight": 1.0}


def prune(name: str, teacher: Path, data: Options, folder: Path) -> Path:
    """The teacher, half as wide, in a folder."""
    if not (folder / "config.json").is_file():
        kind = "GLUEDataModule" if name == "sst2" else "NERDataModule"
        task = "SequenceClassification" if name == "sst2" else "TokenClassification"
        options = {"model.task": f"lightning_kd.tasks.{task}", "model.student.path": teacher}
        options |= {"data": f"lightning_kd.datamodules.{kind}", **({"data.name": "sst2"} if name == "sst2" else {})}
        options |= data | {"trainer.logger": "false", "hidden_size": 192, "intermediate_size": 768, "path": folder}
        arguments = [f"--{key}={value}" for key, value in options.items()]
        command = [sys.executable, "train.py", "prune", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"prune: {done.stderr.strip().splitlines()[-1]}")
    return folder


def students(name: str, teacher: Path, narrow: Path) -> dict[str, tuple[str, Options]]:
    """By name, the config and what is changed in it."""
    config = f"configs/{name}/{{}}.yaml".format
    return {
        "3 layers": (config("student"), {"model.student.path": teacher}),
        "narrow": (
            config("student"),
            {"model.student.path": narrow, "model.student.keep_layers": "null", "model.optimizer.lr": 3e-4},
        ),
        "BiGRU": (config("bigru"), {"model.student.embeddings_from": teacher}),
        "CNN": (
            config("bigru"),
            {"model.student.embeddings_from": teacher, "model.student.config": json.dumps(CNN)},
        ),
    }


def validation(folder: Path, score: str) -> float:
    """The score of a run's model on the validation split."""
    rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    return float(rows[0]["metrics"]["validation"][score]["value"])


def measure(name: str, options: Any, out: Path, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    """The rows of one set."""
    about = SETS[name]
    data: Options = {"data.holdout_size": 64 if options.quick else about.holdout}
    data["data.path"] = (options.data / about.folder).resolve() if options.data else about.hub
    if options.quick or about.rows:
        data["data.max_train_rows"] = 64 if options.quick else about.rows
    common = data | {"report.teacher": "false", "trainer.accelerator": options.accelerator}
    run: Callable[..., dict[str, dict[str, float]]] = partial(fit, **common)

    def epochs(count: int) -> Options:
        return {"trainer.max_epochs": 1 if options.quick else count}

    folders = [out / name / f"teacher_{seed}" for seed in (0, 1)]
    jobs = [
        pool.submit(
            run,
            f"configs/{name}/teacher.yaml",
            folder,
            **epochs(about.teacher_epochs),
            **{"model.student.path": options.encoder, "seed_everything": seed},
        )
        for seed, folder in enumerate(folders)
    ]
    of_teachers = [next(iter(job.result().values()))[about.score] for job in jobs]
    best = max((0, 1), key=lambda i: validation(folders[i], about.score))
    teacher = folders[best] / "student"
    narrow = prune(name, teacher, data, out / name / "narrow")
    taught = {"model.teachers.teacher.path": teacher}
    both = {
        "model.teachers": json.dumps({f"seed_{i}": {"path": str(f / "student")} for i, f in enumerate(folders)}),
        "model.ensemble.combine": "probabilities",
    }
    arms = [(student, arm, more) for student in about.epochs for arm, more in (("none", NO_TEACHER), ("one", taught))]
    arms.append(("3 layers", "two", both))
    arms.append(("BiGRU", "one and labels", taught | {"model.hard_label_weight": 1.0}))
    known = students(name, teacher, narrow)
    done = {}
    for student, arm, more in arms:
        config, own = known[student]
        callbacks = []
        if arm != "none" and options.jobs == 1:  # two runs at a time would write the same cache
            cache = {"path": str(out / name / f"cache_{arm.split()[0]}"), "dtype": "float32"}
            callbacks = [{"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": cache}]
        done[student, arm] = [
            pool.submit(
                run,
                config,
                out / name / f"{student}_{arm}_{seed}".replace(" ", "_"),
                callbacks,
                **epochs(about.epochs[student]),
                **own,
                **more,
                seed_everything=seed,
            )
            for seed in ([0] if options.quick else [0, 1, 2])
        ]
    table = [
        {"set": name, "student": f"teacher, seed {i}", "teachers": "none", "score": about.score} | spread([score])
        for i, score in enumerate(of_teachers)
    ]
    for (student, arm), runs in done.items():
        scores = [next(iter(job.result().values()))[about.score] for job in runs]
        table.append({"set": name, "student": student, "teachers": arm, "score": about.score} | spread(scores))
        print(*table[-1].values(), file=sys.stderr, flush=True)
    return table


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder with glue/ and conll2003/; the Hub unless given")
    arguments.add_argument(
        "--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="the teacher's encoder: Hub name or folder"
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/students"), help="folder of the runs")
    arguments.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS), help="sets")
    arguments.add_argument("--accelerator", default="auto", help="as trainer.accelerator")
    arguments.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = arguments.parse_args()
    out = options.out.resolve() / ("quick" if options.quick else "full")
    encoder = Path(options.encoder)
    options.encoder = str(encoder.resolve()) if encoder.is_dir() else options.encoder
    names = options.only[:1] if options.quick else options.only
    with ThreadPoolExecutor(options.jobs) as pool, ThreadPoolExecutor(len(names)) as sets:
        table = [row for rows in sets.map(lambda name: measure(name, options, out, pool), names) for row in rows]
    about = setting(accelerator=options.accelerator, seeds=[0] if options.quick else [0, 1, 2])
    report("Students by shape and teacher", table, about, options.json)


if __name__ == "__main__":
    main()
