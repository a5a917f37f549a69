"""Tiny models, tiny data sets and the checks that every loss has to pass; nothing here needs a network."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_CACHE = tempfile.TemporaryDirectory(prefix="lightning-kd-tests-")  # `datasets` keys its cache by a folder's name
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=_CACHE.name,
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)

import lightning as L
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertTokenizerFast

from lightning_kd import DistillationModule, InputError, ModelSource
from lightning_kd.datamodules import GLUEDataModule
from lightning_kd.losses import SoftTargetKL
from lightning_kd.outputs import Features as ModelFeatures
from lightning_kd.outputs import LossInputs

torch.set_num_threads(1)
settings.register_profile("lightning-kd", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.load_profile("lightning-kd")

WORDS = [f"{consonant}{vowel}{end}" for consonant in "bdfgklmnprst" for vowel in "aeiou" for end in ("", "n")]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL_TOKENS, *WORDS, "##s", "##ing"]

#: Columns and labels of GLUE's sets, as the Hub has them; ``None`` stands for scores.
GLUE = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "stsb": (("sentence1", "sentence2"), None),
    "wnli": (("sentence1", "sentence2"), ["not_entailment", "entailment"]),
}

#: The shape of a tiny model, by model type; each has 3 layers of width 16 unless a test says otherwise.
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"num_attention_heads": 2, "intermediate_size": 24, "hidden_size": 16, "num_hidden_layers": 3},
    "distilbert": {"n_heads": 2, "hidden_dim": 24, "dim": 16, "n_layers": 3},
}
SHAPES["roberta"] = {**SHAPES["bert"], "type_vocab_size": 2}
SHAPES["electra"] = {**SHAPES["bert"], "embedding_size": 8}
SHAPES["albert"] = {**SHAPES["bert"], "embedding_size": 8}


def needs_extra(quantizer: Any) -> None:
    """Skip, with the extra's name, where the packages of a backend are not installed."""
    try:
        quantizer.check()
    except InputError as error:
        pytest.skip(str(error))


Columns = Mapping[str, Sequence[Any]]


def _write_tokenizer(folder: Path, model_type: str) -> None:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n")
    names = ["input_ids", "attention_mask"]
    if model_type not in ("distilbert", "roberta"):
        names.insert(1, "token_type_ids")
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=64, model_input_names=names).save_pretrained(folder)


def _write_glue(root: Path, sets: Mapping[str, Mapping[str, Columns]]) -> Path:
    lines = ["---", "configs:"]
    for name, splits in sets.items():
        (root / name).mkdir(parents=True)
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, columns in splits.items():
            label_names = GLUE[name][1]
            features = {column: Value("int32" if column == "idx" else "string") for column in columns}
            if "label" in columns:
                features["label"] = ClassLabel(names=label_names) if label_names else Value("float32")
            rows = Dataset.from_dict(dict(columns), features=Features(features))
            rows.to_parquet(root / name / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*.parquet"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root


def _random_rows(name: str, size: int, labelled: bool, seed: int) -> Columns:
    generator = np.random.default_rng(seed)
    columns, label_names = GLUE[name]
    rows: dict[str, Sequence[Any]] = {
        column: [" ".join(generator.choice(WORDS, length)) for length in generator.integers(2, 9, size)]
        for column in columns
    }
    labels = generator.integers(0, len(label_names), size) if label_names else generator.uniform(0, 5, size)
    rows["label"] = labels.tolist() if labelled else [-1] * size
    rows["idx"] = list(range(size))
    return rows


@pytest.fixture
def instantiated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The command lines that were parsed and instantiated; none of them runs, and none looks for a model."""
    from lightning_kd import cli  # which takes seconds

    made: list[cli.DistillationCLI] = []
    monkeypatch.setattr(cli.DistillationCLI, "_run_subcommand", lambda self, _: made.append(self))
    monkeypatch.setattr(cli, "load_config", lambda *_: None)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    yield made
    rank_zero_only.rank = 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and pretrained models; a test that needs it is skipped where it is missing."""
    folder = Path(os.environ.get("LIGHTNING_KD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}: set LIGHTNING_KD_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny random model with its tokenizer: ``tiny_model(type, num_labels, dtype, head, seed, **config)``."""

    @cache
    def write(
        model_type: str = "bert",
        num_labels: int = 2,
        dtype: torch.dtype = torch.float32,
        head: bool = True,
        seed: int = 0,
        **config: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        shape = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 66, "pad_token_id": 0}
        shape |= {**SHAPES[model_type], "num_labels": num_labels, "initializer_range": 0.3, **config}
        torch.manual_seed(seed)
        auto_class = AutoModelForSequenceClassification if head else AutoModel
        auto_class.from_config(AutoConfig.for_model(model_type, **shape)).to(dtype).save_pretrained(folder)
        _write_tokenizer(folder, model_type)
        return folder

    return write


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine sets of GLUE in the Hub's layout: 24 training rows, 10 to validate on, 7 without labels to test on."""
    sets = {}
    for name in GLUE:
        suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
        splits = {"train": _random_rows(name, 24, True, 0)}
        for i, suffix in enumerate(suffixes):
            splits[f"validation{suffix}"] = _random_rows(name, 10, True, 1 + i)
            splits[f"test{suffix}"] = _random_rows(name, 7, False, 11 + i)
        sets[name] = splits
    return _write_glue(tmp_path_factory.mktemp("data") / "glue", sets)


@pytest.fixture
def write_glue(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder ``glue`` in a folder of the test: ``write_glue({set: {split: {column: values}}}, parent)``."""
    return lambda sets, parent="data": _write_glue(tmp_path / parent / "glue", sets)


@pytest.fixture(scope="session")
def glue(glue_folder: Path, tiny_model: Callable[..., Path]) -> Callable[..., GLUEDataModule]:
    """Serves a set of ``glue_folder`` in 3 batches of 8: ``glue(name, **options)``; SST-2 unless given."""
    tokenizer = str(tiny_model())  # made here: to make a model moves the seed

    def make(name: str = "sst2", **options: Any) -> GLUEDataModule:
        settings = {"tokenizer": tokenizer, "batch_size": 8, "eval_batch_size": 4, **options}
        return GLUEDataModule(name, str(glue_folder), **settings)

    return make


@pytest.fixture(scope="session")
def distillation(tiny_model: Callable[..., Path]) -> Callable[..., DistillationModule]:
    """Makes a module with one teacher and soft targets, both models without dropout: ``distillation(**arguments)``."""

    def make(kind: type[DistillationModule] = DistillationModule, **arguments: Any) -> DistillationModule:
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        defaults = {
            "student": ModelSource(str(tiny_model(seed=1, **still))),
            "teachers": {"teacher": ModelSource(str(tiny_model(seed=0, **still)))},
            "losses": {"soft": SoftTargetKL()},
        }
        return kind(**{**defaults, **arguments})

    return make


@pytest.fixture(scope="session")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., L.Trainer]:
    """Makes a quiet trainer of one epoch on the CPU with a folder of its own: ``make_trainer(**options)``."""

    def make(**options: Any) -> L.Trainer:
        quiet = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
        keeps = any(isinstance(callback, ModelCheckpoint) for callback in options.get("callbacks", []))
        defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": keeps}
        defaults["default_root_dir"] = options.get("default_root_dir") or tmp_path_factory.mktemp("run")
        L.seed_everything(0, verbose=False)
        return L.Trainer(**{**quiet, **defaults, **options})

    return make


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library tells the user; Lightning keeps its messages from the root logger, so caplog alone sees none."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield caplog
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def loss_inputs() -> Callable[..., LossInputs]:
    """Makes the inputs of a loss: ``loss_inputs(student_logits, teacher_logits, ...)``, every logit compared."""

    def make(
        student: Tensor,
        teacher: Tensor,
        logit_mask: Tensor | None = None,
        student_states: Mapping[int, Tensor] | None = None,
        teacher_states: Mapping[int, Tensor] | None = None,
        token_mask: Tensor | None = None,
        temperature: float = 1.0,
        hard_labels: Tensor | None = None,
        student_heads: Mapping[str, Mapping[int, Tensor]] | None = None,
        teacher_heads: Mapping[str, Mapping[int, Tensor]] | None = None,
    ) -> LossInputs:
        return LossInputs(
            student=ModelFeatures({"logits": student}, student_states or {}, **(student_heads or {})),
            teacher=ModelFeatures({"logits": teacher}, teacher_states or {}, **(teacher_heads or {})),
            token_mask=torch.ones(len(student), 1, dtype=torch.bool) if token_mask is None else token_mask,
            logit_masks={
                "logits": torch.ones(student.shape[:-1], dtype=torch.bool) if logit_mask is None else logit_mask
            },
            temperature=temperature,
            hard_labels={} if hard_labels is None else {"logits": hard_labels},
        )

    return make


PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class LossContract:
    """What holds for every function ``loss(student, teacher, mask)`` of tensors ``(..., D)`` and a mask ``(...)``."""

    def __init__(self, shape: tuple[int, ...] = (3, 4, 5), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.student = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        self.teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.mask = torch.rand(shape[:-1], generator=generator) < 0.6
        self.mask.view(-1)[0], self.mask.view(-1)[-1] = True, False

    def zero_for_equals(self, loss: PairLoss) -> None:
        """Assert that a student that equals its teacher has nothing to learn."""
        student = self.teacher.clone().requires_grad_()
        value = loss(student, self.teacher, self.mask)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert student.grad is not None and student.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
        assert loss(self.student, self.teacher, self.mask).item() > 1e-3

    def ignores_masked(self, loss: PairLoss) -> None:
        """Assert that what is masked moves neither the value nor any gradient."""
        left_out = ~self.mask.unsqueeze(-1)
        value = loss(self.student, self.teacher, self.mask)
        garbage = self.student.detach().masked_fill(left_out, 1e6).requires_grad_()
        other = loss(garbage, self.teacher.masked_fill(left_out, -1e6), self.mask)
        other.backward()
        assert other.item() == value.item()
        assert garbage.grad is not None and not garbage.grad.masked_select(left_out).any()
        assert loss(self.student, self.teacher, torch.ones_like(self.mask)).item() != value.item()

    def zero_when_all_masked(self, loss: PairLoss) -> None:
        """Assert that a batch without anything to compare gives 0 and can still be trained on."""
        value = loss(self.student, self.teacher, torch.zeros_like(self.mask))
        value.backward()
        assert value.item() == 0
        assert self.student.grad is not None and not self.student.grad.any()

    def no_gradient_to_teacher(self, loss: PairLoss) -> None:
        """Assert that the student alone is moved."""
        teacher = self.teacher.clone().requires_grad_()
        loss(self.student, teacher, self.mask).backward()
        assert teacher.grad is None
        assert self.student.grad is not None and self.student.grad.abs().sum() > 0

    def float32_from_half(self, loss: PairLoss, dtype: torch.dtype) -> None:
        """Assert that half precision is left before the arithmetic, not after it."""
        student, teacher = self.student.detach().to(dtype).requires_grad_(), self.teacher.to(dtype)
        value = loss(student, teacher, self.mask)
        value.backward()
        assert value.dtype == torch.float32
        assert student.grad is not None and student.grad.dtype == dtype and student.grad.isfinite().all()
        expected = loss(student.detach().double(), teacher.double(), self.mask).item()
        assert value.item() == pytest.approx(expected, rel=1e-5)

    def refuses_other_shapes(self, loss: PairLoss) -> None:
        """Assert that shapes that would broadcast are refused, and that the message shows them."""
        for student, teacher, mask in (
            (self.student, self.teacher[:1], self.mask),
            (self.student, self.teacher[..., :1], self.mask),
            (self.student, self.teacher, self.mask[..., :1]),
            (self.student, self.teacher, self.mask.unsqueeze(-1)),
        ):
            shapes = f"but got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(mask.shape)}."
            with pytest.raises(InputError) as error:
                loss(student, teacher, mask)
            assert shapes in str(error.value)

    def gradient_is_right(self, loss: PairLoss) -> None:
        """Assert that the gradient is that of finite differences."""
        assert torch.autograd.gradcheck(lambda student: loss(student, self.teacher, self.mask), self.student)


@pytest.fixture
def contract() -> LossContract:
    """The checks that every loss on a pair of tensors has to pass."""
    return LossContract()
