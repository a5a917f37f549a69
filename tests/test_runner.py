"""One interface to open what a run has written, float or int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

from lightning_kd import InputError, Runner
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8, Quantizer
from lightning_kd.runner import weight_bytes
from tests.conftest import needs_extra

TinyModel = Callable[..., Path]
TEXTS = ["bun den fin", "gan", "kon lun mun nin pan ran", "bun bun", "san ten den"] * 3
NAMES = {0: "bad", 1: "good", 2: "neither"}


def model_in(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def float_folder(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tiny_model(num_labels=3), tmp_path_factory.mktemp("float")
    model = model_in(source)
    model.config.id2label, model.config.label2id = NAMES, {name: i for i, name in NAMES.items()}
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():  # each label is the answer to some text
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantize(folder: Path, backend: type[Quantizer], into: Path) -> Path:
    """An int8 folder as the callback writes it."""
    needs_extra(backend())
    model, tokenizer = model_in(folder), AutoTokenizer.from_pretrained(folder)
    into.mkdir()
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    quantizer = backend()
    quantizer.convert(model, [batch] if quantizer.needs_calibration else [], into)
    model.config.save_pretrained(into)
    tokenizer.save_pretrained(into)
    return into


def test_float_folder_answers_as_the_pipeline_does(float_folder: Path) -> None:
    """Stops labels from being taken from another order, or scores from unscaled logits."""
    expected = pipeline("text-classification", model=str(float_folder))(TEXTS)
    records = Runner.open(float_folder).predict(TEXTS, batch_size=4)
    assert [record["label"] for record in records] == [record["label"] for record in expected]
    assert len({record["label"] for record in records}) > 1
    assert [r["score"] for r in records] == pytest.approx([r["score"] for r in expected], abs=1e-5)


@pytest.mark.parametrize("backend", [DynamicInt8, OpenVINOInt8, ONNXRuntimeInt8], ids=lambda b: b.__name__)
def test_int8_folder_opens_with_its_own_backend(backend: type[Quantizer], float_folder: Path, tmp_path: Path) -> None:
    """Stops an int8 folder from being read as float weights, or by another backend than its own."""
    folder = quantize(float_folder, backend, tmp_path / "int8")
    runner = Runner.open(folder, threads=1)
    records, expected = runner.predict(TEXTS), Runner.open(float_folder).predict(TEXTS)
    batch = dict(runner.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    assert torch.equal(runner.forward(batch)["logits"], backend.open(folder, 1)(batch)["logits"])
    assert [set(record) for record in records] == [{"label", "score"}] * len(TEXTS)
    assert sum(a["label"] == b["label"] for a, b in zip(records, expected, strict=True)) >= 12
    assert weight_bytes(folder) == sum(f.stat().st_size for f in folder.iterdir() if "json" not in f.suffix)


def test_the_size_of_a_batch_changes_nothing(float_folder: Path) -> None:
    """Stops padding from leaking into a short text that stands beside a long one."""
    runner = Runner.open(float_folder)
    alone, together = runner.predict(TEXTS, batch_size=1), runner.predict(TEXTS, batch_size=100)
    assert [record["label"] for record in alone] == [record["label"] for record in together]
    assert [r["score"] for r in alone] == pytest.approx([r["score"] for r in together], abs=1e-5)
    assert runner.predict([]) == []


def test_pairs_of_texts_are_encoded_as_pairs(float_folder: Path) -> None:
    """Stops a pair from being read as two texts, or its second text as more of the first."""
    runner = Runner.open(float_folder)
    pairs = [("bun den", "fin gan"), ("kon", "lun mun nin")]
    encoded = runner.tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    assert encoded["token_type_ids"].max() == 1
    with torch.no_grad():
        scores, labels = model_in(float_folder)(**encoded).logits.softmax(-1).max(-1)
    records = runner.predict(pairs)
    assert [record["label"] for record in records] == [NAMES[label] for label in labels.tolist()]
    assert [record["score"] for record in records] == pytest.approx(scores.tolist(), abs=1e-5)


def test_texts_are_cut_where_training_cut_them(float_folder: Path, tmp_path: Path) -> None:
    """Stops a long text from running past the position embeddings."""
    model, tokenizer = model_in(float_folder), AutoTokenizer.from_pretrained(float_folder)
    tokenizer.model_max_length = 6
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    long, cut = Runner.open(tmp_path).predict(["bun den fin gan " * 30, "bun den fin gan"])
    assert long["label"] == cut["label"] and long["score"] == pytest.approx(cut["score"], abs=1e-6)


def test_a_single_string_is_refused(float_folder: Path) -> None:
    """Stops `predict("good")` from answering once for each letter."""
    with pytest.raises(InputError, match="`texts` to be a list of texts, but got a single string"):
        Runner.open(float_folder).predict("bun den")


def test_regression_gives_a_score_alone(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Stops a regression from answering LABEL_0 with a probability of 1."""
    source = tiny_model(num_labels=1)
    encoded = AutoTokenizer.from_pretrained(source)(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model_in(source)(**encoded).logits[:, 0].tolist()
    for folder in (source, quantize(source, DynamicInt8, tmp_path / "int8")):
        records = Runner.open(folder).predict(TEXTS[:3])
        assert [set(record) for record in records] == [{"score"}] * 3
        assert [record["score"] for record in records] == pytest.approx(expected, abs=0.3)
    assert max(expected) - min(expected) > 0.01


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """Stops a wrong path from being looked up on the Hub."""
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=r"`folder` to be a folder with a config\.json, but got '"):
            Runner.open(folder)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused(missing: str, float_folder: Path, tmp_path: Path) -> None:
    """Stops random weights, or a tokenizer from elsewhere, from standing in for what was not copied."""
    for file in float_folder.iterdir():
        if file.name != missing and not (missing == "tokenizer.json" and "token" in file.name):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="`folder"):
        Runner.open(tmp_path)


def test_a_broken_configuration_is_refused(float_folder: Path, tmp_path: Path) -> None:
    """Stops a JSON error without the name of the file."""
    (tmp_path / "config.json").write_text((float_folder / "config.json").read_text()[:40])
    with pytest.raises(InputError, match="`folder`"):
        Runner.open(tmp_path)


def test_an_encoder_without_a_head_is_refused(tiny_model: TinyModel) -> None:
    """Stops the random head that transformers adds from answering."""
    with pytest.raises(InputError, match="fine-tuned"):
        Runner.open(tiny_model(head=False))


def test_label_names_come_from_the_folder(float_folder: Path, tmp_path: Path) -> None:
    """Stops names that are left out of `config.json` from becoming LABEL_0 in the int8 folder alone."""
    folder = quantize(float_folder, DynamicInt8, tmp_path / "int8")
    assert json.loads((folder / "config.json").read_text())["id2label"] == {str(i): n for i, n in NAMES.items()}
    assert {record["label"] for record in Runner.open(folder).predict(TEXTS)} <= set(NAMES.values())
    assert AutoConfig.from_pretrained(folder).num_labels == 3
