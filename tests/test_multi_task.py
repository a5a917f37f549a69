"""Several tasks in one student: what is shared, what is not, and what a step, a checkpoint and a metric are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)

from lightning_kd import DistillationModule, InputError, ModelSource, MultiTaskModule, TaskDistillation
from lightning_kd.callbacks import PerTask, Resume, StudentExport, TemperatureSchedule
from lightning_kd.datamodules import (
    MultiTaskDataModule,
    SyntheticDataModule,
    SyntheticNERDataModule,
    SyntheticQADataModule,
)
from lightning_kd.losses import FeatureMatch, HiddenStateMSE, SoftTargetKL
from lightning_kd.schedules import Linear
from lightning_kd.sharing import share_encoder
from lightning_kd.tasks import QuestionAnswering, SequenceClassification, TokenClassification

Make = Callable[..., Any]

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **STILL,
}
MIXED = {"label": SequenceClassification(), "tags": TokenClassification(), "answer": QuestionAnswering()}


def mixed_data(**options: Any) -> MultiTaskDataModule:
    """A label for a text, tags for its words, an answer in it; 3 batches of each."""
    kinds = (SyntheticDataModule, SyntheticNERDataModule, SyntheticQADataModule)
    sizes = {"num_train": 24, "num_validation": 10, "num_test": 6, "batch_size": 8, "eval_batch_size": 4}
    return MultiTaskDataModule({n: kind(**sizes) for n, kind in zip(MIXED, kinds, strict=True)}, **options)


def mixed(**options: Any) -> MultiTaskModule:
    student = ModelSource(from_scratch=True, config=SHAPE)
    return MultiTaskModule(student, {n: TaskDistillation(task=task) for n, task in MIXED.items()}, **options)


@pytest.fixture(scope="module")
def pairs(tiny_model: Make, glue: Make) -> Callable[..., tuple[MultiTaskModule, MultiTaskDataModule]]:
    """MRPC (3 batches) and SST-2 (1 batch), a teacher each: ``pairs(sst2={...}, tau=..., **options of the module)``."""
    source = str(tiny_model(seed=1, **STILL))
    teachers = {n: {"big": ModelSource(str(tiny_model(seed=s, **STILL)))} for n, s in (("mrpc", 0), ("sst2", 5))}

    def make(tau: float = 1.0, **options: Any) -> tuple[MultiTaskModule, MultiTaskDataModule]:
        soft = {"losses": {"soft": SoftTargetKL()}, "temperature": 2.0}
        own = {n: {**soft, "teachers": teachers[n], **options.pop(n, {})} for n in teachers}
        module = MultiTaskModule(
            ModelSource(source), {n: TaskDistillation(**given) for n, given in own.items()}, **options
        )
        return module, MultiTaskDataModule({"mrpc": glue("mrpc"), "sst2": glue("sst2", max_train_rows=8)}, tau)

    return make


class Batches(L.Callback):
    """Keeps the batches of a training."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, dict[str, Tensor]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)


# -------------------------------------------------------------------------------------------------- what is shared


def test_parameters_of_the_encoder_are_the_same_objects() -> None:
    """Stops an encoder of which a part is copied: it looks shared at first and drifts apart; and a shared pooler."""
    kinds = (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering)
    models = [kind.from_config(BertConfig(**{k: v for k, v in SHAPE.items() if k != "model_type"})) for kind in kinds]
    others = [AutoModelForSequenceClassification.from_config(models[0].config)]
    names = share_encoder([*models, *others])
    encoder = {f"bert.{n}" for n in names}
    own = {n for n, _ in models[0].named_parameters()}
    assert own - encoder == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    for model in (*models[1:], *others):
        for name in encoder:
            assert model.get_parameter(name) is models[0].get_parameter(name)
    assert others[0].bert.pooler.dense.weight is not models[0].bert.pooler.dense.weight


@pytest.mark.parametrize("model_type", ["rnn", "cnn", "albert", "electra", "distilbert"])
def test_encoders_of_all_kinds_compute_with_what_is_shared(model_type: str, tiny_model: Make) -> None:
    """Stops a layer that keeps its weights in a list of its own, as an LSTM does, from computing with the old ones."""
    if model_type in ("rnn", "cnn"):
        config = AutoConfig.for_model(model_type, vocab_size=40, hidden_size=18)
    else:
        config = AutoConfig.from_pretrained(tiny_model(model_type))
    kinds = (AutoModelForSequenceClassification, AutoModelForTokenClassification)
    one, two = models = [kind.from_config(config).eval() for kind in kinds]
    ids = torch.arange(6).reshape(1, 6)
    before = [model.base_model(input_ids=ids, attention_mask=ids + 1)[0] for model in models]
    assert not before[0].equal(before[1])
    share_encoder(models)
    with torch.no_grad():
        for p in one.base_model.parameters():
            p.mul_(1.5)
    after = [model.base_model(input_ids=ids, attention_mask=ids + 1)[0] for model in models]
    assert after[0].equal(after[1]) and not after[0].equal(before[0])
    shared = sum({id(p): p.numel() for p in [*one.parameters(), *two.parameters()]}.values())
    assert shared < 1.6 * one.num_parameters()


def test_encoders_of_other_shapes_are_refused() -> None:
    """Stops a wider student from taking a narrower one's weights, and failing in the middle of its first batch."""
    shape = {name: value for name, value in SHAPE.items() if name != "model_type"}
    configs = (BertConfig(**{**shape, "hidden_size": width}) for width in (8, 16))
    one, two = (AutoModelForSequenceClassification.from_config(config) for config in configs)
    with pytest.raises(InputError, match="same shape: they cannot share their encoder"):
        share_encoder([one, two])
    with pytest.raises(InputError, match="no encoder apart from its head"):
        share_encoder([one.bert])


def test_the_optimizer_has_each_parameter_once(make_trainer: Make) -> None:
    """Stops a shared weight from being moved as often as there are tasks."""
    module = mixed()
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=mixed_data())
    given = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len({id(p) for p in given}) == len(given)
    single = module.tasks["label"].model.num_parameters()
    heads = sum(
        p.numel()
        for task in ("tags", "answer")
        for n, p in module.tasks[task].model.named_parameters()
        if "bert" not in n
    )
    assert sum(p.numel() for p in given) == single + heads


def test_hidden_states_of_each_student_come_once(make_trainer: Make) -> None:
    """Stops layers that several models hold from handing each state to a loss as often as there are models."""
    module = mixed()
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=mixed_data())
    data = trainer.datamodule
    for _ in range(2):
        for name, one in module.tasks.items():
            batch = data.tasks[name].evaluation_batches("validation")[0]
            with torch.no_grad():
                out = one.model.eval()(**one.task.model_inputs(batch), output_hidden_states=True)
            assert len(out.hidden_states) == 1 + SHAPE["num_hidden_layers"]
            assert not out.hidden_states[1].equal(out.hidden_states[2])


# -------------------------------------------------------------------------------------------------- one step


def test_weights_equal_a_loop_written_by_hand(pairs: Make, make_trainer: Make) -> None:
    """Stops a task's weight, temperature or teacher from being used for another, and a step taken per task."""
    batches = Batches()
    module, data = pairs(
        mrpc={"weight": 0.5, "hard_label_weight": 0.3, "temperature": 3.0},
        sst2={"weight": 2.0, "loss_weights": {"soft": 0.25}},
        optimizer=partial(torch.optim.SGD, lr=0.1),
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1000),
    )
    source, teachers = (
        module.student_source.path,
        {n: one.teacher_sources["big"].path for n, one in module.tasks.items()},
    )
    make_trainer(max_epochs=2, callbacks=[batches], limit_val_batches=0).fit(module, datamodule=data)

    students = {n: AutoModelForSequenceClassification.from_pretrained(source).train() for n in teachers}
    pooler = {n: student.bert.pooler for n, student in students.items()}
    taught = {n: AutoModelForSequenceClassification.from_pretrained(path).eval() for n, path in teachers.items()}
    one = students["mrpc"].bert  # the same module in both, with the pooler put back for each batch
    students["sst2"].bert = one
    trained = {id(p): p for part in (*students.values(), *pooler.values()) for p in part.parameters()}
    settings = {"mrpc": (0.5, 0.3, 1.0, 3.0), "sst2": (2.0, 1.0, 0.25, 2.0)}
    assert [next(iter(batch)) for batch in batches.seen].count("mrpc") == 6 and len(batches.seen) == 8
    for batch in batches.seen:
        ((name, own),) = batch.items()
        weight, hard_weight, soft_weight, temperature = settings[name]
        inputs = {n: own[n] for n in ("input_ids", "token_type_ids", "attention_mask")}
        one.pooler = pooler[name]
        logits = students[name](**inputs).logits
        with torch.no_grad():
            target = F.softmax(taught[name](**inputs).logits / temperature, -1)
        log_q = F.log_softmax(logits / temperature, -1)
        soft = temperature**2 * (target * (target.log() - log_q)).sum(-1).mean()
        total = weight * (hard_weight * F.cross_entropy(logits, own["labels"]) + soft_weight * soft)
        grads = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        with torch.no_grad():
            for p, grad in zip(trained.values(), grads, strict=True):
                if grad is not None:
                    p -= 0.1 * grad
    for name, student in students.items():
        one.pooler = pooler[name]
        for key, value in student.state_dict().items():
            torch.testing.assert_close(module.tasks[name].model.state_dict()[key], value, rtol=0, atol=1e-6)


def test_one_task_alone_is_a_distillation_module(pairs: Make, glue: Make, make_trainer: Make) -> None:
    """Stops several tasks from being trained otherwise than one: other steps, other batches, another learning rate."""
    several, _ = pairs()
    options = {"losses": {"soft": SoftTargetKL()}, "temperature": 2.0}
    teachers = several.tasks["mrpc"].teacher_sources
    alone = MultiTaskModule(several.student_source, {"mrpc": TaskDistillation(teachers=teachers, **options)})
    make_trainer(max_epochs=2).fit(alone, datamodule=MultiTaskDataModule({"mrpc": glue("mrpc")}, tau=0.5))
    single = DistillationModule(several.student_source, teachers, **options)
    make_trainer(max_epochs=2).fit(single, datamodule=glue("mrpc"))
    for key, value in single.model.state_dict().items():
        assert value.equal(alone.tasks["mrpc"].model.state_dict()[key]), key


def test_a_head_is_moved_by_its_own_batches_alone(pairs: Make, make_trainer: Make) -> None:
    """Stops momentum and weight decay from moving the head of a task that no batch is of."""

    class Watch(L.Callback):
        def heads(self, module: Any) -> dict[str, dict[str, Tensor]]:
            states = {n: one.model.state_dict() for n, one in module.tasks.items()}
            keys = [k for k in states["mrpc"] if "classifier" in k or "pooler" in k]
            return {n: {k: state[k].clone() for k in keys} for n, state in states.items()}

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.before = self.heads(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, out: Any, batch: Any, batch_idx: int) -> None:
            moved.append(batch)
            for name, head in self.heads(pl_module).items():
                for key, value in head.items():
                    assert value.equal(self.before[name][key]) == (name not in batch), (name, key)

    moved: list[Any] = []
    module, data = pairs(optimizer=partial(torch.optim.AdamW, lr=1e-2), warmup=0.0)
    make_trainer(max_epochs=2, limit_val_batches=0, callbacks=[Watch()], logger=False).fit(module, datamodule=data)
    assert {name for batch in moved for name in batch} == {"mrpc", "sst2"} and len(moved) == 8


def test_accumulated_batches_move_the_heads_of_all_of_them(pairs: Make, make_trainer: Make) -> None:
    """Stops the gradient of a step's earlier batches from being taken away as that of a task not drawn."""
    module, data = pairs(optimizer=partial(torch.optim.SGD, lr=0.1), warmup=0.0)
    make_trainer(limit_val_batches=0, accumulate_grad_batches=4).fit(module, datamodule=data)
    before = AutoModelForSequenceClassification.from_pretrained(module.student_source.path).classifier.weight
    for one in module.tasks.values():
        assert not one.model.classifier.weight.equal(before)


def test_overfitting_sees_the_same_batches_in_every_epoch(pairs: Make, make_trainer: Make) -> None:
    """Stops `overfit_batches` from ending in an error of the trainer's, or from being a training on all rows."""
    kept = Batches()
    module, data = pairs()
    make_trainer(max_epochs=3, overfit_batches=2, callbacks=[kept]).fit(module, datamodule=data)
    rows = [{name: one["index"].tolist() for name, one in batch.items()} for batch in kept.seen]
    assert len(rows) == 6 and rows[:2] == rows[2:4] == rows[4:] and rows[0] != rows[1]


def test_a_schedule_can_be_of_one_task(pairs: Make, make_trainer: Make) -> None:
    """Stops the schedule of one task from moving the temperature of another."""
    module, data = pairs()
    schedule = PerTask(TemperatureSchedule(Linear(8.0, 4.0)), tasks=["mrpc"])
    make_trainer(limit_val_batches=0, callbacks=[schedule], max_epochs=2).fit(module, datamodule=data)
    assert 4.0 <= module.tasks["mrpc"].temperature < 5.0 and module.tasks["sst2"].temperature == 2.0


def test_losses_are_logged_under_their_tasks(pairs: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops the losses of two tasks from being drawn as one zigzag line."""
    logged: dict[str, set[str]] = {"mrpc": set(), "sst2": set()}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, out: Any, batch: Any, batch_idx: int) -> None:
            logged[next(iter(batch))] |= set(trainer.logged_metrics)

    module, data = pairs()
    make_trainer(
        callbacks=[Look()], log_every_n_steps=1, limit_val_batches=0, logger=True, default_root_dir=tmp_path
    ).fit(module, datamodule=data)
    for name, keys in logged.items():
        assert {f"train/{name}/loss", f"train/{name}/loss/soft", f"train/{name}/temperature", "train/lr"} <= keys
        assert not {key for key in keys if key.startswith("train/loss")}


# -------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_those_of_single_tasks(make_trainer: Make) -> None:
    """Stops the rows of one task from being counted for another, and a loader that is left out or counted twice."""
    module = mixed()
    export = PerTask(StudentExport())
    trainer = make_trainer(callbacks=[export], limit_val_batches=0)
    trainer.fit(module, datamodule=mixed_data())
    several = {}
    for stage in ("val", "test"):
        trainer = make_trainer()
        run = trainer.validate if stage == "val" else trainer.test
        run(module, datamodule=mixed_data(), verbose=False)
        several |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    expected: dict[str, float] = {}
    firsts: dict[str, list[float]] = {"val": [], "test": []}
    for name, task in MIXED.items():
        folder = str(export.for_task(name).folder)
        data = mixed_data().tasks[name]
        data.tokenizer_source = folder
        single = DistillationModule(ModelSource(folder), task=task)
        for stage in ("val", "test"):
            trainer = make_trainer()
            run = trainer.validate if stage == "val" else trainer.test
            run(single, datamodule=data, verbose=False)
            found = {key: value.item() for key, value in trainer.callback_metrics.items()}
            expected |= {key.replace(f"{stage}/", f"{stage}/{name}/"): value for key, value in found.items()}
            firsts[stage].append(found[f"{stage}/{data.metric_names[0]}"])
    expected |= {f"{stage}/mean": sum(values) / 3 for stage, values in firsts.items()}
    assert several == pytest.approx(expected, rel=1e-5)


def test_both_splits_of_mnli_stand_beside_other_tasks(tiny_model: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the loader behind MNLI's second split from being taken for that split."""
    tasks = {"mnli": TaskDistillation(), "sst2": TaskDistillation()}
    source = ModelSource(str(tiny_model(head=False, seed=3)))
    module = MultiTaskModule(source, tasks)
    trainer = make_trainer()
    trainer.fit(module, datamodule=MultiTaskDataModule({n: glue(n) for n in tasks}))
    for name in tasks:
        one = DistillationModule(source)
        one.student = module.tasks[name].student
        single = make_trainer()
        single.validate(one, datamodule=glue(name), verbose=False)
        for key, value in single.callback_metrics.items():
            stage, _, metric = key.partition("/")
            torch.testing.assert_close(trainer.callback_metrics[f"{stage}/{name}/{metric}"], value)
    assert {"val_mismatched/mnli/accuracy", "val/sst2/accuracy", "val/mean"} <= set(trainer.callback_metrics)


# -------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoint_holds_the_encoder_once_and_needs_no_other_file(tmp_path: Path, make_trainer: Make) -> None:
    """Stops a checkpoint as large as all students, and one that loads with students that have nothing in common."""
    module = mixed()
    trainer = make_trainer(callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    trainer.fit(module, datamodule=mixed_data())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in module.parameters())
    assert sum("word_embeddings" in key for key in state) == 1
    assert checkpoint["hyper_parameters"]["tasks"]["tags"]["task"]["class_path"].endswith(".TokenClassification")

    loaded = MultiTaskModule.load_from_checkpoint(tmp_path / "last.ckpt")
    for name, one in loaded.tasks.items():
        for key, value in module.tasks[name].model.state_dict().items():
            assert value.equal(one.model.state_dict()[key]), (name, key)
        assert one.model.base_model.embeddings.word_embeddings.weight is (
            loaded.tasks["label"].model.base_model.embeddings.word_embeddings.weight
        )
        assert type(one.task) is type(MIXED[name])


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_resumed_run_equals_an_uninterrupted_one(tau: float, tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops a resumed run with the first epoch's order of tasks or rows, or momentum at another task's head."""

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    def run(callbacks: list[L.Callback], checkpoint: Path | None = None) -> MultiTaskModule:
        hidden = {"losses": {"hidden": HiddenStateMSE([FeatureMatch(-1, -1)])}}
        module, data = pairs(tau=tau, sst2=hidden)
        make_trainer(max_epochs=2, callbacks=callbacks).fit(module, datamodule=data, ckpt_path=checkpoint)
        return module

    whole = run([])
    stopped = run([Stop(), ModelCheckpoint(tmp_path, save_last=True)])
    torch.manual_seed(99)
    resumed = run([], tmp_path / "last.ckpt")
    assert not stopped.tasks["sst2"].model.classifier.weight.equal(whole.tasks["sst2"].model.classifier.weight)
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


def test_checkpoint_of_other_tasks_is_refused(tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops a head from starting at random because its task has another name in the checkpoint."""
    module, data = pairs()
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    other = MultiTaskModule(module.student_source, {"rte": TaskDistillation(), "sst2": TaskDistillation()})
    data = MultiTaskDataModule({"rte": data.tasks["mrpc"], "sst2": data.tasks["sst2"]})
    with pytest.raises(InputError, match=r"of the tasks mrpc, sst2, not of rte, sst2\."):
        make_trainer().validate(other, datamodule=data, ckpt_path=tmp_path / "x.ckpt")


# -------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "Expected argument `tasks` to be at least one task by its name, but got {}."),
        ({"sst-2": TaskDistillation()}, "but got 'sst-2'"),
        ({"keys": TaskDistillation()}, "by no word of torch's, but got 'keys'"),
        ({"a": TaskDistillation(temperature=0.0)}, "Task 'a': Expected argument `temperature`"),
        ({"a": TaskDistillation(weight=-1.0)}, "Task 'a': Expected argument `weight` to be a finite number, 0 or more"),
    ],
)
def test_wrong_tasks_are_refused_at_once(tasks: dict[str, TaskDistillation], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MultiTaskModule(ModelSource("a"), tasks)
    assert message in str(caught.value)


def test_names_of_model_and_data_have_to_be_the_same(pairs: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a misspelt task from being left untrained."""
    module, data = pairs()
    more = MultiTaskDataModule({**data.tasks, "rte": glue("rte")})
    with pytest.raises(
        InputError, match=r"`data\.tasks` to be named as the model's tasks are \(mrpc, sst2\), but got 'rte'"
    ):
        make_trainer().fit(module, datamodule=more)
    module, data = pairs()
    other = MultiTaskDataModule({"mrpc": data.tasks["mrpc"], "sst": data.tasks["sst2"]})
    with pytest.raises(InputError, match=r"(?s)`model\.tasks` .*but got 'sst2'\. Did you mean `sst`\?"):
        make_trainer().fit(module, datamodule=other)


def test_module_and_data_are_both_of_several_tasks(
    pairs: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a batch of one kind from failing deep inside a module of the other."""
    module, data = pairs()
    with pytest.raises(InputError, match="MultiTaskModule needs the MultiTaskDataModule"):
        make_trainer().fit(module, datamodule=glue())
    with pytest.raises(InputError, match="MultiTaskDataModule needs the MultiTaskModule"):
        make_trainer().fit(distillation(), datamodule=data)


def test_an_error_names_its_task(pairs: Make, tiny_model: Make, make_trainer: Make) -> None:
    """Stops one of several teachers from being refused without a word about which."""
    wrong = {"teachers": {"big": ModelSource(str(tiny_model(num_labels=3)))}}
    module, data = pairs(sst2=wrong)
    with pytest.raises(InputError, match="Task 'sst2': The data has 2 labels"):
        make_trainer().fit(module, datamodule=data)


def test_callbacks_for_one_task_are_refused(pairs: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a whole training from ending in an export that cannot be made."""
    module, data = pairs()
    trainer = make_trainer(callbacks=[StudentExport(str(tmp_path / "out"))])
    with pytest.raises(InputError, match=r"give the trainer PerTask\(StudentExport\(\.\.\.\)\)"):
        trainer.fit(module, datamodule=data)


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(
    tmp_path: Path, pairs: Make, make_trainer: Make
) -> None:
    """Stops a resumed epoch from starting again with its first task and rows."""

    class Break(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise OSError("broken off")

    def run(callbacks: list[L.Callback], checkpoint: Path | None = None) -> MultiTaskModule:
        module, data = pairs(tau=0.3)
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=[Resume(), *callbacks])
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module

    whole = run([])
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(OSError, match="broken off"):
        run([keep, Break()])
    resumed = run([], tmp_path / "step=2.ckpt")
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name
