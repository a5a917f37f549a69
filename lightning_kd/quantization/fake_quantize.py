"""Fake quantization: a float model that computes with the rounding of an int8 one, and can be trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Rounding", "fake_quantize", "fake_quantize_activation", "fake_quantize_weight", "restore"]

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Rounding:
    """What a backend rounds, and to what.

    Args:
        weight_steps: Steps from 0 to the largest absolute weight of an output channel of a ``Linear``.
        weight_range: The smallest and the largest integer of a weight.
        activation_steps: Steps from the smallest to the largest input of a ``Linear`` in the whole batch, 0 included;
            None leaves inputs in float.
        embedding: Whether each row of an ``Embedding`` has a scale of its own, of 255 steps, or the whole table, or
            each channel or group of it as a weight has.
        group_size: So many neighbouring weights of a channel share a scale instead, and the largest of them becomes
            the end of ``weight_range`` below 0, whatever its sign. So many neighbouring inputs of one token share one,
            too: ``activation_steps`` from 0 to the largest absolute one. A last group may be shorter.
        by_token: All inputs of one token share a scale, ``activation_steps`` from the smallest possible value to the
            largest, as far from 0 as the largest absolute one.
        multiple_of: A ``Linear`` with another number of inputs or outputs takes its inputs in float.
    """

    weight_steps: float
    weight_range: tuple[int, int]
    activation_steps: int | None
    embedding: Literal["row", "table", "weight"]
    group_size: int | None = None
    by_token: bool = False
    multiple_of: int = 1


def fake_quantize_weight(weight: Tensor, rounding: Rounding) -> Tensor:
    """A weight as symmetric integers per output channel or group give it back (Jacob et al. 2018, arXiv 1712.05877).

    Args:
        weight: ``(out, in)`` float32.
        rounding: The backend's.

    Returns:
        The same shape; the gradient passes straight through (Bengio et al. 2013, arXiv 1308.3432).
    """
    if rounding.group_size is None:
        groups = weight
        scale = weight.detach().abs().amax(1).clamp(min=_TINY) / rounding.weight_steps
    else:
        groups = _grouped(weight, rounding.group_size).flatten(0, 1)
        low, high = groups.detach().aminmax(dim=1)
        scale = torch.where(high.abs() > low.abs(), high, low) / -rounding.weight_steps
        scale = torch.where(scale.abs() < _TINY, _TINY, scale)  # of a group of zeros
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(groups, scale, zero, 0, *rounding.weight_range)
    return rounded.reshape(len(weight), -1)[:, : weight.shape[1]]


def fake_quantize_activation(values: Tensor, rounding: Rounding) -> Tensor:
    """Activations as integers with one scale for the batch, for a token or for a group of one token's, give them back.

    Args:
        values: ``(..., in)``, float.
        rounding: The backend's.

    Returns:
        The same shape, float32; the gradient passes straight through.
    """
    values = values.float()
    if rounding.activation_steps is None:
        return values
    if rounding.group_size is not None:
        groups = _grouped(values.detach(), rounding.group_size)
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=rounding.activation_steps * _TINY)
        rounded = (groups * (rounding.activation_steps / largest)).round() * (largest / rounding.activation_steps)
        return values + (rounded.flatten(-2)[..., : values.shape[-1]] - values.detach())
    if rounding.by_token:
        largest = values.detach().abs().amax(-1, keepdim=True)
        scale = (largest / (rounding.activation_steps / 2)).clamp(min=torch.finfo(torch.float32).eps)
        half = rounding.activation_steps // 2
        rounded = (values.detach() * (1.0 / scale)).round().clamp(-half - 1, half) * scale
        return values + (rounded - values.detach())
    low, high = values.detach().aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / rounding.activation_steps).clamp(min=_TINY)
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, rounding.activation_steps)


def _grouped(values: Tensor, size: int) -> Tensor:
    """``(..., n)`` as ``(..., groups, size)``, the last group filled up with zeros."""
    return F.pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))


class _FakeLinear(nn.Linear):
    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        weight = fake_quantize_weight(self.weight, self.rounding)
        if self.in_features % self.rounding.multiple_of == self.out_features % self.rounding.multiple_of == 0:
            input = fake_quantize_activation(input, self.rounding)
        return F.linear(input, weight, self.bias)


class _FakeEmbedding(nn.Embedding):
    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if self.rounding.embedding == "weight":
            return fake_quantize_weight(rows.flatten(0, -2), self.rounding).view_as(rows)
        if self.rounding.embedding == "row":  # the scale of a row that is not looked up changes nothing
            low, high = rows.detach().aminmax(dim=-1, keepdim=True)
            scale = ((high - low) / 255).clamp(min=_TINY)
            rounded = ((rows.detach() - low) / scale).round() * scale + low
        else:
            low, high = (end.detach() for end in self.weight.aminmax())
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = ((high - low) / 255).clamp(min=_TINY)
            zero = (-low / scale).round()
            rounded = ((rows.detach() / scale).round() + zero).clamp(0, 255).sub(zero) * scale
        return rows + (rounded - rows.detach())


_FAKES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _FakeLinear, nn.Embedding: _FakeEmbedding}


def fake_quantize(model: nn.Module, rounding: Rounding, keep_float: Collection[str] = ()) -> None:
    """Have each ``Linear`` and ``Embedding`` of a model compute with a backend's rounding, in place.

    Scales follow from the weights and from the batch, so there is nothing to observe, to synchronise between devices or
    to store: parameters, state dict and ties between weights stay what they are.

    Args:
        model: The model.
        rounding: The backend's.
        keep_float: Dotted names of the layers that stay as they are.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -0.2, 1.0], [0.0, 0.04, 0.5]]))
        >>> coarse = Rounding(weight_steps=4, weight_range=(-4, 4), activation_steps=255, embedding="row")
        >>> fake_quantize(layer, coarse)
        >>> layer(torch.eye(3)).T
        tensor([[ 0.0000, -0.2500,  1.0000],
                [ 0.0000,  0.0000,  0.5000]], grad_fn=<PermuteBackward0>)
    """
    for name, module in model.named_modules():
        if type(module) in _FAKES and name not in keep_float:
            module.__class__ = _FAKES[type(module)]
            module.rounding = rounding  # no parameter and no module


def restore(model: nn.Module) -> None:
    """Take :func:`fake_quantize` back: the model is float again, its weights what they are now."""
    for module in model.modules():
        for kind, fake in _FAKES.items():
            if type(module) is fake:
                module.__class__ = kind
                del module.rounding
