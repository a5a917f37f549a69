"""Parts of the student that go one after the other while it is distilled."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.callbacks._fit_end import callbacks_of, data_of
from lightning_kd.callbacks.quantization import QuantizationCallback
from lightning_kd.callbacks.schedules import ScheduleCallback
from lightning_kd.cutting import Kept, cut, cut_state, mask, parts_of
from lightning_kd.module import DistillationModule
from lightning_kd.pruning import Importance, Shape, choose, importance
from lightning_kd.schedules import Cubic, Schedule

__all__ = ["GradualPruning"]

_PARTS = ("neurons", "heads", "hidden")


class GradualPruning(ScheduleCallback):
    """Structured pruning while the student learns: feed-forward neurons, and hidden dimensions with their heads.

    In ``num_cuts`` steps of the schedule the least important of what is left is masked: importance is that of
    :func:`~lightning_kd.pruning.importance`, measured anew before each of them on training batches. What is masked
    stays so. Masked, the student computes what the smaller one does; when training ends it becomes that one, so that
    every export is a plain transformers folder of a smaller configuration. Until then a step costs what it costs whole.

    Checkpoints hold the whole student and what is masked, and a run that is resumed goes on with both. The best
    checkpoint is chosen among those behind the last cut, as earlier ones are of larger students.

    Relations:
        ``prune`` cuts once, in front of the training, which is then as fast as the small student is. A model whose
        heads or dimensions are another number in each layer, a plain configuration cannot say; neither can it say
        fewer heads of the same size without fewer dimensions.

    Args:
        intermediate_size: Feed-forward neurons that each layer keeps; all unless given.
        hidden_size: Dimensions of the residual stream that are kept, a multiple of the size of a head; the number of
            heads follows. All unless given.
        schedule: From progress in [0, 1] to the share of what is to go that is gone; rising from 0 or more to 1. The
            cubic one of Zhu and Gupta (2017, arXiv 1710.01878) unless given: fast at first, when there is plenty.
        num_steps: Optimizer steps from the first cut, which is in front of the first step, to one after the last; the
            first half of the training unless given.
        num_cuts: How often something goes, 1 or more. With 1 all goes at once in front of the first step.
        importance_batches: Training batches that importance is measured on, 1 or more, always the same.

    Raises:
        InputError: If a number is out of range or nothing is to be cut; before the first batch, if the student cannot
            be cut to that, the schedule does not rise to 1, or the training is quantization-aware.
    """

    def __init__(
        self,
        intermediate_size: int | None = None,
        hidden_size: int | None = None,
        schedule: Schedule = Cubic(0.0, 1.0),  # noqa: B008  # frozen
        num_steps: int | None = None,
        num_cuts: int = 10,
        importance_batches: int = 8,
    ) -> None:
        super().__init__(schedule, num_steps)
        for name, value in (("num_cuts", num_cuts), ("importance_batches", importance_batches)):
            if value < 1:
                raise expected(name, "at least 1", value)
        if intermediate_size is None and hidden_size is None:
            raise InputError("GradualPruning has nothing to prune: give it an intermediate_size or a hidden_size.")
        self.shape = Shape(intermediate_size, hidden_size)
        self.num_cuts = num_cuts
        self.importance_batches = importance_batches
        #: Cuts made so far, and what they have left.
        self.done = 0
        self.kept = Kept()
        self._handles: list[RemovableHandle] = []

    def check(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise expected("schedule", "shares from 0 to 1", value)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        shares = [self.schedule(number / self.num_cuts) for number in range(self.num_cuts + 1)]
        if shares != sorted(shares) or shares[-1] != 1:
            raise expected("schedule", "shares that rise to 1", [round(share, 3) for share in shares])
        if not hasattr(data_of(trainer), "calibration_batches"):
            raise InputError("GradualPruning needs a data module of lightning_kd.datamodules.")
        if any(isinstance(each, QuantizationCallback) and each.mode == "qat" for each in callbacks_of(trainer)):
            raise InputError(
                "GradualPruning cannot run beside quantization-aware training: set mode: ptq, or train the pruned "
                "student again with mode: qat."
            )
        if any(isinstance(each, WeightAveraging) for each in callbacks_of(trainer)):
            raise InputError("GradualPruning cannot run beside WeightAveraging, whose average it does not cut.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = _student(pl_module)
        parts_of(model)
        self.shape.check(model)
        self._mask(model)  # of what a checkpoint has brought

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.num_steps is None:
            self.steps = max(1, self.steps // 2)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        due = min(self.num_cuts, 1 + int(trainer.global_step * self.num_cuts // self.steps))
        if due > self.done:
            self._cut_to(due, trainer, pl_module)

    def _cut_to(self, due: int, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DistillationModule)
        model, config = module.model, module.model.config
        batches = data_of(trainer).calibration_batches(self.importance_batches)
        modes = [(each, each.training) for each in model.modules()]
        model.eval()
        scores = importance(model, module.task, batches)
        for each, mode in modes:
            each.training = mode
        share = self.schedule(due / self.num_cuts)

        def left(own: int, target: int | None) -> int | None:
            return None if target is None else own - round(share * (own - target))

        hidden, own_heads = self.shape.hidden_size, config.num_attention_heads
        heads = None if hidden is None else hidden * own_heads // config.hidden_size
        numbers = (
            left(scores.neurons.shape[1], self.shape.intermediate_size),
            left(own_heads, heads),
            left(config.hidden_size, hidden),
        )
        scores = Importance(*(getattr(scores, name).cpu() for name in _PARTS))
        kept = choose(scores, *numbers, among=self.kept)
        self.kept = trainer.strategy.broadcast(kept)  # processes on GPUs may round otherwise
        self.done = due
        self._mask(model)
        said = [f"{number} {name}" for number, name in zip(numbers, _PARTS, strict=True) if number is not None]
        rank_zero_info(f"Cut {due} of {self.num_cuts}: {', '.join(said)} are left")
        if due == self.num_cuts:
            _forget_best(trainer)

    def _mask(self, model: PreTrainedModel) -> None:
        self._end()
        self._handles = mask(model, self.kept)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if self.done < self.num_cuts:
            rank_zero_info(f"Training ended after {self.done} of {self.num_cuts} cuts: what is to go goes now")
            self._cut_to(self.num_cuts, trainer, pl_module)
        self._end()
        smaller = cut(pl_module.model, self.kept)
        # checkpoints are of the whole student, the best of them too, which exports are made of
        smaller.register_load_state_dict_pre_hook(partial(_cut_loaded, self.kept))
        pl_module.student = smaller
        self.done, self.kept = 0, Kept()  # of the next fit

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, **{name: getattr(self.kept, name) for name in _PARTS}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]
        self.kept = Kept(**{name: state_dict[name] for name in _PARTS})


def _student(module: L.LightningModule) -> PreTrainedModel:
    return cast(DistillationModule, module).model


def _cut_loaded(kept: Kept, model: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """In front of ``load_state_dict``: the weights of the whole student become those of the smaller one."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    state.update({prefix + name: value for name, value in cut_state(model, kept, own).items()})


def _forget_best(trainer: L.Trainer) -> None:
    """Have the best checkpoint be chosen anew; the files of those so far stay."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            callback.best_k_models = {}
            callback.kth_best_model_path = callback.best_model_path = ""
            callback.best_model_score = None
