"""A distribution over the tokens of one tokenizer, on the tokens of another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["carry_positions"]

_FAR = 2**31 - 1


def carry_positions(logits: Tensor, own: Mapping[str, Tensor], batch: Mapping[str, Tensor], last: bool) -> Tensor:
    r"""Logits of where an answer begins or ends, from the teacher's tokens to the student's, by their characters.

    The windows of a question are taken as one distribution, as for the prediction: each token of the passage with the
    highest logit that it has in a window, "no answer" with the lowest. The probability of beginning at a token goes to
    the student's token that holds its first character, or else to the next one; that of ending there, to the one that
    holds its last character, or else to the one before; what falls outside a window of the student's, to that window's
    "no answer". Where several come together they add up, :math:`\log \sum \exp` of the logits. A token of the
    student's that none goes to gets the question's lowest logit.

    Args:
        logits: ``(windows', L')``, of the teacher's windows.
        own: What the teacher reads: ``example`` ``(windows',)``, and ``char_starts`` and ``char_ends``
            ``(windows', L')``: both 0 at "no answer", -1 where no answer begins or ends.
        batch: The same of the student, ``(windows, L)``; in both the windows of a question follow each other.
        last: Whether the logits are of an answer's last token.

    Returns:
        ``(windows, L)`` float32.
    """
    values = _highest(logits.float(), own)
    windows, theirs = (batch["example"].unsqueeze(1) == own["example"]).nonzero(as_tuple=True)
    held = _once(own)
    starts, ends = batch["char_starts"][windows], batch["char_ends"][windows]
    passage = ends > 0
    if last:  # the starts are in order: the last one before the token's end
        in_order = starts.masked_fill(~passage, _FAR).flip(1).cummin(1).values.flip(1)
        to = torch.searchsorted(in_order, own["char_ends"][theirs].contiguous()) - 1
    else:  # the ends are in order: the first one behind the token's start
        in_order = ends.masked_fill(~passage, -1).cummax(1).values
        to = torch.searchsorted(in_order, own["char_starts"][theirs].contiguous(), right=True)
    positions = torch.arange(passage.shape[1], device=to.device)
    lowest_at, highest_at = (positions.masked_fill(~passage, fill) for fill in (_FAR, -1))
    to = to.clamp(lowest_at.amin(1, keepdim=True), highest_at.amax(1, keepdim=True))
    first, behind = (edge[windows].unsqueeze(1) for edge in _edges(batch))
    inside = (own["char_starts"][theirs] >= first) & (own["char_ends"][theirs] <= behind)
    null = (batch["char_ends"] == 0).int().argmax(1)
    to = torch.where(inside & held[theirs], to, null[windows].unsqueeze(1))

    rows = len(batch["index"])
    silent = values.masked_fill(own["char_ends"] != 0, float("inf")).amin(1)
    silent = values.new_zeros(rows).scatter_reduce(0, own["example"], silent, "amin", include_self=False)
    spoken = values.masked_fill(~held, -float("inf")).amax(1)
    highest = silent.scatter_reduce(0, own["example"], spoken, "amax")
    lowest = values.masked_fill(~held, float("inf")).amin(1)
    lowest = silent.scatter_reduce(0, own["example"], lowest, "amin")

    example = batch["example"]
    shifted = torch.where(held[theirs], values[theirs] - highest[example[windows]].unsqueeze(1), -float("inf"))
    mass = values.new_zeros(batch["char_ends"].shape)
    mass[torch.arange(len(null), device=null.device), null] = (silent - highest)[example].exp()
    mass.index_put_((windows.unsqueeze(1).expand_as(to), to), shifted.exp(), accumulate=True)
    floor = (lowest - highest)[example].unsqueeze(1)
    return torch.where(mass > 0, mass.log(), floor) + highest[example].unsqueeze(1)


def _highest(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """At a token of the passage, the highest of its values in all windows that hold it."""
    one, other = (batch["example"].unsqueeze(1) == batch["example"]).nonzero(as_tuple=True)
    passage = batch["char_ends"] > 0
    places = (batch["char_starts"] * _FAR + batch["char_ends"]).masked_fill(~passage, -1)
    at = torch.searchsorted(places.cummax(1).values[other], places[one].contiguous()).clamp(max=places.shape[1] - 1)
    same = passage[one] & (places[other].gather(1, at) == places[one])
    found = torch.where(same, values[other].gather(1, at), -float("inf"))
    return values.scatter_reduce(0, one.unsqueeze(1).expand_as(found), found, "amax")


def _once(batch: Mapping[str, Tensor]) -> Tensor:
    """``(windows, L)`` bool: the tokens of the passage, each in one window.

    Where two windows overlap, the middle of what both read parts them.
    """
    begin, end = _edges(batch)
    starts, example = batch["char_starts"], batch["example"]
    low, high = torch.full_like(begin, -1), torch.full_like(end, _FAR)
    middle, same = (begin[1:] + end[:-1]) // 2, example[1:] == example[:-1]
    low[1:], high[:-1] = torch.where(same, middle, -1), torch.where(same, middle, _FAR)
    return (batch["char_ends"] > 0) & (starts >= low.unsqueeze(1)) & (starts < high.unsqueeze(1))


def _edges(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where the characters of each window begin and end, ``(windows,)``: up to the tokens beside it in the passage.

    A tokenizer may drop characters there, so that no token holds them. A window without a token holds nothing.
    """
    starts, ends, example = batch["char_starts"], batch["char_ends"], batch["example"]
    passage = ends > 0
    first, behind = starts.masked_fill(~passage, _FAR).amin(1), ends.amax(1)
    same, filled = example[1:] == example[:-1], passage.any(1)
    begin, end = torch.where(filled, -1, first), torch.where(filled, _FAR, behind)
    before = passage[:-1] & (ends[:-1] <= first[1:].unsqueeze(1))
    after = passage[1:] & (starts[1:] >= behind[:-1].unsqueeze(1))
    begin[1:] = torch.where(same, ends[:-1].masked_fill(~before, -1).amax(1), begin[1:])
    end[:-1] = torch.where(same, starts[1:].masked_fill(~after, _FAR).amin(1), end[:-1])
    return begin, end
