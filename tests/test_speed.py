"""What keeps a step short: nothing waits for the device, batches come from pinned memory, models may be compiled."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_kd.losses import FeatureMatch, HiddenStateMSE, MiniLM, SoftTargetKL

Make = Callable[..., Any]


def trained(distillation: Make, glue: Make, make_trainer: Make, **options: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """A short fit, and the student's weights after it."""
    L.seed_everything(0, verbose=False)
    losses = {"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(-1, -1)]), "attention": MiniLM()}
    module = distillation(losses=losses, **options)
    module.student_source.config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = make_trainer(max_epochs=1, max_steps=4, log_every_n_steps=1)
    trainer.fit(module, datamodule=glue())
    return module, trainer, {name: value.clone() for name, value in module.model.state_dict().items()}


def test_compiled_models_train_alike_and_are_plain_again_afterwards(
    distillation: Make, glue: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops hidden states and attention from being lost in a compiled model, and an export of one from failing."""
    made = []

    def compiled(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return real(*arguments, backend="eager", **options)

    real = torch.compile
    _, _, plain = trained(distillation, glue, make_trainer)
    assert not made
    monkeypatch.setattr(torch, "compile", compiled)
    module, trainer, weights = trained(distillation, glue, make_trainer, compile=True)
    assert made == [{"dynamic": True}] * 2  # the student and its teacher
    assert module.model._compiled_call_impl is None
    assert weights.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(weights[name], value, msg=name)
    trainer.validate(module, datamodule=glue(), verbose=False)
    assert len(made) == 2


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_for_a_gpu_come_from_pinned_memory(kind: str, glue: Make) -> None:
    """Stops every copy of a batch to a GPU from waiting for all that runs there."""
    data = glue()
    data.setup("fit")
    device = SimpleNamespace(root_device=torch.device(kind))
    data.trainer = SimpleNamespace(strategy=device, world_size=1, global_rank=0, training=True, overfit_batches=0)
    assert data.train_dataloader().pin_memory is (kind == "cuda")
    data.trainer = None
    assert not data.train_dataloader().pin_memory


def test_cached_logits_for_a_gpu_come_from_pinned_memory(glue: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the logits that are added to a pinned batch from being the one thing that is waited for."""
    data = glue()
    data.setup("fit")
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    logits = torch.zeros(2, 2)
    data.on_train_batch = lambda batch: {**batch, "cached": {"teacher": {"logits": logits}}}
    for kind, expected in (("cpu", 0), ("cuda", 1)):
        device = SimpleNamespace(root_device=torch.device(kind))
        data.trainer = SimpleNamespace(strategy=device, world_size=1, global_rank=0, training=True, overfit_batches=0)
        batch = data.on_before_batch_transfer({"index": torch.arange(2)}, 0)
        assert batch["cached"]["teacher"]["logits"] is logits
        assert len(pinned) == expected


def test_what_is_logged_is_read_from_the_cpu(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the trainer, which reads what was logged again after every batch, from reading it from a GPU."""
    module = distillation(losses={"soft": SoftTargetKL()})
    make_trainer(max_steps=1, log_every_n_steps=1).fit(module, datamodule=glue())
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)
    losses = [torch.ones((), requires_grad=True) for _ in range(2)]
    module._log_step({"hard": losses[0], "soft": torch.ones((), dtype=torch.double), "train/loss": losses[1]})
    assert {"train/loss", "train/loss/hard", "train/loss/soft", "train/lr", "train/weight/soft"} <= set(logged)
    for name, value in logged.items():
        assert value.device.type == "cpu" and not value.requires_grad and value.dim() == 0, name
