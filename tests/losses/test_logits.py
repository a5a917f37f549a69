"""What all losses on distributions share, against plain loops and the claims of the docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig

import references_logits as references
from lightning_kd import InputError
from lightning_kd.losses.decoupled import DecoupledKD
from lightning_kd.losses.dist import DIST
from lightning_kd.losses.divergences import JensenShannon, ReverseKL, SkewedKL, SkewedReverseKL
from lightning_kd.losses.logit_standardization import LogitStandardizationKL
from lightning_kd.losses.logits import (
    CWSM,
    FLSW,
    ExampleTemperature,
    LogitLoss,
    kept_rows,
    probability_shift,
    scaled_mean,
    tempered,
)
from lightning_kd.losses.soft_target import SoftTargetCrossEntropy, SoftTargetKL, soft_target_kl

LOSSES: list[type[LogitLoss]] = [
    SoftTargetKL,
    SoftTargetCrossEntropy,
    ReverseKL,
    JensenShannon,
    SkewedKL,
    SkewedReverseKL,
    DecoupledKD,
    DIST,
    LogitStandardizationKL,
]


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Random logits."""
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class FirstHot(ExampleTemperature):
    """A rule for tests: the first row has 5, all others the module's."""

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        temperatures = torch.full(mask.shape, temperature)
        temperatures[0] = 5.0
        return temperatures


# ---------------------------------------------------------------------------------------------- probability shift


@given(rows=st.integers(1, 6), labels=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_probability_shift_equals_plain_loop(rows: int, labels: int, seed: int) -> None:
    """Stops a swap with the wrong entry, and a shift of rows without a label."""
    teacher = logits(rows, labels, seed=seed)
    truth = torch.randint(-1, labels, (rows,), generator=torch.Generator().manual_seed(seed))
    assert probability_shift(teacher, truth).tolist() == references.probability_shift(teacher.tolist(), truth.tolist())


def test_probability_shift_by_hand() -> None:
    """Stops the change of a right row, and of padding, whose label of -100 would count from the end."""
    teacher = torch.tensor([[[1.0, 5.0, 3.0], [1.0, 5.0, 3.0], [1.0, 5.0, 3.0]]])
    shifted = probability_shift(teacher, torch.tensor([[0, 1, -100]]))
    assert shifted.tolist() == [[[5.0, 1.0, 3.0], [1.0, 5.0, 3.0], [1.0, 5.0, 3.0]]]
    assert teacher.tolist() == [[[1.0, 5.0, 3.0]] * 3], "the teacher's logits are shared with the other losses"


def test_probability_shift_keeps_the_distribution_of_logits() -> None:
    """Stops a copy in the place of a swap: two labels would have the largest logit."""
    teacher = logits(20, 4)
    shifted = probability_shift(teacher, torch.arange(20) % 4)
    assert torch.equal(shifted.sort(-1).values, teacher.sort(-1).values)
    assert torch.equal(shifted.argmax(-1), torch.arange(20) % 4)


def test_probability_shift_refuses_other_shapes() -> None:
    """Stops one-hot labels, or labels of another batch, from being broadcast."""
    with pytest.raises(InputError, match=r"but got \(2, 3\) and \(2, 3\)"):
        probability_shift(logits(2, 3), torch.zeros(2, 3, dtype=torch.long))


# ---------------------------------------------------------------------------------------------- example temperature


@given(
    rows=st.integers(1, 6),
    labels=st.integers(2, 5),
    keep=st.floats(0, 1),
    temperature=st.floats(0.5, 10),
    beta=st.floats(0.1, 5),
    gamma=st.floats(0.3, 3),
    seed=st.integers(0, 2**32),
)
def test_example_temperature_equals_plain_loop(
    rows: int, labels: int, keep: float, temperature: float, beta: float, gamma: float, seed: int
) -> None:
    """Stops a mean over padding, the sign that heats what is hard, and a temperature of 0 or less."""
    student, teacher = logits(rows, labels, seed=seed), logits(rows, labels, seed=seed + 1)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < keep
    lists = (student.tolist(), teacher.tolist(), mask.tolist())
    for value, expected in (
        (FLSW(beta, gamma, 0.2), references.flsw(*lists, temperature, beta, gamma, 0.2)),
        (CWSM(beta, 0.2), references.cwsm(lists[0], lists[2], temperature, beta, 0.2)),
    ):
        temperatures = value(student, teacher, mask, temperature)
        assert temperatures.shape == mask.shape and temperatures.min() >= 0.2
        assert temperatures[mask].tolist() == pytest.approx([e for e, k in zip(expected, lists[2], strict=True) if k])


@pytest.mark.parametrize("rule", [FLSW(2.0, 1.0), CWSM(2.0)])
def test_example_temperature_has_no_gradient(rule: ExampleTemperature) -> None:
    """Stops the student from lowering its loss by making its own temperature."""
    student = logits(4, 3).requires_grad_()
    assert not rule(student, logits(4, 3, seed=1), torch.ones(4, dtype=torch.bool), 4.0).requires_grad


@pytest.mark.parametrize("rule", [FLSW(2.0, 1.5), CWSM(2.0)])
def test_example_temperature_ignores_masked(rule: ExampleTemperature) -> None:
    """Stops padding, which need not even be finite, from moving the mean of the real rows."""
    student, teacher, mask = logits(4, 3), logits(4, 3, seed=1), torch.tensor([True, True, False, True])
    expected = rule(student, teacher, mask, 4.0)[mask]
    student[2], teacher[2] = float("nan"), float("inf")
    assert torch.equal(rule(student, teacher, mask, 4.0)[mask], expected)
    assert expected.mean().item() == pytest.approx(4.0)


def test_flsw_same_logits_are_no_nan() -> None:
    """Stops the root of a cosine that rounding has made larger than 1."""
    student = (1e4 * logits(50, 3)).float()
    temperatures = FLSW(1.0, 0.5)(student, student, torch.ones(50, dtype=torch.bool), 4.0)
    assert temperatures.isfinite().all()


def test_example_temperature_refuses_settings() -> None:
    """Stops a floor of 0, which lets the logits be divided by 0."""
    for make in (lambda: FLSW(1.0, 1.0, 0.0), lambda: FLSW(1.0, 0.0), lambda: FLSW(-1.0, 1.0), lambda: CWSM(0.0)):
        with pytest.raises(InputError, match="to be a number above 0"):
            make()


# ---------------------------------------------------------------------------------------------- shared arithmetic


def test_per_row_temperature_is_checked() -> None:
    """Stops a temperature of 0 in one row from turning the whole batch into NaN; in a row left out it may stand."""
    student, teacher, mask = logits(2, 3), logits(2, 3, seed=1), torch.tensor([True, False])
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="`temperature` to be above 0 in every row"):
            tempered(student, teacher, mask, torch.tensor([wrong, 1.0]))
        for value in tempered(student, teacher, mask, torch.tensor([1.0, wrong])):
            assert value.isfinite().all()
        assert scaled_mean(torch.ones(2), mask, torch.tensor([3.0, wrong]), True).item() == 9
    with pytest.raises(InputError, match=r"a number or of the mask's shape \(2,\), but got \(2, 1\)"):
        tempered(student, teacher, mask, torch.ones(2, 1))


def test_scaled_mean_scales_each_row() -> None:
    """Stops the square of the mean temperature in the place of each row's own."""
    values, mask = torch.tensor([1.0, 1.0, 7.0]), torch.tensor([True, True, False])
    assert scaled_mean(values, mask, torch.tensor([1.0, 3.0, 9.0]), True).item() == 5
    assert scaled_mean(values, mask, torch.tensor([1.0, 3.0, 9.0]), False).item() == 1
    assert scaled_mean(values, mask, 3.0, True).item() == 9


def test_kept_rows_are_finite() -> None:
    """Stops NaN in padding: times a mask of 0 it is still NaN, in the value as in the gradient."""
    student, mask = logits(2, 3), torch.tensor([True, False])
    student[1] = float("nan")
    student.requires_grad_()
    kept, _ = kept_rows(student, student, mask)
    kept.square().sum().backward()
    assert kept[1].tolist() == [0, 0, 0]
    assert student.grad is not None and student.grad[1].tolist() == [0, 0, 0]


# ---------------------------------------------------------------------------------------------- the classes


@pytest.mark.parametrize("kind", LOSSES)
def test_t2_in_one_place(loss_inputs: Callable[..., Any], kind: type[LogitLoss]) -> None:
    """Stops T squared from being applied twice, by the function and by its class, or not at all."""
    inputs = loss_inputs(logits(5, 3), logits(5, 3, seed=1), temperature=4.0, hard_labels=torch.arange(5) % 3)
    assert kind()(inputs).item() == pytest.approx(16 * kind(scale_by_t2=False)(inputs).item(), rel=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_class_shifts_the_teacher(loss_inputs: Callable[..., Any], kind: type[LogitLoss]) -> None:
    """Stops an option that is taken and not passed on, and one that changes the teacher for the next loss."""
    student, teacher, truth = logits(5, 3), logits(5, 3, seed=1), torch.tensor([0, 1, 2, 0, -1])
    inputs = loss_inputs(student, teacher, hard_labels=truth)
    expected = kind()(loss_inputs(student, probability_shift(teacher, truth), hard_labels=truth)).item()
    assert kind()(inputs).item() != pytest.approx(expected)
    assert kind(probability_shift=True)(inputs).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_class_uses_example_temperature(loss_inputs: Callable[..., Any], kind: type[LogitLoss]) -> None:
    """Stops an option that is taken and not passed on; rows that all get the module's temperature change nothing."""
    inputs = loss_inputs(logits(5, 3), logits(5, 3, seed=1), temperature=2.0, hard_labels=torch.arange(5) % 3)
    plain, hot = kind()(inputs).item(), kind(example_temperature=FirstHot())(inputs).item()
    assert hot != pytest.approx(plain)
    inputs = loss_inputs(logits(5, 3), logits(5, 3, seed=1), temperature=5.0, hard_labels=torch.arange(5) % 3)
    assert kind(example_temperature=CWSM(1e-9))(inputs).item() == pytest.approx(kind()(inputs).item(), rel=1e-6)


def test_shift_comes_before_the_temperature(loss_inputs: Callable[..., Any]) -> None:
    """Stops temperatures of the teacher as it was, beside logits as they are after the shift."""
    student, teacher, truth = logits(5, 3), logits(5, 3, seed=1), torch.tensor([0, 1, 2, 0, 1])
    mask, rule = torch.ones(5, dtype=torch.bool), FLSW(2.0, 1.0)
    value = SoftTargetKL(True, True, rule)(loss_inputs(student, teacher, mask, temperature=4.0, hard_labels=truth))
    shifted = probability_shift(teacher, truth)
    expected = soft_target_kl(student, shifted, mask, rule(student, shifted, mask, 4.0))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_class_reads_masks_and_all_logits(loss_inputs: Callable[..., Any], kind: type[LogitLoss]) -> None:
    """Stops the class from skipping the mask, or the second of two sets of logits (start and end of an answer)."""
    mask = torch.tensor([[True, True, False], [True, False, True]])
    student, teacher, truth = logits(2, 3, 4), logits(2, 3, 4, seed=1), torch.tensor([[0, 1, 2], [3, 0, 1]])
    one = loss_inputs(student, teacher, mask, temperature=3.0, hard_labels=truth)
    value = kind()(one).item()
    assert value != pytest.approx(kind()(loss_inputs(student, teacher, temperature=3.0, hard_labels=truth)).item())
    for by_name in (one.student.logits, one.teacher.logits, one.logit_masks, one.hard_labels):
        by_name["second"] = by_name["logits"]
    assert kind()(one).item() == pytest.approx(2 * value, rel=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_shift_without_labels_is_refused(loss_inputs: Callable[..., Any], kind: type[LogitLoss]) -> None:
    """Stops a shift that is asked for and silently left out, on data without labels."""
    with pytest.raises(InputError, match=f"{kind.__name__} needs the true label of each row, but the batch has none"):
        kind(probability_shift=True)(loss_inputs(logits(2, 3), logits(2, 3)))


@pytest.mark.parametrize("kind", LOSSES)
def test_refuses_regression_and_independent_labels(kind: type[LogitLoss]) -> None:
    """Stops a softmax over one score, which is always 1, and one over labels that may all be true."""
    three = BertConfig(num_labels=3)
    kind().build(three, three)
    with pytest.raises(InputError, match=rf"{kind.__name__} .* one output \(regression\)\. Use LogitMSE instead"):
        kind().build(BertConfig(num_labels=1), BertConfig(num_labels=1))
    with pytest.raises(InputError, match=f"{kind.__name__} .* Use SoftTargetBinaryKL instead"):
        kind().build(BertConfig(num_labels=3, problem_type="multi_label_classification"), three)


@pytest.mark.parametrize("kind", LOSSES)
def test_class_has_no_weights(kind: type[LogitLoss]) -> None:
    """Stops a checkpoint from growing by what a loss keeps of its last batch."""
    assert not kind().state_dict()
