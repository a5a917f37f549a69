r"""An epoch of SST-2 distillation: ours, a loop by hand that pads every row to 128, and TextBrewer.

All start from the same student (three of the teacher's six layers), see the same rows once, in batches of 32, and have
the same loss (soft targets at temperature 4), optimizer, schedule and clipping. Each run is a process of its own, and
rounds differ by the seed of rows and order. The seconds are from the texts to the trained student: tokenizing, the
teacher and the cache are in them; ours have the reading of the data set and of both models in them, too, which those of
the others have not. Accuracies are those of the last weights, on the held-out rows and on the validation split.

- `by hand, padded to 128`: tokenized to 128 tokens, torch's default collator, a live teacher, a loop in plain torch.
- `TextBrewer, padded to 128`: its BasicDistiller on the same batches, as its examples pad them.
- `TextBrewer, padded to the batch`: the same on random batches that are padded to their longest row.
- `ours, live teacher`, `ours, cache computed`: the data module's batches; the cache is made in that run.
- `ours, cache found`: the logits are there already, as in every later epoch and run.

TextBrewer is installed from the package registry into an environment of its own, on top of this one, on first use.

    python benchmarks/epoch.py --teacher runs/sst2/teacher/student --data ../shared/data/glue \
        --json benchmarks/results/epoch.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from _common import ROOT, parser, quiet, report, setting
from lightning_kd import DistillationModule, ModelSource
from lightning_kd.callbacks import TeacherCache
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.losses import SoftTargetKL
from lightning_kd.models import load_config, load_model
from lightning_kd.optim import AdamW

BY_HAND = "by hand, padded to 128"
PEER = "TextBrewer, padded to 128"
PEER_SHORT = "TextBrewer, padded to the batch"
OURS = ("ours, live teacher", "ours, cache computed", "ours, cache found")
ARMS = (BY_HAND, PEER, PEER_SHORT, *OURS)
TEMPERATURE, RATE, WARMUP, CLIP, BATCH = 4.0, 1e-4, 0.1, 1.0, 32
PACKAGES = ("textbrewer==0.2.1.post1", "tensorboardX==2.6.5")


def peer_python(folder: Path) -> Path:
    """The interpreter of TextBrewer's environment, which sees our packages behind its own."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
        (folder / "ready").touch()
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # another environment may call next time
    return python


def data_of(options: Any) -> GLUEDataModule:
    """The rows of this seed."""
    return GLUEDataModule(
        "sst2",
        path=str(options.data) if options.data else "nyu-mll/glue",
        tokenizer=str(options.teacher),
        holdout_size=6000,
        max_train_rows=options.rows or None,
        batch_size=BATCH,
        seed=options.seed,
    )


class Rows(Dataset[dict[str, Tensor]]):
    """What TextBrewer takes: dictionaries."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: values[row] for name, values in self.tensors.items()}


def shortened(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch without the columns in which every row has padding."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: values[:, :longest] if values.dim() > 1 else values for name, values in batch.items()}


def optimizer_of(student: PreTrainedModel, steps: int) -> tuple[Any, dict[str, int]]:
    """The optimizer of all, and what its schedule is made from."""
    matrices = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in student.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.01, fused=True)
    return optimizer, {"num_warmup_steps": round(WARMUP * steps), "num_training_steps": steps}


def by_hand(student: PreTrainedModel, teacher: PreTrainedModel, rows: dict[str, Tensor], options: Any) -> None:
    """The loop without a library."""
    names = [name for name in rows if name != "labels"]
    loader = DataLoader(TensorDataset(*(rows[name] for name in names)), BATCH, shuffle=True)
    optimizer, schedule = optimizer_of(student, len(loader))
    scheduler = get_linear_schedule_with_warmup(optimizer, **schedule)
    student.train()
    teacher.eval()
    for values in loader:
        inputs = dict(zip(names, values, strict=True))
        with torch.no_grad():
            taught = teacher(**inputs).logits
        logits = student(**inputs).logits
        loss = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(logits / TEMPERATURE, -1),
            F.log_softmax(taught / TEMPERATURE, -1),
            log_target=True,
            reduction="batchmean",
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        scheduler.step()


def by_peer(student: PreTrainedModel, teacher: PreTrainedModel, rows: dict[str, Tensor], options: Any) -> None:
    """TextBrewer."""
    from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig

    collate = shortened if options.arm == PEER_SHORT else None
    loader = DataLoader(Rows(rows), BATCH, shuffle=True, collate_fn=collate)
    optimizer, schedule = optimizer_of(student, len(loader))
    training = TrainingConfig(device="cpu", output_dir=str(options.folder / "textbrewer"))
    # it has no T ** 2 of its own
    distillation = DistillationConfig(temperature=TEMPERATURE, kd_loss_type="ce", kd_loss_weight=TEMPERATURE**2)

    def adaptor(batch: dict[str, Tensor], output: Any) -> dict[str, Any]:
        return {"logits": (output.logits,)}

    distiller = BasicDistiller(training, distillation, teacher, student, adaptor, adaptor)
    with distiller:
        distiller.train(
            optimizer,
            loader,
            num_epochs=1,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args=schedule,
            max_grad_norm=CLIP,
        )


def train_peer(options: Any, train: Callable[..., None], data: GLUEDataModule) -> tuple[PreTrainedModel, float]:
    """One of the others, from the texts on."""
    data.setup("fit")
    texts = [text for (text,) in data.texts("train")]
    labels = torch.from_numpy(data.token_rows("train").labels)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    student, teacher = (
        AutoModelForSequenceClassification.from_pretrained(path) for path in (options.folder / "start", options.teacher)
    )
    began = time.perf_counter()
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=128, return_tensors="pt")
    rows = dict(encoded) if train is by_hand else {**encoded, "labels": labels}
    if train is by_peer:
        del rows["labels"]  # soft targets alone: a model that gets labels computes another loss
    train(student, teacher, rows, options)
    return student, time.perf_counter() - began


def train_ours(options: Any, data: GLUEDataModule) -> tuple[PreTrainedModel, float]:
    """The library."""
    module = DistillationModule(
        student=ModelSource(str(options.folder / "start")),
        teachers={"teacher": ModelSource(str(options.teacher))},
        losses={"soft": SoftTargetKL()},
        hard_label_weight=0.0,
        temperature=TEMPERATURE,
        warmup=WARMUP,
        optimizer=lambda groups: AdamW(groups, lr=RATE),
    )
    cached = options.arm != OURS[0]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=CLIP,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.folder / "ours",
        callbacks=[TeacherCache(path=str(options.folder / f"cache_{options.seed}"))] if cached else [],
    )
    began = time.perf_counter()
    trainer.fit(module, datamodule=data)
    return module.model, time.perf_counter() - began


def accuracy(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> float:
    """Share of right answers."""
    model.eval()
    right = count = 0
    with torch.no_grad():
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
            right += int((model(**inputs).logits.argmax(-1) == batch["labels"]).sum())
            count += len(batch["labels"])
    return right / count


def run(options: Any) -> dict[str, Any]:
    """Train in one way, in this process."""
    import datasets

    quiet()
    datasets.disable_progress_bars()
    datasets.disable_caching()  # of tokens: each run is to encode its rows
    torch.set_num_threads(options.threads)
    L.seed_everything(options.seed, verbose=False)
    data = data_of(options)
    if options.arm in OURS:
        student, seconds = train_ours(options, data)
    else:
        student, seconds = train_peer(options, by_hand if options.arm == BY_HAND else by_peer, data)
    some = 4 if options.quick else None
    scores = {
        split: accuracy(student, list(islice(data.evaluation_batches(split), some))) for split in ("test", "validation")
    }
    return {"seconds": seconds, "rows": data.sizes["train"], **scores}


def rounds(options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All ways in turn, once a seed."""
    start = options.folder / "start"
    source = ModelSource(str(options.teacher), keep_layers=[0, 2, 4])
    load_model(source, AutoModelForSequenceClassification, load_config(source)).save_pretrained(start)
    peer = peer_python(options.peer)
    arms = [arm for arm in ARMS if arm in (options.only or ARMS)]
    for seed in range(options.rounds):
        turned = arms[seed % len(arms) :] + arms[: seed % len(arms)]
        for arm in sorted(turned, key=lambda each: each == OURS[2]):  # what is found has been computed before
            print(f"round {seed + 1}: {arm}", file=sys.stderr)
            python = peer if arm in (PEER, PEER_SHORT) else Path(sys.executable)
            command = [str(python), __file__, "--arm", arm, "--seed", str(seed), "--threads", str(options.threads)]
            command += ["--teacher", str(options.teacher), "--rows", str(options.rows), "--out", str(options.folder)]
            command += (["--data", str(options.data)] if options.data else []) + ["--quick"] * options.quick
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{arm}: {done.stderr}")
            yield arm, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--teacher", type=Path, required=True, help="folder of the trained SST-2 teacher")
    arguments.add_argument("--data", type=Path, help="folder with sst2/; the Hub unless given")
    arguments.add_argument("--rows", type=int, default=6400, help="training rows, drawn at random; 0: all, an epoch")
    arguments.add_argument("--rounds", type=int, default=3, help="seeds")
    arguments.add_argument("--only", nargs="*", choices=ARMS, help="these alone")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/epoch"), help="of what the runs write")
    arguments.add_argument("--peer", type=Path, default=Path("runs/benchmarks/textbrewer"), help="its environment")
    arguments.add_argument("--arm", choices=ARMS, help="train in this one way and print the figures as JSON")
    arguments.add_argument("--seed", type=int, default=0, help="with --arm")
    options = arguments.parse_args()
    options.teacher, options.folder, options.peer = (p.resolve() for p in (options.teacher, options.out, options.peer))
    options.data = options.data and options.data.resolve()
    if options.arm:
        print(json.dumps(run(options)))
        return
    if options.quick:
        options.rows, options.rounds = 32, 1
    options.folder = options.folder / time.strftime("%Y%m%d-%H%M%S")  # no cache of an earlier call
    found: dict[str, list[dict[str, Any]]] = {}
    for arm, each in rounds(options):
        found.setdefault(arm, []).append(each)
    rows = []
    for arm in (arm for arm in ARMS if arm in found):
        each = found[arm]
        seconds = [one["seconds"] for one in each]
        row: dict[str, Any] = {
            "": arm,
            "s": statistics.median(seconds),
            "lowest": min(seconds),
            "highest": max(seconds),
            "rows/s": statistics.median(one["rows"] / one["seconds"] for one in each),
        }
        for title, other in (("x by hand", BY_HAND), ("x TextBrewer", PEER), ("x TextBrewer, short", PEER_SHORT)):
            if other in found:
                pairs = zip(found[other], each, strict=True)
                row[title] = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
        for split in ("test", "validation"):
            row[split] = statistics.mean(one[split] for one in each)
        rows.append(row)
    about = setting(rows=found[next(iter(found))][0]["rows"], rounds=options.rounds, peer=PACKAGES[0], runs=found)
    report("An epoch of SST-2", rows, about, options.json)


if __name__ == "__main__":
    main()
