"""Tables of one's own: CSV, TSV, JSON Lines and Parquet files."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_kd._checks import InputError, expected

__all__ = ["find_files", "read_files"]

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
#: What may stand between the cells of a CSV file, and how it is called.
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def find_files(path: str) -> dict[str, Path]:
    """The files of one's own that ``path`` names, by split; nothing if it is a Hub name or a folder in its layout.

    Args:
        path: A file, which is the training split, or a folder with files called ``train``, ``validation`` (or
            ``valid``, ``dev``) and ``test``; each a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.

    Raises:
        InputError: If there is no such file, its ending is another, or two files are one split.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        return _files_of(source)
    if source.is_file() or source.suffix.lower() in _ENDINGS:
        if source.suffix.lower() not in _ENDINGS:
            raise expected("data.path", f"a file that ends in {', '.join(_ENDINGS)}", path)
        if not source.is_file():
            raise expected("data.path", "a file, a folder or a Hub name", path, "There is no such file.")
        return {"train": source}
    return {}


def _files_of(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS)
    found: dict[str, Path] = {}
    for file in files:
        split = _SPLITS.get(file.stem)
        if split in found:
            raise InputError(f"{found[split]} and {file.name} are both the {split} split: keep one of them.")
        if split is not None:
            found[split] = file
    tables = [file.name for file in files if file.suffix.lower() != ".parquet"]
    if tables and not found and not (folder / "README.md").is_file():  # in which the Hub's layout names its files
        names = f"train{tables[0][tables[0].rindex('.') :]}, validation and test"
        raise InputError(f"Expected {folder} to have files called {names}, but it has {', '.join(tables)}.")
    return found


def read_files(files: dict[str, Path]) -> DatasetDict:
    """The rows of files by split, read again only if a file has changed.

    All cells of a CSV file are text. Between them stand commas, or semicolons or tabs where its header has no comma but
    in quotes; in a TSV file, tabs.

    Raises:
        InputError: If a file is empty, is not of its ending's format, or is no UTF-8.
    """
    return DatasetDict({split: _read(file, file.stat().st_mtime_ns) for split, file in files.items()})


@cache
def _read(file: Path, time: int) -> Dataset:
    """The rows of a file as it was at a time."""
    if not file.stat().st_size:
        raise InputError(f"{file} is empty.")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    table = readers[file.suffix.lower()](file)
    if not table.num_rows:
        raise InputError(f"{file} has no rows.")
    return Dataset(table)


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file} is not UTF-8: byte {data[error.start]:#04x} in line {line:,} (offset {error.start:,}). "
            "Save it as UTF-8."
        ) from error


def _read_csv(file: Path) -> pa.Table:
    text = _text(file)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    first = io.StringIO(text, newline=None).readline()
    bare = re.sub('"[^"]*"', "", first)
    separator = "\t" if file.suffix.lower() == ".tsv" else next((each for each in _SEPARATORS if each in bare), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(
                    f"Line {reader.line_num:,} of {file} has {len(row)} cells, but the header has {len(header)}: "
                    f"a text with a {_SEPARATORS[separator]} in it stands between double quotes."
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise InputError(f"{file} is no CSV: {error}, line {reader.line_num:,}.") from error
    if len(set(header)) < len(header):
        raise InputError(f"Two columns of {file} have the same name: its header is {', '.join(header)}.")
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=header)


def _read_json_lines(file: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(file).split("\n"), start=1):  # not splitlines, which cuts at U+2028, too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"Line {number:,} of {file} is no JSON: {error.msg}, column {error.colno}.") from error
        if not isinstance(row, dict):
            raise InputError(f"Line {number:,} of {file} is no object: expected one {{...}} a line.")
        rows.append(row)
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:  # it may well be a column that nobody reads
            rank_zero_info(f"The column {name!r} of {file} is left out, as its values are of several types: {error}")
    return pa.table(columns)


def _read_parquet(file: Path) -> pa.Table:
    try:
        table = pq.read_table(file)
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file} is no whole Parquet file: {str(error).partition('. ')[0]}.") from error
    return table
