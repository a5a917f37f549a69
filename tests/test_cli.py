"""The command line from end to end on tiny models, and what it says about wrong input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, pipeline

from lightning_kd.cli import main
from lightning_kd.datamodules import TransformerDataModule

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
SIZES = {"num_train": 64, "num_validation": 40, "num_test": 30}
CHECKPOINT = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "val/accuracy", "mode": "max"},
}
QUANTIZATION = {
    "class_path": "lightning_kd.callbacks.QuantizationCallback",
    "init_args": {"quantizer": {"class_path": "lightning_kd.quantization.DynamicInt8"}},
}


def soft() -> dict[str, Any]:
    return {"soft": {"class_path": "lightning_kd.losses.SoftTargetKL"}}


def hidden(student_layer: int, teacher_layer: int) -> dict[str, Any]:
    match = {"student_layer": student_layer, "teacher_layer": teacher_layer}
    return {"hidden": {"class_path": "lightning_kd.losses.HiddenStateMSE", "init_args": {"matches": [match]}}}


def arguments(root: Path, subcommand: str, model: dict[str, Any], *more: str, **trainer: Any) -> list[str]:
    """The arguments of a run, its configuration being a file."""
    config = {
        "seed_everything": 0,
        "model": model,
        "data": {
            "class_path": "lightning_kd.datamodules.SyntheticDataModule",
            "init_args": {**SIZES, "batch_size": 16},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(root),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(root), "name": "logs"},
            },
            "callbacks": [CHECKPOINT],
            **trainer,
        },
    }
    if subcommand != "fit":
        del config["trainer"]["callbacks"]
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{subcommand}-input.yaml"
    path.write_text(yaml.safe_dump(config))
    return [subcommand, "--config", str(path), *more]


def from_scratch(layers: int) -> dict[str, Any]:
    return {"from_scratch": True, "config": {**SHAPE, "num_hidden_layers": layers}}


@dataclass(frozen=True)
class Run:
    """A run that is over."""

    root: Path
    log: str
    out: str

    def metrics(self) -> list[dict[str, str]]:
        """The rows of the last CSV log."""
        files = sorted((self.root / "logs").glob("version_*/metrics.csv"))
        with files[-1].open() as file:
            return list(csv.DictReader(file))

    def metric(self, name: str) -> float:
        """The last value of a metric."""
        return [float(row[name]) for row in self.metrics() if row.get(name)][-1]


def run(root: Path, args: list[str]) -> Run:
    """Run the command line in this process."""
    logger, log, out = logging.getLogger("lightning.pytorch"), io.StringIO(), io.StringIO()
    handler, level = logging.StreamHandler(log), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(out):
            main(args)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    return Run(root, log.getvalue(), out.getvalue())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("teacher")
    model = {"student": from_scratch(2)}
    return run(root, arguments(root, "fit", model, "--report.path", str(root / "figures")))


@pytest.fixture(scope="module")
def student(teacher: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("student")
    model = {
        "student": {"path": str(teacher.root / "student"), "keep_layers": [0]},
        "teachers": {"big": {"path": str(teacher.root / "student")}},
        "losses": {**soft(), **hidden(-1, -1)},
        "loss_weights": {"hidden": 0.5},
        "temperature": 3.0,
    }
    return run(root, arguments(root, "fit", model, max_epochs=2, callbacks=[QUANTIZATION, CHECKPOINT]))


def test_a_teacher_is_trained_from_a_config_alone(teacher: Run) -> None:
    """Stops a fit from ending without the folder that the next fit starts from."""
    config = AutoConfig.from_pretrained(teacher.root / "student")
    assert (config.num_hidden_layers, config.hidden_size) == (2, 16)
    assert config.id2label == {0: "negative", 1: "positive"}
    report = json.loads((teacher.root / "figures" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["model"]


def test_a_student_int8_and_report_are_written(student: Run) -> None:
    """Stops a fit from ending with a part of what it is for."""
    assert AutoConfig.from_pretrained(student.root / "student").num_hidden_layers == 1
    assert (student.root / "int8" / "int8.safetensors").is_file()
    report = json.loads((student.root / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "student", "int8, torch"]
    assert report["split_rows"] == {"validation": 40, "test": 30} and report["main_split"] == "test"
    assert (student.root / "report.png").stat().st_size > 1000 and (student.root / "report.md").is_file()
    assert not list(student.root.glob("*partial*"))


def test_a_student_may_read_another_vocabulary(teacher: Run, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Stops a teacher from being given the student's tokens where nobody named its tokenizer."""
    model = {
        "student": from_scratch(1),
        "teachers": {"big": {"path": str(teacher.root / "student")}},
        "losses": soft(),
    }
    done = run(tmp_path, arguments(tmp_path, "fit", model, "--data.tokenizer", str(tiny_model())))
    assert "Another vocabulary than the student's is read by big: each text is encoded for both" in done.log
    before, after = (
        json.loads((folder / "report.json").read_text())["rows"][0]["metrics"]["test"]["accuracy"]["value"]
        for folder in (teacher.root / "figures", tmp_path)
    )
    assert before == after


def test_the_summary_and_the_paths_are_printed(student: Run) -> None:
    """Stops a run on the wrong model or data from being seen only in its results."""
    [summary] = [line for line in student.log.splitlines() if line.startswith("teacher big: ")]
    parts = summary.split(" | ")
    assert re.fullmatch(r"teacher big: bert, 2 layers, \d+\.\d M parameters, frozen", parts[0])
    assert re.fullmatch(r"student: bert, 1 layers?, \d+\.\d M parameters, \d+\.\d M trained", parts[1])
    assert sorted(parts[2:]) == ["hidden: layers 1<-2", "test: 30 rows", "train: 64 rows", "validation: 40 rows"]
    for written in (f"Student: {student.root / 'student'}", f"Int8 student: {student.root / 'int8'}"):
        assert written in student.log.splitlines()
    assert f"Report: {student.root / 'report.json'}" in student.log
    assert "Compression report" in student.out and "int8, torch" in student.out


def test_terms_weights_and_metrics_are_logged(student: Run) -> None:
    """Stops a term from being dropped out of the sum, or its weight from being taken as 1."""
    rows = [row for row in student.metrics() if row["train/loss"]]
    assert len(rows) == 8, "2 epochs of 4 batches, each logged"
    for row in rows:
        terms = {name: float(row[f"train/loss/{name}"]) for name in ("hard", "soft", "hidden")}
        assert float(row["train/loss"]) == pytest.approx(
            terms["hard"] + terms["soft"] + 0.5 * terms["hidden"], rel=1e-5
        )
        assert float(row["train/weight/hidden"]) == 0.5 and float(row["train/temperature"]) == 3.0
    assert len([row for row in student.metrics() if row["val/accuracy"]]) == 2


def test_the_whole_configuration_is_logged_once(student: Run) -> None:
    """Stops a run from being compared with others by half of its settings."""
    [folder] = (student.root / "logs").glob("version_*")
    logged = yaml.safe_load((folder / "hparams.yaml").read_text())
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert logged == saved
    assert logged["model"]["loss_weights"] == {"hidden": 0.5} and logged["data"]["init_args"]["num_train"] == 64
    assert not {"student", "temperature", "_instantiator"} & logged.keys(), "the module's own would come twice"


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_the_exported_student_is_evaluated(subcommand: str, student: Run, tmp_path: Path) -> None:
    """Stops an evaluation from running on random weights, or on other rows than its name says."""
    model = {"student": {"path": str(student.root / "student")}}
    done = run(tmp_path, arguments(tmp_path, subcommand, model))
    if subcommand == "validate":
        best = max(float(row["val/accuracy"]) for row in student.metrics() if row["val/accuracy"])
        assert done.metric("val/accuracy") == pytest.approx(best)
    elif subcommand == "test":
        assert 0 <= done.metric("test/accuracy") <= 1
    else:
        lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["index"] for record in records] == list(range(SIZES["num_test"]))
        assert {record["label"] for record in records} <= {"negative", "positive"}
        assert f"{tmp_path / 'predictions.jsonl'} (30 rows)" in done.log
    assert not list(tmp_path.rglob("*.ckpt")) and not (tmp_path / "student").exists()


def test_the_exported_student_opens_as_a_pipeline(student: Run) -> None:
    """Stops an export that only this library can read."""
    [answer] = pipeline("text-classification", model=str(student.root / "student"))(["the plot was dull"])
    assert answer["label"] in ("negative", "positive")


@pytest.mark.parametrize("given", [False, True])
def test_the_tokenizer_follows_the_student(
    given: bool, teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a student from reading another vocabulary than its own, or a tokenizer that was given from being lost."""
    sources: list[str | None] = []
    load = TransformerDataModule.load_tokenizer

    def spy(self: TransformerDataModule) -> Any:
        sources.append(self.tokenizer_source)
        return load(self)

    monkeypatch.setattr(TransformerDataModule, "load_tokenizer", spy)
    folder = str(teacher.root / "student")
    other = tmp_path / "tokenizer"
    other.mkdir()
    for file in (teacher.root / "student").glob("token*"):
        (other / file.name).write_bytes(file.read_bytes())
    more = ["--data.tokenizer", str(other)] if given else []
    run(tmp_path, arguments(tmp_path, "validate", {"student": {"path": folder}}, *more))
    assert sources == [str(other) if given else folder]


def test_the_traceback_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an error of our own making from hiding where it comes from."""
    monkeypatch.setenv("LIGHTNING_KD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="above 0"):
        main(arguments(tmp_path, "fit", {"student": from_scratch(1), "temperature": 0}))


@pytest.mark.parametrize(("typed", "near"), [("descibe", " Did you mean `describe`?"), ("xyzzy", "")])
def test_there_is_no_such_subcommand(typed: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops the subcommand that Lightning does not know from being left out of those that there are."""
    with pytest.raises(SystemExit):
        main([typed])
    said = capsys.readouterr().err
    names = "fit, validate, test, predict, quantize, analyze, prune, describe, compare, sweep"
    assert said.startswith(f"error: There is no subcommand `{typed}`.{near} There are {names}. See `")


def test_a_teacher_runs_once_nothing_can_be_refused_any_more(
    teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stops an error that is known at the start from coming after a pass of the teacher over all rows."""
    pytest.importorskip("torchao", reason="needs the extra torchao")
    quantizer = {"class_path": "lightning_kd.quantization.TorchAO", "init_args": {"weights": "int4", "group_size": 10}}
    quantization = {"class_path": QUANTIZATION["class_path"], "init_args": {"quantizer": quantizer}}
    cache = {"class_path": "lightning_kd.callbacks.TeacherCache"}
    model = {
        "student": from_scratch(1),
        "teachers": {"big": {"path": str(teacher.root / "student")}},
        "losses": soft(),
    }
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, "fit", model, callbacks=[cache, quantization]))
    assert "group_size` to be a divisor of" in capsys.readouterr().err
    assert not (tmp_path / "teacher_cache").exists()


@pytest.mark.parametrize("subcommand", ["fit", "predict"])
def test_help_needs_no_network(
    subcommand: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops `--help` from loading models or data."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(SystemExit) as left:
        main([subcommand, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    for option in ("--model.student.path", "--model.temperature", "--data", "--export.path", "--report.threads"):
        assert option in said
