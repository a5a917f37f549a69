"""One process or two: the same losses, the same metrics, and one end."""

from __future__ import annotations

import csv
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing
from torchmetrics import MeanMetric, MetricCollection

from lightning_kd.datamodules.batching import BucketBatchSampler
from lightning_kd.tasks import (
    LanguageModeling,
    MultiLabelClassification,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)
from test_ddp import DATA, STUDENT, TWO, distilled, teacher, train

pytestmark = pytest.mark.slow

__all__ = ["teacher"]  # a fixture

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROWS = 201  # an odd number of rows and of batches
SIGNALLED = '''
import os, signal
import lightning as L

class Terminate(L.Callback):
    """Sends SIGTERM to the second process alone, as a node that is taken away does."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 4 and trainer.global_rank == 1 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGTERM)
'''


def history(root: Path) -> dict[tuple[int, str], set[str]]:
    """Every value that was logged, by step and name."""
    found: dict[tuple[int, str], set[str]] = {}
    for file in root.rglob("metrics.csv"):
        with file.open() as opened:
            for row in csv.DictReader(opened):
                for name, value in row.items():
                    if value and name != "step" and not name.startswith("report/"):
                        found.setdefault((int(row["step"]), name), set()).add(value)
    return found


def configuration(root: Path, teacher: Path, batch_size: int, **shape: Any) -> dict[str, Any]:
    model = distilled(teacher)
    model["student"] = {"from_scratch": True, "config": {**STUDENT["config"], **shape}}
    model["optimizer"] = {"class_path": "lightning_kd.optim.AdamW", "init_args": {"lr": 0.001}}
    sizes = {"num_train": 200, "num_validation": ROWS, "batch_size": batch_size}
    data = {**DATA, "init_args": {**DATA["init_args"], **sizes}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root), "name": "logs"}}
    return {"model": model, "data": data, "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "logger": logger}}


def test_losses_of_one_and_two_processes_agree(teacher: Path, tmp_path: Path) -> None:
    """Stops other batches, gradients of one process alone, and a log that knows the rows of one process only.

    Without the loss on hidden states: a mean over tokens is that of each process's own ones.
    """
    logs = []
    for name, batch_size, more in (("one", 8, ()), ("two", 4, TWO)):
        config = configuration(tmp_path / name, teacher, batch_size, **STILL)
        del config["model"]["losses"]["hidden"], config["model"]["loss_weights"]
        done = train(tmp_path / name, "fit", config, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        logs.append({place: float(value) for place, (value,) in history(tmp_path / name).items()})
    one, two = logs
    assert one.keys() == two.keys()
    assert sum(name == "train/loss" for _, name in one) == 50
    for (step, name), value in one.items():
        if name.startswith("train/"):
            assert two[step, name] == pytest.approx(value, abs=1e-5), (step, name)
        elif name == "val/accuracy":
            assert two[step, name] == value
    assert len({value for (_, name), value in one.items() if name == "train/loss"}) == 50


def test_sigterm_to_one_process_ends_both_and_they_go_on(teacher: Path, tmp_path: Path) -> None:
    """Stops a process from waiting for ever for one that has left, and ranks that go on with one dropout."""
    (tmp_path / "terminate.py").write_text(SIGNALLED)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = train(whole, "fit", configuration(whole, teacher, 8), *TWO)
    assert done.returncode == 0, done.stderr[-6000:]
    config = configuration(parts, teacher, 8)
    config["trainer"]["callbacks"] = [{"class_path": "terminate.Terminate"}]
    done = train(parts, "fit", config, *TWO, path=tmp_path)
    assert done.returncode == 143, (done.returncode, done.stderr[-6000:])
    assert done.stderr.count("SIGTERM in epoch 0, after 5 steps: --ckpt_path last goes on from ") == 1
    assert "Traceback" not in done.stderr
    done = train(parts, "fit", config, *TWO, "--ckpt_path", "last", path=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert history(parts) == history(whole)
    for name, value in load_file(whole / "student" / "model.safetensors").items():
        assert value.equal(load_file(parts / "student" / "model.safetensors")[name]), name


# -------------------------------------------------------------------------------------------------- metrics


def cases() -> dict[str, tuple[MetricCollection, Callable[[list[int]], tuple[Tensor, Tensor]]]]:
    """For each task its metrics, and the outcomes of some rows; the same in every process."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 4, generator=draw)
    labels = torch.randint(0, 2, (ROWS, 4), generator=draw)
    long = torch.randint(0, 5, (ROWS, 9), generator=draw)
    right = torch.rand(ROWS, 9, generator=draw) < 0.6
    guessed = torch.where(right, long, torch.randint(0, 5, (ROWS, 9), generator=draw))
    surprise = torch.rand(ROWS, 9, generator=draw) * 5
    answers = torch.rand(ROWS, 3, generator=draw).round(decimals=2)
    answers[:, 2] = (answers[:, 2] > 0.3).float()
    one, several, words = SequenceClassification(), MultiLabelClassification(), TokenClassification()
    tags = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

    def of(task: SequenceClassification, rows: list[int], target: Tensor, width: int) -> tuple[Tensor, Tensor]:
        batch: Mapping[str, Tensor] = {"labels": target[rows]}
        return task.outcomes({"logits": logits[rows, :width]}, batch)

    questions = QuestionAnswering(null_threshold=0.0)
    return {
        "classes": (
            one.metrics(["accuracy", "f1", "matthews"], ["no", "yes"]),
            lambda rows: of(one, rows, labels[:, 0], 2),
        ),
        "scores": (one.metrics(["pearson", "spearman"], None), lambda rows: of(one, rows, surprise[:, 0], 1)),
        "labels": (
            several.metrics(["f1_micro", "f1_macro", "accuracy"], list("abcd")),
            lambda rows: of(several, rows, labels.float(), 4),
        ),
        "entities": (
            words.metrics(["f1", "precision", "recall", "f1_LOC"], tags),
            lambda rows: (guessed[rows], long[rows]),
        ),
        "answers": (
            questions.metrics(["f1", "exact_match", "f1_answerable"], []),
            lambda rows: (answers[rows], answers[rows]),
        ),
        "words": (LanguageModeling().metrics(["perplexity"], []), lambda rows: (surprise[rows], long[rows])),
        "loss": (
            MetricCollection({"loss": MeanMetric().set_dtype(torch.float64)}),
            lambda rows: (surprise[rows, 0].mean(), torch.tensor(len(rows))),
        ),
    }


def measured(rank: int, world_size: int) -> dict[str, float]:
    """Every metric, over the batches that the sampler gives to a process."""
    lengths = np.random.default_rng(0).integers(3, 30, ROWS)
    found = {}
    for name, (metrics, outcomes) in cases().items():
        for rows in BucketBatchSampler(lengths, 8, False, 0, world_size, rank):
            metrics.update(*outcomes(rows))
        found.update({f"{name}/{metric}": value.float().item() for metric, value in metrics.compute().items()})
    return found


def second(rank: int, port: int, file: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(measured(rank, 2), f"{file}.{rank}")
    distributed.destroy_process_group()


def test_every_metric_is_that_of_one_process(tmp_path: Path) -> None:
    """Stops a row that counts twice, a mean of the processes' means, and sums that depend on who has which rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = os.path.dirname(os.path.abspath(__file__))
    assert folder in sys.path  # where the other processes find this file
    multiprocessing.spawn(second, (port, str(tmp_path / "found")), nprocs=2)
    expected = measured(0, 1)
    assert len(expected) == 17 and len(set(expected.values())) > 12
    for rank in range(2):
        assert torch.load(tmp_path / f"found.{rank}", weights_only=True) == expected
