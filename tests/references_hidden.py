"""The losses on hidden states once more, one number at a time: slow, plain, and with nothing of torch in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "bert_emd",
    "cka_distance",
    "crd_loss",
    "embedding_mse",
    "fsp",
    "hidden_state_cosine",
    "nst",
    "patient_kd",
    "pkt",
    "pool",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "transport_cost",
]

Vector = Sequence[float]
Rows = Sequence[Vector]
States = Sequence[Rows]
Mask = Sequence[Sequence[bool]]


def _dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _unit(a: Vector) -> list[float]:
    length = math.sqrt(_dot(a, a))
    return [x / length for x in a]


def _flat(nested: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(nested))


def _minus(a: Vector, b: Vector) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _huber(a: float, b: float) -> float:
    error = abs(a - b)
    return error * error / 2 if error < 1 else error - 0.5


def _kept(states: States, mask: Mask) -> list[list[Vector]]:
    """The kept tokens of each example."""
    return [[s for s, keep in zip(*row, strict=True) if keep] for row in zip(states, mask, strict=True)]


def hidden_state_cosine(student: States, teacher: States, mask: Mask) -> float:
    """Sanh et al. 2019: the mean over all kept tokens of one minus the cosine."""
    tokens = zip(_flat(_kept(student, mask)), _flat(_kept(teacher, mask)), strict=True)
    return _mean([1 - _dot(_unit(s), _unit(t)) for s, t in tokens])


def patient_kd(student: Rows, teacher: Rows) -> float:
    """Sun et al. 2019: the mean over examples of the squared distance of unit vectors."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for s_h, t_h in zip(_unit(s), _unit(t), strict=True):
            total += (s_h - t_h) ** 2
    return total / len(student)


def nst(student: Sequence[States], teacher: Sequence[States], mask: Mask) -> float:
    """Huang and Wang 2017, two layers: the mean over token pairs of the squared difference of dot products / width."""
    errors = []
    for s_0, s_1, t_0, t_1 in zip(*(_kept(states, mask) for states in (*student, *teacher)), strict=True):
        for i, j in itertools.product(range(len(s_0)), repeat=2):
            of_student = _dot(s_0[i], s_1[j]) / len(s_0[i])
            of_teacher = _dot(t_0[i], t_1[j]) / len(t_0[i])
            errors.append((of_student - of_teacher) ** 2)
    return _mean(errors)


def fsp(student: Sequence[States], teacher: Sequence[States], mask: Mask) -> float:
    """Yim et al. 2017: the mean over examples and entries of the squared difference of the mean outer products."""
    errors = []
    for s_0, s_1, t_0, t_1 in zip(*(_kept(states, mask) for states in (*student, *teacher)), strict=True):
        if s_0:
            width = len(s_0[0])
            for g, h in itertools.product(range(width), repeat=2):
                of_student = _mean([a[g] * b[h] for a, b in zip(s_0, s_1, strict=True)])
                of_teacher = _mean([a[g] * b[h] for a, b in zip(t_0, t_1, strict=True)])
                errors.append((of_student - of_teacher) ** 2)
    return _mean(errors)


def cka_distance(student: States, teacher: States, mask: Mask) -> float:
    """Kornblith et al. 2019: by Gram matrices between tokens, which is the other form of the same number."""
    grams = []
    for states in (student, teacher):
        tokens = _flat(_kept(states, mask))
        if len(tokens) < 2:
            return 0.0
        means = [_mean(column) for column in zip(*tokens, strict=True)]
        centred = [_minus(token, means) for token in tokens]
        grams.append([[_dot(a, b) for b in centred] for a in centred])
    s, t = (_flat(gram) for gram in grams)
    return 1 - _dot(s, t) / math.sqrt(_dot(s, s) * _dot(t, t))


def pool(states: States, mask: Mask, pooling: str) -> list[list[float]]:
    """The first kept token of each example, or the mean of its kept tokens; zeros if there are none."""
    width = len(states[0][0])
    vectors = []
    for tokens in _kept(states, mask):
        chosen = tokens[:1] if pooling == "first" else tokens
        vectors.append([_mean([token[h] for token in chosen]) for h in range(width)])
    return vectors


def embedding_mse(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Reimers and Gurevych 2020: the mean over texts that have an embedding, and dimensions, of the squared error."""
    squares = [
        (a - b) ** 2
        for s, t in zip(_examples(student, mask), _examples(teacher, mask), strict=True)
        for a, b in zip(s, t, strict=True)
    ]
    return _mean(squares) if squares else 0.0


def _examples(rows: Rows, mask: Sequence[bool]) -> list[Vector]:
    return [row for row, keep in zip(rows, mask, strict=True) if keep]


def rkd_distance(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Park et al. 2019: Huber between distances, each over its model's mean distance, over pairs of examples."""
    each = []
    for rows in (student, teacher):
        kept = _examples(rows, mask)
        distances = [math.dist(a, b) for i, a in enumerate(kept) for j, b in enumerate(kept) if i != j]
        each.append([distance / _mean(distances) for distance in distances])
    return _mean([_huber(s, t) for s, t in zip(*each, strict=True)])


def rkd_angle(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Park et al. 2019: Huber between cosines of the angles of triples of examples."""
    each = []
    for rows in (student, teacher):
        triples = itertools.permutations(_examples(rows, mask), 3)
        each.append([_dot(_unit(_minus(a, b)), _unit(_minus(c, b))) for a, b, c in triples])
    return _mean([_huber(s, t) for s, t in zip(*each, strict=True)])


def similarity_preserving(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Tung and Mori 2019: the mean squared difference of the row-normalised Gram matrices of examples."""
    each = []
    for rows in (student, teacher):
        kept = _examples(rows, mask)
        each.append(_flat(_unit([_dot(a, b) for b in kept]) for a in kept))
    return _mean([(s - t) ** 2 for s, t in zip(*each, strict=True)])


def pkt(student: Rows, teacher: Rows, mask: Sequence[bool]) -> float:
    """Passalis and Tefas 2018: the mean over examples of KL(teacher || student) of their neighbours."""
    each = []
    for rows in (student, teacher):
        kept = _examples(rows, mask)
        probabilities = []
        for i, a in enumerate(kept):
            kernel = [max((_dot(_unit(a), _unit(b)) + 1) / 2, 1e-7) for j, b in enumerate(kept) if j != i]
            probabilities.append([value / sum(kernel) for value in kernel])
        each.append(probabilities)
    divergences = [
        sum(p_j * math.log(p_j / q_j) for q_j, p_j in zip(q, p, strict=True)) for q, p in zip(*each, strict=True)
    ]
    return _mean(divergences)


def crd_loss(student: Rows, teacher: Rows, tau: float, mask: Sequence[bool]) -> float:
    """Tian et al. 2020 with in-batch negatives: the mean over anchors of -log of the positive's share."""
    anchors, others = _examples(student, mask), _examples(teacher, mask)
    losses = []
    for i, anchor in enumerate(anchors):
        scores = [_dot(_unit(anchor), _unit(other)) / tau for other in others]
        highest = max(scores)
        total = sum(math.exp(score - highest) for score in scores)
        losses.append(math.log(total) + highest - scores[i])
    return _mean(losses)


def transport_cost(distances: Rows) -> float:
    """The least cost of a flow between layers of equal weights: every assignment of their equal parts is tried."""
    parts = math.lcm(len(distances), len(distances[0]))
    rows = [i * len(distances) // parts for i in range(parts)]
    columns = [j * len(distances[0]) // parts for j in range(parts)]
    costs = [
        sum(distances[i][columns[j]] for i, j in zip(rows, order, strict=True))
        for order in itertools.permutations(range(parts))
    ]
    return min(costs) / parts


def bert_emd(student: Sequence[States], teacher: Sequence[States], mask: Mask) -> float:
    """Li et al. 2020: the least cost of a flow at the mean squared error of each pair of layers."""

    def mse(s: States, t: States) -> float:
        numbers = zip(*(_flat(_flat(_kept(states, mask))) for states in (s, t)), strict=True)
        return _mean([(a - b) ** 2 for a, b in numbers])

    return transport_cost([[mse(s, t) for t in teacher] for s in student])
