"""Earth mover's distance between all layers of the student and all of the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_kd._checks import InputError
from lightning_kd.losses.base import DistillationLoss, Projection, Role, check_projection, projectors
from lightning_kd.losses.hidden_state import hidden_state_mse
from lightning_kd.outputs import LossInputs, Needs

__all__ = ["BERTEMD", "bert_emd", "transport_flow"]


def transport_flow(distances: Tensor) -> Tensor:
    r"""The cheapest flow from ``M`` student layers to ``N`` teacher layers of equal weights, exactly.

    .. math:: \min_{f \ge 0} \sum_{ij} f_{ij} d_{ij} \quad \text{with} \quad
        \sum_j f_{ij} = \frac{1}{M}, \quad \sum_i f_{ij} = \frac{1}{N}

    Every layer is split into equal parts, as many of the student as of the teacher, which are then assigned one to one.

    Args:
        distances: ``(M, N)``, without a gradient; they go to the CPU.

    Returns:
        ``(M, N)`` of the distances' type and device, with sum 1; the same everywhere where a distance is not finite.

    Raises:
        InputError: If scipy is not installed.

    Example:
        >>> transport_flow(torch.tensor([[0.0, 9.0], [9.0, 0.0]])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    assign = _assignment()
    num_students, num_teachers = distances.shape
    costs = distances.detach().double().cpu()
    if not costs.isfinite().all():  # the loss is not finite either way: that is for the gradient scaler to see
        return torch.full_like(distances, 1 / distances.numel())
    parts = math.lcm(num_students, num_teachers)
    per_student, per_teacher = parts // num_students, parts // num_teachers
    rows, columns = assign(costs.repeat_interleave(per_student, 0).repeat_interleave(per_teacher, 1).numpy())
    flow = torch.zeros_like(costs)
    where = torch.as_tensor(rows) // per_student, torch.as_tensor(columns) // per_teacher
    flow.index_put_(where, torch.ones(parts, dtype=flow.dtype), accumulate=True)
    return (flow / parts).to(distances)


def bert_emd(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    r"""Earth mover's distance between the layers of two models (BERT-EMD, Li et al. 2020, arXiv 2010.06133).

    .. math:: \sum_{ij} f_{ij} \, \mathrm{mse}(s_i, t_j)

    with the cheapest flow :math:`f` of :func:`transport_flow`, through which no gradient passes, and
    :func:`hidden_state_mse`.

    Args:
        student: ``M`` layers ``(B, L, H)``, projected to the teacher's width where that differs.
        teacher: ``N`` layers ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens.

    Returns:
        Mean over kept tokens and dimensions and over the flow, float32 (float64 for float64 input).

    Raises:
        InputError: If there are no layers, the shapes differ, or scipy is not installed.

    Example:
        >>> low, high, mask = torch.zeros(1, 1, 2), torch.full((1, 1, 2), 3.0), torch.tensor([[True]])
        >>> bert_emd([low, high], [high, low], mask).item()
        0.0
    """
    if not student or not teacher:
        raise InputError(f"Expected layers of student and teacher, but got {len(student)} and {len(teacher)}.")
    with torch.no_grad():
        distances = torch.stack([torch.stack([hidden_state_mse(s, t, mask) for t in teacher]) for s in student])
    flow = transport_flow(distances)
    # Once more with a gradient, for the few pairs with a flow: the graph of all of them would keep M * N states.
    terms = [flow[i, j] * hidden_state_mse(student[i], teacher[j], mask) for i, j in flow.nonzero().tolist()]
    return reduce(torch.add, terms)


def _assignment() -> Any:
    """The solver of scipy, or a message that says how to install it."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise InputError("BERTEMD needs scipy, which is not installed: pip install 'lightning-kd[emd]'.") from None
    return linear_sum_assignment


class BERTEMD(DistillationLoss):
    """Earth mover's distance between all layers of both models (BERT-EMD, Li et al. 2020, arXiv 2010.06133).

    No pairs of layers are given: every batch finds, exactly, the cheapest flow from the student's layers to the
    teacher's, all of one weight, at the cost of :func:`hidden_state_mse`, and the student learns along it. Embeddings
    are not matched. Left out of the paper are the distance of attention matrices and the updates of the layers' weights
    by the costs of the last flow. Where student and teacher differ in width, each student layer has one linear
    projection, for all teacher layers, which is trained with the student and stays out of the exported student.

    The costs of all pairs of layers are computed without a gradient and moved to the CPU, where scipy solves for the
    flow; each batch waits for that. Needs ``pip install 'lightning-kd[emd]'``.

    Relations:
        In place of :class:`HiddenStateMSE` where it is not known which layers to match; with a known good
        :class:`LayerMap` that is cheaper.

    Args:
        projection: ``"auto"`` is a linear projection where the widths differ and none where they agree. ``"linear"``,
            ``"relu"`` and ``"tanh"`` always project, the last two with that function after the linear layer.
        projection_lr: Peak learning rate of the projections, above 0; ``None`` for the student's.

    Raises:
        InputError: If the projection is none of these; in :meth:`build` if scipy is not installed.
    """

    token_by_token = True

    def __init__(self, projection: Projection = "auto", projection_lr: float | None = None) -> None:
        super().__init__()
        check_projection(projection, projection_lr)
        self.projection = projection
        self.parameters_lr = projection_lr
        self.projections = nn.ModuleList()
        self.depths = {"student": 0, "teacher": 0}

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        _assignment()
        self.depths = {"student": student.num_hidden_layers, "teacher": teacher.num_hidden_layers}
        self.projections = projectors(
            student.hidden_size, teacher.hidden_size, self.projection, student.num_hidden_layers
        )

    def needs(self, role: Role) -> Needs:
        return Needs(hidden_states=frozenset(range(1, self.depths[role] + 1)))

    def describe(self) -> str:
        return f"1..{self.depths['student']}<-1..{self.depths['teacher']}"

    def forward(self, inputs: LossInputs) -> Tensor:
        student = [inputs.student.hidden_states[i] for i in range(1, self.depths["student"] + 1)]
        if self.projections:
            student = [project(state) for project, state in zip(self.projections, student, strict=True)]
        teacher = [inputs.teacher.hidden_states[i] for i in range(1, self.depths["teacher"] + 1)]
        return bert_emd(student, teacher, inputs.token_mask)
