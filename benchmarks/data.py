r"""What the data modules deliver: tokens and rows a second, and how much of them is padding.

The same rows of a length distribution like that of SST-2 or of longer texts, collated in batches of 32 in four ways, in
turn, in one process: by our sampler and collator, by our collator on random batches, by transformers'
`DataCollatorWithPadding` on random batches of `datasets` rows, and with every row padded to 128 by torch's default
collator. Nothing else runs: this is what the loader could feed, beside what the step takes (step.py).

    python benchmarks/data.py --json benchmarks/results/data.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertTokenizerFast, DataCollatorWithPadding

from _common import parser, report, setting
from lightning_kd.datamodules.batching import BucketBatchSampler, Collator, TokenizedRows

BATCH = 32
LONGEST = 128
#: By name: median of the length in tokens, and its spread, of a log-normal distribution cut at 3 and 128.
LENGTHS = {"short texts": (10, 0.65), "sentences": (32, 0.5)}


def rows_of(count: int, median: float, spread: float) -> TokenizedRows:
    """Rows of random tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(median), spread, count).round().clip(3, LONGEST).astype(np.int64)
    ids = generator.integers(1000, 30_000, lengths.sum()).astype(np.int32)
    tokens = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenizedRows(tokens, offsets, np.arange(count), labels=generator.integers(0, 2, count))


def ways(rows: TokenizedRows) -> dict[str, Callable[[int], Iterator[dict[str, Any]]]]:
    """By name: an epoch of batches."""
    collate = Collator(rows, 0)
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    split = {name: np.split(values, rows.offsets[1:-1]) for name, values in rows.tokens.items()}
    split["attention_mask"] = [np.ones_like(row) for row in split["input_ids"]]
    table = Dataset.from_dict({**split, "labels": rows.labels})
    padded = collate(list(range(len(rows))))
    width = LONGEST - padded["input_ids"].shape[1]
    names = [name for name in padded if name not in ("index", "labels")]
    tensors = [padded[name].new_zeros(len(rows), LONGEST) for name in names]
    for tensor, name in zip(tensors, names, strict=True):
        tensor[:, : LONGEST - width] = padded[name]
    whole = TensorDataset(*tensors, padded["labels"])

    def bucketed(epoch: int) -> Iterator[dict[str, Any]]:
        sampler = BucketBatchSampler(rows.lengths, BATCH, shuffle=True)
        sampler.set_epoch(epoch)
        return iter(DataLoader(rows, batch_size=None, sampler=sampler, collate_fn=collate))

    def random(epoch: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng(epoch).permutation(len(rows)).tolist()
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        return iter(DataLoader(rows, batch_size=None, sampler=batches, collate_fn=collate))

    def transformers(epoch: int) -> Iterator[dict[str, Any]]:
        return iter(DataLoader(table, BATCH, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer)))

    def default(epoch: int) -> Iterator[dict[str, Any]]:
        for values in DataLoader(whole, BATCH, shuffle=True):
            yield dict(zip([*names, "labels"], values, strict=True))

    return {
        "bucketed, ours": bucketed,
        "random, ours": random,
        "random, DataCollatorWithPadding": transformers,
        "padded to 128, default collator": default,
    }


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__.splitlines()[0])
    options = arguments.parse_args()
    count, rounds = (2_000, 2) if options.quick else (20_000, 7)
    found = []
    for lengths, (median, spread) in LENGTHS.items():
        rows = rows_of(count, median, spread)
        arms = ways(rows)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        slots: dict[str, int] = {}
        for number in range(rounds + 1):
            names = list(arms)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began = time.perf_counter()
                batches = list(arms[name](number))
                if number:  # the first epoch does not count
                    seconds[name].append(time.perf_counter() - began)
                slots[name] = sum(batch["input_ids"].numel() for batch in batches)
        tokens = int(rows.offsets[-1])
        for name, taken in seconds.items():
            rates = [tokens / each for each in taken]
            found.append(
                {
                    "rows": lengths,
                    "batches": name,
                    "tokens/s": round(statistics.median(rates)),
                    "lowest": round(min(rates)),
                    "highest": round(max(rates)),
                    "rows/s": round(count / statistics.median(taken)),
                    "ms a batch": 1e3 * statistics.median(taken) / -(-count // BATCH),
                    "padding": 1 - tokens / slots[name],
                    "work of bucketed": slots[name] / slots["bucketed, ours"],
                }
            )
    report("Batches", found, setting(rows=count, rounds=rounds, batch_size=BATCH), options.json)


if __name__ == "__main__":
    main()
