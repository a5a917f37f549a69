"""Teacher, student and int8 student side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd._progress import stage
from lightning_kd.callbacks._cards import write_card
from lightning_kd.callbacks._fit_end import (
    best_student,
    callbacks_of,
    data_of,
    is_trial,
    on_rank_zero,
    output_path,
    task_of,
)
from lightning_kd.callbacks._loggers import log_folders, log_report
from lightning_kd.callbacks.export import StudentExport
from lightning_kd.callbacks.quantization import QuantizationCallback
from lightning_kd.charts import draw_agreement, draw_details, draw_report
from lightning_kd.compatibility import check_labels
from lightning_kd.details import agreement, details_of, disagreements, row_distances
from lightning_kd.measure import Evaluation, evaluate, paired_speedup, time_interleaved
from lightning_kd.models import ModelSource, count_parameters, load_config, load_trained, pad_with
from lightning_kd.module import DistillationModule
from lightning_kd.quantization import Forward
from lightning_kd.report import (
    Disagreement,
    Report,
    ReportRow,
    Times,
    installed_versions,
    markdown_table,
    print_table,
    report_notes,
    report_table,
    write_text,
)
from lightning_kd.runner import Runner, forward_of, weight_bytes
from lightning_kd.tasks import LanguageModeling, Task

__all__ = ["CompressionReport", "Report", "ReportRow", "Times"]

_ROUNDS = 5
_LATENCY_ROWS = 64
_THROUGHPUT_BATCHES = 4
_THROUGHPUT_SIZE = 32
#: Rows on which student and teacher differ most that are shown.
_DISAGREEMENTS = 20


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
    folder: Path | None = None  # where this run has written it
    quantization: dict[str, str] | None = None  # how this run has quantized it

    def own(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The batch as this model reads it."""
        return batch["teachers"][self.encoding] if self.encoding else batch


class CompressionReport(L.Callback):
    """At the end of a fit, measures teacher, best student and int8 students, and writes what it found.

    Every metric on the whole validation split and, where the data module holds rows out, on those, each with its
    standard error; parameters and bytes on disk; latency at batch 1 and throughput at batch 32 on the CPU, all models
    interleaved in one process. Then what differs row by row: how often any two models predict the same, what each takes
    for what or its score of each type, and the rows on which the student is farthest from the first teacher. Writes
    ``report.json``, ``report.md`` and ``report.png``, ``agreement.png`` and ``details.png`` where there are such,
    prints a table, adds the figures to the model cards of the exported folders, and sends all of it to the loggers that
    can take it; W&B also gets the folders, with ``log_model``.

    In a list of callbacks it comes after every ``QuantizationCallback``.

    Args:
        baselines: Further models to measure, by name: transformers folders for the same task and tokenizer, e.g. the
            same student trained without the teacher.
        threads: Threads of each model while it is timed, above 0; of several numbers, the first is that of the chart.
        path: The folder for the three files; ``trainer.default_root_dir`` unless given.
        teacher: Measure the teachers, too, which takes longest; otherwise ratios are to the float student.
        texts: Put the texts on which student and teacher differ most into ``report.json`` and the loggers; without,
            their numbers stand for them.

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
        texts: bool = True,
    ) -> None:
        self.baselines = dict(baselines or {})
        self.threads = [threads] if isinstance(threads, int) else list(dict.fromkeys(threads))
        if not self.threads or min(self.threads) < 1:
            raise expected("report.threads", "at least 1", threads)
        self.path = path
        self.teacher = teacher
        self.texts = texts
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
            config = load_config(ModelSource(folder), f"report.baselines.{name}")
            check_labels(f"`report.baselines.{name}`", config, data_of(trainer).label_names)
        callbacks = callbacks_of(trainer)
        if any(isinstance(later, QuantizationCallback) for later in callbacks[callbacks.index(self) :]):
            raise InputError("CompressionReport must come after every QuantizationCallback in trainer.callbacks.")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if is_trial(trainer):
            return
        folder = output_path(trainer, self.path, ".")

        def work() -> None:
            candidates = self._candidates(trainer, pl_module)
            self.report = report = self._measure(trainer, pl_module, candidates)
            pictures = write_report(report, folder)
            folders = {c.name: c.folder for c in candidates if c.folder is not None}
            for c in candidates:
                if c.folder is not None:
                    write_card(trainer, pl_module, c.folder, c.folder.name, c.quantization, report, c.name)
            log_report(trainer, report, pictures, task_of(trainer))
            log_folders(trainer, report, folders, task_of(trainer))
            print_table("Compression report", *report_table(report), report_notes(report))

        on_rank_zero(trainer, work)
        rank_zero_info(f"Report: {folder / 'report.json'}, report.md and report.png beside it")

    # ---------------------------------------------------------------------------------------------- measuring

    def _candidates(self, trainer: L.Trainer, module: DistillationModule) -> list[_Candidate]:
        found, data = [], data_of(trainer)
        for name, source in module.teacher_sources.items() if self.teacher else ():
            path = source.path
            teacher = module.teachers.get(name)  # not loaded if its logits are cached
            if teacher is None:
                teacher = load_trained(source, module.task.auto_class, f"model.teachers.{name}", data.label_names)
                pad_with(teacher, data.tokenizer_of(name))
            local = path is not None and Path(path).is_dir()
            size = weight_bytes(Path(path)) if local and path else _tensor_bytes(teacher)
            label = "teacher" if len(module.teacher_sources) == 1 else f"teacher {name}"
            encoding = name if name in {*data.teacher_tokenizers, *data.teacher_inputs} else None
            forwards, task = self._in_torch(teacher.cpu(), module.task), module.task.with_config(teacher.config)
            found.append(_Candidate(label, forwards, task, count_parameters(teacher), size, encoding=encoding))
        for name, folder in self.baselines.items():
            role = f"report.baselines.{name}"
            model = load_trained(ModelSource(folder), module.task.auto_class, role, data.label_names)
            pad_with(model, data.tokenizer)
            size, task = weight_bytes(Path(folder)), module.task.with_config(model.config)
            found.append(_Candidate(name, self._in_torch(model, task), task, count_parameters(model), size))
        student = best_student(trainer, module)
        parameters = count_parameters(student)
        callbacks = callbacks_of(trainer)
        exported = [c.folder for c in callbacks if isinstance(c, StudentExport) and c.folder is not None]
        size, written = (weight_bytes(exported[0]), exported[0]) if exported else (_tensor_bytes(student), None)
        name = "student" if module.teacher_sources else "model"  # without a teacher it may be one to be
        forwards = self._in_torch(student, module.task)
        found.append(_Candidate(name, forwards, module.task, parameters, size, folder=written))
        for callback in callbacks:
            if isinstance(callback, QuantizationCallback) and callback.folder is not None:
                forwards = {n: Runner.open(callback.folder, n).forward for n in self.threads}
                int8 = f"{callback.quantizer.format}, {callback.quantizer.name}"
                if any(c.name == int8 for c in found):
                    int8 += f" ({callback.folder.name})"
                size = weight_bytes(callback.folder)
                one = _Candidate(int8, forwards, module.task, parameters, size, name, folder=callback.folder)
                found.append(replace(one, kept_float=tuple(callback.kept_float), quantization=callback.about()))
        return found

    def _in_torch(self, model: PreTrainedModel, task: Task) -> dict[int, Forward]:
        return dict.fromkeys(self.threads, forward_of(model, task))

    def _measure(self, trainer: L.Trainer, module: DistillationModule, candidates: list[_Candidate]) -> Report:
        data = data_of(trainer)
        splits = {name: rows for name, rows in data.sizes.items() if name != "train"}
        main_split = "test" if "test" in splits else data.validation_splits[0]
        total = sum(splits.values())
        rank_zero_info(f"Measuring {', '.join(c.name for c in candidates)} on {total:,} rows")
        evaluations: dict[str, dict[str, Evaluation]] = {c.name: {} for c in candidates}
        has_teacher = self.teacher and bool(module.teacher_sources)
        compares = has_teacher and not isinstance(module.task, LanguageModeling)  # whose logits are gigabytes
        apart: list[Disagreement] = []
        shown = trainer.progress_bar_callback is not None
        with stage("Evaluating", total * len(candidates), "rows", shown) as progress:
            for split in splits:
                batches = data.evaluation_batches(split)
                kept: dict[str, list[dict[str, Tensor]]] = {}
                for c in candidates:
                    forward = c.forwards[self.threads[0]]
                    if split == main_split and compares and c in (candidates[0], _student(candidates)):
                        forward = _keeping(forward, kept.setdefault(c.name, []))
                    own = (progress.passing(c.own(batch), len(batch["index"])) for batch in batches)
                    found = evaluate(forward, c.task, own, data.metric_names, data.label_names)
                    evaluations[c.name][split] = found
                if kept:
                    done = {c.name: evaluations[c.name][split] for c in candidates}
                    apart = self._disagreements(data, module.task, split, candidates, kept, done)
        single, many = _timing_batches(data, module, candidates, main_split)
        main_metric = data.metric_names[0]
        has_int8 = any(c.float_name for c in candidates)
        reference = candidates[0] if has_teacher else _student(candidates)
        times = {n: self._times(n, candidates, reference.name, single, many) for n in self.threads}
        whole = evaluations[reference.name][main_split].metrics[main_metric].value
        more_is_better = module.task.metrics([main_metric], data.label_names)[main_metric].higher_is_better is not False
        has_ratios = has_teacher or has_int8
        rows = []
        for c in candidates:
            done = evaluations[c.name]
            value, predicted = done[main_split].metrics[main_metric].value, done[main_split].predictions
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
                    agreement=agreement(predicted, evaluations[c.float_name][main_split].predictions)
                    if c.float_name
                    else None,
                    times_smaller=reference.bytes / c.bytes if has_ratios else None,
                    kept_float=c.kept_float,
                    more_threads={n: speeds[n] for n in self.threads[1:]},
                    **asdict(speeds[self.threads[0]]),
                )
            )
        setting = _setting(data, self.threads[0], _LATENCY_ROWS)
        main = {c.name: evaluations[c.name][main_split] for c in candidates}
        details = details_of(module.task, main, data.label_names, apart)
        return Report(rows, main_metric, main_split, splits, setting, details)

    def _disagreements(
        self,
        data: Any,
        task: Task,
        split: str,
        candidates: Sequence[_Candidate],
        kept: Mapping[str, list[dict[str, Tensor]]],
        done: Mapping[str, Evaluation],
    ) -> list[Disagreement]:
        teacher, student = candidates[0], _student(candidates)
        batches = data.evaluation_batches(split)
        distances = [
            row_distances(task, s, t, batch, teacher.own(batch) if teacher.encoding else None)
            for s, t, batch in zip(kept[student.name], kept[teacher.name], batches, strict=True)
        ]
        index = torch.cat([batch["index"] for batch in batches])
        texts = dict(zip(data.token_rows(split).index.tolist(), data.texts(split), strict=True))
        one, other = done[student.name], done[teacher.name]
        return disagreements(
            task, torch.cat(distances), index, one, other, texts, data.label_names, _DISAGREEMENTS, self.texts
        )

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


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` and the pictures, each under its final name only when it is whole.

    Returns:
        The pictures by name.
    """
    write_text(folder / "report.json", report.json())
    write_text(folder / "report.md", markdown_table(*report_table(report), report_notes(report)))
    pictures = {"report_chart": folder / "report.png"}
    draw_report(report, folder / "report.png")
    if len(report.details.agreement) > 1:
        pictures["agreement_chart"] = folder / "agreement.png"
        draw_agreement(report, folder / "agreement.png")
    if report.details.confusion or report.details.scores:
        pictures["details_chart"] = folder / "details.png"
        draw_details(report, folder / "details.png")
    return pictures


def _student(candidates: Sequence[_Candidate]) -> _Candidate:
    """The float student: what is not a teacher, a baseline or quantized stands last among the float models."""
    return next(c for c in candidates[::-1] if not c.float_name)


def _keeping(forward: Forward, kept: list[dict[str, Tensor]]) -> Forward:
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept.append(forward(inputs))
        return kept[-1]

    return run


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


def _setting(data: Any, threads: int, latency_rows: int) -> dict[str, Any]:
    return {
        "data": data.describe(),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "threads": threads,
        "latency_rows": latency_rows,
        "processor": _processor(),
        "versions": installed_versions(),
    }


def _processor() -> str:
    """Name and vector instructions of the processor: int8 speed hangs on them."""
    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    known = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX int8"}
    dot_products = [label for flag, label in known.items() if flag in flags]
    return f"{platform.machine()}, {capability}, int8 dot products: {', '.join(dot_products) or 'none'}"
