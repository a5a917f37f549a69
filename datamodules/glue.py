"""The nine sets of GLUE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from datasets import Dataset

from lightning_kd._checks import expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.loading import load_data
from lightning_kd.models import check_folder

__all__ = ["GLUEDataModule"]

GLUEName = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]


@dataclass(frozen=True)
class _Set:
    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


_SETS: dict[str, _Set] = {
    "cola": _Set(("sentence",), ("matthews",)),
    "mnli": _Set(("premise", "hypothesis")),
    "mrpc": _Set(("sentence1", "sentence2"), ("accuracy", "f1")),
    "qnli": _Set(("question", "sentence")),
    "qqp": _Set(("question1", "question2"), ("accuracy", "f1")),
    "rte": _Set(("sentence1", "sentence2")),
    "sst2": _Set(("sentence",)),
    "stsb": _Set(("sentence1", "sentence2"), ("pearson", "spearman")),
    "wnli": _Set(("sentence1", "sentence2")),
}


class GLUEDataModule(TransformerDataModule):
    """A set of GLUE (Wang et al. 2019, arXiv 1804.07461) with the metrics that GLUE reports for it.

    The labels of GLUE's test splits are not published: `test` needs ``holdout_size``, and `predict` runs on the test
    split. MNLI is validated on the matched split (``val/accuracy``) and the mismatched (``val_mismatched/accuracy``).

    Args:
        name: The set.
        path: Hub name, or a local folder in the same layout.
        tokenizer: Hub name or local folder; on the command line, the student's unless given.
        max_length: Longest row in tokens; a longer one is cut, and the number of those is logged.
        batch_size: Rows in a training batch, on each device.
        eval_batch_size: Rows in an evaluation batch.
        holdout_size: Rows taken out of the training split, to test on: never trained on and never used to choose a
            checkpoint. Rows whose text equals that of a held-out row leave the training split, too.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer; the batches then hold
            the rows as it reads them, too, unless its vocabulary is that of ``tokenizer``. On the command line, each
            teacher's own unless given.
    """

    def __init__(
        self,
        name: GLUEName,
        path: str = "nyu-mll/glue",
        tokenizer: str | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        holdout_size: int = 0,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        holdout_seed: int = 0,
        seed: int = 0,
        teacher_tokenizers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            holdout_size,
            max_train_rows,
            num_workers,
            holdout_seed,
            seed,
            teacher_tokenizers,
        )
        if name not in _SETS:
            raise expected("data.name", f"one of {', '.join(get_args(GLUEName))}", name)
        check_folder("data.path", path)
        self.name = name
        self.path = path
        self.text_columns = _SETS[name].columns
        self.metric_names = _SETS[name].metrics
        if name == "mnli":
            self.evaluation_names = ("", "mismatched")
            self.validation_splits = ("validation_matched", "validation_mismatched")

    def _name(self) -> str:
        return f"{self.path} ({self.name})"

    def load_split(self, split: str) -> Dataset | None:
        if self.name == "mnli" and split == "test":
            split = "test_matched"
        return load_data(self.path, self.name).get(split)
