"""Checkpoints that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd.callbacks import AtomicCheckpointIO


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left"), RuntimeError("DataLoader worker")])
def test_what_cannot_be_written_leaves_the_old_one(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a full disk from taking the last good checkpoint with it, or from leaving a half one."""
    writer, path = AtomicCheckpointIO(), tmp_path / "run" / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)

    def full(descriptor: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(type(raised)) as error:
        writer.save_checkpoint({"step": 2}, path)
    assert getattr(error.value, "filename", str(path)) == str(path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_the_name_is_given_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a killed process from leaving half a checkpoint under the name of a whole one."""
    seen: list[Any] = []
    path = tmp_path / "last.ckpt"
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((path.exists(), os.fstat(descriptor).st_size)))
    AtomicCheckpointIO().save_checkpoint({"step": torch.arange(1000)}, path)
    assert seen == [(False, path.stat().st_size)]


def test_full_disk(tmp_path: Path) -> None:
    """Stops an error of a real device from being swallowed, as the writer of torch does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(10_000)}, tmp_path / "last.ckpt")
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
