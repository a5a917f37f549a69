"""Running text, from lines to windows to the report of a language model."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport
from lightning_kd.datamodules import RunningTextDataModule
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL
from lightning_kd.optim import AdamW
from lightning_kd.quantization import DynamicInt8, Forward
from lightning_kd.tasks import LanguageModeling, SequenceClassification, Task, TokenClassification
from lightning_kd.tasks.base import IGNORED
from lightning_kd.trainer import CompressionTrainer

Make = Callable[..., Any]


def verses(lines: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    names = [f"{c}{v}" for c in "bdfgk" for v in "aeiou"]
    return [
        " ".join(generator.choice(names, generator.integers(0, 7))) + generator.choice(["", ".", ", oh!"])
        for _ in range(lines)
    ]


LINES = {"train": [*verses(120, 0), "rare words stand here"], "validation": verses(30, 1), "test": verses(20, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "plain"
    folder.mkdir()
    for split, lines in LINES.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def text(folder: Path) -> Make:
    """Serves the verses in windows of 9 words: ``text(**options)``."""
    return lambda **options: RunningTextDataModule(str(folder), **{"max_length": 9, "batch_size": 4, **options})


def words(lines: list[str], vocabulary: set[str]) -> list[str]:
    """The stream of words of some lines, one character at a time."""
    found = []
    for line in lines:
        word = ""
        for character in line + " ":
            is_part = character.isalnum()
            if word and (character == " " or is_part != word[-1].isalnum()):
                found.append(word if word in vocabulary else "<unk>")
                word = ""
            word += character.strip()
        found.append("<eos>")
    return found


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_word_is_predicted_once_from_the_one_before(text: Make, split: str) -> None:
    """Stops a word at the edge of two windows, the first or the last one from being left out of the perplexity."""
    data = text()
    data.setup("fit")
    vocabulary = set(data.tokenizer.get_vocab())
    expected = words(LINES[split], vocabulary)
    batches = data.evaluation_batches(split)
    before, after = {}, {}
    for batch in batches:
        for row, number in enumerate(batch["index"].tolist()):
            kept = batch["attention_mask"][row].bool()
            assert (batch["labels"][row][~kept] == IGNORED).all() and (batch["labels"][row][kept] >= 0).all()
            before[number], after[number] = (batch[name][row][kept].tolist() for name in ("input_ids", "labels"))
    inputs = [word for number in sorted(before) for word in before[number]]
    labels = [word for number in sorted(after) for word in after[number]]
    assert data.tokenizer.convert_ids_to_tokens(labels) == expected
    assert inputs == [data.tokenizer.eos_token_id, *labels[:-1]]
    assert [len(after[i]) for i in sorted(after)][:-1] == [9] * (data.sizes[split] - 1)
    assert " ".join(window for (window,) in data.texts(split)).split() == expected


def test_vocabulary_is_that_of_the_training_text_alone(text: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops held-out words from being known, and unknown ones from being dropped without a word."""
    data = text(min_count=1, holdout_size=1)
    data.setup("fit")
    vocabulary = data.tokenizer.get_vocab()
    assert "rare" not in vocabulary and vocabulary["<unk>"] == 0 and vocabulary["<eos>"] == 1
    counts = [
        words(LINES["train"][:-1], set(vocabulary)).count(word) for word in sorted(vocabulary, key=vocabulary.get)
    ]
    assert counts[2:] == sorted(counts[2:], reverse=True) and counts[0] == 0
    assert "4 of 5 words of 1 lines are not in the vocabulary" in log.text
    assert data.texts("test") == [("<unk> <unk> <unk> <unk> <eos>",)]
    rare = text(min_count=2)
    rare.setup("fit")
    assert "rare" not in rare.tokenizer.get_vocab()
    assert len(text(min_count=1).load_tokenizer()) > len(rare.tokenizer) > 20


def test_parquet_and_plain_text_are_read_alike(folder: Path, tmp_path: Path, text: Make) -> None:
    """Stops a Parquet file with a whole split in a row from being one line."""
    for split, lines in LINES.items():
        rows = ["\n".join(lines) + "\n"] if split == "train" else [f"{line}\n" for line in lines]
        Dataset.from_dict({"text": rows}).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    plain, parquet = text(), RunningTextDataModule(str(tmp_path), max_length=9)
    for data in (plain, parquet):
        data.setup("fit")
    assert plain.tokenizer.get_vocab() == parquet.tokenizer.get_vocab()
    assert all(plain.texts(split) == parquet.texts(split) for split in LINES)


def test_words_of_split_text_stay_whole(tmp_path: Path) -> None:
    """Stops WikiText's `@-@` and `<unk>` from becoming words that no published perplexity counts."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("a <unk> 's two @-@ year 's @-@ a\n \n")
    data = RunningTextDataModule(str(tmp_path), separate_punctuation=False)
    data.setup("fit")
    assert data.texts("validation") == [("a <unk> 's <unk> @-@ <unk> 's @-@ a <eos> <eos>",)]


def test_what_cannot_work_is_refused(text: Make, tmp_path: Path) -> None:
    """Stops a mistyped column, or a held-out part without a rest, from being a KeyError."""
    with pytest.raises(InputError, match=r"`data\.min_count` to be at least 1, but got 0"):
        text(min_count=0)
    with pytest.raises(InputError, match="to have a column 'line', but its train split has text"):
        text(text_column="line").setup("fit")
    with pytest.raises(InputError, match="`holdout_size` to be below the 121 lines of the training text, but got 121"):
        text(holdout_size=121).setup("fit")
    (tmp_path / "validation.txt").write_text("a b\n")
    with pytest.raises(InputError, match="has no 'train' split"):
        RunningTextDataModule(str(tmp_path)).setup("validate")


def module(**shape: Any) -> DistillationModule:
    config = {"model_type": "lstm", "hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0, **shape}
    source = ModelSource(from_scratch=True, config=config)
    return DistillationModule(source, task=LanguageModeling(), optimizer=partial(AdamW, lr=1e-2))


def test_a_language_model_goes_from_text_to_int8(tmp_path: Path, text: Make, make_trainer: Make) -> None:
    """Stops a language model that only the training can read: its folders open, and say what the report says."""
    report = CompressionReport()
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8()), report]
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=callbacks, max_epochs=3)
    data = text(holdout_size=20)
    trainer.fit(module(), datamodule=data)
    assert report.report is not None
    rows = {row.name: row.metrics["test"]["perplexity"].value for row in report.report.rows}
    lines = LINES["train"][-20:]
    for name, folder in (("model", "student"), ("int8, torch", "int8")):
        opened = Runner.open(tmp_path / folder)
        assert opened.tokenizer.get_vocab() == data.tokenizer.get_vocab()
        losses = total = 0.0
        for batch in data.evaluation_batches("test"):
            log = opened.forward(opened.task.model_inputs(batch))["logits"].log_softmax(-1)
            for row, labels in zip(log, batch["labels"], strict=True):
                for distribution, label in zip(row, labels.tolist(), strict=True):
                    if label >= 0:
                        losses, total = losses - distribution[label].item(), total + 1
        assert rows[name] == pytest.approx(math.exp(losses / total), rel=1e-4)
        (record,) = opened.predict([lines[0]])
        assert record["words"] == len(words(lines[:1], set())) and 1 < record["perplexity"] < 1000
    assert rows["int8, torch"] == pytest.approx(rows["model"], rel=0.02)
    assert [row.kept for row in report.report.rows] == [None, None], "a share of a perplexity says nothing"
    assert report.report.rows[1].times_smaller is not None and report.report.rows[1].times_smaller > 1
    assert trainer.callback_metrics["val/perplexity"] < len(data.tokenizer)
    log_loss = trainer.callback_metrics["val/loss"].item()
    assert trainer.callback_metrics["val/perplexity"].item() == pytest.approx(math.exp(log_loss), rel=1e-4)


class Clueless(DynamicInt8):
    """Writes a folder that opens as a model which finds every word as likely as any other."""

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Forward:
        forward = super().open(folder, threads)
        return lambda inputs: {name: torch.zeros_like(value) for name, value in forward(inputs).items()}


def test_a_higher_perplexity_is_a_loss(text: Make, make_trainer: Make) -> None:
    """Stops a limit on what may be lost from taking a worse perplexity for a gain."""
    callback = QuantizationCallback(Clueless(), max_drop=0.5)
    with pytest.raises(InputError, match=r"loses more perplexity on the validation split than max_drop, 0\.5"):
        make_trainer(callbacks=[callback], max_epochs=3).fit(module(), datamodule=text())


def test_a_language_model_can_be_distilled(tmp_path: Path, text: Make, make_trainer: Make) -> None:
    """Stops soft targets at padding, and a student with another vocabulary than its teacher's."""
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[StudentExport()])
    trainer.fit(module(hidden_size=24, num_hidden_layers=2), datamodule=text())
    student = DistillationModule(
        ModelSource(from_scratch=True, config={"model_type": "lstm", "hidden_size": 8, "num_hidden_layers": 1}),
        teachers={"teacher": ModelSource(str(tmp_path / "student"))},
        task=LanguageModeling(),
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(1, 2)])},
    )
    trainer = make_trainer(log_every_n_steps=1)
    trainer.fit(student, datamodule=text())
    assert all(torch.isfinite(trainer.callback_metrics[f"train/loss/{name}"]) for name in ("soft", "hidden", "hard"))


def test_analyze_reads_the_folder_that_fit_wrote(tmp_path: Path, text: Make, make_trainer: Make) -> None:
    """Stops an analysis of other weights, of training rows, or of another vocabulary than the student's."""
    pytest.importorskip("torchao", reason="needs the extra torchao")
    make_trainer(default_root_dir=tmp_path, callbacks=[StudentExport()]).fit(module(), datamodule=text())
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = CompressionTrainer(default_root_dir=tmp_path, **quiet)
    trainer.analyze(module(), text(min_count=1), bits=[2, 8], calibration_batches=2)
    with (tmp_path / "analysis" / "analysis.csv").open() as file:
        rows = list(csv.DictReader(file))
    gates = [f"layers.0.weight_{w}_l0.{g}" for w in ("ih", "hh") for g in ("input", "forget", "cell", "output")]
    assert [row["layer"] for row in rows[::2]] == ["embedding", *gates, "decoder"]
    float_metric = {float(row["metric"]) - float(row["drop"]) for row in rows}
    checked = make_trainer()
    own = DistillationModule(ModelSource(str(tmp_path / "student")), task=LanguageModeling())
    (expected,) = checked.validate(own, datamodule=text(tokenizer=str(tmp_path / "student")), verbose=False)
    assert all(value == pytest.approx(expected["val/perplexity"], rel=1e-5) for value in float_metric)
    assert (tmp_path / "analysis" / "analysis.png").is_file()
    with pytest.raises(InputError, match=r"`student` to be the folder of a float student, .* Run `fit` first\."):
        trainer.analyze(module(), text(), student=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="`calibration_batches` to be at least 1, but got 0"):
        trainer.analyze(module(), text(), calibration_batches=0)


@pytest.mark.parametrize(
    "task", [SequenceClassification(), TokenClassification()], ids=lambda task: type(task).__name__
)
def test_another_task_is_refused(task: Task, text: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops a forgotten `task` from training a classifier without classes."""
    own = DistillationModule(ModelSource(str(tiny_model(head=False))), task=task)
    with pytest.raises(InputError, match=f"LanguageModeling, but the task is {type(task).__name__}"):
        make_trainer().fit(own, datamodule=text())
