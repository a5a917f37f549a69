"""The logits of a teacher on disk: computed once, found by row."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from lightning_kd._checks import InputError, expected
from lightning_kd.models import ModelSource

__all__ = ["CachedLogits", "LogitWriter", "Rows", "fingerprint_of_rows", "fingerprint_of_teacher"]

Stored = Literal["float16", "float32"]

#: Rows that are written and, after an interruption, computed again together.
SHARD = 1024
_IDENTITY = "identity.json"


@dataclass(frozen=True)
class Rows:
    """Where the rows of a split have their tokens, as a teacher reads them.

    Args:
        index: ``(rows,)`` int64, the numbers by which batches name the rows.
        starts: ``(rows + 1,)`` int64, the first token of each row, over all of its windows, and the end of the last.
    """

    index: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)


def fingerprint_of_rows(tokens: Mapping[str, NDArray[np.int32]], *places: NDArray[np.int64] | None) -> str:
    """A hash of what a teacher reads: whatever changes it (texts, tokenizer, lengths, choice of rows) changes the hash.

    Args:
        tokens: The model's inputs by name, ``(total tokens,)`` each.
        places: Where windows and rows begin, and the rows' numbers.
    """
    found = hashlib.sha256()
    for name in sorted(tokens):
        found.update(name.encode())
        found.update(tokens[name].tobytes())
    for place in places:
        found.update(b"none" if place is None else place.tobytes())
    return found.hexdigest()


def fingerprint_of_teacher(source: ModelSource) -> str:
    """A hash of a teacher's weights and of how it is loaded; of one on the Hub, the commit stands for the weights."""
    found = hashlib.sha256()
    how = asdict(source) | {"path": None}
    path = source.path or ""
    folder = Path(path)
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
                with file.open("rb") as opened:
                    found.update(hashlib.file_digest(opened, "sha256").digest())
    else:
        config = AutoConfig.from_pretrained(path, revision=source.revision, trust_remote_code=False)
        how |= {"path": path, "revision": getattr(config, "_commit_hash", None) or source.revision}
    found.update(json.dumps(how, sort_keys=True).encode())
    return found.hexdigest()


#: What a part of a cache's identity is called in a message.
_PARTS = {
    "teacher": "another teacher (its weights, its configuration or how it is loaded)",
    "rows": "other training rows, another tokenizer or other limits of length",
    "labels": "other labels, or another order of them",
    "precision": "another trainer.precision",
    "dtype": "another dtype",
    "top_k": "another top_k",
    "format": "another version of lightning-kd",
}


class CachedLogits:
    """The logits of one teacher for every row of a split, memory-mapped.

    ``identity.json`` says what they were computed from; a file ``<logits>.npy`` each holds them, ``(rows, C)`` for a
    label per example, and ``(tokens, C)`` or ``(tokens,)`` for one per token, without padding. With ``top_k`` there are
    the largest logits, ``.top.npy``, their classes, ``.classes.npy``, and ``.rest.npy``, the logarithm of the sum of
    ``exp`` over the others, which are given back as equal.

    Args:
        folder: Of the files.
        rows: The rows as the teacher reads them.
        identity: What the logits have to be of.

    Raises:
        InputError: If they are of anything else, or a file is damaged.
    """

    def __init__(self, folder: Path, rows: Rows, identity: Mapping[str, Any]) -> None:
        check_identity(folder, identity)
        about = _read_about(folder)
        self.num_classes = {name: each.classes for name, each in about.items()}
        self._per_token = {name: each.per_token for name, each in about.items()}
        self._arrays: dict[str, dict[str, NDArray[Any]]] = {}
        for name, each in about.items():
            arrays = {part: _mapped(folder / file) for part, file in each.files.items()}
            first = arrays["all" if "all" in arrays else "top"]
            top_k = None if "all" in arrays else first.shape[-1] if first.ndim else 0
            kinds = each.arrays(rows, str(first.dtype), top_k)
            if set(arrays) != set(kinds) or str(first.dtype) not in ("float16", "float32"):
                raise _damaged(folder / _IDENTITY)
            for part, (kind, shape) in kinds.items():
                array, file = arrays[part], folder / each.files[part]
                if array.shape != shape or array.dtype != np.dtype(kind) or each.checksums.get(part) != _checksum(file):
                    raise _damaged(file)
                if part == "classes" and len(array) and not 0 <= array.min() <= array.max() < (each.classes or 0):
                    raise _damaged(file)
            self._arrays[name] = arrays
        self._starts = rows.starts
        self._order = np.argsort(rows.index, kind="stable")
        self._sorted = rows.index[self._order]

    def __call__(self, index: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """The logits of a batch, float32.

        Args:
            index: ``(rows,)`` int64, the rows' numbers.
            attention_mask: ``(windows, L)``, of the rows' windows as the teacher reads them, in the rows' order.

        Returns:
            By name, ``(rows, C)``, or ``(windows, L, C)`` and ``(windows, L)``; 0 at padding.
        """
        places = self._order[np.searchsorted(self._sorted, index.numpy())]
        mask = attention_mask.bool()
        tokens = None
        found = {}
        for name, arrays in self._arrays.items():
            if not self._per_token[name]:
                found[name] = self._restored(name, {part: array[places] for part, array in arrays.items()})
                continue
            if tokens is None:
                tokens = np.concatenate([np.arange(self._starts[p], self._starts[p + 1]) for p in places])
            values = self._restored(name, {part: array[tokens] for part, array in arrays.items()})
            found[name] = values.new_zeros(*mask.shape, *values.shape[1:])
            found[name][mask] = values
        return found

    def _restored(self, name: str, parts: Mapping[str, NDArray[Any]]) -> Tensor:
        if "all" in parts:
            return torch.from_numpy(parts["all"].astype(np.float32))
        top, classes, rest = (torch.from_numpy(parts[part]) for part in ("top", "classes", "rest"))
        num_classes = self.num_classes[name]
        assert num_classes is not None  # top_k is refused without classes
        values = (rest - np.log(num_classes - top.shape[-1])).unsqueeze(-1).expand(*rest.shape, num_classes)
        return values.scatter(-1, classes.long(), top.float())


@dataclass(frozen=True)
class _About:
    """What ``identity.json`` says of logits.

    Args:
        per_token: Whether each token has some.
        classes: How many there are; None where each token has a number.
        files: By what they hold, ``all``, or ``top``, ``classes`` and ``rest``: names in the same folder.
        checksums: Of the files, once they are complete.
    """

    per_token: bool
    classes: int | None
    files: dict[str, str]
    checksums: dict[str, int] = field(default_factory=dict)

    def arrays(self, rows: Rows, dtype: str, top_k: int | None) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """The type and the shape of each file."""
        total = int(rows.starts[-1]) if self.per_token else len(rows)
        width = () if self.classes is None else (top_k or self.classes,)
        if top_k is None:
            return {"all": (dtype, (total, *width))}
        number = np.uint16 if self.classes is not None and self.classes <= 2**16 else np.int32
        return {"top": (dtype, (total, *width)), "classes": (number, (total, *width)), "rest": (np.float32, (total,))}


def _read_about(folder: Path) -> dict[str, _About]:
    """What is known of each of the logits in a folder; nothing in it names a file that is elsewhere."""
    try:
        content = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))["logits"]
        about = {name: _About(**each) for name, each in content.items()}
        if not about:
            raise _damaged(folder / _IDENTITY)
        for name, each in about.items():
            whole = isinstance(each.per_token, bool) and (each.classes is None or type(each.classes) is int)
            whole = whole and isinstance(each.checksums, dict)
            own = {"all": f"{name}.npy"} if "all" in each.files else {part: f"{name}.{part}.npy" for part in each.files}
            whole = whole and set(own) in ({"all"}, {"top", "classes", "rest"})
            if not name.isidentifier() or not whole or each.files != own:
                raise _damaged(folder / _IDENTITY)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder / _IDENTITY) from error
    return about


def _checksum(file: Path) -> int:
    """Of a file's content; a bit that has turned over in it would be a wrong logit."""
    found = 0
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            found = zlib.crc32(block, found)
    return found


def _mapped(file: Path) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates a header as Python literals, and allocates what it says
        raise _damaged(file) from error
    return mapped


def _damaged(file: Path) -> InputError:
    return InputError(
        f"The cached logits in {file} are damaged or cut off: delete the folder {file.parent}, and they are computed "
        "again."
    )


def check_identity(folder: Path, identity: Mapping[str, Any], file: str = _IDENTITY) -> None:
    """Refuse cached logits that are of something else.

    Raises:
        InputError: With what is different, and what to do.
    """
    try:
        own = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder / file) from error
    if not isinstance(own, dict):
        raise _damaged(folder / file)
    different = [part for part, value in identity.items() if own.get(part) != value]
    if different:
        what = " and with ".join(_PARTS[part] for part in different)
        raise InputError(
            f"The cached logits in {folder} were computed with {what}: delete the folder, or give TeacherCache "
            "another path."
        )


class LogitWriter:
    """Computes the logits of a teacher shard by shard, in files that get their names when all is there.

    Several processes may write one cache, each its share of the shards. What was finished before an interruption is
    not computed again.

    Args:
        folder: Of the cache.
        rows: The rows as the teacher reads them.
        identity: What the logits are of; kept beside them.
        dtype: That they are stored in.
        top_k: Store this many of the largest logits of each distribution, and what is left over of it; all unless
            given.
    """

    def __init__(
        self, folder: Path, rows: Rows, identity: Mapping[str, Any], dtype: Stored = "float16", top_k: int | None = None
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.identity = dict(identity)
        self.dtype = dtype
        self.top_k = top_k

    @property
    def _partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    def prepare(self, example: Mapping[str, tuple[bool, Tensor]]) -> None:
        """Make the files, on one process; those of an interrupted run that are of the same stay.

        Args:
            example: By the logits' names, whether there is one per token, and one of them: ``(C,)``, or ``()`` where
                each token has a number.

        Raises:
            InputError: If the unfinished files are of something else, or ``top_k`` does not fit.
        """
        if (self._partial / _IDENTITY).exists():
            check_identity(self._partial, self.identity)
            return
        about: dict[str, _About] = {}
        arrays: dict[str, tuple[Any, tuple[int, ...]]] = {}
        for name, (per_token, values) in example.items():
            num_classes = values.shape[-1] if values.dim() else None
            if self.top_k is not None and (num_classes is None or not 0 < self.top_k < num_classes):
                what = "left out for answers" if num_classes is None else f"from 1 to {num_classes - 1} for {name}"
                raise expected("top_k", what, self.top_k)
            parts = _About(per_token, num_classes, {}).arrays(self.rows, self.dtype, self.top_k)
            files = {part: f"{name}.npy" if part == "all" else f"{name}.{part}.npy" for part in parts}
            arrays |= {files[part]: array for part, array in parts.items()}
            about[name] = _About(per_token, num_classes, files)
        needed = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in arrays.values())
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._partial.parent).free
        if needed > free:  # or the process dies in the middle: the files are made without their blocks
            raise InputError(
                f"The logits for {len(self.rows):,} rows take {needed / 1e9:,.1f} GB, but {self._partial.parent} has "
                f"{free / 1e9:,.1f} GB left: give TeacherCache another path, dtype float16 or a top_k."
            )
        self._partial.mkdir(exist_ok=True)
        for file, (kind, shape) in arrays.items():
            np.lib.format.open_memmap(self._partial / file, mode="w+", dtype=kind, shape=shape).flush()
        self._write_about(about)

    def _write_about(self, about: Mapping[str, _About]) -> None:
        content = self.identity | {"logits": {name: asdict(each) for name, each in about.items()}}
        _write_json(self._partial / _IDENTITY, content)

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        shards = range(-(-len(self.rows) // SHARD))
        return [shard for shard in shards if not self._mark(shard).exists()]

    def rows_of(self, shard: int) -> range:
        """The places of a shard's rows."""
        return range(shard * SHARD, min((shard + 1) * SHARD, len(self.rows)))

    def write(self, shard: int, batches: Iterator[tuple[Sequence[int], Mapping[str, Tensor]]]) -> None:
        """Store one shard.

        Args:
            shard: Its number.
            batches: For some rows at a time, their places and their logits by name: ``(rows, C)``, or those of all of
                their tokens one after the other, ``(tokens, C)`` or ``(tokens,)``.
        """
        about = _read_about(self._partial)
        opened = {
            (name, part): np.lib.format.open_memmap(self._partial / file, mode="r+")
            for name, each in about.items()
            for part, file in each.files.items()
        }
        starts = self.rows.starts
        for places, logits in batches:
            for name, values in logits.items():
                at = np.asarray(places)
                if about[name].per_token:
                    at = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in places])
                for part, array in self._parts(values.float().cpu()).items():
                    opened[name, part][at] = array
        for memmap in opened.values():
            memmap.flush()
        self._mark(shard).touch()  # once its values are on the disk

    def _parts(self, values: Tensor) -> dict[str, NDArray[Any]]:
        if self.top_k is None:
            return {"all": values.numpy()}
        top = values.topk(self.top_k, dim=-1)
        rest = values.scatter(-1, top.indices, -float("inf")).logsumexp(-1)
        return {"top": top.values.numpy(), "classes": top.indices.numpy(), "rest": rest.numpy()}

    def _mark(self, shard: int) -> Path:
        return self._partial / f"{shard:05d}.done"

    def finish(self) -> None:
        """Give the complete cache its name, on one process."""
        about = _read_about(self._partial)
        sums = {n: {part: _checksum(self._partial / f) for part, f in each.files.items()} for n, each in about.items()}
        self._write_about({name: replace(each, checksums=sums[name]) for name, each in about.items()})
        for mark in self._partial.glob("*.done"):
            mark.unlink()
        self._partial.rename(self.folder)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
