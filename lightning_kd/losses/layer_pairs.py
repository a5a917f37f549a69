"""Losses on the relation between two layers of one model: which layers, and what those losses share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import cast

from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.losses.base import DistillationLoss, Role, floating, resolve_layer, shapes, weighted
from lightning_kd.outputs import LossInputs, Needs

__all__ = ["LayerPairLoss", "LayerPairMatch", "comparable_pairs"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerPairMatch:
    """Two student layers and the two teacher layers whose relation they learn.

    Args:
        student_layers: 0 is the output of the embeddings, ``i`` that of layer ``i``; -1 is the last layer. The same
            layer twice relates a layer to itself. A list of two in YAML.
        teacher_layers: Counted in the same way.
        weight: Of this match within its loss, above 0.

    Raises:
        InputError: If there are not two layers of each, or the weight is not above 0.

    Example:
        >>> str(LayerPairMatch((0, 2), (0, 6)))
        '(0,2)<-(0,6)'
    """

    student_layers: tuple[int, int]
    teacher_layers: tuple[int, int]
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("student_layers", "teacher_layers"):
            layers = getattr(self, name)
            if len(layers) != 2:
                raise expected(name, "two layers' numbers", layers)
            object.__setattr__(self, name, tuple(layers))  # a list would do in Python, too, but has no hash
        check_positive("weight", self.weight)

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f" x {self.weight:g}"
        student, teacher = (",".join(map(str, layers)) for layers in (self.student_layers, self.teacher_layers))
        return f"({student})<-({teacher}){weight}"


class LayerPairLoss(DistillationLoss):
    """Base of losses that compare how two layers of each model relate: the weighted sum over the matches.

    Args:
        matches: Two layers of the student and two of the teacher each.

    Raises:
        InputError: If there is no match; in :meth:`build` also if a layer does not exist.
    """

    token_by_token = True

    def __init__(self, matches: list[LayerPairMatch]) -> None:
        super().__init__()
        if not matches:
            raise InputError("Expected argument `matches` to hold at least one match of layers, but got none.")
        self.matches = tuple(matches)

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        def resolve(role: Role, layers: tuple[int, int], depth: int) -> tuple[int, int]:
            found = tuple(resolve_layer(f"{role}_layers", layer, depth, role) for layer in layers)
            return cast(tuple[int, int], found)

        self.matches = tuple(
            LayerPairMatch(
                resolve("student", match.student_layers, student.num_hidden_layers),
                resolve("teacher", match.teacher_layers, teacher.num_hidden_layers),
                match.weight,
            )
            for match in self.matches
        )

    def needs(self, role: Role) -> Needs:
        each = [m.student_layers if role == "student" else m.teacher_layers for m in self.matches]
        return Needs(hidden_states=frozenset(layer for layers in each for layer in layers))

    def describe(self) -> str:
        return ", ".join(str(match) for match in self.matches)

    def forward(self, inputs: LossInputs) -> Tensor:
        terms = []
        for i, match in enumerate(self.matches):
            first, second = (inputs.student.hidden_states[layer] for layer in match.student_layers)
            teacher = tuple(inputs.teacher.hidden_states[layer] for layer in match.teacher_layers)
            distance = self.distance(self.project(i, (first, second)), cast(Pair, teacher), inputs.token_mask)
            terms.append((match.weight, distance))
        return weighted(terms)

    def project(self, index: int, states: Pair) -> Pair:
        """The student's two states of the ``index``-th match, made comparable to the teacher's; as they are."""
        return states

    @abstractmethod
    def distance(self, student: Pair, teacher: Pair, mask: Tensor) -> Tensor:
        """The loss of two pairs of hidden states ``(B, L, H)`` under a bool mask ``(B, L)``; a scalar."""


def comparable_pairs(student: Pair, teacher: Pair, mask: Tensor) -> tuple[Pair, Pair]:
    """All states in float32 (float64 if one is), 0 where masked, the teacher's detached.

    Args:
        student: Two of ``(B, L, H)``.
        teacher: Two of ``(B, L, H')``.
        mask: Bool ``(B, L)``.

    Raises:
        InputError: If there are not two of each, or the shapes but for the widths do not agree.
    """
    for name, states in (("student", student), ("teacher", teacher)):
        if len(states) != 2:
            raise expected(name, "the states of two layers", len(states))
    (s_0, s_1), (t_0, t_1) = student, teacher
    same = s_0.shape == s_1.shape and t_0.shape == t_1.shape and s_0.shape[:-1] == t_0.shape[:-1] == mask.shape
    if not same or mask.dim() != 2:
        raise InputError(
            "Expected two student states (B, L, H), two teacher states (B, L, H') and a mask (B, L), "
            f"but got {shapes(*student, *teacher, mask)}."
        )
    left_out = ~mask.unsqueeze(-1)
    each = (s_0, s_1, t_0.detach(), t_1.detach())
    s_0, s_1, t_0, t_1 = floating(*(states.masked_fill(left_out, 0) for states in each))
    return (s_0, s_1), (t_0, t_1)
