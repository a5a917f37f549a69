r"""Accuracy against size and time: what becomes of the SST-2 teacher when it is made smaller.

Each student starts from a part of the teacher of configs/sst2/teacher.yaml (some layers, or what `prune` leaves of
them) or is no transformer, learns from the teacher's soft targets on the training rows, and is quantized by each
backend that takes it. The checkpoint is chosen on the validation split; the accuracy is that on 6,000 rows of the
training split that neither teacher nor students see. Latency is that of one text on one thread, in turns with the
teacher. What is under --out is not made again, so that the command goes on where it was stopped. From local folders:

    python benchmarks/frontier.py --data ../shared/data/glue --json benchmarks/results/frontier_sst2.json

With --measure-only nothing is trained, and times alone are taken again. Beside the JSON lie a chart and a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from _common import ROOT, fit, parser, report, setting
from frontier_chart import draw, markdown
from lightning_kd import InputError
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.measure import evaluate, paired_speedup, time_interleaved
from lightning_kd.models import ModelSource, count_parameters, load_trained
from lightning_kd.quantization import DynamicInt8, Forward, ONNXRuntimeInt4, ONNXRuntimeInt8, OpenVINOInt8, Quantizer
from lightning_kd.runner import forward_of, weight_bytes
from lightning_kd.tasks import SequenceClassification
from quantization import convert

TASK = SequenceClassification()
FLOAT = "float"
ROUNDS, TEXTS = 5, 64


@dataclass(frozen=True)
class Student:
    """How a student is made.

    Attributes:
        config: Of its training, in configs/sst2.
        options: Of its training, by their names on the command line.
        prune: Of the cut in front of it; none where the student starts otherwise.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    prune: dict[str, Any] = field(default_factory=dict)


def _layers(*kept: int) -> Student:
    return Student("student.yaml", {"model.student.keep_layers": list(kept), "trainer.max_epochs": 2})


def _pruned(layers: list[int], neurons: int, hard: float = 0.0, **cut: Any) -> Student:
    cut = {"keep_layers": layers, "intermediate_size": neurons, "vocabulary": True, **cut}
    return Student("smallest.yaml", {"model.hard_label_weight": hard}, cut)


#: By name, in the order of the table.
STUDENTS = {
    "4 layers": _layers(0, 1, 2, 4),
    "3 layers": _layers(0, 2, 4),
    "2 layers": _layers(0, 2),
    "3 layers, 384 neurons, fewer tokens": _pruned([0, 2, 4], 384),
    "3 layers, 384 neurons, width 192, fewer tokens": _pruned([0, 2, 4], 384, hidden_size=192),
    "2 layers, 768 neurons, fewer tokens": _pruned([0, 2], 768),
    "2 layers, 768 neurons, fewer tokens, hard labels too": _pruned([0, 2], 768, hard=1.0),
    "1 layer, 768 neurons, fewer tokens": _pruned([0], 768),
    "BiGRU": Student("bigru.yaml"),
    "CNN": Student("cnn.yaml"),
}
TEACHER = "teacher"


def quantizers(reduce_range: bool) -> list[Quantizer]:
    """One a backend, and the smallest."""
    return [
        ONNXRuntimeInt8(reduce_range=reduce_range),
        OpenVINOInt8(reduce_range=reduce_range),
        DynamicInt8(),
        ONNXRuntimeInt4(),
    ]


def train(name: str, options: Any, out: Path) -> Path:
    """The folder of a float student, trained unless it is there."""
    student, run = STUDENTS[name], out / slug(name)
    if options.measure_only:
        if not (run / "student" / "config.json").is_file():
            sys.exit(f"There is no student at {run / 'student'}: run without --measure-only first, or leave it out.")
        return run / "student"
    given: dict[str, Any] = {"data.path": options.data, "model.teachers.teacher.path": options.teacher}
    if options.quick:
        given |= {"data.max_train_rows": 256, "trainer.max_epochs": 1}
    if options.steps:
        given |= {"trainer.max_steps": options.steps}
    if student.prune:
        given["model.student.path"] = pruned(student.prune, options.data, options.teacher, run / "pruned")
    elif "model.student.keep_layers" in student.options:
        given["model.student.path"] = options.teacher
    else:
        given["model.student.embeddings_from"] = options.teacher
    checkpoints = run / "checkpoints"
    if (last := checkpoints / "last.ckpt").is_file():
        given["ckpt_path"] = last
    best = {"dirpath": str(checkpoints), "monitor": "val/accuracy", "mode": "max", "save_last": True}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best},
        {"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"path": str(out / "teacher_cache")}},
    ]
    fit(f"configs/sst2/{student.config}", run, callbacks, **{**student.options, **given, "report.teacher": "false"})
    return run / "student"


def trained_for(run: Path) -> dict[str, Any]:
    """Epochs and steps that a student was given, as its run has kept them; -1 is no limit."""
    trainer = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    return {"epochs": trainer["max_epochs"], "steps": trainer["max_steps"]}


def pruned(cut: Mapping[str, Any], data: str, teacher: Path, folder: Path) -> Path:
    """The folder of a cut teacher, made unless it is there."""
    if not folder.is_dir():
        given = {"config": "configs/sst2/prune.yaml", "data.path": data, "model.student.path": teacher}
        cleared = {"keep_layers": "null", "intermediate_size": "null", "vocabulary": "false"}  # what the config cuts
        arguments = [f"--{key}={value}" for key, value in {**given, **cleared, **cut, "path": folder}.items()]
        done = subprocess.run(
            [sys.executable, "train.py", "prune", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"prune: {done.stderr.strip().splitlines()[-1]}")
    return folder


def slug(name: str) -> str:
    """A name as a folder's."""
    return name.replace(", ", "_").replace(" ", "_")


@dataclass(frozen=True)
class Made:
    """A model in all its forms.

    Attributes:
        data: The rows as it reads them.
        forwards: By form, float first.
        sizes: Bytes of each form.
        parameters: Of the float one.
        refused: Of the backends that do not take it, what they say.
    """

    data: GLUEDataModule
    forwards: dict[str, Forward]
    sizes: dict[str, int]
    parameters: int
    refused: dict[str, str]


def make(source: Path, options: Any, folder: Path) -> Made:
    """Quantize a float model by each backend that takes it, unless that is done."""
    data = GLUEDataModule("sst2", str(options.data), tokenizer=str(source), holdout_size=6000)
    data.setup("fit")
    model = load_trained(ModelSource(str(source)), TASK.auto_class, "student")
    forwards, sizes = {FLOAT: forward_of(model, TASK)}, {FLOAT: weight_bytes(source)}
    refused: dict[str, str] = {}
    calibration: list[dict[str, Tensor]] = []
    for quantizer in quantizers(options.reduce_range)[: 1 if options.quick else None]:
        label = f"{quantizer.format}, {quantizer.name}"
        target = folder / slug(label)
        try:
            quantizer.check_model(model)
        except InputError as error:  # it is a row of its own
            refused[label] = str(error)
            continue
        if not target.is_dir():
            if quantizer.needs_calibration and not calibration:
                calibration = [TASK.model_inputs(batch) for batch in data.calibration_batches(32)]
            print(f"{source}: {label}", file=sys.stderr, flush=True)
            convert(quantizer, model, calibration, target)
        forwards[label], sizes[label] = quantizer.open(target, 1), weight_bytes(target)
    return Made(data, forwards, sizes, count_parameters(model), refused)


def scores(made: Made, file: Path, quick: bool) -> dict[str, dict[str, float]]:
    """By form, accuracy and its standard error on the held-out rows and on the validation split, kept in a file."""
    kept: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    for form, forward in made.forwards.items():
        if form in kept:
            continue
        kept[form] = {}
        for split, title in (("test", "held out"), ("validation", "validation")):
            batches = made.data.evaluation_batches(split)[: 2 if quick else None]
            found = evaluate(forward, TASK, batches, ["accuracy"], made.data.label_names).metrics["accuracy"]
            kept[form] |= {title: found.value, f"{title}, error": found.standard_error}
        unfinished = file.with_name(file.name + ".part")
        unfinished.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)
    return kept


def times(teacher: Made, student: Made, quick: bool) -> dict[str, dict[str, float]]:
    """By form, milliseconds of one text, and how many times faster than the float teacher, in turns with it."""
    order = np.random.default_rng(0).permutation(teacher.data.sizes["test"])[: 4 if quick else TEXTS].tolist()
    groups = [[row] for row in order]
    whole, own = (
        [TASK.model_inputs(batch) for batch in made.data.batches_of("test", groups)] for made in (teacher, student)
    )
    forwards = {TEACHER: teacher.forwards[FLOAT], **student.forwards}
    batches = {name: whole if name == TEACHER else own for name in forwards}
    seconds = time_interleaved(forwards, batches, 1 if quick else ROUNDS, 1)
    return {
        form: {
            "ms": float(np.median(seconds[form]) * 1e3),
            "ms, p95": float(np.percentile(seconds[form], 95) * 1e3),
            "faster": paired_speedup(seconds[TEACHER], seconds[form]),
        }
        for form in student.forwards
    }


def main() -> None:
    """Train, convert, measure, draw."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", default="nyu-mll/glue", help="GLUE: Hub name or local folder")
    arguments.add_argument("--teacher", type=Path, default=Path("runs/sst2/teacher/student"), help="its folder")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/frontier"), help="folder of the runs")
    arguments.add_argument("--only", nargs="*", default=list(STUDENTS), choices=list(STUDENTS), help="students")
    arguments.add_argument(
        "--steps", type=int, help="training steps of a student at most; those of its config if left out"
    )
    arguments.add_argument("--train-only", action="store_true", help="train, and measure nothing")
    arguments.add_argument("--measure-only", action="store_true", help="train nothing; take the times again")
    arguments.add_argument("--reduce_range", action="store_true", help="7-bit weights, for processors without VNNI")
    options = arguments.parse_args()
    options.teacher = options.teacher.resolve()
    if Path(options.data).is_dir():
        options.data = str(Path(options.data).resolve())
    if not (options.teacher / "config.json").is_file():
        sys.exit(
            f"There is no teacher at {options.teacher}: run `python train.py fit --config configs/sst2/teacher.yaml`."
        )
    out = options.out.resolve() / ("quick" if options.quick else "full")
    chosen = ["CNN"] if options.quick else options.only
    sources = {TEACHER: options.teacher}
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        sources[name] = train(name, options, out)
    if options.train_only:
        return
    whole = make(options.teacher, options, out / TEACHER)
    rows = []
    for name, source in sources.items():
        made = whole if name == TEACHER else make(source, options, out / slug(name))
        accuracy = scores(made, out / slug(name) / "scores.json", options.quick)
        speed = times(whole, made, options.quick)
        for form in made.forwards:
            row = {"model": name, "form": form, "parameters": made.parameters, "bytes": made.sizes[form]}
            if name != TEACHER:
                row |= trained_for(out / slug(name))
            row |= {"smaller": whole.sizes[FLOAT] / made.sizes[form], **accuracy[form], **speed[form]}
            first = rows[0]["held out"] if rows else row["held out"]
            rows.append(row | {"kept": row["held out"] / first})
        for label, reason in made.refused.items():
            print(f"{name}, {label}: {reason}", file=sys.stderr)
    shown = [
        {"model": row["model"], "form": row["form"], "held out": row["held out"], "kept, %": 100 * row["kept"]}
        | {"MB": row["bytes"] / 1e6, "smaller": row["smaller"], "ms": row["ms"], "faster": row["faster"]}
        for row in rows
    ]
    about = setting(reduce_range=options.reduce_range, held_out=whole.data.sizes["test"], rows=rows)
    report("The SST-2 teacher and what is smaller", shown, about, options.json)
    if options.json:
        draw(rows, options.json.with_suffix(".png"))
        options.json.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
