"""Exact match and F1 against a second reading of the official definitions."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from lightning_kd.tasks.answers import answer_scores, best_null_threshold


def slow_words(text: str) -> list[str]:
    """Lower case, no ASCII punctuation, no articles, cut at white space: character by character."""
    kept = ""
    for character in text.lower():
        if character not in string.punctuation:
            kept += character
    words: list[str] = []
    for chunk in kept.split():
        # An article is one between word boundaries, also beside a sign that is no ASCII punctuation.
        runs: list[str] = []
        for character in chunk:
            is_word = character.isalnum() or character == "_"
            if runs and (runs[-1][-1].isalnum() or runs[-1][-1] == "_") == is_word:
                runs[-1] += character
            else:
                runs.append(character)
        words += "".join(" " if run in ("a", "an", "the") else run for run in runs).split()
    return words


def slow_squad(prediction: str, answers: Sequence[str], second: bool) -> tuple[float, float]:
    """SQuAD v1.1, or v2 with ``second``."""
    golds = list(answers)
    if second:
        golds = [gold for gold in golds if slow_words(gold)]
        if len(golds) == 0:
            golds = [""]
    exact = f1 = 0.0
    for gold in golds:
        one, other = slow_words(gold), slow_words(prediction)
        if " ".join(one) == " ".join(other):
            exact = 1.0
        left, same = list(other), 0
        for word in one:
            if word in left:
                left.remove(word)
                same += 1
        if second and (not one or not other):
            score = 1.0 if one == other else 0.0
        elif same == 0:
            score = 0.0
        else:
            precision, recall = same / len(other), same / len(one)
            score = 2 * precision * recall / (precision + recall)
        f1 = max(f1, score)
    return exact, f1


SIGNS = list("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001  # CMRC's own


def slow_cmrc(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """CMRC 2018 for texts whose other words are plain: letters, digits and white space."""

    def cut(text: str) -> list[str]:
        segments, word = [], ""
        for character in [c for c in text.lower().strip() if c not in SIGNS]:
            if "\u4e00" <= character <= "\u9fa5" or character.isspace():
                segments += [word] if word else []
                segments += [] if character.isspace() else [character]
                word = ""
            else:
                word += character
        return segments + ([word] if word else [])

    exact = f1 = 0.0
    for answer in answers:
        if [c for c in answer.lower().strip() if c not in SIGNS] == [
            c for c in prediction.lower().strip() if c not in SIGNS
        ]:
            exact = 1.0
        one, other = cut(answer), cut(prediction)
        longest = 0
        for i in range(len(one)):
            for j in range(i + 1, len(one) + 1):
                if any(other[k : k + j - i] == one[i:j] for k in range(len(other))):
                    longest = max(longest, j - i)
        if longest:
            precision, recall = longest / len(other), longest / len(one)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


def spoiled(answer: str, context: str, start: int, rng: random.Random) -> list[str]:
    """Predictions from exact to far off."""
    end = start + len(answer)
    return [
        answer,
        answer[: max(1, len(answer) // 2)],
        context[max(0, start - rng.randrange(12)) : end + rng.randrange(12)],
        context[max(0, start - 20) : max(0, start - 1)],
        f"The {answer.upper()}!",
        f"“{answer}” — a",
        f"  an {answer},\tthe\n",
        "",
        rng.choice(context.split()),
    ]


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_squad_on_real_answers(name: str, shared: Path) -> None:
    """Stops an F1 that is near the official one, but for articles, signs, repeated words or missing answers."""
    rows = load_dataset(str(shared / "data" / name), split="validation").select(range(0, 5000, 10))
    rng, compared = random.Random(0), 0
    for row in rows:
        golds = row["answers"]["text"]
        start = row["answers"]["answer_start"][0] if golds else 10
        for prediction in spoiled(golds[0] if golds else "in the", row["context"], start, rng):
            second = name == "squad_v2"
            found = answer_scores(prediction, golds, unanswerable=second)
            assert found == pytest.approx(slow_squad(prediction, golds, second)), (prediction, golds)
            compared += 1
    assert len(rows) == 500 and compared == 4500


def test_cmrc_on_real_answers(shared: Path) -> None:
    """Stops Chinese from being scored as one long word, and a common subsequence from counting as a common run."""
    rows = load_dataset(str(shared / "data" / "cmrc2018"), split="validation").select(range(0, 1500, 3))
    rng, compared = random.Random(0), 0
    for row in rows:
        golds = row["answers"]["text"]
        for prediction in spoiled(golds[0], row["context"], row["answers"]["answer_start"][0], rng):
            plain = [t for t in (prediction, *golds) if all(c.isalnum() or c.isspace() or c in SIGNS for c in t)]
            if len(plain) == len(golds) + 1:
                assert answer_scores(prediction, golds, "cmrc2018") == pytest.approx(slow_cmrc(prediction, golds))
                compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    ("prediction", "golds", "second", "expected"),
    [
        ("The Normans!", ["normans"], False, (1, 1)),
        ("a an the", ["the"], False, (1, 0)),  # v1.1 has no F1 for a text without a word
        ("a an the", ["the"], True, (1, 1)),  # v2: the answer does not count, and an empty prediction is right
        ("", [], True, (1, 1)),
        ("Rome", [], True, (0, 0)),
        ("", ["Rome"], True, (0, 0)),
        ("", ["Rome"], False, (0, 0)),
        ("Rome Rome", ["Rome"], False, (0, 2 / 3)),
        ("Rome", ["Paris", "Rome, Italy", "rome"], False, (1, 1)),
        ("10–11", ["10 11"], False, (0, 0)),  # noqa: RUF001  # only ASCII punctuation is taken out
        ("U.S.", ["us"], False, (1, 1)),
        ("theatre", ["the atre"], False, (0, 0)),
    ],
)
def test_worked_cases(prediction: str, golds: list[str], second: bool, expected: tuple[float, float]) -> None:
    """Stops the rules for articles, signs and missing answers from being mixed between the two versions."""
    assert answer_scores(prediction, golds, unanswerable=second) == pytest.approx(expected)
    assert slow_squad(prediction, golds, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("光荣和ω-force", ["光荣和ω-force"], (1, 1)),
        ("光荣", ["光荣和ω-force"], (0, 2 * 2 / 6)),  # 光 荣 和 ωforce
        ("《三国志》", ["三国志"], (1, 1)),
        ("志国三", ["三国志"], (0, 1 / 3)),
        ("三x国x志", ["三国志"], (0, 2 / 8)),  # the longest run is one segment, the longest subsequence would be three
        ("10,000人", ["10,000人"], (1, 1)),
        ("2009年5月", ["2009年"], (0, 2 * 2 / 6)),
        ("", ["三国志"], (0, 0)),
        ("……", ["…"], (0, 2 / 3)),  # the official list names two dots at once, which no single one equals
    ],
)
def test_worked_cases_in_chinese(prediction: str, golds: list[str], expected: tuple[float, float]) -> None:
    """Stops words of other languages from being cut into letters, and signs from counting."""
    assert answer_scores(prediction, golds, "cmrc2018") == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0])),
        min_size=1,
        max_size=12,
    )
)
def test_no_other_threshold_is_better(rows: list[tuple[float, float, float]]) -> None:
    """Stops an order or an edge that is off by one, which makes a good threshold look best."""
    differences, answered, silent = (np.asarray(column, dtype=float) for column in zip(*rows, strict=True))

    def total(threshold: float) -> float:
        return sum(s if d > threshold else a for d, a, s in rows)

    best = best_null_threshold(differences, answered, silent)
    tried = [-9.0, *(d + e for d in differences for e in (-0.3, 0.0, 0.3)), 9.0]
    assert total(best) == pytest.approx(max(map(total, tried)))
