"""The recurrent language model against the equations, and through a transformers folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lightning_kd import LSTMConfig, LSTMForCausalLM


def model(**shape: object) -> LSTMForCausalLM:
    torch.manual_seed(0)
    return LSTMForCausalLM(LSTMConfig(vocab_size=30, hidden_size=6, **shape)).eval()


def slow(own: LSTMForCausalLM, row: Tensor) -> Tensor:
    """Logits of one row, step by step from the equations of the cell."""
    states = own.embedding.weight[row]
    for layer in own.layers:
        hidden = cell = torch.zeros(6)
        outputs = []
        for x in states:
            gates = layer.weight_ih_l0 @ x + layer.bias_ih_l0 + layer.weight_hh_l0 @ hidden + layer.bias_hh_l0
            i, f, g, o = gates.split(6)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        states = torch.stack(outputs)
    return states @ own.decoder.weight.T + own.decoder.bias


@torch.no_grad()
def test_is_the_network_of_the_equations() -> None:
    """Stops a layer that is skipped, and a batch that is read along the wrong dimension."""
    own, ids = model(num_hidden_layers=3), torch.randint(30, (2, 5))
    output = own(ids, output_hidden_states=True)
    for row, logits in zip(ids, output.logits, strict=True):
        assert torch.allclose(logits, slow(own, row), atol=1e-5)
    assert [state.shape for state in output.hidden_states] == [(2, 5, 6)] * 4
    assert own(ids).hidden_states is None
    assert torch.equal(own(ids, return_dict=False)[0], output.logits)


@torch.no_grad()
def test_reads_forwards() -> None:
    """Stops a model that sees the word that it is to predict: its perplexity is 1."""
    own, ids = model(), torch.randint(30, (1, 6))
    changed = ids.clone()
    changed[0, 3:] = (changed[0, 3:] + 1) % 30
    same = (own(ids).logits == own(changed).logits).all(-1)[0]
    assert same.tolist() == [True] * 3 + [False] * 3


def test_drops_out_in_training_alone() -> None:
    """Stops an evaluation with dropout, and a training without."""
    own, ids = model(dropout=0.5), torch.randint(30, (2, 5))
    assert torch.equal(own(ids).logits, own(ids).logits)
    own.train()
    assert not torch.equal(own(ids).logits, own(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_comes_back_from_its_folder(tied: bool, tmp_path: Path) -> None:
    """Stops a loaded model that starts from random weights, and a tied one that comes back with two matrices."""
    own, ids = model(tie_word_embeddings=tied), torch.randint(30, (2, 5))
    own.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is LSTMForCausalLM
    assert torch.equal(loaded(ids).logits, own(ids).logits)
    assert (loaded.decoder.weight is loaded.embedding.weight) is tied
