"""A run that is interrupted anywhere and goes on is one run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import AtomicCheckpointIO, Resume
from lightning_kd.callbacks.resume import last_checkpoint

Make = Callable[..., Any]
History = dict[tuple[int, str], set[str]]

#: 24 rows in batches of 4 are 6 batches an epoch; what differs is where validations and steps are.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validates within epochs": {"val_check_interval": 2},
    "never validates": {"limit_val_batches": 0},
    "part of an epoch": {"limit_train_batches": 5, "limit_val_batches": 0},
    "accumulates": {"accumulate_grad_batches": 4, "val_check_interval": 3},
    "validates every second epoch": {"check_val_every_n_epoch": 2},
}


class SaveEverywhere(L.Callback):
    """A checkpoint wherever a ``ModelCheckpoint`` can write one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: L.Trainer, where: str) -> None:
        if not trainer.sanity_checking and trainer.global_step:
            number = len(list(self.folder.glob("*.ckpt"))) if self.folder.is_dir() else 0
            path = self.folder / f"{number:02d} {where} {trainer.global_step}.ckpt"
            trainer.save_checkpoint(path)
            path.with_suffix("").mkdir()  # what a kill would leave of the log
            log = Path(str(trainer.log_dir)) / "metrics.csv"
            if log.exists():
                shutil.copy(log, path.with_suffix(""))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "epoch")


class Run:
    """Trains a student with dropout, and reads what was logged."""

    def __init__(self, tiny_model: Make, glue: Make, make_trainer: Make) -> None:
        self.student = ModelSource(str(tiny_model(seed=1)))  # made here: to make a model moves the seed
        self.glue, self.make_trainer = glue, make_trainer

    def __call__(
        self, root: Path, callbacks: list[L.Callback], checkpoint: Path | None = None, workers: int = 0, **options: Any
    ) -> dict[str, Tensor]:
        trainer = self.make_trainer(
            default_root_dir=root,
            max_epochs=2,
            log_every_n_steps=1,
            logger=CSVLogger(root, name="logs"),
            callbacks=[Resume(), *callbacks],
            plugins=[AtomicCheckpointIO()],
            **options,
        )
        module = DistillationModule(self.student, temperature=2.0)
        trainer.fit(module, datamodule=self.glue(batch_size=4, num_workers=workers), ckpt_path=checkpoint)
        return {name: value.clone() for name, value in module.state_dict().items()}


def history(*roots: Path) -> History:
    """Every value that was logged, by step and name."""
    found: History = {}
    for file in (file for root in roots for file in root.rglob("metrics.csv")):
        with file.open() as opened:
            for row in csv.DictReader(opened):
                for name, value in row.items():
                    if value and name != "step":
                        found.setdefault((int(row["step"]), name), set()).add(value)
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether the weights are the same, bit by bit."""
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


@pytest.fixture
def run(tiny_model: Make, glue: Make, make_trainer: Make) -> Run:
    return Run(tiny_model, glue, make_trainer)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_goes_on_from_every_place(variant: str, run: Run, tmp_path: Path) -> None:
    """Stops batches that come twice or never, a validation that is left out, other dropout, other steps in the log."""
    options = VARIANTS[variant]
    whole = run(tmp_path / "whole", [], **options)
    assert equal(whole, run(tmp_path / "saving", [SaveEverywhere(tmp_path / "all")], **options)), "saving changes it"
    expected = history(tmp_path / "whole")
    checkpoints = sorted((tmp_path / "all").glob("*.ckpt"))
    assert len(checkpoints) >= 7
    for checkpoint in checkpoints:
        assert equal(whole, run(tmp_path / checkpoint.stem, [], checkpoint, **options)), checkpoint.name
        assert history(checkpoint.with_suffix(""), tmp_path / checkpoint.stem) == expected, checkpoint.name


@pytest.mark.slow
def test_workers_that_are_ahead_lose_nothing(run: Run, tmp_path: Path) -> None:
    """Stops a resumed run from going on behind what workers had fetched, or with the first epoch's order."""
    whole = run(tmp_path / "whole", [], workers=2)
    run(tmp_path / "saving", [SaveEverywhere(tmp_path / "all")], workers=2)
    for number in ("02", "09"):
        [checkpoint] = (tmp_path / "all").glob(f"{number} batch*.ckpt")
        assert equal(whole, run(tmp_path / number, [], checkpoint, workers=2))


class Fail(L.Callback):
    """Raises in one place."""

    def __init__(self, where: str, step: int = 3) -> None:
        self.where, self.step = where, step

    def _fail(self, where: str, trainer: L.Trainer) -> None:
        if self.where == where and trainer.global_step >= self.step and not trainer.sanity_checking:
            raise OSError("broken")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._fail("batch start", trainer)

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        self._fail("backward", trainer)

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        self._fail("zero grad", trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._fail("batch end", trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._fail("validation", trainer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "variant"),
    [
        ("batch start", "plain"),
        ("backward", "plain"),
        ("backward", "accumulates"),
        ("batch end", "validates within epochs"),
        ("validation", "validates within epochs"),
        ("validation", "accumulates"),
        ("fetch", "plain"),
        ("fetch", "validates within epochs"),
    ],
)
def test_goes_on_from_a_failure(where: str, variant: str, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """Stops an error from costing all steps since the last checkpoint, and a state that is within a step."""
    options = VARIANTS[variant]
    whole = run(tmp_path / "whole", [], **options)
    keeps = [ModelCheckpoint(tmp_path / "kept", every_n_epochs=100)]
    with monkeypatch.context() as patch:
        if where == "fetch":
            from lightning_kd.datamodules.batching import Collator

            collate, left = Collator.__call__, [9]

            def broken(self: Collator, numbers: list[int]) -> dict[str, Any]:
                left[0] -= len(numbers) == 4 and self.rows.index[-1] == 23  # a batch to train on
                if left[0] < 0:
                    raise OSError("broken")
                return collate(self, numbers)

            patch.setattr(Collator, "__call__", broken)
        with pytest.raises(OSError, match="broken"):
            run(tmp_path / "parts", [Fail(where, 2 if variant == "accumulates" else 4), *keeps], **options)
    last = tmp_path / "kept" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] >= 1
    assert equal(whole, run(tmp_path / "parts", keeps, last, **options))
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


def test_does_not_keep_half_a_step(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """Stops a checkpoint of weights of which the optimizer has moved some."""

    def broken(self: Any, *_: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr(DistillationModule, "lr_scheduler_step", broken)  # behind the optimizer's step
    with pytest.raises(OSError, match="broken"):
        run(tmp_path, [ModelCheckpoint(tmp_path / "kept", every_n_epochs=100)])
    assert not (tmp_path / "kept" / "last.ckpt").exists()


class Terminate(L.Callback):
    """What a batch system does."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_a_run_in_order(run: Run, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Stops a preempted job from losing its steps, from looking like a success, and a handler that stays."""
    before = signal.getsignal(signal.SIGTERM)
    whole = run(tmp_path / "whole", [])
    keeps = [ModelCheckpoint(tmp_path / "kept")]
    with pytest.raises(SIGTERMException) as error:
        run(tmp_path / "parts", [Terminate(), *keeps])
    assert error.value.code == 143
    last = tmp_path / "kept" / "last.ckpt"
    assert f"SIGTERM in epoch 0, after 4 steps: --ckpt_path last goes on from {last}" in log.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert equal(whole, run(tmp_path / "parts", keeps, last))
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


def test_without_checkpoints_it_says_so(run: Run, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Stops a promise of a checkpoint where the user wants none."""
    with pytest.raises(SIGTERMException):
        run(tmp_path, [Terminate()], enable_checkpointing=False)
    assert "SIGTERM in epoch 0, after 4 steps: there is no checkpoint of it" in log.text
    assert not list(tmp_path.rglob("*.ckpt"))


def test_refuses_other_batches_in_the_middle_of_an_epoch(run: Run, tmp_path: Path) -> None:
    """Stops a run that leaves out rows, because a batch is another number of them now."""
    run(tmp_path / "saving", [SaveEverywhere(tmp_path / "all")])
    [middle] = (tmp_path / "all").glob("02 batch*.ckpt")
    with pytest.raises(InputError, match="middle of an epoch of 6 batches, but now there are 3"):
        run(tmp_path / "parts", [], middle, limit_train_batches=3)


def test_the_best_stays_the_best(run: Run, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Stops the first validation of a resumed run from being the best one, whatever was before, in another folder."""

    def best(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val/loss", save_last=True)

    first = best("first")
    run(tmp_path / "run", [first], limit_train_batches=2)
    (tmp_path / "first").rename(tmp_path / "moved")
    again = best("second")
    state = torch.load(tmp_path / "moved" / "last.ckpt", weights_only=True)
    for callback in state["callbacks"].values():
        if "best_model_score" in callback:
            callback["best_model_score"] = torch.tensor(-1.0)
            callback["best_k_models"] = dict.fromkeys(callback["best_k_models"], torch.tensor(-1.0))
            callback["kth_value"] = torch.tensor(-1.0)
    torch.save(state, tmp_path / "moved" / "last.ckpt")
    run(tmp_path / "run", [again], tmp_path / "moved" / "last.ckpt", limit_train_batches=2, min_epochs=3)
    assert again.best_model_score == -1
    assert Path(again.best_model_path).is_file() and Path(again.best_model_path).parent == tmp_path / "moved"


def test_last_is_the_newest_of_all_runs(make_trainer: Make, tmp_path: Path) -> None:
    """Stops a resumed run from starting anew because the logger has given it a folder of its own."""

    def trainer(**options: Any) -> L.Trainer:
        return make_trainer(default_root_dir=tmp_path, logger=CSVLogger(tmp_path, name="logs"), **options)

    assert last_checkpoint(trainer(callbacks=[ModelCheckpoint()])) is None
    for i, name in enumerate(["version_0/checkpoints/last", "version_1/checkpoints/epoch=0", "version_1/other"]):
        file = tmp_path / "logs" / f"{name}.ckpt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (i, i))
    newest = tmp_path / "logs" / "version_1" / "checkpoints" / "epoch=0.ckpt"
    assert last_checkpoint(trainer(callbacks=[ModelCheckpoint()])) == newest
    weights = ModelCheckpoint(tmp_path / "logs" / "version_1", save_weights_only=True)
    assert last_checkpoint(trainer(callbacks=[weights])) is None
    assert last_checkpoint(trainer(callbacks=[ModelCheckpoint(tmp_path / "logs" / "version_1")])) is not None
    assert last_checkpoint(trainer(enable_checkpointing=False)) is None
