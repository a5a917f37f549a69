"""Questions in files of one's own: SQuAD's nested JSON, and rows as JSON or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from lightning_kd._checks import InputError

__all__ = ["QA_FEATURES", "load_files"]

#: The columns of a set of questions.
QA_FEATURES = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
#: How the files of a split may begin.
_NAMES = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


@cache
def load_files(folder: Path) -> DatasetDict | None:
    """The splits of a folder with JSON files, or ``None`` if it has none.

    A file whose name begins with ``train``, ``validation`` (or ``dev``) or ``test`` is of that split. It is SQuAD's
    nested JSON (``data``, ``paragraphs``, ``qas``), a list of rows, or a row a line. A row has ``context``,
    ``question`` and, where they are known, ``answers``, in SQuAD's form or as ``{"text": [...], "answer_start":
    [...]}``.

    Raises:
        InputError: If a file is not UTF-8 or not JSON, or a row lacks what a question needs.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json*")):
        split = next((split for start, split in _NAMES.items() if path.name.startswith(start)), None)
        if split is not None and path.suffix in (".json", ".jsonl"):
            rows = found.setdefault(split, [])
            for number, row in enumerate(_rows(path)):
                rows.append(_flat(row, path, number))
    return DatasetDict({split: Dataset.from_list(rows, features=QA_FEATURES) for split, rows in found.items()}) or None


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a file, as they stand in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"Expected {path} to be UTF-8, but its byte {error.start:,} is not: save the file as UTF-8."
        ) from error
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold other ends of lines
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"Line {number:,} of {path} is not JSON: {error}.") from error
        return
    if isinstance(whole, dict) and "data" in whole:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {**question, "context": paragraph["context"]}
    else:
        yield from whole if isinstance(whole, list) else [whole]


def _flat(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in ("context", "question")):
        raise InputError(f"Question {number:,} of {path} has no text as `context` and as `question`: mend or drop it.")
    answers = row.get("answers") or []
    if row.get("is_impossible"):
        answers = []
    try:
        if isinstance(answers, Mapping):
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Question {number:,} of {path} has answers in another form than SQuAD's: each needs `text` and "
            "`answer_start`."
        ) from error
    return {
        "id": str(row.get("id", number)),
        "context": row["context"],
        "question": row["question"],
        "answers": {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]},
    }
