"""Teachers that run once over the training rows."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizerFast,
)

from lightning_kd import DistillationModule, InputError, ModelSource, logit_cache
from lightning_kd.callbacks import CompressionReport, TeacherCache
from lightning_kd.datamodules import NERDataModule, QADataModule
from lightning_kd.logit_cache import CachedLogits, LogitWriter, Rows
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL
from lightning_kd.tasks import QuestionAnswering, TokenClassification
from tests.conftest import SPECIAL_TOKENS, VOCABULARY
from tests.datamodules.test_ner import TAGS, random_rows, write
from tests.datamodules.test_qa import random_rows as random_questions
from tests.datamodules.test_qa import write as write_questions
from tests.test_ensemble import Calls

Make = Callable[..., Any]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Losses(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs["loss"].item())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows are several shards."""
    monkeypatch.setattr(logit_cache, "SHARD", 10)


@pytest.fixture
def problem(tmp_path: Path, tiny_model: Make, distillation: Make, glue: Make) -> Make:
    """Makes a module with a teacher, and the data: ``problem(kind)``."""

    def stored(kind: Any, name: str, num_labels: int, seed: int, vocabulary: list[str] | None = None) -> ModelSource:
        folder = tmp_path / name
        if not folder.exists():
            words = vocabulary or VOCABULARY
            torch.manual_seed(seed)
            encoder = tiny_model(head=False, seed=seed, vocab_size=len(words), **STILL)
            kind.from_pretrained(encoder, num_labels=num_labels).save_pretrained(folder)
            BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=64).save_pretrained(
                folder
            )
        return ModelSource(str(folder))

    def make(kind: str) -> tuple[DistillationModule, L.LightningDataModule]:
        other = None
        if kind.endswith(", other vocabulary"):
            other = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
        foreign = {} if other is None else {"teacher": str(tmp_path / "teacher")}
        if kind.startswith("texts"):
            model: Any = AutoModelForSequenceClassification
            models = stored(model, "student", 3, 1), stored(model, "teacher", 3, 2, other)
            data = glue("mnli", teacher_tokenizers=foreign, batch_size=5)
            options: dict[str, Any] = {}
        elif kind.startswith("words"):
            model = AutoModelForTokenClassification
            models = stored(model, "student", len(TAGS), 1), stored(model, "teacher", len(TAGS), 2, other)
            folder = tmp_path / "ner"
            if not folder.exists():
                write(folder, {"train": random_rows(24, 0, longest=20), "validation": random_rows(9, 1)})
            data = NERDataModule(
                str(folder), tokenizer=str(tmp_path / "student"), max_length=12, stride=2, batch_size=5
            )
            data.teacher_tokenizer_sources = foreign
            options = {"task": TokenClassification()}
        else:
            model = AutoModelForQuestionAnswering
            models = stored(model, "student", 2, 1), stored(model, "teacher", 2, 2, other)
            folder = tmp_path / "qa"
            if not folder.exists():
                write_questions(folder, {"train": random_questions(24, 0), "validation": random_questions(9, 1)})
            data = QADataModule(
                str(folder), tokenizer=str(tmp_path / "student"), max_length=48, stride=16, batch_size=5
            )
            data.teacher_tokenizer_sources = foreign
            options = {"task": QuestionAnswering()}
        losses = {"soft": SoftTargetKL()}
        student, teacher = models
        module = distillation(
            student=student,
            teachers={"teacher": teacher},
            losses=losses,
            temperature=2.0,
            hard_label_weight=0.5,
            **options,
        )
        return module, data

    return make


KINDS = ["texts", "words", "answers"]
KINDS += [f"{kind}, other vocabulary" for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_cached_and_live_teacher_give_the_same_losses(
    kind: str, problem: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops logits from reaching another row, window or token than they are of, as batches are drawn anew."""

    def run(*callbacks: L.Callback) -> tuple[list[float], DistillationModule, int]:
        losses, calls = Losses(), Calls()
        module, data = problem(kind)
        trainer = make_trainer(max_epochs=3, limit_val_batches=0, callbacks=[losses, *callbacks, calls])
        trainer.fit(module, datamodule=data)
        return losses.values, module, calls.count["teacher"]

    live, module, passes = run()
    assert passes == len(live) >= 15 and set(module.teachers) == {"teacher"}
    for _ in range(2):  # computing it, and finding it
        cached, module, passes = run(TeacherCache(str(tmp_path / "cache"), dtype="float32"))
        assert cached == pytest.approx(live, rel=1e-6, abs=1e-6)
        assert passes == 0 and module.teachers == {}
    half, _, _ = run(TeacherCache(str(tmp_path / "half")))
    assert half == pytest.approx(live, rel=2e-3) and half != live
    assert not list(tmp_path.glob("*/*.partial"))


def test_teacher_is_computed_once(problem: Make, make_trainer: Make, tmp_path: Path, log: Any) -> None:
    """Stops a second run from computing it again, and a report without its teacher."""
    for number in range(2):
        report = CompressionReport()
        module, data = problem("texts")
        cache = TeacherCache(str(tmp_path / "cache"))
        make_trainer(limit_val_batches=0, callbacks=[cache, report]).fit(module, datamodule=data)
        said = [record.getMessage() for record in log.records if "ogits of teacher 'teacher'" in record.getMessage()]
        assert [line.split()[0] for line in said] == (["Computing", "Logits"], ["The"])[number]
        log.clear()
        assert report.report is not None
        assert [row.name for row in report.report.rows] == ["teacher", "student"]


def test_a_fit_without_the_callback_is_live(problem: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops what one fit has cached from reaching the next, of the same module and data."""
    module, data = problem("texts")
    cache = TeacherCache(str(tmp_path / "cache"))
    make_trainer(limit_val_batches=0, callbacks=[cache]).fit(module, datamodule=data)
    assert data.on_train_batch is not None and module.teachers == {}
    calls = Calls()
    make_trainer(limit_val_batches=0, callbacks=[calls]).fit(module, datamodule=data)
    assert data.on_train_batch is None and calls.count["teacher"] == 5


def test_hidden_states_are_not_cached(problem: Make, make_trainer: Make, tmp_path: Path, log: Any) -> None:
    """Stops a loss on hidden states from finding none."""
    module, data = problem("texts")
    module.add_loss("hidden", HiddenStateMSE([FeatureMatch(1, 1)]))
    make_trainer(limit_val_batches=0, callbacks=[TeacherCache(str(tmp_path / "cache"))]).fit(module, datamodule=data)
    assert "Losses read more than the logits of teacher: not cached, run with every batch" in log.text
    assert set(module.teachers) == {"teacher"} and not (tmp_path / "cache").exists()


def _other_weights(tmp_path: Path, data: Any) -> None:
    folder = tmp_path / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-3
    model.save_pretrained(folder)


def _other_rows(tmp_path: Path, data: Any) -> None:
    data.max_train_rows = 20


def _shorter_rows(tmp_path: Path, data: Any) -> None:
    data.max_length = 6


def _other_tokenizer(tmp_path: Path, data: Any) -> None:
    for name in ("student", "teacher"):
        words = [*SPECIAL_TOKENS, *VOCABULARY[len(SPECIAL_TOKENS) :][::-1]]
        BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / name)
    data.tokenizer_source = str(tmp_path / "student")


def _cut_file(tmp_path: Path, data: Any) -> None:
    file = tmp_path / "cache" / "teacher" / "logits.npy"
    file.write_bytes(file.read_bytes()[:-10])


def _lost_file(tmp_path: Path, data: Any) -> None:
    (tmp_path / "cache" / "teacher" / "logits.npy").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _other_weights,
            "were computed with another teacher (its weights, its configuration or how it is loaded): del",
        ),
        (_other_rows, "were computed with other training rows, another tokenizer or other limits of length: delete"),
        (_shorter_rows, "were computed with other training rows, another tokenizer or other limits of length: delete"),
        (_other_tokenizer, "were computed with other training rows, another tokenizer or other limits of length: del"),
        (_cut_file, "logits.npy are damaged or cut off: delete the folder"),
        (_lost_file, "logits.npy are damaged or cut off: delete the folder"),
    ],
)
def test_stale_cache_is_noticed(
    change: Callable[[Path, Any], None], message: str, problem: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a student from learning what another teacher said, or of other texts."""
    cache = str(tmp_path / "cache")
    module, data = problem("texts")
    make_trainer(limit_val_batches=0, callbacks=[TeacherCache(cache)]).fit(module, datamodule=data)
    module, data = problem("texts")
    change(tmp_path, data)
    losses = Losses()
    with pytest.raises(InputError) as caught:
        make_trainer(callbacks=[TeacherCache(cache), losses]).fit(module, datamodule=data)
    assert message in str(caught.value) and not losses.values


@pytest.mark.parametrize(
    ("cache", "trainer", "message"),
    [
        ({"dtype": "float32"}, {}, "were computed with another dtype: delete"),
        ({"top_k": 1}, {}, "were computed with another top_k: delete"),
        ({}, {"precision": "bf16-mixed"}, "were computed with another trainer.precision: delete"),
    ],
)
def test_other_precision_is_noticed(
    cache: dict[str, Any], trainer: dict[str, Any], message: str, problem: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a run that asks for full precision from training on half."""
    path = str(tmp_path / "cache")
    module, data = problem("texts")
    make_trainer(limit_val_batches=0, callbacks=[TeacherCache(path)]).fit(module, datamodule=data)
    module, data = problem("texts")
    with pytest.raises(InputError) as caught:
        make_trainer(callbacks=[TeacherCache(path, **cache)], **trainer).fit(module, datamodule=data)
    assert message in str(caught.value)


def test_interrupted_computation_goes_on(
    problem: Make, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    """Stops a kill from costing all that was computed, or from leaving a cache that is complete by name alone."""
    written: list[int] = []
    write_shard = LogitWriter.write

    def write_two(self: LogitWriter, shard: int, batches: Any) -> None:
        if len(written) == 2:
            next(iter(batches))  # in the middle of the third
            raise KeyboardInterrupt
        write_shard(self, shard, batches)
        written.append(shard)

    def start() -> tuple[list[float], Any]:
        losses = Losses()
        module, data = problem("words")
        cache = TeacherCache(str(tmp_path / "cache"), dtype="float32")
        make_trainer(limit_val_batches=0, callbacks=[cache, losses]).fit(module, datamodule=data)
        return losses.values, module

    monkeypatch.setattr(LogitWriter, "write", write_two)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        start()
    assert written == [0, 1] and not (tmp_path / "cache" / "teacher").exists()
    monkeypatch.setattr(LogitWriter, "write", lambda *args: (written.append(args[1]), write_shard(*args)))
    found, _ = start()
    assert written == [0, 1, 2] and "Computing the rest of the logits" in log.text
    shutil.rmtree(tmp_path / "cache")
    anew, _ = start()
    assert found == anew


def test_full_disk_is_noticed(
    problem: Make, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the process from dying of a bus error in a memory-mapped file."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 950, 50))
    module, data = problem("texts")
    with pytest.raises(InputError, match="give TeacherCache another path"):
        make_trainer(callbacks=[TeacherCache(str(tmp_path / "cache"))]).fit(module, datamodule=data)
    assert not list((tmp_path / "cache").iterdir())


def test_trial_run_writes_nothing(problem: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a run of one batch from computing every row."""
    module, data = problem("texts")
    make_trainer(fast_dev_run=True, callbacks=[TeacherCache(str(tmp_path / "cache"))]).fit(module, datamodule=data)
    assert not (tmp_path / "cache").exists()


# -------------------------------------------------------------------------------------------------- top k


def _store(folder: Path, logits: Tensor, **options: Any) -> CachedLogits:
    rows = Rows(np.arange(len(logits))[::-1].copy(), np.arange(len(logits) + 1))
    writer = LogitWriter(folder, rows, {"teacher": "t"}, "float32", **options)
    writer.prepare({"logits": (False, logits[0])})
    for shard in writer.missing():
        places = list(writer.rows_of(shard))
        writer.write(shard, iter([(places, {"logits": logits[places]})]))
    writer.finish()
    return CachedLogits(folder, rows, {"teacher": "t"})


def test_largest_logits_keep_their_probabilities(tmp_path: Path) -> None:
    """Stops what is left out from being lost: the kept classes would look more probable than the teacher found them."""
    logits = 3 * torch.randn(25, 40, generator=torch.Generator().manual_seed(0))
    cached = _store(tmp_path / "cache", logits, top_k=4)
    index = torch.tensor([3, 24, 0])
    found = cached(index, torch.ones(3, 1))["logits"].softmax(-1)
    expected = logits.flip(0)[index].softmax(-1)  # by the rows' numbers, not by their places
    values, classes = expected.topk(4)
    torch.testing.assert_close(found.gather(-1, classes), values)
    others = found.scatter(-1, classes, 0.0)
    torch.testing.assert_close(others.sum(-1), 1 - values.sum(-1))
    assert all(len(row[row > 0].unique()) == 1 for row in others.double().round(decimals=9))
    assert (tmp_path / "cache" / "logits.classes.npy").stat().st_size < 25 * 4 * 2 + 200


@pytest.mark.parametrize(
    ("kind", "top_k", "message"),
    [
        ("texts", 3, "`top_k` to be from 1 to 2 for logits, but got 3"),
        ("answers", 2, "`top_k` to be left out for answers, but got 2"),
    ],
)
def test_top_k_that_does_not_fit(
    kind: str, top_k: int, message: str, problem: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops the positions of a passage from being stored as if they were classes."""
    module, data = problem(kind)
    with pytest.raises(InputError) as caught:
        make_trainer(callbacks=[TeacherCache(str(tmp_path / "cache"), top_k=top_k)]).fit(module, datamodule=data)
    assert message in str(caught.value)


@pytest.mark.parametrize("arguments", [{"dtype": "int8"}, {"top_k": 0}])
def test_values_out_of_range(arguments: Mapping[str, Any]) -> None:
    """Stops numbers that only fail once the teacher has run."""
    with pytest.raises(InputError, match=r"^Expected argument"):
        TeacherCache(**arguments)
