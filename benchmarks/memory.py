r"""The peak memory of a whole run with no teacher, one, two, and two whose logits are cached.

Each run is a process of its own, and its peak what the kernel has counted for it (VmHWM), imports and all. A teacher
has 12 layers of 512, the student 3; batches of 32 short texts. With the cache the first run computes the logits before
its first step; the second finds them and does not load the teachers.

    python benchmarks/memory.py --json benchmarks/results/memory.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import ROOT, parser, report, setting

#: By the name of a run: its teachers, and whether their logits are cached.
RUNS = {
    "no teacher": (0, False),
    "1 teacher": (1, False),
    "2 teachers": (2, False),
    "2 teachers, cache computed": (2, True),
    "2 teachers, cache found": (2, True),
}


def peak() -> int:
    """The most that this process has held so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def train(name: str, folder: Path, quick: bool, threads: int) -> dict[str, Any]:
    """One run in this process."""
    import lightning as L
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig

    from _common import quiet
    from lightning_kd import DistillationModule, ModelSource
    from lightning_kd.callbacks import TeacherCache
    from lightning_kd.datamodules import SyntheticDataModule
    from lightning_kd.losses import SoftTargetKL

    quiet()
    torch.set_num_threads(threads)
    L.seed_everything(0, verbose=False)
    data = SyntheticDataModule(num_train=64 if quick else 1024, num_validation=64, num_test=64)
    data.setup("fit")
    assert data.tokenizer is not None  # set in setup
    shape = {"vocab_size": len(data.tokenizer), "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    if name == "write":  # the teachers, in a process that is not measured
        config = BertConfig(num_hidden_layers=12, **shape)
        config.id2label = dict(enumerate(data.label_names or []))
        for number in range(2):
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / str(number))
            data.tokenizer.save_pretrained(folder / str(number))
        return {}
    count, is_cached = RUNS[name]
    imported = peak()
    module = DistillationModule(
        student=ModelSource(from_scratch=True, config={"model_type": "bert", "num_hidden_layers": 3, **shape}),
        teachers={f"teacher_{number}": ModelSource(str(folder / str(number))) for number in range(count)},
        losses={"soft": SoftTargetKL()} if count else {},
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[TeacherCache()] if is_cached else [],
    )
    trainer.fit(module, datamodule=data)
    return {"peak": peak(), "imported": imported}


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--run", choices=["write", *RUNS], help="do this one run and print its figures as JSON")
    arguments.add_argument("--folder", type=Path, help="of the teachers and their cache")
    options = arguments.parse_args()
    if options.run:
        print(json.dumps(train(options.run, options.folder, options.quick, options.threads)))
        return
    found: dict[str, list[dict[str, int]]] = {name: [] for name in RUNS}
    for number in range(1 if options.quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            for name in ["write", *RUNS]:
                print(f"round {number + 1}: {name}", file=sys.stderr)
                command = [sys.executable, __file__, "--run", name, "--folder", folder]
                command += ["--threads", str(options.threads), *["--quick"] * options.quick]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                if name != "write":
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
    alone = statistics.median(run["peak"] for run in found["no teacher"])
    rows = []
    for name, runs in found.items():
        peaks = [run["peak"] for run in runs]
        median = statistics.median(peaks)
        rows.append(
            {
                "run": name,
                "peak, MB": median / 1e6,
                "lowest": min(peaks) / 1e6,
                "highest": max(peaks) / 1e6,
                "after the imports, MB": statistics.median(run["imported"] for run in runs) / 1e6,
                "over no teacher, MB": (median - alone) / 1e6,
            }
        )
    report("Peak memory", rows, setting(rounds=len(found["no teacher"])), options.json)


if __name__ == "__main__":
    main()
