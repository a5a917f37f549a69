"""Classifiers that read from left to right: as teachers of an encoder, and as students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StudentExport, TeacherCache
from lightning_kd.datamodules import SyntheticNERDataModule
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt4, ONNXRuntimeInt8, OpenVINOInt8, Quantizer
from lightning_kd.runner import Runner
from lightning_kd.tasks import TokenClassification
from tests.conftest import WORDS

Make = Callable[..., Any]

_LLAMA = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
_LLAMA |= {"intermediate_size": 24, "max_position_embeddings": 64}
SHAPES = {
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
}


def write(
    folder: Path,
    kind: str,
    end: str | None = "<|end|>",
    head: Any = AutoModelForSequenceClassification,
    labels: Sequence[str] = ("negative", "positive"),
) -> str:
    """A tiny decoder as they are on the Hub: neither its tokenizer nor its configuration names a padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(folder)
    names = {"id2label": dict(enumerate(labels)), "vocab_size": 304}  # Qwen2's tokenizer adds one to its 300
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, pad_token_id=None, initializer_range=0.3, **names, **SHAPES[kind])
    head.from_config(config).save_pretrained(folder)
    return str(folder)


class Watched(DistillationModule):
    """Keeps what its teacher says of each row."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        place = self.trainer.current_epoch, batch_idx
        inputs = self.task.model_inputs(batch)
        seen = self._teachers.loss_inputs(["soft"], self._capture(inputs), batch, inputs, 1.0, place)["soft"]
        rows = zip(batch["index"].tolist(), seen.teacher.logits["logits"], strict=True)
        self.said = {**getattr(self, "said", {}), **dict(rows)}
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("cached", [False, True])
def test_a_decoder_teaches_an_encoder(
    kind: str, cached: bool, glue: Make, distillation: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a teacher that takes padding for the end of a text, or that fails on more than one row at once."""
    source = write(tmp_path / "teacher", kind)
    data = glue(teacher_tokenizers={"t": source})
    module = distillation(Watched, teachers={"t": ModelSource(source)}, losses={"soft": SoftTargetKL()})
    report = CompressionReport()
    cache = TeacherCache(path=str(tmp_path / "cache"), dtype="float32")
    make_trainer(callbacks=[report, *([cache] if cached else [])]).fit(module, datamodule=data)
    teacher, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
    )
    texts = [text for (text,) in data.texts("train")]
    assert len(module.said) == len(texts) == 24
    with torch.no_grad():
        alone = torch.cat([teacher(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(torch.stack([module.said[i] for i in range(24)]), alone, rtol=1e-4, atol=1e-5)
    assert alone.std(0).min() > 1e-3, "or the test could not fail"
    assert report.report is not None and report.report.rows[0].name == "teacher"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_decoder_learns_and_becomes_int8(
    kind: str, glue: Make, distillation: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a folder whose scores hang on what a text is padded with."""
    source = write(tmp_path / "teacher", kind)
    module = distillation(
        student=ModelSource(source, keep_layers=[1]),
        teachers={"t": ModelSource(source)},
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(1, 2)])},
    )
    int8 = QuantizationCallback(DynamicInt8())
    callbacks = [StudentExport(), int8, CompressionReport(baselines={"whole": source})]
    trainer = make_trainer(callbacks=callbacks, default_root_dir=tmp_path / "run")
    trainer.fit(module, datamodule=glue(tokenizer=source))
    short, long = WORDS[0], " ".join(WORDS[:9])
    for folder, tolerance in (
        (tmp_path / "run" / "student", 1e-5),
        (int8.folder, 0.1),
    ):  # its activations are rounded by the range of the batch
        runner = Runner.open(folder)
        alone, together = runner.predict([short])[0], runner.predict([short, long])[0]
        assert alone["label"] == together["label"]
        assert alone["score"] == pytest.approx(together["score"], abs=tolerance)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_decoder_tags_words(kind: str, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a tokenizer that is read once more, for words in place of texts, from having no token to pad with."""
    sizes = {"num_train": 24, "num_validation": 8, "num_test": 4, "batch_size": 8}
    data = SyntheticNERDataModule(**sizes)
    data.setup("fit")
    source = write(tmp_path / "teacher", kind, head=AutoModelForTokenClassification, labels=data.label_names or ())
    module = DistillationModule(
        student=ModelSource(source, keep_layers=[1]),
        teachers={"t": ModelSource(source)},
        losses={"soft": SoftTargetKL()},
        task=TokenClassification(),
    )
    trainer = make_trainer(callbacks=[StudentExport()], default_root_dir=tmp_path / "run")
    trainer.fit(module, datamodule=SyntheticNERDataModule(**sizes, tokenizer=source))
    runner = Runner.open(tmp_path / "run" / "student")
    short, long = "Anna lives in Ostby", "the school in Ostby and its choir wrote to Anna and to Berg last week"
    alone, together = runner.predict([short])[0]["entities"], runner.predict([short, long])[0]["entities"]
    found = [[(each["label"], each["start"], each["end"]) for each in entities] for entities in (alone, together)]
    assert found[0] == found[1] != []


@pytest.mark.parametrize("quantizer", [ONNXRuntimeInt8, ONNXRuntimeInt4, OpenVINOInt8])
def test_what_cannot_convert_a_decoder_says_so_first(
    quantizer: type[Quantizer], glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops hours of training that end in a traceback of the exporter."""
    source = write(tmp_path / "model", "qwen2")
    trainer = make_trainer(callbacks=[QuantizationCallback(quantizer())])
    with pytest.raises(InputError, match=r"cannot convert Qwen2ForSequenceClassification, a decoder: take DynamicInt8"):
        trainer.fit(DistillationModule(ModelSource(source)), datamodule=glue(tokenizer=source))
    assert trainer.global_step == 0


def test_without_a_token_to_pad_with_there_are_no_batches(glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a traceback about None at the first batch."""
    source = write(tmp_path / "model", "gpt2", end=None)
    with pytest.raises(InputError, match=r"`data\.tokenizer` to be a tokenizer with a padding token, .* pad_token"):
        make_trainer().fit(DistillationModule(ModelSource(source)), datamodule=glue(tokenizer=source))
