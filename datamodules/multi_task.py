"""The data of several tasks, in batches of one task each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BertTokenizerFast, PreTrainedTokenizerBase  # type: ignore[attr-defined]  # made on import

from lightning_kd._checks import InputError, check_range, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.batching import BatchLoader, BucketBatchSampler, EpochSampler, batches_done, overfits

__all__ = ["MultiTaskDataModule", "TaskSampler", "batches_of_tasks"]


def batches_of_tasks(sizes: Mapping[str, int], tau: float) -> dict[str, int]:
    r"""How many batches of an epoch each task has: in proportion to its size to the power tau, and at least one.

    :math:`n_i = N\, s_i^\tau / \sum_j s_j^\tau`, rounded, with :math:`N = \sum_j s_j`.

    Args:
        sizes: By the task's name, the batches that hold all of its training rows once.
        tau: 0 gives each task the same share, 1 one in proportion to its size.

    Example:
        >>> batches_of_tasks({"rte": 25, "sst2": 400}, 1.0), batches_of_tasks({"rte": 25, "sst2": 400}, 0.5)
        ({'rte': 25, 'sst2': 400}, {'rte': 85, 'sst2': 340})
    """
    powers = {name: size**tau for name, size in sizes.items()}
    share = sum(sizes.values()) / sum(powers.values())
    return {name: max(1, round(power * share)) for name, power in powers.items()}


class TaskSampler(EpochSampler):
    """Batches of several tasks in an order that depends on seed and epoch alone, and is that of all ranks.

    In each epoch every task has exactly its number of batches (:func:`batches_of_tasks`). Its rows go on where the last
    epoch left them: all of a task's rows have come equally often, to within one, whatever its share is.

    Args:
        samplers: By the task's name; each is of as many batches on every rank.
        tau: 0 or more.
        seed: Of the order of the tasks.
        same_batches: Whether every epoch has the batches of the first one.
    """

    def __init__(
        self, samplers: Mapping[str, BucketBatchSampler], tau: float, seed: int = 0, same_batches: bool = False
    ) -> None:
        super().__init__(same_batches)
        self.samplers = dict(samplers)
        self.seed = seed
        #: By the task's name, its batches in an epoch.
        self.counts = batches_of_tasks({name: len(sampler) for name, sampler in samplers.items()}, tau)

    def __iter__(self) -> Iterator[tuple[str, list[int]]]:  # type: ignore[override]  # of batches
        # A generator, so that the epoch is read with the first batch: on a resume the trainer makes the iterator before
        # it tells the epoch.
        names = [name for name, count in self.counts.items() for _ in range(count)]
        order = np.random.default_rng((self.seed, self.epoch, 1)).permutation(len(names))
        streams = {name: _endless(self.samplers[name], self.epoch * count) for name, count in self.counts.items()}
        drawn = ((names[place], next(streams[names[place]])) for place in order)
        yield from islice(drawn, self.start, None)

    def __len__(self) -> int:
        return sum(self.counts.values())


def _endless(sampler: BucketBatchSampler, start: int) -> Iterator[list[int]]:
    """The batches of one epoch after the other, from batch number ``start`` on."""
    epoch, skipped = divmod(start, len(sampler))
    while True:
        sampler.set_epoch(epoch)
        yield from list(sampler)[skipped:]
        epoch, skipped = epoch + 1, 0


class _AsDrawn(Dataset[Any]):
    """Hands what was drawn to the collator."""

    def __getitem__(self, drawn: Any) -> Any:
        return drawn


class _Collators:
    """Batches under their task's name."""

    def __init__(self, collators: Mapping[str, Callable[[list[int]], dict[str, Any]]]) -> None:
        self.collators = dict(collators)

    def __call__(self, drawn: tuple[str, list[int]]) -> dict[str, dict[str, Any]]:
        name, numbers = drawn
        return {name: self.collators[name](numbers)}


class MultiTaskDataModule(L.LightningDataModule):
    """The data modules of several tasks as one.

    A training batch is of one task, ``{task: batch}``. As in TextBrewer (Yang et al. 2020, arXiv 2002.12620), tasks are
    drawn in proportion to their number of batches to the power ``tau``, but each epoch has exactly these shares; it is
    as long as all tasks' epochs together. Each task is validated, tested and predicted on in full.

    All tasks have one vocabulary, as they have one encoder. Where no tokenizer is given and the data come with their
    own, as the synthetic sets do, the encoder's is made of all their tokens.

    Args:
        tasks: By name. Batch sizes, held-out rows and all else are each task's own.
        tau: 0 gives each task the same share of the batches, 1 one in proportion to its size; above 0 a large task
            is seen more often.
        seed: Of the order of the tasks.

    Raises:
        InputError: If there is no task or ``tau`` is below 0; in ``setup``, if the tokenizers are of different
            vocabularies, or the model is of one task.
    """

    def __init__(self, tasks: dict[str, TransformerDataModule], tau: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not tasks:
            raise expected("data.tasks", "at least one data module by its task's name", tasks)
        check_range("data.tau", tau, 0)
        self.tasks = dict(tasks)
        self.tau = tau
        self.seed = seed

    def prepare_data(self) -> None:
        for one in self.tasks.values():
            one.prepare_data()

    def setup(self, stage: str) -> None:
        if self.trainer is not None and not hasattr(self.trainer.lightning_module, "tasks"):
            raise InputError("MultiTaskDataModule needs the MultiTaskModule of lightning_kd: set model.tasks.")
        self._make_tokenizer()
        for name, one in self.tasks.items():
            one.trainer = self.trainer
            try:
                one.setup(stage)
            except InputError as error:
                raise InputError(f"Task {name!r}: {error}") from error
        first, *others = self.tasks
        vocabulary = cast(PreTrainedTokenizerBase, self.tasks[first].tokenizer).get_vocab()
        for name in others:
            if cast(PreTrainedTokenizerBase, self.tasks[name].tokenizer).get_vocab() != vocabulary:
                raise InputError(
                    f"The tokenizers of {first!r} and {name!r} have different vocabularies, but tasks that share an "
                    "encoder read the same: give both the encoder's tokenizer."
                )

    def _make_tokenizer(self) -> None:
        """One for all tasks, where each comes with its own."""
        if any(one.tokenizer is not None or one.tokenizer_source is not None for one in self.tasks.values()):
            return
        own = [one.load_tokenizer() for one in self.tasks.values()]
        if not all(isinstance(tokenizer, BertTokenizerFast) for tokenizer in own):
            return
        numbers = own[0].get_vocab()
        special = sorted(own[0].all_special_tokens, key=lambda token: numbers[token])  # padding is number 0
        tokens = {token for tokenizer in own for token in tokenizer.get_vocab()} - set(special)
        tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate([*special, *sorted(tokens)])})
        for one in self.tasks.values():
            one.tokenizer = tokenizer

    def teardown(self, stage: str) -> None:
        for one in self.tasks.values():
            one.teardown(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        loaders = {name: one.train_dataloader() for name, one in self.tasks.items()}
        samplers = {name: cast(BucketBatchSampler, loader.sampler) for name, loader in loaders.items()}
        sampler = TaskSampler(samplers, self.tau, self.seed, overfits(self.trainer))
        shares = ", ".join(f"{name} {count:,} ({len(samplers[name]):,})" for name, count in sampler.counts.items())
        rank_zero_info(f"Batches of an epoch (that hold all rows once): {shares}")
        workers = max(one.num_workers for one in self.tasks.values())
        collate = _Collators({name: loader.collate_fn for name, loader in loaders.items()})
        pin_memory = any(loader.pin_memory for loader in loaders.values())
        done = lambda loader: batches_done(self.trainer, loader)  # noqa: E731  # a trainer may come later
        return BatchLoader(_AsDrawn(), sampler, collate, workers, done, pin_memory)

    def val_dataloader(self) -> list[DataLoader[dict[str, Tensor]]]:
        return [loader for one in self.tasks.values() for loader in one.val_dataloader()]

    def test_dataloader(self) -> list[DataLoader[dict[str, Tensor]]]:
        return [one.test_dataloader() for one in self.tasks.values()]

    def predict_dataloader(self) -> list[DataLoader[dict[str, Tensor]]]:
        return [one.predict_dataloader() for one in self.tasks.values()]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is None or not self.trainer.training:
            return batch
        return {name: self.tasks[name].on_before_batch_transfer(own, dataloader_idx) for name, own in batch.items()}
