"""What the losses on distributions share: temperature and its square, masks, and what is done to the logits before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from lightning_kd._checks import InputError, check_positive, expected
from lightning_kd.losses.base import DistillationLoss, comparable, floating, masked_mean, shapes
from lightning_kd.outputs import LossInputs

__all__ = [
    "CWSM",
    "FLSW",
    "ExampleTemperature",
    "LogitLoss",
    "check_labels",
    "kept_rows",
    "probability_shift",
    "scaled_mean",
    "tempered",
]


#: The logit of a class that cannot be: far below all others at every temperature, yet finite, so that 0 times it is 0.
_NEVER = -1e18


def kept_rows(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits as :func:`comparable` gives them, and 0 in the rows left out: what stood there may not be finite.

    Args:
        student: ``(..., C)``.
        teacher: The same shape.
        mask: Bool ``(...)``.

    Raises:
        InputError: If the shapes do not fit.
    """
    student, teacher = comparable(student, teacher, mask)
    left_out = ~mask.unsqueeze(-1)
    return student.masked_fill(left_out, 0), teacher.masked_fill(left_out, 0)


def tempered(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """The :func:`kept_rows` of both, divided by the temperature.

    Args:
        student: ``(..., C)``.
        teacher: The same shape.
        mask: Bool ``(...)``.
        temperature: Above 0: a number, or one for each row in the shape of the mask.

    Raises:
        InputError: If the shapes do not fit or a temperature is not above 0.
    """
    student, teacher = kept_rows(student, teacher, mask)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
        return student / temperature, teacher / temperature
    if temperature.shape != mask.shape:
        raise expected("temperature", f"a number or of the mask's shape {tuple(mask.shape)}", tuple(temperature.shape))
    wrong = temperature[mask & ~((temperature > 0) & temperature.isfinite())]
    if len(wrong):
        raise expected("temperature", "above 0 in every row", wrong[0].item())
    divisor = _per_row(temperature, mask, student.dtype).unsqueeze(-1)
    return student / divisor, teacher / divisor


def scaled_mean(values: Tensor, mask: Tensor, temperature: float | Tensor, scale: bool) -> Tensor:
    """Mean of a loss over the kept rows, each times its squared temperature: the one place where that is done.

    Args:
        values: One for each row, ``(...)``.
        mask: Bool, the same shape.
        temperature: A number, or one for each row.
        scale: Whether to multiply by ``T ** 2`` at all.
    """
    if isinstance(temperature, Tensor):
        temperature = _per_row(temperature, mask, values.dtype)
    return masked_mean(values * temperature**2 if scale else values, mask)


def _per_row(temperature: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Temperatures for arithmetic: without gradient, and 1 in the rows left out."""
    return temperature.detach().to(dtype).masked_fill(~mask, 1)


def check_labels(labels: Tensor, mask: Tensor) -> None:
    """Raise unless there is a label for every row.

    Args:
        labels: Of any shape.
        mask: Of the shape that the labels must have.

    Raises:
        InputError: If the shapes differ.
    """
    if labels.shape != mask.shape:
        raise InputError(f"Expected labels of the shape of the mask, but got {shapes(labels, mask)}.")


def probability_shift(teacher: Tensor, labels: Tensor) -> Tensor:
    r"""The teacher's logits with its mistakes mended (Wen et al. 2019, arXiv 1911.07471).

    Where the largest logit is not the true label's, these two change places; the others stay.

    .. math:: t'_{iy} = \max_c t_{ic}, \quad t'_{i m} = t_{iy}, \qquad m = \arg\max_c t_{ic},\ y = y_i

    Args:
        teacher: Logits ``(..., C)``; left as they are, the result is a copy.
        labels: The true class, int64 ``(...)``; rows with a label below 0 are left as they are.

    Returns:
        Logits ``(..., C)``.

    Raises:
        InputError: If there is not one label for each row.

    Example:
        >>> probability_shift(torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([2]))
        tensor([[1., 3., 5.]])
    """
    if labels.shape != teacher.shape[:-1]:
        raise InputError(f"Expected logits (..., C) and labels (...), but got {shapes(teacher, labels)}.")
    largest = teacher.argmax(-1, keepdim=True)
    truth = torch.where(labels.unsqueeze(-1) < 0, largest, labels.unsqueeze(-1))
    shifted = teacher.scatter(-1, largest, teacher.gather(-1, truth))
    return shifted.scatter(-1, truth, teacher.gather(-1, largest))


class ExampleTemperature(ABC):
    """A temperature for each row around that of the whole batch: lower where the student has the most to learn."""

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """The temperatures ``(...)``, without gradient, for logits ``(..., C)`` and a bool mask ``(...)``.

        Args:
            student: Logits ``(..., C)``.
            teacher: Logits, the same shape.
            mask: Bool ``(...)``; the mean is over the kept rows.
            temperature: That of the batch.
        """


@dataclass(frozen=True)
class FLSW(ExampleTemperature):
    r"""Focal-loss-style weights: by the cosine of both logits (Wen et al. 2019, arXiv 1911.07471).

    .. math:: \tau_i = T + \beta \Bigl(\frac{1}{|M|} \sum_{j \in M} w_j - w_i\Bigr), \quad
        w_i = \Bigl(1 - \frac{s_i \cdot t_i}{(\lVert s_i \rVert + \epsilon)(\lVert t_i \rVert + \epsilon)}
        \Bigr)^\gamma, \quad \epsilon = 10^{-4}

    Args:
        beta: How far the temperatures spread, above 0.
        gamma: How much more the rows count on which both disagree, above 0.
        floor: No temperature is below it, above 0: the formula alone can reach 0 and less.

    Raises:
        InputError: If one of them is not above 0.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> temperatures = FLSW(beta=2.0, gamma=1.0)(student, teacher, torch.tensor([True, True]), 4.0)
        >>> [round(temperature, 2) for temperature in temperatures.tolist()]
        [6.0, 2.0]
    """

    beta: float
    gamma: float
    floor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("beta", "gamma", "floor"):
            check_positive(name, getattr(self, name))

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        student, teacher = kept_rows(student.detach(), teacher, mask)
        norms = (student.norm(dim=-1) + 1e-4) * (teacher.norm(dim=-1) + 1e-4)
        cosine = (student * teacher).sum(-1) / norms
        return _around(temperature, (1 - cosine).clamp(min=0) ** self.gamma, mask, self.beta, self.floor)


@dataclass(frozen=True)
class CWSM(ExampleTemperature):
    r"""Confidence weights by the student's maximum (Wen et al. 2019, arXiv 1911.07471).

    .. math:: \tau_i = T + \beta \Bigl(\frac{1}{|M|} \sum_{j \in M} w_j - w_i\Bigr), \quad
        w_i = \frac{1}{\max_c \mathrm{softmax}(s_i)_c + \epsilon}, \quad \epsilon = 10^{-3}

    Args:
        beta: How far the temperatures spread, above 0.
        floor: No temperature is below it, above 0: the formula alone can reach 0 and less.

    Raises:
        InputError: If one of them is not above 0.

    Example:
        >>> logits, mask = torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.tensor([True, True])
        >>> [round(temperature, 2) for temperature in CWSM(beta=2.0)(logits, logits, mask, 4.0).tolist()]
        [5.0, 3.0]
    """

    beta: float
    floor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("beta", "floor"):
            check_positive(name, getattr(self, name))

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        student, _ = kept_rows(student.detach(), teacher, mask)
        weights = 1 / (F.softmax(student, dim=-1).amax(-1) + 1e-3)
        return _around(temperature, weights, mask, self.beta, self.floor)


def _around(temperature: float, weights: Tensor, mask: Tensor, beta: float, floor: float) -> Tensor:
    """Temperatures whose mean over the kept rows is ``temperature``, lower where the weight is higher."""
    return (temperature + beta * (masked_mean(weights, mask) - weights)).clamp(min=floor)


class LogitLoss(DistillationLoss):
    """Base of losses on distributions: the sum over all sets of logits of what a subclass compares.

    The temperature is the module's, so that a schedule moves it for every loss at once.

    Args:
        scale_by_t2: Multiply by the squared temperature, as the papers do. Some published settings leave it out.
        probability_shift: Mend the teacher's mistakes first, see :func:`probability_shift`; needs true labels.
        example_temperature: A rule that gives each row a temperature around the module's, :class:`FLSW` or
            :class:`CWSM`; ``None`` for the module's own in every row.

    Raises:
        InputError: In :meth:`build` if the models' outputs are no distribution; on a batch without true labels, where
            they are needed.
    """

    def __init__(
        self,
        scale_by_t2: bool = True,
        probability_shift: bool = False,
        example_temperature: ExampleTemperature | None = None,
    ) -> None:
        super().__init__()
        self.scale_by_t2 = scale_by_t2
        self.probability_shift = probability_shift
        self.example_temperature = example_temperature

    def build(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        if student.num_labels == 1:
            raise InputError(
                f"{type(self).__name__} compares distributions over at least 2 labels, but the model has one output "
                "(regression). Use LogitMSE instead."
            )
        if student.problem_type == "multi_label_classification":
            raise InputError(
                f"{type(self).__name__} compares distributions over labels of which one is true, but the model's "
                "labels are independent (multi_label_classification). Use SoftTargetBinaryKL instead."
            )

    @property
    def masks_classes(self) -> bool:
        return not isinstance(self.example_temperature, FLSW)  # the cosine of logits has no place for a mask

    def forward(self, inputs: LossInputs) -> Tensor:
        return reduce(torch.add, [self._term(name, inputs) for name in inputs.student.logits])

    def _term(self, name: str, inputs: LossInputs) -> Tensor:
        student, teacher = inputs.student.logits[name], inputs.teacher.logits[name]
        mask, labels = inputs.logit_masks[name], inputs.hard_labels.get(name)
        if name in inputs.class_masks:
            never = ~inputs.class_masks[name]
            student, teacher = (logits.masked_fill(never, _NEVER) for logits in floating(student, teacher))
        temperature: float | Tensor = inputs.temperature
        if self.probability_shift:
            teacher = probability_shift(teacher, self._required(labels))
        if self.example_temperature is not None:
            temperature = self.example_temperature(student, teacher, mask, inputs.temperature)
        return self.compare(student, teacher, mask, temperature, labels)

    def _required(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise InputError(
                f"{type(self).__name__} needs the true label of each row, but the batch has none. "
                "Train on labelled data, or use SoftTargetKL without probability_shift."
            )
        return labels

    @abstractmethod
    def compare(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float | Tensor, labels: Tensor | None
    ) -> Tensor:
        """The unweighted loss of one set of logits, a float32 scalar.

        Args:
            student: Logits ``(..., C)``.
            teacher: Logits, the same shape.
            mask: Bool ``(...)``, True at the rows to compare.
            temperature: A number, or one for each row.
            labels: The true classes ``(...)``, if there are any.
        """
