"""Opens an exported folder, float or int8, and predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.folders import check_config, check_tokenizer
from lightning_kd.models import ModelSource, load_trained
from lightning_kd.quantization import DynamicInt8, Forward, ONNXRuntimeInt8, OpenVINOInt8, Quantizer, TorchAO
from lightning_kd.tasks import (
    LanguageModeling,
    MultiLabelClassification,
    QuestionAnswering,
    SequenceClassification,
    Task,
    TokenClassification,
)

__all__ = ["Runner", "forward_of", "quantizer_of", "task_of", "weight_bytes"]

#: By the end of a model's class name; any other is a sequence classifier or a regressor.
_TASKS: dict[str, Task] = {
    "ForTokenClassification": TokenClassification(),
    "ForQuestionAnswering": QuestionAnswering(),
    "ForCausalLM": LanguageModeling(),
}
_QUANTIZERS: tuple[type[Quantizer], ...] = (OpenVINOInt8, ONNXRuntimeInt8, DynamicInt8, TorchAO)


class Runner:
    """A model that is ready to predict, whatever runs it: the same interface for float and int8 folders.

    Args:
        forward: From a batch's tensors to logits.
        config: The model's configuration, with its label names.
        tokenizer: The model's tokenizer; its ``model_max_length`` is the longest text that is read.
        task: From logits to predictions.
    """

    def __init__(
        self,
        forward: Forward,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        task: Task = SequenceClassification(),  # noqa: B008  # frozen
    ) -> None:
        self.forward = forward
        self.config = config
        self.tokenizer = tokenizer
        self.task = task

    @classmethod
    def open(cls, folder: str | Path, threads: int | None = None, task: Task | None = None) -> Runner:
        """Open a folder that a run has written: ``student``, ``int8`` or any transformers folder for the task.

        Args:
            folder: The folder.
            threads: Threads that the model may use, where its backend has threads of its own (OpenVINO).
            task: A task of one's own; otherwise it follows from the model's class.

        Raises:
            InputError: If a part of the model is missing or damaged, or its backend's extra is not installed.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise expected("folder", "a folder with a config.json", str(folder))
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # whatever transformers and tokenizers make of what is in the files
            raise expected("folder", "a folder with a configuration and a tokenizer", str(folder)) from error
        check_config("folder", str(folder), config)
        if not any((folder / file).is_file() for file in tokenizer.vocab_files_names.values()):
            raise expected("folder", "a folder with a tokenizer", str(folder))  # or transformers makes up an empty one
        check_tokenizer("folder", str(folder), tokenizer, config)
        task = task_of(config) if task is None else task
        quantizer = quantizer_of(folder)
        if quantizer is not None:
            forward = quantizer.open(folder, threads)
        else:
            forward = forward_of(load_trained(ModelSource(str(folder)), task.auto_class, "folder"), task)
        return cls(forward, config, tokenizer, task)

    def predict(self, texts: Sequence[str | tuple[str, str] | list[str]], batch_size: int = 32) -> list[dict[str, Any]]:
        """One record a text.

        ``{"label": ..., "score": ...}``; for regression only a score; for independent labels ``{"labels": [...]}``,
        those above 0.5; for tags ``{"entities": [...]}``, each with its place in the text; for answers
        ``{"answer": ..., "start": ..., "end": ..., "score": ..., "null_score": ...}``; for language models
        ``{"perplexity": ..., "words": ...}``.

        Args:
            texts: Texts or pairs of texts; for tags texts or lists of words; for answers pairs (question, passage).
            batch_size: Texts in one forward pass.

        Raises:
            InputError: If ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise InputError("Expected argument `texts` to be a list of texts, but got a single string.")
        records: list[dict[str, Any]] = []
        for start in range(0, len(texts), batch_size):
            part = list(texts[start : start + batch_size])
            batch = self.task.encode(part, self.tokenizer)
            records += self.task.records(self.forward(self.task.model_inputs(batch)), batch, self.config)
        return records


def quantizer_of(folder: Path) -> type[Quantizer] | None:
    """The backend that wrote ``folder``, one of somebody's own too once it is imported; None of a float folder."""
    kinds: list[type[Quantizer]] = [*_QUANTIZERS, *Quantizer.__subclasses__()]
    for kind in kinds:  # which grows meanwhile
        kinds += kind.__subclasses__()
    names = ((kind, getattr(kind, "file_name", None)) for kind in kinds)
    return next((kind for kind, name in names if name is not None and (folder / name).is_file()), None)


def task_of(config: PretrainedConfig) -> Task:
    """The task of a model by the name of its class."""
    head = (config.architectures or [""])[0]
    if head.endswith("ForSequenceClassification") and config.problem_type == "multi_label_classification":
        return MultiLabelClassification()
    task = next((task for end, task in _TASKS.items() if head.endswith(end)), SequenceClassification())
    return task.with_config(config)


def forward_of(model: PreTrainedModel, task: Task) -> Forward:
    """A transformers model as a function from a batch on any device to logits on the CPU."""

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            output = model(**{name: value.to(model.device) for name, value in inputs.items()})
        return {name: value.cpu() for name, value in task.logits(output).items()}

    return forward


def weight_bytes(folder: Path) -> int:
    """Bytes of the files in ``folder`` that hold the model: weights and graph, without tokenizer and configuration."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".xml", ".onnx"))
