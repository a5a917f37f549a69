"""Tagged sentences of one's own: column files, JSON Lines, other schemes, rows without tags, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOBES, Entities

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.datamodules import NERDataModule
from lightning_kd.datamodules.tags import in_iob2
from lightning_kd.tasks import TokenClassification

Make = Callable[..., Any]
Rows = Sequence[tuple[list[str], list[str] | None]]

TRAIN: Rows = [
    (["Zoë", "bas", "ko", "din"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["ba", "中\u3000", "din"], ["O", "B-LOC", "I-LOC"]),
    (["ko"], ["O"]),
]
DEV: Rows = [(["ba", "din"], ["B-LOC", "O"])]


def columns(rows: Rows, between: str = " ", middle: str = "NN B-NP ") -> str:
    lines = ["-DOCSTART- -X- -X- O", ""]
    for words, tags in rows:
        lines += [f"{w}{between}{middle}{t}" for w, t in zip(words, tags or [], strict=True)] + [""]
    return "\n".join(lines)


def json_lines(rows: Rows) -> str:
    return "".join(json.dumps({"tokens": words, "ner_tags": tags}) + "\n" for words, tags in rows)


@pytest.fixture
def own(tmp_path: Path, tiny_model: Make) -> Make:
    """A data module of the files that are given: ``own({"train.txt": text}, **options)``."""

    def make(files: dict[str, str | bytes], **options: Any) -> NERDataModule:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return NERDataModule(str(folder), **{"tokenizer": str(tiny_model()), "max_length": 16, "stride": 4} | options)

    return make


def read(data: NERDataModule, split: str = "train") -> Rows:
    rows = data.load_split(split)
    assert rows is not None
    names = rows.features["ner_tags"].feature.names
    return [(r["tokens"], None if r["ner_tags"] is None else [names[t] for t in r["ner_tags"]]) for r in rows]


@pytest.mark.parametrize(
    "files",
    [
        {"train.txt": columns(TRAIN), "dev.txt": columns(DEV)},
        {"train.conll": columns(TRAIN, "\t", ""), "valid.bio": columns(DEV, "  ", "")},
        {"train.txt": "\ufeff" + columns(TRAIN).replace("\n", "\r\n"), "validation.conll": columns(DEV) + "\n\n\n"},
        {"train.jsonl": json_lines(TRAIN), "validation.jsonl": json_lines(DEV)},
        {
            "train.txt": "# id 1 domain=train\n"
            + columns(TRAIN, "\t", "").replace("\n\n", " \n \n# id 2\n# of two\n", 1),
            "dev.txt": "# id 5 domain=dev\n" + columns(DEV, " ", "_ _ "),
        },
    ],
    ids=["spaces", "tabs", "windows", "json", "comments"],
)
def test_files_are_read(files: dict[str, str], own: Make) -> None:
    """Stops a sentence that is lost at a file's end, a word that is cut at a space of its own, and shifted columns."""
    data = own(files)
    data.setup("fit")
    assert list(read(data)) == list(TRAIN) and list(read(data, "validation")) == list(DEV)
    assert data.label_names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert data.sizes == {"train": 3, "validation": 1}


def test_words_that_begin_as_comments_do(own: Make) -> None:
    """Stops a hash, alone or in front of a word, from being left out as a comment."""
    data = own({"train.txt": "# O\n#a B-PER\n\n#b O\n\n# c O\nd O\n", "dev.txt": "# B-LOC\n"})
    data.setup("fit")
    assert list(read(data)) == [(["#", "#a"], ["O", "B-PER"]), (["#b"], ["O"]), (["d"], ["O"])]
    assert list(read(data, "validation")) == [(["#"], ["B-LOC"])]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": b"a O\n" + b"\n\xff O\n"}, r"train\.txt is not UTF-8: byte 0xff in line 3"),
        ({"train.txt": "a NN O\nb O\n"}, r"Line 2 of .*train\.txt has 2 columns where 3 were expected"),
        ({"train.txt": "a\tO\n\nb\t\n"}, r"Line 3 of .*train\.txt has 1 columns where 2 were expected"),
        ({"train.txt": "a NN\n"}, r"IOB2, IOB1, BIOES, BILOU or BMES .* but there is 'NN'"),
        ({"train.txt": "a PER-B\n"}, "but there is 'PER-B'"),
        ({"train.txt": "\n\n"}, r"train\.txt has no sentence in it"),
        ({"train.txt": "a O\n", "dev.txt": "a O\n", "valid.txt": "a O\n"}, "are both the validation split"),
        ({"train.txt": "a O\n", "dev.txt": "a\n\nb\n"}, "Row 0 of the validation split of .* has no tags"),
        (
            {"train.jsonl": json_lines([(["a"], ["O"]), (["a", "b"], ["O"])]), "dev.jsonl": json_lines(DEV)},
            "Row 1 of .* has 2 words but 1 tags",
        ),
    ],
)
def test_files_that_are_refused(files: dict[str, str | bytes], message: str, own: Make) -> None:
    """Stops tags of another column, mojibake and rows that cannot be counted; the message says where."""
    with pytest.raises(InputError, match=message) as error:
        own({"dev.txt": "a O\n"} | files if "train.txt" in files else files).setup("fit")
    assert "\n" not in str(error.value)


def tagged(rows: list[list[str]], names: list[str] | None = None) -> dict[str, Dataset]:
    tag = Value("string") if names is None else ClassLabel(names=names)
    values = rows if names is None else [[names.index(t) for t in row] for row in rows]
    columns = {"tokens": [["w"] * len(row) for row in rows], "ner_tags": values}
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tag)})
    return {"train": Dataset.from_dict(columns, features=features)}


entity_rows = st.lists(
    st.lists(st.tuples(st.sampled_from(["", "PER", "LOC"]), st.integers(1, 3)), max_size=5), min_size=1, max_size=4
)


def written(rows: list[list[tuple[str, int]]], scheme: str) -> list[list[str]]:
    """The tags of rows of spans, each a type, empty outside, and a length."""
    found = []
    for row in rows:
        tags: list[str] = []
        for kind, length in row:
            before = tags[-1][2:] if tags and tags[-1] != "O" else None
            if not kind:
                tags += ["O"] * length
            elif scheme == "IOB1":
                tags += [f"{'B' if before == kind else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
            else:
                single, end, inside = {"IOB2": "BII", "IOBES": "SEI", "BILOU": "ULI", "BMES": "SEM"}[scheme]
                whole = [f"B-{kind}", *[f"{inside}-{kind}"] * (length - 2), f"{end}-{kind}"]
                tags += [f"{single}-{kind}"] if length == 1 else whole
        found.append(tags)
    return found


@given(rows=entity_rows, scheme=st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU", "BMES"]), named=st.booleans())
def test_schemes_keep_their_entities(rows: list[list[tuple[str, int]]], scheme: str, named: bool) -> None:
    """Stops neighbours that melt into one entity, and one that falls apart, where tags are converted."""
    tags = written(rows, scheme)
    names = sorted({tag for row in tags for tag in row}) if named and any(tags) else None
    converted = in_iob2(tagged(tags, names), "ner_tags", "own")["train"]
    known = converted.features["ner_tags"].feature.names
    result = [[known[tag] for tag in row] for row in converted["ner_tags"]]
    assert result == written(rows, "IOB2")
    strict = {"IOB1": IOB1, "IOBES": IOBES, "BILOU": BILOU}
    if scheme in strict:  # what seqeval, told the scheme, finds in the tags as they came
        theirs = [[e.to_tuple()[1:] for e in row] for row in Entities(tags, strict[scheme]).entities]
        ours = [[(kind, start, end + 1) for kind, start, end in get_entities(row)] for row in result]
        assert ours == theirs


def test_conversion_is_announced(own: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops tags from being changed in silence."""
    own({"train.txt": "a I-PER\nb I-PER\nc B-PER\nd I-LOC\n", "dev.txt": "a S-PER\nb O\n"}).setup("fit")
    messages = [record.getMessage() for record in log.records]
    assert any(m.startswith("2 entities of train begin with I- (IOB1)") for m in messages)
    assert any("have the letters S: they are read as IOB2" in m for m in messages)


def test_iob2_is_left_as_it_is() -> None:
    """Stops the numbers of a known set's tags from being changed, which its published taggers have learned."""
    names = ["I-PER", "O", "B-LOC", "B-PER", "I-LOC"]
    splits = tagged([["B-PER", "I-PER", "O", "B-LOC"]], names)
    converted = in_iob2(splits, "ner_tags", "own")["train"]
    assert converted.features == splits["train"].features
    assert converted["ner_tags"][0] == splits["train"]["ner_tags"][0]


def test_a_tag_that_train_lacks(own: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops an unseen tag from being dropped, which would raise the scores, or from being an error at the last step."""
    data = own({"train.txt": columns(TRAIN), "dev.txt": "a O\nb B-NEW\nc I-NEW\n", "test.txt": "a B-LOC\n"})
    data.setup("fit")
    assert data.label_names == ["O", "B-LOC", "I-LOC", "B-NEW", "I-NEW", "B-PER", "I-PER"]
    messages = [record.getMessage() for record in log.records]
    assert [m for m in messages if "which validation has" in m] == [
        "Train has no tag B-NEW (1), I-NEW (1), which validation has: nothing can learn it, and it is counted"
    ]
    assert read(data, "validation") == [(["a", "b", "c"], ["O", "B-NEW", "I-NEW"])]


@pytest.mark.parametrize("where", ["column file", "json", "null"])
def test_sentences_without_tags(where: str, own: Make, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Stops a sentence without tags from being trained on as one without entities, or from being held out to test."""
    more = tmp_path / "more"
    more.mkdir()
    rows: Rows = [(["ba", "ko", "中"], None), (["Zoë", "bas", "ko", "din"], None), (["din"], None)]
    if where == "null":
        data = own({"train.jsonl": json_lines([*rows, *TRAIN]), "dev.jsonl": json_lines(DEV)}, holdout_size=1)
    else:
        if where == "json":
            (more / "train.jsonl").write_text(json_lines(rows))
        else:
            (more / "train.txt").write_text("\n\n".join("\n".join(words) for words, _ in rows))
        data = own({"train.txt": columns(TRAIN), "dev.txt": columns(DEV)}, unlabelled_path=str(more), holdout_size=1)
    data.setup("fit")
    (test,) = data.evaluation_batches("test")
    assert (test["labels"] >= 0).any()
    (train,) = data.evaluation_batches("train")
    held_out = data.texts("test")[0]
    untagged = [words for words, _ in rows if (words,) != held_out]
    without = [
        data.texts("train")[i] for i, labels in enumerate(train["labels"][train["index"].argsort()]) if labels.max() < 0
    ]
    assert [words for (words,) in without] == untagged
    assert (train["words"] >= 0).sum() == sum(len(words) for (words,) in data.texts("train"))
    expected = f"{len(untagged)} of {len(untagged) + 2} training rows have no label"
    assert any(record.getMessage().startswith(expected) for record in log.records)


def test_unlabelled_path_is_refused(own: Make, tmp_path: Path) -> None:
    """Stops a path without sentences to train on from being found as a KeyError, or from being asked of the Hub."""
    files = {"train.txt": columns(TRAIN), "dev.txt": columns(DEV)}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "dev.txt").write_text("ba\n")
    with pytest.raises(InputError, match=r"`data.unlabelled_path` to be data with a training split that has a column"):
        own(files, unlabelled_path=str(tmp_path / "more")).setup("fit")
    with pytest.raises(InputError, match=r"`data.unlabelled_path` to be a local folder .* There is no such folder"):
        own(files, unlabelled_path=str(tmp_path / "none"))


def test_sentences_without_words_and_very_long_ones(
    own: Make, make_trainer: Make, tiny_model: Make, log: pytest.LogCaptureFixture
) -> None:
    """Stops an empty row from breaking a batch, and a long one from being cut or from losing its entities."""
    long = (["ba", "din"] * 5000, ["O", "B-LOC"] * 5000)
    empty: tuple[list[str], list[str]] = ([], [])
    files = {"train.jsonl": [*TRAIN, empty, empty], "dev.jsonl": [long, empty], "test.jsonl": [empty, long]}
    data = own({name: json_lines(rows) for name, rows in files.items()}, batch_size=2, eval_batch_size=1)
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=TokenClassification())
    trainer = make_trainer(num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    assert any(record.getMessage().startswith("1 of 2 sentences are longer than 16 tokens") for record in log.records)
    batch = max(data.evaluation_batches("validation"), key=lambda batch: batch["labels"].numel())
    assert (batch["labels"] >= 0).sum() == 10_000 and len(batch["labels"]) == 1000
    predictions = trainer.predict(module, datamodule=data)
    records = {record["index"]: record for part in predictions for record in part}
    assert records[0]["entities"] == []


def test_untagged_sentences_teach_nothing_by_hard_labels(own: Make, tmp_path: Path) -> None:
    """Stops a sentence without tags from moving the supervised loss; the teacher's opinion of it still counts."""
    more = tmp_path / "more"
    more.mkdir()
    (more / "train.txt").write_text("ba\nko\ndin\n")
    data = own({"train.txt": columns(TRAIN), "dev.txt": columns(DEV)}, unlabelled_path=str(more))
    data.setup("fit")
    (batch,) = data.batches_of("train", [[3]])
    logits = {"logits": torch.randn(*batch["labels"].shape, 5, requires_grad=True)}
    loss = TokenClassification().hard_label_loss(logits, batch)
    loss.backward()
    assert loss == 0 and not logits["logits"].grad.any()
    assert TokenClassification().logit_masks(batch)["logits"].sum() == 3
