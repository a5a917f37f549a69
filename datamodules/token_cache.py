"""Token ids of many rows: encoded in chunks, kept beside the data set's own Arrow files, and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import numpy as np
import tokenizers
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

__all__ = ["Chunk", "Encoded", "cached", "encode", "first_on_each_node", "place_of"]

#: Fewer rows are encoded within a second or two, and stay in memory.
_SMALLEST = 10_000

#: Texts that are tokenized together.
_TOGETHER = 2_000

#: Of some rows: their tokens by the model's input name, and how many of the rows were cut.
Chunk = tuple[dict[str, list[list[int]]], int]


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids.

    Attributes:
        tokens: By the model's input name, ``(total tokens,)`` int32.
        offsets: ``(rows + 1,)`` int64; row ``i`` is ``tokens[name][offsets[i]:offsets[i + 1]]``.
        truncated: How many rows were longer than the limit.
    """

    tokens: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    truncated: int


def place_of(
    rows: Dataset,
    numbers: NDArray[np.int64],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Path | None:
    """The folder of the encoded rows: another one wherever rows, columns, tokenizer or limit are others.

    None where they stay in memory: few rows, rows that are in no Arrow file themselves, a tokenizer that is no fast
    one, or ``datasets.disable_caching()``.

    Args:
        rows: The data set.
        numbers: Which of its rows.
        columns: Where the text is.
        tokenizer: That encodes them.
        max_length: Longest row in tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(numbers) < _SMALLEST or not rows.cache_files or backend is None or not datasets.is_caching_enabled():
        return None
    how = json.loads(backend.to_str())
    for changes_with_use in ("truncation", "padding"):
        how.pop(changes_with_use, None)
    own = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.truncation_side, tokenizers.__version__]
    about = [rows._fingerprint, list(columns), max_length, own, how]
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    found.update(numbers.tobytes())
    return Path(rows.cache_files[0]["filename"]).parent / f"tokens-{found.hexdigest()[:32]}"


def encode(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, on_done: Callable[[int], None]
) -> Iterator[Chunk]:
    """Texts, or pairs of them, as token ids.

    Args:
        texts: The columns that are read, in their order.
        tokenizer: Theirs.
        max_length: Tokens of a row at most.
        on_done: Told how many rows more are done.
    """
    for start in range(0, len(texts), _TOGETHER):
        columns = texts[start : start + _TOGETHER]
        encoded = tokenizer(
            *(columns[name] for name in texts.column_names),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        tokens = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        on_done(len(encoded["input_ids"]))
        yield tokens, sum(bool(each.overflowing) for each in encoded.encodings or [])


def cached(folder: Path | None, encode: Callable[[], Iterator[Chunk]]) -> Encoded:
    """What is in the folder, or else what ``encode`` gives, which is then put there if that is allowed.

    Args:
        folder: From :func:`place_of`; ``None`` for memory.
        encode: The rows in their order, some at a time.
    """
    if folder is None or not (folder.is_dir() or os.access(folder.parent, os.W_OK)):
        return _in_memory(encode())
    if not folder.is_dir():
        _write(folder, encode())
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return Encoded(
        {name: _mapped(folder / name, np.int32) for name in about["names"]},
        _mapped(folder / "offsets", np.int64),
        about["truncated"],
    )


@contextmanager
def first_on_each_node(trainer: L.Trainer | None) -> Iterator[None]:
    """Lets one process of each node go before the others, who then find what it has written.

    All processes have to enter, or none.

    Args:
        trainer: Whose processes; without one there are no others.
    """
    if trainer is None:
        yield
        return
    if trainer.local_rank > 0:
        trainer.strategy.barrier("tokens")
    try:
        yield
    finally:  # after an error, too: the others meet the same one
        if trainer.local_rank == 0:
            trainer.strategy.barrier("tokens")


def _mapped(file: Path, dtype: Any) -> NDArray[Any]:
    return np.memmap(file, dtype=dtype, mode="r")


def _in_memory(chunks: Iterator[Chunk]) -> Encoded:
    parts: dict[str, list[NDArray[np.int32]]] = {}
    lengths: list[NDArray[np.int64]] = []
    truncated = 0
    for tokens, cut in chunks:
        lengths.append(_lengths(tokens["input_ids"]))
        for name, rows in tokens.items():
            parts.setdefault(name, []).append(_flat(rows))
        truncated += cut
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return Encoded({name: np.concatenate(each) for name, each in parts.items()}, offsets, truncated)


def _write(folder: Path, chunks: Iterator[Chunk]) -> None:
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        end, truncated = np.zeros(1, dtype=np.int64), 0
        names: list[str] = []
        _append(partial / "offsets", end)
        for tokens, cut in chunks:
            offsets = end + np.cumsum(_lengths(tokens["input_ids"]))
            _append(partial / "offsets", offsets)
            for name, rows in tokens.items():
                _append(partial / name, _flat(rows))
            names, end, truncated = list(tokens), offsets[-1:], truncated + cut
        (partial / "about.json").write_text(json.dumps({"names": names, "truncated": truncated}), encoding="utf-8")
        try:
            partial.replace(folder)
        except OSError:  # another process of the same run was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # by another name by now, unless something failed
    rank_zero_info(f"Tokens are kept in {folder}")


def _append(file: Path, values: NDArray[Any]) -> None:
    with file.open("ab") as opened:
        opened.write(values.tobytes())


def _lengths(rows: list[list[int]]) -> NDArray[np.int64]:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def _flat(rows: list[list[int]]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=sum(map(len, rows)))
