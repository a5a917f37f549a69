"""Kill a training at random moments, resume it each time, and compare what comes out with an uninterrupted one.

    python tests/kill_and_resume.py --kills 20
    python tests/kill_and_resume.py --kills 20 --signal TERM --kind cached

Each run is the command line in a process of its own, forked from one that has imported everything. A timer sends the
signal, so that it falls anywhere: into a step, a validation, or while a checkpoint is written. Compared are the
weights, the optimizer's state, the best checkpoint, the exported student and all that the logger's files hold. Exits
with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_kd.callbacks import Resume
from lightning_kd.cli import main
from lightning_kd.datamodules import SyntheticDataModule

__all__ = ["KINDS", "DiffersError", "Outcome", "interrupted", "make_teacher", "outcome", "same", "uninterrupted"]

_SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
#: What differs between the trainings, as (trainer, data, callbacks).
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "live": ({}, {}, []),
    "cached": ({}, {}, [{"class_path": "lightning_kd.callbacks.TeacherCache"}]),
    "accumulated": ({"accumulate_grad_batches": 3, "val_check_interval": 7}, {"num_workers": 2}, []),
    "qat": (
        {"val_check_interval": 5},
        {},
        [
            {
                "class_path": "lightning_kd.callbacks.QuantizationCallback",
                "init_args": {
                    "quantizer": {"class_path": "lightning_kd.quantization.DynamicInt8"},
                    "mode": "qat",
                    "start_epoch": 0.5,
                },
            }
        ],
    ),
}
#: Longest that a run may take, so that a deadlock is an answer, too.
_TIMEOUT = 600


class DiffersError(AssertionError):
    """What an interrupted run has that an uninterrupted one has not, or the other way round."""


@dataclass(frozen=True)
class Outcome:
    """What is left of a training."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best_score: float
    best_student: dict[str, torch.Tensor]
    history: dict[tuple[int, str], set[str]]


def make_teacher(folder: Path) -> Path:
    """A tiny random teacher with the tokenizer of the synthetic data."""
    tokenizer = SyntheticDataModule().load_tokenizer()
    shape = {**_SHAPE, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    shape |= {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _arguments(root: Path, teacher: Path, kind: str, epochs: int, accelerator: str) -> list[str]:
    trainer, data, callbacks = KINDS[kind]
    if accelerator == "gpu":
        trainer = {**trainer, "deterministic": True}  # or two runs without a kill would differ, too

    def checkpoint(**options: Any) -> dict[str, Any]:
        return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": options}

    match = {"student_layer": -1, "teacher_layer": -1}
    losses = {"soft": {"class_path": "lightning_kd.losses.SoftTargetKL"}}
    if kind != "cached":  # of hidden states nothing is cached
        hidden = {"class_path": "lightning_kd.losses.HiddenStateMSE", "init_args": {"matches": [match]}}
        losses["hidden"] = hidden
    schedule = {"class_path": "lightning_kd.schedules.Linear", "init_args": {"start": 4.0, "end": 1.0}}
    config = {
        "seed_everything": 7,
        "model": {
            "student": {"from_scratch": True, "config": _SHAPE},
            "teachers": {"big": {"path": str(teacher)}},
            "losses": losses,
            "optimizer": {"class_path": "lightning_kd.optim.AdamW", "init_args": {"lr": 0.002}},
        },
        "data": {
            "class_path": "lightning_kd.datamodules.SyntheticDataModule",
            "init_args": {"num_train": 96, "num_validation": 40, "num_test": 5, "batch_size": 4, **data},
        },
        "trainer": {
            "accelerator": accelerator,
            "devices": 1,
            "default_root_dir": str(root),
            "enable_progress_bar": False,
            "max_epochs": epochs,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(root), "name": "logs"},
            },
            "callbacks": [
                checkpoint(monitor="val/accuracy", mode="max", filename="best"),
                checkpoint(every_n_train_steps=4, save_last=True, filename="step"),
                {"class_path": "lightning_kd.callbacks.TemperatureSchedule", "init_args": {"schedule": schedule}},
                *callbacks,
            ],
            **trainer,
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    file = root / "input.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["fit", "--config", str(file), "--ckpt_path", "last"]


def _forked(root: Path, work: Callable[[], None]) -> int:
    """Run ``work`` in a child whose output goes to a file; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (root / "output.txt").open("a", encoding="utf-8") as file:
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(file.fileno(), stream.fileno())
            work()
            code = 0
        except SystemExit as error:  # the child ends below, with this code
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # the child has to end here, whatever it was; the parent shows what is written
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    limit = time.monotonic() + _TIMEOUT
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise DiffersError(f"a run of {root} has not ended within {_TIMEOUT} s")


def uninterrupted(root: Path, teacher: Path, kind: str, epochs: int = 3, accelerator: str = "cpu") -> float:
    """One run; how long its training took, in seconds."""
    arguments = _arguments(root, teacher, kind, epochs, accelerator)
    code = _forked(root, lambda: _timed(arguments, root / "seconds.json"))
    if code != 0:
        raise DiffersError(f"an uninterrupted run ended with {code}: {(root / 'output.txt').read_text()[-3000:]}")
    return float(json.loads((root / "seconds.json").read_text()))


def _timed(arguments: list[str], file: Path) -> None:
    started: list[float] = []
    begin, end = Resume.on_train_start, Resume.on_train_end

    def on_train_start(self: Resume, *given: Any) -> None:
        begin(self, *given)
        started.append(time.monotonic())

    def on_train_end(self: Resume, *given: Any) -> None:
        end(self, *given)
        file.write_text(json.dumps(time.monotonic() - started[0]))

    Resume.on_train_start, Resume.on_train_end = on_train_start, on_train_end
    main(arguments)


def _killed(arguments: list[str], after: float, number: int) -> None:
    begin = Resume.on_train_start

    def on_train_start(self: Resume, *given: Any) -> None:
        begin(self, *given)
        timer = threading.Timer(after, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    Resume.on_train_start = on_train_start
    main(arguments)


def interrupted(
    root: Path,
    teacher: Path,
    kind: str,
    kills: int,
    seconds: float,
    number: int,
    seed: int = 0,
    epochs: int = 3,
    accelerator: str = "cpu",
) -> list[int]:
    """A training that is sent a signal ``kills`` times, and resumed after each; the exit codes of its runs."""
    arguments, generator, codes = _arguments(root, teacher, kind, epochs, accelerator), random.Random(seed), []
    for _ in range(kills):
        after = generator.uniform(0, seconds * 2 / kills)
        code = _forked(root, lambda after=after: _killed(arguments, after, number))
        codes.append(code)
        if code not in (0, -number, 128 + number):
            raise DiffersError(f"a run ended with {code}: {(root / 'output.txt').read_text()[-3000:]}")
        for file in root.rglob("*.ckpt"):
            _load(file)  # or it is half a file
    code = _forked(root, lambda: main(arguments))
    if code != 0:
        raise DiffersError(f"the last run ended with {code}: {(root / 'output.txt').read_text()[-3000:]}")
    return [*codes, code]


def _load(file: Path) -> dict[str, Any]:
    return dict(torch.load(file, weights_only=True, map_location="cpu"))  # a fork of who has used CUDA cannot use it


def outcome(root: Path) -> Outcome:
    """Read what a training has left."""
    last = _load(max(root.rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime))
    scores = [state["best_model_score"] for state in last["callbacks"].values() if state.get("monitor")]
    history: dict[tuple[int, str], set[str]] = {}
    for file in root.rglob("metrics.csv"):
        with file.open(encoding="utf-8") as opened:
            for row in csv.DictReader(opened):
                for name, value in row.items():
                    if value and name != "step" and not name.startswith("report/"):
                        history.setdefault((int(row["step"]), name), set()).add(value)
    student = load_file(root / "student" / "model.safetensors")
    return Outcome(last["state_dict"], last["optimizer_states"][0]["state"], float(scores[0]), student, history)


def same(one: Outcome, other: Outcome) -> None:
    """Refuse any difference.

    Raises:
        DiffersError: With the first one.
    """
    for what in ("weights", "best_student"):
        for name, value in getattr(one, what).items():
            if not value.equal(getattr(other, what)[name]):
                raise DiffersError(f"{what}: {name}, by {(value - getattr(other, what)[name]).abs().max():g}")
    for number, states in one.optimizer.items():
        for name, value in states.items():
            if not torch.as_tensor(value).equal(torch.as_tensor(other.optimizer[number][name])):
                raise DiffersError(f"optimizer: {name} of parameter {number}")
    if one.best_score != other.best_score:
        raise DiffersError(f"best score: {one.best_score} and {other.best_score}")
    for place in sorted(one.history.keys() | other.history.keys()):
        if one.history.get(place) != other.history.get(place):
            raise DiffersError(f"history: {place}: {one.history.get(place)} and {other.history.get(place)}")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    number = signal.Signals[f"SIG{options.signal}"]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_teacher(Path(folder) / "teacher")
        for kind in KINDS if options.kind == "all" else [options.kind]:
            root = Path(folder) / kind
            epochs = max(3, options.kills // 2)  # long enough for all of them
            on = {"epochs": epochs, "accelerator": options.accelerator}
            seconds = uninterrupted(root / "whole", teacher, kind, **on)
            codes = interrupted(root / "parts", teacher, kind, options.kills, seconds, number, options.seed, **on)
            hit = sum(code != 0 for code in codes)
            whole, parts = outcome(root / "whole"), outcome(root / "parts")
            try:
                same(whole, parts)
            except DiffersError as error:
                print(f"{kind}: {error}")
                sys.exit(1)
            found.append({"kind": kind, "signal": number.name, "interrupted": hit, "rows": len(whole.history)})
            print(f"{kind}: interrupted {hit} times by {number.name}; {len(whole.history)} logged values, all the same")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
