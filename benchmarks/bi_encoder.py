r"""A bi-encoder taught by a cross-encoder, and what it saves in a search: STS-B.

Accuracy: the students of configs/stsb/bi_encoder.yaml with six layers and with three, the same with the people's
scores instead of the teacher's, and that of configs/stsb/embeddings.yaml. The scores are Spearman's correlation of the
last weights, on held-out rows and on the validation split; nothing is chosen by either. A run that has its report under
--out is not run again.

Time: to answer how similar any two of 1,000 sentences are, the bi-encoder encodes each of them and multiplies the
vectors, the cross-encoder reads each of the 499,500 pairs. The cross-encoder is timed on a sample of the pairs, drawn
at random, and its time for all of them is that of the sample times their number. Both start from texts, sort them by
length, and read batches of 32. They take turns; the ratio is the median of the rounds. The times are written beside the
scores, as `<name>_times.json`.

Needs the teacher of configs/stsb/teacher.yaml. From local folders:

    python benchmarks/bi_encoder.py --data ../shared/data/glue --encoder ../shared/models/all-MiniLM-L6-v2 \
        --json benchmarks/results/bi_encoder.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lightning_kd  # noqa: F401  # transformers then opens a bi-encoder
from _common import fit, parser, report, setting
from lightning_kd.datamodules import GLUEDataModule

NUM_SENTENCES, BATCH = 1000, 32


def spearman(folder: Path) -> dict[str, dict[str, float]]:
    """By the model's name in a run's report, its Spearman by split."""
    rows = json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    return {row["name"]: {split: m["spearman"]["value"] for split, m in row["metrics"].items()} for row in rows}


def accuracy(options: Any, out: Path) -> list[dict[str, Any]]:
    """Train every student that has no report yet."""
    teacher = str(options.teacher.resolve())
    start: dict[str, object] = {"model.student.path": options.encoder}
    alone = {"model.teachers": "{}", "model.losses": "{}", "model.hard_label_weight": 1.0}
    taught = {"model.teachers.teacher.path": teacher}
    six = str((out / "six" / "student").resolve())
    embeddings = {"model.student.path": six, "model.teachers.teacher.path": six}
    arms: list[tuple[str, str, str, dict[str, object]]] = [
        ("six", "bi_encoder", "bi-encoder, 6 layers", start | taught),
        ("three", "bi_encoder", "bi-encoder, 3 layers", start | taught | {"model.student.keep_layers": "[0, 2, 4]"}),
        ("six_alone", "bi_encoder", "bi-encoder, 6 layers, no teacher", start | alone),
        ("embeddings", "embeddings", "bi-encoder, 3 layers, by embeddings", embeddings),
    ]
    common: dict[str, object] = {"data.path": options.data} if options.data else {}
    common |= {"trainer.max_epochs": options.epochs, "trainer.num_sanity_val_steps": 0}
    if options.quick:
        common |= {"trainer.max_steps": 2, "trainer.limit_val_batches": 1}
    found: dict[str, dict[str, float]] = {}
    for name, config, title, more in arms:
        folder = out / name
        cached = {"class_path": "lightning_kd.callbacks.TeacherCache", "init_args": {"path": str(out / "cache")}}
        callbacks = [cached] if "model.losses" not in more and config == "bi_encoder" else []
        fit(f"configs/stsb/{config}.yaml", folder, callbacks if not options.quick else (), **common, **more)
        scores = spearman(folder)
        if "teacher" in scores and name == "six":
            found["cross-encoder, the teacher"] = scores["teacher"]
        found[title] = scores["student"] if "student" in scores else scores["model"]
        print(title, found[title], file=sys.stderr, flush=True)
    whole = found["cross-encoder, the teacher"]
    return [
        {"model": title}
        | {split: values[split] for split in ("test", "validation")}
        | {f"{split}, kept": values[split] / whole[split] for split in ("test", "validation")}
        for title, values in found.items()
    ]


def sentences(options: Any, tokenizer: str) -> list[str]:
    """Different sentences of STS-B's validation split and, if these are too few, of its training split."""
    data = GLUEDataModule("stsb", **({"path": options.data} if options.data else {}), tokenizer=tokenizer)
    found: dict[str, None] = {}
    for split in ("validation", "train"):
        rows = data.load_split(split)
        assert rows is not None  # the set has both
        found |= dict.fromkeys([*rows["sentence1"], *rows["sentence2"]])
    return list(found)[: 100 if options.quick else NUM_SENTENCES]


def in_batches(model: Any, tokenizer: Any, texts: Sequence[Any], read: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """What a model gives for texts or pairs of texts, in their order."""
    order = sorted(range(len(texts)), key=lambda i: len("".join(texts[i])))
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(order), BATCH):
            batch = tokenizer([texts[i] for i in order[begin : begin + BATCH]], padding=True, return_tensors="pt")
            parts.append(read(model(**batch)))
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def speed(options: Any, out: Path) -> list[dict[str, Any]]:
    """Seconds of both to compare all pairs of the sentences."""
    folders = {"cross": options.teacher, "bi": out / "six" / "student"}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
    models = {n: AutoModelForSequenceClassification.from_pretrained(f).eval() for n, f in folders.items()}
    texts = sentences(options, str(options.teacher))
    pairs = len(texts) * (len(texts) - 1) // 2
    draw = np.random.default_rng(0)
    sample = [
        tuple(texts[i] for i in draw.choice(len(texts), 2, replace=False)) for _ in range(64 if options.quick else 1024)
    ]

    def bi() -> None:
        vectors = in_batches(models["bi"].encoder, tokenizers["bi"], texts, lambda output: output.pooler_output)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        vectors @ vectors.T

    def cross() -> None:
        in_batches(models["cross"], tokenizers["cross"], sample, lambda output: output.logits)

    seconds: dict[str, list[float]] = {"bi": [], "cross": []}
    for turn in range(2 if options.quick else 4):
        for name, work in (("bi", bi), ("cross", cross)):
            begin = time.perf_counter()
            work()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    ratios = [c * pairs / len(sample) / b for b, c in zip(seconds["bi"], seconds["cross"], strict=True)]
    return [
        {
            "sentences": len(texts),
            "pairs": pairs,
            "pairs timed": len(sample),
            "bi-encoder, s": statistics.median(seconds["bi"]),
            "cross-encoder, s": statistics.median(seconds["cross"]) * pairs / len(sample),
            "times faster": statistics.median(ratios),
        }
    ]


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--data", help="local folder of GLUE; the Hub unless given")
    arguments.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="name or folder")
    arguments.add_argument("--teacher", type=Path, default=Path("runs/stsb/teacher/student"), help="its folder")
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmarks/bi_encoder"), help="folder of the runs")
    arguments.add_argument("--epochs", type=int, default=5, help="of every student")
    arguments.add_argument("--no-times", action="store_true", help="leave the times out")
    options = arguments.parse_args()
    if not (options.teacher / "config.json").is_file():
        sys.exit(f"There is no teacher in {options.teacher}: run configs/stsb/teacher.yaml, or set --teacher.")
    torch.set_num_threads(options.threads)
    out = options.out.resolve() / ("quick" if options.quick else "full")
    about = setting(seed=0, epochs=options.epochs, score="spearman")
    report("STS-B by a bi-encoder", accuracy(options, out), about, options.json)
    if not options.no_times:
        path = options.json and options.json.with_name(f"{options.json.stem}_times.json")
        report("All pairs of the sentences", speed(options, out), about, path)


if __name__ == "__main__":
    main()
