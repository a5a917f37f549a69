"""Teachers that run once over the training rows instead of once an epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, RunError, expected
from lightning_kd._progress import stage
from lightning_kd.callbacks._fit_end import data_of, is_trial, on_rank_zero, output_path
from lightning_kd.finite import non_finite_teacher
from lightning_kd.logit_cache import (
    CachedLogits,
    LogitWriter,
    Rows,
    Stored,
    fingerprint_of_rows,
    fingerprint_of_teacher,
)
from lightning_kd.module import DistillationModule
from lightning_kd.tasks import Task

__all__ = ["TeacherCache"]

#: What a teacher reads of a row.
_READ = ("input_ids", "token_type_ids")


class TeacherCache(L.Callback):
    """Computes the logits of each teacher once, before the first batch, and reads them from disk in every epoch.

    The logits are stored by row, so the batches may be drawn in any order, on any number of processes. What is there
    already is used again, by this run and by later ones: a teacher whose logits are all cached is not even loaded. They
    are of one teacher (its weights), one set of training rows, one tokenizer and one ``max_length``; where one of these
    has changed the run stops before the first batch. An interrupted computation goes on where it was. Processes share
    the work; all of them have to see the folder.

    A teacher of which a loss reads more than logits (hidden states, attention) runs with every batch, as without the
    callback.

    Args:
        path: Folder; ``<trainer.default_root_dir>/teacher_cache`` unless given. Each teacher has a folder in it.
        dtype: That the logits are stored in. Half precision costs a relative error of 0.0005 at most.
        top_k: Store this many of the largest logits of each distribution, for tasks with very many classes; the others
            are given back as equal, with the probability that they have together at temperature 1. All unless given.

    Raises:
        InputError: Before the first batch, if what is cached is of another teacher, other rows, another tokenizer or
            other limits, is damaged, or would not fit on the disk.
    """

    def __init__(self, path: str | None = None, dtype: Stored = "float16", top_k: int | None = None) -> None:
        if dtype not in ("float16", "float32"):
            raise expected("dtype", "float16 or float32", dtype)
        if top_k is not None and top_k < 1:
            raise expected("top_k", "at least 1", top_k)
        self.path = path
        self.dtype = dtype
        self.top_k = top_k
        self._missing: dict[str, dict[str, Any]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DistillationModule)
        if stage != "fit" or is_trial(trainer):
            return
        if not hasattr(data_of(trainer), "token_rows"):
            raise InputError("TeacherCache needs a data module of lightning_kd.datamodules.")
        self._missing = {}
        for name in pl_module.teacher_sources:
            if not re.fullmatch(r"\w[\w.-]*", name):  # it is the name of a folder
                raise expected("model.teachers", "letters, digits and _.- in a teacher's name, with TeacherCache", name)

        def open_cache(name: str) -> CachedLogits | None:
            identity = self._identity(trainer, pl_module, name)
            folder = self._folder(trainer, name)
            if folder.exists():
                cached = CachedLogits(folder, self._rows(trainer, name), identity)
                rank_zero_info(f"The logits of teacher {name!r} come from {folder}")
                return cached
            self._missing[name] = identity
            return None

        pl_module.use_cache(open_cache)

    def _folder(self, trainer: L.Trainer, name: str) -> Path:
        return output_path(trainer, self.path, "teacher_cache") / name

    @staticmethod
    def _rows(trainer: L.Trainer, name: str) -> Rows:
        rows = data_of(trainer).token_rows("train", name)
        starts = rows.offsets if rows.windows is None else rows.offsets[rows.windows]
        return Rows(data_of(trainer).token_rows("train").index, starts)

    def _identity(self, trainer: L.Trainer, module: DistillationModule, name: str) -> dict[str, Any]:
        rows = data_of(trainer).token_rows("train", name)
        tokens = {key: rows.tokens[key] for key in _READ if key in rows.tokens}
        return {
            "format": 3,
            "teacher": fingerprint_of_teacher(module.teacher_sources[name]),
            "rows": fingerprint_of_rows(tokens, rows.offsets, rows.windows, rows.index),
            "labels": data_of(trainer).label_names,
            "precision": str(trainer.precision),
            "dtype": self.dtype,
            "top_k": self.top_k,
        }

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        for name, identity in self._missing.items():
            self._compute(trainer, pl_module, name, identity)
            folder = self._folder(trainer, name)
            pl_module.replace_teacher(name, CachedLogits(folder, self._rows(trainer, name), identity))
        self._missing = {}

    def _compute(self, trainer: L.Trainer, module: DistillationModule, name: str, identity: dict[str, Any]) -> None:
        started = time.monotonic()
        model = module.teachers[name]
        model.to(module.device)  # type: ignore[arg-type]  # a device is one
        rows = self._rows(trainer, name)
        writer = LogitWriter(self._folder(trainer, name), rows, identity, self.dtype, self.top_k)
        run = _Run(trainer, module, model, name, self.dtype)

        def prepare() -> None:
            writer.prepare({key: (module.task.per_token, values[0]) for key, values in run([0]).items()})

        on_rank_zero(trainer, prepare)
        missing = writer.missing()
        own = [shard for shard in missing if shard % trainer.world_size == trainer.global_rank]
        again = "the rest of " if len(missing) < -(-len(rows) // len(writer.rows_of(0))) else ""
        rank_zero_info(f"Computing {again}the logits of teacher {name!r} for {len(rows):,} rows, once")
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
        with stage(f"Caching {name}", sum(len(writer.rows_of(shard)) for shard in own), "rows", shown) as progress:
            for shard in own:
                batches = run.batches(writer.rows_of(shard), rows)
                writer.write(shard, (progress.passing(batch, len(batch[0])) for batch in batches))
        trainer.strategy.barrier()
        on_rank_zero(trainer, writer.finish)
        size = sum(file.stat().st_size for file in writer.folder.iterdir()) / 1e6
        seconds = time.monotonic() - started
        rank_zero_info(f"Logits of teacher {name!r}: {writer.folder}, {size:,.1f} MB, in {seconds:,.0f} s")


class _Run:
    """A teacher on training rows, as a training step would run it."""

    def __init__(
        self, trainer: L.Trainer, module: DistillationModule, model: PreTrainedModel, name: str, dtype: Stored
    ) -> None:
        self.trainer = trainer
        self.task: Task = module.task
        self.device = module.device
        self.model = model
        self.name = name
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The logits by name, ``(rows, C)``, or of all tokens one after the other."""
        batch = data_of(self.trainer).batches_of("train", [list(places)])[0]
        own: Mapping[str, Tensor] = batch.get("teachers", {}).get(self.name, batch)
        inputs = {key: value.to(self.device) for key, value in self.task.model_inputs(own).items()}
        with self.trainer.precision_plugin.forward_context():
            logits = self.task.logits(self.model(**inputs))
        mask = own["attention_mask"].bool()
        found = {
            key: values[mask.to(values.device)] if self.task.per_token else values for key, values in logits.items()
        }
        self._check(found, batch["index"])
        return found

    def _check(self, logits: Mapping[str, Tensor], index: Tensor) -> None:
        """Refuse what no loss could be made of; minus infinity, a probability of 0, is none of it."""
        infinite = {"nan": torch.inf, "posinf": torch.inf, "neginf": 0.0}
        largest = max(float(values.float().nan_to_num(**infinite).max()) for values in logits.values())
        where = f"among the training rows {int(index.min())} to {int(index.max())}"
        if largest == torch.inf:
            raise non_finite_teacher(self.name, where)
        if self.dtype == "float16" and largest > torch.finfo(torch.float16).max:
            raise RunError(
                f"The teacher {self.name!r} gives logits of up to {largest:.0f} {where}, which float16 cannot hold: "
                "give TeacherCache dtype float32."
            )

    def batches(self, places: range, rows: Rows) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """All of some rows, those of like length together."""
        lengths = np.diff(rows.starts)[places.start : places.stop]
        order = places.start + np.argsort(lengths, kind="stable")
        size = data_of(self.trainer).eval_batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size].tolist()
            yield chosen, self(chosen)
