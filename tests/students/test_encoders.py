"""Recurrent and convolutional encoders against torch's layers and the paper's formula, and as transformers models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from lightning_kd import InputError, ModelSource
from lightning_kd.models import keep_layers, load_config, load_model
from lightning_kd.students import (
    CNNConfig,
    CNNForSequenceClassification,
    CNNForTokenClassification,
    CNNModel,
    RNNConfig,
    RNNForSequenceClassification,
    RNNForTokenClassification,
    RNNModel,
)

LENGTHS = torch.tensor([7, 1, 4])
SHAPE: dict[str, Any] = {"vocab_size": 30, "num_hidden_layers": 2, "initializer_range": 1.0, "num_labels": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "bilstm": {"model_type": "rnn", "hidden_size": 12, "cell": "lstm"},
    "bigru": {"model_type": "rnn", "hidden_size": 12, "cell": "gru", "embedding_size": 5, "pooling": "last"},
    "gru": {"model_type": "rnn", "hidden_size": 7, "cell": "gru", "bidirectional": False, "pooling": "last"},
    "cnn": {"model_type": "cnn", "hidden_size": 12, "embedding_size": 5},
}


def inputs(padding: int = 0, filler: int = 0) -> dict[str, Tensor]:
    """Three rows of 7, 1 and 4 tokens, and further padding behind the longest."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(7 + padding) < LENGTHS[:, None]).long()
    ids = torch.randint(1, 30, (3, 7), generator=generator)
    ids = torch.cat([ids, torch.zeros(3, padding, dtype=torch.int64)], 1)
    return {"input_ids": ids * mask + filler * (1 - mask), "attention_mask": mask}


def make(kind: str, auto_class: Any = AutoModelForSequenceClassification, **changes: Any) -> Any:
    torch.manual_seed(0)
    source = ModelSource(from_scratch=True, config={**SHAPE, **SHAPES[kind], **changes})
    return load_model(source, auto_class, load_config(source)).eval()


every_kind = pytest.mark.parametrize("kind", SHAPES)
every_head = pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForTokenClassification])


# ---------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_is_torch_on_packed_sequences(cell: str, bidirectional: bool) -> None:
    """Stops a backward direction that reads the padding of a shorter row before its last token."""
    options = {"cell": cell, "bidirectional": bidirectional, "hidden_size": 12, "num_hidden_layers": 3}
    torch.manual_seed(0)
    own = RNNModel(RNNConfig(vocab_size=30, pooling="last", **options)).eval()
    width = 12 // (1 + bidirectional)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
    torchs = kind(12, width, num_layers=3, bidirectional=bidirectional, batch_first=True)
    state = {}
    for number, layer in enumerate(own.layers):
        for direction, suffix in ((layer.forwards, ""), (layer.backwards, "_reverse")):
            if direction is not None:
                state |= {f"{n.removesuffix('0')}{number}{suffix}": p for n, p in direction.named_parameters()}
    torchs.load_state_dict(state)
    batch = inputs(padding=2)
    packed = pack_padded_sequence(own.embedding(batch["input_ids"]), LENGTHS, batch_first=True, enforce_sorted=False)
    output, last = torchs(packed)
    wanted, _ = pad_packed_sequence(output, batch_first=True)
    found = own(**batch).last_hidden_state
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(found[row, :length], wanted[row, :length])
    hidden = last[0] if cell == "lstm" else last
    ends = torch.cat(list(hidden[-1 - bidirectional :]), -1)  # the last layer's, forwards and then backwards
    torch.testing.assert_close(own.pool(found, batch["attention_mask"].bool()), ends)


@torch.no_grad()
def test_is_the_convolution_of_the_paper() -> None:
    """Stops windows that are off their token by one, and a dilation that reads neighbours instead."""
    torch.manual_seed(0)
    own = CNNModel(CNNConfig(vocab_size=30, hidden_size=12, num_hidden_layers=3, kernel_sizes=[2, 3, 4])).eval()
    batch = inputs(padding=2)
    states = own(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], own.embedding(batch["input_ids"]))
    for row, length in enumerate(LENGTHS.tolist()):
        for number, layer in enumerate(own.layers):
            below, dilation = states[number][row, :length], 2**number
            for token in range(length):
                features = []
                for size, linear in layer.windows.items():
                    places = [token + dilation * step - dilation * (int(size) - 1) // 2 for step in range(int(size))]
                    window = torch.cat([below[p] if 0 <= p < length else torch.zeros(12) for p in places])
                    features.append(torch.relu(linear.weight @ window + linear.bias))
                torch.testing.assert_close(states[number + 1][row, token], torch.cat(features))


@torch.no_grad()
def test_one_layer_is_torchs_convolution() -> None:
    """Stops weights that are laid out by dimension and not by token of the window."""
    torch.manual_seed(0)
    own = CNNModel(CNNConfig(vocab_size=30, hidden_size=8, kernel_sizes=[3])).eval()
    linear = own.layers[0].windows["3"]
    convolution = nn.Conv1d(8, 8, 3, padding="same")
    convolution.weight.copy_(linear.weight.view(8, 3, 8).transpose(1, 2))
    convolution.bias.copy_(linear.bias)
    ids = torch.randint(30, (2, 9))
    wanted = convolution(own.embedding(ids).transpose(1, 2)).relu().transpose(1, 2)
    torch.testing.assert_close(own(ids).last_hidden_state, wanted)


@every_kind
@torch.no_grad()
def test_max_pooling_sees_real_tokens_alone(kind: str) -> None:
    """Stops padding from being the largest, and a value below 0 from losing to what stands for padding."""
    model = make(kind, AutoModel, **({} if kind == "cnn" else {"pooling": "max"}))
    batch = inputs(padding=2, filler=3)
    states = model(**batch).last_hidden_state
    pooled = model.pool(states, batch["attention_mask"].bool())
    for row, length in enumerate(LENGTHS.tolist()):
        assert torch.equal(pooled[row], states[row, :length].amax(0))
    assert kind == "cnn" or pooled.min() < 0


# ---------------------------------------------------------------------------------------------- padding


@every_kind
@every_head
@torch.no_grad()
def test_padding_changes_nothing(kind: str, head: Any) -> None:
    """Stops an answer that depends on the longest row of the batch, or on the token that fills the others up."""
    model = make(kind, head)
    plain = model(**inputs()).logits
    for other in (inputs(padding=5), inputs(padding=3, filler=9)):
        logits = model(**other).logits
        for row, length in enumerate(LENGTHS.tolist()):
            pick = slice(None, length) if logits.ndim == 3 else slice(None)
            torch.testing.assert_close(logits[row][pick], plain[row][pick], rtol=0, atol=1e-6)
            alone = model(other["input_ids"][row : row + 1, :length]).logits  # and without a mask
            torch.testing.assert_close(alone[0][pick], plain[row][pick], rtol=0, atol=1e-6)


@every_kind
def test_no_gradient_comes_from_padding(kind: str) -> None:
    """Stops the padding's embedding from being trained."""
    model = make(kind)
    model(**inputs(padding=3)).logits.square().sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert not gradient[0].any() and gradient[inputs()["input_ids"][0, 0]].any()


@every_kind
@torch.no_grad()
def test_both_ends_of_a_row_are_read(kind: str) -> None:
    """Stops a direction, or a side of the windows, that is computed and then lost."""
    model = make(kind, AutoModelForTokenClassification)
    batch = inputs()
    plain = model(**batch).logits[0]
    for place, seen_from in ((2, 3), (4, 3)):
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, place] = (changed["input_ids"][0, place] + 1) % 30
        differs = not torch.equal(model(**changed).logits[0, seen_from], plain[seen_from])
        assert differs == (place < seen_from or kind != "gru"), "one direction does not see what comes after"


# ---------------------------------------------------------------------------------------------- transformers


@every_kind
@every_head
@torch.no_grad()
def test_comes_back_from_its_folder(kind: str, head: Any, tmp_path: Path) -> None:
    """Stops a loaded model that starts from random weights, or forgets its shape."""
    model = make(kind, head)
    model.save_pretrained(tmp_path)
    loaded = head.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    shape = [{**m.config.to_dict(), "_name_or_path": ""} for m in (loaded, model)]
    assert shape[0] == shape[1]
    assert torch.equal(loaded(**inputs()).logits, model(**inputs()).logits)


@every_kind
@torch.no_grad()
def test_an_encoder_gets_a_new_head(kind: str, tmp_path: Path) -> None:
    """Stops a tagger that starts from a classifier's folder with random layers."""
    model = make(kind)
    model.save_pretrained(tmp_path)
    tagger = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    bare = AutoModel.from_pretrained(tmp_path).eval()
    wanted = model.encoder(**inputs()).last_hidden_state
    assert torch.equal(tagger.encoder(**inputs()).last_hidden_state, wanted)
    assert torch.equal(bare(**inputs()).last_hidden_state, wanted)


@every_kind
@torch.no_grad()
def test_hidden_states_are_those_of_every_layer(kind: str) -> None:
    """Stops losses on hidden states from reading the layer below, or widths that the configuration does not name."""
    model = make(kind)
    output = model(**inputs(), output_hidden_states=[0, 2])
    assert [s.shape for s in output.hidden_states] == [(3, 7, model.config.hidden_size)] * 3
    encoder = model.encoder
    mask = inputs()["attention_mask"].bool()
    assert torch.equal(output.hidden_states[0], encoder.projection(encoder.embedding(inputs()["input_ids"])))
    assert torch.equal(output.hidden_states[2], encoder.layers[1](output.hidden_states[1], mask))
    assert model(**inputs()).hidden_states is None
    assert torch.equal(model(**inputs(), return_dict=False)[0], output.logits)
    types = torch.ones_like(inputs()["input_ids"])
    assert torch.equal(model(**inputs(), token_type_ids=types).logits, output.logits)


@every_kind
def test_drops_out_in_training_alone(kind: str) -> None:
    """Stops an evaluation with dropout, and a training without."""
    model = make(kind, dropout=0.5)
    assert torch.equal(model(**inputs()).logits, model(**inputs()).logits)
    model.train()
    assert not torch.equal(model(**inputs()).logits, model(**inputs()).logits)


@torch.no_grad()
def test_layers_can_be_kept() -> None:
    """Stops a second list of as many modules from hiding which are the layers."""
    model = make("bilstm", num_hidden_layers=3)
    smaller = keep_layers(model, [0, 2])
    wanted = model.encoder.layers[2].forwards.weight_hh_l0
    assert torch.equal(smaller.encoder.layers[1].forwards.weight_hh_l0, wanted)
    assert len(make("cnn", num_hidden_layers=3).encoder.layers[0].windows) == 3
    keep_layers(make("cnn", num_hidden_layers=3), [0, 1])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bilstm", {"hidden_size": 13}, "`config.hidden_size` to be even, half for each direction, but got 13"),
        ("bilstm", {"cell": "rnn"}, "`config.cell` to be lstm or gru, but got 'rnn'"),
        ("bilstm", {"pooling": "mean"}, "`config.pooling` to be max or last, but got 'mean'"),
        ("cnn", {"hidden_size": 13}, "`config.hidden_size` to be a multiple of 3, the number of kernel sizes, but"),
        ("cnn", {"kernel_sizes": [3, 3]}, r"`config.kernel_sizes` to be different numbers .* but got \[3, 3\]"),
        ("cnn", {"kernel_sizes": []}, r"`config.kernel_sizes` to be different numbers .* but got \[\]"),
        ("cnn", {"hidden_sizes": 13}, "made of CNNConfig's fields, but got 'hidden_sizes'. Did you mean `hidden_size`"),
    ],
)
def test_shapes_that_cannot_be_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    """Stops a width that is cut down to what fits, and a misspelt choice from being the default."""
    with pytest.raises(InputError, match=message):
        make(kind, **change)


def test_the_auto_classes_give_the_public_ones() -> None:
    """Stops a class that is exported but that no folder opens as."""
    assert type(make("bilstm")) is RNNForSequenceClassification and type(make("cnn")) is CNNForSequenceClassification
    assert type(make("bigru", AutoModelForTokenClassification)) is RNNForTokenClassification
    assert type(make("cnn", AutoModelForTokenClassification)) is CNNForTokenClassification
