"""A teacher that reads another vocabulary than its student."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import CompressionReport
from lightning_kd.datamodules import GLUEDataModule, NERDataModule, QADataModule
from lightning_kd.datamodules.batching import Collator, TokenizedRows
from lightning_kd.losses import (
    CRD,
    AttentionMSE,
    DistillationLoss,
    FeatureMatch,
    HiddenStateMSE,
    PatientKD,
    SoftTargetKL,
)
from lightning_kd.measure import evaluate
from lightning_kd.outputs import LossInputs
from lightning_kd.runner import forward_of
from lightning_kd.tasks import QuestionAnswering, SequenceClassification, TokenClassification
from lightning_kd.tasks.positions import carry_positions
from lightning_kd.tasks.words import WordEncoder
from tests.conftest import SPECIAL_TOKENS, VOCABULARY
from tests.datamodules.test_ner import TAGS, random_rows, write
from tests.datamodules.test_qa import random_rows as random_questions
from tests.datamodules.test_qa import write as write_questions

Make = Callable[..., Any]

#: Cuts words at other places than ``VOCABULARY`` does: "banings" is "ban ##ings" here and "ba [UNK]"-like there.
OTHER = [*SPECIAL_TOKENS, *(letter for letter in "abcdefghijklmnopqrstuvwxyz"), *VOCABULARY[30:60], "##ings", "##nings"]
OTHER += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model: Make) -> Callable[..., str]:
    """Writes a tiny model that reads ``OTHER``: ``other(kind, num_labels)``."""

    def make(kind: type = AutoModelForSequenceClassification, num_labels: int = 2) -> str:
        folder = tmp_path_factory.mktemp("other")
        encoder = tiny_model(vocab_size=len(OTHER), hidden_size=24, seed=3, head=False)
        model = kind.from_pretrained(encoder, num_labels=num_labels)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(OTHER) + "\n")
        BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        return str(folder)

    return make


class Spy(DistillationLoss):
    """Keeps what it is given."""

    def __init__(self, name: str = "logits") -> None:
        super().__init__()
        self.name = name
        self.seen: list[LossInputs] = []

    def forward(self, inputs: LossInputs) -> Tensor:
        self.seen.append(inputs)
        return inputs.student.logits[self.name].sum() * 0


class Recorded(DistillationModule):
    """Keeps its batches."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.batches = [*getattr(self, "batches", []), batch]
        return super().training_step(batch, batch_idx)


def test_each_model_reads_its_own_tokens(other: Make, glue: Make, distillation: Make, make_trainer: Make) -> None:
    """Stops a teacher from being asked about the student's token numbers, which mean other words to it."""
    source = other()
    data: GLUEDataModule = glue("mrpc", teacher_tokenizers={"t": source})
    spy = Spy()
    module = distillation(Recorded, teachers={"t": ModelSource(source)}, losses={"spy": spy})
    make_trainer().fit(module, datamodule=data)
    texts = dict(zip(data._rows["train"].index.tolist(), data.texts("train"), strict=True))
    tokenizer = BertTokenizerFast.from_pretrained(source)
    teacher = module.teachers["t"]
    assert len(spy.seen) == 3
    for batch, seen in zip(module.batches, spy.seen, strict=True):
        pairs = [texts[i] for i in batch["index"].tolist()]
        encoded = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        for name, values in encoded.items():
            assert torch.equal(batch["teachers"]["t"][name], values)
        assert not torch.equal(batch["input_ids"], batch["teachers"]["t"]["input_ids"])
        with torch.no_grad():
            expected = teacher(**encoded).logits
        torch.testing.assert_close(seen.teacher.logits["logits"], expected)
        assert seen.token_mask.shape == batch["input_ids"].shape
        assert seen.teacher_mask.shape == encoded["input_ids"].shape


def test_one_vocabulary_is_read_once(tiny_model: Make, glue: Make) -> None:
    """Stops a second encoding, and its cost, where teacher and student read the same."""
    data = glue(teacher_tokenizers={"t": str(tiny_model(seed=0))})
    data.setup("fit")
    assert data.teacher_tokenizers == {}
    assert all("teachers" not in batch for batch in data.evaluation_batches("validation"))


@pytest.mark.parametrize(("student", "teacher"), [("distilbert", "bert"), ("bert", "distilbert")])
@pytest.mark.parametrize("answers", [False, True])
def test_token_types_are_for_those_who_read_them(
    student: str,
    teacher: str,
    answers: bool,
    tmp_path: Path,
    tiny_model: Make,
    glue: Make,
    distillation: Make,
    make_trainer: Make,
    log: Any,
) -> None:
    """Stops BERT from teaching DistilBERT what it says of a pair whose two texts it cannot tell apart."""
    folders = {}
    for kind in (student, teacher):
        source = tiny_model(kind)
        folders[kind] = str(shutil.copytree(source, tmp_path / kind))
        if answers:
            model = AutoModelForQuestionAnswering.from_pretrained(tiny_model(kind, head=False))
            model.save_pretrained(folders[kind])
    rows = {"train": random_questions(24, 0), "validation": random_questions(9, 1)}
    folder = write_questions(tmp_path / "qa", rows)

    def served(**options: Any) -> Any:
        sizes = {"max_length": 48, "stride": 16, "batch_size": 8}
        return QADataModule(folder, **sizes, **options) if answers else glue("mrpc", **options)

    data = served(tokenizer=folders[student], teacher_tokenizers={"t": folders[teacher]})
    spy, report = Spy("start" if answers else "logits"), CompressionReport()
    module = distillation(
        Recorded,
        task=QuestionAnswering() if answers else SequenceClassification(),
        student=ModelSource(folders[student]),
        teachers={"t": ModelSource(folders[teacher])},
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(1, 1)]), "spy": spy},
    )
    make_trainer(callbacks=[report]).fit(module, datamodule=data)
    reads, other = ("t", "the student") if teacher == "bert" else ("the student", "t")
    assert f"{reads} tells two texts by token types, {other} does not: each row is encoded for both" in log.text
    assert data.teacher_tokenizers == {} and len(spy.seen) == 3
    model = module.teachers["t"].eval()
    for batch, seen in zip(module.batches, spy.seen, strict=True):
        own = batch["teachers"]["t"]
        assert ("token_type_ids" in batch, "token_type_ids" in own) == (student == "bert", teacher == "bert")
        assert torch.equal(batch["input_ids"], own["input_ids"])
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if teacher == "bert" else [])]
        with torch.no_grad():
            output = model(**{name: own[name] for name in names})
            blind = model(input_ids=own["input_ids"], attention_mask=own["attention_mask"])
        (said, guess) = ((out.start_logits if answers else out.logits) for out in (output, blind))
        torch.testing.assert_close(seen.teacher.logits[spy.name], said)
        assert torch.allclose(said, guess) == (teacher == "distilbert"), "or the test could not fail"
        assert torch.equal(seen.token_mask, seen.teacher_mask)
    alone = served(tokenizer=folders[teacher])
    alone.setup("validate")
    metric = data.metric_names[0]
    forward = forward_of(model, module.task)
    expected = evaluate(forward, module.task, alone.evaluation_batches("validation"), [metric], data.label_names)
    assert report.report is not None
    assert report.report.rows[0].metrics["validation"][metric].value == expected.metrics[metric].value


def test_without_its_token_types_the_teacher_is_refused(
    tiny_model: Make, glue: Make, distillation: Make, make_trainer: Make
) -> None:
    """Stops the same where a data module is made by hand; a single text has no types to miss."""
    student, teacher = ModelSource(str(tiny_model("distilbert"))), ModelSource(str(tiny_model("bert")))
    for name, refused in (("mrpc", True), ("sst2", False)):
        module = distillation(student=student, teachers={"t": teacher})
        trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
        if refused:
            with pytest.raises(InputError, match=r"tells the two texts of a row by token types, .* teacher_tokenizers"):
                trainer.fit(module, datamodule=glue(name, tokenizer=student.path))
        else:
            trainer.fit(module, datamodule=glue(name, tokenizer=student.path))


def test_without_its_tokenizer_the_teacher_is_refused(
    other: Make, glue: Make, distillation: Make, make_trainer: Make
) -> None:
    """Stops a teacher from reading token numbers of another vocabulary when a data module is made by hand."""
    module = distillation(teachers={"t": ModelSource(other())})
    with pytest.raises(InputError, match="give the data module the teacher's in teacher_tokenizers"):
        make_trainer().fit(module, datamodule=glue())


@pytest.mark.parametrize(
    ("loss", "tags", "refused"),
    [
        (HiddenStateMSE([FeatureMatch(1, 1)]), False, True),
        (AttentionMSE([FeatureMatch(1, 1)]), False, True),
        (PatientKD([FeatureMatch(1, 1)]), False, False),
        (CRD([FeatureMatch(1, 1)]), False, False),
        (HiddenStateMSE([FeatureMatch(1, 1)]), True, False),
        (AttentionMSE([FeatureMatch(1, 1)]), True, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DistillationLoss) else str(value),
)
def test_losses_on_positions_that_are_not_shared_are_refused(
    loss: DistillationLoss,
    tags: bool,
    refused: bool,
    other: Make,
    glue: Make,
    tmp_path: Path,
    tiny_model: Make,
    distillation: Make,
    make_trainer: Make,
) -> None:
    """Stops the third token of one model from being compared with the third token of another, which is another word."""
    data, options = glue("sst2"), {}
    source = other(AutoModelForTokenClassification, len(TAGS)) if tags else other()
    if tags:
        folder = write(tmp_path / "tags", {"train": random_rows(16, 0, 8), "validation": random_rows(8, 1, 8)})
        data = NERDataModule(str(folder), tokenizer=str(tiny_model()), batch_size=8, max_length=32, stride=8)
        options = {"task": TokenClassification(), "student": ModelSource(str(tiny_model(head=False)))}
    data.teacher_tokenizer_sources = {"t": source}
    module = distillation(teachers={"t": ModelSource(source)}, losses={"loss": loss}, **options)
    trainer = make_trainer(limit_train_batches=2)
    if not refused:
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 2
        return
    with pytest.raises(InputError, match="The loss 'loss' compares student and teacher token by token"):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 0


def _bpe(texts: list[str]) -> PreTrainedTokenizerBase:
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))  # no secret
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


#: One that cuts at syllables, one at letters and endings, one at bytes.
TOKENIZERS = (
    BertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)}),
    BertTokenizerFast(vocab={token: i for i, token in enumerate(OTHER)}),
    _bpe(["banings dinings ba ko", "Zoë bas din"]),
)


def _rows(tokenizer: PreTrainedTokenizerBase, words: list[list[str]], max_length: int) -> TokenizedRows:
    encoded = WordEncoder(tokenizer, max_length, stride=2).encode(words)
    tags = encoded.spread([np.arange(len(row)) for row in words])
    index = np.arange(len(words))
    return TokenizedRows({**encoded.tokens, "labels": tags}, encoded.offsets, index, windows=encoded.windows)


@given(
    words=st.lists(
        st.lists(st.text(st.sampled_from("abnigsëZ中\u0301\u200b😀 "), min_size=1, max_size=7), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
    pair=st.permutations(TOKENIZERS),
    lengths=st.tuples(st.integers(7, 24), st.integers(7, 24)),
)
def test_words_meet_whatever_the_tokens(
    words: list[list[str]], pair: list[PreTrainedTokenizerBase], lengths: tuple[int, int]
) -> None:
    """Stops the teacher's opinion of one word from reaching the student at another, where cuts and windows cross."""
    student, teacher = (_rows(t, words, length) for t, length in zip(pair, lengths, strict=False))
    rows = list(range(len(words)))
    batch = Collator(student, 0)(rows)
    own = Collator(teacher, 0)(rows)

    def opinions(of: Mapping[str, Tensor]) -> Tensor:
        """At the first token of a word its row and number, garbage elsewhere."""
        at = of["words"] >= 0
        row = of["example"].unsqueeze(1).expand_as(of["words"])
        return torch.where(at.unsqueeze(-1), torch.stack([row, of["words"]], -1), 1000).float()

    found = TokenClassification().transfer("logits", opinions(own), own, batch)
    expected = torch.where((batch["words"] >= 0).unsqueeze(-1), opinions(batch), 0)
    assert torch.equal(found, expected)
    seen = {tuple(pair.tolist()) for pair in found[batch["words"] >= 0].int()}
    assert seen == {(r, w) for r, row in enumerate(words) for w in range(len(row))}  # no word is lost


def test_answers_are_taught_across_vocabularies(
    other: Make, tmp_path: Path, tiny_model: Make, distillation: Make, make_trainer: Make
) -> None:
    """Stops the teacher's end from being taught as a start, or the places of its tokens as those of the student's."""
    folder = write_questions(tmp_path / "qa", {"train": random_questions(24, 0), "validation": random_questions(9, 1)})
    source = str(tmp_path / "teacher")  # reads whole words, and the student their letters: starts and ends fall apart
    AutoModelForQuestionAnswering.from_pretrained(tiny_model(head=False)).save_pretrained(source)
    BertTokenizerFast.from_pretrained(tiny_model()).save_pretrained(source)
    reader = other(AutoModelForQuestionAnswering)
    data = QADataModule(folder, tokenizer=reader, max_length=48, stride=16, batch_size=8)
    data.teacher_tokenizer_sources = {"t": source}
    spy = Spy("start")
    options = {"task": QuestionAnswering(), "student": ModelSource(reader), "teachers": {"t": ModelSource(source)}}
    module = distillation(Recorded, losses={"soft": SoftTargetKL(), "spy": spy}, **options)
    make_trainer(callbacks=[CompressionReport()]).fit(module, datamodule=data)
    assert len(spy.seen) == 3
    for batch, seen in zip(module.batches, spy.seen, strict=True):
        own = batch["teachers"]["t"]
        with torch.no_grad():
            output = module.teachers["t"](**module.task.model_inputs(own))
        assert own["input_ids"].shape != batch["input_ids"].shape
        for name, values in (("start", output.start_logits), ("end", output.end_logits)):
            expected, wrong = (carry_positions(values, own, batch, last) for last in (name == "end", name != "end"))
            torch.testing.assert_close(seen.teacher.logits[name], expected)
            assert not torch.allclose(expected, wrong), "or the test could not fail"
            assert seen.class_masks[name].shape == expected.shape


def test_a_teacher_is_measured_on_its_own_tokens(
    other: Make, glue: Make, distillation: Make, make_trainer: Make
) -> None:
    """Stops a report that shows a good teacher as a bad one, and the student as better than it."""
    source = other()
    report = CompressionReport()
    module = distillation(teachers={"t": ModelSource(source)}, losses={"soft": SoftTargetKL()})
    data = glue(teacher_tokenizers={"t": source})
    make_trainer(callbacks=[report]).fit(module, datamodule=data)
    alone: GLUEDataModule = glue(tokenizer=source)
    alone.setup("fit")
    forward = forward_of(module.teachers["t"], SequenceClassification())
    batches = alone.evaluation_batches("validation")
    expected = evaluate(forward, SequenceClassification(), batches, ["accuracy"], data.label_names)
    assert report.report is not None
    row = report.report.rows[0]
    assert row.name == "teacher"
    assert row.metrics["validation"]["accuracy"].value == expected.metrics["accuracy"].value
    assert row.latency_p50 > 0


def test_rows_of_another_vocabulary_are_the_same_rows(other: Make, glue: Make) -> None:
    """Stops the two encodings from falling apart where rows are held out or drawn."""
    data = glue(teacher_tokenizers={"t": other()}, holdout_size=5, max_train_rows=9)
    data.setup("fit")
    for split in ("train", "test", "validation"):
        for batch in data.evaluation_batches(split):
            assert torch.equal(batch["index"], batch["teachers"]["t"]["index"])
            assert torch.equal(batch["labels"], batch["teachers"]["t"]["labels"])
    assert isinstance(data.load_split("train"), Dataset)
