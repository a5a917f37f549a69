r"""What quantization-aware training gives over quantization after training, and what the teacher gives it.

The distilled students of MRPC and CoNLL-2003 are trained on for one epoch of 3,000 rows in three ways, and quantized to
8 bits and to weights of 4 bits: in float by their teacher, quantized afterwards (PTQ, teacher); under the backend's
rounding by their teacher (QAT, teacher); under the rounding by the hard labels (QAT). The score is that of the last
weights on held-out rows, which no run trains on and nothing is chosen by. `agrees` is the share of
predictions on the validation split that a folder shares with the fake-quantized student that was trained, over the
seeds, and the lowest. A run that has its report under --out is not run again. Needs the students and teachers of
configs/<set>/student.yaml. From local folders:

    python benchmarks/qat.py --data ../shared/data --json benchmarks/results/qat.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from _common import fit, parser, report, setting, spread
from lightning_kd import Runner
from lightning_kd.datamodules import GLUEDataModule, NERDataModule
from lightning_kd.measure import evaluate
from lightning_kd.models import ModelSource, load_trained
from lightning_kd.quantization import ONNXRuntimeInt4, ONNXRuntimeInt8, Quantizer
from lightning_kd.quantization.fake_quantize import fake_quantize
from lightning_kd.runner import forward_of
from lightning_kd.tasks import SequenceClassification, TokenClassification

#: By set: its place under --data and on the Hub, the score, and the training rows, which every arm sees once.
SETS = {"mrpc": ("glue", "nyu-mll/glue", "f1", 3000), "conll2003": ("conll2003", "eriktks/conll2003", "f1", 3000)}
BACKENDS: dict[str, Quantizer] = {"8 bits": ONNXRuntimeInt8(), "4-bit weights": ONNXRuntimeInt4()}
WITHOUT_TEACHER = {"model.teachers": "{}", "model.losses": "{}", "model.hard_label_weight": 1.0}


def quantization(quantizer: Quantizer, mode: str, run: Path) -> dict[str, Any]:
    """The callback as a config has it."""
    kind = type(quantizer).__name__
    options = {"quantizer": {"class_path": f"lightning_kd.quantization.{kind}"}, "mode": mode}
    return {
        "class_path": "lightning_kd.callbacks.QuantizationCallback",
        "init_args": {**options, "export_dir": str(run / kind)},
    }


def agreement(name: str, path: str, run: Path, quantizer: Quantizer, few: bool) -> float:
    """Share of predictions on the validation split that the folder and the fake-quantized student have in common."""
    task = TokenClassification() if name == "conll2003" else SequenceClassification()
    student = load_trained(ModelSource(str(run / "student")), task.auto_class, "student")
    data = NERDataModule(path) if name == "conll2003" else GLUEDataModule("mrpc", path=path)
    data.tokenizer_source = str(run / "student")
    data.setup("validate")
    batches = data.evaluation_batches("validation")[: 4 if few else None]
    fake_quantize(student, quantizer.rounding)
    forwards = (forward_of(student, task), Runner.open(run / type(quantizer).__name__).forward)
    one, two = (
        evaluate(forward, task, batches, data.metric_names[:1], data.label_names).predictions for forward in forwards
    )
    return (one == two)[one >= 0].float().mean().item()


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder with glue/ and conll2003/; the Hub unless given")
    arguments.add_argument("--runs", type=Path, default=Path("runs"), help="folder of <set>/student and <set>/teacher")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/qat"), help="folder of the runs")
    arguments.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS), help="sets")
    options = arguments.parse_args()
    seeds = [0] if options.quick else [0, 1, 2]
    out, runs = options.out.resolve() / ("quick" if options.quick else "full"), options.runs.resolve()
    table = []
    for name in options.only[:1] if options.quick else options.only:
        folder, hub, score, train_rows = SETS[name]
        path = str(options.data / folder) if options.data else hub
        common: dict[str, object] = {"data.path": path, "model.student.path": runs / name / "student" / "student"}
        common |= {"report.teacher": "false", "data.max_train_rows": train_rows, "trainer.max_epochs": 1}
        if options.quick:
            common |= {"data.max_train_rows": 64, "data.holdout_size": 64}
        taught = {"model.teachers.teacher.path": runs / name / "teacher" / "student"}
        scores: dict[tuple[str, str], list[float]] = {}
        agreed: dict[tuple[str, str], list[float]] = {}
        for seed in seeds:
            arms: list[tuple[str, str, dict[str, object], dict[str, Quantizer]]] = [
                ("PTQ, teacher", "ptq", taught, BACKENDS),
                *[("QAT, teacher", "qat", taught, {bits: backend}) for bits, backend in BACKENDS.items()],
                *[("QAT", "qat", WITHOUT_TEACHER, {bits: backend}) for bits, backend in BACKENDS.items()],
            ]
            for arm, mode, more, backends in arms:
                run = out / name / f"{arm} {' '.join(backends)} {seed}".replace(", ", "-").replace(" ", "_")
                callbacks = [quantization(backend, mode, run) for backend in backends.values()]
                seeded = {"seed_everything": seed, "data.seed": seed}
                found = fit(f"configs/{name}/qat.yaml", run, callbacks, **common, **more, **seeded)
                for bits, backend in backends.items():
                    scores.setdefault((arm, bits), []).append(found[f"{backend.format}, {backend.name}"][score])
                    if mode == "qat":
                        share = agreement(name, path, run, backend, options.quick)
                        agreed.setdefault((arm, bits), []).append(share)
                if mode == "ptq":
                    scores.setdefault((arm, "float"), []).append(found["student"][score])
                print(
                    name, arm, *backends, seed, {k[1]: v[-1] for k, v in scores.items() if k[0] == arm}, file=sys.stderr
                )
        for (arm, bits), values in sorted(scores.items(), key=lambda item: (item[0][1], item[0][0])):
            shares = agreed.get((arm, bits))
            agrees = {"agrees": statistics.mean(shares), "at least": min(shares)} if shares else {}
            table.append(
                {"set": name, "weights": bits, "trained": arm, "score": score}
                | spread(values)
                | dict.fromkeys(("agrees", "at least"), "")
                | agrees
            )
    report("Quantization-aware training", table, setting(seeds=seeds), options.json)


if __name__ == "__main__":
    main()
