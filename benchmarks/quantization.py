r"""Every backend on the students of SST-2, MRPC and CoNLL-2003: what it keeps, what it weighs, how fast it is.

Converts the float student of configs/<set>/student.yaml by each backend, measures all of them on the validation split
and on the held-out rows, and times them in turns with the float student in one process: one text at a time and
batches of 32, on one thread and on two. The last column is the time of the library's runner over that of the backend's
own interface, the two alone on the same batches of 32. From local folders, after `fit` with the three configs:

    python benchmarks/quantization.py --data ../shared/data --json benchmarks/results/quantization.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from _common import parser, report, setting
from lightning_kd.callbacks._fit_end import write_folder
from lightning_kd.datamodules import GLUEDataModule, NERDataModule
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.measure import evaluate, paired_speedup, time_interleaved
from lightning_kd.models import ModelSource, load_trained
from lightning_kd.quantization import (
    DynamicInt8,
    Forward,
    ONNXRuntimeInt4,
    ONNXRuntimeInt8,
    OpenVINOInt8,
    Quantizer,
    TorchAO,
)
from lightning_kd.runner import forward_of, weight_bytes
from lightning_kd.tasks import SequenceClassification, Task, TokenClassification

#: By set: its data from a folder of sets, or from the Hub, and its task.
SETS: dict[str, tuple[Callable[[Path | None], TransformerDataModule], Task]] = {
    "sst2": (lambda data: GLUEDataModule("sst2", **_path(data, "glue"), holdout_size=6000), SequenceClassification()),
    "mrpc": (lambda data: GLUEDataModule("mrpc", **_path(data, "glue"), holdout_size=668), SequenceClassification()),
    "conll2003": (
        lambda data: NERDataModule(str(data / "conll2003") if data else "eriktks/conll2003", holdout_size=2000),
        TokenClassification(),
    ),
}
FLOAT = "float, torch"


def _path(data: Path | None, folder: str) -> dict[str, Any]:
    return {"path": str(data / folder)} if data else {}


def quantizers(reduce_range: bool) -> list[Quantizer]:
    """All backends with what they offer."""
    return [
        DynamicInt8(),
        ONNXRuntimeInt8(reduce_range=reduce_range),
        ONNXRuntimeInt8(activations="static", reduce_range=reduce_range),
        ONNXRuntimeInt4(),
        OpenVINOInt8(reduce_range=reduce_range),
        OpenVINOInt8(activations="float"),
        TorchAO(),
    ]


def convert(quantizer: Quantizer, model: PreTrainedModel, calibration: list[dict[str, Tensor]], folder: Path) -> None:
    """Write the quantized model unless it is there."""

    def write(partial: Path) -> None:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(partial)
        quantizer.convert(model, calibration if quantizer.needs_calibration else [], partial)

    if not folder.is_dir():
        write_folder(folder, write)


def own_interface(quantizer: Quantizer, folder: Path, threads: int) -> Forward | None:
    """The folder as its backend's documentation opens it; none where the backend is torch itself."""
    file = folder / quantizer.file_name
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {name: value.numpy() for name, value in batch.items()})
    if file.suffix == ".xml":
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(file, "CPU", options)
        return lambda batch: compiled({name: value.numpy() for name, value in batch.items()})
    return None


def measure(name: str, options: Any, folder: Path, found: list[dict[str, Any]]) -> None:
    """One set: all backends side by side."""
    make, task = SETS[name]
    data = make(options.data)
    source = options.students / name / "student" / "student"
    if not (source / "config.json").is_file():
        sys.exit(f"There is no student at {source}: run `python train.py fit --config configs/{name}/student.yaml`.")
    data.tokenizer_source = str(source)
    data.setup("fit")
    model = load_trained(ModelSource(str(source)), task.auto_class, "student")
    calibration = [task.model_inputs(batch) for batch in data.calibration_batches(4 if options.quick else 32)]
    backends = quantizers(options.reduce_range)[:2] if options.quick else quantizers(options.reduce_range)
    labels = {f"{q.format}, {q.name}": q for q in backends}
    folders = {label: folder / name / label.replace(", ", "-").replace(" ", "_") for label in labels}
    for label, quantizer in labels.items():
        print(name, label, file=sys.stderr)
        convert(quantizer, model, calibration, folders[label])
    metric = data.metric_names[0]
    opened = {FLOAT: forward_of(model, task), **{k: q.open(folders[k], 1) for k, q in labels.items()}}
    done = {
        split: {
            label: evaluate(forward, task, data.evaluation_batches(split), [metric], data.label_names)
            for label, forward in opened.items()
        }
        for split in ("validation", "test")
    }
    size = {FLOAT: weight_bytes(source), **{label: weight_bytes(f) for label, f in folders.items()}}
    rows = {label: {"set": name, "model": label, "metric": metric, "bytes": size[label]} for label in opened}
    for label, row in rows.items():
        row["smaller"] = size[FLOAT] / size[label]
        for split, by_label in done.items():
            estimate = by_label[label].metrics[metric]
            row[split], row[f"{split}_error"] = estimate.value, estimate.standard_error
        predicted, exact = (done["test"][key].predictions for key in (label, FLOAT))
        row["agreement"] = (predicted == exact)[exact >= 0].float().mean().item()
    order = np.random.default_rng(0).permutation(data.sizes["test"]).tolist()
    shapes = {"one": [[i] for i in order[:64]], "many": [order[i : i + 32] for i in range(0, 128, 32)]}
    rounds = 1 if options.quick else 5
    for threads in (1,) if options.quick else (1, 2):
        forwards = {FLOAT: opened[FLOAT], **{k: q.open(folders[k], threads) for k, q in labels.items()}}
        for shape, groups in shapes.items():
            batches = [task.model_inputs(batch) for batch in data.batches_of("test", groups)]
            seconds = time_interleaved(forwards, dict.fromkeys(forwards, batches), rounds, threads)
            for label, row in rows.items():
                key = f"{shape}_{threads}_threads"
                row[f"{key}_ms_p50"] = float(np.median(seconds[label]) * 1e3)
                row[f"{key}_ms_p95"] = float(np.percentile(seconds[label], 95) * 1e3)
                row[f"{key}_faster"] = paired_speedup(seconds[FLOAT], seconds[label])
    batches = [task.model_inputs(batch) for batch in data.batches_of("test", shapes["many"])]
    for label, quantizer in labels.items():
        own = own_interface(quantizer, folders[label], 1)
        if own is not None:
            rows[label]["runner_over_own"] = over_own(quantizer.open(folders[label], 1), own, batches, 4 * rounds)
    found += rows.values()


def over_own(runner: Forward, own: Forward, batches: list[dict[str, Tensor]], rounds: int) -> float:
    """Time of the runner over that of the backend's own interface, the two in turn on each batch."""
    ratios = []
    for batch in batches * (rounds + 1):
        ends = [time.perf_counter()]
        for forward in (runner, own):
            forward(batch)
            ends.append(time.perf_counter())
        ratios.append((ends[1] - ends[0]) / (ends[2] - ends[1]))
    return float(np.median(ratios[len(batches) :]))  # the first round warms up


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the printed table; the JSON has all."""
    chosen = {
        "model": f"{row['set']}: {row['model']}",
        "score": row["test"],
        "agrees": row["agreement"],
        "MB": row["bytes"] / 1e6,
        "smaller": row["smaller"],
    }
    for threads in (1, 2):
        for shape, title in (("one", "1 text"), ("many", "32 texts")):
            key = f"{shape}_{threads}_threads"
            if f"{key}_faster" in row:
                chosen[f"x, {title}, {threads} thr."] = row[f"{key}_faster"]
    return chosen | {"over own": row.get("runner_over_own", "")}


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder with glue/ and conll2003/; the Hub unless given")
    arguments.add_argument("--students", type=Path, default=Path("runs"), help="folder of <set>/student/student")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/quantization"), help="converted students")
    arguments.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS), help="sets")
    arguments.add_argument("--reduce_range", action="store_true", help="7-bit weights, for processors without VNNI")
    options = arguments.parse_args()
    found: list[dict[str, Any]] = []
    for name in options.only[:1] if options.quick else options.only:
        measure(name, options, options.out / ("quick" if options.quick else "full"), found)
    report(
        "Backends", [shown(row) for row in found], setting(reduce_range=options.reduce_range, rows=found), options.json
    )


if __name__ == "__main__":
    main()
