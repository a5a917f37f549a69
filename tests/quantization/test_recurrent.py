"""Recurrent layers in int8: what is stored, what opens, and what a language model loses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_kd import LSTMConfig, LSTMForCausalLM
from lightning_kd.quantization import DynamicInt8
from lightning_kd.quantization.dynamic import _pack, _quantize, _unpack

ROOT = Path(__file__).resolve().parents[2]
WORDS = 300


def stream(rows: int, length: int, seed: int) -> Tensor:
    """Words that follow one another by a rule, but for one in ten."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(WORDS, (rows,), generator=generator)]
    for _ in range(length):
        random = torch.randint(WORDS, (rows,), generator=generator)
        words.append(torch.where(torch.rand(rows, generator=generator) < 0.1, random, (7 * words[-1] + 3) % WORDS))
    return torch.stack(words, 1)


def loss(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())


@pytest.fixture(scope="module")
def trained() -> LSTMForCausalLM:
    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(vocab_size=WORDS, hidden_size=64, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        words = stream(32, 16, seed=step)
        optimizer.zero_grad()
        loss(model(words[:, :-1]).logits, words).backward()
        optimizer.step()
    model.config.architectures = [type(model).__name__]
    return model.eval()


@pytest.fixture(scope="module")
def folder(trained: LSTMForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    DynamicInt8().convert(trained, [], folder)
    trained.config.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_perplexity_is_kept(trained: LSTMForCausalLM, folder: Path) -> None:
    """Stops gates whose scales are swapped: they look like gates."""
    words = stream(64, 32, seed=1000)
    exact = loss(trained(words[:, :-1]).logits, words).exp().item()
    found = loss(DynamicInt8.open(folder)({"input_ids": words[:, :-1]})["logits"], words).exp().item()
    assert exact < WORDS / 10, "the float model has to know the rule"
    assert found == pytest.approx(exact, rel=0.005)


def test_every_matrix_is_stored_in_8_bits(trained: LSTMForCausalLM, folder: Path) -> None:
    """Stops a language model whose embedding, decoder or gates stay in float on disk."""
    tensors = load_file(folder / "int8.safetensors")
    matrices = {name for name, p in trained.named_parameters() if p.ndim == 2}
    assert {name for name, t in tensors.items() if t.ndim == 2} == matrices and len(matrices) == 6
    assert all(tensors[name].dtype in (torch.int8, torch.uint8) for name in matrices)
    rows = {name: len(tensors[name]) for name in matrices}
    assert {name: tensors[f"{name}_scale"].numel() for name in matrices} == rows, "one scale a row"


@torch.no_grad()
def test_tied_weights_open_as_two(tmp_path: Path) -> None:
    """Stops the embedding of a tied model from coming back with the decoder's levels and its own scales."""
    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(vocab_size=50, hidden_size=16, tie_word_embeddings=True)).eval()
    model.config.architectures = ["LSTMForCausalLM"]
    DynamicInt8().convert(model, [], tmp_path)
    model.config.save_pretrained(tmp_path)
    words = torch.randint(50, (3, 7))
    exact, found = model(words).logits, DynamicInt8.open(tmp_path)({"input_ids": words})["logits"]
    assert (found - exact).norm() < 0.03 * exact.norm()
    assert model.decoder.weight is model.embedding.weight


OPEN = """
import json, pickle, sys
from pathlib import Path
import torch
def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")
torch.load = torch.jit.load = refuse
from lightning_kd.quantization import DynamicInt8
pickle.load = pickle.loads = pickle.Unpickler = refuse
torch.set_num_threads(1)
logits = DynamicInt8.open(Path(sys.argv[1]))({"input_ids": torch.tensor(json.loads(sys.argv[2]))})["logits"]
print(json.dumps(logits.contiguous().view(torch.int32).tolist()))
"""


def test_opens_alike_in_another_process(folder: Path) -> None:
    """Stops a folder that only opens where its model's class has been imported by hand."""
    words = stream(2, 5, seed=7)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", OPEN, str(folder), json.dumps(words.tolist())]
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    own = DynamicInt8.open(folder)({"input_ids": words})["logits"]
    assert json.loads(done.stdout.splitlines()[-1]) == own.contiguous().view(torch.int32).tolist()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
@torch.no_grad()
def test_layers_come_back_from_their_tensors(kind: Any, options: dict[str, Any]) -> None:
    """Stops a reverse direction or an upper layer that keeps the weights which it was made with."""
    torch.manual_seed(0)
    layers = [kind(8, 6, **options) for _ in range(2)]
    first, second = (_quantize(nn.ModuleList([layer]))[0] for layer in layers)
    inputs = torch.randn(3, 4, 8)
    wanted = first(inputs)[0]
    assert not torch.equal(second(inputs)[0], wanted)
    tensors = {name: tensor.clone() for name, tensor in _unpack(first).items()}
    assert {name for name in tensors if tensors[name].dtype == torch.int8} == {
        name for name, p in layers[0].named_parameters() if p.ndim == 2
    }
    _pack(second, tensors)
    assert torch.equal(second(inputs)[0], wanted)
    exact = layers[0](inputs)[0]
    assert (wanted - exact).norm() < 0.05 * exact.norm()
