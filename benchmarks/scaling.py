r"""From a thousand to a million rows: how long a start takes, the second one too, and what it takes of the memory.

Writes sentences of 3 to 40 words as a Parquet file in the Hub's layout, starts the data module on it in a process of
its own, goes through the first 200 batches, and does so again in another process, which finds what the first has kept.
`start` is `setup`; `anonymous` is what the process has allocated itself at its peak (RssAnon) above what it had before
`setup`, and `mapped` the pages of files that it has looked at (RssFile), which the system takes back when it needs
them. The slope is that of the first starts, by least squares over the sizes from 10,000 rows on.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

from _common import ROOT, parser, report, setting

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def write(folder: Path, rows: int) -> None:
    """A data set in the Hub's layout, with its own 1,000 rows to validate on, and a tokenizer."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Value
    from transformers import BertTokenizerFast

    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghijklmnop"), 5)) for _ in range(20_000)])
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    (folder / "sst2").mkdir(parents=True)
    for split, count in {"train": rows, "validation": 1_000}.items():
        lengths = generator.integers(3, 41, count)
        chosen = iter(words[generator.zipf(1.3, lengths.sum()) % len(words)].tolist())
        texts = [" ".join(islice(chosen, length)) for length in lengths.tolist()]
        labels = generator.integers(0, 2, count).tolist()
        made = Dataset.from_dict({"sentence": texts, "label": labels}, features=features)
        made.to_parquet(folder / "sst2" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"\n  - split: {s}\n    path: sst2/{s}-*" for s in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: sst2\n  data_files:{files}\n---\n")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *dict.fromkeys(words.tolist())])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "tokenizer")


def resident(kind: str) -> int:
    """Bytes of this process's memory of a kind: RssAnon or RssFile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


class Peak:
    """The most that was allocated, looked at every 10 ms."""

    def __init__(self) -> None:
        self.bytes = resident("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, resident("RssAnon"))

    def stop(self) -> int:
        """The peak in bytes."""
        self._done.set()
        self._thread.join()
        return max(self.bytes, resident("RssAnon"))


def start(folder: Path) -> dict[str, float]:
    """One start, in this process."""
    from datasets.utils.logging import disable_progress_bar

    from lightning_kd.datamodules import GLUEDataModule

    disable_progress_bar()
    data = GLUEDataModule("sst2", path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=128)
    began = time.perf_counter()
    data.prepare_data()  # the Arrow files, and what has to be imported for them
    arrow = time.perf_counter() - began
    before, mapped = resident("RssAnon"), resident("RssFile")
    peak = Peak()
    began = time.perf_counter()
    data.setup("fit")
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    tokens = sum(batch["attention_mask"].sum().item() for batch in islice(data.train_dataloader(), 200))
    loading = time.perf_counter() - began
    return {
        "arrow": arrow,
        "start": seconds,
        "first batches": loading,
        "tokens": tokens,
        "anonymous": peak.stop() - before,
        "mapped": resident("RssFile") - mapped,
    }


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--start", type=Path, help="start on this data set and print the figures as JSON")
    arguments.add_argument("--sizes", type=int, nargs="*", help="rows")
    options = arguments.parse_args()
    if options.start:
        print(json.dumps(start(options.start)))
        return
    sizes = options.sizes or (SIZES[:2] if options.quick else SIZES)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        environment = os.environ | {"HF_DATASETS_CACHE": f"{name}/cache", "RAYON_NUM_THREADS": str(options.threads)}
        environment |= {"HF_HUB_OFFLINE": "1"}
        for size in sizes:
            print(f"{size:,} rows", file=sys.stderr)
            write(Path(name) / str(size), size)
            for run in ("first", "second"):
                command = [sys.executable, __file__, "--start", f"{name}/{size}"]
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append(
                    {
                        "rows": size,
                        "start": run,
                        "Arrow, s": found["arrow"],
                        "setup, s": found["start"],
                        "rows/s": round(size / found["start"]),
                        "200 batches, s": found["first batches"],
                        "anonymous, MB": found["anonymous"] / 1e6,
                        "mapped, MB": found["mapped"] / 1e6,
                    }
                )
    first = [(row["rows"], row["setup, s"]) for row in rows if row["start"] == "first" and row["rows"] >= 10_000]
    about = {}
    if len(first) > 1:
        line = statistics.linear_regression(*zip(*first, strict=True))
        about = {"rows/s, slope": 1 / line.slope, "seconds at no rows": line.intercept}
        print(f"a first start: {line.intercept:.2f} s and {1e6 * line.slope:.2f} s for each million rows")
    report("Rows", rows, setting(**about), options.json)


if __name__ == "__main__":
    main()
