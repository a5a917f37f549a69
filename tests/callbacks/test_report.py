"""What the report says, against the folders that it is about."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from matplotlib.image import imread
from sklearn import metrics as sk
from torch import Tensor

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport
from lightning_kd.callbacks import report as report_module
from lightning_kd.callbacks.report import Report
from lightning_kd.charts import _label_offsets
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.quantization import DynamicInt8

Make = Callable[..., Any]
NAMES = ["teacher", "no teacher", "student", "int8, torch"]


@dataclass(frozen=True)
class Run:
    """A fit with everything that a report can hold."""

    folder: Path
    report: Report
    data: GLUEDataModule
    module: DistillationModule
    models: dict[str, Path]


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Few measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_kd.callbacks.report._ROUNDS", 2)
        patch.setattr("lightning_kd.callbacks.report._LATENCY_ROWS", 6)
        patch.setattr("lightning_kd.callbacks.report._THROUGHPUT_BATCHES", 1)
        yield


@pytest.fixture(scope="module")
def run(
    quick: None,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Make,
    distillation: Make,
    glue: Make,
    make_trainer: Make,
) -> Run:
    """One fit on MRPC: 10 rows to validate on, 9 held out."""
    folder = tmp_path_factory.mktemp("report")
    teacher, baseline = tiny_model(hidden_size=32, num_hidden_layers=4), tiny_model(seed=7)
    export, report = StudentExport(), CompressionReport({"no teacher": str(baseline)}, path=str(folder / "out"))
    int8 = QuantizationCallback(DynamicInt8())
    data = glue("mrpc", holdout_size=9)
    module = distillation(teachers={"any": ModelSource(str(teacher))})
    trainer = make_trainer(
        default_root_dir=folder,
        callbacks=[export, int8, report],
        logger=CSVLogger(folder, name="logs", version=""),
    )
    trainer.fit(module, datamodule=data)
    assert report.report is not None and export.folder is not None and int8.folder is not None
    models = dict(zip(NAMES, (teacher, baseline, export.folder, int8.folder), strict=True))
    return Run(folder / "out", report.report, data, module, models)


def answers(run: Run, name: str, split: str) -> tuple[Tensor, Tensor]:
    """Predictions of a model's folder and labels, on the whole split."""
    forward = Runner.open(run.models[name]).forward
    batches = run.data.evaluation_batches(split)
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == sorted(run.data._rows[split].index)
    logits = [forward(run.module.task.model_inputs(batch))["logits"] for batch in batches]
    return torch.cat(logits).argmax(-1), torch.cat([batch["labels"] for batch in batches])


def test_metrics_equal_sklearn_on_the_whole_split(run: Run) -> None:
    """Stops a figure from the last batch, of another model, or of the rows that were trained on."""
    assert [row.name for row in run.report.rows] == NAMES
    assert run.report.split_rows == {"test": 9, "validation": 10}
    assert (run.report.main_split, run.report.main_metric) == ("test", "accuracy")
    for row in run.report.rows:
        assert {split: list(metrics) for split, metrics in row.metrics.items()} == {
            split: ["accuracy", "f1"] for split in run.report.split_rows
        }
        for split, metrics in row.metrics.items():
            predicted, labels = answers(run, row.name, split)
            assert metrics["accuracy"].value == pytest.approx(sk.accuracy_score(labels, predicted))
            assert metrics["f1"].value == pytest.approx(sk.f1_score(labels, predicted))
            assert 0 <= metrics["accuracy"].standard_error < 0.5


def test_kept_agreement_and_size(run: Run) -> None:
    """Stops a share of the wrong model's metric, and sizes that leave the embeddings or the head out."""
    rows = {row.name: row for row in run.report.rows}
    teacher = rows["teacher"].metrics["test"]["accuracy"].value
    assert teacher > 0
    for name, row in rows.items():
        assert row.kept == pytest.approx(100 * row.metrics["test"]["accuracy"].value / teacher)
        file = "int8.safetensors" if name == "int8, torch" else "model.safetensors"
        assert row.bytes == (run.models[name] / file).stat().st_size
        assert row.times_smaller == pytest.approx(rows["teacher"].bytes / row.bytes)
        assert row.times_faster is not None and row.times_faster > 0
        assert 0 < row.latency_p50 <= row.latency_p95 and row.throughput > 0
    assert rows["teacher"].kept == 100 and rows["teacher"].times_faster == 1
    agreed = (answers(run, "int8, torch", "test")[0] == answers(run, "student", "test")[0]).float().mean().item()
    assert rows["int8, torch"].agreement == pytest.approx(agreed)
    assert [row.agreement for name, row in rows.items() if name != "int8, torch"] == [None] * 3
    parameters = {n: sum(p.numel() for p in m.parameters()) for n, m in run.module.teachers.items()}
    assert rows["teacher"].parameters == parameters["any"] > rows["student"].parameters
    assert rows["int8, torch"].parameters == rows["student"].parameters == rows["no teacher"].parameters


def test_json_says_what_was_measured(run: Run) -> None:
    """Stops a file that lacks the seed, the data or the machine that its figures come from."""
    read = json.loads((run.folder / "report.json").read_text())
    assert [row["name"] for row in read["rows"]] == NAMES
    for row, measured in zip(read["rows"], run.report.rows, strict=True):
        assert row["metrics"]["validation"]["f1"]["value"] == measured.metrics["validation"]["f1"].value
        assert row["bytes"] == measured.bytes and row["latency_p50"] == measured.latency_p50
    setting = read["setting"]
    assert {"data", "seed", "threads", "latency_rows", "processor", "versions"} <= set(setting)
    assert "mrpc" in setting["data"]
    assert torch.__version__.startswith(setting["versions"]["torch"])  # or +cu130 behind it
    assert setting["seed"] == "0" and setting["threads"] == 1 and setting["latency_rows"] == 6


def test_markdown_has_a_column_for_each_figure(run: Run) -> None:
    """Stops a cell from standing under another column's name, and a README from being copied with gaps."""
    lines = (run.folder / "report.md").read_text().splitlines()
    header, rule, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[:6]]
    metrics = [f"{metric}, {split}" for split in run.report.split_rows for metric in ("accuracy", "f1")]
    assert header[:3] == ["model", "parameters", "size"] and header[3:7] == metrics
    assert header[7:] == ["kept", "agrees with float", "ms, p50", "ms, p95", "texts/s", "smaller", "faster"]
    assert rule[0] == "---" and len(rows) == 4 and "" in lines
    for line, row in zip(lines[2:6], run.report.rows, strict=True):
        cells = dict(zip(header, [cell.strip() for cell in line[1:-1].split("|")], strict=True))
        estimate = row.metrics["test"]["f1"]
        assert cells["model"] == row.name
        assert cells["f1, test"] == f"{estimate.value:.4f} ± {estimate.standard_error:.4f}"
        assert cells["kept"] == f"{row.kept:.1f} %" and cells["smaller"] == f"{row.times_smaller:.1f} x"
        assert cells["agrees with float"] == ("" if row.agreement is None else f"{100 * row.agreement:.1f} %")
        assert cells["ms, p50"] == f"{row.latency_p50:.2f}"


def test_chart_is_drawn(run: Run) -> None:
    """Stops an empty picture, and one that a crash has cut short."""
    assert (run.folder / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(run.folder / "report.png")
    height, width, _ = pixels.shape
    assert height > 300 and width > 600
    ink = (pixels[..., :3] < 0.9).any(-1)
    assert 0.005 < ink.mean() < 0.5
    assert len(torch.unique(torch.from_numpy(pixels[..., 0].copy()))) > 20
    pictures = ["agreement.png", "details.png", "report.json", "report.md", "report.png"]
    assert sorted(p.name for p in run.folder.iterdir()) == pictures


@example([(0, 0, 15), (31, 0, 15)])
@example([(100, 0, 12), (131, 0, 12), (69, 0, 12)])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200), st.integers(6, 17)), min_size=2, max_size=7))
def test_a_number_is_nearest_to_its_own_point(points: list[tuple[int, int, int]]) -> None:
    """Stops the number of one model from standing on another's point."""
    centres, radii = np.asarray([p[:2] for p in points], dtype=float), np.asarray([p[2] for p in points], dtype=float)
    assume(min(np.hypot(*(a - b)) for a, b in combinations(centres, 2)) > 30)
    for i, offset in enumerate(_label_offsets(centres, radii)):
        gaps = np.hypot(*(centres - centres[i] - offset).T) - radii
        assert gaps.min() > 3


def test_loggers_get_the_figures(run: Run) -> None:
    """Stops the report from reaching the screen alone."""
    with (run.folder.parent / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in run.report.rows:
        prefix = f"report/{row.name}"
        expected = {f"{prefix}/megabytes": row.bytes / 1e6, f"{prefix}/latency_p50_ms": row.latency_p50}
        for split, metrics in row.metrics.items():
            expected |= {f"{prefix}/{split}/{name}": estimate.value for name, estimate in metrics.items()}
        for name, value in expected.items():
            assert [float(line[name]) for line in rows if line[name]] == pytest.approx([value], rel=1e-4), name


def test_threads_and_student_are_left_as_they_were(run: Run) -> None:
    """Stops the measuring from changing what it measures."""
    assert torch.get_num_threads() == 1
    assert run.module.model.training
    assert all(p.requires_grad for p in run.module.model.parameters())


def test_fine_tuning_is_reported_without_a_teacher(
    quick: None, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a share of nothing, and columns that are empty for every model."""
    report = CompressionReport()
    trainer = make_trainer(callbacks=[report])
    student = ModelSource(str(tiny_model(head=False)))
    trainer.fit(distillation(student=student, teachers={}, losses={}), datamodule=glue("stsb"))
    assert report.report is not None
    (row,) = report.report.rows
    assert (row.kept, row.agreement, row.times_smaller, row.times_faster) == (None, None, None, None)
    assert list(row.metrics) == ["validation"] and list(row.metrics["validation"]) == ["pearson", "spearman"]
    markdown = (Path(trainer.default_root_dir) / "report.md").read_text()
    assert "kept" not in markdown.splitlines()[0] and "also used to choose the checkpoint" in markdown


def test_without_a_teacher_the_float_model_is_compared_with(
    quick: None,
    tiny_model: Make,
    distillation: Make,
    glue: Make,
    make_trainer: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stops the classic, a fine-tuned model before and after, from being shown without its ratios, or on one thread."""
    timed: list[int] = []
    measure = report_module.time_interleaved
    monkeypatch.setattr(report_module, "time_interleaved", lambda *a: (timed.append(a[-1]), measure(*a))[1])
    opened: list[int | None] = []
    open_int8 = DynamicInt8.open
    monkeypatch.setattr(DynamicInt8, "open", lambda folder, n=None: (opened.append(n), open_int8(folder, n))[1])
    report = CompressionReport({"other": str(tiny_model(hidden_size=32))}, threads=[1, 2])
    trainer = make_trainer(callbacks=[QuantizationCallback(DynamicInt8()), report])
    student = ModelSource(str(tiny_model(head=False)))
    trainer.fit(distillation(student=student, teachers={}, losses={}), datamodule=glue("mrpc"))
    assert report.report is not None
    other, model, int8 = report.report.rows
    assert other.times_smaller == model.bytes / other.bytes != 1
    assert (model.name, int8.name) == ("model", "int8, torch")
    assert (model.kept, model.times_smaller, model.times_faster) == (100, 1, 1)
    assert int8.times_smaller == model.bytes / int8.bytes and int8.times_faster is not None
    accuracies = [row.metrics["validation"]["accuracy"].value for row in (int8, model)]
    assert int8.kept == pytest.approx(100 * accuracies[0] / accuracies[1])
    for row in (model, int8):
        assert list(row.more_threads) == [2]
        assert 0 < row.more_threads[2].latency_p50 <= row.more_threads[2].latency_p95
    assert torch.get_num_threads() == 1 and timed == [1, 1, 2, 2] and opened == [1, 2]
    header, _, _, _, last = (Path(trainer.default_root_dir) / "report.md").read_text().splitlines()[:5]
    assert header.endswith("| ms, p50, 2 threads | ms, p95, 2 threads | texts/s, 2 threads | faster, 2 threads |")
    assert last.count("|") == header.count("|")
    assert "share of that of the float model" in (Path(trainer.default_root_dir) / "report.md").read_text()


def test_the_teacher_can_be_left_out(quick: None, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a short run from being spent on its teacher, and ratios to a model that is not in the report."""
    report = CompressionReport(teacher=False)
    make_trainer(callbacks=[QuantizationCallback(DynamicInt8()), report]).fit(distillation(), datamodule=glue())
    assert report.report is not None
    student, int8 = report.report.rows
    assert (student.name, int8.name) == ("student", "int8, torch")
    assert student.times_smaller == 1 and int8.times_smaller == student.bytes / int8.bytes


def test_wrong_order_is_refused(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a report that lacks the int8 model because it is not made yet."""
    trainer = make_trainer(callbacks=[CompressionReport(), QuantizationCallback(DynamicInt8())])
    with pytest.raises(InputError, match=r"must come after every QuantizationCallback in trainer\.callbacks\.$"):
        trainer.fit(distillation(), datamodule=glue())


def test_missing_baseline_is_refused(tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a misspelt folder from being found out after the training."""
    trainer = make_trainer(callbacks=[CompressionReport({"small": str(tmp_path)})])
    with pytest.raises(InputError, match=r"^Expected argument `report\.baselines\.small` to be a folder with a model"):
        trainer.fit(distillation(), datamodule=glue())
    assert trainer.global_step == 0


@pytest.mark.parametrize("threads", [0, [], [1, 0]])
def test_threads_out_of_range_are_refused(threads: Any) -> None:
    """Stops a report on 0 threads, which torch refuses hours later."""
    with pytest.raises(InputError, match=r"^Expected argument `report\.threads` to be at least 1, but got "):
        CompressionReport(threads=threads)


def test_other_data_modules_are_refused(distillation: Make, make_trainer: Make) -> None:
    """Stops a missing method from being found out after the training."""

    class Other(L.LightningDataModule):
        def train_dataloader(self) -> list[dict[str, Tensor]]:
            return []

    with pytest.raises(InputError, match=r"^CompressionReport needs a data module of lightning_kd\.datamodules\.$"):
        make_trainer(callbacks=[CompressionReport()]).fit(distillation(), datamodule=Other())
