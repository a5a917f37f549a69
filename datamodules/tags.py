"""Tags of words in one scheme: IOB2, whatever the data has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

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
    tags = {split: rows[column][:] for split, rows in splits.items() if column in rows.column_names}
    kinds = (getattr(splits[split].features[column], "feature", None) for split in tags)
    given = next((list(kind.names) for kind in kinds if isinstance(kind, ClassLabel)), None)
    values = {split: list(itertools.chain.from_iterable(row or [] for row in rows)) for split, rows in tags.items()}
    if given is None and any(isinstance(value, int) for some in values.values() for value in some[:1]):
        return dict(splits)
    found: list[str] = given or sorted({value for some in values.values() for value in some})
    unknown = next((tag for tag in found if tag != "O" and not _TAG.fullmatch(str(tag))), None)
    if unknown is not None:
        raise InputError(
            f"Expected the tags of {name} to be in IOB2, IOB1, BIOES, BILOU or BMES (O, B-PER, I-PER, ...), "
            f"but there is {unknown!r}: convert the tags first."
        )
    types = sorted({tag[2:] for tag in found if tag != "O"})
    names = ["O", *(f"{letter}-{kind}" for kind in types for letter in "BI")]
    if given is not None and set(given) == set(names):
        names = given

    def by_tag(value: Callable[[str], int], outside: int) -> NDArray[np.int64]:
        return np.asarray([outside if tag == "O" else value(tag) for tag in found], dtype=np.int64)

    outside = names.index("O")
    letters, type_of = by_tag(lambda tag: _LETTERS[tag[0]], 0), by_tag(lambda tag: types.index(tag[2:]), -1)
    begins = by_tag(lambda tag: names.index(f"B-{tag[2:]}"), outside)
    insides = by_tag(lambda tag: names.index(f"I-{tag[2:]}"), outside)
    places = {tag: i for i, tag in enumerate(found)}
    converted, used = {}, {}
    for split, rows in tags.items():
        at = np.asarray(values[split] if given else [places[tag] for tag in values[split]], dtype=np.int64)
        bounds = np.cumsum([0, *(len(row or []) for row in rows)])
        before = np.concatenate([[-1], type_of[at]])[:-1]
        before[bounds[bounds < len(at)]] = -1
        is_beginning = (letters[at] == 1) | ((letters[at] == 2) & (type_of[at] != before))
        new = np.where(is_beginning, begins[at], insides[at])
        if moved := int((is_beginning & (letters[at] == 2)).sum()):
            rank_zero_info(f"{moved:,} entities of {split} begin with I- (IOB1): their first tags are read as B-")
        used[split] = np.bincount(new, minlength=len(names))
        pairs = itertools.pairwise(bounds.tolist())
        numbers = [None if row is None else new[a:b].tolist() for row, (a, b) in zip(rows, pairs, strict=True)]
        labels = List(ClassLabel(names=names))
        converted[split] = splits[split].remove_columns(column).add_column(column, numbers, feature=labels)
    if other := sorted({tag[0] for tag in found} - set("OBI")):
        rank_zero_info(f"The tags of {name} have the letters {', '.join(other)}: they are read as IOB2")
    _name_unseen(used, names)
    return {**splits, **converted}


def _name_unseen(used: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> None:
    for split, counts in used.items():
        if "train" in used and (unseen := np.flatnonzero((counts > 0) & (used["train"] == 0)).tolist()):
            shown = ", ".join(f"{names[tag]} ({counts[tag]:,})" for tag in unseen)
            rank_zero_info(f"Train has no tag {shown}, which {split} has: nothing can learn it, and it is counted")
