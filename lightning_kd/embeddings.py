"""Word embeddings that start as a trained model's."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from lightning_kd._checks import InputError, expected
from lightning_kd.models import ModelSource, check_folder, has_tokenizer

__all__ = ["principal_components", "start_embeddings"]


def principal_components(values: Tensor, width: int) -> tuple[Tensor, float]:
    """The rows of a matrix in the directions in which they differ most (Pearson 1901).

    Args:
        values: ``(rows, H)``.
        width: How many directions, from 1 to ``H``.

    Returns:
        ``(rows, width)``, the first direction being that of the largest variance, in float32; and the share of the
        variance that they hold, from 0 to 1.

    Example:
        >>> components, share = principal_components(torch.tensor([[1.0, 0.0], [5.0, 0.0], [3.0, 1.0]]), 1)
        >>> components.abs().T, round(share, 2)
        (tensor([[2., 2., 0.]]), 0.92)
    """
    centred = values.double() - values.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # in rising order
    kept = directions[:, -width:].flip(1)
    return (centred @ kept).float(), (variances[-width:].sum() / variances.sum()).item()


def start_embeddings(model: PreTrainedModel, source: ModelSource, tokenizer: Any, name: str = "model.student") -> None:
    """Give a model from scratch the word embeddings of a trained one that reads the same vocabulary.

    They are copied where the widths agree; narrower ones are the principal components.

    Args:
        model: The student; it is changed.
        source: Its source. Nothing happens where ``embeddings_from`` is not set.
        tokenizer: The data's; ``None`` if there is none.
        name: The source's name in messages.

    Raises:
        InputError: If ``embeddings_from`` names no model, it reads another vocabulary, its embeddings are narrower than
            the student's, or the student does not start from scratch.
    """
    path = source.embeddings_from
    if path is None:
        return
    option = f"{name}.embeddings_from"
    if not source.from_scratch:
        raise expected(option, "left out without from_scratch: true", path, "A stored student has its own embeddings.")
    check_folder(option, path)
    try:
        own = AutoTokenizer.from_pretrained(path, trust_remote_code=False) if has_tokenizer(path) else None
        trained = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # whatever transformers, safetensors and torch make of what is in the files
        raise expected(option, "a trained model", path, str(error).partition("\n")[0]) from error
    if tokenizer is None or own is None or own.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"Expected argument `{option}` to be a model that reads the vocabulary of the data's tokenizer, but {path} "
            "reads another, or comes without its tokenizer: leave the option out, or give data.tokenizer the same path."
        )
    values, weight = (cast(nn.Embedding, m.get_input_embeddings()).weight.detach() for m in (trained, model))
    width = weight.shape[1]
    if width > values.shape[1]:
        raise InputError(
            f"The word embeddings of {path} have {values.shape[1]} dimensions, but `{name}` has {width}: set "
            f"embedding_size, or hidden_size, to {values.shape[1]} or less in its config, or leave {option} out."
        )
    values, share = values[: len(tokenizer)], 1.0  # beyond, a table may be filled up to a round number
    dimensions = values.shape[1]
    if width < dimensions:
        values, share = principal_components(values, width)
    weight[: len(values)] = values
    rank_zero_info(f"Word embeddings from {path}: {width} of {dimensions} dimensions, {share:.1%} of the variance")
