"""Several teachers as one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_kd import InputError, ModelSource
from lightning_kd.ensemble import Ensemble, confidences, mean_of_logits, mean_of_probabilities
from lightning_kd.losses import DistillationLoss, FeatureMatch, HiddenStateMSE, SoftTargetKL
from lightning_kd.outputs import LossInputs, Needs

Make = Callable[..., Any]


class Spy(DistillationLoss):
    """Keeps what it is given."""

    def __init__(self, layer: int | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.seen: list[LossInputs] = []

    def needs(self, role: Any) -> Needs:
        return Needs() if self.layer is None else Needs(hidden_states=frozenset({self.layer}))

    def forward(self, inputs: LossInputs) -> Tensor:
        self.seen.append(inputs)
        return inputs.student.logits["logits"].sum() * 0


def random_logits(*shape: int, teachers: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(shape, generator=generator) for _ in range(teachers)]


def test_mean_of_probabilities_is_that() -> None:
    """Stops the mean from being taken at temperature 1 where the losses compare at another."""
    logits, weights, temperature = random_logits(4, 5), [0.5, 0.2, 0.3], 2.5
    found = mean_of_probabilities(logits, torch.tensor(weights), temperature)
    for row in range(4):
        expected = [0.0] * 5
        for z, weight in zip(logits, weights, strict=True):
            powers = [math.exp(value / temperature) for value in z[row].tolist()]
            expected = [e + weight * power / sum(powers) for e, power in zip(expected, powers, strict=True)]
        assert (found[row] / temperature).softmax(-1).tolist() == pytest.approx(expected, abs=1e-6)


def test_confidence_is_that_of_the_paper() -> None:
    """Stops the least sure teacher from getting the largest weight: the formula turns losses round."""
    logits, labels = random_logits(4, 5), torch.tensor([0, 4, 2, -100])
    found = confidences(logits, labels, torch.full((3,), 1 / 3))
    for row in range(3):
        losses = []
        for z in logits:
            powers = [math.exp(value) for value in z[row].tolist()]
            losses.append(-math.log(powers[labels[row]] / sum(powers)))
        total = sum(map(math.exp, losses))
        expected = [(1 - math.exp(loss) / total) / 2 for loss in losses]
        assert found[:, row].tolist() == pytest.approx(expected, abs=1e-6)
        assert losses[found[:, row].argmax()] == min(losses)
    assert found[:, 3].tolist() == pytest.approx([1 / 3] * 3)  # no label, no opinion


def test_what_cannot_be_takes_no_part() -> None:
    """Stops positions that are no answer from taking probability away from those that are."""
    logits = random_logits(3, 6, teachers=2)
    mask = torch.arange(6) < torch.tensor([6, 4, 0])[:, None]
    labels = torch.tensor([5, 1, -100])
    for combine in ("probabilities", "confidence"):
        ensemble = Ensemble(combine)
        together = ensemble(dict(zip("ab", logits, strict=True)), 2.0, labels, mask)
        alone = ensemble({n: z[1:2, :4] for n, z in zip("ab", logits, strict=True)}, 2.0, labels[1:2])
        found = (together[1, :4] / 2).softmax(-1)
        torch.testing.assert_close(found, (alone[0] / 2).softmax(-1))
        assert together.isfinite().all() and not together[~mask].any()


def test_weights_are_shares() -> None:
    """Stops weights that do not sum to 1 from scaling the logits, which sharpens what the student learns."""
    one, two = random_logits(2, 3, teachers=2)
    found = Ensemble(weights={"a": 3.0})({"a": one, "b": two}, 1.0)
    torch.testing.assert_close(found, 0.75 * one + 0.25 * two)
    torch.testing.assert_close(mean_of_logits([one, two], torch.tensor([0.25, 0.75])), 0.25 * one + 0.75 * two)


def test_one_teacher_is_drawn_for_each_batch() -> None:
    """Stops a draw that always falls on the same one, ignores the weights, or is another after an interruption."""
    ensemble = Ensemble("draw", {"a": 3.0})
    drawn = [ensemble.asked(["a", "b"], epoch, batch) for epoch in range(20) for batch in range(50)]
    assert all(len(names) == 1 for names in drawn)
    assert Counter(name for names in drawn for name in names)["a"] == pytest.approx(750, abs=50)
    assert drawn[:50] != drawn[50:100], "or a teacher would see the same batches in every epoch"
    assert drawn[50:] == [ensemble.asked(["a", "b"], epoch, batch) for epoch in range(1, 20) for batch in range(50)]
    assert drawn != [Ensemble("draw", {"a": 3.0}, seed=1).asked(["a", "b"], e, b) for e in range(20) for b in range(50)]


class Calls(L.Callback):
    """Counts the passes of each teacher."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for name, teacher in pl_module.teachers.items():
            teacher.register_forward_hook(lambda *_, name=name: self.count.update([name]))


def test_only_the_drawn_teacher_runs(tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a draw that costs as much as all teachers together."""
    sources = {name: ModelSource(str(tiny_model(seed=seed))) for name, seed in (("a", 0), ("b", 5))}
    spy, calls = Spy(), Calls()
    module = distillation(teachers=sources, losses={"spy": spy}, ensemble=Ensemble("draw"))
    make_trainer(max_epochs=4, limit_val_batches=0, callbacks=[calls]).fit(module, datamodule=glue())
    assert set(calls.count) == {"a", "b"} and calls.count.total() == len(spy.seen) == 12


def test_a_loss_learns_from_the_teacher_that_it_names(
    tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops hidden states of one teacher from being compared as those of another, of another width."""
    sources = {"a": ModelSource(str(tiny_model(seed=0))), "wide": ModelSource(str(tiny_model(seed=5, hidden_size=24)))}
    together, wide, narrow = Spy(), Spy(2), Spy(1)
    losses = {"together": together, "wide": wide, "narrow": narrow, "hidden": HiddenStateMSE([FeatureMatch(1, 2)])}
    named = {"wide": "wide", "narrow": "a", "hidden": "wide"}
    module = distillation(teachers=sources, losses=losses, loss_teachers=named)
    make_trainer(limit_train_batches=2, limit_val_batches=0).fit(module, datamodule=glue())
    hidden: Any = module.losses["hidden"]
    assert hidden.projections[0].out_features == 24
    for of_both, of_wide, of_narrow in zip(together.seen, wide.seen, narrow.seen, strict=True):
        assert set(of_wide.teacher.hidden_states) == {2} and of_wide.teacher.hidden_states[2].shape[-1] == 24
        assert set(of_narrow.teacher.hidden_states) == {1} and of_narrow.teacher.hidden_states[1].shape[-1] == 16
        a, b = (seen.teacher.logits["logits"] for seen in (of_narrow, of_wide))
        assert (a - b).abs().max() > 1e-3
        torch.testing.assert_close(of_both.teacher.logits["logits"], (a + b) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss_teachers": {"sotf": "a"}},
            "`loss_teachers` to be names of losses (soft), but got 'sotf'. Did you mean",
        ),
        ({"loss_teachers": {"soft": "A"}}, "`loss_teachers.soft` to be the name of a teacher (a, b), but got 'A'."),
        ({"ensemble": Ensemble(weights={"c": 1.0})}, "`ensemble.weights` to be names of teachers (a, b), but got 'c'."),
    ],
)
def test_names_that_are_wrong(
    arguments: dict[str, Any], message: str, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a typo from leaving a loss with all teachers, or a teacher with weight 1."""
    sources = {name: ModelSource(str(tiny_model(seed=seed))) for name, seed in (("a", 0), ("b", 5))}
    module = distillation(teachers=sources, losses={"soft": SoftTargetKL()}, **arguments)
    with pytest.raises(InputError) as caught:
        make_trainer().fit(module, datamodule=glue())
    assert message in str(caught.value)


def test_scores_have_no_distribution(tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a mean of distributions over one class, which is 1 whatever the teachers say."""
    sources = {name: ModelSource(str(tiny_model(num_labels=1, seed=seed))) for name, seed in (("a", 0), ("b", 5))}
    student = ModelSource(str(tiny_model(num_labels=1, seed=1)))
    module = distillation(student=student, teachers=sources, losses={"spy": Spy()}, ensemble=Ensemble("probabilities"))
    with pytest.raises(InputError, match="needs one class out of several"):
        make_trainer().fit(module, datamodule=glue("stsb"))


@pytest.mark.parametrize(
    "arguments", [{"combine": "mean"}, {"weights": {"a": 0.0}}, {"weights": {"a": -1.0}}, {"weights": {"a": math.inf}}]
)
def test_values_out_of_range(arguments: dict[str, Any]) -> None:
    """Stops a teacher from being left out, or pushed away from, by a weight."""
    with pytest.raises(InputError, match=r"^Expected argument `ensemble"):
        Ensemble(**arguments)
