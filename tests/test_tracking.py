"""What a tracked run leaves: the offline W&B run, the pictures and the model cards, against what was trained."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch.loggers import WandbLogger
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import InputError, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport
from lightning_kd.callbacks._loggers import check_loggers
from lightning_kd.quantization import DynamicInt8
from lightning_kd.report import Report, read_report
from offline_run import OfflineRun, read_offline_run
from test_cli import CHECKPOINT, QUANTIZATION, arguments, from_scratch, hidden, run, soft

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "wandbkey", "MY_SERVICE_TOKEN": "hush-hush-hush"}
#: Given as an option, and in no variable.
KEY = "key-that-was-typed"


@dataclass(frozen=True)
class Tracked:
    root: Path
    wandb: OfflineRun
    report: Report
    curves: list[dict[str, str]]

    def logged(self) -> list[dict[str, str]]:
        """What Lightning's own CSV logger has of the same run."""
        [file] = (self.root / "run" / "logs").glob("version_*/metrics.csv")
        with file.open() as opened:
            return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    """A teacher, and a student of two terms whose temperature falls, with keys in the environment."""
    root = tmp_path_factory.mktemp("tracked")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr("lightning_kd.callbacks.report._ROUNDS", 1)
        patch.setattr("lightning_kd.callbacks.report._LATENCY_ROWS", 4)
        patch.setattr("lightning_kd.callbacks.report._THROUGHPUT_BATCHES", 1)
        run(root, arguments(Path("teacher"), "fit", {"student": from_scratch(2)}, "--report.path", "figures"))
        model = {
            "student": {"path": "teacher/student", "keep_layers": [0]},
            "teachers": {"big": {"path": "teacher/student"}},
            "losses": {**soft(), **hidden(-1, -1)},
            "loss_weights": {"hidden": 0.5},
        }
        schedule = {
            "class_path": "lightning_kd.callbacks.TemperatureSchedule",
            "init_args": {"schedule": {"class_path": "lightning_kd.schedules.Linear"}},
        }
        schedule["init_args"]["schedule"]["init_args"] = {"start": 8.0, "end": 2.0}
        csv_logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "run", "name": "logs"}}
        key_logger = {"class_path": "offline_run.KeyLogger", "init_args": {"credentials": KEY}}
        wandb_logger = {"class_path": "WandbLogger", "init_args": {"offline": True}}
        wandb_logger["init_args"]["save_dir"] = str(root / "run")  # W&B's process has a folder of its own
        tensorboard = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "run", "name": "tensorboard"}}
        callbacks, loggers = [QUANTIZATION, CHECKPOINT, schedule], [csv_logger, wandb_logger, tensorboard, key_logger]
        typed = arguments(Path("run"), "fit", model, max_epochs=2, callbacks=callbacks, logger=loggers)
        run(root, typed)
        with Path("run/curves.csv").open() as file:
            curves = list(csv.DictReader(file))
        yield Tracked(root, read_offline_run(root / "run"), read_report(root / "run"), curves)


def test_wandb_has_the_configuration_once(tracked: Tracked) -> None:
    """Stops runs that cannot be told apart, and the module's hyperparameters from standing beside those of the CLI."""
    config = tracked.wandb.config
    assert config["model"]["loss_weights"] == {"hidden": 0.5} and config["seed_everything"] == 0
    assert config["data"]["init_args"]["num_train"] == 64 and config["trainer"]["max_epochs"] == 2
    assert {"export", "report", "curves", "predictions"} <= config.keys()
    assert not {"student", "teachers", "temperature", "task", "_instantiator"} & config.keys(), "it is there twice"


def test_wandb_and_the_curves_have_what_was_logged(tracked: Tracked) -> None:
    """Stops a term, a weight, the temperature or the learning rate from being lost, or set against another step."""
    rows = [row for row in tracked.logged() if row["train/loss"]]
    names = [f"train/{kind}/{term}" for kind in ("loss", "weight") for term in ("hard", "soft", "hidden")]
    names += ["train/loss", "train/temperature", "train/lr"]
    assert len(rows) == 8
    for name in names:
        expected = [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows]
        assert tracked.wandb.values(name) == expected, name
        own = [float(row[name]) for row in tracked.curves if row[name]]
        assert own == pytest.approx([float(row[name]) for row in rows]), name
    assert (float(rows[0]["train/temperature"]), float(rows[-1]["train/temperature"])) == (8.0, 2.0)
    steps = [int(row["step"]) for row in tracked.curves if row["train/loss"]]
    assert steps == [int(row["step"]) + 1 for row in rows], "a logged step is one that has been taken"


def test_validation_metrics_stand_at_their_step_and_epoch(tracked: Tracked) -> None:
    """Stops the metrics of one epoch from being shown at another, and the sanity check from being taken for one."""
    found = [row for row in tracked.wandb.history if "val/accuracy" in row]
    assert [(row["epoch"], row["trainer/global_step"]) for row in found] == [(0, 3), (1, 7)]
    for name in ("val/accuracy", "val/loss"):
        logged = [float(row[name]) for row in tracked.logged() if row[name]]
        assert [row[name] for row in found] == pytest.approx(logged)
        assert [float(row[name]) for row in tracked.curves if row[name]] == pytest.approx(logged)
    assert [row["epoch"] for row in tracked.curves if row["val/loss"]] == ["0", "1"]


def test_tables_are_those_of_the_report(tracked: Tracked) -> None:
    """Stops a table that has another model's column, or that is sent before it is measured."""
    details, models = tracked.report.details, [row.name for row in tracked.report.rows]
    assert models == ["teacher", "student", "int8, torch"]
    assert [row["model"] for row in tracked.wandb.table("report")] == models
    agreement = tracked.wandb.table("agreement")
    assert [[line[model] for model in models] for line in agreement] == details.agreement
    confusion = tracked.wandb.table("confusion")
    assert [(line["label"], line["predicted"]) for line in confusion] == [
        (one, other) for one in ("negative", "positive") for other in ("negative", "positive")
    ]
    for model in models:
        assert [line[model] for line in confusion] == [n for row in details.confusion[model] for n in row]
    found = tracked.wandb.table("disagreements")
    assert [line["row"] for line in found] == [d.row for d in details.disagreements]
    assert [line["texts"] for line in found] == [" | ".join(d.texts or []) for d in details.disagreements]
    value = tracked.report.rows[2].metrics["test"]["accuracy"].value
    assert tracked.wandb.values("report/int8, torch/test/accuracy") == [(8, value)]


def test_pictures_are_the_files(tracked: Tracked) -> None:
    """Stops an empty picture, or one of an earlier run."""
    files = {"report_chart": "report", "agreement_chart": "agreement", "details_chart": "details", "curves": "curves"}
    for name, file in files.items():
        path = tracked.root / "run" / f"{file}.png"
        assert tracked.wandb.picture(name) == path.read_bytes(), name
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200 and 0.005 < (pixels[..., :3] < 0.9).any(-1).mean() < 0.7
        spread = pixels[..., :3].max(-1) - pixels[..., :3].min(-1)
        assert spread.max() < 0.02, f"{file} needs colour"
    assert not list((tracked.root / "run").glob("*partial*"))


def test_details_equal_sklearn_and_a_plain_loop(tracked: Tracked) -> None:
    """Stops rows, labels or models from being mixed up between the batches and the table."""
    root, report = tracked.root, tracked.report
    rows = {d.row: d for d in report.details.disagreements}
    assert len(rows) == len(report.details.disagreements) == 20
    assert [d.distance for d in rows.values()] == sorted((d.distance for d in rows.values()), reverse=True)
    tokenizer = AutoTokenizer.from_pretrained(root / "run/student")
    models = {
        "student": AutoModelForSequenceClassification.from_pretrained(root / "run/student").eval(),
        "teacher": AutoModelForSequenceClassification.from_pretrained(root / "teacher/student").eval(),
    }
    for row in rows.values():
        assert row.texts is not None
        inputs = tokenizer(*row.texts, return_tensors="pt")
        chances = {}
        for name, model in models.items():
            with torch.no_grad():
                chances[name] = model(**inputs).logits[0].softmax(-1).tolist()
            assert getattr(row, name) == ["negative", "positive"][chances[name][1] > chances[name][0]]
        distance = sum(abs(p - q) for p, q in zip(chances["student"], chances["teacher"], strict=True)) / 2
        assert row.distance == pytest.approx(distance, abs=1e-5)
    assert all(sum(map(sum, table)) == 30 for table in report.details.confusion.values())
    assert report.details.agreement[2][1] == report.rows[2].agreement
    for i in range(3):
        assert report.details.agreement[i][i] == 1


def test_confusion_equals_sklearn(tracked: Tracked, glue: Callable[..., Any]) -> None:
    """Stops a matrix with true and predicted labels exchanged."""
    from lightning_kd.details import confusion

    generator = torch.Generator().manual_seed(0)
    predictions, target = (torch.randint(3, (50,), generator=generator) for _ in range(2))
    expected = confusion_matrix(target, predictions, labels=[0, 1, 2])
    assert confusion(predictions, target, 3) == expected.tolist()
    assert confusion(torch.cat([predictions, torch.tensor([1])]), torch.cat([target, torch.tensor([-100])]), 3) == (
        expected.tolist()
    )


def test_no_secret_is_written(tracked: Tracked) -> None:
    """Stops a key in the environment, or in an option, from reaching a config, a card, a picture or W&B."""
    files = [path for path in tracked.root.rglob("*") if path.is_file()]
    assert len(files) > 30 and any(path.suffix == ".wandb" for path in files)
    typed = {tracked.root / "run" / "fit-input.yaml"}  # which the test has written itself
    for path in set(files) - typed:
        content = path.read_bytes()
        for name, secret in {**SECRETS, "credentials": KEY}.items():
            assert secret.encode() not in content, f"{name} is in {path}"
    assert tracked.wandb.config["trainer"]["logger"][-1]["init_args"] == {"credentials": "***"}


@pytest.mark.parametrize(("folder", "row"), [("student", "student"), ("int8", "int8, torch")])
def test_every_folder_has_a_card(tracked: Tracked, folder: str, row: str) -> None:
    """Stops a card that the Hub refuses, that has another model's figures, or that tells of this machine."""
    path = tracked.root / "run" / folder / "README.md"
    card = ModelCard.load(path)
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == ("transformers" if folder == "student" else "lightning-kd")
    assert "base_model" not in card.data.to_dict(), "a local folder is no name on the Hub"
    [measured] = [each for each in tracked.report.rows if each.name == row]
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results or []}
    assert found == {
        (split, name): estimate.value
        for split, by_name in measured.metrics.items()
        for name, estimate in by_name.items()
    }
    text = card.text
    for said in (
        "distilled from teacher/student",
        "| starts from | teacher/student, layers 0 |",
        "1 x hard labels + 0.5 x hidden (HiddenStateMSE) + 1 x soft (SoftTargetKL), temperature 1",
        "TemperatureSchedule: Linear(start=8.0, end=2.0)",
        "train 64, test 30, validation 40",
        "2 epochs, 8 steps; the checkpoint with the best val/accuracy",
        "| seed | 0 |",
        f"torch {torch.__version__.partition('+')[0]}",
        "lightning-kd fit --config run/fit-input.yaml",
        "| int8, torch |",
        "ms for one text",
    ):
        assert said in text, said
    assert ("DynamicInt8, after training" in text) == (folder == "int8")
    for private in (str(tracked.root), str(Path.home()), os.uname().nodename, "WANDB"):
        assert private not in path.read_text(), private
    assert Runner.open(path.parent).predict(["a good plot"])[0]["label"] in ("negative", "positive")


def test_a_card_says_that_nothing_was_measured(distillation: Any, glue: Any, make_trainer: Any) -> None:
    """Stops a card without figures from looking like one with figures that are missing."""
    export = StudentExport()
    make_trainer(callbacks=[export]).fit(distillation(), datamodule=glue())
    assert export.folder is not None
    card = ModelCard.load(export.folder / "README.md")
    assert "Not measured." in card.text and not card.data.eval_results and "```\nlightning-kd" not in card.text


def test_texts_can_be_kept_out(
    distillation: Any, glue: Any, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops private texts from leaving the machine where the user has said no, and folders from staying behind."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("lightning_kd.callbacks.report._ROUNDS", 1)
    logger = WandbLogger(save_dir=tmp_path, log_model=True)
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8()), CompressionReport(texts=False)]
    data = glue()
    trainer = make_trainer(callbacks=callbacks, logger=logger, default_root_dir=tmp_path)
    trainer.fit(distillation(), datamodule=data)
    identity = logger.experiment.id
    logger.experiment.finish()
    recorded = read_offline_run(tmp_path)
    found = recorded.table("disagreements")
    assert found and set(found[0]) == {"row", "distance", "label", "student", "teacher"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".json", ".wandb", ".md"))
    for (text,) in data.texts("validation"):
        assert text.encode() not in written
    metadata = {name: about for (name, kind), about in recorded.artifacts.items() if kind == "model"}
    assert set(metadata) == {f"student-{identity}", f"int8-{identity}"}
    report = read_report(tmp_path)
    for row, name in ((report.rows[1], "student"), (report.rows[2], "int8")):
        about = metadata[f"{name}-{identity}"]
        assert about["bytes"] == row.bytes and about["main_metric"] == "accuracy"
        assert about["metrics"]["validation"]["accuracy"]["value"] == row.metrics["validation"]["accuracy"].value


def test_folders_stay_here_unless_uploads_are_allowed(tracked: Tracked) -> None:
    """Stops a model from being sent by whoever only wanted curves."""
    assert [name for name, kind in tracked.wandb.artifacts if kind == "model"] == []


def test_wandb_never_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stops a run on a server from waiting for somebody to type a key."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.login", lambda **options: bool(asked.append(options)))
    with pytest.raises(InputError, match=r"no account is set up here: .*--trainer\.logger\.offline true"):
        check_loggers([WandbLogger(save_dir=tmp_path)])
    assert asked == [{"prompt": False, "verify": False}]
    check_loggers([WandbLogger(save_dir=tmp_path, offline=True)])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_loggers([WandbLogger(save_dir=tmp_path)])
    assert len(asked) == 1


def test_tensorboard_has_figures_tables_and_pictures(tracked: Tracked) -> None:
    """Stops TensorBoard's users from getting numbers alone, or none: read back by its own reader."""
    events = EventAccumulator(str(tracked.root / "run" / "tensorboard" / "version_0")).Reload()
    tags = events.Tags()
    expected = [float(row["train/loss"]) for row in tracked.logged() if row["train/loss"]]
    assert [scalar.value for scalar in events.Scalars("train/loss")] == pytest.approx(expected)
    accuracy = tracked.report.rows[1].metrics["test"]["accuracy"].value
    [last] = events.Scalars("report/student/test/accuracy")
    assert (last.step, last.value) == (8, pytest.approx(accuracy))
    assert {"report_chart", "curves"} <= set(tags["images"])
    width, height = events.Images("report_chart")[0].width, events.Images("report_chart")[0].height
    assert (height, width) == imread(tracked.root / "run" / "report.png").shape[:2]
    tables = {name: f"{name}/text_summary" for name in ("report", "agreement", "confusion", "disagreements")}
    assert set(tables.values()) <= set(tags["tensors"])
    [text] = events.Tensors(tables["report"])[0].tensor_proto.string_val
    assert text.decode().startswith("| model | parameters |") and "| int8, torch |" in text.decode()
