"""Tokens on disk are those in memory, and are found only by the same rows, tokenizer and limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from lightning_kd.datamodules import GLUEDataModule, TextDataModule, token_cache
from lightning_kd.datamodules.token_cache import Chunk, cached

Make = Callable[..., GLUEDataModule]


@pytest.fixture
def make(glue_folder: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A data module on the tiny sets, whose few rows are enough to be kept on disk."""
    monkeypatch.setattr(token_cache, "_SMALLEST", 1)

    def data(name: str = "sst2", **options: Any) -> GLUEDataModule:
        module = GLUEDataModule(name, str(glue_folder), **{"tokenizer": str(tiny_model("bert")), **options})
        module.setup("fit")
        return module

    return data


def place(data: GLUEDataModule) -> str | None:
    """The file in which the tokens of the training rows are."""
    return getattr(data.token_rows("train").tokens["input_ids"], "filename", None)


def refuse(*_: Any) -> Iterator[Chunk]:
    raise AssertionError("tokenized again")


@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_tokens_on_disk_are_those_in_memory(name: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a chunk from being left out, put twice, or read with the offsets of another."""
    on_disk = make(name, max_length=7, holdout_size=2)
    monkeypatch.setattr(token_cache, "_SMALLEST", 10**9)
    in_memory = make(name, max_length=7, holdout_size=2)
    assert place(on_disk) is not None and place(in_memory) is None
    for split in in_memory.sizes:
        ours, other = on_disk.token_rows(split), in_memory.token_rows(split)
        assert ours.tokens.keys() == other.tokens.keys()
        for key, values in other.tokens.items():
            assert ours.tokens[key].dtype == values.dtype
            np.testing.assert_array_equal(ours.tokens[key], values)
        np.testing.assert_array_equal(ours.offsets, other.offsets)
        np.testing.assert_array_equal(ours.labels, other.labels)
        assert ours.truncated == other.truncated


def test_a_second_start_does_not_tokenize(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a key that changes with every process, or once the tokenizer has been used."""
    first = make()
    first.tokenizer(["ba da"], padding="max_length", truncation=True, max_length=3)
    monkeypatch.setattr("lightning_kd.datamodules.base.encode", refuse)
    second = make()
    assert place(second) == place(first) is not None
    batch = next(iter(second.train_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape


def test_other_rows_tokenizers_and_limits_have_places_of_their_own(make: Make, tiny_model: Callable[..., Path]) -> None:
    """Stops a start from training on the tokens of another tokenizer, limit, set, or choice of rows."""
    starts: list[dict[str, Any]] = [{}, {"max_length": 5}, {"holdout_size": 2}, {"holdout_size": 2, "holdout_seed": 1}]
    starts += [{"name": "cola"}, {"tokenizer": str(tiny_model("distilbert"))}]  # the same words, without token types
    places = [place(make(**options)) for options in starts]
    assert None not in places
    assert len(set(places)) == len(starts)


def test_texts_of_ones_own_in_the_layout_of_the_hub_stay_in_their_file(
    glue_folder: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a module that changes the labels from copying all texts into memory, where their tokens have no place."""
    monkeypatch.setattr(token_cache, "_SMALLEST", 1)
    files = {}
    for name in ("first", "second"):
        data = TextDataModule(str(glue_folder), "sst2", text_column="sentence", tokenizer=str(tiny_model("bert")))
        data.setup("fit")
        files[name] = place(data)
        monkeypatch.setattr("lightning_kd.datamodules.base.encode", refuse)
    assert files["first"] is not None and files["first"] == files["second"]


def test_no_cache_where_none_is_wanted(make: Make) -> None:
    """Stops `datasets.disable_caching()` from being passed over."""
    datasets.disable_caching()
    try:
        assert place(make()) is None
    finally:
        datasets.enable_caching()


def chunks(*rows: list[list[int]]) -> Callable[[], Iterator[Chunk]]:
    def encode() -> Iterator[Chunk]:
        for each in rows:
            yield {"input_ids": each}, 1

    return encode


def test_chunks_are_put_one_behind_the_other(tmp_path: Path) -> None:
    """Stops the offsets of a later chunk from starting at 0, and the cut rows of a chunk from being lost."""
    rows = [[1, 2], [3]], [[4, 5, 6], [], [7]]
    for folder in (None, tmp_path / "tokens", tmp_path / "tokens"):
        found = cached(folder, chunks(*rows))
        assert found.tokens["input_ids"].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert found.offsets.tolist() == [0, 2, 3, 6, 6, 7]
        assert found.truncated == 2


def test_an_interrupted_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """Stops half of the rows from being taken for all of them by the next start."""

    def broken() -> Iterator[Chunk]:
        yield {"input_ids": [[1, 2]]}, 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "tokens", broken)
    assert list(tmp_path.iterdir()) == []
    assert cached(tmp_path / "tokens", chunks([[3]])).tokens["input_ids"].tolist() == [3]


def test_a_process_that_comes_second_takes_what_the_first_has_written(tmp_path: Path) -> None:
    """Stops one of several processes of a run from failing because another was faster."""
    folder = tmp_path / "tokens"

    def slow() -> Iterator[Chunk]:
        cached(folder, chunks([[1, 2, 3]]))  # the other one is done in the meantime
        yield {"input_ids": [[1, 2, 3]]}, 1

    assert cached(folder, slow).tokens["input_ids"].tolist() == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["tokens"]
