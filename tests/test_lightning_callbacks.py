"""Lightning's own: callbacks that copy the module, train in between or want another one, and loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule, InputError, ModelSource, MultiTaskModule, TaskDistillation
from lightning_kd.callbacks import (
    DistillationLossCallback,
    GradualPruning,
    PerTask,
    QuantizationCallback,
    Resume,
    StudentExport,
)
from lightning_kd.datamodules import MultiTaskDataModule
from lightning_kd.losses import HiddenStateMSE, LayerMap, SoftTargetKL
from lightning_kd.quantization import DynamicInt8

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging")  # nothing is sharded here
Make = Callable[..., Any]
DECAY = 0.75


def hidden() -> HiddenStateMSE:
    return HiddenStateMSE(LayerMap("uniform"))


class Steps(L.Callback):
    """Keeps the student's weights before the first step and after each."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def _keep(self, module: DistillationModule) -> None:
        self.weights.append({name: value.clone() for name, value in module.model.named_parameters()})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._keep(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self._keep(pl_module)


@pytest.fixture
def taught(tiny_model: Make, distillation: Make) -> Callable[[], DistillationModule]:
    """Makes a module of which a loss has a projection: the teacher is wider than the student."""
    wide = ModelSource(str(tiny_model(hidden_size=24, num_attention_heads=2)))
    losses = {"soft": SoftTargetKL, "hidden": hidden}
    return lambda: distillation(teachers={"teacher": wide}, losses={name: make() for name, make in losses.items()})


def exported(root: Path) -> dict[str, Tensor]:
    return load_file(root / "student" / "model.safetensors")


def test_the_average_is_exported(taught: Make, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops an average of a module that has no student yet, or an export of what was averaged in its place."""
    steps, average = Steps(), EMAWeightAveraging(decay=DECAY)
    trainer = make_trainer(max_epochs=2, callbacks=[average, steps, StudentExport()], default_root_dir=tmp_path)
    trainer.fit(taught(), datamodule=glue())
    assert len(steps.weights) == 1 + 6
    expected = {name: value.double() for name, value in steps.weights[0].items()}
    for number, weights in enumerate(steps.weights[1:]):
        for name, value in weights.items():  # the first update copies
            share = 0.0 if number == 0 else DECAY
            expected[name] = share * expected[name] + (1 - share) * value.double()
    found = exported(tmp_path)
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value, atol=1e-6), name
    last = steps.weights[-1]["bert.pooler.dense.weight"]
    assert not torch.allclose(found["bert.pooler.dense.weight"], last, atol=1e-6)


@pytest.mark.parametrize("kind", [EMAWeightAveraging, WeightAveraging])
@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_the_best_average_goes_on_after_an_interruption(
    kind: type[WeightAveraging], mode: Any, taught: Make, glue: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Stops a checkpoint that holds one of the two sets of weights, or has them the wrong way round."""

    def fit(name: str, **options: Any) -> Path:
        root: Path = tmp_path / name
        best = ModelCheckpoint(root, "{epoch}", monitor="val/loss", save_top_k=-1, save_last=True)
        int8 = QuantizationCallback(DynamicInt8(), mode=mode)
        callbacks = [Resume(), best, kind(), StudentExport(), int8]
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, default_root_dir=root)
        trainer.fit(taught(), datamodule=glue(), **options)
        best_state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        assert all(torch.equal(best_state[f"student.{key}"], value) for key, value in exported(root).items())
        return root

    whole = fit("whole")
    resumed = fit("resumed", ckpt_path=str(whole / "epoch=0.ckpt"))
    first, second = (torch.load(root / "last.ckpt", weights_only=True) for root in (whole, resumed))
    for key in ("state_dict", "current_model_state"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key])
    name = "student.classifier.weight"
    assert not torch.equal(first["state_dict"][name], first["current_model_state"][name])


def test_the_average_of_several_tasks(tiny_model: Make, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops the encoder that students share from being averaged once a task, or not at all."""
    tasks = ("mrpc", "sst2")
    module = MultiTaskModule(ModelSource(str(tiny_model())), {name: TaskDistillation() for name in tasks})
    callbacks = [EMAWeightAveraging(decay=DECAY), PerTask(StudentExport())]
    trainer = make_trainer(callbacks=callbacks, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=MultiTaskDataModule({name: glue(name) for name in tasks}))
    found = [load_file(tmp_path / "student" / name / "model.safetensors") for name in tasks]
    key = "bert.encoder.layer.0.output.dense.weight"
    start = load_file(tiny_model() / "model.safetensors")[key]
    assert torch.equal(found[0][key], found[1][key]) and not torch.equal(found[0][key], start)


def test_a_loss_that_comes_after_the_average_is_refused(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops weights from being averaged with those of another parameter, as the lists of the two differ."""
    loss = DistillationLossCallback("hidden", hidden())
    trainer = make_trainer(callbacks=[EMAWeightAveraging(), loss])
    with pytest.raises(InputError, match=r"EMAWeightAveraging must come after every DistillationLossCallback"):
        trainer.fit(distillation(), datamodule=glue())
    make_trainer(callbacks=[loss, EMAWeightAveraging()]).fit(distillation(), datamodule=glue())


def test_the_batch_size_is_found(taught: Make, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a training in between from taking the teacher, or what listens to the models, with it."""
    finder = BatchSizeFinder(init_val=3, max_trials=2, steps_per_trial=1)
    module, data = taught(), glue()
    trainer = make_trainer(callbacks=[finder, StudentExport()], default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    assert data.batch_size == 6 and trainer.global_step == 4 and exported(tmp_path)


@pytest.mark.parametrize(
    ("callback", "way_out"),
    [
        (lambda: LearningRateFinder(), "`model.optimizer`: try several with `lightning-kd sweep`"),
        (lambda: BackboneFinetuning(), "derive from BaseFinetuning"),
        (lambda: ModelPruning("l1_unstructured"), "take `lightning-kd prune` or GradualPruning"),
        (lambda: StochasticWeightAveraging(1e-3), "the best val/loss: take EMAWeightAveraging"),
    ],
    ids=["rate", "backbone", "zeros", "average"],
)
def test_what_cannot_work_is_refused(
    callback: Callable[[], L.Callback], way_out: str, distillation: Make, glue: Make, make_trainer: Make
) -> None:
    """Stops an error of Lightning's about an attribute, or an average that nobody ever sees."""
    trainer = make_trainer(callbacks=[ModelCheckpoint(monitor="val/loss"), callback()])
    with pytest.raises(InputError, match=way_out):
        trainer.fit(distillation(), datamodule=glue())


def test_gradual_pruning_has_no_average(distillation: Make, glue: Make, make_trainer: Make) -> None:
    """Stops a training that ends in an average of another shape than the student's."""
    trainer = make_trainer(callbacks=[GradualPruning(intermediate_size=12), EMAWeightAveraging()])
    with pytest.raises(InputError, match="GradualPruning cannot run beside WeightAveraging"):
        trainer.fit(distillation(), datamodule=glue())


def test_loaders_of_ones_own(distillation: Make, glue: Make, make_trainer: Make, tmp_path: Path) -> None:
    """Stops a module that only works with the data modules here, which what it inherits from promises otherwise."""
    data = glue()
    data.prepare_data()
    data.setup("fit")
    train, rows = ([batch for batch in data.evaluation_batches(split)] for split in ("train", "validation"))
    plain = [[{k: b[k] for k in ("input_ids", "attention_mask", "labels")} for b in each] for each in (train, rows)]
    loaders = [DataLoader(each, batch_size=None) for each in plain]
    module, int8 = distillation(), QuantizationCallback(DynamicInt8())
    last = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [Resume(), last, StudentExport(), int8]
    trainer = make_trainer(callbacks=callbacks, default_root_dir=tmp_path)
    trainer.fit(module, *loaders)
    assert trainer.global_step == len(plain[0]) and (tmp_path / "int8" / DynamicInt8.file_name).is_file()
    with torch.no_grad():
        logits = torch.cat([module.model.eval()(**batch).logits for batch in plain[1]])
    labels = torch.cat([batch["labels"] for batch in plain[1]])
    (found,) = trainer.validate(module, loaders[1], verbose=False)
    assert found["val/accuracy"] == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    assert found["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    again = make_trainer(callbacks=callbacks, default_root_dir=tmp_path, max_epochs=2)
    again.fit(distillation(), *loaders, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.global_step == 2 * len(plain[0])
