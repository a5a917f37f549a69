"""The formulas of the losses on attention once more, one number at a time and with nothing of torch in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["attention_cross_entropy", "attention_kl", "attention_mse", "attention_scores", "relation_heads"]

Matrix = Sequence[Sequence[float]]
Heads = Sequence[Sequence[Matrix]]  # batch, head, row, column
Mask = Sequence[Sequence[bool]]


def attention_scores(queries: Heads, keys: Heads) -> list[list[list[list[float]]]]:
    """Dot products of every query with every key of its head, divided by the root of their width."""
    return [
        [
            [[sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in key_head] for q in query_head]
            for query_head, key_head in zip(query_text, key_text, strict=True)
        ]
        for query_text, key_text in zip(queries, keys, strict=True)
    ]


def relation_heads(vectors: Heads, number: int) -> list[list[list[list[float]]]]:
    """Each token's heads written one after the other and cut into ``number`` pieces."""
    result = []
    for text in vectors:
        tokens = [[x for head in text for x in head[i]] for i in range(len(text[0]))]
        size = len(tokens[0]) // number
        result.append([[token[n * size : (n + 1) * size] for token in tokens] for n in range(number)])
    return result


def _pairs_of_rows(student: Heads, teacher: Heads, mask: Mask) -> Iterator[tuple[list[float], list[float]]]:
    """The scores of each kept query in each head, at the kept keys."""
    for student_text, teacher_text, keep in zip(student, teacher, mask, strict=True):
        for student_head, teacher_head in zip(student_text, teacher_text, strict=True):
            for i, (s, t) in enumerate(zip(student_head, teacher_head, strict=True)):
                if keep[i]:
                    yield [x for x, k in zip(s, keep, strict=True) if k], [x for x, k in zip(t, keep, strict=True) if k]


def _log_softmax(row: Sequence[float]) -> list[float]:
    highest = max(row)
    normalizer = highest + math.log(sum(math.exp(x - highest) for x in row))
    return [x - normalizer for x in row]


def attention_mse(student: Heads, teacher: Heads, mask: Mask) -> float:
    """Jiao et al. 2020, eq. 7: the mean over heads and over all kept pairs of tokens of the batch."""
    errors = [(x - y) ** 2 for s, t in _pairs_of_rows(student, teacher, mask) for x, y in zip(s, t, strict=True)]
    return sum(errors) / len(errors) if errors else 0.0


def attention_cross_entropy(student: Heads, teacher: Heads, mask: Mask) -> float:
    """The mean over heads and over all kept queries of the cross-entropy over the kept keys."""
    rows = []
    for s, t in _pairs_of_rows(student, teacher, mask):
        rows.append(-sum(math.exp(p) * q for q, p in zip(_log_softmax(s), _log_softmax(t), strict=True)))
    return sum(rows) / len(rows) if rows else 0.0


def attention_kl(student: Heads, teacher: Heads, mask: Mask) -> float:
    """Wang et al. 2020, sec. 3.1: the mean over heads and over all kept queries of KL(teacher || student)."""
    rows = []
    for s, t in _pairs_of_rows(student, teacher, mask):
        rows.append(sum(math.exp(p) * (p - q) for q, p in zip(_log_softmax(s), _log_softmax(t), strict=True)))
    return sum(rows) / len(rows) if rows else 0.0
