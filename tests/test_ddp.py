"""Two processes do what one does, once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from offline_run import read_offline_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300
STUDENT = {
    "from_scratch": True,
    "config": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    },
}
#: 193 rows to validate on: an odd number of rows and of batches, which a padding sampler would round up.
DATA = {
    "class_path": "lightning_kd.datamodules.SyntheticDataModule",
    "init_args": {"num_train": 72, "num_validation": 193, "num_test": 5, "batch_size": 12, "eval_batch_size": 8},
}
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
FAILING = '''
from lightning_kd.quantization import DynamicInt8

class Failing(DynamicInt8):
    """Breaks off with a part of the folder written."""

    def convert(self, model, calibration, folder):
        super().convert(model, calibration, folder)
        raise RuntimeError("the disk is full")
'''
ENCODING = '''
import os
import time
from pathlib import Path

from lightning_kd.datamodules import GLUEDataModule, base, token_cache

token_cache._SMALLEST = 1
encode = base.encode

def noted(*arguments):
    with Path("encoded.txt").open("a") as file:
        print(os.environ.get("LOCAL_RANK", "0"), len(arguments[0]), file=file)
    time.sleep(2)  # as long as the other process may be late
    if "FAILING" in os.environ:
        raise RuntimeError("the disk is full")
    return encode(*arguments)

base.encode = noted

class Kept(GLUEDataModule):
    """Keeps the tokens of few rows, too, and notes who encodes them."""
'''


def train(root: Path, subcommand: str, config: dict[str, Any], *more: str, path: Path | None = None) -> Any:
    """Run `train.py` in processes of its own; a hang fails the test."""
    root.mkdir(parents=True, exist_ok=True)
    trainer = {"accelerator": "cpu", "devices": 1, "default_root_dir": str(root), "enable_progress_bar": False}
    whole = {"seed_everything": 0, "data": DATA, **config, "trainer": {**trainer, **config.get("trainer", {})}}
    (root / "input.yaml").write_text(yaml.safe_dump(whole))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PL_", "WANDB_"))},
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *([path] if path else [])])),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(root),
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), subcommand, "--config", str(root / "input.yaml"), *more],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def distilled(teacher: Path) -> dict[str, Any]:
    match = {"student_layer": -1, "teacher_layer": -1}
    return {
        "student": STUDENT,
        "teachers": {"big": {"path": str(teacher)}},
        "losses": {
            "soft": {"class_path": "lightning_kd.losses.SoftTargetKL"},
            "hidden": {"class_path": "lightning_kd.losses.HiddenStateMSE", "init_args": {"matches": [match]}},
        },
        "loss_weights": {"hidden": 0.5},
    }


def quantization(class_path: str) -> dict[str, Any]:
    return {
        "class_path": "lightning_kd.callbacks.QuantizationCallback",
        "init_args": {"quantizer": {"class_path": class_path}},
    }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model twice as wide as the student, with the tokenizer of the data: untrained, for it only has to teach."""
    from transformers import AutoModelForSequenceClassification

    from lightning_kd.datamodules import SyntheticDataModule

    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = SyntheticDataModule().load_tokenizer()
    shape = {**STUDENT["config"], "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    shape |= {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Run:
    """A fit of two processes that is over."""

    root: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def fitted(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("fit")
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "val/accuracy", "mode": "max"},
    }
    callbacks = [quantization("lightning_kd.quantization.DynamicInt8"), checkpoint]
    trainer = {"max_epochs": 1, "log_every_n_steps": 1, "callbacks": callbacks}
    wandb = ("--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true")
    done = train(
        root,
        "fit",
        {"model": distilled(teacher), "trainer": trainer},
        *TWO,
        *wandb,
        *("--trainer.logger.save_dir", str(root / "wandb-logs"), "--trainer.logger.project", "tests"),
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return Run(root, done.stdout, done.stderr)


def test_rank_zero_writes_once(fitted: Run) -> None:
    """Stops two ranks from writing one folder, or from printing two reports."""
    assert [path.parent.name for path in fitted.root.rglob("int8.safetensors")] == ["int8"]
    assert len(list(fitted.root.rglob("report.json"))) == 1
    assert len(list(fitted.root.rglob("model.safetensors"))) == 1
    assert not list(fitted.root.rglob("*partial*"))
    assert fitted.out.count("Compression report") == 1
    report = json.loads((fitted.root / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "student", "int8, torch"]
    assert report["split_rows"]["validation"] == 193


def metrics(root: Path) -> dict[str, float]:
    [file] = root.rglob("metrics.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    return {name: float(value) for row in rows for name, value in row.items() if name.startswith("val/") and value}


def test_evaluation_counts_every_row_once(fitted: Run, tmp_path: Path) -> None:
    """Stops a padded sampler from counting a row twice: 0.4455 was measured for a true 0.4478."""
    model = {"student": {"path": str(fitted.root / "student")}}
    found = []
    for name, more in (("one", ()), ("two", TWO)):
        root = tmp_path / name
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root)}}
        done = train(root, "validate", {"model": model, "trainer": {"logger": logger}}, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        found.append(metrics(root))
    assert found[0]["val/accuracy"] == found[1]["val/accuracy"]
    assert found[0]["val/loss"] == pytest.approx(found[1]["val/loss"], rel=1e-6)
    rows = found[0]["val/accuracy"] * 193
    assert rows == pytest.approx(round(rows), abs=1e-3)
    report = json.loads((fitted.root / "report.json").read_text())
    assert report["rows"][1]["metrics"]["validation"]["accuracy"]["value"] == found[0]["val/accuracy"]


def test_wandb_has_the_configuration_and_the_report(fitted: Run, teacher: Path) -> None:
    """Stops runs that cannot be told apart: W&B gets no more of a command line than it is given."""
    recorded = read_offline_run(fitted.root)
    config = {name: value for name, value in recorded.config.items() if not name.startswith("_")}
    assert {"seed_everything", "model", "data", "trainer", "export", "report", "predictions"} <= config.keys()
    assert config["model"]["teachers"]["big"]["path"] == str(teacher)
    assert config["model"]["loss_weights"] == {"hidden": 0.5}
    assert config["data"]["init_args"]["num_validation"] == 193
    assert config["trainer"]["devices"] in (2, "2") and config["trainer"]["strategy"] == "ddp"
    assert not {"student", "teachers", "temperature", "task", "_instantiator"} & config.keys(), "it is there twice"
    keys = {key for row in recorded.history for key in row}
    assert {"train/loss", "train/loss/hard", "train/loss/soft", "train/loss/hidden", "val/accuracy"} <= keys
    figures = {key for key in keys if key.startswith("report/")}
    assert {"report/student/megabytes", "report/int8, torch/validation/accuracy"} <= figures
    [table] = [row for row in recorded.history if "report._type" in row]
    assert table["report._type"] == "table-file" and table["report.nrows"] == 3
    [chart] = [row for row in recorded.history if "report_chart._type" in row]
    assert chart["report_chart.count"] == 1
    losses = [row for row in recorded.history if "train/loss" in row]
    assert len(losses) == 3, "72 rows, 2 ranks, batches of 12"


def test_a_quantizer_that_fails_on_rank_zero_ends_both(teacher: Path, tmp_path: Path) -> None:
    """Stops the other rank from waiting for ever at a barrier that rank 0 never reaches."""
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "failing_quantizer.py").write_text(FAILING)
    root = tmp_path / "fit"
    trainer = {"max_epochs": 1, "logger": False, "callbacks": [quantization("failing_quantizer.Failing")]}
    config = {"model": distilled(teacher), "trainer": trainer}
    done = train(root, "fit", config, *TWO, path=helpers)  # subprocess.run ends both, and raises, after TIMEOUT
    assert done.returncode != 0
    assert "the disk is full" in done.stderr
    assert (root / "student" / "model.safetensors").is_file()
    assert not (root / "int8").exists() and not list(root.glob("*partial*"))


def test_a_resumed_quantization_aware_training_ends_in_the_same_folder(teacher: Path, tmp_path: Path) -> None:
    """Stops ranks, or a run and its continuation, from rounding differently; without dropout, which is drawn anew."""
    model = distilled(teacher)
    model["student"] = {
        "from_scratch": True,
        "config": {**STUDENT["config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    folders = []
    for name in ("whole", "resumed"):
        root = tmp_path / name
        qat = quantization("lightning_kd.quantization.DynamicInt8")
        qat["init_args"] |= {"mode": "qat", "start_epoch": 0.5}
        checkpoint = {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(root), "filename": "{epoch}", "save_top_k": -1},
        }
        trainer = {"max_epochs": 2, "logger": False, "callbacks": [qat, checkpoint]}
        more = ("--ckpt_path", str(tmp_path / "whole" / "epoch=0.ckpt")) if name == "resumed" else ()
        done = train(root, "fit", {"model": model, "trainer": trainer}, *TWO, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        assert done.stderr.count("The student computes with the rounding of torch from now on") == 1
        folders.append((root / "int8" / "int8.safetensors").read_bytes())
    assert folders[0] == folders[1]


def test_two_processes_share_the_work_of_a_cache(teacher: Path, tmp_path: Path) -> None:
    """Stops a rank from reading what the other has not written yet, or the logits of rows that it did not draw."""
    losses = {}
    data = {**DATA, "init_args": {**DATA["init_args"], "num_train": 2100, "batch_size": 100}}
    model = {name: value for name, value in distilled(teacher).items() if name != "loss_weights"}
    model["losses"] = {"soft": model["losses"]["soft"]}
    for kind in ("live", "cached"):
        cache = {"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"dtype": "float32"}}
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / kind)}}
        trainer = {"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, "limit_val_batches": 0}
        trainer |= {"callbacks": [cache] if kind == "cached" else [], "enable_checkpointing": False}
        done = train(tmp_path / kind, "fit", {"model": model, "data": data, "trainer": trainer}, *TWO)
        assert done.returncode == 0, done.stderr[-6000:]
        with next((tmp_path / kind).rglob("metrics.csv")).open() as file:
            losses[kind] = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses["live"]) == 22
    assert losses["cached"] == pytest.approx(losses["live"], rel=1e-6)
    assert sorted(path.name for path in (tmp_path / "cached" / "teacher_cache" / "big").iterdir()) == [
        "identity.json",
        "logits.npy",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_one_process_encodes_what_is_kept(
    fails: bool, teacher: Path, glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops every process from doing the same work at the start, and the others from waiting for one that fails."""
    helpers, root = tmp_path / "helpers", tmp_path / "fit"
    helpers.mkdir()
    (helpers / "encoding.py").write_text(ENCODING)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if fails:
        monkeypatch.setenv("FAILING", "1")
    arguments = {"name": "sst2", "path": str(glue_folder), "tokenizer": str(teacher), "batch_size": 4}
    model = {"student": {"path": str(teacher)}}
    trainer = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    data = {"class_path": "encoding.Kept", "init_args": arguments}
    done = train(root, "fit", {"model": model, "data": data, "trainer": trainer}, *TWO, path=helpers)
    encoded = sorted((root / "encoded.txt").read_text().splitlines())
    if fails:
        assert done.returncode != 0 and "the disk is full" in done.stderr
        assert encoded == ["0 24", "1 24"]
    else:
        assert done.returncode == 0, done.stderr[-6000:]
        assert encoded == ["0 10", "0 24"]
        assert len(list((tmp_path / "cache").rglob("tokens-*/about.json"))) == 2


def test_two_processes_replace_the_same_layers_as_one(teacher: Path, tmp_path: Path) -> None:
    """Stops DDP from waiting for the gradient of a layer that is not drawn, and processes that draw each their own."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = {"path": str(teacher), "keep_layers": [1], "config": still}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    theseus = {
        "class_path": "lightning_kd.callbacks.Theseus",
        "init_args": {
            "teacher": str(teacher),
            "schedule": {"class_path": "lightning_kd.schedules.Constant", "init_args": {"value": 0.5}},
        },
    }
    trainer = {"max_epochs": 6, "logger": False, "callbacks": [theseus], "limit_val_batches": 0}
    weights = []
    for name, batch_size, more in (("one", 24, ()), ("two", 12, TWO)):
        data = {**DATA, "init_args": {**DATA["init_args"], "num_train": 24, "batch_size": batch_size}}
        config = {"model": {"student": student, "optimizer": sgd}, "data": data, "trainer": trainer}
        done = train(tmp_path / name, "fit", config, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        weights.append(load_file(tmp_path / name / "student" / "model.safetensors"))
    first = load_file(teacher / "model.safetensors")
    query = "encoder.layer.{}.attention.self.query.weight"
    moved = weights[0][f"bert.{query.format(0)}"] - first[f"bert.{query.format(1)}"]
    assert moved.abs().max() > 1e-6
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-6)


def test_two_processes_have_the_average_of_one(teacher: Path, tmp_path: Path) -> None:
    """Stops a copy of the module from taking the whole run with it, or an average of one process's own gradients."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = distilled(teacher) | {"student": {"path": str(teacher), "keep_layers": [1], "config": still}}
    del model["losses"]["hidden"], model["loss_weights"]  # a mean over tokens, of which two processes have not as many
    model["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    trainer = {"max_epochs": 6, "logger": False, "callbacks": [average], "limit_val_batches": 0}
    weights = []
    for name, batch_size, more in (("one", 24, ()), ("two", 12, TWO)):
        data = {**DATA, "init_args": {**DATA["init_args"], "num_train": 24, "batch_size": batch_size}}
        done = train(tmp_path / name, "fit", {"model": model, "data": data, "trainer": trainer}, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        assert "WeightAveraging" not in done.stderr and "sync_dist" not in done.stderr
        weights.append(load_file(tmp_path / name / "student" / "model.safetensors"))
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-6)


SPAWNED = """
import sys
import lightning as L
from lightning_kd import DistillationModule, ModelSource
from lightning_kd.callbacks import QuantizationCallback, StudentExport
from lightning_kd.datamodules import SyntheticDataModule
from lightning_kd.losses import SoftTargetKL
from lightning_kd.quantization import DynamicInt8

if __name__ == "__main__":
    teacher, root, strategy = sys.argv[1:]
    module = DistillationModule(ModelSource(teacher), {"big": ModelSource(teacher)}, losses={"soft": SoftTargetKL()})
    data = SyntheticDataModule(num_train=48, num_validation=16, num_test=5, batch_size=12, num_workers=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8())]
    several = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    L.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=root, **several, **quiet).fit(module, datamodule=data)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.multiprocessing_context = "spawn"  # as workers are started where there is no fork
    print(len(list(loader)))
"""


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_everything_can_be_sent_to_another_process(strategy: str, teacher: Path, tmp_path: Path) -> None:
    """Stops a module, a data module or its rows from being of use only where processes are forked."""
    (tmp_path / "spawned.py").write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "spawned.py", str(teacher), str(tmp_path / "run"), strategy],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.split()[-1] == "4"
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file() and (tmp_path / "run" / "int8").is_dir()
