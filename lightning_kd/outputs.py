"""What one forward pass hands to the losses. Shapes are stated once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Features", "LossInputs"]


@dataclass(frozen=True)
class Features:
    """What a model gave for one batch.

    Attributes:
        logits: By name, ``(B, C)`` for a label per example, ``(B, L, C)`` for a label per token.
        hidden_states: By index, ``(B, L, H)``; 0 is the output of the embeddings, ``i`` that of layer ``i``.
            Only the indices that some loss asked for are present.
        attentions: By index, ``(B, heads, L, L)``; present only where a loss asked for them.
    """

    logits: Mapping[str, Tensor]
    hidden_states: Mapping[int, Tensor] = field(default_factory=dict)
    attentions: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossInputs:
    """What a distillation loss may look at.

    Attributes:
        student: The student's features, with gradient.
        teacher: The teacher's features, without.
        token_mask: ``(B, L)`` bool, True at real tokens.
        logit_masks: By the logits' names: ``(B,)`` or ``(B, L)`` bool, True where a distribution is to be compared.
        temperature: Positive; divides the logits of both before the softmax.
    """

    student: Features
    teacher: Features
    token_mask: Tensor
    logit_masks: Mapping[str, Tensor]
    temperature: float
