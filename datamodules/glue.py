"""The nine sets of GLUE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError, expected
from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.loading import load_data
from lightning_kd.models import check_folder

__all__ = ["GLUEDataModule"]

GLUEName = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]


MNLITest = Literal["matched", "mismatched", "diagnostic"]


@dataclass(frozen=True)
class _Set:
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    #: The file of a submission, and whether it holds the labels' names instead of their numbers.
    file: str
    in_words: bool = False


_SETS: dict[str, _Set] = {
    "cola": _Set(("sentence",), ("matthews",), "CoLA"),
    "mnli": _Set(("premise", "hypothesis"), ("accuracy",), "MNLI", in_words=True),
    "mrpc": _Set(("sentence1", "sentence2"), ("accuracy", "f1"), "MRPC"),
    "qnli": _Set(("question", "sentence"), ("accuracy",), "QNLI", in_words=True),
    "qqp": _Set(("question1", "question2"), ("accuracy", "f1"), "QQP"),
    "rte": _Set(("sentence1", "sentence2"), ("accuracy",), "RTE", in_words=True),
    "sst2": _Set(("sentence",), ("accuracy",), "SST-2"),
    "stsb": _Set(("sentence1", "sentence2"), ("pearson", "spearman"), "STS-B"),
    "wnli": _Set(("sentence1", "sentence2"), ("accuracy",), "WNLI"),
}
_MNLI_FILES = {"matched": "MNLI-m", "mismatched": "MNLI-mm", "diagnostic": "AX"}
#: Rows of the test splits as they were published, all of which a submission must have.
_TEST_ROWS = {
    "AX": 1_104,
    "CoLA": 1_063,
    "MNLI-m": 9_796,
    "MNLI-mm": 9_847,
    "MRPC": 1_725,
    "QNLI": 5_463,
    "QQP": 390_965,
    "RTE": 3_000,
    "SST-2": 1_821,
    "STS-B": 1_379,
    "WNLI": 146,
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
        mnli_test: The rows of MNLI that `predict` reads: of the genres of the training split, of others, or the
            diagnostic set of GLUE.
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
        mnli_test: MNLITest = "matched",
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
        if mnli_test not in _MNLI_FILES:
            raise expected("data.mnli_test", f"one of {', '.join(_MNLI_FILES)}", mnli_test)
        if mnli_test != "matched" and name != "mnli":
            raise expected("data.mnli_test", f"left out, as {name} has one test split", mnli_test)
        check_folder("data.path", path)
        self.name = name
        self.path = path
        self.mnli_test = mnli_test
        self._set = _SETS[name]
        self.text_columns = self._set.columns
        self.metric_names = self._set.metrics
        if name == "mnli":
            self.evaluation_names = ("", "mismatched")
            self.validation_splits = ("validation_matched", "validation_mismatched")

    def _name(self) -> str:
        return f"{self.path} ({self.name})"

    def load_split(self, split: str) -> Dataset | None:
        if self.name == "mnli" and split == "test":
            if self.mnli_test == "diagnostic":
                return load_data(self.path, "ax").get("test")
            split = f"test_{self.mnli_test}"
        return load_data(self.path, self.name).get(split)

    def submission(self, records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """The predictions as gluebenchmark.com takes them.

        Args:
            records: As `predict` gives them, one a row of the test split, in its order.

        Returns:
            The file's name and its text: ``index`` and ``prediction``, with a tab between. The prediction is the
            label's name for MNLI, QNLI and RTE, a score from 0 to 5 for STS-B, else the label's number.

        Raises:
            InputError: If a row is missing, or a label is none of the set's.
        """
        name = _MNLI_FILES[self.mnli_test] if self.name == "mnli" else self._set.file
        rows = cast(Dataset, self.load_split("test"))
        if [record["index"] for record in records] != list(range(len(rows))):
            raise InputError(
                f"A submission needs a prediction for each of the {len(rows):,} rows of the test split, but got "
                f"{len(records):,}: leave trainer.limit_predict_batches out."
            )
        if len(rows) != _TEST_ROWS[name]:
            rank_zero_info(
                f"{name} has {_TEST_ROWS[name]:,} rows at gluebenchmark.com, but {len(rows):,} in {self.path}"
            )
        if self.name == "stsb":
            values = [f"{min(max(record['score'], 0.0), 5.0):.3f}" for record in records]
        else:
            known = rows.features[self.label_column].names
            values = [record["label"] for record in records]
            if unknown := set(values) - set(known):
                raise InputError(f"The labels of {self.name} are {', '.join(known)}, but the model's are {unknown}.")
            if not self._set.in_words:
                values = [str(known.index(value)) for value in values]
        return f"{name}.tsv", "\n".join(["index\tprediction", *(f"{i}\t{v}" for i, v in enumerate(values)), ""])
