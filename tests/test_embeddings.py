"""Embeddings that start as a trained model's: the same words, the same geometry, and one sentence where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast, PreTrainedModel

from lightning_kd import InputError, ModelSource
from lightning_kd.embeddings import principal_components, start_embeddings
from lightning_kd.models import load_config, load_model, load_trained
from lightning_kd.optim import AdamW
from tests.conftest import VOCABULARY

TinyModel = Callable[..., Path]
STUDENTS: dict[str, dict[str, Any]] = {
    "rnn": {"model_type": "rnn", "hidden_size": 8},
    "bert": {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "albert": {"model_type": "albert", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8},
}


def start(path: Path, tokenizer: Any = None, **config: Any) -> PreTrainedModel:
    """A student whose embeddings start as those of the model in ``path``."""
    source = ModelSource(from_scratch=True, embeddings_from=str(path), config={"vocab_size": len(VOCABULARY), **config})
    model = load_model(source, AutoModelForSequenceClassification, load_config(source))
    start_embeddings(model, source, tokenizer or AutoTokenizer.from_pretrained(path))
    return model


def table(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach()


def test_components_are_those_of_sklearn() -> None:
    """Stops the directions of least variance, and a share of it that counts the mean."""
    values = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 10) + 3
    found, share = principal_components(values, 4)
    pca = PCA(4, svd_solver="full").fit(values.double().numpy())
    wanted = pca.transform(values.double().numpy())
    assert np.allclose(np.abs(found.numpy()), np.abs(wanted), atol=1e-4)
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-6)
    everything, whole = principal_components(values, 9)
    before, after = (torch.pdist(each.double()) for each in (values, everything))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    assert whole == pytest.approx(1)


@pytest.mark.parametrize("kind", STUDENTS)
def test_equal_widths_are_copied(tiny_model: TinyModel, kind: str) -> None:
    """Stops a rotation where a copy was asked for: the teacher's layers would not know its words."""
    width = "hidden_size" if kind == "bert" else "embedding_size"
    model = start(tiny_model("bert"), **{**STUDENTS[kind], width: 16})
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"))
    assert torch.equal(table(model), table(teacher))
    assert table(model).requires_grad is False and model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("kind", STUDENTS)
def test_narrower_ones_are_principal_components(
    tiny_model: TinyModel, kind: str, log: pytest.LogCaptureFixture
) -> None:
    """Stops embeddings that are cut off, and a log that does not say how much was lost."""
    width = "hidden_size" if kind == "bert" else "embedding_size"
    path = tiny_model("bert")
    model = start(path, **{**STUDENTS[kind], width: 6})
    wanted, share = principal_components(table(AutoModelForSequenceClassification.from_pretrained(path)), 6)
    assert torch.equal(table(model), wanted) and 0 < share < 1
    assert f"Word embeddings from {path}: 6 of 16 dimensions, {share:.1%} of the variance" in log.text


def test_a_table_may_be_longer_than_the_vocabulary(tiny_model: TinyModel) -> None:
    """Stops rows that no token has from moving the directions, or a longer student's from being an error."""
    longer = tiny_model("bert", vocab_size=len(VOCABULARY) + 5)
    size = len(VOCABULARY)
    model = start(longer, **STUDENTS["rnn"], embedding_size=6, vocab_size=size + 3)
    teacher = table(AutoModelForSequenceClassification.from_pretrained(longer))
    assert torch.equal(table(model)[:size], principal_components(teacher[:size], 6)[0])
    assert table(model).shape == (size + 3, 6)


def test_what_cannot_be_is_one_sentence(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Stops a word's embedding from being another word's, and an option that is passed over."""
    path = tiny_model("bert")
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:-2], *VOCABULARY[:-3:-1]]) + "\n")
    other = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    assert len(other) == len(VOCABULARY)
    with pytest.raises(InputError, match=r"`model.student.embeddings_from` to be a model that reads the vocabulary"):
        start(path, other, **STUDENTS["rnn"])
    with pytest.raises(
        InputError, match=r"16 dimensions, but `model.student` has 20: set embedding_size, or hidden_size"
    ):
        start(path, **STUDENTS["rnn"], embedding_size=20)
    with pytest.raises(InputError, match="There is no such folder"):
        start(Path("/nowhere/at/all"), AutoTokenizer.from_pretrained(path), **STUDENTS["rnn"])
    bare = tmp_path / "bare"
    AutoModelForSequenceClassification.from_pretrained(path).save_pretrained(bare)
    with pytest.raises(InputError, match="comes without its tokenizer"):
        start(bare, AutoTokenizer.from_pretrained(path), **STUDENTS["rnn"])
    stored = ModelSource(str(path), embeddings_from=str(path))
    model = load_model(stored, AutoModelForSequenceClassification, load_config(stored))
    with pytest.raises(InputError, match=r"`model.student.embeddings_from` to be left out without from_scratch: true"):
        start_embeddings(model, stored, AutoTokenizer.from_pretrained(path))
    with pytest.raises(InputError, match=r"`teacher.embeddings_from` to be left out"):
        load_trained(stored, AutoModelForSequenceClassification)


def test_a_fit_starts_from_them(
    tiny_model: TinyModel, glue: Callable[..., Any], make_trainer: Callable[..., Any], distillation: Callable[..., Any]
) -> None:
    """Stops an option that is read and never used."""
    path = tiny_model("bert")
    config = {**STUDENTS["rnn"], "embedding_size": 16}
    source = ModelSource(from_scratch=True, embeddings_from=str(path), config=config)
    module = distillation(student=source, optimizer=lambda params: AdamW(params, lr=0.0))
    make_trainer().fit(module, datamodule=glue())
    assert torch.equal(table(module.model), table(AutoModelForSequenceClassification.from_pretrained(path)))
