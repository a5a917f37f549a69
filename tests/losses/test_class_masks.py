"""Classes that cannot be, as the tokens of a question cannot be answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_kd.losses import (
    CWSM,
    DIST,
    FLSW,
    DecoupledKD,
    JensenShannon,
    LogitMSE,
    LogitStandardizationKL,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    SoftTargetBinaryKL,
    SoftTargetCrossEntropy,
    SoftTargetKL,
)
from lightning_kd.losses.logits import LogitLoss
from lightning_kd.outputs import Features, LossInputs

LOSSES: list[LogitLoss] = [
    SoftTargetKL(),
    SoftTargetKL(probability_shift=True),
    SoftTargetKL(scale_by_t2=False),
    SoftTargetCrossEntropy(),
    DecoupledKD(beta=2.0),
    ReverseKL(),
    JensenShannon(),
    SkewedKL(),
    SkewedReverseKL(),
]


def random_inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> LossInputs:
    """Two sets of logits over 7 classes, of which each row has its own, the true one among them."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher, allowed, labels = {}, {}, {}, {}
    for name in ("start", "end"):
        student[name] = (3 * torch.randn(6, 7, generator=generator)).to(dtype).requires_grad_()
        teacher[name] = (3 * torch.randn(6, 7, generator=generator)).to(dtype)
        labels[name] = torch.randint(7, (6,), generator=generator)
        allowed[name] = torch.rand(6, 7, generator=generator) < 0.5
        allowed[name][range(6), labels[name]] = True
        allowed[name][range(6), (labels[name] + 3) % 7] = True
    mask = torch.tensor([True, True, False, True, True, True])
    return LossInputs(
        student=Features(student),
        teacher=Features(teacher),
        token_mask=torch.ones(6, 1, dtype=torch.bool),
        logit_masks={"start": mask, "end": mask},
        temperature=2.5,
        hard_labels=labels,
        class_masks=allowed,
    )


def by_hand(loss: LogitLoss, inputs: LossInputs) -> Tensor:
    """Row by row with the allowed classes cut out."""
    total = torch.zeros(())
    for name, logits in inputs.student.logits.items():
        rows = []
        for row in range(len(logits)):
            if inputs.logit_masks[name][row]:
                kept = inputs.class_masks[name][row]
                label = kept[: inputs.hard_labels[name][row]].sum()
                one = LossInputs(
                    student=Features({"x": logits[row][kept].unsqueeze(0)}),
                    teacher=Features({"x": inputs.teacher.logits[name][row][kept].unsqueeze(0)}),
                    token_mask=inputs.token_mask[:1],
                    logit_masks={"x": torch.tensor([True])},
                    temperature=inputs.temperature,
                    hard_labels={"x": label.reshape(1)},
                )
                rows.append(loss(one))
        total = total + torch.stack(rows).mean()
    return total


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_masked_class_is_as_if_it_were_not_there(loss: LogitLoss, seed: int) -> None:
    """Stops the padding and the question from taking a share of either softmax, in the value or in the gradient."""
    inputs, other = random_inputs(seed), random_inputs(seed)
    value, expected = loss(inputs), by_hand(loss, other)
    assert loss.masks_classes and value.item() == pytest.approx(expected.item(), rel=1e-5) and value.item() > 0.01
    value.backward()
    expected.backward()
    for name, logits in inputs.student.logits.items():
        assert logits.grad is not None and not logits.grad[~inputs.class_masks[name]].any()
        torch.testing.assert_close(logits.grad, other.student.logits[name].grad, rtol=1e-4, atol=1e-6)


def test_what_stands_at_a_masked_class_is_not_read() -> None:
    """Stops a NaN or a huge logit at a token that is no answer from reaching the loss."""
    inputs = random_inputs()
    before = SoftTargetKL()(inputs)
    with torch.no_grad():
        for features in (inputs.student, inputs.teacher):
            for name, logits in features.logits.items():
                logits[~inputs.class_masks[name]] = float("nan")
    assert SoftTargetKL()(inputs).item() == before.item()


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_any_temperature(dtype: torch.dtype, temperature: float) -> None:
    """Stops a fill value that half precision turns into infinity, or that a temperature brings near the others."""
    inputs = LossInputs(**{**vars(random_inputs(dtype=dtype)), "temperature": temperature})
    value = SoftTargetKL()(inputs)
    value.backward()
    assert value.item() == pytest.approx(by_hand(SoftTargetKL(), inputs).item(), rel=1e-4, abs=1e-6)
    assert all(logits.grad is not None and logits.grad.isfinite().all() for logits in inputs.student.logits.values())


def test_cwsm_reads_the_allowed_classes_alone() -> None:
    """Stops a confidence that counts classes which cannot be."""
    logits = torch.tensor([[9.0, 0.0, 99.0], [0.0, 0.0, -5.0]])
    allowed = torch.tensor([[True, True, False], [True, True, False]])
    mask = torch.tensor([True, True])

    def value(logits: Tensor, allowed: dict[str, Tensor]) -> float:
        teacher = Features({"x": logits.flip(0)})
        inputs = LossInputs(Features({"x": logits}), teacher, mask[:, None], {"x": mask}, 4.0, class_masks=allowed)
        return float(SoftTargetKL(example_temperature=CWSM(beta=2.0))(inputs))

    assert value(logits, {"x": allowed}) == pytest.approx(value(logits[:, :2], {}))


@pytest.mark.parametrize(
    "make",
    [
        LogitMSE,
        DIST,
        LogitStandardizationKL,
        SoftTargetBinaryKL,
        lambda: SoftTargetKL(example_temperature=FLSW(beta=1.0, gamma=1.0)),
    ],
)
def test_losses_over_all_classes_say_so(make: Callable[[], Any]) -> None:
    """Stops a mean, a correlation or a cosine from counting what is masked."""
    assert not make().masks_classes
