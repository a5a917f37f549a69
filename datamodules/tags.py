"""Tags of words in one scheme: IOB2, whatever the data has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from datasets import ClassLabel, Dataset, List
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray

from lightning_kd._checks import InputError

__all__ = ["in_iob2"]

#: What a tag's first letter says, in IOB1, IOB2, BIOES, BILOU and BMES: 1 a beginning, 2 an inside.
_LETTERS = {"B": 1, "S": 1, "U": 1, "I": 2, "E": 2, "L": 2, "M": 2}
_TAG = re.compile(rf"[{''.join(_LETTERS)}]-.+", re.DOTALL)


def in_iob2(splits: Mapping[str, Dataset], column: str, name: str) -> dict[str, Dataset]:
    """The splits with tags in IOB2, as lists of one ``ClassLabel`` for all of them.

    The entities stay what they are. Names that are IOB2 keep their numbers; else they are ``O`` and, type by type, its
    ``B-`` and ``I-``, of the types of all splits. A tag that the training split does not have is named in the log.

    Args:
        splits: Rows by the split's name.
        column: Lists of strings or of ``ClassLabel``; null for a row without tags.
        name: Of the data set, for messages.

    Returns:
        As given where the tags are numbers without names.

    Raises:
        InputError: If a tag is in none of the schemes IOB1, IOB2, BIOES, BILOU and BMES.
    """
    tags = {split: list(rows[column]) for split, rows in splits.items() if column in rows.column_names}
    kinds = {split: getattr(splits[split].features[column], "feature", None) for split in tags}
    given = next((kind.names for kind in kinds.values() if isinstance(kind, ClassLabel)), None)
    if given is None:
        if any(isinstance(tag, int) for tag in _flat(next(iter(tags.values()), []))[:1]):
            return dict(splits)
        found = sorted({tag for rows in tags.values() for tag in _flat(rows)})
    else:
        found = list(given)
    unknown = next((tag for tag in found if tag != "O" and not _TAG.fullmatch(str(tag))), None)
    if unknown is not None:
        raise InputError(
            f"Expected the tags of {name} to be in IOB2, IOB1, BIOES, BILOU or BMES (O, B-PER, I-PER, ...), "
            f"but there is {unknown!r}: convert the tags first."
        )
    types = sorted({tag[2:] for tag in found if tag != "O"})
    names = ["O", *(f"{letter}-{kind}" for kind in types for letter in "BI")]
    if set(found) == set(names):
        names = found if given is not None else names
    number = {tag: i for i, tag in enumerate(names)}
    letters = np.asarray([0 if tag == "O" else _LETTERS[tag[0]] for tag in found], dtype=np.int64)
    type_of = np.asarray([-1 if tag == "O" else types.index(tag[2:]) for tag in found], dtype=np.int64)
    begins = np.asarray([number["O" if tag == "O" else f"B-{tag[2:]}"] for tag in found], dtype=np.int64)
    insides = np.asarray([number["O" if tag == "O" else f"I-{tag[2:]}"] for tag in found], dtype=np.int64)
    places = {tag: i for i, tag in enumerate(found)}
    converted, used = {}, {}
    for split, rows in tags.items():
        at = np.asarray([tag if given is not None else places[tag] for tag in _flat(rows)], dtype=np.int64)
        starts = np.cumsum([0, *(len(row or []) for row in rows)])
        before = np.concatenate([[-1], type_of[at]])[:-1]
        before[starts[:-1][starts[:-1] < len(at)]] = -1
        is_beginning = (letters[at] == 1) | ((letters[at] == 2) & (type_of[at] != before))
        new = np.where(is_beginning, begins[at], insides[at])
        moved = int((is_beginning & (letters[at] == 2)).sum())
        if moved:
            rank_zero_info(f"{moved:,} entities of {split} begin with I- (IOB1): their first tags are read as B-")
        used[split] = np.bincount(new, minlength=len(names))
        numbers = [
            None if row is None else new[a:b].tolist() for row, a, b in zip(rows, starts, starts[1:], strict=False)
        ]
        converted[split] = (
            splits[split].remove_columns(column).add_column(column, numbers, feature=List(ClassLabel(names=names)))
        )
    other = sorted({tag[0] for tag in found} - set("OBI"))
    if other:
        rank_zero_info(f"The tags of {name} have the letters {', '.join(other)}: they are read as IOB2")
    _name_unseen(used, names)
    return {**splits, **converted}


def _name_unseen(used: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> None:
    for split, counts in used.items():
        if "train" in used and (unseen := np.flatnonzero((counts > 0) & (used["train"] == 0)).tolist()):
            shown = ", ".join(f"{names[tag]} ({counts[tag]:,})" for tag in unseen)
            rank_zero_info(f"Train has no tag {shown}, which {split} has: nothing can learn it, and it is counted")


def _flat(rows: Sequence[Sequence[int | str] | None]) -> list[int | str]:
    return list(chain.from_iterable(row or [] for row in rows))
