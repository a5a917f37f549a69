"""Every loss of the catalogue in a real training: other widths, depths and heads, mixed precision, accumulation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest

from lightning_kd import DistillationModule, ModelSource, losses
from lightning_kd.losses import DistillationLoss, FeatureMatch, LayerMap, LayerPairMatch

Make = Callable[..., Any]

EVERY = LayerMap("uniform", embeddings=True)
LAYERS = LayerMap("uniform")
PAIRS = [LayerPairMatch((0, 1), (0, 2)), LayerPairMatch((-1, -1), (-1, -1))]
#: One of each loss, set so that another number of heads is no obstacle where that can be.
MAKERS: dict[str, Callable[[], DistillationLoss]] = {
    "AttentionCrossEntropy": lambda: losses.AttentionCrossEntropy(LAYERS, heads="mean"),
    "AttentionKL": lambda: losses.AttentionKL(LAYERS, heads="mean"),
    "AttentionMSE": lambda: losses.AttentionMSE(LAYERS, heads="sum"),
    "BERTEMD": losses.BERTEMD,
    "CRD": lambda: losses.CRD(LAYERS),
    "DIST": losses.DIST,
    "DecoupledKD": losses.DecoupledKD,
    "EmbeddingMSE": lambda: losses.EmbeddingMSE(EVERY),
    "FSP": lambda: losses.FSP(PAIRS),
    "HiddenStateCosine": lambda: losses.HiddenStateCosine(EVERY),
    "HiddenStateMSE": lambda: losses.HiddenStateMSE(EVERY),
    "JensenShannon": losses.JensenShannon,
    "LinearCKA": lambda: losses.LinearCKA(EVERY),
    "LogitCorrelation": losses.LogitCorrelation,
    "LogitMSE": losses.LogitMSE,
    "LogitStandardizationKL": losses.LogitStandardizationKL,
    "MiniLM": losses.MiniLM,
    "MiniLMv2": lambda: losses.MiniLMv2(num_relation_heads=8),
    "NST": lambda: losses.NST(PAIRS),
    "PKT": lambda: losses.PKT(LAYERS),
    "PatientKD": lambda: losses.PatientKD(LAYERS),
    "RKDAngle": lambda: losses.RKDAngle(LAYERS),
    "RKDDistance": lambda: losses.RKDDistance(LAYERS),
    "ReverseKL": losses.ReverseKL,
    "SimilarityPreserving": lambda: losses.SimilarityPreserving(LAYERS),
    "SkewedKL": losses.SkewedKL,
    "SkewedReverseKL": losses.SkewedReverseKL,
    "SoftTargetCrossEntropy": losses.SoftTargetCrossEntropy,
    "SoftTargetKL": losses.SoftTargetKL,
}
SAME_HEADS = ("MiniLM",)
#: Refuses a task in which one label is true; tests/tasks/test_multi_label_classification.py trains with it.
WITHOUT_A_TASK = {"SoftTargetBinaryKL"}


class Steps(L.Callback):
    """Keeps the loss of every batch and whether every parameter of the losses had a gradient."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.without_gradient: set[str] = set()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        parameters = dict(pl_module.losses.named_parameters())
        self.without_gradient |= {name for name, p in parameters.items() if p.grad is None or not p.grad.any()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any, **more: Any
    ) -> None:
        self.losses.append(outputs["loss"].item())


@pytest.fixture
def train(tiny_model: Make, glue: Make, make_trainer: Make) -> Make:
    """Trains a 2-layer student of width 16 on MNLI with a 4-layer teacher of width 24: ``train(losses, **trainer)``."""

    def run(terms: dict[str, DistillationLoss], teacher_heads: int = 4, **options: Any) -> tuple[Any, Steps]:
        student = tiny_model(num_labels=3, num_hidden_layers=2, head=False)
        shape = {"num_hidden_layers": 4, "hidden_size": 24, "num_attention_heads": teacher_heads}
        module = DistillationModule(
            student=ModelSource(str(student)),
            teachers={"teacher": ModelSource(str(tiny_model(num_labels=3, seed=1, **shape)))},
            losses=terms,
            hard_label_weight=0.0,
            temperature=2.0,
        )
        steps = Steps()
        trainer = make_trainer(callbacks=[steps], limit_val_batches=0, log_every_n_steps=1, **options)
        trainer.fit(module, datamodule=glue("mnli", tokenizer=str(student)))
        return module, steps

    return run


def test_every_loss_is_here() -> None:
    """Stops a new loss from being exported without ever having trained a model."""
    exported = {name for name in losses.__all__ if inspect.isclass(getattr(losses, name))}
    kinds = {n for n in exported if issubclass(getattr(losses, n), DistillationLoss)}
    assert set(MAKERS) | WITHOUT_A_TASK == {name for name in kinds if not inspect.isabstract(getattr(losses, name))}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", MAKERS)
def test_trains_against_another_width_depth_and_heads(name: str, precision: str, train: Make) -> None:
    """Stops a NaN, a shape or a type that only a real pass shows: under autocast the features come in bf16."""
    module, steps = train({"term": MAKERS[name]()}, 2 if name in SAME_HEADS else 4, precision=precision)
    assert len(steps.losses) == 3 and all(0 <= loss < float("inf") for loss in steps.losses)
    assert steps.losses[0] > 1e-6 and not steps.without_gradient
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", ["RKDDistance", "DIST", "LinearCKA", "HiddenStateMSE"])
def test_bf16_is_near_float32(name: str, train: Make) -> None:
    """Stops a statistic from being taken in bf16, which has 8 bits."""
    _, single = train({"term": MAKERS[name]()})
    _, mixed = train({"term": MAKERS[name]()}, precision="bf16-mixed")
    assert mixed.losses[0] == pytest.approx(single.losses[0], rel=0.05)


def test_gradient_accumulation(train: Make) -> None:
    """Stops a loss from keeping something between batches, or from being stepped once a batch."""
    terms = {"hidden": MAKERS["HiddenStateMSE"](), "crd": MAKERS["CRD"]()}
    module, steps = train(terms, accumulate_grad_batches=2)
    assert len(steps.losses) == 3 and not steps.without_gradient
    assert module.trainer.global_step == 2  # an epoch's last batch is always a step


def test_two_losses_of_one_class(train: Make) -> None:
    """Stops two losses of one class from sharing projections, layers or a place in the log."""
    one = losses.HiddenStateMSE([FeatureMatch(1, 1)])
    other = losses.HiddenStateMSE([FeatureMatch(2, 4)], projection="tanh")
    module, _ = train({"one": one, "other": other})
    assert module.trainer.callback_metrics.keys() >= {"train/loss/one", "train/loss/other"}
    values = [module.trainer.callback_metrics[f"train/loss/{name}"] for name in ("one", "other")]
    assert values[0] != values[1]
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}


def test_hooks_leave_the_models_after_training(train: Make) -> None:
    """Stops an exported or quantized student from carrying the hooks of its training."""
    module, _ = train({"term": MAKERS["MiniLMv2"]()})
    assert not any(part._forward_hooks for m in (module.model, *module.teachers.values()) for part in m.modules())
    assert module.model.config._attn_implementation == "sdpa"


def test_scores_learn_from_scores(glue: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops a student of one score from learning nothing, as a softmax over it would have it."""
    student, teacher = (ModelSource(str(tiny_model(num_labels=1, seed=seed))) for seed in (0, 1))
    terms = {"scores": losses.LogitMSE(), "correlation": losses.LogitCorrelation()}
    steps = Steps()
    trainer = make_trainer(callbacks=[steps], max_epochs=8)
    trainer.fit(DistillationModule(student, {"teacher": teacher}, losses=terms, hard_label_weight=0.0), glue("stsb"))
    assert len(steps.losses) == 24 and sum(steps.losses[-3:]) < sum(steps.losses[:3])
