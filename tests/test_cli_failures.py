"""What the command line says, and leaves, when something fails in the middle of a run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections.abc import Callable
from multiprocessing.resource_sharer import DupFd
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import get_worker_info

from lightning_kd.cli import main
from lightning_kd.datamodules.batching import Collator
from test_cli import SHAPE, arguments

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

Log = pytest.LogCaptureFixture
Said = pytest.CaptureFixture[str]
MODEL = {"student": {"from_scratch": True, "config": {**SHAPE, "num_hidden_layers": 1}}}
EVERY_STEP = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 1, "save_last": True},
}


class RemoveOutputs(L.Callback):
    """Somebody tidies up."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2 and trainer.ckpt_path is None:
            shutil.rmtree(trainer.default_root_dir)


def fails(root: Path, capfd: Said, code: int, *more: str, **trainer: Any) -> str:
    """Run a fit that fails; the last line of what it says."""
    with pytest.raises(SystemExit) as ended:
        main(arguments(root, "fit", MODEL, *more, **{"callbacks": [EVERY_STEP], **trainer}))
    said = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == code, said[-5:]
    assert not any(line.startswith("Traceback") for line in said)
    assert said[-1].startswith("error: ")
    return said[-1]


def goes_on(root: Path, step: int, log: Log) -> None:
    """Assert that the last checkpoint is of this step, and that the run can be finished from it."""
    log.clear()
    main(arguments(root, "fit", MODEL, "--ckpt_path", "last", callbacks=[EVERY_STEP]))
    [restored] = re.findall("Restored all states from the checkpoint at (.*)", log.text)
    assert re.search(rf"step={step}(-v1)?.ckpt|last.ckpt", restored)
    last = max(root.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert not list(root.rglob("*.partial"))
    assert (root / "student" / "model.safetensors").is_file()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Said, log: Log) -> None:
    """Stops a full disk from ending in a traceback, or in a checkpoint that is half there."""
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 4:  # two files a step
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = fails(tmp_path, capfd, 1)
    assert said.startswith(f"error: The disk is full: {tmp_path}") and said.endswith(".ckpt.")
    kept = [torch.load(path, weights_only=True)["global_step"] for path in tmp_path.rglob("*.ckpt")]
    assert set(kept) == {2}
    goes_on(tmp_path, 2, log)


@pytest.mark.parametrize(
    ("every", "gone"),
    [
        (1, "The output folder {root}/logs/version_0 has been removed during the run."),
        (100, "A file or folder of the run is gone: {root}/logs/version_0/metrics.csv."),
    ],
)
def test_removed_output_folder(every: int, gone: str, tmp_path: Path, capfd: Said, log: Log) -> None:
    """Stops a run whose log cannot be written any more from ending without a checkpoint."""
    remove = {"class_path": "test_cli_failures.RemoveOutputs"}
    root = tmp_path / "run"
    keeps = {**EVERY_STEP, "init_args": {"every_n_train_steps": every, "save_last": True}}
    said = fails(root, capfd, 1, callbacks=[remove, keeps])
    assert said == f"error: {gone.format(root=root)}"
    goes_on(root, 3, log)


def test_dead_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Said, log: Log) -> None:
    """Stops a worker that the system has ended from costing the steps since the last checkpoint."""
    collate: Callable[..., Any] = Collator.__call__
    calls: list[int] = []

    def killed(self: Collator, numbers: list[int]) -> Any:
        calls.append(len(numbers))
        if get_worker_info() is not None and calls.count(16) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", killed)
        said = fails(tmp_path, capfd, 1, "--data.num_workers", "1", limit_val_batches=0)
    assert re.match(r"error: A process that makes batches has died(: DataLoader worker \(pid| while it handed)", said)
    assert said.endswith("set data.num_workers lower, or to 0.")
    goes_on(tmp_path, 1, log)


def test_worker_that_dies_as_it_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Said) -> None:
    """Stops a traceback of a closed connection: what is read of a worker that has ended at that very moment."""
    tensors: list[int] = []
    detach = DupFd.detach

    def reset(self: Any) -> int:
        tensors.append(1)
        if len(tensors) > 12:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return int(detach(self))

    monkeypatch.setattr(DupFd, "detach", reset)
    said = fails(tmp_path, capfd, 1, "--data.num_workers", "1", limit_val_batches=0)
    assert said.startswith("error: A process that makes batches has died while it handed one over.")
    assert list(tmp_path.rglob("last.ckpt"))


def test_loss_of_nan(tmp_path: Path, capfd: Said) -> None:
    """Stops a traceback for a learning rate that is too high, and a checkpoint of what it has done."""
    said = fails(tmp_path, capfd, 1, "--model.optimizer.lr", "1e38", "--model.warmup", "0")
    assert "NaN or infinite" in said or "is nan in step" in said or "is inf in step" in said
    for path in tmp_path.rglob("*.ckpt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", "lightning.pytorch.strategies.FSDPStrategy"])
def test_strategies_that_cut_the_model(strategy: str, tmp_path: Path, capfd: Said) -> None:
    """Stops an error of another library about a strategy that cannot work here."""
    said = fails(tmp_path, capfd, 2, "--trainer.strategy", strategy)
    assert said.startswith(f"error: Expected argument `--trainer.strategy` to be auto or ddp, but got '{strategy}'.")


def test_nothing_to_go_on_from(tmp_path: Path, log: Log) -> None:
    """Stops the first run of a job that is always started with `last` from being refused."""
    main(arguments(tmp_path, "fit", MODEL, "--ckpt_path", "last", max_steps=1))
    assert "There is no checkpoint to go on from yet: the training starts from its beginning" in log.text
    assert "there is no last checkpoint available" not in log.text
