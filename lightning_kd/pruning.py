"""A smaller model out of a trained one: which neurons, heads and dimensions matter, and a model of those alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.models import keep_layers, layer_list
from lightning_kd.tasks import Task

__all__ = [
    "Importance",
    "Shape",
    "check_prunable",
    "importance",
    "named_tokens",
    "narrow",
    "reduce_embeddings",
    "search_layers",
]


@dataclass(frozen=True)
class _LayerParts:
    """Where a layer has its parts, and the configuration its width."""

    query: str
    key: str
    value: str
    attention_output: str
    up: str
    down: str
    width: str = "intermediate_size"


_BERT = _LayerParts(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)
_DISTILBERT = _LayerParts(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
    width="hidden_dim",
)
#: By model type.
_PARTS = {"bert": _BERT, "roberta": _BERT, "electra": _BERT, "distilbert": _DISTILBERT}


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
        config, own = model.config, getattr(model.config, _parts_of(model).width)
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


def check_prunable(model: PreTrainedModel) -> None:
    """Refuse a model whose parts are not known.

    Raises:
        InputError: By the name of its kind.
    """
    _parts_of(model)


def _parts_of(model: PreTrainedModel) -> _LayerParts:
    kind = model.config.model_type
    if kind not in _PARTS:
        raise InputError(
            f"Expected `prune` to be given one of {', '.join(_PARTS)}, but got a model of the type {kind}: set "
            "model.student.config and from_scratch: true for a small student of that type."
        )
    return _PARTS[kind]


def _layers_of(model: PreTrainedModel) -> tuple[str, Any]:
    stem = layer_list(model, "prune")
    return stem, model.get_submodule(stem)


# -------------------------------------------------------------------------------------------------- importance


def importance(model: PreTrainedModel, task: Task, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """First-order importance of neurons, heads and hidden dimensions (Michel et al. 2019, Molchanov et al. 2017).

    ``I = sum over rows |dL/dg|``, where ``g = 1`` multiplies the part's activations in one row: that is
    ``|sum over positions of activation * gradient|``, to first order the change of the row's loss without the part.
    L is the task's hard-label loss. A head is what goes into the attention's output layer; a neuron what goes into the
    second feed-forward layer.

    Args:
        model: In eval mode, on the CPU.
        task: The model's.
        batches: Labelled batches.

    Raises:
        InputError: If the model's parts are not known.
    """
    parts = _parts_of(model)
    _, layers = _layers_of(model)
    depth, heads = len(layers), model.config.num_attention_heads
    totals: list[Tensor] = []
    for batch in batches:
        inputs = task.model_inputs(batch)
        rows = len(inputs["input_ids"])
        gates: list[Tensor] = []  # in the order of the places: neurons, heads, hidden
        width, hidden = getattr(model.config, parts.width), model.config.hidden_size
        places: list[tuple[nn.Module, int, int]] = []  # a module, how many parts go into it, and their size
        places += [(layer.get_submodule(parts.down), width, 1) for layer in layers]
        places += [(layer.get_submodule(parts.attention_output), heads, hidden // heads) for layer in layers]
        places += [(layer, hidden, 1) for layer in layers]
        with _gated(places, layers[-1], hidden, rows, gates), torch.enable_grad():
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
    places: Sequence[tuple[nn.Module, int, int]], last: nn.Module, hidden: int, rows: int, gates: list[Tensor]
) -> Iterator[None]:
    """Multiply what goes into each of ``places``, and what comes out of ``last``, by gates that are 1 in every row."""
    handles = []
    for _, count, _ in [*places, (last, hidden, 1)]:
        gates.append(torch.ones(rows, 1, count, requires_grad=True))

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
    parts, config = _parts_of(model), copy.deepcopy(model.config)
    stem, layers = _layers_of(model)
    chosen: dict[tuple[str, int], Tensor] = {}  # by the parameter's name and axis
    hidden = torch.empty(0, dtype=torch.long)
    if shape.intermediate_size is not None:
        setattr(config, parts.width, shape.intermediate_size)
        for i in range(len(layers)):
            neurons = _top(scores.neurons[i], shape.intermediate_size)
            chosen[f"{stem}.{i}.{parts.up}.weight", 0] = chosen[f"{stem}.{i}.{parts.up}.bias", 0] = neurons
            chosen[f"{stem}.{i}.{parts.down}.weight", 1] = neurons
    if shape.hidden_size is not None:
        size = config.hidden_size // config.num_attention_heads
        hidden = _top(scores.hidden.sum(0), shape.hidden_size)
        if getattr(config, "embedding_size", None) == config.hidden_size:
            config.embedding_size = shape.hidden_size
        config.hidden_size, config.num_attention_heads = shape.hidden_size, shape.hidden_size // size
        for i in range(len(layers)):
            heads = _top(scores.heads[i], config.num_attention_heads)
            inside = (heads.unsqueeze(1) * size + torch.arange(size)).flatten()
            for name in (parts.query, parts.key, parts.value):
                chosen[f"{stem}.{i}.{name}.weight", 0] = chosen[f"{stem}.{i}.{name}.bias", 0] = inside
            chosen[f"{stem}.{i}.{parts.attention_output}.weight", 1] = inside
    return _cut(model, config, chosen, hidden)


def reduce_embeddings(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model that reads the ``kept`` tokens alone, renumbered by their place.

    Args:
        model: Any encoder.
        kept: Numbers of tokens, ascending, those that the configuration names among them.
    """
    config = copy.deepcopy(model.config)
    number = {old: new for new, old in enumerate(kept)}
    config.vocab_size = len(kept)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and value is not None:
            setattr(config, name, number.get(value))
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    return _cut(model, config, {(f"{name}.weight", 0): torch.tensor(kept)}, torch.empty(0))


def named_tokens(model: PreTrainedModel) -> set[int]:
    """Numbers of the tokens that a model itself refers to: those of its configuration.

    RoBERTa counts positions from the padding token's number on, which stays what it is with all that is below it.
    """
    named = {value for name, value in vars(model.config).items() if name.endswith("_token_id")}
    first = getattr(model.base_model.embeddings, "padding_idx", None)
    if first is not None:
        named.update(range(first + 1))
    return {value for value in named if isinstance(value, int) and 0 <= value < model.config.vocab_size}


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _cut(model: PreTrainedModel, config: Any, chosen: Mapping[tuple[str, int], Tensor], hidden: Tensor) -> Any:
    """A new model of the shape of ``config``: of each axis that became shorter, what is chosen or else ``hidden``."""
    attention = config._attn_implementation
    smaller = type(model)._from_config(config, dtype=model.dtype, attn_implementation=attention)
    old, state = model.state_dict(), {}
    for name, new in smaller.state_dict().items():
        value = old[name]
        for axis in range(value.ndim):
            if value.shape[axis] != new.shape[axis]:
                value = value.index_select(axis, chosen.get((name, axis), hidden).to(value.device))
        state[name] = value
    smaller.load_state_dict(state)
    return smaller.train(model.training)
