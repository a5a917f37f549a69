"""Callbacks for each task of several: what they write, and where."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lightning_kd import InputError, ModelSource, MultiTaskModule, Runner, TaskDistillation
from lightning_kd.callbacks import (
    CompressionReport,
    PerTask,
    PredictionWriter,
    QuantizationCallback,
    StudentExport,
    TeacherCache,
    TemperatureSchedule,
    Theseus,
)
from lightning_kd.datamodules import (
    MultiTaskDataModule,
    SyntheticDataModule,
    SyntheticNERDataModule,
    SyntheticQADataModule,
)
from lightning_kd.losses import SoftTargetKL
from lightning_kd.quantization import DynamicInt8
from lightning_kd.runner import forward_of
from lightning_kd.schedules import Constant
from lightning_kd.tasks import QuestionAnswering, SequenceClassification, TokenClassification

Make = Callable[..., Any]

SHAPE = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
MIXED = {"label": SequenceClassification(), "tags": TokenClassification(), "answer": QuestionAnswering()}
CLASSES = {
    "label": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "answer": AutoModelForQuestionAnswering,
}


def mixed_data() -> MultiTaskDataModule:
    kinds = (SyntheticDataModule, SyntheticNERDataModule, SyntheticQADataModule)
    sizes = {"num_train": 24, "num_validation": 10, "num_test": 6, "batch_size": 8, "eval_batch_size": 4}
    return MultiTaskDataModule({n: kind(**sizes) for n, kind in zip(MIXED, kinds, strict=True)})


def mixed() -> MultiTaskModule:
    source = ModelSource(from_scratch=True, config=SHAPE)
    return MultiTaskModule(source, {n: TaskDistillation(task=task) for n, task in MIXED.items()})


@pytest.fixture(scope="module")
def pairs(tiny_model: Make, glue: Make) -> Callable[..., tuple[MultiTaskModule, MultiTaskDataModule]]:
    """MRPC and SST-2 with a teacher each, all without dropout."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sources = [ModelSource(str(tiny_model(seed=seed, **still))) for seed in (1, 0, 5)]

    def make(**options: Any) -> tuple[MultiTaskModule, MultiTaskDataModule]:
        soft = {"losses": {"soft": SoftTargetKL()}, "hard_label_weight": 0.0}
        own = zip(("mrpc", "sst2"), sources[1:], strict=True)
        tasks = {n: TaskDistillation(teachers={"big": teacher}, **soft) for n, teacher in own}
        return MultiTaskModule(sources[0], tasks, **options), MultiTaskDataModule({n: glue(n) for n in tasks})

    return make


class Spoil(L.Callback):
    """Turns the answers of all students around at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            with torch.no_grad():
                for p in pl_module.parameters():
                    p.mul_(-3)


def test_each_student_is_a_plain_folder_of_the_best_checkpoint(tmp_path: Path, make_trainer: Make) -> None:
    """Stops a folder without the encoder, with a pooler that its task has not, or with the last epoch's weights."""
    best = ModelCheckpoint(tmp_path / "best", monitor="val/mean", mode="max")
    trainer = make_trainer(max_epochs=2, callbacks=[Spoil(), PerTask(StudentExport()), best], default_root_dir=tmp_path)
    data, module = mixed_data(), mixed()
    trainer.fit(module, datamodule=data)
    loaded = MultiTaskModule.load_from_checkpoint(best.best_model_path)
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == sorted(MIXED)
    for name, one in loaded.tasks.items():
        folder = tmp_path / "student" / name
        plain, info = CLASSES[name].from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert plain.config.id2label == one.model.config.id2label
        batch = one.task.model_inputs(data.tasks[name].evaluation_batches("validation")[0])
        with torch.no_grad():
            wanted, got = one.model.eval()(**batch), plain.eval()(**batch)
        for key, value in one.task.logits(wanted).items():
            assert value.equal(one.task.logits(got)[key])
        text = AutoTokenizer.from_pretrained(folder)
        assert text.get_vocab() == data.tasks[name].tokenizer.get_vocab()
    if torch.load(best.best_model_path, weights_only=True)["epoch"] == 0:  # which of the two is a matter of chance
        weight = AutoModelForTokenClassification.from_pretrained(tmp_path / "student" / "tags").classifier.weight
        assert not weight.equal(module.tasks["tags"].model.classifier.weight)


def test_each_student_is_quantized_and_reported(tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops an int8 folder from holding another task's student, and its row from standing in another's report."""
    module, data = pairs()
    logger = CSVLogger(str(tmp_path), "logs")
    callbacks = [
        PerTask(StudentExport()),
        PerTask(QuantizationCallback(DynamicInt8())),
        PerTask(QuantizationCallback(DynamicInt8(), str(tmp_path / "second")), tasks=["sst2"]),
        PerTask(CompressionReport()),
    ]
    make_trainer(callbacks=callbacks, default_root_dir=tmp_path, logger=logger).fit(module, datamodule=data)
    for name, one in module.tasks.items():
        runner = Runner.open(tmp_path / "int8" / name)
        batch = one.task.model_inputs(data.tasks[name].evaluation_batches("validation")[0])
        float_logits = forward_of(one.model.eval(), one.task)(batch)["logits"]
        torch.testing.assert_close(runner.forward(batch)["logits"], float_logits, rtol=0.2, atol=0.5)
        rows = json.loads((tmp_path / name / "report.json").read_text())["rows"]
        int8 = ["int8, torch", *(["int8, torch (sst2)"] if name == "sst2" else [])]
        assert [row["name"] for row in rows] == ["teacher", "student", *int8]
        assert set(rows[0]["metrics"]["validation"]) == set(data.tasks[name].metric_names)
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["sst2"]
    with next((tmp_path / "logs").rglob("metrics.csv")).open() as file:
        header = next(csv.reader(file))
    assert {"report/mrpc/student/validation/f1", "report/sst2/int8, torch/validation/accuracy"} <= set(header)


def test_all_students_can_be_trained_for_int8(tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops one task's rounding from going on in an encoder that is another's, too."""
    module, data = pairs()
    qat = PerTask(QuantizationCallback(DynamicInt8(), mode="qat"))
    kinds: list[set[str]] = []

    class Look(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
            models = [one.model for one in pl_module.tasks.values()]
            kinds.append({type(model.base_model.embeddings.word_embeddings).__name__ for model in models})

    trainer = make_trainer(callbacks=[qat, Look()], default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert kinds[-1] == {"_FakeEmbedding"}
    for name, one in module.tasks.items():
        assert type(one.model.base_model.embeddings.word_embeddings) is torch.nn.Embedding
        assert Runner.open(tmp_path / "int8" / name)


def test_cached_logits_teach_as_the_teachers_do(tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops one task's rows from being given the cached logits of another's rows of the same numbers."""
    weights = []
    for callbacks in ([], [PerTask(TeacherCache(str(tmp_path / "cache"), dtype="float32"))]):
        module, data = pairs(optimizer=partial(torch.optim.SGD, lr=0.1))  # AdamW makes steps of rounding errors
        make_trainer(callbacks=callbacks, max_epochs=2, limit_val_batches=0).fit(module, datamodule=data)
        weights.append(module.state_dict())
        if callbacks:
            assert not any(one.teachers for one in module.tasks.values())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("cache/*/*"))
    assert found == ["cache/mrpc/big", "cache/sst2/big"]


def test_predictions_of_each_task_have_a_file(tmp_path: Path, pairs: Make, make_trainer: Make) -> None:
    """Stops the predictions of several tasks from being written as one list of lists."""
    module, data = pairs()
    trainer = make_trainer(callbacks=[PerTask(PredictionWriter())], default_root_dir=tmp_path)
    trainer.validate(module, datamodule=data, verbose=False)
    with pytest.raises(InputError, match="needs the predictions: leave return_predictions=False out"):
        trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.predict(module, datamodule=data)
    for name, one in module.tasks.items():
        lines = (tmp_path / f"predictions-{name}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["index"] for record in records] == list(range(7))
        forward = forward_of(one.model.eval(), one.task)
        expected: dict[int, str] = {}
        for batch in data.tasks[name].evaluation_batches("predict"):
            labels = forward(one.task.model_inputs(batch))["logits"].argmax(-1).tolist()
            names = (one.model.config.id2label[label] for label in labels)
            expected.update(zip(batch["index"].tolist(), names, strict=True))
        assert [record["label"] for record in records] == [expected[i] for i in range(7)]


def test_batches_reach_the_copy_of_their_task(pairs: Make, make_trainer: Make) -> None:
    """Stops a callback from being given a batch of a task that its module does not know."""
    seen: list[tuple[str, list[int]]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert pl_module.name == trainer.task
            seen.append((trainer.task, batch["index"].tolist()))

    module, data = pairs()
    make_trainer(callbacks=[PerTask(Look())], limit_val_batches=0).fit(module, datamodule=data)
    for name in module.tasks:
        assert sorted(row for task, rows in seen if task == name for row in rows) == list(range(24))


def test_what_cannot_be_is_refused(pairs: Make, glue: Make, distillation: Make, make_trainer: Make) -> None:
    """Stops a misspelt task from leaving its callback without effect."""
    module, data = pairs()
    wrong = PerTask(TemperatureSchedule(Constant(2.0)), tasks=["sst"])
    with pytest.raises(InputError, match=r"`tasks` to be among mrpc, sst2, but got 'sst'\. Did you mean `sst2`\?"):
        make_trainer(callbacks=[wrong]).fit(module, datamodule=data)
    with pytest.raises(InputError, match="PerTask is for a MultiTaskModule: give the trainer the StudentExport itself"):
        make_trainer(callbacks=[PerTask(StudentExport())]).fit(distillation(), datamodule=glue())
    with pytest.raises(InputError, match="Theseus starts a student as its teacher"):
        PerTask(Theseus(Constant(0.5)))
