"""Questions, from files to the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from transformers import AutoModelForQuestionAnswering

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import (
    CompressionReport,
    NullThreshold,
    PredictionWriter,
    QuantizationCallback,
    StudentExport,
)
from lightning_kd.datamodules import QADataModule
from lightning_kd.datamodules.qa import find_answer
from lightning_kd.losses import LogitMSE, SoftTargetKL
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8
from lightning_kd.tasks import QuestionAnswering
from lightning_kd.tasks.answers import answer_scores
from lightning_kd.tasks.base import IGNORED
from tests.conftest import WORDS

Make = Callable[..., Any]
FEATURES = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)


def random_rows(size: int, seed: int, unanswerable: float = 0.0) -> list[dict[str, Any]]:
    """Passages of 3 to 40 words, with answers of 1 to 3 of them."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(size):
        words = generator.choice(WORDS, generator.integers(3, 40)).tolist()
        first = int(generator.integers(0, len(words) - 2))
        answer = " ".join(words[first : first + int(generator.integers(1, 4))])
        start = len(" ".join([*words[:first], ""]))
        texts, starts = ([], []) if generator.random() < unanswerable else ([answer, words[0]], [start, 0])
        rows.append(
            {
                "id": f"q{seed}-{number}",
                "context": " ".join(words),
                "question": " ".join(generator.choice(WORDS, 3)),
                "answers": {"text": texts, "answer_start": starts},
            }
        )
    return rows


def row(context: str = "ba ko bas", text: str | None = "ko", start: int = 3, question: str = "ba") -> dict[str, Any]:
    answers = {"text": [] if text is None else [text], "answer_start": [] if text is None else [start]}
    return {"id": "x", "context": context, "question": question, "answers": answers}


def write(folder: Path, splits: Mapping[str, list[dict[str, Any]]]) -> str:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        Dataset.from_list(rows, features=FEATURES).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    splits = {"train": random_rows(24, 0), "validation": random_rows(13, 1), "test": random_rows(9, 2)}
    return write(tmp_path_factory.mktemp("qa") / "answers", splits)


@pytest.fixture
def qa(folder: str, tiny_model: Make) -> Make:
    """Serves questions in windows of 24 tokens: ``qa(path, **options)``."""
    defaults = {"tokenizer": str(tiny_model()), "max_length": 24, "stride": 6, "batch_size": 8, "eval_batch_size": 4}
    return lambda path=folder, **options: QADataModule(path, **{**defaults, **options})


def test_every_question_comes_once_with_all_that_scores_it(qa: Make) -> None:
    """Stops windows from being taken for questions, and answers from reaching another question."""
    data = qa()
    data.setup("fit")
    rows = {r["id"]: r for r in random_rows(13, 1)}
    seen = []
    batches = data.evaluation_batches("validation")
    assert any(len(batch["example"]) > len(batch["index"]) for batch in batches)
    for batch in batches:
        for name, context, answers, (start, end) in zip(
            batch["ids"], batch["contexts"], batch["answers"], batch["labels"].tolist(), strict=True
        ):
            assert context == rows[name]["context"] and answers == rows[name]["answers"]["text"]
            assert context[start:end] == answers[0]
            seen.append(name)
    assert sorted(seen) == sorted(rows)
    assert data.label_names == ["start", "end"] and data.num_unanswerable == 0


def test_validation_is_the_mean_over_questions(
    qa: Make, tiny_model: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a mean over windows or over batches, and a metric that never sees the texts."""
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=QuestionAnswering(max_answer_length=5))
    callbacks = [PredictionWriter()]
    trainer = make_trainer(callbacks=callbacks)
    trainer.fit(module, datamodule=qa())
    values = trainer.callback_metrics
    trainer.predict(module, datamodule=qa())
    path = Path(trainer.default_root_dir) / "predictions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["id"] for r in records] == [f"q2-{i}" for i in range(9)]
    for record, source in zip(records, random_rows(9, 2), strict=True):
        assert record["answer"] == source["context"][record["start"] : record["end"]] != ""
        assert {"index", "score", "null_score"} <= record.keys()
    found = Runner(lambda x: module.task.logits(module.model.eval()(**x)), module.model.config, qa_tokenizer(qa))
    found.task = module.task
    rows = random_rows(13, 1)
    answers = found.predict([(r["question"], r["context"]) for r in rows])
    scores = [answer_scores(a["answer"], r["answers"]["text"]) for a, r in zip(answers, rows, strict=True)]
    trainer.validate(module, datamodule=qa(max_length=64, stride=20), verbose=False)  # one window each, as the runner's
    values = trainer.callback_metrics
    assert values["val/exact_match"].item() == pytest.approx(float(np.mean(scores, axis=0)[0]))
    assert values["val/f1"].item() == pytest.approx(float(np.mean(scores, axis=0)[1]))


def qa_tokenizer(qa: Make) -> Any:
    return qa().load_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize("unanswerable", [False, True])
def test_from_teacher_to_int8_answers(
    unanswerable: bool, qa: Make, tiny_model: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops an answerer that trains but cannot be exported, quantized, reported, opened or asked."""
    share = 0.4 if unanswerable else 0.0
    splits = {"train": random_rows(32, 0, share), "validation": random_rows(12, 1, share)}
    splits["test"] = random_rows(9, 2, share)
    path = write(tmp_path / "rows", splits)
    task = QuestionAnswering(null_threshold=0.0 if unanswerable else None, max_answer_length=6)
    tuned = [NullThreshold(16)] if unanswerable else []
    encoder = ModelSource(str(tiny_model(head=False)))
    trainer = make_trainer(default_root_dir=tmp_path / "teacher", callbacks=[StudentExport(), *tuned])
    trainer.fit(DistillationModule(encoder, task=task), datamodule=qa(path))
    source = ModelSource(str(tmp_path / "teacher" / "student"))
    module = DistillationModule(
        ModelSource(source.path, keep_layers=[0, 2]), {"t": source}, task, {"soft": SoftTargetKL()}, temperature=2.0
    )
    report = CompressionReport()
    backends = [DynamicInt8(), ONNXRuntimeInt8(), OpenVINOInt8()]
    folders = [str(tmp_path / "run" / f"int8-{i}") for i in range(3)]
    quantized = [QuantizationCallback(q, f, calibration_batches=2) for q, f in zip(backends, folders, strict=True)]
    callbacks = [StudentExport(), *tuned, *quantized, report, PredictionWriter()]
    trainer = make_trainer(default_root_dir=tmp_path / "run", callbacks=callbacks, max_epochs=2)
    trainer.fit(module, datamodule=qa(path))
    assert report.report is not None and report.report.main_metric == "f1"
    assert len(report.report.rows) == 5 and report.report.split_rows == {"test": 9, "validation": 12}
    measured = {r.name: r.metrics["test"]["f1"] for r in report.report.rows}
    assert measured["student"].standard_error > 0 or measured["student"].value == 0
    assert all(r.agreement is not None for r in report.report.rows[2:])
    trainer.test(module, datamodule=qa(path), verbose=False)
    details = {"test/f1_answerable", "test/f1_unanswerable"}
    assert details <= trainer.callback_metrics.keys() if unanswerable else "test/f1" in trainer.callback_metrics
    trainer.predict(module, datamodule=qa(path))
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    pairs = [(r["question"], r["context"]) for r in splits["test"]]
    for opened in (str(tmp_path / "run" / "student"), *folders):
        runner = Runner.open(opened)
        assert isinstance(runner.task, QuestionAnswering)
        assert runner.task.null_threshold == module.task.null_threshold
        answers = runner.predict(pairs)
        for answer, (_, context) in zip(answers, pairs, strict=True):
            assert answer["answer"] == ("" if answer["start"] is None else context[answer["start"] : answer["end"]])
    assert len(lines) == 9
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / "student")
    inputs = Runner.open(folders[0]).tokenizer(*pairs[0], return_tensors="pt")
    student = Runner.open(tmp_path / "run" / "student").forward(inputs)
    torch.testing.assert_close(plain.eval()(**inputs).start_logits.detach(), student["start"])
    for opened in folders:  # near the float model: start is start, and end is end
        int8 = Runner.open(opened).forward(inputs)
        assert int8.keys() == student.keys()
        for name in ("start", "end"):
            other = student["end" if name == "start" else "start"]
            assert (int8[name] - student[name]).abs().mean() < (int8[name] - other).abs().mean()


@pytest.mark.parametrize(
    ("context", "text", "start", "expected"),
    [
        ("Rome and Rome", "Rome", 0, (0, 4)),
        ("Rome and Rome", "Rome", 6, (9, 13)),
        ("Rome and Rome", "Rome", 4, (0, 4)),
        ("Rome and Rome", " and ", 4, (5, 8)),
        ("aaa", "aa", 9, (1, 3)),
        ("Rome", "Rome", -4, (0, 4)),
        ("Rome", "Paris", 0, None),
        ("Rome", " ", 0, None),
        ("我在中国", "中国", 0, (2, 4)),
    ],
)
def test_find_answer(context: str, text: str, start: int, expected: Any) -> None:
    """Stops an answer from being learned at a place where another text stands."""
    assert find_answer(context, text, start) == expected


def test_wrong_offsets_are_mended_or_left_out_and_counted(
    qa: Make, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Stops a training on text that is no answer, and rows that vanish in silence."""
    rows = [row(), row(start=2), row(text="xyz"), row(text="bas", start=0), row(context="", text="ko")]
    data = qa(write(tmp_path / "rows", {"train": rows, "validation": rows}))
    data.setup("fit")
    assert data._rows["train"].index.tolist() == [0, 1, 3]
    assert data._rows["train"].labels.tolist() == [[3, 5], [3, 5], [6, 9]]
    assert data._rows["validation"].labels.tolist() == [[3, 5], [3, 5], [IGNORED] * 2, [6, 9], [IGNORED] * 2]
    assert "2 answers do not stand at their offset" in log.text
    assert "2 training rows are left out: their passage does not hold their answer" in log.text


def test_passages_are_held_out_with_all_their_questions(
    qa: Make, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Stops a held-out question whose passage was trained on with others, and one passage from being the whole test."""
    rows = [row(context=f"ba ko {word}", question=f"ba {i}") for i in range(4) for word in WORDS[:6]]
    data = qa(write(tmp_path / "rows", {"train": rows, "validation": rows}), holdout_size=10)
    data.setup("fit")
    train, test = ([rows[i]["context"] for i in data._rows[name].index] for name in ("train", "test"))
    assert not set(train) & set(test)
    assert len(test) == 10 and len(set(test)) == 3, "two whole passages and a half"
    assert len(train) == 12 and "2 training rows are about a held-out passage and are left out" in log.text
    other = qa(data.path, holdout_size=10, holdout_seed=1)
    other.setup("fit")
    assert {rows[i]["context"] for i in other._rows["test"].index} != set(test)
    with pytest.raises(InputError, match="`holdout_size` to be small enough to leave rows to train on, but got 21"):
        qa(data.path, holdout_size=21).setup("fit")


def test_cmrc_has_wrong_offsets(shared: Path, log: pytest.LogCaptureFixture) -> None:
    """Stops the rows whose offset the source has wrong from being learned as they stand."""
    tokenizer = str(shared / "data" / "vocab" / "bert-base-chinese")
    data = QADataModule(str(shared / "data" / "cmrc2018"), tokenizer=tokenizer, max_train_rows=10)
    rows = data.load_split("train")
    wrong = [r for r in rows if not r["context"].startswith(r["answers"]["text"][0], r["answers"]["answer_start"][0])]
    data.max_train_rows = None
    kept, _ = data._hold_out(rows)
    lost = len(rows) - len(kept)
    assert len(wrong) > 10 and f"{len(wrong) - lost} answers do not stand at their offset" in log.text
    for number in kept[:: len(kept) // 500]:
        r = rows[int(number)]
        start, end, _ = data._label(r, int(number))
        assert r["context"][start:end] == r["answers"]["text"][0].strip()


def test_no_answer_where_every_question_should_have_one(
    qa: Make, tmp_path: Path, tiny_model: Make, make_trainer: Make
) -> None:
    """Stops unanswerable questions from being learned and scored by a task that always answers."""
    path = write(tmp_path / "rows", {"train": [row(), row(text=None), row(text="")], "validation": [row()]})
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=QuestionAnswering())
    with pytest.raises(InputError, match=r"2 questions of the data have no answer, .*null_threshold to 0"):
        make_trainer().fit(module, datamodule=qa(path))
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=QuestionAnswering(null_threshold=0.0))
    trainer = make_trainer()
    trainer.fit(module, datamodule=qa(path))
    assert trainer.global_step == 1


def test_losses_without_a_place_for_masks_are_refused(qa: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops a mean over padding and question from passing for one over answers."""
    source = ModelSource(str(tiny_model(head=False)))
    module = DistillationModule(source, task=QuestionAnswering())
    folder = Path(make_trainer().default_root_dir) / "teacher"
    trainer = make_trainer(callbacks=[StudentExport(str(folder))])
    trainer.fit(module, datamodule=qa())
    teacher = {"t": ModelSource(str(folder))}
    module = DistillationModule(source, teacher, QuestionAnswering(), {"mse": LogitMSE()})
    with pytest.raises(InputError, match=r"'mse' \(LogitMSE\) compares all classes of a row, but QuestionAnswering"):
        make_trainer().fit(module, datamodule=qa())


def test_empty_and_long_texts(qa: Make, tmp_path: Path, tiny_model: Make, make_trainer: Make) -> None:
    """Stops an empty passage or question, or a book, from ending a run or an answer."""
    book = " ".join(["ba"] * 10_000) + " ko"
    rows = [row(), row(context="", text=None), row(question=""), row(context=book, start=30_000)]
    path = write(tmp_path / "rows", {"train": rows, "validation": rows})
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=QuestionAnswering(null_threshold=0.0))
    data = qa(path, max_length=64, stride=16)
    trainer = make_trainer(callbacks=[StudentExport()])
    trainer.fit(module, datamodule=data)
    assert data._rows["train"].labels.tolist()[3] == [30_000, 30_002]
    runner = Runner.open(Path(trainer.default_root_dir) / "student")
    runner.task = QuestionAnswering()
    records = runner.predict([("ba", ""), ("", "ba ko"), ("ba", book), ("", "")])
    assert [r["answer"] == "" for r in records] == [True, False, False, True]
    assert records[0] == {**records[0], "start": None, "end": None, "score": None}
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert book[records[2]["start"] : records[2]["end"]] == records[2]["answer"]


NESTED = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "ba ko\u2028bas 中",
                    "qas": [
                        {"id": 7, "question": "ba", "answers": [{"text": "ko", "answer_start": 3}] * 2},
                        {"id": "b", "question": "ko", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                }
            ],
        }
    ],
}


def test_own_files(qa: Make, tmp_path: Path) -> None:
    """Stops SQuAD's own files, lists and lines from being read as different questions."""
    rows = [
        {
            "id": str(question["id"]),
            "context": "ba ko\u2028bas 中",
            "question": question["question"],
            "answers": {"text": ["ko"] * 2, "answer_start": [3] * 2} if question["answers"] else None,
        }
        for question in NESTED["data"][0]["paragraphs"][0]["qas"]
    ]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    texts = {
        "nested": json.dumps(NESTED),
        "list": json.dumps(rows),
        "lines": "\ufeff" + lines,
        "one": json.dumps(rows[0]),
    }
    seen = {}
    for name, text in texts.items():
        folder = tmp_path / name
        folder.mkdir()
        suffix = "jsonl" if name == "lines" else "json"
        for split in ("train-v2.0", "dev-v2.0"):
            (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8")
        data = qa(str(folder))
        data.setup("fit")
        seen[name] = data.load_split("train").to_list()
        assert data.num_unanswerable == (0 if name == "one" else 2)
    assert seen["nested"] == seen["list"] == seen["lines"] and seen["one"] == seen["list"][:1]
    assert seen["nested"][0]["answers"] == {"text": ["ko", "ko"], "answer_start": [3, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"context": "Zoë"}'.encode("latin-1"), "train.json to be UTF-8, but its byte 15 is not"),
        (b'{"context": "a", "question": "b"}\n{"context', "Line 2 of .*train.json is not JSON"),
        (b'[{"context": "a"}]', "Question 0 of .*train.json has no text as `context` and as `question`"),
        (b'[{"context": "a", "question": "b", "answers": ["a"]}]', "each needs `text` and `answer_start`"),
    ],
)
def test_files_that_cannot_be_read(content: bytes, message: str, qa: Make, tmp_path: Path) -> None:
    """Stops a file that was saved otherwise from ending in a decoder's traceback."""
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        qa(str(tmp_path)).setup("fit")


def test_refused(qa: Make, tmp_path: Path) -> None:
    """Stops options that leave no room, and rows without a text, before the first batch."""
    with pytest.raises(InputError, match=r"`data.stride` to be 0 or more"):
        qa(stride=-1)
    with pytest.raises(InputError, match=r"`max_length` to be above 24"):
        qa(stride=20).setup("fit")
    path = write(tmp_path / "rows", {"train": [row(question=None)], "validation": [row()]})
    with pytest.raises(InputError, match=r"Row 0 of .* has no text as 'question'"):
        qa(path).setup("fit")
    with pytest.raises(InputError, match="`num_rows` to be at least 1"):
        NullThreshold(0)


def test_a_threshold_needs_questions_without_answers(qa: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops a threshold from being found for a task that never uses it."""
    module = DistillationModule(ModelSource(str(tiny_model(head=False))), task=QuestionAnswering())
    with pytest.raises(InputError, match="NullThreshold needs the task QuestionAnswering with a null_threshold"):
        make_trainer(callbacks=[NullThreshold()]).fit(module, datamodule=qa())
