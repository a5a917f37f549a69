"""What only a GPU shows: models, data and losses on one device, half precision, no waiting for the device."""

from __future__ import annotations

import csv
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_kd import DistillationModule, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport, TeacherCache
from lightning_kd.losses import HiddenStateMSE, LayerMap, SoftTargetKL
from lightning_kd.quantization import DynamicInt8
from tests.losses.test_in_training import MAKERS, SAME_HEADS, Steps, train
from tests.test_ddp import ROOT, distilled, teacher
from tests.test_ddp import train as train_by_command

__all__ = ["teacher", "train"]  # fixtures

Make = Callable[..., Any]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def losses_of(distillation: Make, glue: Make, make_trainer: Make) -> Make:
    """The losses of an epoch: ``losses_of(accelerator, callbacks, **trainer)``, drawn by no device."""

    def run(
        accelerator: str, *callbacks: L.Callback, dtype: str = "float32", compiled: bool = False, **options: Any
    ) -> list[float]:
        teacher = distillation().teacher_sources["teacher"]
        module = distillation(teachers={"teacher": ModelSource(teacher.path, dtype=dtype)}, compile=compiled)
        steps = Steps()
        trainer = make_trainer(
            callbacks=[steps, *callbacks], accelerator=accelerator, limit_val_batches=0, max_epochs=2, **options
        )
        trainer.fit(module, datamodule=glue())
        return steps.losses

    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_losses_are_those_of_the_cpu(precision: str, losses_of: Make) -> None:
    """Stops a tensor from being left on another device, and half precision from reaching a softmax."""
    exact = losses_of("cpu")
    found = losses_of("gpu", precision=precision)
    assert len(found) == 6 and found == pytest.approx(exact, rel=1e-3 if precision == "32-true" else 0.05)


def test_a_teacher_keeps_its_own_dtype(losses_of: Make) -> None:
    """Stops a teacher in half precision from meeting a student in full precision unconverted."""
    assert losses_of("gpu", dtype="bfloat16") == pytest.approx(losses_of("gpu"), rel=0.05)


def test_compiled_losses_are_the_plain_ones(losses_of: Make) -> None:
    """Stops a graph that was made for another length from changing a loss."""
    assert losses_of("gpu", compiled=True) == pytest.approx(losses_of("gpu"), rel=1e-3)


def test_cached_losses_are_the_live_ones(losses_of: Make, tmp_path: Path) -> None:
    """Stops a cache from staying on the CPU, or from being computed by another device's batches."""
    cache = TeacherCache(str(tmp_path / "cache"), dtype="float32")
    assert losses_of("gpu", cache) == pytest.approx(losses_of("gpu"), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_loss_trains(name: str, precision: str, train: Make) -> None:
    """Stops an index on the CPU, and an overflow in 16 bits."""
    if name == "BERTEMD":
        pytest.importorskip("scipy", reason="needs the extra emd")
    module, steps = train(
        {"term": MAKERS[name]()}, 2 if name in SAME_HEADS else 4, precision=precision, accelerator="gpu"
    )
    assert len(steps.losses) == 3 and all(0 <= loss < float("inf") for loss in steps.losses)
    assert all(p.isfinite().all() for p in module.parameters())


class _Watch(L.Callback):
    """Has CUDA report each wait for the device in the steps that log nothing."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        logged = (trainer.global_step + 1) % trainer.log_every_n_steps == 0
        torch.cuda.set_sync_debug_mode("default" if logged or trainer.global_step < 2 else "warn")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def _reset() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_reset")
@pytest.mark.parametrize("cached", [False, True])
def test_no_step_waits_for_the_device_unless_it_is_logged(
    cached: bool, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops an ``item()`` or a copy to the CPU in every step: the device would idle meanwhile."""
    hidden = {} if cached else {"hidden": HiddenStateMSE(LayerMap("uniform"))}
    callbacks = [_Watch(), *([TeacherCache()] if cached else [])]
    options = {"max_epochs": 2, "log_every_n_steps": 2, "accelerator": "gpu", "enable_progress_bar": True}
    trainer = make_trainer(callbacks=callbacks, limit_val_batches=0, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(distillation(losses={"soft": SoftTargetKL(), **hidden}), datamodule=glue(batch_size=4))
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    # transformers looks whether a batch has padding, and torch says so when the watch is switched on
    assert not [place for place in waits if "masking_utils" not in place and "torch/cuda/__init__" not in place]


def test_a_run_leaves_an_int8_model_for_the_cpu(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops fit end from quantizing, timing or saving tensors of the GPU."""
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8()), CompressionReport()]
    trainer = make_trainer(callbacks=callbacks, accelerator="gpu")
    module: DistillationModule = distillation()
    trainer.fit(module, datamodule=glue())
    root = Path(trainer.default_root_dir)
    assert (root / "report.json").is_file()
    found = [Runner.open(root / name).predict(["ba be", "di do du"]) for name in ("student", "int8")]
    assert [len(answers) for answers in found] == [2, 2]


def test_nccl_gives_the_losses_of_no_process_group(teacher: Path, tmp_path: Path) -> None:
    """Stops DDP on GPUs from waiting for weights without a gradient, or from moving the teacher."""
    found = []
    for strategy in ("auto", "ddp"):
        root = tmp_path / strategy
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root)}}
        options = {"accelerator": "gpu", "strategy": strategy, "max_epochs": 2, "log_every_n_steps": 1}
        done = train_by_command(root, "fit", {"model": distilled(teacher), "trainer": {**options, "logger": logger}})
        assert done.returncode == 0, done.stderr[-6000:]
        assert ("distributed_backend=nccl" in done.stderr) == (strategy == "ddp")
        with next(root.rglob("metrics.csv")).open() as file:
            found.append([float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]])
    assert len(found[0]) == 12 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_killed_run_goes_on_as_if_it_had_not_been() -> None:
    """Stops the random state of the GPU from being forgotten; by a script, as CUDA bears no fork of this process."""
    command = [sys.executable, str(ROOT / "tests" / "kill_and_resume.py"), "--accelerator", "gpu"]
    done = subprocess.run([*command, "--kind", "live", "--kills", "4"], capture_output=True, text=True)
    assert done.returncode == 0 and "all the same" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
