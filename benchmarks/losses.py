"""What each loss adds to a training step: time as a ratio to soft targets alone, and peak memory.

A 12-layer teacher and a 3-layer student, both 384 wide with 12 heads and random weights, on batches of 32 x 64 tokens.
A step is both forward passes, the backward pass and AdamW. Steps with and without the loss alternate in one process,
in random order within each pair; the ratio is the median over the pairs. The peak memory of a step is that of a
process of its own, less that of the same process before its first step.

    python benchmarks/losses.py --json benchmarks/results/losses.json
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from _common import parser, report, setting
from lightning_kd import losses as k
from lightning_kd.features import FeatureCapture
from lightning_kd.losses import DistillationLoss, FeatureMatch, LayerPairMatch, SoftTargetKL
from lightning_kd.losses.minilm import relation_heads
from lightning_kd.optim import AdamW
from lightning_kd.outputs import LossInputs, Needs

LAST = [FeatureMatch(-1, -1)]
TWO_LAYERS = [LayerPairMatch((0, -1), (0, -1))]


class RelationFloor(k.MiniLMv2):
    """The least that MiniLMv2 has to compute: its products and softmaxes and one sum, without masks."""

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        total = torch.zeros(())
        for kind in self.reads:
            scores = []
            for features, layer in ((inputs.student, match.student_layer), (inputs.teacher, match.teacher_layer)):
                vectors = relation_heads(getattr(features, kind)[layer], self.num_relation_heads)
                scores.append(vectors @ vectors.transpose(-1, -2))
            total = total - (F.softmax(scores[1], -1) * F.log_softmax(scores[0], -1)).mean()
        return total


#: One pair of layers each, where the loss takes pairs.
LOSSES: dict[str, Callable[[], DistillationLoss]] = {
    "LogitMSE": k.LogitMSE,
    "LogitCorrelation": k.LogitCorrelation,
    "ReverseKL": k.ReverseKL,
    "JensenShannon": k.JensenShannon,
    "SkewedKL": k.SkewedKL,
    "SkewedReverseKL": k.SkewedReverseKL,
    "SoftTargetBinaryKL": k.SoftTargetBinaryKL,
    "SoftTargetCrossEntropy": k.SoftTargetCrossEntropy,
    "DecoupledKD": k.DecoupledKD,
    "DIST": k.DIST,
    "LogitStandardizationKL": k.LogitStandardizationKL,
    "HiddenStateMSE": lambda: k.HiddenStateMSE(LAST),
    "HiddenStateMSE, linear": lambda: k.HiddenStateMSE(LAST, projection="linear"),
    "HiddenStateCosine": lambda: k.HiddenStateCosine(LAST),
    "PatientKD": lambda: k.PatientKD(LAST),
    "NST": lambda: k.NST(TWO_LAYERS),
    "FSP": lambda: k.FSP(TWO_LAYERS),
    "LinearCKA": lambda: k.LinearCKA(LAST),
    "RKDDistance": lambda: k.RKDDistance(LAST),
    "RKDAngle": lambda: k.RKDAngle(LAST),
    "SimilarityPreserving": lambda: k.SimilarityPreserving(LAST),
    "PKT": lambda: k.PKT(LAST),
    "CRD": lambda: k.CRD(LAST),
    "BERTEMD": k.BERTEMD,
    "AttentionMSE": lambda: k.AttentionMSE(LAST),
    "AttentionCrossEntropy": lambda: k.AttentionCrossEntropy(LAST),
    "AttentionKL": lambda: k.AttentionKL(LAST),
    "MiniLM": k.MiniLM,
    "MiniLMv2": k.MiniLMv2,
    "MiniLMv2, 12 relation heads": lambda: k.MiniLMv2(num_relation_heads=12),
    "MiniLMv2, floor": RelationFloor,
}


@dataclass
class Step:
    """One training step: both passes, the losses, the backward pass, the optimizer."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    batch: dict[str, Tensor]
    loss: DistillationLoss | None

    def __post_init__(self) -> None:
        parameters = list(self.student.parameters())
        needs = {"student": Needs(), "teacher": Needs()}
        if self.loss is not None:
            self.loss.build(self.student.config, self.teacher.config)
            parameters += list(self.loss.parameters())
            needs = {"student": self.loss.needs("student"), "teacher": self.loss.needs("teacher")}
        self.soft = SoftTargetKL()
        self.read_student = FeatureCapture(self.student, needs["student"], lambda output: {"logits": output.logits})
        self.read_teacher = FeatureCapture(self.teacher, needs["teacher"], lambda output: {"logits": output.logits})
        self.optimizer = AdamW(parameters)

    def __call__(self) -> float:
        """Seconds that the step took."""
        inputs = {name: value for name, value in self.batch.items() if name != "labels"}
        start = time.perf_counter()
        with torch.no_grad():
            teacher = self.read_teacher(inputs)
        student = self.read_student(inputs)
        given = LossInputs(
            student,
            teacher,
            token_mask=inputs["attention_mask"].bool(),
            logit_masks={"logits": torch.ones(len(self.batch["labels"]), dtype=torch.bool)},
            temperature=4.0,
            hard_labels={"logits": self.batch["labels"]},
        )
        total = self.soft(given)
        if self.loss is not None:
            total = total + self.loss(given)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def remove(self) -> None:
        """Leave the models as they were."""
        self.read_student.remove()
        self.read_teacher.remove()


def models(labels: int) -> tuple[PreTrainedModel, PreTrainedModel, dict[str, Tensor]]:
    """Student, teacher and a batch of 32 texts of 33 to 64 tokens."""
    torch.manual_seed(0)
    made = []
    for layers in (3, 12):
        config = BertConfig(
            hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536, num_labels=labels
        )
        made.append(AutoModelForSequenceClassification.from_config(config))
    lengths = torch.randint(33, 65, (32,))
    lengths[0] = 64
    batch = {
        "input_ids": torch.randint(1000, 30000, (32, 64)),
        "attention_mask": (torch.arange(64) < lengths[:, None]).long(),
        "labels": torch.randint(0, labels, (32,)),
    }
    return made[0].train(), made[1].eval().requires_grad_(False), batch


def make(name: str) -> DistillationLoss | None:
    """The loss of this name; none for soft targets alone."""
    return None if name == "SoftTargetKL" else LOSSES[name]()


def peak_memory(name: str) -> float:
    """MiB that the first three steps of a fresh process add."""
    step = Step(*models(3), make(name))
    before = resident_peak()
    for _ in range(3):
        step()
    return (resident_peak() - before) / 1024


def resident_peak() -> int:
    """KiB; not ``getrusage``, whose figure a process takes over from the one that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="*", default=list(LOSSES), help="names of losses")
    arguments.add_argument("--peak-memory-of", help="print the peak memory of one loss, and nothing else")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_memory_of:
        print(peak_memory(options.peak_memory_of))
        return
    pairs, warm_up = (2, 1) if options.quick else (9, 1)
    names = options.only[:4] if options.quick else options.only
    order = random.Random(0)
    student, teacher, batch = models(3)
    rows = []
    for name in ["SoftTargetKL", *names]:
        row: dict[str, object] = {"loss": name, "step time, ratio": 1.0}
        if name != "SoftTargetKL":
            steps = [Step(student, teacher, batch, None), Step(student, teacher, batch, make(name))]
            seconds: list[list[float]] = [[], []]
            for _ in range(warm_up + pairs):
                for i in order.sample([0, 1], 2):
                    seconds[i].append(steps[i]())
            for step in steps:
                step.remove()
            ratios = [b / a for a, b in list(zip(*seconds, strict=True))[warm_up:]]
            row["step time, ratio"] = statistics.median(ratios)
        command = [sys.executable, __file__, "--threads", str(options.threads), "--peak-memory-of", name]
        row["peak memory, MiB"] = round(
            float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        )
        rows.append(row)
        print(*row.values(), file=sys.stderr)
    about = setting(pairs=pairs, batch="32 x 64", teacher="12 x 384", student="3 x 384", labels=3)
    report("A step with soft targets and one more loss, against soft targets alone", rows, about, options.json)


if __name__ == "__main__":
    main()
