"""Batches of several tasks: how often each is drawn, and that every row of each comes as often as its share says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightning_kd import InputError
from lightning_kd.datamodules import (
    MultiTaskDataModule,
    SyntheticDataModule,
    SyntheticNERDataModule,
    SyntheticQADataModule,
)
from lightning_kd.datamodules.batching import BucketBatchSampler
from lightning_kd.datamodules.multi_task import TaskSampler, batches_of_tasks

Make = Callable[..., Any]
Drawn = list[tuple[str, list[int]]]

#: Rows of three tasks in batches of 4: 3, 10 and 50 batches.
ROWS = {"small": 12, "middle": 40, "large": 199}


def sampler(tau: float, seed: int = 0, ranks: int = 1, rank: int = 0) -> TaskSampler:
    lengths = {name: np.random.default_rng(0).integers(1, 9, rows) for name, rows in ROWS.items()}
    return TaskSampler({n: BucketBatchSampler(v, 4, True, 7, ranks, rank) for n, v in lengths.items()}, tau, seed)


def epoch(drawing: TaskSampler, number: int) -> Drawn:
    drawing.set_epoch(number)
    return list(drawing)


@pytest.mark.parametrize("tau", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_shares_follow_the_formula(tau: float) -> None:
    """Stops tau from being applied to rows, to shares twice, or not at all; p_i = s_i^tau / sum of s_j^tau."""
    sizes = {"small": 3, "middle": 10, "large": 50}
    denominator = math.fsum(math.exp(tau * math.log(size)) for size in sizes.values())
    wanted = {name: max(1.0, 63 * math.exp(tau * math.log(size)) / denominator) for name, size in sizes.items()}
    drawing = sampler(tau)
    for number in (0, 1, 5):
        counts = Counter(name for name, _ in epoch(drawing, number))
        assert set(counts) == set(sizes) and len(drawing) == sum(counts.values())
        for name, count in counts.items():
            assert abs(count - wanted[name]) <= 0.5, name
    assert batches_of_tasks(sizes, 1.0) == sizes


def test_every_row_comes_equally_often() -> None:
    """Stops a task that is drawn less often than it is long from learning its first rows alone, epoch after epoch."""
    for tau in (0.0, 0.5):
        drawing, seen = sampler(tau), {name: Counter({i: 0 for i in range(rows)}) for name, rows in ROWS.items()}
        for number in range(7):
            for name, rows in epoch(drawing, number):
                seen[name].update(rows)
        for name, counts in seen.items():
            assert max(counts.values()) - min(counts.values()) <= 1, (tau, name)
    whole = Counter((name, row) for name, rows in epoch(sampler(1.0), 3) for row in rows)
    assert set(whole.values()) == {1} and len(whole) == sum(ROWS.values())


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """Stops a resumed run from drawing other tasks than the run that it goes on with, and each epoch from being one."""
    one = sampler(0.5)
    epochs = [epoch(one, number) for number in range(3)]
    assert epoch(sampler(0.5), 2) == epochs[2] == epoch(one, 2)
    names = [[name for name, _ in drawn] for drawn in epochs]
    assert names[0] != names[1] != names[2]
    assert [name for name, _ in epoch(sampler(0.5, seed=1), 0)] != names[0]
    assert names[0] != sorted(names[0], key=list(ROWS).index)  # mixed, not one task after the other


def test_the_epoch_is_read_with_the_first_batch() -> None:
    """Stops a resumed run from starting with the first epoch's batches: the trainer tells the epoch a little later."""
    late = sampler(0.5)
    batches = iter(late)
    late.set_epoch(2)
    assert list(batches) == epoch(sampler(0.5), 2)


def test_ranks_draw_the_same_tasks_and_other_rows() -> None:
    """Stops ranks from waiting for each other's heads, and from training on the same rows."""
    one, two = (epoch(sampler(1.0, ranks=2, rank=rank), 4) for rank in range(2))
    assert [name for name, _ in one] == [name for name, _ in two]
    for name, rows in ROWS.items():
        if name == "middle":  # 10 batches; an odd number is filled up with one that has come
            own = [{row for task, rows in drawn if task == name for row in rows} for drawn in (one, two)]
            assert not own[0] & own[1] and own[0] | own[1] == set(range(rows))


def mixed(**options: Any) -> MultiTaskDataModule:
    kinds = {"label": SyntheticDataModule, "tags": SyntheticNERDataModule, "answer": SyntheticQADataModule}
    sizes = {"num_train": 24, "num_validation": 10, "num_test": 6, "batch_size": 8, "eval_batch_size": 4}
    return MultiTaskDataModule({name: kind(**sizes) for name, kind in kinds.items()}, **options)


def test_a_batch_is_its_tasks_own() -> None:
    """Stops the rows of one task from being collated from another's, where both have a row of that number."""
    data = mixed()
    data.setup("fit")
    seen: Counter[str] = Counter()
    for batch in data.train_dataloader():
        ((name, own),) = batch.items()
        rows = data.tasks[name].token_rows("train")
        places = {index: place for place, index in enumerate(rows.index.tolist())}
        again = data.tasks[name].batches_of("train", [[places[index] for index in own["index"].tolist()]])[0]
        assert own["input_ids"].equal(again["input_ids"])
        assert own.keys() == again.keys()
        seen[name] += 1
    assert seen == {"label": 3, "tags": 3, "answer": 3}
    assert [len(loader) for loader in data.val_dataloader()] == [3, 3, 3]


def test_the_common_vocabulary_reads_each_text_as_its_own_does() -> None:
    """Stops a set of several from being read as unknown words, or in other pieces than it is alone."""
    data = mixed()
    data.setup("fit")
    sizes = set()
    for one in data.tasks.values():
        own = one.load_tokenizer()
        assert one.tokenizer.get_vocab().keys() >= own.get_vocab().keys()
        assert one.tokenizer.pad_token_id == own.pad_token_id == 0
        sizes.add(len(one.tokenizer))
        for texts in one.texts("train"):
            for text in texts:
                words = text if isinstance(text, str) else " ".join(text)
                assert one.tokenizer.tokenize(words) == own.tokenize(words)
                assert "[UNK]" not in own.tokenize(words)
    assert len(sizes) == 1


def test_different_vocabularies_are_refused(glue: Make, tiny_model: Make) -> None:
    """Stops token numbers of one vocabulary from being looked up in the embeddings of another."""
    tasks = {"sst2": glue("sst2"), "label": SyntheticDataModule(24, 10, 6)}
    with pytest.raises(InputError, match="tokenizers of 'sst2' and 'label' have different vocabularies"):
        MultiTaskDataModule(tasks).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tasks": {}},
            "Expected argument `data.tasks` to be at least one data module by its task's name, but got {}.",
        ),
        ({"tau": -0.5}, "Expected argument `data.tau` to be a finite number, 0 or more, but got -0.5."),
        ({"tau": float("nan")}, "Expected argument `data.tau` to be a finite number, 0 or more, but got nan."),
    ],
)
def test_wrong_values_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MultiTaskDataModule(**{"tasks": {"label": SyntheticDataModule(24, 10, 6)}, **arguments})
    assert str(caught.value) == message


def test_an_error_names_its_task(glue: Make) -> None:
    """Stops `There is no test split` from being said of one of several tasks."""
    with pytest.raises(InputError, match=r"Task 'sst2': .*has no test split with labels"):
        MultiTaskDataModule({"sst2": glue("sst2")}).setup("test")
