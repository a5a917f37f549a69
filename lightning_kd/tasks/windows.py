"""Windows of tokens in flat arrays, made into a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_kd.tasks.base import IGNORED

__all__ = ["all_windows", "padded"]

#: What stands behind the last token, where it is not 0.
_PADDING = {"labels": IGNORED, "words": -1, "char_starts": -1, "char_ends": -1}


def padded(
    tokens: Mapping[str, NDArray[np.int32]], starts: NDArray[np.int64], lengths: NDArray[np.int64], pad_token_id: int
) -> dict[str, Tensor]:
    """Some windows, padded to the longest of them, with an attention mask.

    Args:
        tokens: What there is of each token, ``(total tokens,)``, by name.
        starts: ``(windows,)``, the first token of each.
        lengths: ``(windows,)``, the number of its tokens.
        pad_token_id: Fills ``input_ids``.

    Returns:
        ``(windows, L)`` int64 by name.
    """
    mask = np.arange(lengths.max()) < lengths[:, None]
    flat = (starts[:, None] + np.arange(mask.shape[1]))[mask]
    fill = {**_PADDING, "input_ids": pad_token_id}
    batch = {}
    for name, values in tokens.items():
        window = np.full(mask.shape, fill.get(name, 0), dtype=np.int64)
        window[mask] = values[flat]
        batch[name] = torch.from_numpy(window)
    return {**batch, "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def all_windows(
    tokens: Mapping[str, NDArray[np.int32]],
    offsets: NDArray[np.int64],
    windows: NDArray[np.int64],
    pad_token_id: int,
) -> dict[str, Any]:
    """Every window of some rows as one batch, with ``example``, the row of each, and ``index``, the rows' numbers.

    Args:
        tokens: What there is of each token, ``(total tokens,)``, by name.
        offsets: ``(windows + 1,)``; window ``i`` has the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
        windows: ``(rows + 1,)``; row ``i`` has the windows from ``windows[i]`` to ``windows[i + 1]``.
        pad_token_id: Fills ``input_ids``.
    """
    rows = len(windows) - 1
    batch: dict[str, Any] = padded(tokens, offsets[:-1], np.diff(offsets), pad_token_id)
    batch["example"] = torch.from_numpy(np.repeat(np.arange(rows), np.diff(windows)))
    return {**batch, "index": torch.arange(rows)}
