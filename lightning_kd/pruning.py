"""A smaller model out of a trained one: which layers, neurons, heads and dimensions matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.cutting import Kept, cut, layers_of, parts_of
from lightning_kd.models import keep_layers
from lightning_kd.tasks import Task

__all__ = [
    "Importance",
    "Shape",
    "choose",
    "importance",
    "narrow",
    "search_layers",
]


@dataclass(frozen=True)
class Importance:
    """How much each part of a model matters to its loss, each row divided by its Euclidean norm.

    Attributes:
        neurons: ``(layers, intermediate_size)``, of the feed-forward layers.
        heads: ``(layers, heads)``.
        hidden: ``(layers + 1, hidden_size)``, of the residual stream in front of each layer and behind the last.
    """

    neurons: Tensor
    heads: Tensor
    hidden: Tensor

    def of_layers(self, layers: Sequence[int]) -> Importance:
        """The rows of some layers, and the residual stream behind the last of the model."""
        chosen = list(layers)
        return Importance(self.neurons[chosen], self.heads[chosen], self.hidden[[*chosen, -1]])


@dataclass(frozen=True)
class Shape:
    """How wide a model is to be; None stands for the width that it has.

    Attributes:
        intermediate_size: Neurons in each feed-forward layer.
        hidden_size: Dimensions of the residual stream, a multiple of the size of a head.
        num_attention_heads: Heads in each layer; follows from ``hidden_size``, the size of a head being kept.
    """

    intermediate_size: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what ``model`` cannot be cut to.

        Raises:
            InputError: If a width is above the model's own, or is one that a plain configuration cannot say.
        """
        config, own = model.config, getattr(model.config, parts_of(model).width)
        head_size = config.hidden_size // config.num_attention_heads
        for name, value, most in (
            ("intermediate_size", self.intermediate_size, own),
            ("hidden_size", self.hidden_size, config.hidden_size),
            ("num_attention_heads", self.num_attention_heads, config.num_attention_heads),
        ):
            if value is not None and not 1 <= value <= most:
                raise expected(name, f"from 1 to {most}, which the model has", value)
        if self.hidden_size is None:
            if self.num_attention_heads not in (None, config.num_attention_heads):
                raise InputError(
                    f"Argument `num_attention_heads` cannot be cut alone, as a plain {config.model_type} configuration "
                    "has heads of size hidden_size / num_attention_heads: give "
                    f"hidden_size: {self.num_attention_heads * head_size} with it."
                )
            return
        if self.hidden_size % head_size:
            raise expected("hidden_size", f"a multiple of {head_size}, the size of a head", self.hidden_size)
        heads = self.hidden_size // head_size
        if self.num_attention_heads not in (None, heads):
            what = f"{heads}, as hidden_size {self.hidden_size} and heads of size {head_size} have it"
            raise expected("num_attention_heads", what, self.num_attention_heads, "Leave it out.")
        embedding = getattr(config, "embedding_size", None)
        if embedding == self.hidden_size != config.hidden_size:
            way_out = f"{config.model_type} has no projection between two equal widths."
            raise expected("hidden_size", f"other than the embedding_size, {embedding}", self.hidden_size, way_out)


# -------------------------------------------------------------------------------------------------- importance


def importance(model: PreTrainedModel, task: Task, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """First-order importance of neurons, heads and hidden dimensions (Michel et al. 2019, Molchanov et al. 2017).

    ``I = sum over rows |dL/dg|``, where ``g = 1`` multiplies the part's activations in one row: that is
    ``|sum over positions of activation * gradient|``, to first order the change of the row's loss without the part.
    L is the task's hard-label loss. A head is what goes into the attention's output layer; a neuron what goes into the
    second feed-forward layer.

    Args:
        model: In eval mode.
        task: The model's.
        batches: Labelled batches.

    Raises:
        InputError: If the model's parts are not known.
    """
    parts = parts_of(model)
    _, layers = layers_of(model)
    depth, heads = len(layers), model.config.num_attention_heads
    totals: list[Tensor] = []
    for each in batches:
        batch = {name: value.to(model.device) for name, value in each.items() if isinstance(value, Tensor)}
        inputs = task.model_inputs(batch)
        rows = len(inputs["input_ids"])
        gates: list[Tensor] = []  # in the order of the places: neurons, heads, hidden
        width, hidden = getattr(model.config, parts.width), model.config.hidden_size
        places: list[tuple[nn.Module, int, int]] = []  # a module, how many parts go into it, and their size
        places += [(layer.get_submodule(parts.down), width, 1) for layer in layers]
        places += [(layer.get_submodule(parts.attention_output), heads, hidden // heads) for layer in layers]
        places += [(layer, hidden, 1) for layer in layers]
        with _gated(places, layers[-1], rows, gates, model), torch.enable_grad():
            loss = task.hard_label_loss(task.logits(model(**inputs)), batch)
            slopes = torch.autograd.grad(loss * rows, gates)  # a mean over rows: the sum weighs batches of any size
        found = [slope.abs().sum((0, 1)).double() for slope in slopes]
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    neurons, by_head, states = (
        F.normalize(torch.stack(totals[start:stop]), dim=1)
        for start, stop in ((0, depth), (depth, 2 * depth), (2 * depth, 3 * depth + 1))
    )
    return Importance(neurons, by_head, states)


@contextmanager
def _gated(
    places: Sequence[tuple[nn.Module, int, int]],
    last: nn.Module,
    rows: int,
    gates: list[Tensor],
    model: PreTrainedModel,
) -> Iterator[None]:
    """Multiply what goes into each of ``places``, and what comes out of ``last``, by gates that are 1 in every row."""
    handles = []
    for count in [*(count for _, count, _ in places), model.config.hidden_size]:
        gates.append(torch.ones(rows, 1, count, requires_grad=True, device=model.device, dtype=model.dtype))

    def at_input(gate: Tensor, size: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return args[0] * gate.repeat_interleave(size, dim=-1), *args[1:]

        return hook

    def at_output(module: nn.Module, args: Any, output: Any) -> Any:
        return (output[0] * gates[-1], *output[1:]) if isinstance(output, tuple) else output * gates[-1]

    for (module, _, size), gate in zip(places, gates, strict=False):
        handles.append(module.register_forward_pre_hook(at_input(gate, size)))
    handles.append(last.register_forward_hook(at_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -------------------------------------------------------------------------------------------------- layers


def search_layers(
    model: PreTrainedModel, task: Task, batches: Iterable[Mapping[str, Tensor]], num_layers: int
) -> Iterator[tuple[list[int], float]]:
    """Greedy choice of layers: of those that are left, the one goes without which the loss is lowest.

    Args:
        model: In eval mode, on the CPU.
        task: The model's, whose hard-label loss it is, as a mean over the rows.
        batches: Labelled batches, the same for every choice.
        num_layers: How many are to be left, 1 or more.

    Yields:
        The layers that are left, ascending, and the loss with them: first all, then one less each time.
    """
    rows = list(batches)
    layers = list(range(model.config.num_hidden_layers))
    loss = _mean_loss(model, task, rows)
    yield layers, loss
    while len(layers) > num_layers:
        fewer = [layers[:i] + layers[i + 1 :] for i in range(len(layers))]
        losses = [_mean_loss(keep_layers(model, chosen), task, rows) for chosen in fewer]
        loss = min(losses)
        layers = fewer[losses.index(loss)]
        yield layers, loss


@torch.no_grad()
def _mean_loss(model: PreTrainedModel, task: Task, batches: Sequence[Mapping[str, Tensor]]) -> float:
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        inputs = task.model_inputs(batch)
        rows = len(inputs["input_ids"])
        total += rows * task.hard_label_loss(task.logits(model(**inputs)), batch).item()
        count += rows
    return total / max(1, count)


# -------------------------------------------------------------------------------------------------- cutting


def narrow(model: PreTrainedModel, shape: Shape, scores: Importance) -> PreTrainedModel:
    """A new model with the most important parts of ``model`` alone, in their order.

    Neurons and heads are chosen layer by layer, hidden dimensions once for the whole residual stream, by the sum of
    their importance over the layers. Embeddings, norms, pooler and head lose the same dimensions.

    Args:
        model: BERT, DistilBERT, RoBERTa or ELECTRA, with any head.
        shape: How wide it is to be.
        scores: Of its layers.

    Raises:
        InputError: If the shape does not fit the model.
    """
    shape.check(model)
    size = model.config.hidden_size // model.config.num_attention_heads
    heads = None if shape.hidden_size is None else shape.hidden_size // size
    return cut(model, choose(scores, shape.intermediate_size, heads, shape.hidden_size))


def choose(
    scores: Importance, neurons: int | None, heads: int | None, hidden: int | None, among: Kept | None = None
) -> Kept:
    """The most important parts: neurons and heads of each layer, dimensions of the whole residual stream.

    Args:
        scores: Of the layers.
        neurons: How many stay in each layer; all unless given.
        heads: How many stay in each layer; all unless given.
        hidden: How many dimensions stay; all unless given.
        among: What has stayed so far; nothing else is chosen.
    """

    def top(values: Tensor, count: int | None, left: Tensor | None) -> Tensor | None:
        if count is None:
            return None
        if left is not None:
            values = torch.full_like(values, -1).scatter(-1, left, values.gather(-1, left))  # below every importance
        return values.topk(count).indices.sort(-1).values

    left = among or Kept()
    return Kept(
        top(scores.neurons, neurons, left.neurons),
        top(scores.heads, heads, left.heads),
        top(scores.hidden.sum(0), hidden, left.hidden),
    )
