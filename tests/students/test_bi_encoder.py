"""Bi-encoders against transformers' own encoder on each text alone, and as transformers models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lightning_kd import InputError, ModelSource
from lightning_kd.models import load_config, load_model, load_trained
from lightning_kd.students import BiEncoderConfig, BiEncoderForSequenceClassification, BiEncoderModel
from lightning_kd.students.bi_encoder import pool_texts, split_pairs
from tests.conftest import WORDS

Make = Callable[..., Any]
POOLINGS = ("mean", "cls", "max")
PAIRS = [(" ".join(WORDS[:3]), " ".join(WORDS[3:10])), (WORDS[20], WORDS[21]), (" ".join(WORDS[30:39]), "")]


def around(folder: Path, num_labels: int = 1, **changes: Any) -> Any:
    """A bi-encoder around the model in ``folder``, without dropout."""
    keep_layers = changes.pop("keep_layers", None)
    source = ModelSource(str(folder), keep_layers=keep_layers, config={"model_type": "bi_encoder", **changes})
    config = load_config(source)
    config.num_labels = num_labels
    torch.manual_seed(0)
    return load_model(source, AutoModelForSequenceClassification, config).eval()


def encode(folder: Path, padded_to: int | None = None, pairs: Any = PAIRS) -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if padded_to else True
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    return dict(tokenizer(first, second, padding=padding, max_length=padded_to, return_tensors="pt"))


def slow_vector(states: list[list[float]], pooling: str) -> list[float]:
    """A text's vector from the states of its tokens, in plain Python."""
    columns = list(zip(*states, strict=True))
    return {
        "cls": states[0],
        "mean": [sum(column) / len(states) for column in columns],
        "max": [max(column) for column in columns],
    }[pooling]


def alone(encoder: Any, tokenizer: Any, text: str, pooling: str) -> Tensor:
    """The vector of one text by a plain transformers encoder."""
    with torch.no_grad():
        states = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return torch.tensor(slow_vector(states.tolist(), pooling))


# ---------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("padded_to", [None, 20])
def test_the_texts_of_a_pair_are_what_the_tokenizer_makes_of_each(padded_to: int | None, tiny_model: Make) -> None:
    """Stops a second text without its first token or its separator, and one that holds a piece of the first."""
    folder = tiny_model()
    batch = encode(folder, padded_to)
    texts, mask, places = split_pairs(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer([first for first, _ in PAIRS] + [second for _, second in PAIRS])["input_ids"]
    assert [row[kept].tolist() for row, kept in zip(texts, mask, strict=True)] == wanted
    assert all(kept.tolist() == sorted(kept.tolist(), reverse=True) for kept in mask)
    assert texts.shape == mask.shape == (6, max(len(row) for row in wanted)), "padding is computed with"
    for row in range(len(PAIRS)):
        for token in range(int(batch["attention_mask"][row].sum())):
            text = texts[row + len(PAIRS) * int(batch["token_type_ids"][row, token])]
            assert text[places[row, token]] == batch["input_ids"][row, token]


def test_a_row_without_a_mask_is_real_as_a_whole() -> None:
    """Stops the last token of an unpadded row from being lost."""
    ids, types = torch.tensor([[1, 7, 2, 8, 2], [1, 2, 8, 9, 2]]), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    texts, mask, _ = split_pairs(ids, None, types)
    assert [row[kept].tolist() for row, kept in zip(texts, mask, strict=True)] == [
        [1, 7, 2],
        [1, 2],
        [1, 8, 2],
        [1, 8, 9, 2],
    ]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_the_plain_loop(pooling: Any) -> None:
    """Stops padding in a mean or a maximum, above all where every real value is below 0."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) - 5
    lengths = torch.tensor([5, 1, 3])
    mask = torch.arange(5) < lengths[:, None]
    found = pool_texts(states.masked_fill(~mask.unsqueeze(-1), 100.0), mask, pooling)
    wanted = [slow_vector(row[:length].tolist(), pooling) for row, length in zip(states, lengths, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------- scores and logits


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("model_type", ["bert", "electra"])
@torch.no_grad()
def test_a_score_is_the_cosine_of_texts_encoded_alone(pooling: str, model_type: str, tiny_model: Make) -> None:
    """Stops a text that sees its partner, its token types or the padding, and a score outside of its range."""
    folder = tiny_model(model_type, num_labels=1)
    model = around(folder, pooling=pooling, score_range=[1.0, 5.0])
    plain, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for padded_to in (None, 24):
        found = model(**encode(folder, padded_to)).logits
        for score, (first, second) in zip(found, PAIRS, strict=True):
            u, v = (alone(plain, tokenizer, text, pooling) for text in (first, second))
            torch.testing.assert_close(score, 1 + 4 * F.cosine_similarity(u, v, dim=0).view(1), rtol=0, atol=1e-5)
    same = model(**encode(folder, pairs=[(WORDS[7], WORDS[7])])).logits
    assert same.item() == pytest.approx(5, abs=1e-5)


@torch.no_grad()
def test_logits_are_a_layer_on_both_vectors_and_their_distance(tiny_model: Make) -> None:
    """Stops an order of u, v and |u - v| that another implementation does not have, and a distance with a sign."""
    folder = tiny_model(num_labels=3)
    model = around(folder, num_labels=3)
    plain, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    weight, bias = model.classifier.weight, model.classifier.bias
    bias.normal_()
    for found, pair in zip(model(**encode(folder)).logits, PAIRS, strict=True):
        u, v = (alone(plain, tokenizer, text, "mean").tolist() for text in pair)
        read = [*u, *v, *(abs(a - b) for a, b in zip(u, v, strict=True))]
        wanted = [sum(w * x for w, x in zip(row, read, strict=True)) for row in weight.tolist()]
        torch.testing.assert_close(found, torch.tensor(wanted) + bias, rtol=0, atol=1e-4)


@torch.no_grad()
def test_hidden_states_stand_where_their_tokens_do(tiny_model: Make) -> None:
    """Stops losses on hidden states from comparing a token of the second text with the teacher's token before it."""
    folder = tiny_model()
    model, batch = around(folder), encode(folder, 24)
    plain = AutoModel.from_pretrained(folder).eval()
    states = model(**batch, output_hidden_states=[0, 3]).hidden_states
    assert [layer is None for layer in states] == [False, True, True, False]
    for row in range(len(PAIRS)):
        types = batch["token_type_ids"][row]
        real = batch["attention_mask"][row].bool()
        first = batch["input_ids"][row][real & (types == 0)]
        second = torch.cat([first[:1], batch["input_ids"][row][real & (types == 1)]])
        one, other = (plain(ids[None], output_hidden_states=True).hidden_states for ids in (first, second))
        for layer in (0, 3):
            wanted = torch.cat([one[layer][0], other[layer][0, 1:]])
            torch.testing.assert_close(states[layer][row][real], wanted, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("num_labels", [1, 3])
@torch.no_grad()
def test_comes_back_from_its_folder(num_labels: int, tiny_model: Make, tmp_path: Path) -> None:
    """Stops a loaded model that starts from random weights, forgets its pooling or names a path of this machine."""
    folder = tiny_model()
    model = around(folder, num_labels, pooling="max", score_range=[0, 5], keep_layers=[0, 2])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is BiEncoderForSequenceClassification
    assert loaded.config.num_hidden_layers == 2 and loaded.config.hidden_size == 16
    assert torch.equal(loaded(**encode(folder)).logits, model(**encode(folder)).logits)
    assert str(folder) not in (tmp_path / "config.json").read_text()
    bare = AutoModel.from_pretrained(tmp_path).eval()
    assert type(bare) is BiEncoderModel
    one = AutoTokenizer.from_pretrained(folder)(WORDS[5], return_tensors="pt")
    assert torch.equal(bare(**one).pooler_output, model.encoder(**one).pooler_output)
    assert torch.equal(model(**encode(folder), return_dict=False)[0], model(**encode(folder)).logits)


@pytest.mark.parametrize("head", [True, False])
def test_starts_from_a_stored_encoder(head: bool, tiny_model: Make) -> None:
    """Stops a bi-encoder around random layers, with or without a head beside the stored ones."""
    folder = tiny_model(num_labels=2, head=head, dtype=torch.float16)
    model = around(folder, keep_layers=[2, 0])
    stored = AutoModel.from_pretrained(folder, dtype=torch.float32)
    for number, layer in enumerate((2, 0)):
        for name, wanted in stored.encoder.layer[layer].state_dict().items():
            found = model.encoder.transformer.encoder.layer[number].state_dict()[name]
            assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert torch.equal(model.get_input_embeddings().weight, stored.get_input_embeddings().weight)


def test_every_parameter_is_trained(tiny_model: Make) -> None:
    """Stops a pooler that nothing reads: training on several devices fails on a parameter without a gradient."""
    folder = tiny_model()
    for num_labels in (1, 2):
        model = around(folder, num_labels)
        model(**encode(folder)).logits.square().sum().backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_a_stored_encoder_can_teach_scores_alone(tiny_model: Make) -> None:
    """Stops a teacher whose head is random."""
    source = ModelSource(str(tiny_model(head=False)), config={"model_type": "bi_encoder"})
    teacher = load_trained(source, AutoModelForSequenceClassification)
    assert teacher.config.num_labels == 1 and not teacher.training
    source = ModelSource(source.path, config={"model_type": "bi_encoder", "num_labels": 2})
    with pytest.raises(InputError, match=r"Its weights lack classifier.bias, classifier.weight: fine-tune it first"):
        load_trained(source, AutoModelForSequenceClassification)


@torch.no_grad()
def test_any_encoder_can_be_inside(tiny_model: Make) -> None:
    """Stops a bi-encoder that is BERT's alone."""
    batch = encode(tiny_model())
    config = {"model_type": "bi_encoder", "encoder": {"model_type": "rnn", "hidden_size": 12, "vocab_size": 100}}
    source = ModelSource(from_scratch=True, config=config)
    model = load_model(source, AutoModelForSequenceClassification, load_config(source)).eval()
    assert model.config.hidden_size == 12 and model(**batch).logits.shape == (3, 2)
    padded = {name: F.pad(values, (0, 5)) for name, values in batch.items()}
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits)


def test_what_cannot_be_is_refused(tiny_model: Make) -> None:
    """Stops a single text that is compared with nothing, and a misspelt choice from being the default."""
    folder = tiny_model()
    model, batch = around(folder), encode(folder)
    with pytest.raises(InputError, match="the batch has no token_type_ids: take a tokenizer that writes them"):
        model(input_ids=batch["input_ids"])
    one = AutoTokenizer.from_pretrained(folder)(WORDS[:2], return_tensors="pt")
    with pytest.raises(InputError, match="row 0 of the batch has one text alone: give data with two text columns"):
        model(**one)
    with pytest.raises(InputError, match=r"`config.pooling` to be mean, cls or max, but got 'first'"):
        around(folder, pooling="first")
    with pytest.raises(InputError, match=r"`config.score_range` to be two numbers, .* but got \[5, 0\]"):
        around(folder, score_range=[5, 0])
    with pytest.raises(InputError, match=r"`model.config.model_type` to be 'bert', as .* has it, but got 'rnn'"):
        load_config(ModelSource(str(folder), config={"model_type": "rnn"}))
    with pytest.raises(InputError, match=r"made of BiEncoderConfig's fields, but got 'poolin'. Did you mean `pooling`"):
        load_config(ModelSource(str(folder), config={"model_type": "bi_encoder", "poolin": "cls"}))
    assert BiEncoderConfig().encoder.model_type == "bert"
