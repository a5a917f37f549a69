"""Which parameters decay, and the optimizer's defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from lightning_kd.losses import FeatureMatch, HiddenStateMSE
from lightning_kd.optim import AdamW, parameter_groups


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra"])
def test_biases_and_norms_do_not_decay(model_type: str, tiny_model: Callable[..., Path]) -> None:
    """Stops weight decay from pulling the scales of norms, which start at 1, to 0."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model(model_type))
    model.get_input_embeddings().weight.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = parameter_groups(model)
    assert "weight_decay" not in decayed and plain["weight_decay"] == 0
    without = {names[id(p)] for p in plain["params"]}
    assert without == {name for name in names.values() if "bias" in name or "norm" in name.lower()}
    assert len(without) + len(decayed["params"]) == len(names) - 1  # all but the frozen one


def test_empty_groups_are_left_out() -> None:
    """Stops an optimizer from being handed a group without parameters, which it refuses."""
    assert [len(group["params"]) for group in parameter_groups(nn.LayerNorm(3))] == [2]
    assert parameter_groups(nn.ReLU()) == []


def test_steps_equal_torchs() -> None:
    """Stops the fused kernel, or a default, from being another AdamW than the one that recipes name."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2)]
    ours = AdamW([parameters[0]])
    reference = torch.optim.AdamW([parameters[1]], lr=5e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for step in range(5):
        for parameter, optimizer in zip(parameters, (ours, reference), strict=True):
            parameter.grad = torch.sin(torch.arange(12.0) + step).view(3, 4)
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=0, atol=1e-8)
    assert parameters[0].ne(torch.linspace(-1, 1, 12).view(3, 4)).any()


def test_own_learning_rate_of_a_loss() -> None:
    """Stops a projection's own learning rate from being lost, or from reaching the student."""
    loss = HiddenStateMSE([FeatureMatch(1, 1)], projection_lr=1e-3)
    loss.build(BertConfig(hidden_size=4, num_attention_heads=2), BertConfig(hidden_size=6, num_attention_heads=2))
    module = nn.ModuleDict({"student": nn.Linear(3, 2), "loss": loss})
    optimizer = AdamW(parameter_groups(module), lr=2e-5)
    found = {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups}
    assert found == {(2e-5, 0.01, 1), (2e-5, 0.0, 1), (1e-3, 0.01, 1), (1e-3, 0.0, 1)}
