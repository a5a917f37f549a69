"""Several tasks from the command line, on one process and on two."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from lightning_kd.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300
SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
KINDS = {
    "label": ("SyntheticDataModule", "SequenceClassification"),
    "tags": ("SyntheticNERDataModule", "TokenClassification"),
    "answer": ("SyntheticQADataModule", "QuestionAnswering"),
}


def config(root: Path, batch_size: int = 8, num_train: int = 48, **trainer: Any) -> dict[str, Any]:
    sizes = {"num_train": num_train, "num_validation": 13, "num_test": 6, "eval_batch_size": 4}
    data = {
        name: {"class_path": f"lightning_kd.datamodules.{kind}", "init_args": {**sizes, "batch_size": batch_size}}
        for name, (kind, _) in KINDS.items()
    }
    model = {name: {"task": {"class_path": f"lightning_kd.tasks.{task}"}} for name, (_, task) in KINDS.items()}
    return {
        "seed_everything": 0,
        "model": {"student": {"from_scratch": True, "config": SHAPE}, "tasks": model},
        "data": {"class_path": "lightning_kd.datamodules.MultiTaskDataModule", "init_args": {"tasks": data}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": str(root),
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(root), "filename": "best", "monitor": "val/mean", "mode": "max"},
                }
            ],
            **trainer,
        },
    }


def write(root: Path, values: dict[str, Any]) -> str:
    root.mkdir(parents=True, exist_ok=True)
    (root / "input.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return str(root / "input.yaml")


def test_students_come_from_a_config_alone(tmp_path: Path) -> None:
    """Stops a config of several tasks from needing another command, and its callbacks from needing a wrapper each."""
    values = config(tmp_path)
    quantization = {"quantizer": {"class_path": "lightning_kd.quantization.DynamicInt8"}}
    values["trainer"]["callbacks"].append(
        {"class_path": "lightning_kd.callbacks.QuantizationCallback", "init_args": quantization}
    )
    main(["fit", "--config", write(tmp_path, values), "--model.tasks.tags.temperature", "2"])
    for folder in ("student", "int8"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(KINDS)
    assert all((tmp_path / name / "report.json").is_file() for name in KINDS)
    assert pipeline("text-classification", model=str(tmp_path / "student" / "label"))("the plot was good")
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["tasks"]["tags"]["temperature"] == 2

    del values["trainer"]["callbacks"]
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "again")}}
    values["trainer"]["logger"] = logger
    path = write(tmp_path / "again", values)
    main(["validate", "--config", path, "--ckpt_path", str(tmp_path / "best.ckpt")])
    with next((tmp_path / "again").rglob("metrics.csv")).open() as file:
        (metrics,) = csv.DictReader(file)
    firsts = []
    for name in KINDS:
        rows = json.loads((tmp_path / name / "report.json").read_text())["rows"]
        found = {metric: value["value"] for metric, value in rows[0]["metrics"]["validation"].items()}
        shown = {metric: float(metrics[f"val/{name}/{metric}"]) for metric in found}
        assert shown == pytest.approx(found, abs=1e-6)
        firsts.append(found["accuracy" if name == "label" else "f1"])
    assert float(metrics["val/mean"]) == pytest.approx(sum(firsts) / 3, abs=1e-6)


def test_the_configuration_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops --print_config from knowing nothing of tasks, and what it prints from being no config."""
    path = write(tmp_path, config(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["fit", f"--config={path}", "--data.tau", "0.5", "--data.tasks.label.batch_size", "3", "--print_config"])
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert list(printed["model"]["tasks"]) == list(KINDS)
    assert printed["data"]["init_args"]["tau"] == 0.5
    assert printed["data"]["init_args"]["tasks"]["label"]["init_args"]["batch_size"] == 3
    assert printed["model"]["tasks"]["tags"]["weight"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.tasks.label.temprature", "2"], "temprature"),
        (
            ["--model.tasks.label.weight", "-1"],
            "Task 'label': Expected argument `--model.tasks.label.weight` to be a finite number, 0 or",
        ),
        (["--model.tasks.rte.weight", "1"], "Expected argument `model.tasks` to be named as the data are"),
    ],
)
def test_wrong_input_gets_one_sentence(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stops a misspelt option of a task from being ignored, or from being answered with a traceback."""
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", write(tmp_path, config(tmp_path)), *more])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "student").exists()


def test_tokenizers_follow_student_and_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """Stops the tokenizer from having to be named for each task, or a teacher's from being that of another task."""
    from lightning_kd.cli import DistillationCLI

    seen: list[DistillationCLI] = []
    monkeypatch.setattr(DistillationCLI, "_run_subcommand", lambda self, _: seen.append(self))
    values = config(tmp_path)
    student, *teachers = (str(tiny_model(seed=seed)) for seed in (1, 2, 3))
    values["model"]["student"] = {"path": student}
    for name, teacher in zip(("label", "tags"), teachers, strict=True):
        values["model"]["tasks"][name]["teachers"] = {"big": {"path": teacher}}
    main(["fit", "--config", write(tmp_path, values)])
    data = seen[0].datamodule.tasks
    assert {one.tokenizer_source for one in data.values()} == {student}
    given = {name: one.teacher_tokenizer_sources for name, one in data.items()}
    assert given == {"label": {"big": teachers[0]}, "tags": {"big": teachers[1]}, "answer": {}}


def train(root: Path, values: dict[str, Any], *more: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "WANDB_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "fit", "--config", write(root, values), *more],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    """Stops a rank from waiting for the gradient of a head that is not drawn, and ranks from drawing different tasks.

    Batches of half the rows on each of two ranks are one whole batch where no row is left over and all have the same
    number of labels, as texts have; so the two sets are of texts.
    """
    weights, errs = [], []
    for name, size, more in (("one", 24, ()), ("two", 12, ("--trainer.devices", "2", "--trainer.strategy", "ddp"))):
        values = config(tmp_path / name, size, 24, max_epochs=3, limit_val_batches=0, callbacks=[])
        for place in (values["model"]["tasks"], values["data"]["init_args"]["tasks"]):
            del place["tags"], place["answer"]
            place["other"] = json.loads(json.dumps(place["label"]))
        values["data"]["init_args"]["tasks"]["other"]["init_args"]["seed"] = 5
        values["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}
        done = train(tmp_path / name, values, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        errs.append(done.stderr)
        weights.append({task: load_file(tmp_path / name / "student" / task / "model.safetensors") for task in place})
    assert "find_unused_parameters" not in errs[1]
    for task, state in weights[0].items():
        for key, value in state.items():
            torch.testing.assert_close(weights[1][task][key], value, rtol=0, atol=1e-5)
    assert not weights[0]["label"]["classifier.weight"].equal(weights[0]["other"]["classifier.weight"])


@pytest.mark.slow
def test_two_processes_train_tasks_of_all_kinds(tmp_path: Path) -> None:
    """Stops ranks from hanging where one task has fewer batches, or a metric is gathered in another order."""
    values = config(tmp_path, 8, 50)
    values["data"]["init_args"]["tau"] = 0.5
    values["data"]["init_args"]["tasks"]["tags"]["init_args"]["num_train"] = 9
    done = train(tmp_path, values, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert done.returncode == 0, done.stderr[-6000:]
    assert "Batches of an epoch (that hold all rows once): label 4 (4), tags 2 (1), answer 4 (4)" in done.stderr
    for name in KINDS:
        assert (tmp_path / "student" / name / "model.safetensors").is_file()
    encoders = [load_file(tmp_path / "student" / name / "model.safetensors") for name in KINDS]
    key = "bert.encoder.layer.0.output.dense.weight"
    assert encoders[0][key].equal(encoders[1][key]) and encoders[0][key].equal(encoders[2][key])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "student" / "label").config.num_labels == 2
