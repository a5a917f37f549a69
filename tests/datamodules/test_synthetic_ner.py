"""The grammar's entities: exact, apart, ambiguous, and the same whenever they are written."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from lightning_kd import InputError
from lightning_kd.datamodules import SyntheticNERDataModule
from lightning_kd.datamodules.synthetic_ner import _CLAUSES, _ENDINGS, _FIRST_NAMES, _LABELS, _STEMS, _TIMES

NAME = f"(?:{'|'.join(_STEMS)})(?:{'|'.join(_ENDINGS)})"
MENTIONS = {
    "PER": rf"(?:(?:{'|'.join(_FIRST_NAMES)}) )?{NAME}(?: junior)?",
    "ORG": rf"{NAME}(?: motors| airlines)?|(?:bank|university) of {NAME}",
    "LOC": rf"(?:new |port )?{NAME}(?: island)?",
}


def rows(split: str = "train", **options: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    sizes = {"num_train": 600, "num_validation": 300, "num_test": 300}
    found = SyntheticNERDataModule(**{**sizes, **options}).load_split(split)
    assert found is not None
    return [(tuple(row["tokens"]), tuple(_LABELS[tag] for tag in row["ner_tags"])) for row in found]


def test_the_same_seed_gives_the_same_rows_and_no_split_has_anothers() -> None:
    """Stops scores that other runs cannot repeat, and sentences that were trained on from being tested on."""
    assert rows() == rows() != rows(seed=1)
    splits = [
        {words for words, _ in rows(split, seed=seed)} for split in ("train", "validation", "test") for seed in (0, 1)
    ]
    assert [len(split) for split in splits] == [600, 600, 300, 300, 300, 300]
    for (i, one), (j, other) in itertools.combinations(enumerate(splits), 2):
        assert i // 2 == j // 2 or not one & other


def test_a_name_can_be_of_every_type() -> None:
    """Stops a set that a list of names can solve: no context would be needed."""
    kinds = defaultdict(set)
    for words, tags in rows(num_train=6000):
        for kind, first, last in get_entities(list(tags)):
            if first == last:
                kinds[words[first]].add(kind)
    names = {(stem + ending).capitalize() for stem, ending in itertools.product(_STEMS, _ENDINGS)}
    assert set(kinds) == names
    assert all(found == {"PER", "ORG", "LOC"} for found in kinds.values())


def test_tags_are_exact() -> None:
    """Stops a mention whose tags begin or end at another word, and a sentence that can be read in two ways."""
    pattern = re.compile("PER|ORG|LOC")
    times = "|".join(f" {time}" for time in _TIMES if time)
    clauses = {clause: pattern.sub(lambda found: f"({MENTIONS[found[0]]})", clause) for clause in _CLAUSES}
    for words, tags in rows():
        text = " ".join(words).lower()
        read = {clause: re.fullmatch(rf"{form}(?:{times})? \.", text) for clause, form in clauses.items()}
        ((clause, match),) = [(clause, match) for clause, match in read.items() if match]
        expected = ["O"] * len(words)
        for number, kind in enumerate(pattern.findall(clause), start=1):
            first, last = (text.count(" ", 0, place) for place in match.span(number))
            expected[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
        assert list(tags) == expected


def test_the_tokenizer_has_every_word() -> None:
    """Stops unknown tokens, and names that are known as a whole, which leaves no later sub-word to tag."""
    data = SyntheticNERDataModule(num_train=600, num_validation=10, num_test=10)
    data.setup("fit")
    assert data.tokenizer is not None
    assert not (data._rows["train"].tokens["input_ids"] == data.tokenizer.unk_token_id).any()
    for stem, ending in itertools.product(_STEMS, _ENDINGS):
        assert data.tokenizer.tokenize((stem + ending).capitalize()) == [stem, f"##{ending}"]
    assert all(len(data.tokenizer.tokenize(name)) == 1 for name in _FIRST_NAMES)
    assert data._rows["train"].lengths.max() <= 23
    assert data.tokenizer.get_vocab() == SyntheticNERDataModule(seed=3).load_tokenizer().get_vocab()


def test_refused() -> None:
    """Stops an empty split from being found at the first batch."""
    with pytest.raises(InputError, match=r"`data.num_test` to be at least 1, but got 0"):
        SyntheticNERDataModule(num_test=0)
