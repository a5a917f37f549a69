"""What matters to a model, and models of that alone: against weight times gradient, zeros and widened models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lightning_kd import InputError
from lightning_kd.cutting import Kept, check_prunable
from lightning_kd.models import count_parameters, keep_layers
from lightning_kd.pruning import Importance, Shape, choose, importance, narrow, search_layers
from lightning_kd.tasks import QuestionAnswering, SequenceClassification, Task, TokenClassification

TinyModel = Callable[..., Path]

FAMILIES = ["bert", "distilbert", "roberta", "electra"]
HEADS = [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering]
TOKENS = {
    "input_ids": torch.tensor([[2, 10, 20, 30, 3], [2, 40, 3, 0, 0], [2, 8, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
}
families = pytest.mark.parametrize("family", FAMILIES)
heads = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__.removeprefix("AutoModelFor"))


def load(path: Path, head: Any = AutoModelForSequenceClassification, **options: Any) -> PreTrainedModel:
    """A trained model as `prune` holds it."""
    return head.from_pretrained(path, dtype=torch.float64, **options).eval()


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Tensor:
    """All logits where a token stands, or the one set of a row."""
    logits = [value for name, value in model.eval()(**TOKENS).items() if name.endswith("logits")]
    mask = TOKENS["attention_mask"].bool()
    return torch.cat([(value[mask] if value.shape[:2] == mask.shape else value).flatten() for value in logits])


def layers_of(model: PreTrainedModel) -> Any:
    base = model.base_model
    return base.transformer.layer if model.config.model_type == "distilbert" else base.encoder.layer


def inner(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a layer by what they do, found by hand."""
    if hasattr(layer, "ffn"):
        names = ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"]
    else:
        names = [f"attention.self.{name}" for name in ("query", "key", "value")]
        names += ["attention.output.dense", "intermediate.dense", "output.dense"]
    roles = ("query", "key", "value", "out", "up", "down")
    return dict(zip(roles, map(layer.get_submodule, names), strict=True))


def random_scores(model: PreTrainedModel, seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    config, depth = model.config, len(layers_of(model))
    sizes = [(depth, 24), (depth, config.num_attention_heads), (depth + 1, config.hidden_size)]
    return Importance(*(torch.rand(size, generator=generator) for size in sizes))


# ---------------------------------------------------------------------------------------------- importance


def weight_times_gradient(model: PreTrainedModel, task: Task, rows: list[dict[str, Any]]) -> Importance:
    """The scores row by row: a factor on a neuron, head or dimension is one on the weights that it goes through."""
    depth, num_heads = len(layers_of(model)), model.config.num_attention_heads
    neurons, by_head = torch.zeros(depth, 24), torch.zeros(depth, num_heads)
    hidden = torch.zeros(depth + 1, model.config.hidden_size)
    model.requires_grad_(True)
    for row in rows:
        model.zero_grad()
        task.hard_label_loss(task.logits(model(**task.model_inputs(row))), row).backward()
        for i, layer in enumerate(layers_of(model)):
            parts = inner(layer)
            neurons[i] += slope(parts["down"].weight).sum(0).abs()
            by_head[i] += slope(parts["out"].weight).sum(0).reshape(num_heads, -1).sum(1).abs()
        for i, (weight, bias) in enumerate(streams(model)):
            hidden[i] += (slope(weight).reshape(len(weight), -1).sum(1) + slope(bias)).abs()
    model.requires_grad_(False)
    return Importance(*(values / values.norm(dim=1, keepdim=True) for values in (neurons, by_head, hidden)))


def slope(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return (parameter * parameter.grad).detach().float()


def streams(model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of what writes the residual stream in front of each layer and behind the last."""
    base = model.base_model
    first = getattr(base, "embeddings_project", base.embeddings.LayerNorm)
    yield first.weight, first.bias
    for layer in layers_of(model):
        norm = layer.output_layer_norm if hasattr(layer, "ffn") else layer.output.LayerNorm
        yield norm.weight, norm.bias


def assert_same(found: Importance, wanted: Importance) -> None:
    for name in ("neurons", "heads", "hidden"):
        torch.testing.assert_close(getattr(found, name).float(), getattr(wanted, name), rtol=1e-4, atol=1e-6)


@families
def test_importance_is_that_of_a_slow_loop(tiny_model: TinyModel, family: str) -> None:
    """Stops slopes that cancel between rows, padding that counts, and neurons taken for those of another layer."""
    model, task = load(tiny_model(family)), SequenceClassification()
    batch = {**TOKENS, "labels": torch.tensor([0, 1, 1])}
    rows = []
    for i, length in enumerate(TOKENS["attention_mask"].sum(1).tolist()):
        rows.append({**{k: v[i : i + 1, :length] for k, v in TOKENS.items()}, "labels": batch["labels"][i : i + 1]})
    wanted = weight_times_gradient(model, task, rows)
    uneven = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    for batches in ([batch], uneven):  # a row weighs the same, whatever the size of its batch
        assert_same(importance(model, task, batches), wanted)
    assert wanted.neurons.std() > 1e-3 and wanted.hidden.std() > 1e-3
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", ["tags", "answers"])
def test_importance_is_of_the_tasks_own_loss(tiny_model: TinyModel, family: str, kind: str) -> None:
    """Stops a tagger or an answerer that is scored by a loss over padding, or by its first output alone."""
    task: Task
    if kind == "tags":
        task, head = TokenClassification(), AutoModelForTokenClassification
        extra = {"labels": torch.tensor([[-100, 0, 1, -100, -100]])}
    else:
        task, head = QuestionAnswering(), AutoModelForQuestionAnswering
        extra = {
            "labels": torch.tensor([[4, 9]]),
            "example": torch.tensor([0]),
            "char_starts": torch.tensor([[-1, -1, 0, 4, -1]]),
            "char_ends": torch.tensor([[-1, -1, 3, 9, -1]]),
        }
    model = load(tiny_model(family), head)
    row = {**{name: values[:1] for name, values in TOKENS.items()}, **extra}
    found = importance(model, task, [row])
    assert_same(found, weight_times_gradient(model, task, [row]))
    assert found.neurons.isfinite().all() and found.neurons.std() > 1e-3


def test_rows_of_kept_layers_go_with_them(tiny_model: TinyModel) -> None:
    """Stops layer 2, kept as the new layer 1, from losing the neurons that layer 1 could do without."""
    scores = random_scores(load(tiny_model()))
    kept = scores.of_layers([0, 2])
    assert torch.equal(kept.neurons, scores.neurons[[0, 2]]) and torch.equal(kept.heads, scores.heads[[0, 2]])
    assert torch.equal(kept.hidden, scores.hidden[[0, 2, 3]])


# ---------------------------------------------------------------------------------------------- layers


@torch.no_grad()
def loss_without(model: PreTrainedModel, dropped: set[int], rows: list[dict[str, Any]]) -> float:
    """The mean loss of the rows, one by one, with some layers as the identity."""

    def identity(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    handles = [layer.register_forward_hook(identity) for i, layer in enumerate(layers_of(model)) if i in dropped]
    total = 0.0
    for row in rows:
        inputs = {name: values for name, values in row.items() if name != "labels"}
        total += nn.functional.cross_entropy(model(**inputs).logits, row["labels"]).item()
    for handle in handles:
        handle.remove()
    return total / len(rows)


@families
def test_layers_that_go_are_those_that_cost_least(tiny_model: TinyModel, family: str) -> None:
    """Stops the costliest layer from going first, numbers that shift once one is gone, and small batches that count."""
    model = load(tiny_model(family, **({"n_layers": 5} if family == "distilbert" else {"num_hidden_layers": 5})))
    rows = [{**{k: v[i : i + 1] for k, v in TOKENS.items()}, "labels": torch.tensor([i % 2])} for i in range(3)]
    labels = torch.tensor([0, 1, 0])
    batches = [{**{k: v[part] for k, v in TOKENS.items()}, "labels": labels[part]} for part in ([0, 1], [2])]
    before = copy.deepcopy(model.state_dict())
    found = list(search_layers(model, SequenceClassification(), iter(batches), 2))
    left, orders = set(range(5)), []
    for layers, loss in found:
        if len(layers) < 5:
            costs = {i: loss_without(model, set(range(5)) - left | {i}, rows) for i in left}
            left -= {min(costs, key=lambda i: costs[i])}
            orders.append(costs)
        assert layers == sorted(left)
        assert loss == pytest.approx(loss_without(model, set(range(5)) - left, rows), rel=1e-5)
    assert [len(layers) for layers, _ in found] == [5, 4, 3, 2]
    assert all(max(costs.values()) - min(costs.values()) > 1e-3 for costs in orders)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------- cutting


@families
@heads
def test_without_neurons_is_with_their_weights_at_zero(tiny_model: TinyModel, family: str, head: Any) -> None:
    """Stops a neuron's way in that is joined to another's way out, in any layer and under any head."""
    model = load(tiny_model(family), head)
    scores = random_scores(model)
    smaller = narrow(model, Shape(intermediate_size=10), scores)
    for i, layer in enumerate(layers_of(model)):
        least = sorted(range(24), key=lambda j: scores.neurons[i, j].item())[:14]  # used at once
        inner(layer)["down"].weight.data[:, least] = 0
    torch.testing.assert_close(outputs(smaller), outputs(model), rtol=0, atol=1e-12)
    assert inner(layers_of(smaller)[0])["up"].weight.shape == (10, 16)


@families
@heads
def test_a_widened_model_is_cut_to_what_it_was(tiny_model: TinyModel, family: str, head: Any) -> None:
    """Stops any of the tensors from losing other dimensions or heads than the rest do.

    A model is widened so that its output stays: each dimension gets a copy, by which a norm's mean and variance stay,
    and which nothing reads; new heads write nothing. Without the new ones it must be what it was.
    """
    small = load(tiny_model(family), head)
    wide = load(tiny_model(family, **wider(family)), head)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(32, generator=generator)
    old = order[:16].sort().values  # where the dimensions are that were there before
    source = torch.empty(32, dtype=torch.long)
    source[old], source[order[16:]] = torch.arange(16), torch.randperm(16, generator=generator)
    own_heads = [torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([2, 3])]
    widen(small, wide, source, old, own_heads)
    torch.testing.assert_close(outputs(wide), outputs(small))
    scores = random_scores(wide)
    scores.hidden[:, order[16:]] *= 1e-3
    for i, own in enumerate(own_heads):
        scores.heads[i] = torch.tensor([float(j in own) for j in range(4)])
    again = narrow(wide, Shape(hidden_size=16, num_attention_heads=2), scores)
    torch.testing.assert_close(outputs(again), outputs(small))
    configs = [{**model.config.to_dict(), "_name_or_path": ""} for model in (again, small)]
    assert configs[0] == configs[1]
    assert count_parameters(again) == count_parameters(small) < count_parameters(wide) / 2


def wider(family: str) -> dict[str, Any]:
    if family == "distilbert":
        return {"dim": 32, "n_heads": 4}
    return {"hidden_size": 32, "num_attention_heads": 4}


@torch.no_grad()
def widen(small: Any, wide: Any, source: Tensor, old: Tensor, own_heads: list[Tensor]) -> None:
    """Write ``small`` into ``wide``."""
    roles = {}
    for i, pair in enumerate(zip(layers_of(small), layers_of(wide), strict=True)):
        for role, module in inner(pair[0]).items():
            roles[id(module)] = role, (own_heads[i].unsqueeze(1) * 8 + torch.arange(8)).flatten()
    for name, module in small.named_modules():
        role, inside = roles.get(id(module), ("", old))
        for key, value in module.named_parameters(recurse=False):
            target = wide.get_submodule(name).get_parameter(key)
            writes = isinstance(module, nn.Linear)
            new = value
            if writes and key == "weight" and target.shape[1] == 32:  # what reads: nothing of the copies
                places = inside if role == "out" else old
                new = torch.zeros(len(new), 32, dtype=new.dtype)
                new[:, places] = value
            if role in ("query", "key", "value"):  # other heads stay as random as they are
                target[inside] = new
                continue
            axis = 1 if isinstance(module, nn.Embedding) else 0
            if target.shape[axis] == 32:
                new = new.index_select(axis, source)
            target.copy_(new)


@families
def test_kept_are_the_most_important(tiny_model: TinyModel, family: str) -> None:
    """Stops the least important from being kept, an order that changes, and dimensions chosen by one layer."""
    model = load(tiny_model(family, **wider(family)))
    scores = random_scores(model, seed=3)
    smaller = narrow(model, Shape(intermediate_size=5, hidden_size=24), scores)
    total = scores.hidden.sum(0).tolist()
    dims = sorted(sorted(range(32), key=lambda d: -total[d])[:24])
    for i, (old, new) in enumerate(zip(layers_of(model), layers_of(smaller), strict=True)):
        neurons = sorted(sorted(range(24), key=lambda j: -scores.neurons[i, j].item())[:5])
        kept_heads = sorted(sorted(range(4), key=lambda j: -scores.heads[i, j].item())[:3])
        inside = [head * 8 + j for head in kept_heads for j in range(8)]
        before, after = inner(old), inner(new)
        assert torch.equal(after["up"].weight, before["up"].weight[neurons][:, dims])
        assert torch.equal(after["down"].weight, before["down"].weight[dims][:, neurons])
        assert torch.equal(after["query"].weight, before["query"].weight[inside][:, dims])
        assert torch.equal(after["value"].bias, before["value"].bias[inside])
        assert torch.equal(after["out"].weight, before["out"].weight[dims][:, inside])
    assert smaller.config.num_attention_heads == 3


def test_what_is_gone_does_not_come_back() -> None:
    """Stops a part from being chosen again once its importance rises, or is 0 as that of the last ones left."""
    scores = Importance(torch.tensor([[0.1, 0.9, 0.0, 0.5]]), torch.tensor([[0.0, 0.7]]), torch.tensor([[0.9, 0.0]]))
    among = Kept(torch.tensor([[0, 2, 3]]), torch.tensor([[0]]), torch.tensor([1]))
    found = choose(scores, 2, 1, 1, among)
    assert [part.tolist() for part in (found.neurons, found.heads, found.hidden) if part is not None] == [
        [[0, 3]],
        [[0]],
        [1],
    ]
    neurons = choose(scores, 3, None, None, among).neurons
    assert neurons is not None and neurons.tolist() == [[0, 2, 3]]
    assert choose(scores, None, None, None, among) == Kept()


def test_layers_and_neurons_together(tiny_model: TinyModel) -> None:
    """Stops layers that are dropped first from shifting the neurons of those that stay."""
    model = load(tiny_model())
    scores = random_scores(model)
    layers_first = narrow(keep_layers(model, [2, 0]), Shape(intermediate_size=8), scores.of_layers([2, 0]))
    layers_last = keep_layers(narrow(model, Shape(intermediate_size=8), scores), [2, 0])
    assert torch.equal(outputs(layers_first), outputs(layers_last))


def test_shared_width_of_embeddings_follows(tiny_model: TinyModel) -> None:
    """Stops an ELECTRA without a projection from getting a random one once it is narrower than its embeddings."""
    model = load(tiny_model("electra", embedding_size=16))
    smaller = narrow(model, Shape(hidden_size=8), random_scores(model))
    assert smaller.config.embedding_size == 8 and not hasattr(smaller.base_model, "embeddings_project")


def test_the_model_is_left_as_it_was(tiny_model: TinyModel) -> None:
    """Stops the teacher that is measured beside its student from being the student."""
    model = load(tiny_model())
    before = copy.deepcopy(model)
    smaller = narrow(model, Shape(intermediate_size=8), random_scores(model))
    for parameter in smaller.parameters():
        parameter.data.zero_()
    assert torch.equal(outputs(model), outputs(before)) and model.config.to_dict() == before.config.to_dict()
    assert not smaller.training


@pytest.mark.parametrize(
    ("family", "shape", "sentence"),
    [
        (
            "bert",
            Shape(num_attention_heads=1),
            "Argument `num_attention_heads` cannot be cut alone, as a plain bert configuration has heads of size "
            "hidden_size / num_attention_heads: give hidden_size: 8 with it.",
        ),
        (
            "distilbert",
            Shape(hidden_size=12),
            "Expected argument `hidden_size` to be a multiple of 8, the size of a head, but got 12.",
        ),
        (
            "roberta",
            Shape(hidden_size=8, num_attention_heads=2),
            "Expected argument `num_attention_heads` to be 1, as hidden_size 8 and heads of size 8 have it, but got 2. "
            "Leave it out.",
        ),
        (
            "bert",
            Shape(intermediate_size=25),
            "Expected argument `intermediate_size` to be from 1 to 24, which the model has, but got 25.",
        ),
        (
            "bert",
            Shape(hidden_size=0),
            "Expected argument `hidden_size` to be from 1 to 16, which the model has, but got 0.",
        ),
        (
            "electra",
            Shape(hidden_size=8),
            "Expected argument `hidden_size` to be other than the embedding_size, 8, but got 8. electra has no "
            "projection between two equal widths.",
        ),
    ],
)
def test_what_a_configuration_cannot_say_is_refused(
    tiny_model: TinyModel, family: str, shape: Shape, sentence: str
) -> None:
    """Stops a folder that another library opens with heads of another size."""
    with pytest.raises(InputError) as error:
        shape.check(load(tiny_model(family)))
    assert str(error.value) == sentence


def test_another_kind_is_refused_by_its_name(tiny_model: TinyModel) -> None:
    """Stops layers that share their weights from being cut one by one."""
    with pytest.raises(InputError) as error:
        check_prunable(load(tiny_model("albert")))
    assert str(error.value) == (
        "Expected `prune` to be given one of bert, roberta, electra, distilbert, but got a model of the type albert: "
        "set model.student.config and from_scratch: true for a small student of that type."
    )
