"""Teacher, student and int8 student side by side."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.callbacks._drawing import draw_chart, markdown_table, print_table
from lightning_kd.callbacks._fit_end import best_student, callbacks_of, data_of, is_trial, on_rank_zero, output_path
from lightning_kd.callbacks._loggers import log_report
from lightning_kd.callbacks.export import StudentExport
from lightning_kd.callbacks.quantization import QuantizationCallback
from lightning_kd.measure import Estimate, Evaluation, evaluate, paired_speedup, time_interleaved
from lightning_kd.models import ModelSource, count_parameters, load_trained
from lightning_kd.module import DistillationModule
from lightning_kd.quantization import Forward
from lightning_kd.runner import Runner, forward_of, weight_bytes
from lightning_kd.tasks import Task

__all__ = ["CompressionReport", "Report", "ReportRow", "Times"]

_ROUNDS = 5
_LATENCY_ROWS = 64
_THROUGHPUT_BATCHES = 4
_THROUGHPUT_SIZE = 32


@dataclass(frozen=True)
class _Candidate:
    name: str
    forwards: dict[int, Forward]  # by the number of threads
    task: Task
    parameters: int
    bytes: int
    float_name: str | None = None
    encoding: str | None = None  # the teacher's name, if it reads another vocabulary
    kept_float: tuple[str, ...] = ()

    def own(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The batch as this model reads it."""
        return batch["teachers"][self.encoding] if self.encoding else batch


class CompressionReport(L.Callback):
    """At the end of a fit, measures teacher, best student and int8 students, and writes what it found.

    Every metric on the whole validation split and, where the data module holds rows out, on those, each with its
    standard error; parameters and bytes on disk; latency at batch 1 and throughput at batch 32 on the CPU, all models
    interleaved in one process. Writes ``report.json``, ``report.md`` and ``report.png``, prints a table, and sends
    the same to the loggers that can take it.

    In a list of callbacks it comes after every ``QuantizationCallback``.

    Args:
        baselines: Further models to measure, by name: transformers folders for the same task and tokenizer, e.g. the
            same student trained without the teacher.
        threads: Threads of each model while it is timed, above 0; of several numbers, the first is that of the chart.
        path: The folder for the three files; ``trainer.default_root_dir`` unless given.
        teacher: Measure the teachers, too, which takes longest; otherwise ratios are to the float student.

    Raises:
        InputError: In ``setup("fit")``, if a baseline's folder is missing, the data module cannot serve a report, or
            the order of the callbacks is wrong.
    """

    def __init__(
        self,
        baselines: dict[str, str] | None = None,
        threads: int | list[int] = 1,
        path: str | None = None,
        teacher: bool = True,
    ) -> None:
        self.baselines = dict(baselines or {})
        self.threads = [threads] if isinstance(threads, int) else list(dict.fromkeys(threads))
        if not self.threads or min(self.threads) < 1:
            raise expected("report.threads", "at least 1", threads)
        self.path = path
        self.teacher = teacher
        #: What was measured, on rank 0 after the fit.
        self.report: Report | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not hasattr(data_of(trainer), "evaluation_batches"):
            raise InputError("CompressionReport needs a data module of lightning_kd.datamodules.")
        for name, folder in self.baselines.items():
            if name.startswith(("teacher", "int8", "int4")) or name in ("student", "model"):
                raise expected("report.baselines", "names that no other row of the report has", name)
            if not (Path(folder) / "config.json").is_file():
                raise expected(f"report.baselines.{name}", "a folder with a model", folder, "There is no config.json.")
        callbacks = callbacks_of(trainer)
        if any(isinstance(later, QuantizationCallback) for later in callbacks[callbacks.index(self) :]):
            raise InputError("CompressionReport must come after every QuantizationCallback in trainer.callbacks.")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)  # noqa: S101  # the callbacks belong to this module
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.path, ".")

        def work() -> None:
            self.report = self._measure(trainer, pl_module)
            write_report(self.report, folder)
            log_report(trainer.loggers, self.report, folder / "report.png")
            print_table(self.report)

        on_rank_zero(trainer, work)
        rank_zero_info(f"Report: {folder / 'report.json'}, report.md and report.png beside it")

    # ---------------------------------------------------------------------------------------------- measuring

    def _candidates(self, trainer: L.Trainer, module: DistillationModule) -> list[_Candidate]:
        found = []
        for name, source in module.teacher_sources.items() if self.teacher else ():
            path = source.path
            teacher = module.teachers.get(name)  # not loaded if its logits are cached
            if teacher is None:
                teacher = load_trained(source, module.task.auto_class, f"model.teachers.{name}")
            local = path is not None and Path(path).is_dir()
            size = weight_bytes(Path(path)) if local and path else _tensor_bytes(teacher)
            label = "teacher" if len(module.teacher_sources) == 1 else f"teacher {name}"
            encoding = name if name in data_of(trainer).teacher_tokenizers else None
            forwards, task = self._in_torch(teacher.cpu(), module.task), module.task.with_config(teacher.config)
            found.append(_Candidate(label, forwards, task, count_parameters(teacher), size, encoding=encoding))
        for name, folder in self.baselines.items():
            model = load_trained(ModelSource(folder), module.task.auto_class, f"report.baselines.{name}")
            size, task = weight_bytes(Path(folder)), module.task.with_config(model.config)
            found.append(_Candidate(name, self._in_torch(model, task), task, count_parameters(model), size))
        student = best_student(trainer, module)
        parameters = count_parameters(student)
        callbacks = callbacks_of(trainer)
        exported = [c.folder for c in callbacks if isinstance(c, StudentExport) and c.folder is not None]
        size = weight_bytes(exported[0]) if exported else _tensor_bytes(student)
        name = "student" if module.teacher_sources else "model"  # without a teacher it may be one to be
        found.append(_Candidate(name, self._in_torch(student, module.task), module.task, parameters, size))
        for callback in callbacks:
            if isinstance(callback, QuantizationCallback) and callback.folder is not None:
                forwards = {n: Runner.open(callback.folder, n).forward for n in self.threads}
                int8 = f"{callback.quantizer.format}, {callback.quantizer.name}"
                if any(c.name == int8 for c in found):
                    int8 += f" ({callback.folder.name})"
                size = weight_bytes(callback.folder)
                kept = tuple(callback.kept_float)
                found.append(_Candidate(int8, forwards, module.task, parameters, size, name, kept_float=kept))
        return found

    def _in_torch(self, model: PreTrainedModel, task: Task) -> dict[int, Forward]:
        return dict.fromkeys(self.threads, forward_of(model, task))

    def _measure(self, trainer: L.Trainer, module: DistillationModule) -> Report:
        data = data_of(trainer)
        candidates = self._candidates(trainer, module)
        splits = {name: rows for name, rows in data.sizes.items() if name != "train"}
        main_split = "test" if "test" in splits else data.validation_splits[0]
        total = sum(splits.values())
        rank_zero_info(f"Measuring {', '.join(c.name for c in candidates)} on {total:,} rows")
        evaluations: dict[str, dict[str, Evaluation]] = {c.name: {} for c in candidates}
        for split in splits:
            batches = data.evaluation_batches(split)
            for c in candidates:
                own = [c.own(batch) for batch in batches]
                found = evaluate(c.forwards[self.threads[0]], c.task, own, data.metric_names, data.label_names)
                evaluations[c.name][split] = found
        single, many = _timing_batches(data, module, candidates, main_split)
        main_metric = data.metric_names[0]
        has_int8 = any(c.float_name for c in candidates)
        has_teacher = self.teacher and bool(module.teacher_sources)
        reference = candidates[0] if has_teacher else next(c for c in candidates[::-1] if not c.float_name)
        times = {n: self._times(n, candidates, reference.name, single, many) for n in self.threads}
        whole = evaluations[reference.name][main_split].metrics[main_metric].value
        more_is_better = module.task.metrics([main_metric], data.label_names)[main_metric].higher_is_better is not False
        has_ratios = has_teacher or has_int8
        rows = []
        for c in candidates:
            done = evaluations[c.name]
            value = done[main_split].metrics[main_metric].value
            speeds = {n: by_name[c.name] for n, by_name in times.items()}
            if not has_ratios:
                speeds = {n: replace(each, times_faster=None) for n, each in speeds.items()}
            rows.append(
                ReportRow(
                    name=c.name,
                    parameters=c.parameters,
                    bytes=c.bytes,
                    metrics={split: evaluation.metrics for split, evaluation in done.items()},
                    kept=100 * value / whole if has_ratios and more_is_better and whole > 0 else None,
                    agreement=_agreement(done, evaluations[c.float_name], main_split) if c.float_name else None,
                    times_smaller=reference.bytes / c.bytes if has_ratios else None,
                    kept_float=c.kept_float,
                    more_threads={n: speeds[n] for n in self.threads[1:]},
                    **asdict(speeds[self.threads[0]]),
                )
            )
        setting = _setting(data, self.threads[0], _LATENCY_ROWS)
        return Report(rows, main_metric, main_split, splits, setting)

    @staticmethod
    def _times(
        threads: int,
        candidates: Sequence[_Candidate],
        reference: str,
        single: Mapping[str, Sequence[Mapping[str, Tensor]]],
        many: Mapping[str, Sequence[Mapping[str, Tensor]]],
    ) -> dict[str, Times]:
        """By the model's name."""
        forwards = {c.name: c.forwards[threads] for c in candidates}
        latency = time_interleaved(forwards, single, _ROUNDS, threads)
        throughput = time_interleaved(forwards, many, _ROUNDS, threads)
        return {
            name: Times(
                latency_p50=float(np.median(latency[name]) * 1e3),
                latency_p95=float(np.percentile(latency[name], 95) * 1e3),
                throughput=float(_THROUGHPUT_SIZE / np.median(throughput[name])),
                times_faster=paired_speedup(latency[reference], latency[name]),
            )
            for name in forwards
        }


def _timing_batches(
    data: Any, module: DistillationModule, candidates: Sequence[_Candidate], split: str
) -> tuple[dict[str, list[dict[str, Tensor]]], dict[str, list[dict[str, Tensor]]]]:
    """The same rows, drawn at random, for every model: singly, and in batches padded to their longest."""
    order = np.random.default_rng(0).permutation(data.sizes[split]).tolist()
    rows = [order[i % len(order)] for i in range(_THROUGHPUT_SIZE * _THROUGHPUT_BATCHES)]
    single = [[row] for row in rows[:_LATENCY_ROWS]]
    many = [rows[i : i + _THROUGHPUT_SIZE] for i in range(0, len(rows), _THROUGHPUT_SIZE)]

    def inputs(groups: list[list[int]]) -> dict[str, list[dict[str, Tensor]]]:
        batches = data.batches_of(split, groups)
        return {c.name: [module.task.model_inputs(c.own(batch)) for batch in batches] for c in candidates}

    return inputs(single), inputs(many)


def _tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of a safetensors file with the model's tensors, but for its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _agreement(own: dict[str, Evaluation], other: dict[str, Evaluation], split: str) -> float | None:
    """Share of equal predictions, of rows, of words or of single labels; none for scores."""
    one, two = own[split].predictions, other[split].predictions
    if one.is_floating_point():
        return None
    return (one == two)[one >= 0].float().mean().item()


def _setting(data: Any, threads: int, latency_rows: int) -> dict[str, Any]:
    packages = ("torch", "lightning", "transformers", "openvino", "nncf")
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except ModuleNotFoundError:
            continue
    return {
        "data": data.describe(),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "threads": threads,
        "latency_rows": latency_rows,
        "processor": _processor(),
        "versions": installed,
    }


def _processor() -> str:
    """Name and vector instructions of the processor: int8 speed hangs on them."""
    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    known = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX int8"}
    dot_products = [label for flag, label in known.items() if flag in flags]
    return f"{platform.machine()}, {capability}, int8 dot products: {', '.join(dot_products) or 'none'}"
