r"""What the trainer and the module add to a training step, over a loop written by hand.

Both train the same student with the same teacher, losses, optimizer, schedule and batches, in one process, in turn: the
loader of the trainer runs the loop by hand before it hands out the next batch. A turn is one step, or `--block` steps
on a GPU, which may then run ahead within a turn. Each turn starts from the same random state, so that the dropout is
the same; the table says how far apart the two students are in the end. Loading is no part of it (see data.py). On a
GPU one turn of each, which is not timed, is profiled: how long its kernels run, and so how much of a step it works.

The logger and the bar are off, or on: Lightning's CSV logger every 50 steps, and the command line's bar on a terminal.
A module whose step is that of the loop shows what of the time is the trainer's own.

    python benchmarks/step.py --json benchmarks/results/step.json
    python benchmarks/step.py --device cuda --precision bf16-mixed --steps 200 --json benchmarks/results/step_cuda.json
"""

from __future__ import annotations

import copy
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, BertConfig, get_linear_schedule_with_warmup

from _common import parser, quiet, report, setting
from lightning_kd import DistillationModule, ModelSource
from lightning_kd.callbacks import StageProgress
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL

VOCABULARY = 30_522
TEMPERATURE = 4.0
#: Steps of each that do not count.
WARM = 10


@dataclass(frozen=True)
class Shape:
    """Of two models and a batch: both are as wide, the student has the fewer layers."""

    width: int
    heads: int
    teacher_layers: int
    student_layers: int
    rows: int
    length: int

    def __str__(self) -> str:
        layers = f"{self.teacher_layers} to {self.student_layers} layers of {self.width}"
        return f"{layers}, {self.rows} x {self.length}"


SHAPES = {
    "tiny": Shape(128, 2, 4, 2, 16, 16),
    "small": Shape(384, 12, 6, 3, 32, 32),
    "base": Shape(768, 12, 12, 6, 32, 128),
}


def batches(shape: Shape, count: int, device: str) -> list[dict[str, Tensor]]:
    """Random tokens, some of each row padding."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        lengths = torch.randint(shape.length // 2, shape.length + 1, (shape.rows,), generator=generator)
        lengths[0] = shape.length
        mask = torch.arange(shape.length) < lengths.unsqueeze(1)
        ids = torch.randint(1000, VOCABULARY, mask.shape, generator=generator) * mask
        labels = torch.randint(2, (shape.rows,), generator=generator)
        batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask.long()}
        made.append({name: value.to(device) for name, value in {**batch, "labels": labels}.items()})
    return made


class ByHand:
    """The loop that one would write without the library."""

    def __init__(self, student: Any, teacher: Any, steps: int, precision: str, device: str, compiled: bool) -> None:
        self.student, self.teacher = student.train(), teacher.eval()
        if compiled:
            self.student.compile(dynamic=True)  # as the module does it, whose batches differ in length
            self.teacher.compile(dynamic=True)
        matrices = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in student.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-5, weight_decay=0.01, fused=True)
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, round(0.1 * steps), steps)
        self.precision = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")

    def step(self, batch: dict[str, Tensor]) -> None:
        """One step."""
        with self.precision:
            loss = loss_by_hand(self.student, self.teacher, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


def loss_by_hand(student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
    """Soft targets, hidden states, hard labels."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        taught = teacher(**inputs, output_hidden_states=True)
    output = student(**inputs, output_hidden_states=True)
    hard = F.cross_entropy(output.logits.float(), labels)
    soft = F.kl_div(
        F.log_softmax(output.logits.float() / TEMPERATURE, -1),
        F.log_softmax(taught.logits.float() / TEMPERATURE, -1),
        log_target=True,
        reduction="batchmean",
    )
    mask = batch["attention_mask"].unsqueeze(-1)
    gap = (output.hidden_states[-1].float() - taught.hidden_states[-1].float()).square() * mask
    hidden = gap.sum() / (mask.sum() * gap.shape[-1])
    return hard + TEMPERATURE**2 * soft + hidden


class TrainerAlone(DistillationModule):
    """What of the time is the trainer's own: the step of the loop in a module."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_by_hand(self.model, self.teachers["teacher"], batch)


class InTurn:
    """The trainer's loader: times what the trainer does between batches, and the loop by hand in between."""

    by_hand: ByHand

    def __init__(self, found: list[dict[str, Tensor]], block: int, device: str, clock: str) -> None:
        self.clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        self.batches = found
        self.block = block
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.seconds: dict[str, list[float]] = {"trainer": [], "by hand": []}
        self.kernels: dict[str, float] = {}  # seconds a step
        self.profiled = len(found) - 2 * block if device == "cuda" else None  # the last turn but one
        self._profiler: profile | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self), self.block):
            turn = self.batches[start : start + self.block]
            if (start // self.block) % 2:
                self._by_hand(turn, start)
            self._begin(start)
            yield from turn
            self._end("trainer", len(turn))
            if not (start // self.block) % 2:
                self._by_hand(turn, start)

    def _by_hand(self, turn: list[dict[str, Tensor]], start: int) -> None:
        self._begin(start)
        for batch in turn:
            self.by_hand.step(batch)
        self._end("by hand", len(turn))

    def _begin(self, start: int) -> None:
        torch.manual_seed(start)
        self.synchronize()
        if start == self.profiled:
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.start()
        self._started = self.clock()

    def _end(self, arm: str, steps: int) -> None:
        self.synchronize()
        seconds = (self.clock() - self._started) / steps
        if self._profiler is None:
            self.seconds[arm].append(seconds)
            return
        self._profiler.stop()
        microseconds = sum(event.self_device_time_total for event in self._profiler.key_averages())
        self.kernels[arm] = microseconds / 1e6 / steps
        self._profiler = None


@contextmanager
def terminal() -> Iterator[None]:
    """A terminal as the standard output, of which nobody sees anything: bars draw nothing where there is none."""
    master, slave = pty.openpty()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    for stream in kept:
        os.dup2(slave, stream)

    def drain() -> None:
        try:
            while os.read(master, 65536):
                pass
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in kept.items():
            os.dup2(old, stream)
            os.close(old)
        os.close(slave)
        reader.join(timeout=1)
        os.close(master)


class Twins(L.Callback):
    """Copies the models for the loop by hand once they are loaded, and compares the students in the end."""

    def __init__(self, loader: InTurn, options: Any) -> None:
        self.loader = loader
        self.options = options
        self.apart = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        models = copy.deepcopy((pl_module.student, pl_module.teachers["teacher"]))
        how = self.options.precision, self.options.device, self.options.compile
        models = tuple(model.to(self.options.device) for model in models)  # a teacher comes there with the first batch
        self.loader.by_hand = ByHand(*models, len(self.loader), *how)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pairs = zip(pl_module.student.parameters(), self.loader.by_hand.student.parameters(), strict=True)
        self.apart = max((ours - other).abs().max().item() for ours, other in pairs)


def measure(
    shape: Shape, kind: type[DistillationModule], watched: bool, options: Any, steps: int, folder: Path
) -> dict[str, Any]:
    """The times of both, and how far apart the students are."""
    L.seed_everything(0, verbose=False)
    common = {"hidden_size": shape.width, "num_attention_heads": shape.heads, "intermediate_size": 4 * shape.width}
    config = BertConfig(num_hidden_layers=shape.teacher_layers, vocab_size=VOCABULARY, num_labels=2, **common)
    teacher = folder / f"{shape.width}_{shape.teacher_layers}"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(teacher)
    kept = [i * shape.teacher_layers // shape.student_layers for i in range(shape.student_layers)]
    module = kind(
        student=ModelSource(str(teacher), keep_layers=kept),
        teachers={"teacher": ModelSource(str(teacher))},
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(-1, -1)])},
        temperature=TEMPERATURE,
        **({"compile": True} if options.compile else {}),
    )
    loader = InTurn(batches(shape, steps, options.device), options.block, options.device, options.clock)
    twins = Twins(loader, options)
    with ExitStack() as stack:
        if watched:
            stack.enter_context(terminal())
        trainer = L.Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            precision=options.precision,
            max_epochs=1,
            logger=CSVLogger(folder, name="logs") if watched else False,
            log_every_n_steps=50,
            enable_progress_bar=watched,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[twins, *([StageProgress()] if watched else [])],
        )
        trainer.fit(module, train_dataloaders=loader)
    first = -(-WARM // options.block)
    turns = list(zip(*loader.seconds.values(), strict=False))[first:]  # no batch is asked for after the trainer's last
    ours, other = ([turn[i] for turn in turns] for i in range(2))
    ratios = [a / b for a, b in turns]
    added = [a - b for a, b in turns]
    return {
        "step": str(shape),
        "module": "ours" if kind is DistillationModule else "the loop's own step",
        "logger and bar": "on" if watched else "off",
        "by hand, ms": statistics.median(other) * 1e3,
        "trainer, ms": statistics.median(ours) * 1e3,
        **{f"ratio{name}": value for name, value in zip(("", ", p25", ", p75"), middle(ratios), strict=True)},
        **{f"added, ms{name}": value * 1e3 for name, value in zip(("", ", p25", ", p75"), middle(added), strict=True)},
        **{f"kernels {arm}, ms": seconds * 1e3 for arm, seconds in loader.kernels.items()},
        "M trained": sum(p.numel() for p in module.model.parameters() if p.requires_grad) / 1e6,
        "weights apart": f"{twins.apart:.1e}",
    }


def middle(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return median, low, high


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    arguments.add_argument("--compile", action="store_true", help="compile student and teacher, on both sides")
    arguments.add_argument("--shapes", nargs="*", choices=list(SHAPES), help="of models and batches")
    arguments.add_argument("--block", type=int, help="steps in a turn; 1 on the CPU, 10 on a GPU unless given")
    help_ = "seconds, or seconds of the processor in all threads, which are of use beside other work"
    arguments.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=help_)
    arguments.add_argument("--steps", type=int, help="of each, in each row of the table")
    options = arguments.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    options.block = options.block or (10 if on_gpu else 1)
    names = options.shapes or (["small", "base"] if on_gpu else ["tiny", "small"])
    steps = options.steps or (60 if options.quick else 1000 if on_gpu else 300)
    steps -= steps % (2 * options.block)  # the trainer has the last turn: both have seen all batches
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for kind, watched in ((DistillationModule, False), (DistillationModule, True), (TrainerAlone, False)):
                print(f"{name}, {kind.__name__}, logger and bar {'on' if watched else 'off'}", file=sys.stderr)
                rows.append(measure(SHAPES[name], kind, watched, options, steps, Path(folder)))
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    chosen = {
        "precision": options.precision,
        "compiled": options.compile,
        "block": options.block,
        "clock": options.clock,
        "steps": steps,
    }
    report("A step", rows, setting(device=device, **chosen), options.json)


if __name__ == "__main__":
    main()
