"""CoNLL column files: a word a line, its tag in the last column, a blank line behind each sentence."""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Dataset, Features, List, Value

from lightning_kd._checks import InputError

__all__ = ["column_files", "read_columns"]

_ENDINGS = (".txt", ".conll", ".bio")
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def column_files(folder: Path) -> dict[str, Path]:
    """The column files of a folder by split: ``train``, ``dev`` (``valid``, ``validation``) and ``test``.

    Raises:
        InputError: If two files are one split.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        split = _SPLITS.get(file.stem)
        if file.suffix not in _ENDINGS or split is None:
            continue
        if split in found:
            raise InputError(f"{found[split]} and {file.name} are both the {split} split: keep one of them.")
        found[split] = file
    return found


def read_columns(file: Path, words_column: str, tags_column: str) -> Dataset:
    """The sentences of a column file.

    Columns are parted by a tab where a line has one, by spaces elsewhere. The word is in the first and the tag in the
    last; a file with one column has no tags. Lines that begin with ``-DOCSTART-`` are left out, and so are comments:
    lines in front of a sentence that begin with ``#`` and have another number of columns than the first line that does
    not, or a lone ``#`` and no tag.

    Args:
        file: In UTF-8.
        words_column: Name of the words' column in the result.
        tags_column: Name of the tags' column in the result, null where there are none.

    Raises:
        InputError: If the file is no UTF-8, a line has not as many columns as the first one, or there is no sentence.
    """
    words: list[list[str]] = []
    tags: list[list[str] | None] = []
    lines = _text(file).split("\n")  # not splitlines, which cuts at U+2028, too
    plain = (found for line in lines if (found := _columns(line)) and not found[0].startswith("#"))
    num_columns = len(next(plain, ["#", "O"]))
    in_sentence = False
    for number, columns in enumerate(map(_columns, lines), start=1):
        if not columns:
            in_sentence = False
            continue
        if not in_sentence and _is_comment(columns, num_columns):
            continue
        if len(columns) != num_columns or not columns[0] or not columns[-1]:
            filled = sum(column != "" for column in columns)
            raise InputError(
                f"Line {number:,} of {file} has {filled} columns where {num_columns} were expected, as the first line "
                "has: a word, a tag in the last column, and nothing but spaces or tabs between them."
            )
        if not in_sentence:
            in_sentence = True
            words.append([])
            tags.append([] if num_columns > 1 else None)
        words[-1].append(columns[0])
        if (own := tags[-1]) is not None:
            own.append(columns[-1])
    if not words:
        raise InputError(f"{file} has no sentence in it: expected a word and a tag on each line.")
    features = Features({words_column: List(Value("string")), tags_column: List(Value("string"))})
    return Dataset.from_dict({words_column: words, tags_column: tags}, features=features)


def _is_comment(columns: list[str], num_columns: int) -> bool:
    if len(columns) != num_columns:
        return columns[0].startswith("#")
    return columns[0] == "#" and num_columns > 1 and not re.match("O$|[A-Z]-", columns[-1])


def _columns(line: str) -> list[str]:
    """What stands in a line; nothing if it ends a sentence."""
    line = line.strip("\r") if "\t" in line else line.strip("\r ")  # a word can be another kind of space
    if not line.strip("\t ") or line.startswith("-DOCSTART-"):
        return []
    if "\t" not in line:
        return re.split(" +", line)
    *before, tag = line.split("\t")
    return [*before, tag.strip(" ")]


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file} is not UTF-8: byte {data[error.start]:#04x} in line {line:,}. Save it as UTF-8."
        ) from error
