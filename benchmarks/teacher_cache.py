r"""What cached logits save: a 12-layer teacher, a 3-layer student, five epochs on synthetic sentences.

Three ways of training one student, each in processes of its own that take turns: by hard labels without a teacher, by
the teacher's logits from `TeacherCache` (computing them included in `seconds`), and by the teacher running with every
batch. `step` is the median of the steps from the second epoch on, `memory` the most that the process held from then on.
The models are of random weights, which changes no time.

    python benchmarks/teacher_cache.py --json benchmarks/results/teacher_cache.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from _common import ROOT, parser, report, setting
from lightning_kd import DistillationModule, ModelSource
from lightning_kd.callbacks import TeacherCache
from lightning_kd.datamodules import SyntheticDataModule
from lightning_kd.losses import SoftTargetKL

ARMS = ("no teacher", "cached", "live")


class Clock(L.Callback):
    """Times every step from the second epoch on, and looks at the memory."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.memory = 0
        self._last: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = None
        if trainer.current_epoch == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if self._last is not None and trainer.current_epoch > 0:
            self.steps.append(now - self._last)
        self._last = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        self.memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def run(arm: str, quick: bool, threads: int) -> dict[str, Any]:
    """Train once; seconds, steps and memory."""
    torch.set_num_threads(threads)
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticDataModule(num_train=128 if quick else 1024, num_validation=64, num_test=64, batch_size=32)
        data.setup("fit")
        assert data.tokenizer is not None  # set in setup
        shape = {"vocab_size": len(data.tokenizer), "hidden_size": 384, "num_attention_heads": 12}
        shape |= {"intermediate_size": 1536, "num_labels": len(data.label_names or [])}
        teacher = Path(folder) / "teacher"
        config = BertConfig(num_hidden_layers=12, **shape)
        config.id2label = dict(enumerate(data.label_names or []))
        AutoModelForSequenceClassification.from_config(config).save_pretrained(teacher)
        data.tokenizer.save_pretrained(teacher)
        taught = arm != "no teacher"
        module = DistillationModule(
            student=ModelSource(from_scratch=True, config={"model_type": "bert", "num_hidden_layers": 3, **shape}),
            teachers={"teacher": ModelSource(str(teacher))} if taught else {},
            losses={"soft": SoftTargetKL()} if taught else {},
            hard_label_weight=0.0 if taught else 1.0,
        )
        clock = Clock()
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=5,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock, *([TeacherCache()] if arm == "cached" else [])],
        )
        started = time.perf_counter()
        trainer.fit(module, datamodule=data)
        return {"seconds": time.perf_counter() - started, "steps": clock.steps, "memory": clock.memory}


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--arm", choices=ARMS, help="train in this one way and print the times as JSON")
    options = arguments.parse_args()
    if options.arm:
        print(json.dumps(run(options.arm, options.quick, options.threads)))
        return
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for number in range(1 if options.quick else 3):
        for arm in ARMS[number % 3 :] + ARMS[: number % 3]:
            print(f"round {number + 1}: {arm}", file=sys.stderr)
            command = [sys.executable, __file__, "--arm", arm, "--threads", str(options.threads)]
            done = subprocess.run(
                command + ["--quick"] * options.quick, cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stderr)
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    steps = {arm: [statistics.median(each["steps"]) for each in runs] for arm, runs in found.items()}
    seconds = {arm: [each["seconds"] for each in runs] for arm, runs in found.items()}

    def ratio(of: dict[str, list[float]], arm: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(of[arm], of[to], strict=True))

    rows = [
        {
            "teacher": arm,
            "ms a step": statistics.median(steps[arm]) * 1e3,
            "to no teacher": ratio(steps, arm, "no teacher"),
            "seconds": statistics.median(seconds[arm]),
            "faster than live": 1 / ratio(seconds, arm, "live"),
            "memory, MB": statistics.median(each["memory"] for each in found[arm]) / 1e6,
        }
        for arm in ARMS
    ]
    report("Cached logits", rows, setting(epochs=5, rounds=len(steps[ARMS[0]])), options.json)


if __name__ == "__main__":
    main()
