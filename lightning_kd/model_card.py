"""The README.md of an exported folder, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from lightning_kd.report import Report, markdown_table, report_notes, report_table
from lightning_kd.tasks import LanguageModeling, QuestionAnswering, Task, TokenClassification

__all__ = ["CardFacts", "card_name", "model_card"]


@dataclass(frozen=True)
class CardFacts:
    """What is known of a model when it is written.

    Attributes:
        name: Of the folder.
        what: A sentence that says what it is.
        made: What it was made of and how, in the order of the rows of a table.
        task: What it does.
        is_distilled: Whether it had teachers.
        quantization: The form of its weights and the backend, e.g. ``int8, torch``; None of a float model.
        base_models: Where it and its teachers come from: Hub names or folders, as they were given.
        data_path: Hub name or folder of the data, as it was given; None of data that have none.
        data_name: The data in a few words.
        command: What was typed; None of a run from Python.
    """

    name: str
    what: str
    made: dict[str, str]
    task: Task
    is_distilled: bool = False
    quantization: str | None = None
    base_models: Sequence[str] = field(default_factory=list)
    data_path: str | None = None
    data_name: str = ""
    command: str | None = None


def model_card(facts: CardFacts, report: Report | None = None, row_name: str | None = None) -> str:
    """The card's text: what the Hub reads between two lines of ``---``, and then what a person reads.

    Args:
        facts: What is known of the model.
        report: What was measured, once it is.
        row_name: The model's name in the report.
    """
    tag = _pipeline_tag(facts.task)
    tags = ["lightning-kd"]
    if facts.is_distilled:
        tags.insert(0, "knowledge-distillation")
    if facts.quantization:
        tags.append(facts.quantization.partition(",")[0])
    data = ModelCardData(
        library_name="lightning-kd" if facts.quantization else "transformers",
        pipeline_tag=tag,
        base_model=[path for path in dict.fromkeys(facts.base_models) if _on_hub(path)] or None,
        datasets=[facts.data_path] if facts.data_path and _on_hub(facts.data_path) else None,
        tags=tags,
        model_name=facts.name,
        eval_results=_results(facts, report, row_name, tag) if report and row_name else None,
    )
    made = [f"| {name} | {_cell(value)} |" for name, value in facts.made.items()]
    command = ["", "```", facts.command, "```"] if facts.command else []
    if report is None:
        measured = ["Not measured."]
    else:
        measured = [markdown_table(*report_table(report), report_notes(report)).strip()]
    parts = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {facts.name}",
        "",
        facts.what,
        "",
        "## How it was made",
        "",
        "| | |",
        "| --- | --- |",
        *made,
        *command,
        "",
        "## How to use it",
        "",
        "```python",
        *_usage(facts, tag),
        "```",
        "",
        "## What was measured",
        "",
        *measured,
        "",
    ]
    return "\n".join(parts)


def card_name(name: str) -> str:
    """A name without what paths and Markdown trip over."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-") or "model"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _on_hub(path: str) -> bool:
    """Whether a path is a name on the Hub rather than a folder: one that is there, or is written as one."""
    parts = path.split("/")
    return len(parts) <= 2 and all(parts) and path[0] not in ".~/" and not Path(path).exists()


def _pipeline_tag(task: Task) -> str:
    if isinstance(task, TokenClassification):
        return "token-classification"
    if isinstance(task, QuestionAnswering):
        return "question-answering"
    return "text-generation" if isinstance(task, LanguageModeling) else "text-classification"


def _results(facts: CardFacts, report: Report, row_name: str, tag: str) -> list[EvalResult]:
    """The model's own metrics, by split."""
    row = next(row for row in report.rows if row.name == row_name)
    path = facts.data_path if facts.data_path and _on_hub(facts.data_path) else None
    return [
        EvalResult(
            task_type=tag,
            dataset_type=path or card_name(facts.data_name.partition(";")[0]).lower(),
            dataset_name=facts.data_name,
            dataset_split=split,
            metric_type=name,
            metric_name=f"{name}, {split}",
            metric_value=estimate.value,
        )
        for split, metrics in row.metrics.items()
        for name, estimate in metrics.items()
    ]


def _usage(facts: CardFacts, tag: str) -> list[str]:
    if facts.quantization or tag in ("question-answering", "text-generation"):
        text = '[("a question", "a passage")]' if tag == "question-answering" else '["a text"]'
        return ["from lightning_kd import Runner", "", f'Runner.open("path/to/this/folder").predict({text})']
    call = f'pipeline("{tag}", model="path/to/this/folder")("a text")'
    return ["from transformers import pipeline", "", call]
