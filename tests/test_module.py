"""One step, the checkpoint, resuming, and what is refused before the first batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn import metrics as sk
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertTokenizerFast, get_linear_schedule_with_warmup

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.cli import main
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.losses import DistillationLoss, FeatureMatch, HiddenStateMSE, LogitMSE, SoftTargetKL
from lightning_kd.optim import AdamW
from lightning_kd.outputs import LossInputs, Needs

Make = Callable[..., Any]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WIDE = {**STILL, "hidden_size": 32, "intermediate_size": 32}


class Recorder(DistillationLoss):
    """The sum of the student's logits, and what the loss was given."""

    def __init__(self, matches: Sequence[FeatureMatch] = ()) -> None:
        super().__init__()
        self.matches = tuple(matches)
        self.seen: list[LossInputs] = []

    def needs(self, role: Any) -> Needs:
        layers = (m.student_layer if role == "student" else m.teacher_layer for m in self.matches)
        return Needs(hidden_states=frozenset(layers))

    def forward(self, inputs: LossInputs) -> Tensor:
        self.seen.append(inputs)
        return inputs.student.logits["logits"].float().sum()


class StepLog(L.Callback):
    """Keeps each training batch, what its step returned and logged, and the gradients that the optimizer saw."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor | None]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        outputs, batch, _ = step
        self.batches.append(batch)
        self.losses.append(outputs["loss"].item())
        logged = trainer.logged_metrics.items()
        self.logged.append({name: value.item() for name, value in logged if name.startswith("train/")})
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients.append({n: None if g is None else g.clone() for n, g in gradients.items()})


class StopAfterEpoch(L.Callback):
    """Ends the training after its first epoch, as an interruption does."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


@pytest.fixture
def source(tmp_path: Path, tiny_model: Make) -> Callable[..., ModelSource]:
    """Copies a tiny model into the test's folder, where it can be edited: ``source(name, labels, words, **shape)``."""

    def copy(
        name: str, labels: Sequence[str] | None = None, words: Sequence[str] | None = None, **shape: Any
    ) -> ModelSource:
        folder = tmp_path / "models" / name
        if folder.exists():
            return ModelSource(str(folder))
        shutil.copytree(tiny_model(**{**STILL, **shape}), folder)
        if labels is not None:
            config = json.loads((folder / "config.json").read_text())
            config |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
            (folder / "config.json").write_text(json.dumps(config))
        if words is not None:
            BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
        return ModelSource(str(folder))

    return copy


@pytest.fixture
def hidden(source: Callable[..., ModelSource], distillation: Make) -> Make:
    """Makes a module whose teacher is twice as wide, so that its loss on hidden states has projections."""

    def make(**arguments: Any) -> DistillationModule:
        losses = {"soft": SoftTargetKL(), "hidden": HiddenStateMSE([FeatureMatch(1, 3), FeatureMatch(-1, -1)])}
        models = {
            "student": source("student", seed=1),
            "teachers": {"wide": source("teacher", seed=0, **WIDE)},
        }
        return distillation(**{**models, "losses": losses, "optimizer": partial(AdamW, lr=1e-2), **arguments})

    return make


def inputs_of(rows: int = 5) -> dict[str, Tensor]:
    """Token ids and a mask that any tiny model can read."""
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.randint(5, 90, (rows, 7), generator=generator),
        "attention_mask": (torch.arange(7) < torch.tensor([7, 4, 5, 6, 7])[:rows, None]).long(),
    }


def logits_of(model: torch.nn.Module) -> Tensor:
    """Logits in eval mode."""
    with torch.no_grad():
        return model.eval()(**inputs_of()).logits


# -------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("how", ["pretrained", "keep_layers", "from_scratch"])
def test_student_drops_out_and_teacher_does_not(
    how: str, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a student in eval mode, as from_pretrained leaves it: it trains without dropout, and nothing says so."""
    seen: list[tuple[bool, bool]] = []
    noise: list[tuple[float, float]] = []

    class Watched(DistillationModule):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            teacher = self.teachers["teacher"]
            seen.append((all(m.training for m in self.model.modules()), any(m.training for m in teacher.modules())))
            inputs = self.task.model_inputs(batch)
            with torch.no_grad():
                twice = [[model(**inputs).logits for _ in range(2)] for model in (self.model, teacher)]
            student, taught = ((a - b).abs().max().item() for a, b in twice)
            noise.append((student, taught))
            return super().training_step(batch, batch_idx)

    path = str(tiny_model(seed=1))
    student = {
        "pretrained": ModelSource(path),
        "keep_layers": ModelSource(path, keep_layers=[0, 2]),
        "from_scratch": ModelSource(path, from_scratch=True, config={"initializer_range": 0.3}),
    }[how]
    module = distillation(Watched, student=student, teachers={"teacher": ModelSource(str(tiny_model(seed=0)))})
    make_trainer(max_epochs=2, val_check_interval=1, num_sanity_val_steps=1).fit(module, datamodule=glue())
    assert seen == [(True, False)] * 6
    assert all(student > 1e-4 and teacher == 0 for student, teacher in noise)


def test_weights_equal_a_loop_written_by_hand(hidden: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a term counted twice, a weight left out, or a learning rate that is off by a step."""
    steps = StepLog()
    module = hidden(
        losses={"soft": SoftTargetKL(), "mse": LogitMSE(), "hidden": HiddenStateMSE([FeatureMatch(2, 3, weight=0.5)])},
        loss_weights={"soft": 0.7, "hidden": 0.25, "mse": 0.1},
        hard_label_weight=0.3,
        temperature=3.0,
        warmup=0.4,
        optimizer=partial(AdamW, lr=1e-3, eps=1e-3, weight_decay=0.1),  # a large eps: keys' biases get rounding errors
    )
    student, teacher = (
        AutoModelForSequenceClassification.from_pretrained(s.path, num_labels=2)
        for s in (module.student_source, module.teacher_sources["wide"])
    )
    trainer = make_trainer(max_epochs=2, max_steps=5, log_every_n_steps=1, callbacks=[steps])
    start: dict[str, Tensor] = {}

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            start.update({n: p.detach().clone() for n, p in pl_module.losses.named_parameters()})

    trainer.callbacks.append(Start())
    trainer.fit(module, datamodule=glue())

    projection = torch.nn.Linear(16, 32)
    projection.load_state_dict({n.rpartition(".")[2]: value for n, value in start.items()})
    named = [*student.named_parameters(), *projection.named_parameters()]
    plain = [p for n, p in named if "bias" in n or "LayerNorm" in n]
    decayed = [p for n, p in named if "bias" not in n and "LayerNorm" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, eps=1e-3
    )
    assert len(steps.batches) == 5
    for i, batch in enumerate(steps.batches):
        inputs = {n: batch[n] for n in ("input_ids", "token_type_ids", "attention_mask")}
        out = student.train()(**inputs, output_hidden_states=True)
        with torch.no_grad():
            taught = teacher.eval()(**inputs, output_hidden_states=True)
        q, p = (F.softmax(o.logits / 3.0, -1) for o in (out, taught))
        mask = batch["attention_mask"].bool()
        hard = -F.log_softmax(out.logits, -1)[torch.arange(len(mask)), batch["labels"]].mean()
        soft = 9.0 * (p * (p.log() - q.log())).sum(-1).mean()
        mse = ((out.logits - taught.logits) ** 2).mean()
        states = (projection(out.hidden_states[2]) - taught.hidden_states[3])[mask]
        total = 0.3 * hard + 0.7 * soft + 0.1 * mse + 0.25 * 0.5 * (states**2).mean()
        expected = {"train/loss": total, "train/loss/hard": hard, "train/loss/soft": soft, "train/loss/mse": mse}
        expected["train/loss/hidden"] = 0.5 * (states**2).mean()
        lr = 1e-3 * (i / 2 if i < 2 else (5 - i) / 3)
        shown = {name: value.item() for name, value in expected.items()} | {"train/lr": lr, "train/temperature": 3.0}
        shown |= {"train/weight/hard": 0.3, "train/weight/soft": 0.7, "train/weight/mse": 0.1}
        assert steps.logged[i] == pytest.approx({**shown, "train/weight/hidden": 0.25}, rel=1e-5)
        assert steps.losses[i] == pytest.approx(total.item(), rel=1e-5)
        optimizer.zero_grad()
        total.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(module.losses["hidden"].projections[0].weight, projection.weight, rtol=0, atol=1e-6)


def test_only_matched_hidden_states_are_kept(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a loss on one layer from holding all layers of both models in memory, and a layer number off by one."""
    loss = Recorder([FeatureMatch(1, 3), FeatureMatch(2, 0)])
    module = distillation(losses={"recorder": loss, "soft": SoftTargetKL()})
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    outputs: list[Any] = []

    class Hook(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert isinstance(pl_module, DistillationModule)
            for model in (pl_module.model, *pl_module.teachers.values()):
                model.register_forward_hook(lambda *call: outputs.append(call[2]))

        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, DistillationModule)
            inputs = pl_module.task.model_inputs(batch)
            for model in (pl_module.model, *pl_module.teachers.values()):
                with torch.no_grad():
                    self.full = [*getattr(self, "full", []), model(**inputs, output_hidden_states=True).hidden_states]
            outputs.clear()

    hook = Hook()
    trainer.callbacks.append(hook)
    trainer.fit(module, datamodule=glue())
    for output, layers in zip(outputs, ({1, 2}, {0, 3}), strict=True):
        assert {i for i, state in enumerate(output.hidden_states) if state is not None} == layers
    seen = loss.seen[0]
    assert set(seen.student.hidden_states) == {1, 2} and set(seen.teacher.hidden_states) == {0, 3}
    for features, full in zip((seen.student, seen.teacher), hook.full, strict=True):
        for layer, state in features.hidden_states.items():
            torch.testing.assert_close(state, full[layer])
    assert not seen.teacher.logits["logits"].requires_grad


def test_no_hidden_states_for_losses_on_logits(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops soft targets alone from paying for hidden states."""
    loss = Recorder()
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(distillation(losses={"r": loss}), datamodule=glue())
    assert loss.seen[0].student.hidden_states == {} and loss.seen[0].teacher.hidden_states == {}


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "electra"])
def test_weight_0_leaves_a_gradient_everywhere(
    model_type: str, tiny_model: Make, hidden: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a skipped term or an unused parameter, on which data-parallel training dies at the second step."""
    steps = StepLog()
    student = ModelSource(str(tiny_model(model_type, seed=1)))
    module = hidden(student=student, loss_weights={"hidden": 0.0})
    make_trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[steps]).fit(module, datamodule=glue())
    assert any(name.startswith("losses.hidden") for name in steps.gradients[0])
    assert [name for name, gradient in steps.gradients[0].items() if gradient is None] == []
    assert not any(g.any() for n, g in steps.gradients[0].items() if n.startswith("losses.hidden") and g is not None)


def test_two_teachers_teach_their_mean(tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the last teacher from being the only one that counts."""
    loss, steps = Recorder(), StepLog()
    sources = {name: ModelSource(str(tiny_model(seed=seed))) for name, seed in (("a", 0), ("b", 5))}
    module = distillation(teachers=sources, losses={"r": loss})
    make_trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[steps]).fit(module, datamodule=glue())
    inputs = module.task.model_inputs(steps.batches[0])
    with torch.no_grad():
        a, b = (AutoModelForSequenceClassification.from_pretrained(s.path)(**inputs).logits for s in sources.values())
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(loss.seen[0].teacher.logits["logits"], (a + b) / 2)


def test_accumulation_under_autocast(hidden: Make, glue: Make, make_trainer: Make) -> None:
    """Stops half-precision losses, and a term that dies on a dtype only when autocast is on."""
    steps = StepLog()
    module = hidden()
    trainer = make_trainer(precision="bf16-mixed", accumulate_grad_batches=3, callbacks=[steps], log_every_n_steps=1)
    trainer.fit(module, datamodule=glue())
    assert trainer.global_step == 1
    assert all(torch.tensor(loss).isfinite() for loss in steps.losses)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())
    assert steps.gradients[-1]["student.classifier.weight"].abs().max() > 0


# -------------------------------------------------------------------------------------------------- optimizing


def test_overfitting_sees_the_same_batches_in_every_epoch(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops `overfit_batches` from ending in an error of the trainer's, or from being a training on all rows."""
    log = StepLog()
    make_trainer(max_epochs=3, overfit_batches=2, callbacks=[log]).fit(distillation(), datamodule=glue())
    rows = [batch["index"].tolist() for batch in log.batches]
    assert len(rows) == 6 and rows[:2] == rows[2:4] == rows[4:] and rows[0] != rows[1]


def test_learning_rate_follows_the_optimizers_steps(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a schedule that counts batches where gradients are accumulated, and so never leaves its warm-up."""
    seen: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    module = distillation(warmup=0.25, optimizer=partial(AdamW, lr=1e-3))
    trainer = make_trainer(max_epochs=4, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[Rates()])
    trainer.fit(module, datamodule=glue())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 8)
    expected = []
    for _ in range(8):  # 3 batches an epoch make 2 steps
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(expected)
    assert trainer.global_step == 8


def test_own_scheduler_takes_the_place_of_warmup(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a given scheduler from being stepped once an epoch, or being ignored."""
    module = distillation(
        optimizer=partial(AdamW, lr=1.0), lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    )
    trainer = make_trainer(limit_val_batches=0)
    trainer.fit(module, datamodule=glue())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**3)


def test_clipping_and_optimizer_cover_projections(hidden: Make, glue: Make, make_trainer: Make) -> None:
    """Stops projections that stay random because the optimizer was made before them."""
    steps = StepLog()
    module = hidden(loss_weights={"hidden": 100.0})
    trainer = make_trainer(gradient_clip_val=0.01, limit_val_batches=0, callbacks=[steps])
    trainer.fit(module, datamodule=glue())
    norms = {name: gradient.norm().item() for name, gradient in steps.gradients[0].items() if gradient is not None}
    projections = [norm for name, norm in norms.items() if name.startswith("losses.hidden.projections")]
    assert len(projections) == 4 and min(projections) > 0
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(0.01, rel=1e-2)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()}
    assert module.losses["hidden"].projections[0].bias.abs().max() > 0  # it started at 0


# -------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("name", ["sst2", "mrpc", "mnli"])
def test_validation_equals_sklearn_on_all_rows(
    name: str, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a mean over batches of unlike size, a half-emptied metric, and the splits of MNLI mixed up."""
    data: GLUEDataModule = glue(name, eval_batch_size=4)
    labels = 3 if name == "mnli" else 2
    module = distillation(student=ModelSource(str(tiny_model(num_labels=labels, seed=4))), teachers={}, losses={})
    trainer = make_trainer()
    trainer.validate(module, datamodule=data, verbose=False)
    scores = {"accuracy": sk.accuracy_score, "f1": sk.f1_score}
    expected = {}
    for split, suffix in zip(data.validation_splits, data.evaluation_names, strict=True):
        logits, truth = [], []
        for batch in data.evaluation_batches(split):
            with torch.no_grad():
                logits.append(module.model.eval()(**module.task.model_inputs(batch)).logits)
            truth.append(batch["labels"])
        values, target = torch.cat(logits), torch.cat(truth)
        assert len(target) == 10
        prefix = f"val_{suffix}" if suffix else "val"
        expected[f"{prefix}/loss"] = F.cross_entropy(values, target).item()
        for metric in data.metric_names:
            expected[f"{prefix}/{metric}"] = scores[metric](target, values.argmax(-1))
    assert {n: v.item() for n, v in trainer.callback_metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_regression_learns_by_logit_mse(source: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a regression whose labels are cut to integers, or whose student gets two outputs."""
    teacher = source("teacher", num_labels=1)
    module = distillation(
        student=source("student", seed=1, head=False), teachers={"t": teacher}, losses={"mse": LogitMSE()}
    )
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, datamodule=glue("stsb"))
    assert {"val/pearson", "val/spearman", "val/loss"} <= set(trainer.callback_metrics)
    assert module.model.config.num_labels == 1 and module.model.config.problem_type == "regression"


# -------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("keep_layers", [None, [2, 0]])
def test_checkpoint_needs_no_other_file(
    keep_layers: list[int] | None, tmp_path: Path, source: Make, hidden: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a checkpoint that is of no use once the models that it came from are gone, or that holds the teacher."""
    student = ModelSource(source("base", seed=1).path, keep_layers=keep_layers)
    module = hidden(student=student, losses={"hidden": HiddenStateMSE([FeatureMatch(1, 3)]), "soft": SoftTargetKL()})
    trainer = make_trainer(callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    trainer.fit(module, datamodule=glue())
    expected = logits_of(module.model)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    own = {f"student.{name}" for name in module.model.state_dict()}
    projections = {"losses.hidden.projections.0.weight", "losses.hidden.projections.0.bias"}
    assert set(checkpoint["state_dict"]) == own | projections
    optimized = checkpoint["optimizer_states"][0]["state"]
    assert len(optimized) == len(list(module.parameters()))

    shutil.rmtree(tmp_path / "models")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert logits_of(loaded.model).equal(expected)
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    assert loaded.temperature == module.temperature and loaded.teachers == {}
    make_trainer().validate(loaded, datamodule=glue(), verbose=False)
    assert logits_of(loaded.model).equal(expected)


def test_checkpoint_of_the_command_line_needs_no_other_file(tmp_path: Path, source: Make) -> None:
    """Stops hyperparameters in the checkpoint that only the command line can read back."""
    student, teacher = source("student", seed=1), source("teacher", seed=0, **WIDE)
    hidden = {"class_path": "lightning_kd.losses.HiddenStateMSE"}
    hidden["init_args"] = {"matches": [{"student_layer": -1, "teacher_layer": -1}]}
    losses = {"soft": {"class_path": "lightning_kd.losses.SoftTargetKL"}, "hidden": hidden}
    main(
        [
            "fit",
            f"--model.student.path={student.path}",
            f"--model.teachers={json.dumps({'wide': {'path': teacher.path}})}",
            f"--model.losses={json.dumps(losses)}",
            f"--model.loss_weights={json.dumps({'hidden': 0.5})}",
            "--model.temperature=2",
            "--data=lightning_kd.datamodules.SyntheticDataModule",
            *(f"--data.num_{split}=12" for split in ("train", "validation", "test")),
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=1",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            f"--trainer.default_root_dir={tmp_path / 'run'}",
        ]
    )
    shutil.rmtree(tmp_path / "models")
    (path,) = (tmp_path / "run").rglob("*.ckpt")
    assert not any(name.startswith("_teachers") for name in torch.load(path, weights_only=True)["state_dict"])
    loaded = DistillationModule.load_from_checkpoint(path)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "student")
    assert logits_of(loaded.model).equal(logits_of(exported))
    assert loaded.temperature == 2


@pytest.mark.parametrize("broken", ["missing", "foreign"])
def test_loading_is_strict(broken: str, tmp_path: Path, hidden: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a student with a random layer, or another library's checkpoint, from being loaded without a word."""
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(hidden(), datamodule=glue())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    del checkpoint["state_dict"]["student.classifier.bias"]
    if broken == "foreign":
        del checkpoint["student_config"]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    message = "classifier.bias" if broken == "missing" else "not a DistillationModule's"
    with pytest.raises((RuntimeError, InputError), match=message):
        DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, hidden: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a resumed run with fresh projections, a fresh optimizer, or the first epoch's order of batches."""

    def run(callbacks: list[L.Callback], checkpoint: Path | None = None) -> DistillationModule:
        module = hidden()
        make_trainer(max_epochs=2, callbacks=callbacks).fit(module, datamodule=glue(), ckpt_path=checkpoint)
        return module

    whole = run([])
    stopped = run([StopAfterEpoch(), ModelCheckpoint(tmp_path / "half", save_last=True)])
    torch.manual_seed(99)
    resumed = run([], tmp_path / "half" / "last.ckpt")
    assert not stopped.model.classifier.weight.equal(whole.model.classifier.weight)
    assert len(whole.state_dict()) > len(whole.model.state_dict())
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


# -------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "Expected argument `temperature` to be a number above 0, but got 0.0."),
        ({"temperature": float("nan")}, "Expected argument `temperature` to be a number above 0, but got nan."),
        ({"warmup": 1.5}, "Expected argument `warmup` to be between 0 and 1, but got 1.5."),
        (
            {"hard_label_weight": -1},
            "Expected argument `hard_label_weight` to be a finite number, 0 or more, but got -1.",
        ),
        (
            {"hard_label_weight": float("inf")},
            "Expected argument `hard_label_weight` to be a finite number, 0 or more, but got inf.",
        ),
        (
            {"losses": {"soft": SoftTargetKL()}, "loss_weights": {"soft": -0.5}},
            "Expected argument `loss_weights.soft` to be a finite number, 0 or more, but got -0.5.",
        ),
        (
            {"losses": {"hard": SoftTargetKL()}},
            "Expected argument `name` to be letters, digits and underscores, and not 'hard', but got 'hard'.",
        ),
        (
            {"losses": {"a.b": SoftTargetKL()}},
            "Expected argument `name` to be letters, digits and underscores, and not 'hard', but got 'a.b'.",
        ),
    ],
)
def test_values_out_of_range_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    """Stops a division by 0, or a loss that is maximized, from being found out an hour later."""
    with pytest.raises(InputError) as error:
        DistillationModule(ModelSource("student"), **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss_weights": {"sofd": 0.5}},
            "Expected argument `loss_weights` to be names of losses (soft), but got 'sofd'. Did you mean `soft`?",
        ),
        ({"teachers": {}}, "The losses soft need a teacher, but there is none: add one to `teachers`."),
        (
            {"losses": {}},
            "There is a teacher, but no loss that learns from it: add one to `losses`, or a DistillationLossCallback.",
        ),
        (
            {"losses": {"h": HiddenStateMSE([FeatureMatch(4, 3)])}},
            "Expected argument `student_layer` to be a layer of the student, from 0 (the embeddings) to 3, "
            "or from -4 to -1, but got 4.",
        ),
        (
            {"losses": {"h": HiddenStateMSE([FeatureMatch(3, -5)])}},
            "Expected argument `teacher_layer` to be a layer of the teacher, from 0 (the embeddings) to 3, "
            "or from -4 to -1, but got -5.",
        ),
        (
            {"optimizer": AdamW, "trainer": {"max_epochs": -1}},
            "The learning rate falls to 0 over the whole training, so its length must be known: "
            "set trainer.max_epochs or trainer.max_steps, or give an lr_scheduler.",
        ),
    ],
)
def test_names_and_layers_that_do_not_exist_are_refused(
    arguments: dict[str, Any], message: str, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a misspelt weight from leaving its loss at weight 1, and a fit that learns nothing from its teacher."""
    given = dict(arguments)
    trainer = make_trainer(**given.pop("trainer", {}), limit_val_batches=0)
    with pytest.raises(InputError) as error:
        trainer.fit(distillation(**given), datamodule=glue())
    assert str(error.value) == message
    assert trainer.global_step == 0


def test_two_teachers_have_no_common_hidden_states(
    tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops the first teacher's hidden states from standing for both."""
    teachers = {name: ModelSource(str(tiny_model(seed=seed))) for name, seed in (("a", 0), ("b", 5))}
    module = distillation(teachers=teachers, losses={"hidden": HiddenStateMSE([FeatureMatch(1, 1)])})
    message = "^The loss 'hidden' compares inner states, which needs exactly one teacher, but there are 2: name one in "
    message += r"loss_teachers\.hidden\.$"
    with pytest.raises(InputError, match=message):
        make_trainer().fit(module, datamodule=glue())


def test_a_name_is_given_once(distillation: Make) -> None:
    """Stops a callback from replacing a loss of the configuration."""
    with pytest.raises(
        InputError, match=r"^Expected argument `name` to be a name that no other loss has, but got 'soft'.$"
    ):
        distillation().add_loss("soft", LogitMSE())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"num_labels": 3},
            "The data has 2 labels (negative, positive), but the teacher 't' has 3: use a model with the data's "
            "labels.",
        ),
        (
            {"labels": ["bad", "good"]},
            "The data's labels are negative, positive, but those of the teacher 't' are bad, good: use a model with "
            "the data's labels. If they mean the same, say so by id2label in its config.",
        ),
        ({"labels": ["LABEL_0", "LABEL_1"]}, None),
        ({"labels": ["negative", "positive"]}, None),
        ({"words": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other"]}, "reads another vocabulary"),
        ({"vocab_size": 20}, "but `model.teachers.t` has embeddings for 20"),
        ({"head": False}, "Expected argument `model.teachers.t.path` to be a model that is fine-tuned for this task"),
    ],
)
def test_teacher_must_speak_of_the_same_labels_and_words(
    teacher: dict[str, Any], message: str | None, source: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a teacher whose label 0 is the data's label 1, or that reads other words: both only look like bad luck."""
    module = distillation(teachers={"t": source("teacher", **teacher)})
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    if message is None:
        trainer.fit(module, datamodule=glue())
        return
    with pytest.raises(InputError) as error:
        trainer.fit(module, datamodule=glue())
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "teacher" in str(error.value) and trainer.global_step == 0


@pytest.mark.parametrize(
    ("student", "config", "message"),
    [
        ({}, {"num_labels": 3}, "but model.student.config has 3"),
        ({"num_labels": 3}, {}, "does not have the 2 outputs that the data needs"),
        ({"words": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other"]}, {}, "`model.student` ("),
    ],
)
def test_student_must_fit_the_data(
    student: dict[str, Any],
    config: dict[str, Any],
    message: str,
    source: Make,
    tiny_model: Make,
    distillation: Make,
    glue: Make,
    make_trainer: Make,
) -> None:
    """Stops an override that contradicts the data from winning, or from being dropped, in silence."""
    module = distillation(student=ModelSource(source("student", **student).path, config=config))
    with pytest.raises(InputError) as error:
        make_trainer().fit(module, datamodule=glue())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_loaded_student_is_checked_against_other_data(
    tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a checkpoint of one data set from scoring on another whose labels happen to be as many."""
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(distillation(), datamodule=glue())
    trainer.save_checkpoint(tmp_path / "sst2.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "sst2.ckpt")
    with pytest.raises(InputError, match="those of the student are negative, positive: names and order"):
        make_trainer().validate(loaded, datamodule=glue("rte"))


def test_soft_targets_need_labels(source: Make, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a softmax over one output, whose loss is 0 whatever the student says."""
    module = distillation(
        student=source("student", seed=1, num_labels=1), teachers={"t": source("teacher", num_labels=1)}
    )
    with pytest.raises(InputError, match=r"^SoftTargetKL compares .* Use LogitMSE instead\.$"):
        make_trainer().fit(module, datamodule=glue("stsb"))


def test_student_is_there_after_setup_only() -> None:
    """Stops a bare `None has no attribute` where a user reads the student too early."""
    with pytest.raises(RuntimeError, match="run the trainer, or load a checkpoint, first"):
        _ = DistillationModule(ModelSource("student")).model
