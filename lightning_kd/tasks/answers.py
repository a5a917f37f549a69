"""Exact match and F1 of answers, as the sets of questions define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scoring", "answer_scores", "best_null_threshold"]

Scoring = Literal["squad", "cmrc2018"]

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
#: What CMRC 2018 leaves out before it compares.
_CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001  # its own signs
#: A Chinese character, or a word between such: numbers and abbreviations are whole, other signs stand alone.
_CMRC_SEGMENT = re.compile(r"[\u4e00-\u9fa5]|(?:(?![\u4e00-\u9fa5])\w)+(?:[.,](?=\d)\d+)*|\S")


def answer_scores(
    prediction: str, answers: Sequence[str], scoring: Scoring = "squad", unanswerable: bool = False
) -> tuple[float, float]:
    """Exact match and F1 of one prediction, each the highest over the true answers.

    ``squad`` (Rajpurkar et al. 2016, arXiv 1606.05250) compares words, in lower case and without punctuation and
    articles; F1 is that of both bags of words. With ``unanswerable`` (Rajpurkar et al. 2018, arXiv 1806.03822) answers
    without a word do not count, and where none is left an empty prediction is right. ``cmrc2018`` (Cui et al. 2019,
    arXiv 1810.07366) compares Chinese characters and other words, in lower case and without its list of signs; F1 is
    that of the longest run of segments which both share. Words of other languages within Chinese are cut at white space
    and signs here, where the official script asks NLTK.

    Args:
        prediction: The predicted answer; empty for no answer.
        answers: The true ones; none where there is no answer.
        scoring: By whose rules.
        unanswerable: Whether questions may have no answer.

    Returns:
        Both from 0 to 1; 0 where no answer is known and none is allowed to be missing.

    Example:
        >>> answer_scores("in the 10th century", ["10th century", "the 10th and 11th centuries"])
        (0.0, 0.8)
        >>> answer_scores("", [], unanswerable=True)
        (1.0, 1.0)
    """
    segments = _words if scoring == "squad" else _segments
    normal: Callable[[str], str] = _normal if scoring == "squad" else _without_signs
    if unanswerable:
        answers = [answer for answer in answers if normal(answer)] or [""]
    predicted = segments(prediction)
    exact = any(normal(answer) == normal(prediction) for answer in answers)
    common = _in_common if scoring == "squad" else _longest_run
    best = 0.0
    for answer in answers:
        actual = segments(answer)
        if actual and predicted:
            best = max(best, 2 * common(actual, predicted) / (len(actual) + len(predicted)))
        elif unanswerable and actual == predicted:
            best = 1.0
    return float(exact), best


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split())


def _words(text: str) -> list[str]:
    return _normal(text).split()


def _in_common(one: list[str], other: list[str]) -> int:
    return (Counter(one) & Counter(other)).total()


def _without_signs(text: str) -> str:
    return text.lower().strip().translate(_CMRC_PUNCTUATION)


def _segments(text: str) -> list[str]:
    return _CMRC_SEGMENT.findall(_without_signs(text))


def _longest_run(one: list[str], other: list[str]) -> int:
    """The length of the longest run that both lists hold."""
    longest = 0
    before = [0] * (len(other) + 1)
    for item in one:
        here = [0] * (len(other) + 1)
        for i, against in enumerate(other):
            if item == against:
                here[i + 1] = before[i] + 1
        longest = max(longest, *here)
        before = here
    return longest


def best_null_threshold(
    differences: NDArray[np.float64], answered: NDArray[np.float64], silent: NDArray[np.float64]
) -> float:
    """The threshold of the highest score in all, where a question whose difference is above it gets no answer.

    Args:
        differences: ``(rows,)``, the score of "no answer" less that of the best answer.
        answered: ``(rows,)``, what the best answer is worth.
        silent: ``(rows,)``, what no answer is worth.

    Returns:
        Midway between the two differences that it parts; the largest of equally good ones.

    Example:
        >>> best_null_threshold(np.array([-3.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
        1.5
    """
    order = np.argsort(differences, kind="stable")
    sorted_ = differences[order]
    gains = np.cumsum(np.concatenate([[0.0], (answered - silent)[order]]))  # entry i: the first i rows are answered
    cuts = np.concatenate([[sorted_[0] - 1], (sorted_[:-1] + sorted_[1:]) / 2, [sorted_[-1] + 1]])
    parts = np.concatenate([[True], sorted_[:-1] < sorted_[1:], [True]])  # rows of one difference go together
    best = np.flatnonzero(parts & (gains >= gains[parts].max() - 1e-12))[-1]
    return float(cuts[best])
