"""What a fit with a QuantizationCallback leaves behind, and when it refuses to start."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from lightning_kd import DistillationModule, InputError, ModelSource, Runner
from lightning_kd.callbacks import QuantizationCallback, StudentExport
from lightning_kd.losses import SoftTargetKL
from lightning_kd.quantization import DynamicInt8, ONNXRuntimeInt8, OpenVINOInt8, Quantizer
from tests.conftest import needs_extra

Make = Callable[..., Any]


BATCH = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}


class Recorder(DynamicInt8):
    """Keeps what it is given."""

    needs_calibration = True

    def __init__(self) -> None:
        self.calibration: list[dict[str, Tensor]] = []
        self.state: dict[str, Tensor] = {}
        self.training = True

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        self.calibration = [dict(batch) for batch in calibration]
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.training = any(module.training for module in model.modules())
        super().convert(model, [], folder, keep_float)

    def rows(self) -> list[list[int]]:
        """The tokens of each row, without padding."""
        return [
            ids[mask.bool()].tolist()
            for batch in self.calibration
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]


class Failing(DynamicInt8):
    """Breaks off when a part of the folder is written."""

    def convert(
        self,
        model: PreTrainedModel,
        calibration: Sequence[Mapping[str, Tensor]],
        folder: Path,
        keep_float: Collection[str] = (),
    ) -> None:
        super().convert(model, calibration, folder, keep_float)
        raise RuntimeError("the disk is full")


class Spoil(L.Callback):
    """Moves the student's weights far away at the start of the second epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.classifier.weight.mul_(-50)


class Batches(L.Callback):
    """Counts the batches that are trained on."""

    count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("backend", [DynamicInt8, OpenVINOInt8, ONNXRuntimeInt8], ids=lambda b: b.__name__)
def test_folder_is_complete(
    backend: type[Quantizer], tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a folder without label names or tokenizer: it opens, and says LABEL_0 or cuts where training did not."""
    needs_extra(backend())
    callback = QuantizationCallback(backend(), str(tmp_path / "new" / "int8"), calibration_batches=2)
    trainer = make_trainer(callbacks=[callback])
    module = distillation()
    data = glue(max_length=24)
    trainer.fit(module, datamodule=data)
    assert callback.folder == tmp_path / "new" / "int8"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["int8"], "no .partial, no .old"
    assert (callback.folder / backend.file_name).is_file()
    config = AutoConfig.from_pretrained(callback.folder)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.architectures == ["BertForSequenceClassification"]
    tokenizer = AutoTokenizer.from_pretrained(callback.folder)
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab() and tokenizer.model_max_length == 24
    texts = [sentence for (sentence,) in data.texts("validation")]
    records = Runner.open(callback.folder).predict(texts)
    module.eval()
    with torch.no_grad():
        logits = module.model(**data.tokenizer(texts, padding=True, return_tensors="pt")).logits
    wanted = [config.id2label[label] for label in logits.argmax(-1).tolist()]
    assert sum(record["label"] == label for record, label in zip(records, wanted, strict=True)) >= 8


def test_calibrates_on_training_rows_alone(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops ranges from being found on the rows that the report measures on, which flatters the int8 model."""
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        data = glue(holdout_size=4, batch_size=4)
        make_trainer(callbacks=[QuantizationCallback(recorder, calibration_batches=2)]).fit(distillation(), data)
    tokens = {split: data.tokenizer([t for (t,) in data.texts(split)])["input_ids"] for split in data.sizes}
    assert set(tokens) == {"train", "validation", "test"}
    rows = recorders[0].rows()
    assert len(rows) == 8, "2 batches of 4"
    assert all(row in tokens["train"] for row in rows)
    assert not any(row in tokens["validation"] or row in tokens["test"] for row in rows)
    assert set(recorders[0].calibration[0]) == {"input_ids", "attention_mask", "token_type_ids"}
    for first, second in zip(recorders[0].calibration, recorders[1].calibration, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first), "another draw in another run"


def test_calibration_can_be_larger_than_the_data(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a small data set from failing after its training."""
    recorder = Recorder()
    make_trainer(callbacks=[QuantizationCallback(recorder)]).fit(distillation(), glue())
    assert len(recorder.rows()) == 24


def test_a_data_module_of_ones_own_calibrates(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a foreign data module from being calibrated on nothing."""

    class Foreign(L.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.own = glue()
            self.own.setup("fit")

        def train_dataloader(self) -> Any:
            return self.own.train_dataloader()

        def val_dataloader(self) -> Any:
            return self.own.val_dataloader()

    recorder = Recorder()
    make_trainer(callbacks=[QuantizationCallback(recorder, calibration_batches=2)]).fit(distillation(), Foreign())
    assert len(recorder.calibration) == 2 and "labels" not in recorder.calibration[0]


def test_best_checkpoint_is_quantized(tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops the last weights from being shipped under the best weights' score."""
    recorder = Recorder()
    best = ModelCheckpoint(tmp_path, monitor="val/loss", mode="min")
    trainer = make_trainer(max_epochs=2, callbacks=[Spoil(), best, QuantizationCallback(recorder)])
    module = distillation()
    trainer.fit(module, datamodule=glue())
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["epoch"] == 0 and not recorder.training
    assert all(value.equal(state["state_dict"][f"student.{name}"]) for name, value in recorder.state.items())
    assert not recorder.state["classifier.weight"].equal(module.model.classifier.weight)


@pytest.mark.parametrize("trained", ["bf16-true", "16-true", "64-true", "bfloat16"])
def test_what_is_trained_in_another_precision_is_quantized_as_float32(
    trained: str, tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make, tiny_model: Make
) -> None:
    """Stops an int8 folder that nothing opens, as its other weights are of a type that no runtime of the CPU takes."""
    by_trainer = trained.endswith("true")
    source = ModelSource(str(tiny_model(seed=1)), **({} if by_trainer else {"dtype": trained}))
    int8 = QuantizationCallback(DynamicInt8())
    options = {"precision": trained} if by_trainer else {}
    trainer = make_trainer(callbacks=[StudentExport(), int8], default_root_dir=tmp_path, **options)
    module = distillation(student=source)
    trainer.fit(module, datamodule=glue())
    assert module.model.dtype == {"16": torch.float16, "64": torch.float64}.get(trained[:2], torch.bfloat16)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.dtype == torch.float32 and AutoConfig.from_pretrained(tmp_path / "int8").dtype == torch.float32
    for name, value in module.model.state_dict().items():
        assert torch.equal(student.state_dict()[name], value.float()), name
    DynamicInt8().convert(student.eval(), [], tmp_path)
    student.config.save_pretrained(tmp_path)
    found, expected = (DynamicInt8.open(folder)(BATCH)["logits"] for folder in (tmp_path / "int8", tmp_path))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("trained", ["bf16-true", "bfloat16"])
def test_rounding_is_of_float32(
    trained: str, distillation: Make, glue: Make, make_trainer: Make, tiny_model: Make
) -> None:
    """Stops a training under a rounding that is not the int8 model's, or an error of torch's in the first batch."""
    by_trainer = trained.endswith("true")
    source = ModelSource(str(tiny_model(seed=1)), **({} if by_trainer else {"dtype": trained}))
    callbacks = [QuantizationCallback(DynamicInt8(), mode="qat")]
    trainer = make_trainer(callbacks=callbacks, **({"precision": trained} if by_trainer else {}))
    with pytest.raises(InputError, match=r"weights are bfloat16, and `mode: qat` rounds float32: take .*bf16-mixed"):
        trainer.fit(distillation(student=source), datamodule=glue())
    make_trainer(callbacks=callbacks, precision="bf16-mixed").fit(distillation(), datamodule=glue())


def test_the_module_stays_float(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops `trainer.test` after the fit from measuring an int8 student as the float one."""
    trainer = make_trainer(callbacks=[QuantizationCallback(DynamicInt8())])
    module, data = distillation(), glue(holdout_size=4)
    trainer.fit(module, datamodule=data)
    accuracy = trainer.callback_metrics["val/accuracy"].item()
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}
    assert {type(m).__module__.partition(".ao.")[0] for m in module.model.modules()}.isdisjoint({"torch"})
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["val/accuracy"] == pytest.approx(accuracy)
    assert "test/accuracy" in trainer.test(module, datamodule=data, verbose=False)[0]


def test_a_failing_quantizer_leaves_the_float_student(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops half a folder from being taken for an int8 model."""
    trainer = make_trainer(callbacks=[StudentExport(), QuantizationCallback(Failing())])
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.fit(distillation(), datamodule=glue())
    assert [path.name for path in Path(trainer.default_root_dir).iterdir()] == ["student"]
    assert (Path(trainer.default_root_dir) / "student" / "model.safetensors").is_file()


def test_a_failing_quantizer_keeps_the_folder_before(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a second run that fails from taking the first run's model away."""
    trainer = make_trainer(callbacks=[QuantizationCallback(Failing())])
    folder = Path(trainer.default_root_dir) / "int8"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.fit(distillation(), datamodule=glue())
    assert [path.name for path in folder.parent.iterdir()] == ["int8"]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_stood_there_is_replaced(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a file of another backend from staying, which the runner would open instead."""
    trainer = make_trainer(callbacks=[QuantizationCallback(DynamicInt8())])
    folder = Path(trainer.default_root_dir) / "int8"
    folder.mkdir()
    (folder / OpenVINOInt8.file_name).write_text("of an earlier run")
    (folder / "config.json").write_text("{}")
    trainer.fit(distillation(), datamodule=glue())
    assert (folder / DynamicInt8.file_name).is_file() and not (folder / OpenVINOInt8.file_name).exists()


@pytest.mark.parametrize("folders", [(None, None), ("{root}/int8", None), ("a", "a")])
def test_two_callbacks_on_one_folder_are_refused(
    folders: tuple[str | None, str | None], tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops the second int8 model from replacing the first, and the report from showing one model twice."""
    dirs = [folder and folder.format(root=tmp_path) for folder in folders]
    batches = Batches()
    quantizers = [QuantizationCallback(q, folder) for q, folder in zip((DynamicInt8(), Recorder()), dirs, strict=True)]
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[*quantizers, batches])
    with pytest.raises(InputError, match=r"Two QuantizationCallbacks write to .*: give one of them an export_dir\."):
        trainer.fit(distillation(), datamodule=glue())
    assert batches.count == 0


def test_two_callbacks_write_two_folders(tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops two callbacks of one class from sharing one state in the checkpoint."""
    callbacks = [QuantizationCallback(DynamicInt8(), str(tmp_path / name)) for name in "ab"]
    assert len({callback.state_key for callback in callbacks}) == 2
    make_trainer(callbacks=[*callbacks]).fit(distillation(), datamodule=glue())
    assert all((tmp_path / name / "int8.safetensors").is_file() for name in "ab")


@pytest.mark.parametrize(("backend", "package"), [(OpenVINOInt8, "nncf"), (ONNXRuntimeInt8, "onnxscript")])
def test_a_missing_extra_is_refused_before_the_first_batch(
    backend: type[Quantizer],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    distillation: Make,
    glue: Make,
    make_trainer: Make,
) -> None:
    """Stops a training of hours from ending in a ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, package, None)
    batches = Batches()
    trainer = make_trainer(callbacks=[batches, QuantizationCallback(backend())])
    with pytest.raises(InputError, match=r"pip install 'lightning-kd\["):
        trainer.fit(distillation(), datamodule=glue())
    assert batches.count == 0 and not list(Path(trainer.default_root_dir).iterdir())


def test_a_trial_run_writes_nothing(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops `fast_dev_run` from replacing a trained model with one that has seen one batch."""
    callback = QuantizationCallback(Failing())
    trainer = make_trainer(fast_dev_run=True, callbacks=[callback])
    trainer.fit(distillation(), datamodule=glue())
    assert callback.folder is None and not list(Path(trainer.default_root_dir).iterdir())


@pytest.mark.parametrize("count", [0, -1])
def test_calibration_batches_are_checked(count: int) -> None:
    """Stops a static backend from being left without batches after the training."""
    with pytest.raises(InputError, match=rf"`calibration_batches` to be at least 1, but got {count}\."):
        QuantizationCallback(DynamicInt8(), calibration_batches=count)


def test_regression_has_one_output(
    tmp_path: Path, tiny_model: Make, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops the folder of a regression from naming labels that it does not have."""
    callback = QuantizationCallback(DynamicInt8(), str(tmp_path / "int8"))
    module = distillation(student=ModelSource(str(tiny_model(num_labels=1))), teachers={}, losses={})
    make_trainer(callbacks=[callback]).fit(module, datamodule=glue("stsb"))
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    records = Runner.open(tmp_path / "int8").predict([("bun", "den"), ("fin", "fin gon")])
    assert [set(record) for record in records] == [{"score"}, {"score"}]


class Watched(DistillationModule):
    """Notes for each training batch whether the student rounds."""

    rounded: list[bool]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.rounded = [*getattr(self, "rounded", []), type(self.model.classifier) is not torch.nn.Linear]
        return super().training_step(batch, batch_idx)


def test_quantization_aware_training_measures_what_it_writes(
    tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops the metric of a fit from being that of another model than the one in the folder."""
    callback = QuantizationCallback(DynamicInt8(), mode="qat")
    module, data = distillation(Watched, losses={"soft": SoftTargetKL()}), glue()
    trainer = make_trainer(max_epochs=2, callbacks=[callback, StudentExport()])
    trainer.fit(module, datamodule=data)
    assert module.rounded == [True] * 6
    assert callback.folder is not None
    forward = DynamicInt8.open(callback.folder)
    task, total, rows = module.task, 0.0, 0
    for batch in data.evaluation_batches("validation"):
        loss = task.hard_label_loss(forward(task.model_inputs(batch)), batch)
        total, rows = total + loss.item() * len(batch["labels"]), rows + len(batch["labels"])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(total / rows, abs=1e-6)
    module.eval()
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"] != pytest.approx(
        total / rows, abs=1e-6
    ), "the module is float again"
    folder = Path(trainer.default_root_dir) / "student"
    student = type(module.model).from_pretrained(folder)
    assert all(value.equal(student.state_dict()[name]) for name, value in module.model.state_dict().items())


@pytest.mark.parametrize(
    ("start", "rounded"), [(0.0, [True] * 6), (1.0, [False] * 3 + [True] * 3), (1.5, [False] * 5 + [True])]
)
def test_rounding_starts_when_it_is_told_to(
    start: float, rounded: list[bool], distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a student from being rounded before it has learnt anything, against its user's will."""
    module = distillation(Watched)
    callback = QuantizationCallback(DynamicInt8(), mode="qat", start_epoch=start)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(module, datamodule=glue())
    assert module.rounded == rounded


def test_epochs_in_float_are_compared_as_int8_too(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops an epoch that is good in float alone from being chosen over all that were trained for int8."""
    losses = []
    for mode in ("ptq", "qat"):
        module = distillation(Watched)
        callback = QuantizationCallback(DynamicInt8(), mode=mode, start_epoch=1.0)
        seen = ValidationLosses()
        L.seed_everything(1)
        make_trainer(max_epochs=2, callbacks=[callback, seen]).fit(module, datamodule=glue())
        losses.append(seen.values[-2:])
    assert losses[0][0] != losses[1][0], "the first epoch, trained in float by both"
    assert losses[0][0] == pytest.approx(losses[1][0], abs=0.1)


class ValidationLosses(L.Callback):
    """Keeps the loss of each validation."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.values.append(trainer.callback_metrics["val/loss"].item())


def test_an_interrupted_training_ends_in_the_same_folder(
    tmp_path: Path, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a resumed run from going on in float, or from rounding from other ranges."""
    states = []
    for interrupted in (False, True):
        root = tmp_path / str(interrupted)
        checkpoint = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1, monitor="val/loss")
        callback = QuantizationCallback(DynamicInt8(), str(root / "int8"), mode="qat", start_epoch=0.5)
        L.seed_everything(1)
        if interrupted:
            make_trainer(max_epochs=3, limit_train_batches=3, callbacks=[checkpoint, callback, _Stop()]).fit(
                distillation(), datamodule=glue()
            )
            assert not callback._started
        module = distillation(Watched)
        path = str(root / "epoch=0.ckpt") if interrupted else None
        make_trainer(max_epochs=3, callbacks=[checkpoint, callback]).fit(module, datamodule=glue(), ckpt_path=path)
        assert module.rounded[-6:] == [True] * 6
        states.append((root / "int8" / "int8.safetensors").read_bytes())
    assert states[0] == states[1]


class _Stop(L.Callback):
    """Ends the training after its first epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: [QuantizationCallback(OpenVINOInt8(), mode="qat")], "OpenVINOInt8 quantizes after training alone"),
        (
            lambda: [QuantizationCallback(DynamicInt8(), name, mode="qat") for name in "ab"],
            "Two QuantizationCallbacks have mode: qat",
        ),
        (lambda: [QuantizationCallback(DynamicInt8(), mode="qat", start_epoch=1)], "`start_epoch` to be below"),
    ],
)
def test_a_training_that_cannot_be_for_int8_is_refused(
    callbacks: Callable[[], list[L.Callback]], message: str, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops a training of hours from ending in a student that was never rounded."""
    batches = Batches()
    with pytest.raises(InputError, match=message):
        make_trainer(callbacks=[batches, *callbacks()]).fit(distillation(), datamodule=glue())
    assert batches.count == 0
