"""The synthetic questions: answers against a reader of the passages, splits, tokenizer and two processes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_kd import InputError
from lightning_kd.datamodules import SyntheticQADataModule
from tests.test_ddp import STUDENT, TWO, train

READERS = {
    r"where does (\w+) live \?": r"{0} lives in (\w+) \.",
    r"what is the job of (\w+) \?": r"{0} works as a (\w+) \.",
    r"what does (\w+) own \?": r"{0} owns (a \w+ \w+) \.",
    r"where was (\w+) born \?": r"{0} was born in (\w+) \.",
}


def read(context: str, question: str) -> list[tuple[str, int]]:
    """The answers that the passage's own words give, with their places."""
    for asked, stated in READERS.items():
        if found := re.fullmatch(asked, question):
            return [(m[1], m.start(1)) for m in re.finditer(rf"\b{stated.format(found[1])}", context)]
    raise AssertionError(question)


@settings(max_examples=10)
@given(seed=st.integers(-5, 10_000), split=st.sampled_from(["train", "validation", "test"]))
def test_answers_are_what_the_passages_say(seed: int, split: str) -> None:
    """Stops answers called exact that another fact contradicts, or whose place is that of another person's."""
    data = SyntheticQADataModule(num_train=100, num_validation=100, num_test=100, unanswerable=0.3, seed=seed)
    rows = data.load_split(split)
    assert rows is not None and len(rows) == 100
    for row in rows:
        answers = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
        assert read(row["context"], row["question"]) == answers and len(answers) <= 1
    share = sum(not answers["text"] for answers in rows["answers"]) / 100
    assert 0.1 < share < 0.55


def test_splits_share_no_passage_and_repeat() -> None:
    """Stops a model from being tested on what it was trained on, and a run from having other rows than its teacher."""
    one, two = (SyntheticQADataModule(num_train=500, num_validation=200, num_test=200) for _ in range(2))
    other = SyntheticQADataModule(num_train=500, num_validation=200, num_test=200, seed=1)
    found = {s: set(one.load_split(s)["context"]) for s in ("train", "validation", "test")}
    elsewhere = set(other.load_split("train")["context"])
    assert not found["train"] & found["validation"] and not (found["train"] | elsewhere) & found["test"]
    assert one.load_split("train").to_list() == two.load_split("train").to_list()
    assert found["train"] != elsewhere and one.load_split("other") is None


def test_every_word_is_one_token() -> None:
    """Stops unknown words and windows, which the quickstart does not need."""
    data = SyntheticQADataModule(num_train=300, num_validation=50, num_test=50)
    data.setup("fit")
    for rows in data._rows.values():
        assert not (rows.tokens["input_ids"] == data.tokenizer.unk_token_id).any()
        assert len(rows.offsets) - 1 == len(rows) and rows.lengths.max() < 64
    assert data.num_unanswerable == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "`num_train` to be at least 1"),
        ({"unanswerable": 1.5}, "`unanswerable` to be between 0 and 1"),
    ],
)
def test_refused(options: dict[str, float], message: str) -> None:
    """Stops a set without rows, and a share that is none."""
    with pytest.raises(InputError, match=message):
        SyntheticQADataModule(**options)


@pytest.mark.slow
def test_two_processes_validate_as_one(tmp_path: Path) -> None:
    """Stops questions from being counted twice, and windows from being parted from their question."""
    sizes = {"num_train": 32, "num_validation": 61, "num_test": 5, "max_length": 26, "stride": 4, "eval_batch_size": 8}
    data = {"class_path": "lightning_kd.datamodules.SyntheticQADataModule", "init_args": sizes}
    task = {"class_path": "lightning_kd.tasks.QuestionAnswering"}
    model = {"student": {**STUDENT, "config": {**STUDENT["config"], "max_position_embeddings": 64}}, "task": task}
    found = []
    for name, more in (("one", ()), ("two", TWO)):
        root = tmp_path / name
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root)}}
        done = train(root, "validate", {"model": model, "data": data, "trainer": {"logger": logger}}, *more)
        assert done.returncode == 0, done.stderr[-6000:]
        [file] = root.rglob("metrics.csv")
        with file.open() as opened:
            found.append(
                [{k: float(v) for k, v in r.items() if k.startswith("val/") and v} for r in csv.DictReader(opened)]
            )
    assert found[0][0].keys() == {"val/f1", "val/exact_match", "val/loss"}
    assert found[0][0]["val/f1"] == found[1][0]["val/f1"] > 0
    assert found[0][0]["val/exact_match"] == found[1][0]["val/exact_match"]
    assert found[0][0]["val/loss"] == pytest.approx(found[1][0]["val/loss"], rel=1e-6)
