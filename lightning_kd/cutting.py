"""A new model of some parts of another: which of its weights those are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightning_kd._checks import InputError
from lightning_kd.models import layer_list

__all__ = [
    "Kept",
    "check_prunable",
    "cut",
    "cut_state",
    "layers_of",
    "mask",
    "named_tokens",
    "parts_of",
    "reduce_embeddings",
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
class Kept:
    """The parts of a model that stay, by their numbers, ascending; None stands for all.

    Attributes:
        neurons: ``(layers, neurons)``.
        heads: ``(layers, heads)``; None with ``hidden``, and only with it.
        hidden: ``(dimensions,)``, the size of a head for each head that stays.
    """

    neurons: Tensor | None = None
    heads: Tensor | None = None
    hidden: Tensor | None = None


def check_prunable(model: PreTrainedModel) -> None:
    """Refuse a model whose parts are not known.

    Raises:
        InputError: By the name of its kind.
    """
    parts_of(model)


def parts_of(model: PreTrainedModel) -> _LayerParts:
    """Where a model's layers have their parts.

    Raises:
        InputError: If that is not known of its kind.
    """
    kind = model.config.model_type
    if kind not in _PARTS:
        raise InputError(
            f"Expected `prune` to be given one of {', '.join(_PARTS)}, but got a model of the type {kind}: set "
            "model.student.config and from_scratch: true for a small student of that type."
        )
    return _PARTS[kind]


def layers_of(model: PreTrainedModel) -> tuple[str, Any]:
    """The dotted name of the list of a model's layers, and the list."""
    stem = layer_list(model, "prune")
    return stem, model.get_submodule(stem)


# -------------------------------------------------------------------------------------------------- cutting


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model of some parts of ``model``, in train mode if that is.

    Args:
        model: BERT, DistilBERT, RoBERTa or ELECTRA, with any head.
        kept: What stays; of dimensions a multiple of the size of a head, and as many heads as that makes.
    """
    parts, config = parts_of(model), copy.deepcopy(model.config)
    if kept.neurons is not None:
        setattr(config, parts.width, kept.neurons.shape[1])
    if kept.heads is not None and kept.hidden is not None:
        if getattr(config, "embedding_size", None) == config.hidden_size:
            config.embedding_size = len(kept.hidden)
        config.hidden_size, config.num_attention_heads = len(kept.hidden), kept.heads.shape[1]
    smaller = _of_shape(model, config)
    smaller.load_state_dict(cut_state(smaller, kept, model.state_dict()))
    return smaller.train(model.training)


def cut_state(smaller: PreTrainedModel, kept: Kept, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``smaller`` out of those of the model that it was cut from; those that fit stay as they are.

    Args:
        smaller: What :func:`cut` has given.
        kept: The parts that it has.
        state: By the parameter's name.
    """
    parts = parts_of(smaller)
    stem, layers = layers_of(smaller)
    size = smaller.config.hidden_size // smaller.config.num_attention_heads
    chosen: dict[tuple[str, int], Tensor] = {}  # by the parameter's name and axis
    for i in range(len(layers)):
        if kept.neurons is not None:
            neurons = kept.neurons[i]
            chosen[f"{stem}.{i}.{parts.up}.weight", 0] = chosen[f"{stem}.{i}.{parts.up}.bias", 0] = neurons
            chosen[f"{stem}.{i}.{parts.down}.weight", 1] = neurons
        if kept.heads is not None:
            inside = (kept.heads[i].unsqueeze(1) * size + torch.arange(size, device=kept.heads.device)).flatten()
            for name in (parts.query, parts.key, parts.value):
                chosen[f"{stem}.{i}.{name}.weight", 0] = chosen[f"{stem}.{i}.{name}.bias", 0] = inside
            chosen[f"{stem}.{i}.{parts.attention_output}.weight", 1] = inside
    return _chosen_of(smaller, chosen, torch.empty(0) if kept.hidden is None else kept.hidden, state)


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
    smaller = _of_shape(model, config)
    chosen = {(f"{name}.weight", 0): torch.tensor(kept)}
    smaller.load_state_dict(_chosen_of(smaller, chosen, torch.empty(0), model.state_dict()))
    return smaller.train(model.training)


def named_tokens(model: PreTrainedModel) -> set[int]:
    """Numbers of the tokens that a model itself refers to: those of its configuration.

    RoBERTa counts positions from the padding token's number on, which stays what it is with all that is below it.
    """
    named = {value for name, value in vars(model.config).items() if name.endswith("_token_id")}
    first = getattr(model.base_model.embeddings, "padding_idx", None)
    if first is not None:
        named.update(range(first + 1))
    return {value for value in named if isinstance(value, int) and 0 <= value < model.config.vocab_size}


def _of_shape(model: PreTrainedModel, config: Any) -> Any:
    smaller = type(model)._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    return smaller.to(model.device)


def _chosen_of(
    smaller: PreTrainedModel, chosen: Mapping[tuple[str, int], Tensor], hidden: Tensor, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of each axis in ``state`` that is longer than in ``smaller``: what is chosen of it, or else ``hidden``."""
    found = {}
    for name, new in smaller.state_dict().items():
        value = state[name]
        for axis in range(value.ndim):
            if value.shape[axis] != new.shape[axis]:
                value = value.index_select(axis, chosen.get((name, axis), hidden).to(value.device))
        found[name] = value
    return found


# -------------------------------------------------------------------------------------------------- masking


def mask(model: PreTrainedModel, kept: Kept) -> list[RemovableHandle]:
    """Have a whole model compute what :func:`cut` would make of it, until the handles are removed.

    What goes into the second feed-forward layer and into the attention's output layer is multiplied by 0 or 1; norms
    are those of the kept dimensions alone, and give 0 for the others. Neither these nor the other weights of what is
    masked have a gradient other than 0.

    Args:
        model: BERT, DistilBERT, RoBERTa or ELECTRA, with any head.
        kept: As for :func:`cut`, but of any number of dimensions and heads.
    """
    parts, config = parts_of(model), model.config
    stem, layers = layers_of(model)
    size = config.hidden_size // config.num_attention_heads
    handles: list[RemovableHandle] = []
    for i, layer in enumerate(layers):
        if kept.neurons is not None:
            ones = _ones(kept.neurons[i], getattr(config, parts.width), model)
            handles.append(layer.get_submodule(parts.down).register_forward_pre_hook(partial(_at_input, ones)))
        if kept.heads is not None:
            ones = _ones(kept.heads[i], config.num_attention_heads, model).repeat_interleave(size)
            output = layer.get_submodule(parts.attention_output)
            handles.append(output.register_forward_pre_hook(partial(_at_input, ones)))
    if kept.hidden is not None:
        hidden = kept.hidden.to(model.device)
        ones = _ones(hidden, config.hidden_size, model)
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (config.hidden_size,):
                handles.append(module.register_forward_hook(partial(_norm_of, hidden)))
            elif isinstance(module, nn.Linear) and module.out_features == config.hidden_size:
                if not name.startswith(f"{stem}."):  # a pooler, a head or a projection; in a layer, a norm follows
                    handles.append(module.register_forward_hook(partial(_at_output, ones)))
    return handles


def _ones(numbers: Tensor, count: int, model: PreTrainedModel) -> Tensor:
    ones = torch.zeros(count, device=model.device, dtype=model.dtype)
    return ones.index_fill(0, numbers.to(model.device), 1)


def _at_input(ones: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0] * ones, *args[1:]


def _at_output(ones: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output * ones


def _norm_of(hidden: Tensor, module: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    values = F.layer_norm(args[0][..., hidden], (len(hidden),), module.weight[hidden], module.bias[hidden], module.eps)
    return torch.zeros_like(output).index_copy(-1, hidden, values.to(output.dtype))
