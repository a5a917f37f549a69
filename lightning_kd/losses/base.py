"""What every distillation loss is, and how losses on layers say which layers they compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.outputs import LossInputs, Needs

__all__ = [
    "DistillationLoss",
    "FeatureMatch",
    "LayerMap",
    "MatchLoss",
    "ProjectedMatchLoss",
    "aligned",
    "comparable",
    "floating",
    "full_precision",
    "masked_mean",
    "weighted",
]

Role = Literal["student", "teacher"]
Projection = Literal["auto", "linear", "relu", "tanh"]


@dataclass(frozen=True)
class FeatureMatch:
    """One student layer and the teacher layer that it learns from.

    Args:
        student_layer: 0 is the output of the embeddings, ``i`` that of layer ``i``; -1 is the last layer. In losses on
            hidden states also the dotted name of a module, whose output must be as wide as the hidden states.
        teacher_layer: Counted in the same way.
        weight: Of this pair within its loss, above 0.
    """

    student_layer: int | str
    teacher_layer: int | str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f" x {self.weight:g}"
        return f"{self.student_layer}<-{self.teacher_layer}{weight}"


@dataclass(frozen=True)
class LayerMap:
    """A rule for pairs of layers, expanded when the models are known.

    Args:
        strategy: ``uniform``: student layer ``i`` of ``S`` learns from teacher layer ``round(i * T / S)`` of ``T``, so
            that the last learns from the last (Jiao et al. 2020, arXiv 1909.10351, sec. 3.1). ``last``: from the last
            ``S`` of the teacher, ``first``: from the first ``S`` (Sun et al. 2019, arXiv 1908.09355).
        embeddings: Match the outputs of the embeddings, too.
        weight: Of every pair, above 0.

    Raises:
        InputError: If the strategy is none of these or the weight is not above 0.

    Example:
        >>> [str(match) for match in LayerMap("uniform", embeddings=True).expand(3, 12)]
        ['0<-0', '1<-4', '2<-8', '3<-12']
    """

    strategy: Literal["uniform", "last", "first"] = "uniform"
    embeddings: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.strategy not in ("uniform", "last", "first"):
            raise expected("strategy", "'uniform', 'last' or 'first'", self.strategy)
        check_positive("weight", self.weight)

    def expand(self, student_layers: int, teacher_layers: int) -> list[FeatureMatch]:
        """The pairs for models of these depths.

        Args:
            student_layers: Number of the student's transformer layers.
            teacher_layers: Number of the teacher's, at least as many.

        Raises:
            InputError: If the teacher has fewer layers than the student.
        """
        if teacher_layers < student_layers:
            raise InputError(
                f"A layer map gives each student layer a teacher layer of its own, but the student has "
                f"{student_layers} and the teacher {teacher_layers}: write the pairs out instead."
            )
        pairs = [(0, 0)] if self.embeddings else []
        for i in range(1, student_layers + 1):
            uniform = (2 * i * teacher_layers + student_layers) // (2 * student_layers)  # rounded, halves up
            last = teacher_layers - student_layers + i
            pairs.append((i, {"uniform": uniform, "last": last, "first": i}[self.strategy]))
        return [FeatureMatch(s, t, self.weight) for s, t in pairs]


class DistillationLoss(nn.Module, ABC):
    """Base of all distillation losses.

    A loss returns one unweighted float32 scalar, the mean over what it compares; its weight is the module's.
    What it reads of the models is stated before the first batch, in :meth:`build` and :meth:`needs`.
    """

    #: Learning rate of the loss's own parameters; ``None`` for the optimizer's.
    parameters_lr: float | None = None
    #: Whether it compares the hidden states of student and teacher token by token, so that both must read the same.
    token_by_token: bool = False

    @property
    def masks_classes(self) -> bool:
        """Whether it respects :attr:`LossInputs.class_masks`; asked before the first batch, where there are any."""
        return True

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Check the loss against both models and make the parameters that it needs; called once, before training.

        Args:
            student: The student's configuration.
            teacher: The teacher's configuration.

        Raises:
            InputError: If the two models cannot be compared in this way.
        """

    def needs(self, role: Role) -> Needs:
        """What the loss reads of the student or of the teacher beside the logits; asked after :meth:`build`."""
        return Needs()

    def describe(self) -> str:
        """What the loss compares, for the line that is printed before training; nothing for losses on logits."""
        return ""

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss of one batch, a float32 scalar."""


class MatchLoss(DistillationLoss):
    """Base of losses that compare hidden states by pairs of layers: the weighted sum over the pairs.

    Args:
        matches: The pairs, or a rule that gives them.

    Raises:
        InputError: If there is no pair; in :meth:`build` also if a layer does not exist.
    """

    #: The first layer that has what the loss compares: 0 for hidden states, 1 for what is in a layer's attention.
    first_layer: int = 0
    token_by_token = True

    def __init__(self, matches: list[FeatureMatch] | LayerMap) -> None:
        super().__init__()
        if not matches:
            raise InputError("Expected argument `matches` to hold at least one pair of layers, but got none.")
        self.layer_map = matches if isinstance(matches, LayerMap) else None
        self.matches = () if isinstance(matches, LayerMap) else tuple(matches)

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        depths = student.num_hidden_layers, teacher.num_hidden_layers
        given = self.matches if self.layer_map is None else self.layer_map.expand(*depths)
        self.matches = tuple(
            FeatureMatch(
                resolve_layer("student_layer", match.student_layer, depths[0], "student", self.first_layer),
                resolve_layer("teacher_layer", match.teacher_layer, depths[1], "teacher", self.first_layer),
                match.weight,
            )
            for match in given
        )

    def layers(self, role: Role) -> frozenset[int | str]:
        """The matched layers of one model."""
        return frozenset(m.student_layer if role == "student" else m.teacher_layer for m in self.matches)

    def needs(self, role: Role) -> Needs:
        return Needs(hidden_states=self.layers(role))

    def describe(self) -> str:
        return ", ".join(str(match) for match in self.matches)

    def forward(self, inputs: LossInputs) -> Tensor:
        return weighted((match.weight, self.compare(i, match, inputs)) for i, match in enumerate(self.matches))

    @abstractmethod
    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        """The unweighted loss of one pair, the ``index``-th; a scalar."""


class ProjectedMatchLoss(MatchLoss):
    """Base of losses on hidden states of one width: a student of another width is projected to the teacher's.

    Args:
        matches: The pairs, or a rule that gives them; a projection each.
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If there is no pair or the projection is none of these; in :meth:`build` also if a layer does not
            exist.
    """

    def __init__(
        self,
        matches: list[FeatureMatch] | LayerMap,
        projection: Projection = "auto",
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(matches)
        check_projection(projection, projection_lr)
        self.projection = projection
        self.parameters_lr = projection_lr
        self.projections = nn.ModuleList()

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        super().build(student, teacher)
        self.projections = projectors(student.hidden_size, teacher.hidden_size, self.projection, len(self.matches))

    def compare(self, index: int, match: FeatureMatch, inputs: LossInputs) -> Tensor:
        state = inputs.student.hidden_states[match.student_layer]
        if self.projections:
            state = self.projections[index](state)
        return self.distance(state, inputs.teacher.hidden_states[match.teacher_layer], inputs)

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        """The loss of two hidden states ``(B, L, H)`` under the masks of ``inputs``; a scalar."""


def check_projection(projection: str, projection_lr: float | None) -> None:
    """Raise unless there is such a projection, and its learning rate, where it has its own, is above 0."""
    if projection not in get_args(Projection):
        raise expected("projection", "'auto', 'linear', 'relu' or 'tanh'", projection)
    if projection_lr is not None:
        check_positive("projection_lr", projection_lr)


def projectors(student_dim: int, teacher_dim: int, projection: Projection, count: int) -> nn.ModuleList:
    """Trainable maps from the student's width to the teacher's, N(0, 0.02) at first; none if none is needed."""
    made = nn.ModuleList()
    if projection == "auto" and student_dim == teacher_dim:
        return made
    for _ in range(count):
        linear = nn.Linear(student_dim, teacher_dim)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        nonlinear = {"relu": nn.ReLU, "tanh": nn.Tanh}.get(projection)
        made.append(nn.Sequential(linear, nonlinear()) if nonlinear else linear)
    return made


def resolve_layer(name: str, layer: int | str, num_layers: int, role: str, first: int = 0) -> int | str:
    """A layer's number counted from the front, or a module's name as it is; refused if there is no such layer."""
    if isinstance(layer, str):
        if first:
            raise expected(
                name, "a layer's number: the name of a module can be matched by its hidden state only", layer
            )
        return layer
    lowest = first - num_layers - 1
    if not (first <= layer <= num_layers or lowest <= layer <= -1):
        start = "0 (the embeddings)" if first == 0 else str(first)
        raise expected(name, f"a layer of the {role}, from {start} to {num_layers}, or from {lowest} to -1", layer)
    return layer % (num_layers + 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over the entries where ``mask`` is True; 0, with a gradient path, if there are none.

    Args:
        values: Any shape.
        mask: Bool, the same shape.
    """
    kept = mask.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp(min=1)


def weighted(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """The sum of scalars, each times its weight.

    A weight of 1 is no operation: those of a small model's step take a share of its time. One of 0 is, as DDP needs a
    path to every parameter.

    Args:
        terms: Weights and scalars; one at least.
    """
    return reduce(torch.add, (value if weight == 1 else weight * value for weight, value in terms))


def floating(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32, or in float64 if one of them is."""
    if all(tensor.dtype == torch.float32 for tensor in tensors):
        return list(tensors)
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def comparable(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in float32 (float64 if either is), the teacher's detached, once their shapes are seen to fit.

    Args:
        student: ``(..., D)``.
        teacher: The same shape.
        mask: Bool ``(...)``.

    Raises:
        InputError: If the shapes do not fit.
    """
    if student.shape != teacher.shape or mask.shape != student.shape[:-1]:
        raise InputError(
            "Expected student and teacher of one shape (..., D) and a mask of shape (...), "
            f"but got {shapes(student, teacher, mask)}."
        )
    student, teacher = floating(student, teacher.detach())
    return student, teacher


def aligned(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in float32 (float64 if either is), 0 where masked, the teacher's detached; widths may differ.

    Args:
        student: ``(..., D)``.
        teacher: ``(..., D')``.
        mask: Bool ``(...)``.

    Raises:
        InputError: If the shapes but for the widths do not agree.
    """
    if not student.shape[:-1] == teacher.shape[:-1] == mask.shape:
        raise InputError(
            "Expected student (..., D), teacher (..., D') and a mask (...) that agree in all but the widths, "
            f"but got {shapes(student, teacher, mask)}."
        )
    left_out = ~mask.unsqueeze(-1)
    student, teacher = floating(student.masked_fill(left_out, 0), teacher.detach().masked_fill(left_out, 0))
    return student, teacher


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device: it would take matrix products of float32 in half precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def shapes(*tensors: Tensor) -> str:
    """The shapes for a message: ``(2, 3), (2, 3) and (2,)``."""
    each: Sequence[str] = [str(tuple(tensor.shape)) for tensor in tensors]
    return f"{', '.join(each[:-1])} and {each[-1]}"
