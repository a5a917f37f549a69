"""What one forward pass hands to the losses. Shapes are stated once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

__all__ = ["Features", "LossInputs", "Needs"]


@dataclass(frozen=True)
class Needs:
    """What a loss reads of one model beside its logits; nothing else is kept.

    Attributes:
        hidden_states: Layers, 0 being the output of the embeddings and ``i`` that of layer ``i``; or dotted names of
            modules, for their output.
        queries: Layers, 1 being the first.
        keys: Layers, 1 being the first.
        values: Layers, 1 being the first.

    Example:
        >>> Needs(hidden_states=frozenset({0})) | Needs(hidden_states=frozenset({2}))
        Needs(hidden_states=frozenset({0, 2}), queries=frozenset(), keys=frozenset(), values=frozenset())
    """

    hidden_states: frozenset[int | str] = frozenset()
    queries: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(*(getattr(self, f.name) | getattr(other, f.name) for f in fields(self)))

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Features:
    """What a model gave for one batch. Of all but the logits, only what some loss needs is present.

    Attributes:
        logits: By name, ``(B, C)`` for a label per example, ``(B, L, C)`` for a label per token.
        hidden_states: By index or dotted name, ``(B, L, H)``; 0 is the output of the embeddings, ``i`` that of layer
            ``i``.
        queries: By layer from 1, ``(B, heads, L, H / heads)``.
        keys: The same.
        values: The same.
    """

    logits: Mapping[str, Tensor]
    hidden_states: Mapping[int | str, Tensor] = field(default_factory=dict)
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossInputs:
    """What a distillation loss may look at.

    Attributes:
        student: The student's features, with gradient.
        teacher: The teacher's features, without.
        token_mask: ``(B, L)`` bool, True at real tokens.
        logit_masks: By the logits' names: ``(B,)`` or ``(B, L)`` bool, True where a distribution is to be compared.
        temperature: Positive; divides the logits of both before the softmax.
        hard_labels: By the logits' names, the true class where there is one: int64 of the shape of the logits' mask.
        teacher_token_mask: ``(B, L')`` bool, True at the teacher's real tokens, where it reads another vocabulary and
            its hidden states stand at tokens of its own.
        class_masks: By the logits' names, bool in the shape of the logits: False at classes that cannot be, which have
            no part in either softmax. A name that is left out has none such.
    """

    student: Features
    teacher: Features
    token_mask: Tensor
    logit_masks: Mapping[str, Tensor]
    temperature: float
    hard_labels: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_token_mask: Tensor | None = None
    class_masks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def teacher_mask(self) -> Tensor:
        """Bool, True at the teacher's real tokens."""
        return self.token_mask if self.teacher_token_mask is None else self.teacher_token_mask
