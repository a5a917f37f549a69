"""Data sets of the Hub, of local folders in the same layout, and of files of one's own; and tokenizers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_dataset_builder
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_kd._checks import expected
from lightning_kd.datamodules.files import find_files, read_files
from lightning_kd.models import check_folder

__all__ = ["load_data", "load_tokenizer"]


def load_data(path: str, name: str | None = None) -> DatasetDict:
    """All splits of a data set.

    Args:
        path: Hub name, local folder in the Hub's layout, CSV, JSON Lines or Parquet file, or a folder with such files
            for each split.
        name: The configuration, where there are several.

    Raises:
        InputError: If it cannot be loaded.
    """
    files = find_files(path) if name is None else {}
    return read_files(files) if files else _load(path, name)


@cache
def _load(path: str, name: str | None) -> DatasetDict:
    try:
        if not Path(path).is_dir():
            return load_dataset(path, name)
        # `datasets` caches a folder by its last name alone; its files, by their full paths and times.
        builder = load_dataset_builder(path, name)
        files = {str(split): list(paths) for split, paths in builder.config.data_files.items()}
        return load_dataset(builder.name, data_files=files, features=builder.info.features)
    except Exception as error:  # nothing there, no connection, no such configuration, files of another kind, a script
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise expected(
            "data.path",
            "a Hub data set or a local folder with its files" + (f" and the set {name!r}" if name else ""),
            path,
            f"Check the path, and that the Hub can be reached: {reason}",
        ) from error


def load_tokenizer(option: str, source: str, **settings: Any) -> PreTrainedTokenizerBase:
    """A tokenizer that can pad; without a token for it, with the one that ends a text.

    Args:
        option: That names the tokenizer, in messages.
        source: Hub name or local folder.
        settings: Instead of the tokenizer's own.

    Raises:
        InputError: If it cannot be loaded, or has neither token.
    """
    check_folder(option, source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)
    except Exception as error:  # whatever transformers and tokenizers make of what is in the files
        raise expected(option, "a Hub name or a local folder with a tokenizer", source) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            way_out = "Set its pad_token, and give the folder in which you save it."
            raise expected(option, "a tokenizer with a padding token", source, way_out)
        tokenizer.pad_token = tokenizer.eos_token  # as is the custom with decoders: no row reads what is behind it
    return tokenizer
