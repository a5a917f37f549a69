"""Named entities, from words to the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification, pipeline

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, PredictionWriter, QuantizationCallback, StudentExport
from lightning_kd.datamodules import NERDataModule
from lightning_kd.losses import SoftTargetKL
from lightning_kd.measure import evaluate
from lightning_kd.quantization import DynamicInt8
from lightning_kd.tasks import TokenClassification

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
Make = Callable[..., Any]


def random_rows(size: int, seed: int, longest: int = 30) -> dict[str, list[Any]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, size)
    words = ["ba", "bas", "banings", "xyz", "dinings", "ko", "Zoë"]
    return {
        "tokens": [generator.choice(words, length).tolist() for length in lengths],
        "ner_tags": [generator.integers(0, len(TAGS), length).tolist() for length in lengths],
    }


def write(folder: Path, splits: Mapping[str, Mapping[str, Any]], tags: Any = None) -> Path:
    folder.mkdir(parents=True)
    features = Features({"tokens": List(Value("string")), "ner_tags": tags or List(ClassLabel(names=TAGS))})
    for split, columns in splits.items():
        Dataset.from_dict(dict(columns), features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": random_rows(24, 0), "validation": random_rows(12, 1), "test": random_rows(9, 2)}
    return write(tmp_path_factory.mktemp("ner") / "tags", splits)


@pytest.fixture
def ner(folder: Path, tiny_model: Make) -> Make:
    """Serves the tags in windows of 16 tokens: ``ner(**options)``."""
    defaults = {"tokenizer": str(tiny_model()), "max_length": 16, "stride": 4, "batch_size": 8, "eval_batch_size": 4}
    return lambda **options: NERDataModule(str(folder), **{**defaults, **options})


def test_f1_is_seqevals_on_the_words(ner: Make) -> None:
    """Stops an F1 over sub-words, and entities that are lost or cut where a sentence is read in windows."""
    data = ner()
    data.setup("fit")
    table = torch.randn(data.tokenizer.vocab_size, len(TAGS), generator=torch.Generator().manual_seed(0))

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": table[inputs["input_ids"]]}

    batches = data.evaluation_batches("validation")
    assert any(len(batch["example"]) > len(batch["index"]) for batch in batches)  # there are windows
    result = evaluate(forward, TokenClassification(), batches, ["f1"], TAGS)
    rows = random_rows(12, 1)
    first = {w: data.tokenizer(w, add_special_tokens=False)["input_ids"][0] for r in rows["tokens"] for w in r}
    predicted = [[TAGS[int(table[first[word]].argmax())] for word in row] for row in rows["tokens"]]
    actual = [[TAGS[tag] for tag in row] for row in rows["ner_tags"]]
    assert result.metrics["f1"].value == pytest.approx(f1_score(actual, predicted)) and result.metrics["f1"].value > 0
    assert result.metrics["f1"].standard_error > 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")  # of tags that few rows lack
@pytest.mark.parametrize("every", [False, True], ids=["words", "sub-words"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_of_random_tags_are_seqevals(ner: Make, make_trainer: Make, every: bool, seed: int) -> None:
    """Stops scores that are off by truncated, split or windowed words: overall and by type, from rows to metrics.

    Each word, or each sub-word, of the validation rows is given a tag at random, whichever window it is read in;
    seqeval gets the tags of the rows themselves.
    """
    rows = random_rows(12, 1)
    task = TokenClassification(label_all_subwords=every)
    data = ner()
    data.trainer = make_trainer()
    data.trainer.strategy._lightning_module = DistillationModule(ModelSource("none"), task=task)
    data.setup("fit")
    pieces = [[data.tokenizer.tokenize(word) if every else [word] for word in row] for row in rows["tokens"]]
    actual = [
        [
            TAGS[tag] if i == 0 or tag == 0 else "I" + TAGS[tag][1:]
            for words, tag in zip(row, tags, strict=True)
            for i, _ in enumerate(words)
        ]
        for row, tags in zip(pieces, rows["ner_tags"], strict=True)
    ]
    generator = np.random.default_rng(seed)
    drawn = [[int(generator.integers(len(TAGS))) for _ in row] for row in actual]
    metrics = task.metrics([*data.metric_names, *task.detailed_metrics(TAGS)], TAGS)
    for batch in data.evaluation_batches("validation"):
        logits = torch.randn(*batch["labels"].shape, len(TAGS))  # what stands where nothing is read
        for window, row in enumerate(batch["example"].tolist()):
            for place, number in enumerate(batch["words"][window].tolist()):
                if number >= 0:
                    logits[window, place, drawn[batch["index"][row]][number]] = 99
        metrics.update(*task.outcomes({"logits": logits}, batch))
    values = {name: value.item() for name, value in metrics.compute().items()}
    predicted = [[TAGS[tag] for tag in row] for row in drawn]
    assert any(len(row) > 14 for row in actual)  # there are windows
    report = classification_report(actual, predicted, output_dict=True)
    for name, kind in (("f1", "micro avg"), ("f1_PER", "PER"), ("f1_LOC", "LOC")):
        assert values[name] == pytest.approx(report[kind]["f1-score"]) and values[name] > 0
    assert values["precision"] == pytest.approx(report["micro avg"]["precision"])
    assert values["recall"] == pytest.approx(report["micro avg"]["recall"])
    given = [[TAGS[tag] for tag in row] for row in rows["ner_tags"]]
    assert report["micro avg"]["support"] == len(get_entities(given))  # as many as there are by words


def test_rows_are_words_with_their_tags(ner: Make) -> None:
    """Stops tags that are shifted by special tokens or sub-words, and rows that come twice."""
    data = ner()
    data.setup("fit")
    rows = random_rows(24, 0)
    seen = []
    for batch in data.train_dataloader():
        _, tags = TokenClassification().outcomes({"logits": torch.zeros(*batch["labels"].shape, 5)}, batch)
        for number, row in zip(batch["index"].tolist(), tags.tolist(), strict=True):
            given = [TAGS[tag] for tag in rows["ner_tags"][number]]
            assert get_entities([TAGS[tag] for tag in row if tag >= 0]) == get_entities(given)
            assert sum(tag >= 0 for tag in row) == len(given)
            seen.append(number)
    assert sorted(seen) == list(range(24))
    assert data.label_names == TAGS


def test_windows_are_announced(ner: Make, log: pytest.LogCaptureFixture) -> None:
    """Stops a sentence from being cut in silence."""
    ner().setup("fit")
    longer = sum(len(row) > 14 for row in random_rows(24, 0)["tokens"])
    messages = [record.getMessage() for record in log.records if "read in windows" in record.getMessage()]
    assert len(messages) == 3 and int(messages[0].split()[0]) >= longer > 0


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True], ids=["words", "sub-words"])
def test_from_teacher_to_int8_entities(
    ner: Make, tiny_model: Make, make_trainer: Make, tmp_path: Path, every: bool
) -> None:
    """Stops a tagger that trains but cannot be exported, quantized, reported, opened or asked."""
    teacher = ModelSource(str(tiny_model(head=False)), config={"num_labels": 5})
    task = TokenClassification(label_all_subwords=every)
    options = {"max_epochs": 2, "default_root_dir": tmp_path / "teacher", "callbacks": [StudentExport()]}
    make_trainer(**options).fit(DistillationModule(teacher, task=task), datamodule=ner())
    source = ModelSource(str(tmp_path / "teacher" / "student"))
    module = DistillationModule(
        ModelSource(source.path, keep_layers=[0, 2]), {"t": source}, task, {"soft": SoftTargetKL()}, temperature=2.0
    )
    report = CompressionReport()
    callbacks = [StudentExport(), QuantizationCallback(DynamicInt8()), report, PredictionWriter()]
    trainer = make_trainer(default_root_dir=tmp_path / "run", callbacks=callbacks, max_epochs=2)
    trainer.fit(module, datamodule=ner())
    assert report.report is not None and report.report.main_metric == "f1"
    assert [row.name for row in report.report.rows] == ["teacher", "student", "int8, torch"]
    assert report.report.main_split == "test" and report.report.split_rows == {"test": 9, "validation": 12}
    trainer.test(module, datamodule=ner(), verbose=False)
    assert {"test/f1", "test/recall", "test/f1_PER", "test/f1_LOC"} <= trainer.callback_metrics.keys()
    trainer.predict(module, datamodule=ner())
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    texts = random_rows(9, 2)["tokens"]
    assert [record["index"] for record in written] == list(range(9))
    for opened in ("student", "int8"):
        records = Runner.open(tmp_path / "run" / opened).predict(texts)
        for record, words in zip(records, texts, strict=True):
            assert all(" ".join(words)[e["start"] : e["end"]] == e["text"] for e in record["entities"])
        if opened == "student":
            assert [places(r["entities"]) for r in records] == [places(r["entities"]) for r in written]


def places(entities: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Type and place of each entity, ours or a pipeline's."""
    return [(e.get("label") or e["entity_group"], e["start"], e["end"]) for e in entities]


def random_tagger(folder: Path, tiny_model: Make, every: bool) -> Path:
    """Writes a tagger whose random weights give every tag to some sub-words."""
    config = BertConfig.from_pretrained(tiny_model())
    TokenClassification(label_all_subwords=every).configure(config, TAGS)
    torch.manual_seed(0)
    model = BertForTokenClassification(config)
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    with torch.no_grad():  # no tag is the likeliest everywhere
        model.classifier.bias -= model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.mean((0, 1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = ["ba banings Zoë ko", "Dinings,banings  bas", "bas dins 我们ba在 😀 banings", "x", "bas dinings. " * 4]
TEXTS += [" ".join(row) for row in random_rows(40, 3)["tokens"]]


@pytest.mark.parametrize(("every", "strategy"), [(True, "simple"), (False, "first")])
def test_the_pipeline_finds_what_predict_finds(every: bool, strategy: str, tiny_model: Make, tmp_path: Path) -> None:
    """Stops an exported tagger that gives other entities in transformers than here."""
    folder = random_tagger(tmp_path / "tagger", tiny_model, every)
    runner = Runner.open(folder)
    assert isinstance(runner.task, TokenClassification) and runner.task.label_all_subwords == every
    ours = [places(record["entities"]) for record in runner.predict(TEXTS)]
    tagger = pipeline("token-classification", model=str(folder), aggregation_strategy=strategy)
    theirs = [places(tagger(text)) for text in TEXTS]
    assert ours == theirs and {kind for row in ours for kind, _, _ in row} == {"PER", "LOC"}


def test_what_the_student_learns_its_teacher_must_know(
    ner: Make, tiny_model: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a student from learning sub-words of a teacher that was never trained on them."""
    source = ModelSource(str(random_tagger(tmp_path / "teacher", tiny_model, every=False)))
    task = TokenClassification(label_all_subwords=True)
    module = DistillationModule(
        ModelSource(source.path, keep_layers=[0]), {"t": source}, task, {"soft": SoftTargetKL()}
    )
    with pytest.raises(InputError, match="Expected the teacher 't' to be trained with label_all_subwords"):
        make_trainer().fit(module, datamodule=ner())


@pytest.mark.parametrize(
    ("rows", "tags", "message"),
    [
        ({"tokens": [["a", "b"]], "ner_tags": [[0]]}, None, "Row 0 of .* has 2 words but 1 tags"),
        ({"tokens": [["a"]], "ner_tags": [[0]]}, List(Value("int64")), "to hold tags .* but it has plain numbers"),
    ],
)
def test_refused(rows: Any, tags: Any, message: str, tmp_path: Path, tiny_model: Make) -> None:
    """Stops tags that belong to other words, and names of tags from being taken for numbers."""
    folder = write(tmp_path / "data", {"train": rows, "validation": rows}, tags)
    with pytest.raises(InputError, match=message):
        NERDataModule(str(folder), tokenizer=str(tiny_model())).setup("fit")
    with pytest.raises(InputError, match=r"`data.stride` to be from 0 to 13"):
        NERDataModule(str(folder), max_length=16, stride=14)


def test_words_column(folder: Path, tiny_model: Make) -> None:
    """Stops a missing column from being found at the first batch."""
    with pytest.raises(InputError, match="to have a column 'words', but its validation split has tokens, ner_tags"):
        NERDataModule(str(folder), words_column="words", tokenizer=str(tiny_model())).setup("fit")
