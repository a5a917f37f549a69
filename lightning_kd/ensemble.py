"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd._checks import InputError, check_range, expected, nearest

__all__ = ["Ensemble", "confidences", "mean_of_logits", "mean_of_probabilities"]

#: The logit of a class that cannot be: finite, so that a row of nothing else has a distribution, too.
_IMPOSSIBLE = -1e9

Combination = Literal["logits", "probabilities", "confidence", "draw"]


def mean_of_logits(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k w_k z_k``, as TextBrewer has it (Yang et al. 2020, arXiv 2002.12620) with equal weights.

    Args:
        logits: Of each teacher, ``(..., C)``.
        weights: ``(K,)``, their sum 1.
    """
    return torch.einsum("k...,k->...", torch.stack([z.float() for z in logits]), weights)


def mean_of_probabilities(logits: Sequence[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """Logits ``z`` with ``softmax(z / T) = sum_k w_k softmax(z_k / T)``.

    Args:
        logits: Of each teacher, ``(..., C)``.
        weights: ``(K,)``, or ``(K, ...)`` where every distribution has its own; their sum over ``K`` 1.
        temperature: ``T``, above 0.

    Example:
        >>> two = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
        >>> mean = mean_of_probabilities(two, torch.tensor([0.5, 0.5]), temperature=1.0)
        >>> [round(p, 3) for p in mean.softmax(-1)[0].tolist()]
        [0.69, 0.31]
    """
    stacked = torch.stack([z.float() for z in logits]) / temperature
    log_weights = weights.log().reshape(*weights.shape, *[1] * (stacked.dim() - weights.dim()))
    return temperature * torch.logsumexp(F.log_softmax(stacked, dim=-1) + log_weights, dim=0)


def confidences(logits: Sequence[Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """The teachers' weights in each distribution by how sure each is of the true class.

    CA-MKD (Zhang et al. 2022, arXiv 2201.00007, eq. 3) with ``L_k`` the cross-entropy of teacher ``k``:
    ``w_k (1 - exp(L_k) / sum_j exp(L_j)) / (K - 1)``, brought to the sum 1.

    Args:
        logits: Of each teacher, ``(..., C)``.
        labels: ``(...)`` int64; where they are below 0 the ``weights`` alone count.
        weights: ``(K,)``, their sum 1.

    Returns:
        ``(K, ...)``, their sum over ``K`` 1.
    """
    known = labels >= 0
    classes = labels.clamp(min=0).unsqueeze(-1)
    losses = torch.stack([-F.log_softmax(z.float(), -1).gather(-1, classes).squeeze(-1) for z in logits])
    sure = (1 - losses.softmax(0)) / max(1, len(logits) - 1)
    given = weights.reshape(-1, *[1] * labels.dim())
    found = torch.where(known, sure * given, given)
    return found / found.sum(0).clamp(min=torch.finfo(found.dtype).tiny)


@dataclass(frozen=True)
class Ensemble:
    """How the logits of several teachers become the ones that a student learns.

    ``logits`` is the plain choice, and the only one for scores and for independent labels. ``probabilities`` keeps a
    teacher with large logits from outvoting the others. ``confidence`` trusts, in each example, the teachers that find
    the true class likely. ``draw`` runs one teacher a batch: the price of one, and over an epoch the mean of all.

    Args:
        combine: ``logits``: their mean; ``probabilities``: the mean of the distributions at the run's temperature;
            ``confidence``: that mean with CA-MKD's weights in each example; ``draw``: one teacher for each batch, drawn
            with the weights as probabilities.
        weights: By the teacher's name, above 0; 1 where a name is left out.
        seed: Of ``draw``.

    Raises:
        InputError: If a value is none of these.
    """

    combine: Combination = "logits"
    weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combination):
            raise expected("ensemble.combine", f"one of {', '.join(get_args(Combination))}", self.combine)
        for name, weight in self.weights.items():
            check_range(f"ensemble.weights.{name}", weight, 0)
            if weight == 0:
                raise expected(f"ensemble.weights.{name}", "above 0", weight, "Leave the teacher out instead.")

    def check(self, names: Sequence[str], has_classes: bool) -> None:
        """Refuse weights of teachers that are not there, and means of distributions where there are none.

        Args:
            names: Of the teachers.
            has_classes: Whether the logits are those of one class out of several.
        """
        unknown = next((name for name in self.weights if name not in names), None)
        if unknown is not None:
            valid = ", ".join(names) or "none"
            raise expected("ensemble.weights", f"names of teachers ({valid})", unknown, nearest(unknown, names))
        if len(names) > 1 and self.combine in ("probabilities", "confidence") and not has_classes:
            raise InputError(
                f"Argument `ensemble.combine`: {self.combine} needs one class out of several for each example, which "
                "scores and independent labels are not: use logits or draw."
            )

    def _shares(self, names: Sequence[str]) -> Tensor:
        weights = torch.tensor([self.weights.get(name, 1.0) for name in names], dtype=torch.float32)
        return weights / weights.sum()

    def asked(self, names: Sequence[str], epoch: int, batch: int) -> list[str]:
        """The teachers that have to run on a batch: all, or the one that is drawn for it."""
        if self.combine != "draw" or len(names) == 1:
            return list(names)
        generator = np.random.default_rng((self.seed, epoch, batch))
        shares = self._shares(names).double().numpy()
        return [names[int(generator.choice(len(names), p=shares / shares.sum()))]]

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        temperature: float,
        labels: Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> Tensor:
        """The logits that the student learns.

        Args:
            logits: By the teacher's name, of those that were asked, ``(..., C)`` each.
            temperature: Above 0.
            labels: ``(...)`` int64, the true classes; below 0 where there is none.
            class_mask: Bool, ``(..., C)``: False at classes that cannot be, which get no part of a distribution.
        """
        values = list(logits.values())
        if len(values) == 1:
            return values[0]
        shares = self._shares(list(logits)).to(values[0].device)
        if self.combine == "logits":
            return mean_of_logits(values, shares)
        if class_mask is not None:
            values = [z.float().masked_fill(~class_mask, _IMPOSSIBLE) for z in values]
        if self.combine == "confidence" and labels is not None:
            shares = confidences(values, labels, shares)
        mean = mean_of_probabilities(values, shares, temperature)
        return mean if class_mask is None else mean.masked_fill(~class_mask, 0)
