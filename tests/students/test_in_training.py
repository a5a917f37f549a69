"""Students that transformers does not bring, and ALBERT, from a distillation to int8 and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, SentenceEncoderExport, StudentExport
from lightning_kd.datamodules import NERDataModule
from lightning_kd.losses import (
    PKT,
    EmbeddingMSE,
    FeatureMatch,
    HiddenStateMSE,
    LogitMSE,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
    SoftTargetKL,
)
from lightning_kd.models import load_trained
from lightning_kd.optim import AdamW
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, Quantizer
from lightning_kd.tasks import TokenClassification
from tests.conftest import WORDS
from tests.datamodules.test_ner import TAGS, random_rows, write

Make = Callable[..., Any]
STUDENTS: dict[str, dict[str, Any]] = {
    "bilstm": {"model_type": "rnn", "hidden_size": 12, "embedding_size": 8, "num_hidden_layers": 2},
    "bigru": {"model_type": "rnn", "hidden_size": 12, "cell": "gru"},
    "cnn": {"model_type": "cnn", "hidden_size": 12, "num_hidden_layers": 2},
    "albert": {
        "model_type": "albert", "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
    },
}  # fmt: skip


def backends(kind: str) -> list[Quantizer]:
    found: list[Quantizer] = [DynamicInt8()]
    if kind != "bigru":
        found.append(ONNXRuntimeInt8())
    return found


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_classifier_goes_from_its_teacher_to_int8(
    kind: str, tiny_model: Make, glue: Make, make_trainer: Make, distillation: Make, tmp_path: Path
) -> None:
    """Stops a student that trains, and whose folder then opens as another, or not at all."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    callbacks = [StudentExport()]
    callbacks += [QuantizationCallback(q, str(tmp_path / type(q).__name__)) for q in backends(kind)]
    teacher = str(tiny_model("bert"))
    source = ModelSource(from_scratch=True, embeddings_from=teacher, config=STUDENTS[kind])
    module = distillation(
        student=source,
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(0, 0), FeatureMatch(1, 3)])},
        optimizer=lambda params: AdamW(params, lr=1e-2),
    )
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=callbacks, log_every_n_steps=1)
    trainer.fit(module, datamodule=glue())
    for name in ("soft", "hidden", "hard"):
        assert torch.isfinite(trainer.callback_metrics[f"train/loss/{name}"])
    texts = [" ".join(WORDS[i : i + length]) for i, length in ((0, 9), (20, 1), (40, 4))]
    opened = Runner.open(tmp_path / "student")
    records = opened.predict(texts)
    batch = opened.task.encode(texts, opened.tokenizer)
    with torch.no_grad():
        own = module.model.eval()(**opened.task.model_inputs(batch)).logits
    assert [record["label"] for record in records] == [["negative", "positive"][i] for i in own.argmax(-1)]
    assert [alone for text in texts for alone in opened.predict([text])] == [
        {"label": r["label"], "score": pytest.approx(r["score"], abs=1e-5)} for r in records
    ]
    for quantizer in backends(kind):
        found = Runner.open(tmp_path / type(quantizer).__name__).predict(texts)
        assert [r["score"] for r in found] == pytest.approx([r["score"] for r in records], abs=0.05)


@pytest.mark.parametrize("kind", ["bigru", "cnn"])
def test_a_tagger_goes_from_text_to_int8(kind: str, tiny_model: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops tags that are read at other tokens than they were trained at."""
    folder = write(tmp_path / "data", {"train": random_rows(24, 0), "validation": random_rows(8, 1)})
    data = NERDataModule(str(folder), tokenizer=str(tiny_model("bert")), batch_size=8)
    module = DistillationModule(ModelSource(from_scratch=True, config=STUDENTS[kind]), task=TokenClassification())
    trainer = make_trainer(
        default_root_dir=tmp_path, callbacks=[StudentExport(), QuantizationCallback(DynamicInt8())], max_epochs=2
    )
    trainer.fit(module, datamodule=data)
    words = [WORDS[:5], WORDS[10:11]]
    opened = [Runner.open(tmp_path / name) for name in ("student", "int8")]
    assert all(isinstance(runner.task, TokenClassification) for runner in opened)
    assert set(opened[0].config.id2label.values()) == set(TAGS)
    batch = opened[0].task.encode(words, opened[0].tokenizer)
    exact, rounded = (runner.forward(runner.task.model_inputs(batch))["logits"] for runner in opened)
    assert exact.shape == rounded.shape and (exact - rounded).norm() < 0.05 * exact.norm()
    assert [len(runner.predict(words)) for runner in opened] == [2, 2]


# ---------------------------------------------------------------------------------------------- bi-encoders

POOL = FeatureMatch("encoder.pool", "encoder.pool")
RELATIONS = (PKT, RKDAngle, RKDDistance, SimilarityPreserving)
BI_ENCODER = {"model_type": "bi_encoder", "score_range": [0, 5]}
SENTENCES = [(" ".join(WORDS[:4]), " ".join(WORDS[2:9])), (WORDS[30], WORDS[31]), (" ".join(WORDS[9:17]), WORDS[9])]


def test_a_bi_encoder_goes_from_a_cross_encoder_to_embeddings_and_int8(
    tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops an exported encoder whose vectors are not those that the scores were trained on."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    teacher, start = (str(tiny_model(num_labels=1, seed=seed, head=not seed)) for seed in (0, 1))
    folders = {type(q).__name__: QuantizationCallback(q, str(tmp_path / type(q).__name__)) for q in backends("")}
    report = CompressionReport()
    module = DistillationModule(
        ModelSource(start, keep_layers=[0, 2], config={**BI_ENCODER, "pooling": "max"}),
        {"teacher": ModelSource(teacher)},
        losses={"scores": LogitMSE(), "hidden": HiddenStateMSE([FeatureMatch(1, 1)])},
        optimizer=lambda params: AdamW(params, lr=1e-2),
    )
    callbacks = [StudentExport(), SentenceEncoderExport(), *folders.values(), report]
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=callbacks, log_every_n_steps=1)
    trainer.fit(module, datamodule=glue("stsb"))
    assert torch.isfinite(trainer.callback_metrics["train/loss/hidden"])
    scores = [record["score"] for record in Runner.open(tmp_path / "student").predict(SENTENCES)]
    for name in folders:
        found = [record["score"] for record in Runner.open(tmp_path / name).predict(SENTENCES)]
        assert found == pytest.approx(scores, abs=0.1) and found != scores
    assert {row["name"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]} >= {"teacher", "student"}

    folder = tmp_path / "sentence_encoder"  # with transformers alone, as the page on students says
    encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(encoder).__module__.startswith("transformers.") and encoder.config.num_hidden_layers == 2
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_max_tokens"]
    vectors = []
    for text in (text for pair in SENTENCES for text in pair):
        with torch.no_grad():
            vectors.append(encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].amax(0))
    cosines = F.cosine_similarity(torch.stack(vectors[::2]), torch.stack(vectors[1::2]))
    assert [5 * cosine for cosine in cosines.tolist()] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("teacher_type", ["bi_encoder", "plain"])
def test_embeddings_are_distilled_with_a_projection(
    teacher_type: str, tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops embeddings of whole rows instead of each text's, and a projection that is exported with the student."""
    wide = tiny_model(head=False, hidden_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    teacher = ModelSource(str(wide), config={"model_type": "bi_encoder"})
    if teacher_type == "bi_encoder":
        stored = load_trained(teacher, AutoModelForSequenceClassification)
        stored.save_pretrained(tmp_path / "teacher")
        AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "teacher")
        teacher = ModelSource(str(tmp_path / "teacher"))
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    loss = EmbeddingMSE([POOL])
    module = DistillationModule(
        ModelSource(str(tiny_model(head=False, **still)), config=BI_ENCODER),
        {"teacher": teacher},
        losses={"embeddings": loss, **{kind.__name__: kind([POOL]) for kind in RELATIONS}},
        hard_label_weight=0.0,
        warmup=1.0,
        optimizer=lambda params: AdamW(params, lr=1e-2),
    )
    first: list[float] = []

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                inputs = pl_module.task.model_inputs(batch)
                with torch.no_grad():
                    read = [m(**inputs) and m.encoder for m in (pl_module.model, *pl_module.teachers.values())]
                    first.append(by_hand(*read, loss, inputs))

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *rest: Any) -> None:
            if len(first) == 1:
                first.append(trainer.callback_metrics["train/loss/embeddings"].item())

    trainer = make_trainer(
        default_root_dir=tmp_path, callbacks=[StudentExport(), Keep()], log_every_n_steps=1, limit_val_batches=0
    )
    trainer.fit(module, datamodule=glue("stsb"))
    assert first[1] == pytest.approx(first[0], rel=1e-4) and first[0] > 1e-3
    assert loss.projections[0].weight.shape == (24, 16)
    assert not [name for name, _ in Runner.open(tmp_path / "student").config.to_dict().items() if "projection" in name]
    for kind in RELATIONS:
        assert torch.isfinite(trainer.callback_metrics[f"train/loss/{kind.__name__}"])


def by_hand(student: Any, teacher: Any, loss: EmbeddingMSE, inputs: dict[str, Any]) -> float:
    """The squared difference of the embeddings of single texts, each encoded without any padding."""
    squares = []
    for row in range(len(inputs["input_ids"])):
        real = inputs["attention_mask"][row].bool()
        ids, types = inputs["input_ids"][row][real], inputs["token_type_ids"][row][real]
        for text in (ids[types == 0], torch.cat([ids[:1], ids[types == 1]])):
            own = loss.projections[0](student(text[None]).pooler_output[0])
            squares.append((own - teacher(text[None]).pooler_output[0]).square().mean().item())
    return sum(squares) / len(squares)


def test_the_encoder_of_another_student_is_refused(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a run that fails at its end, when all the training is done."""
    trainer = make_trainer(callbacks=[SentenceEncoderExport()])
    with pytest.raises(
        InputError, match=r"`model.student` to be a bi-encoder for SentenceEncoderExport, but got 'bert'"
    ):
        trainer.fit(DistillationModule(ModelSource(str(tiny_model(num_labels=1)))), datamodule=glue("stsb"))


def test_a_bi_encoder_refuses_single_texts(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a text from being compared with an empty one."""
    module = DistillationModule(ModelSource(str(tiny_model()), config={"model_type": "bi_encoder"}))
    with pytest.raises(InputError, match="row 0 of the batch has one text alone"):
        make_trainer().fit(module, datamodule=glue("sst2"))
