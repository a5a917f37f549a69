"""The folder that a fit leaves: the best student, for transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import DistillationModule, ModelSource
from lightning_kd.callbacks import CompressionReport, StudentExport
from lightning_kd.callbacks._fit_end import write_folder

Make = Callable[..., Any]

#: Opens the folder as somebody does who has never heard of this library.
FOREIGN = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning_kd", "lightning"):
            raise ImportError(f"{name} is forbidden here")
sys.meta_path.insert(0, Forbidden())
from transformers import pipeline
print(json.dumps(pipeline("text-classification", model=sys.argv[1])(json.loads(sys.argv[2]))))
"""


class Spoil(L.Callback):
    """Turns the student's answers around at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.classifier.weight.mul_(-50)


def test_best_checkpoint_is_exported(tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the last weights from being shipped under the best weights' score."""
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", mode="min")
    last = ModelCheckpoint(tmp_path / "last", save_last=True)  # it monitors nothing, and so does not choose
    export = StudentExport(str(tmp_path / "out" / "student"))
    trainer = make_trainer(max_epochs=2, callbacks=[Spoil(), export, last, best])
    module = distillation()
    trainer.fit(module, datamodule=glue())
    assert export.folder == tmp_path / "out" / "student"
    exported = AutoModelForSequenceClassification.from_pretrained(export.folder).state_dict()
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["epoch"] == 0
    assert {f"student.{name}" for name in exported} == {n for n in state["state_dict"] if n.startswith("student.")}
    for name, value in exported.items():
        assert value.equal(state["state_dict"][f"student.{name}"]), name
    assert not exported["classifier.weight"].equal(module.model.classifier.weight)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["student"]


def test_last_weights_without_a_monitor(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the weights from before the fit from being written where no checkpoint names a best."""
    trainer = make_trainer(callbacks=[StudentExport()])
    module = distillation()
    trainer.fit(module, datamodule=glue())
    folder = Path(trainer.default_root_dir) / "student"
    exported = AutoModelForSequenceClassification.from_pretrained(folder)
    assert exported.classifier.weight.equal(module.model.classifier.weight)
    assert module.model.training  # the module's own student is left as it was
    before = AutoModelForSequenceClassification.from_pretrained(module.student_source.path)
    assert not exported.classifier.weight.equal(before.classifier.weight)


def test_tokenizer_cuts_and_does_not_pad(glue: Make, distillation: Make, make_trainer: Make) -> None:
    """Stops the exported tokenizer from padding as the data module last did, or from reading longer texts."""
    trainer = make_trainer(callbacks=[StudentExport()], limit_train_batches=1, limit_val_batches=0)
    trainer.fit(distillation(), datamodule=glue(max_length=5))
    tokenizer = AutoTokenizer.from_pretrained(Path(trainer.default_root_dir) / "student")
    assert tokenizer.model_max_length == 5
    assert [len(ids) for ids in tokenizer(["ba", "ba be bi bo bu ba be"])["input_ids"]] == [3, 9]
    assert len(tokenizer("ba be bi bo bu ba be", truncation=True)["input_ids"]) == 5


@pytest.mark.slow
def test_opens_where_this_library_is_not(
    tmp_path: Path, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a folder that only its maker can open, or whose labels are LABEL_0 and LABEL_1."""
    texts = ["ba be bi", "tun ton", "ras res ris ros"]
    export = StudentExport(str(tmp_path / "student"))
    student = ModelSource(str(tiny_model(seed=1)), keep_layers=[0, 2])
    module = distillation(student=student)
    make_trainer(callbacks=[export], limit_val_batches=0).fit(module, datamodule=glue())
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(export.folder), json.dumps(texts)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    encoded = AutoTokenizer.from_pretrained(export.folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        records = module.task.records({"logits": module.model.eval()(**encoded).logits}, {}, module.model.config)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert [a["label"] for a in answers] == [r["label"] for r in records]
    assert {a["label"] for a in answers} <= {"negative", "positive"}
    assert [a["score"] for a in answers] == pytest.approx([r["score"] for r in records], abs=1e-5)


def test_failing_export_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops half a model from standing where a whole one stood, and the error from being lost."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("old")

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lightning_kd.callbacks.export.save_tokenizer", fail)
    export = StudentExport(str(tmp_path / "student"))
    trainer = make_trainer(callbacks=[export], limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(OSError, match="disk full"):
        trainer.fit(distillation(), datamodule=glue())
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "student",
        "student/config.json",
    ]
    assert export.folder is None


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    """Stops files of an earlier run, and of one that was killed, from being mixed with the new ones."""
    folder = tmp_path / "a" / "model"
    for leftover in (folder, folder.with_name("model.partial"), folder.with_name("model.old")):
        leftover.mkdir(parents=True)
        (leftover / "stale").write_text("stale")
    write_folder(folder, lambda partial: (partial / "new").write_text("new") and None)
    assert [p.relative_to(folder.parent).as_posix() for p in sorted(folder.parent.rglob("*"))] == ["model", "model/new"]


def test_trial_writes_nothing(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops `--trainer.fast_dev_run` from replacing the student of yesterday's run."""
    trainer = make_trainer(fast_dev_run=True, callbacks=[StudentExport(), CompressionReport()])
    trainer.fit(distillation(), datamodule=glue())
    assert list(Path(trainer.default_root_dir).rglob("*")) == []
