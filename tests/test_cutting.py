"""A masked model: against the model that is cut to the same parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_kd.cutting import Kept, cut, mask
from tests.test_pruning import families, heads, layers_of, load, outputs

TinyModel = Callable[..., Path]


def four_heads(tiny_model: TinyModel, family: str) -> Path:
    """A model that three heads of four can be left of: ELECTRA's width may not become that of its embeddings."""
    return tiny_model(family, **{"n_heads" if family == "distilbert" else "num_attention_heads": 4})


def some(model: Any, *parts: str) -> Kept:
    """Parts drawn at random: other neurons and heads in each layer."""
    generator = torch.Generator().manual_seed(0)
    config, depth = model.config, len(layers_of(model))
    size = config.hidden_size // config.num_attention_heads

    def drawn(count: int, of: int) -> torch.Tensor:
        return torch.randperm(of, generator=generator)[:count].sort().values

    found: dict[str, torch.Tensor] = {}
    if "neurons" in parts:
        found["neurons"] = torch.stack([drawn(7, 24) for _ in range(depth)])
    if "hidden" in parts:
        left = config.num_attention_heads - 1
        found["heads"] = torch.stack([drawn(left, left + 1) for _ in range(depth)])
        found["hidden"] = drawn(left * size, config.hidden_size)
    return Kept(**found)


@families
@heads
@pytest.mark.parametrize("parts", [["neurons"], ["hidden"], ["neurons", "hidden"]], ids="+".join)
def test_a_masked_model_is_the_cut_one(tiny_model: TinyModel, family: str, head: Any, parts: list[str]) -> None:
    """Stops norms over dimensions that are gone, a pooler or a head that reads them, and hooks that stay."""
    model = load(four_heads(tiny_model, family), head)
    before = outputs(model)
    kept = some(model, *parts)
    wanted = outputs(cut(model, kept))
    handles = mask(model, kept)
    found = outputs(model)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert (found - before).abs().max() > 1e-3
    for handle in handles:
        handle.remove()
    assert torch.equal(outputs(model), before)


@families
def test_what_is_masked_has_no_gradient(tiny_model: TinyModel, family: str) -> None:
    """Stops weights that nobody sees from taking their share of the clipped norm."""
    model = load(four_heads(tiny_model, family))
    kept = some(model, "neurons", "hidden")
    smaller = cut(model, kept)
    norms = []
    for each in (model, smaller):
        handles = mask(each, kept) if each is model else []
        each.requires_grad_(True)
        tokens = {"input_ids": torch.tensor([[2, 10, 20, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
        each(**tokens, labels=torch.tensor([1])).loss.backward()
        norms.append(sum(p.grad.square().sum().item() for p in each.parameters() if p.grad is not None))
        for handle in handles:
            handle.remove()
    assert norms[0] == pytest.approx(norms[1], rel=1e-9) and norms[1] > 0
