"""Batches: which rows, in which order, on which rank, and how they are padded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, DataCollatorWithPadding

from lightning_kd import InputError
from lightning_kd.datamodules.batching import BatchLoader, BucketBatchSampler, Collator, TokenizedRows

row_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=120)
batch_sizes = st.integers(1, 9)
world_sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32)


def samplers(
    lengths: list[int], batch_size: int, shuffle: bool, world_size: int, seed: int = 0
) -> list[BucketBatchSampler]:
    """The sampler of each rank."""
    array = np.asarray(lengths)
    return [BucketBatchSampler(array, batch_size, shuffle, seed, world_size, rank) for rank in range(world_size)]


def flat(batches: list[list[int]]) -> list[int]:
    """The rows of all batches."""
    return list(chain.from_iterable(batches))


@given(lengths=row_lengths, batch_size=batch_sizes, world_size=world_sizes)
def test_evaluation_sees_every_row_once(lengths: list[int], batch_size: int, world_size: int) -> None:
    """Stops the padding of a DistributedSampler (accuracy 0.4455 for a true 0.4478), and a rank without a batch."""
    ranks = [list(sampler) for sampler in samplers(lengths, batch_size, False, world_size)]
    assert sorted(flat([rows for rank in ranks for rows in rank])) == list(range(len(lengths)))
    assert all(0 < len(rows) <= batch_size for rank in ranks for rows in rank)
    assert all(ranks) or len(lengths) < world_size


@given(lengths=row_lengths, batch_size=batch_sizes, world_size=world_sizes, seed=seeds)
def test_ranks_share_the_batches_of_one_process(
    lengths: list[int], batch_size: int, world_size: int, seed: int
) -> None:
    """Stops several processes from training on other batches than one, on a row twice, and one that runs out first."""
    (single,) = samplers(lengths, batch_size * world_size, True, 1, seed)
    ranks = [list(sampler) for sampler in samplers(lengths, batch_size, True, world_size, seed)]
    assert sorted(flat(list(single))) == list(range(len(lengths)))
    for together, *shares in zip(single, *ranks, strict=True):
        sizes = {len(share) for share in shares}
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
        if len(together) >= world_size:
            assert sorted(flat(shares)) == sorted(together)
        else:  # a rank cannot do without a row
            assert sizes == {1} and set(flat(shares)) == set(together)


@given(row_lengths, batch_sizes, world_sizes, st.booleans(), st.integers(0, 9))
def test_starts_where_it_is_told_to(
    lengths: list[int], batch_size: int, world_size: int, shuffle: bool, start: int
) -> None:
    """Stops a resumed epoch in another order, or an epoch that is whole as far as the trainer can see."""
    for sampler in samplers(lengths, batch_size, shuffle, world_size):
        whole, length = list(sampler), len(sampler)
        sampler.start = start
        assert list(sampler) == whole[start:] and len(sampler) == length


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_draws_nothing_before_its_first_batch(num_workers: int) -> None:
    """Stops workers from fetching batches of the first epoch, which a resumed run is told of too late."""
    ids = np.arange(12, dtype=np.int32)
    rows = TokenizedRows(tokens={"input_ids": ids}, offsets=np.arange(13), index=np.arange(12))
    done = 0
    sampler = BucketBatchSampler(rows.lengths, 2, True)
    loader = BatchLoader(rows, sampler, Collator(rows, 0), num_workers, lambda loader: done)

    def numbers() -> list[list[int]]:
        return [batch["index"].tolist() for batch in loader]

    sampler.set_epoch(3)
    expected = numbers()
    sampler.set_epoch(0)
    iterator = iter(loader)
    sampler.set_epoch(3)
    done = 4
    state = torch.get_rng_state()
    assert [batch["index"].tolist() for batch in iterator] == expected[4:]
    assert torch.get_rng_state().equal(state)
    done = 0
    assert numbers() == expected and len(loader) == 6


@given(lengths=row_lengths, batch_size=batch_sizes, world_size=world_sizes, shuffle=st.booleans())
def test_len_is_the_number_of_batches(lengths: list[int], batch_size: int, world_size: int, shuffle: bool) -> None:
    """Stops a progress bar, and a learning rate's decay, over another number of steps than are run."""
    for sampler in samplers(lengths, batch_size, shuffle, world_size):
        assert len(sampler) == len(list(sampler))


@given(lengths=row_lengths, batch_size=batch_sizes, seed=seeds, epoch=st.integers(0, 100))
def test_order_depends_on_seed_and_epoch_alone(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    """Stops an order that depends on what was drawn before: a resumed run would see other batches."""
    one, other = samplers(lengths, batch_size, True, 1, seed) + samplers(lengths, batch_size, True, 1, seed)
    one.set_epoch(epoch)
    first = list(one)
    np.random.seed(epoch)
    torch.manual_seed(epoch)
    for earlier in (3, epoch):
        other.set_epoch(earlier)
        again = list(other)
    assert again == first == list(one)


def test_epochs_and_seeds_differ() -> None:
    """Stops the same batches in every epoch, and an epoch that is the first one of the next seed."""
    orders = []
    for seed in range(3):
        (sampler,) = samplers(list(range(1, 101)), 8, True, 1, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.append(flat(list(sampler)))
    assert len(set(map(tuple, orders))) == 9


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_of_a_batch_are_of_like_length(shuffle: bool) -> None:
    """Stops the padding that makes an epoch 2.3 times slower, and batches that come from short to long."""
    lengths = np.random.default_rng(0).geometric(0.05, 4000).clip(3, 128)
    batches = list(BucketBatchSampler(lengths, 32, shuffle))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.1 * lengths.sum()
    longest = np.asarray([lengths[rows].max() for rows in batches])
    ascending = (np.diff(longest) >= 0).mean()
    assert ascending < 0.7 if shuffle else ascending == 1


def test_members_of_a_batch_change() -> None:
    """Stops a shuffle of whole batches, in which the same rows meet in every epoch."""
    (sampler,) = samplers([5] * 400, 8, True, 1)
    together = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        together.append({tuple(sorted(rows)) for rows in sampler})
    assert not together[0] & together[1]


def test_refuses_batch_size() -> None:
    """Stops an endless loop over batches of nothing."""
    with pytest.raises(InputError, match="`batch_size` to be at least 1, but got 0"):
        BucketBatchSampler(np.ones(3), 0, shuffle=True)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("pairs", [False, True])
def test_collator_equals_transformers(tiny_model: Callable[..., Path], family: str, pairs: bool) -> None:
    """Stops a row that starts one token early, a mask that is off by one, and a pad token of 0 where it is another."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(family))
    tokenizer.pad_token = "[MASK]"
    generator = np.random.default_rng(0)
    texts = [
        [" ".join(generator.choice(["ba", "den", "fi", "los"], n)) for n in generator.integers(1, 9, 20)] for _ in "ab"
    ]
    encoded = tokenizer(*texts[: 1 + pairs])
    names = [name for name in encoded if name != "attention_mask"]
    rows = TokenizedRows(
        tokens={name: np.asarray(flat(encoded[name]), dtype=np.int32) for name in names},
        offsets=np.cumsum([0, *map(len, encoded["input_ids"])]),
        labels=np.arange(100, 120),
        index=np.arange(200, 220),
    )
    assert rows.lengths.tolist() == [len(ids) for ids in encoded["input_ids"]]
    collate = Collator(rows, tokenizer.pad_token_id)
    theirs = DataCollatorWithPadding(tokenizer)
    for numbers in ([3], [5, 0, 19], [7, 7], list(range(20))):
        batch = collate(numbers)
        expected = theirs([{name: values[i] for name, values in encoded.items()} for i in numbers])
        assert batch.pop("labels").tolist() == [100 + i for i in numbers]
        assert batch.pop("index").tolist() == [200 + i for i in numbers]
        assert set(batch) == set(expected)
        for name, values in batch.items():
            assert values.dtype == torch.int64
            assert values.tolist() == expected[name].tolist()
