"""Rows in memory, batches of rows of like length, and the collator that pads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from lightning_kd._checks import expected
from lightning_kd.tasks.windows import padded
from lightning_kd.tasks.words import joined, piece_spans

__all__ = [
    "BatchLoader",
    "BucketBatchSampler",
    "Collator",
    "EpochSampler",
    "TokenizedRows",
    "batches_done",
    "loader_options",
    "overfits",
]

#: A training batch is drawn from this many batches' worth of shuffled rows, sorted by length.
_POOL = 50


@dataclass(frozen=True)
class TokenizedRows(Dataset[list[int]]):
    """Token ids of all rows in one array: 1 million short texts are some 100 MB.

    A row that is longer than the model can read is several windows; all windows of a row come in the same batch.

    Attributes:
        tokens: What there is of each token, ``(total tokens,)``: by the model's input name, ``input_ids`` and, if the
            model has it, ``token_type_ids``; where tokens are labelled also ``labels`` and ``words``; where answers are
            sought also ``char_starts`` and ``char_ends``.
        offsets: ``(windows + 1,)``; window ``i`` is ``tokens[name][offsets[i]:offsets[i + 1]]``.
        index: ``(rows,)``, the rows' numbers in the data set.
        labels: ``(rows,)`` int64 or float32, or ``(rows, labels)`` float32; ``IGNORED`` or NaN where a training row has
            none; or ``(rows, 2)`` int64, the first character of an answer and the one behind its last. ``None`` where
            tokens are labelled, and where there are no labels.
        windows: ``(rows + 1,)``; row ``i`` has the windows from ``windows[i]`` to ``windows[i + 1]``. ``None`` where
            each has one.
        words: The words of each row, where predictions are about words.
        extras: What else there is of each row, by its name in a batch, where it comes as a list.
        pieces: Of each row, where its sub-words are in its words, where predictions are about these
            (``EncodedWords.pieces``).
        truncated: How many rows were longer than the limit.
        teachers: The same rows as a teacher's own tokenizer reads them, by the teacher's name; only of teachers that
            read another vocabulary. With the number of its padding token each.
    """

    tokens: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    index: NDArray[np.int64]
    labels: NDArray[np.int64] | NDArray[np.float32] | None = None
    windows: NDArray[np.int64] | None = None
    words: Sequence[Sequence[str]] | None = None
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    pieces: Sequence[NDArray[np.int32]] | None = None
    truncated: int = 0
    teachers: Mapping[str, tuple[TokenizedRows, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: list[int]) -> list[int]:
        return rows

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``(rows,)``, tokens in the longest window of each row."""
        lengths = np.diff(self.offsets)
        return lengths if self.windows is None else np.maximum.reduceat(lengths, self.windows[:-1])


class Collator:
    """Pads the windows of a batch's rows to the longest of them.

    Args:
        rows: Where the tokens are.
        pad_token_id: Fills ``input_ids``.
        with_texts: Add ``texts`` and ``spans``, the places of the words in them, where rows have words.
    """

    def __init__(self, rows: TokenizedRows, pad_token_id: int, with_texts: bool = False) -> None:
        self.rows = rows
        self.with_texts = with_texts
        self.pad_token_id = pad_token_id
        self.teachers = {name: Collator(own, pad) for name, (own, pad) in rows.teachers.items()}

    def __call__(self, numbers: list[int]) -> dict[str, Any]:
        """A batch: ``(windows, L)`` token tensors and an attention mask, and the rows' own ``labels`` and ``index``.

        Where a row can have several windows, ``example`` ``(windows,)`` names the row of the batch that each is of.
        ``teachers`` holds, by name, the batch of the same rows for each teacher that reads another vocabulary.
        """
        rows = self.rows
        windows, example = np.asarray(numbers), None
        if rows.windows is not None:
            counts = rows.windows[windows + 1] - rows.windows[windows]
            example = np.repeat(np.arange(len(windows)), counts)
            first = np.cumsum(counts) - counts  # of each row's windows, the place in the batch
            windows = rows.windows[windows][example] + np.arange(len(example)) - first[example]
        starts = rows.offsets[windows]
        lengths = rows.offsets[windows + 1] - starts
        batch: dict[str, Any] = padded(rows.tokens, starts, lengths, self.pad_token_id)
        if rows.labels is not None:
            batch["labels"] = torch.from_numpy(rows.labels[numbers])
        if example is not None:
            batch["example"] = torch.from_numpy(example)
        if self.with_texts and rows.words is not None:
            texts = [joined(rows.words[number]) for number in numbers]
            batch["texts"], batch["spans"] = [text for text, _ in texts], [spans for _, spans in texts]
            if rows.pieces is not None:
                own = [rows.pieces[number] for number in numbers]
                batch["spans"] = [piece_spans(*row) for row in zip(batch["spans"], own, strict=True)]
        for name, values in rows.extras.items():
            batch[name] = [values[number] for number in numbers]
        batch["index"] = torch.from_numpy(rows.index[numbers])
        if self.teachers:
            batch["teachers"] = {name: collate(numbers) for name, collate in self.teachers.items()}
        return batch


class EpochSampler(DistributedSampler[Any], SequentialSampler):
    """A sampler whose order depends on the epoch, and which the trainer leaves in place.

    It does so in a distributed run with a ``DistributedSampler``, and with ``overfit_batches`` with a
    ``SequentialSampler``; before each epoch it tells its number.

    Args:
        same_batches: Whether every epoch is to have the batches of the first one, as ``overfit_batches`` asks for.
    """

    def __init__(self, same_batches: bool = False) -> None:
        self.same_batches = same_batches
        self.epoch = 0
        #: Batches of the epoch that are left out at its beginning: those that an interrupted run has trained on.
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch."""
        self.epoch = 0 if self.same_batches else epoch


class BucketBatchSampler(EpochSampler):
    """Batches of rows of like length, in an order that depends on seed and epoch alone.

    To train, the rows are shuffled, sorted by length within pools of 50 batches, cut into batches, and the batches
    shuffled. A batch is that of all ranks together, ``batch_size * num_replicas`` rows, and each rank takes its share
    of it, so that two processes with 16 rows each train on what one with 32 does, step by step. Where the last batch
    has fewer rows than there are ranks, some of them come twice.

    To evaluate, the rows are sorted by length, and every row comes exactly once on exactly one rank; batches are
    smaller where there would be fewer of them than ranks.

    Args:
        lengths: ``(rows,)``, tokens in each row.
        batch_size: Rows in a batch of one rank.
        shuffle: To train.
        seed: Of the order.
        num_replicas: Processes.
        rank: This process.
        same_batches: Whether every epoch has the batches of the first one.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        same_batches: bool = False,
    ) -> None:
        super().__init__(same_batches)
        if batch_size < 1:
            raise expected("batch_size", "at least 1", batch_size)
        if not shuffle and -(-len(lengths) // batch_size) < num_replicas:
            batch_size = max(1, len(lengths) // num_replicas)  # the trainer refuses a rank without a batch
        self.lengths = lengths
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]  # of batches
        batches = self._batches()
        if self.shuffle:
            batches = [self._share(rows) for rows in batches]
        else:
            batches = batches[self.rank :: self.num_replicas]
        for batch in islice(batches, self.start, None):
            yield batch.tolist()

    def _share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """What this rank takes of a batch: every n-th row, so that the ranks get rows of like length."""
        share = rows[self.rank :: self.num_replicas]
        return share if len(share) else rows[[self.rank % len(rows)]]

    def __len__(self) -> int:
        if self.shuffle:
            return -(-len(self.lengths) // (self.batch_size * self.num_replicas))
        return len(range(self.rank, -(-len(self.lengths) // self.batch_size), self.num_replicas))

    def _batches(self) -> list[NDArray[np.int64]]:
        if not self.shuffle:
            size = self.batch_size
            order = np.argsort(self.lengths, kind="stable")
            return [order[i : i + size] for i in range(0, len(order), size)]
        size = self.batch_size * self.num_replicas
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        batches = []
        for start in range(0, len(order), size * _POOL):
            pool = order[start : start + size * _POOL]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [batches[i] for i in generator.permutation(len(batches))]


class BatchLoader(DataLoader[Any]):
    """Hands out the batches of a sampler with a ``start``, from the one on that a resumed run has to go on with.

    What workers have fetched ahead does not count: how many batches have been trained on is the trainer's to say, when
    the first one is asked for. The trainer makes the iterator of a resumed run before it tells the sampler the epoch,
    so nothing is drawn until then.

    Args:
        rows: The rows, which hand their numbers to the collator.
        sampler: Of the batches, e.g. a :class:`BucketBatchSampler`; leaves out the first ``start`` of them.
        collate: Makes a batch of them.
        num_workers: Processes that collate; they are kept.
        position: Says how many batches of the epoch are done; none unless given.
        pin_memory: Whether batches are copied into memory that a GPU reads without waiting.
    """

    def __init__(
        self,
        rows: Any,
        sampler: Any,
        collate: Callable[[Any], dict[str, Any]],
        num_workers: int = 0,
        position: Callable[[BatchLoader], int] | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(**loader_options(rows, sampler, collate, num_workers, pin_memory))
        self.batches = sampler
        self.position = position

    def __iter__(self) -> Any:
        self.batches.start = 0 if self.position is None else self.position(self)
        state = torch.get_rng_state()
        iterator = super().__iter__()
        if self.batches.start:  # an iterator uses up a random number, but an uninterrupted run would not make one here
            torch.set_rng_state(state)
        yield from iterator

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer counts the batches itself, but warns of a loader without this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, as :meth:`state_dict`."""


def batches_done(trainer: L.Trainer | None, loader: BatchLoader) -> int:
    """How many batches of the epoch a trainer is through with, if it is this loader that it trains on."""
    if trainer is None or not trainer.training or trainer.train_dataloader is not loader:
        return 0
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return done if done < trainer.num_training_batches else len(loader)


def overfits(trainer: L.Trainer | None) -> bool:
    """Whether a trainer was told to train on the same few batches in every epoch."""
    return trainer is not None and trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set by the trainer


def loader_options(
    rows: Any, sampler: Any, collate: Callable[[Any], dict[str, Any]], num_workers: int, pin_memory: bool
) -> dict[str, Any]:
    """What makes a ``DataLoader`` hand out the sampler's batches."""
    return {
        "dataset": rows,  # which hands row numbers to the collator
        "batch_size": None,
        "sampler": sampler,
        "collate_fn": collate,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": pin_memory,
        # kept workers take a seed once, in a resumed run at another time: not out of the training's random numbers
        "generator": torch.Generator() if num_workers else None,
    }
