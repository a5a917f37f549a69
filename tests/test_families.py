"""Encoders that are built otherwise than BERT: they teach, learn and become int8."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
)

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import QuantizationCallback, StudentExport
from lightning_kd.losses import HiddenStateMSE, LayerMap, SoftTargetKL
from lightning_kd.models import keep_layers, load_config, load_model, load_trained
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt4, ONNXRuntimeInt8, OpenVINOInt8, Quantizer, TorchAO
from lightning_kd.quantization.base import TESTED, try_out
from tests.conftest import SHAPES as ENCODERS
from tests.conftest import VOCABULARY, WORDS, needs_extra
from tests.test_decoders import SHAPES as DECODERS

Make = Callable[..., Any]

_SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 66}
#: With token types that a batch leaves out; without SDPA, with a table of relative positions that is read as a whole;
#: without SDPA or token types; with rotary positions, local attention and parts that read each other by name.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _SHAPE,
    "deberta-v2": {
        **_SHAPE,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "mpnet": _SHAPE,
    "modernbert": {**_SHAPE, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2},
}
#: The others of docs/choosing.md.
_SMALL = {**_SHAPE, "embedding_size": 64}
SLOW: dict[str, dict[str, Any]] = {
    "big_bird": {**_SHAPE, "attention_type": "original_full"},
    "data2vec-text": _SHAPE,
    "deberta": {**_SHAPE, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "ernie": _SHAPE,
    "eurobert": {**_SHAPE, "bos_token_id": 2, "eos_token_id": 3},
    "mobilebert": {**_SMALL, "num_hidden_layers": 2, "intra_bottleneck_size": 64, "true_hidden_size": 64},
    "rembert": {**_SHAPE, "input_embedding_size": 64, "output_embedding_size": 64},
    "roformer": _SMALL,
    "squeezebert": _SMALL,
}
KINDS = [*FAMILIES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
BACKENDS = [DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8, TorchAO]


def untrained(kind: str, width: int) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "vocab_size": len(VOCABULARY), "pad_token_id": 0}
    names = {"id2label": {0: "negative", 1: "positive"}}
    config = AutoConfig.for_model(kind, initializer_range=0.1, **sizes, **names, **{**FAMILIES, **SLOW}[kind])
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    model.config.architectures = [type(model).__name__]
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_it_teaches_and_learns(kind: str, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a family that lacks the attention which is asked for unasked from being called damaged."""
    source, model = tmp_path / kind, untrained(kind, 64)
    depth = model.config.num_hidden_layers
    model.save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    names = ["input_ids", "attention_mask"]
    BertTokenizerFast(vocab=str(source / "vocab.txt"), model_input_names=names).save_pretrained(source)
    module = DistillationModule(
        student=ModelSource(str(source), keep_layers=[0, -1 % depth]),
        teachers={"teacher": ModelSource(str(source))},
        losses={"soft": SoftTargetKL(), "hidden": HiddenStateMSE(LayerMap("uniform"))},
    )
    trainer = make_trainer(callbacks=[StudentExport()], default_root_dir=tmp_path / "run")
    trainer.fit(module, datamodule=glue(tokenizer=str(source)))
    assert module.model.config.num_hidden_layers == 2 and trainer.global_step == 3
    runner = Runner.open(tmp_path / "run" / "student")
    short, long = WORDS[0], " ".join(WORDS[:9])
    alone, together = runner.predict([short])[0], runner.predict([short, long])[0]
    assert alone["score"] == pytest.approx(together["score"], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__)
def test_int8_says_what_float_says(backend: type[Quantizer], kind: str, tmp_path: Path) -> None:
    """Stops a backend that does not take the family, or takes no batch but that of its example."""
    quantizer, model = backend(), untrained(kind, 64).eval()
    needs_extra(quantizer)
    generator = torch.Generator().manual_seed(1)

    def batch(rows: int, length: int) -> dict[str, Tensor]:
        lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        return {
            "input_ids": torch.randint(5, len(VOCABULARY), mask.shape, generator=generator) * mask,
            "attention_mask": mask,
        }

    calibration = [batch(16, length) for length in (6, 12, 20)] if quantizer.needs_calibration else []
    quantizer.convert(model, calibration, tmp_path)
    model.config.save_pretrained(tmp_path)
    forward, found, expected = backend.open(tmp_path), [], []
    for rows, length in ((1, 7), (3, 20), (24, 11)):
        inputs = batch(rows, length)
        with torch.no_grad():
            expected.append(model(**inputs).logits)
        found.append(forward(inputs)["logits"])
        assert found[-1].shape == (rows, 2)
    float_logits = torch.cat(expected)
    assert (torch.cat(found) - float_logits).square().mean() < 0.05 * float_logits.square().mean()


def test_what_is_said_of_each_layer_goes_with_it() -> None:
    """Stops a layer from getting the window of another, and a kind that cannot lose one from ending in a traceback."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 30, "num_attention_heads": 2}
    config = AutoConfig.for_model("longformer", num_hidden_layers=3, attention_window=[4, 6, 8], **sizes)
    kept = keep_layers(AutoModelForSequenceClassification.from_config(config), [2, 0])
    assert kept.config.attention_window == [8, 4]
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "vocab_size": 30, "block_sizes": [1, 1]}
    config = AutoConfig.for_model("funnel", num_decoder_layers=1, **sizes)
    funnel = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match=r"`keep_layers` cannot be used with funnel: .*block_sizes"):
        keep_layers(funnel, [1])


def test_a_model_that_reads_the_last_place_is_refused(tmp_path: Path) -> None:
    """Stops scores that hang on the padding beside a text, in silence."""
    sizes = {"d_model": 16, "n_head": 2, "d_inner": 24, "n_layer": 1, "vocab_size": 30}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model("xlnet", **sizes)).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    message = r"XLNetForSequenceClassification reads the last place of a row"
    with pytest.raises(InputError, match=f"`model.student` .*{message}"):
        load_model(source, AutoModelForSequenceClassification, load_config(source), "model.student")
    with pytest.raises(InputError, match=f"`teacher` .*{message}"):
        load_trained(source, AutoModelForSequenceClassification)


class Untraceable(BertForSequenceClassification):
    """Cannot be made a graph of."""

    @wraps(BertForSequenceClassification.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise RuntimeError("no\ngraph")
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("backend", [ONNXRuntimeInt8, ONNXRuntimeInt4, OpenVINOInt8])
def test_what_makes_no_graph_is_said_in_a_sentence(backend: type[Quantizer], tmp_path: Path) -> None:
    """Stops a training from ending in a page of the tracer's own."""
    quantizer = backend()
    needs_extra(quantizer)
    sizes = {**_SHAPE, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 30}
    row = {name: torch.ones(1, 6, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match=r"cannot convert Untraceable \(`.*no graph.*`\): take DynamicInt8"):
        quantizer.convert(Untraceable(AutoConfig.for_model("bert", **sizes)), [row], tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_counts_as_tested_is() -> None:
    """Stops a kind from being believed to work since somebody once tried it."""
    alike = {"camembert", "xlm-roberta"}  # RoBERTa by other names
    own = {"cnn", "lstm", "rnn"}  # tests/quantization/test_students.py
    assert {*FAMILIES, *SLOW, *DECODERS, *ENCODERS, *alike, *own} == TESTED


def test_a_kind_that_nobody_has_tested_is_tried() -> None:
    """Stops the trial from changing the student, or what is drawn after it."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 66}
    config = AutoConfig.for_model("nystromformer", num_attention_heads=2, num_hidden_layers=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    try_out(DynamicInt8(), model)
    assert model.training and model.config.architectures is None and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    needs_extra(OpenVINOInt8())
    with pytest.raises(InputError, match=r"cannot run what it makes of NystromformerFor.* take another quantizer"):
        try_out(OpenVINOInt8(), model)  # which converts it


class Failing(DynamicInt8):
    def convert(self, model: PreTrainedModel, *_: Any) -> None:
        assert not model.training
        raise TypeError("no\nway")


def test_what_a_backend_cannot_take_is_said_before_the_training(
    glue: Make, distillation: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the last line of a long training from being that it was for nothing."""
    monkeypatch.setattr("lightning_kd.quantization.base.TESTED", frozenset())
    trainer = make_trainer(callbacks=[QuantizationCallback(Failing())])
    with pytest.raises(
        InputError, match=r"Failing \(torch\) cannot convert Bert\w+ \(`no way`\): take another quantizer"
    ):
        trainer.fit(distillation(), datamodule=glue())
    assert trainer.global_step == 0
