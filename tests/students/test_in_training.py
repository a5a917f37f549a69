"""Students that are no transformer, and ALBERT, from a distillation to int8 and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd import DistillationModule, ModelSource, Runner
from lightning_kd.callbacks import QuantizationCallback, StudentExport
from lightning_kd.datamodules import NERDataModule
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL
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
    callbacks += [QuantizationCallback(q, str(tmp_path / type(q).__name__)) for q in backends(kind)]  # type: ignore[misc]
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
