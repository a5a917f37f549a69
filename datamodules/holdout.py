"""Rows that are taken out of a training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray

from lightning_kd._checks import expected

__all__ = ["hold_out"]


def hold_out(
    rows: Dataset, columns: Sequence[str], size: int, seed: int, labelled: int, option: str, together: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw rows at random; rows whose text equals that of a drawn row are left out of the others.

    Args:
        rows: The rows with a label, and behind them those without.
        columns: Where the text is.
        size: Rows to draw, 0 or more.
        seed: Of the draw.
        labelled: The first rows, among which to draw.
        option: That sets ``size``.
        together: Draw texts rather than rows, each with all of its rows, until there are ``size`` rows; of the last
            text only as many as are wanted.

    Returns:
        The numbers of the rows that are left, in no order, and of those that were drawn, sorted.

    Raises:
        InputError: If nothing would be left.
    """
    if size and size >= labelled:
        raise expected(option, f"below the {labelled:,} rows of the training split", size)
    order = np.random.default_rng(seed).permutation(labelled)
    texts = list(zip(*(map(_hashable, rows[column][:]) for column in columns), strict=True)) if size else []
    if size and together:
        place: dict[tuple[str | tuple[str, ...], ...], int] = {}
        order = order[np.argsort([place.setdefault(texts[i], len(place)) for i in order], kind="stable")]
    held_out = np.sort(order[:size])
    kept = np.concatenate([order[size:], np.arange(labelled, len(rows))])
    if size:
        taken = {texts[i] for i in held_out}
        before = len(kept)
        kept = np.asarray([i for i in kept if texts[i] not in taken], dtype=np.int64)
        if len(kept) < before:
            shared = "are about a held-out passage" if together else "equal a held-out row"
            rank_zero_info(f"{before - len(kept):,} training rows {shared} and are left out")
        if not len(kept):
            raise expected(option, "small enough to leave rows to train on", size)
    return kept, held_out


def _hashable(text: str | list[str]) -> str | tuple[str, ...]:
    return text if isinstance(text, str) else tuple(text)
