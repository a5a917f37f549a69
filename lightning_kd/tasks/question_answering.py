"""Extractive question answering: the answer is a stretch of the passage, or there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.answers import Scoring, answer_scores
from lightning_kd.tasks.base import IGNORED, Task
from lightning_kd.tasks.passages import PassageEncoder
from lightning_kd.tasks.positions import carry_positions
from lightning_kd.tasks.windows import all_windows

__all__ = ["AnswerScore", "QuestionAnswering", "Spans", "answer_positions", "best_spans"]

#: Tokens in a window, where the tokenizer does not say what the model can read.
_LONGEST = 512
_FAR = 2**31 - 1


def answer_positions(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where the answer begins and ends in each window, by its characters.

    A window that does not hold the whole answer has none: its label is the token that stands for "no answer", in sets
    without unanswerable questions, too (Devlin et al. 2019, arXiv 1810.04805).

    Args:
        batch: With ``labels`` ``(rows, 2)``: the answer's first character and the one behind its last; both 0 where
            there is no answer, below 0 where it is not known. With ``example`` ``(windows,)``, and ``char_starts`` and
            ``char_ends`` ``(windows, L)``.

    Returns:
        First and last token, ``(windows,)``; ``IGNORED`` where the answer is not known or no window holds it.
    """
    starts, ends, example = batch["char_starts"], batch["char_ends"], batch["example"]
    begin, end = batch["labels"][example].unsqueeze(-1).unbind(1)
    inside = (ends > begin) & (starts < end) & (ends > 0)
    first = starts.masked_fill(~inside, _FAR).amin(1)
    last = ends.masked_fill(~inside, -1).amax(1)
    rows = starts.new_zeros(len(batch["labels"]))
    whole_first = rows.scatter_reduce(0, example, first, "amin", include_self=False)
    whole_last = rows.scatter_reduce(0, example, last, "amax", include_self=False)
    held = inside.any(1) & (first == whole_first[example]) & (last == whole_last[example])
    found = rows.scatter_reduce(0, example, held.to(rows.dtype), "amax", include_self=False)
    known = (begin >= 0).squeeze(1) & ((end == 0).squeeze(1) | (found > 0)[example])
    null = (ends == 0).int().argmax(1)
    from_behind = inside.shape[1] - 1 - inside.flip(1).int().argmax(1)
    positions = torch.where(held, inside.int().argmax(1), null), torch.where(held, from_behind, null)
    return torch.where(known, positions[0], IGNORED), torch.where(known, positions[1], IGNORED)


@dataclass(frozen=True)
class Spans:
    """The best answer to each question, over all its windows.

    Attributes:
        starts: ``(rows,)`` int64, the answer's first character.
        ends: ``(rows,)`` int64, the one behind its last.
        scores: ``(rows,)`` float32, the sum of both logits; minus infinity where the passage has no token.
        null_scores: ``(rows,)`` float32, the sum of both logits of "no answer", in the window where it is least.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor
    null_scores: Tensor


def best_spans(logits: Mapping[str, Tensor], batch: Mapping[str, Tensor], max_answer_length: int) -> Spans:
    """The stretch of the passage with the highest sum of start and end logit: all of them are looked at.

    Args:
        logits: ``start`` and ``end``, ``(windows, L)``.
        batch: With ``example`` ``(windows,)``, and ``char_starts`` and ``char_ends`` ``(windows, L)``.
        max_answer_length: Tokens of an answer at most.
    """
    start, end = logits["start"].float(), logits["end"].float()
    starts, ends, example = batch["char_starts"], batch["char_ends"], batch["example"]
    outside = ends <= 0
    null = (start + end).masked_fill(ends != 0, float("inf")).amin(1)
    start, end = start.masked_fill(outside, -float("inf")), end.masked_fill(outside, -float("inf"))
    longest = min(max_answer_length, start.shape[1])
    ahead = F.pad(end, (0, longest - 1), value=-float("inf")).unfold(1, longest, 1)  # (windows, L, longest)
    best, at = (start.unsqueeze(-1) + ahead).flatten(1).max(1)
    first = at // longest
    last = (first + at % longest).clamp(max=start.shape[1] - 1)
    rows = best.new_zeros(len(batch["index"]))
    scores = rows.scatter_reduce(0, example, best, "amax", include_self=False)
    windows = torch.arange(len(example), device=example.device)
    loses = best != scores[example]
    winner = torch.zeros_like(rows, dtype=torch.int64).scatter_reduce(
        0, example, windows.masked_fill(loses, _FAR), "amin", include_self=False
    )
    return Spans(
        starts=starts[winner, first[winner]],
        ends=ends[winner, last[winner]],
        scores=scores,
        null_scores=rows.scatter_reduce(0, example, null, "amin", include_self=False),
    )


class AnswerScore(Metric):
    """Mean over rows of a score that each row already has.

    Args:
        column: Which of the row's scores.
        answerable: Of the rows with an answer alone, or of those without; all of them unless given.
    """

    total: Tensor
    count: Tensor

    def __init__(self, column: int, answerable: bool | None = None) -> None:
        super().__init__()
        self.column = column
        self.answerable = answerable
        for state in ("total", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Add the scores of some rows.

        Args:
            predictions: Not read: texts are compared where they are.
            target: ``(rows, 3)``: exact match, F1, and whether there is an answer.
        """
        kept = target if self.answerable is None else target[target[:, 2] == float(self.answerable)]
        self.total += kept[:, self.column].double().sum()
        self.count += len(kept)

    def compute(self) -> Tensor:
        return (self.total / self.count.clamp(min=1)).float()


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Answers that are stretches of a passage: logits ``start`` and ``end`` over the tokens of each window.

    The tokens of the passage, and the first special one for "no answer", are the classes; all others have no part in
    any softmax. Metrics: ``f1``, ``exact_match``; with ``null_threshold`` also ``f1_answerable`` and
    ``f1_unanswerable``.

    Args:
        null_threshold: A question gets no answer if the score of "no answer" is above that of the best answer by more
            than this. ``None`` where every question has an answer. A model for which
            :class:`~lightning_kd.callbacks.NullThreshold` has found one keeps it as ``null_threshold`` in its
            configuration, and that is taken instead.
        max_answer_length: Tokens of an answer at most, 1 or more.
        scoring: Whose rules exact match and F1 follow, see :func:`~lightning_kd.tasks.answers.answer_scores`.

    Raises:
        InputError: If a value is out of its range.
    """

    null_threshold: float | None = None
    max_answer_length: int = 30
    scoring: Scoring = "squad"

    auto_class: ClassVar[Any] = AutoModelForQuestionAnswering
    per_token: ClassVar[bool] = True
    masks_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_answer_length < 1:
            raise expected("max_answer_length", "1 or more", self.max_answer_length)
        if self.scoring not in get_args(Scoring):
            raise expected("scoring", f"one of {', '.join(get_args(Scoring))}", self.scoring)

    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        names = list(label_names or [])
        if names != ["start", "end"]:
            found = ", ".join(names) or "scores"
            raise InputError(f"QuestionAnswering needs data with answers, but these have {found}.")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = None
        if self.null_threshold is None or getattr(config, "null_threshold", None) is None:
            config.null_threshold = self.null_threshold
        config.max_answer_length = self.max_answer_length

    def with_config(self, config: PretrainedConfig) -> QuestionAnswering:
        found = {name: getattr(config, name, getattr(self, name)) for name in ("null_threshold", "max_answer_length")}
        return replace(self, **found)

    def check(self, data: Any) -> None:
        if self.null_threshold is None and (count := getattr(data, "num_unanswerable", 0)):
            raise InputError(
                f"{count:,} questions of the data have no answer, but the task answers every question: set "
                "model.task.init_args.null_threshold to 0, or leave these questions out of the data."
            )

    def logits(self, output: Any) -> dict[str, Tensor]:
        return {"start": output.start_logits, "end": output.end_logits}

    def logit_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = torch.ones_like(batch["example"], dtype=torch.bool)
        return {"start": mask, "end": mask}

    def transfer(self, name: str, values: Tensor, own: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Where the answer begins or ends for the teacher, at the tokens of the same characters for the student."""
        return carry_positions(values, own, batch, last=name == "end")

    def class_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        allowed = batch["char_ends"] >= 0
        return {"start": allowed, "end": allowed}

    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(("start", "end"), answer_positions(batch), strict=True))

    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        masks = self.class_masks(batch)
        terms = []
        for name, labels in self.hard_labels(batch).items():
            values = logits[name].float().masked_fill(~masks[name], -float("inf"))
            total = F.cross_entropy(values, labels, ignore_index=IGNORED, reduction="sum")
            terms.append(total / (labels != IGNORED).sum().clamp(min=1))
        return torch.stack(terms).mean()

    def metrics(self, names: Sequence[str], label_names: Sequence[str] | None) -> MetricCollection:
        known: dict[str, tuple[int, bool | None]] = {"f1": (1, None), "exact_match": (0, None)}
        if self.null_threshold is not None:
            known |= {"f1_answerable": (1, True), "f1_unanswerable": (1, False)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise expected("metric_names", f"among {', '.join(known)}", ", ".join(unknown))
        scores = {name: AnswerScore(*known[name]) for name in names}
        return MetricCollection(scores, compute_groups=False)  # type: ignore[arg-type]  # a dict of metrics

    def detailed_metrics(self, label_names: Sequence[str] | None) -> list[str]:
        return [] if self.null_threshold is None else ["f1_answerable", "f1_unanswerable"]

    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The answers' places, each as one number ``(rows,)``, and their scores ``(rows, 3)``."""
        spans = best_spans(logits, batch, self.max_answer_length)
        silent = self._silent(spans)
        texts = ["" if no else text for no, text in zip(silent.tolist(), _texts(spans, batch), strict=True)]
        places = (spans.starts << 32 | spans.ends).masked_fill(silent, 0)
        return places, self._scores(texts, batch).to(places.device)

    def show(
        self, outcome: Tensor, texts: Sequence[Any] | None, label_names: Sequence[str] | None, other: Tensor
    ) -> str:
        start, end = int(outcome) >> 32, int(outcome) & 0xFFFFFFFF
        if start == end or int(outcome) < 0:
            return "no answer"
        return texts[-1][start:end] if texts else f"characters {start} to {end}"

    def null_outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        """What a threshold is found by, ``(rows, 3)`` float64.

        The score of "no answer" less that of the best answer; the F1 of the best answer; the F1 of no answer.
        """
        spans = best_spans(logits, batch, self.max_answer_length)
        answered = self._scores(_texts(spans, batch), batch)[:, 1]
        silent = self._scores([""] * len(answered), batch)[:, 1]
        return torch.stack([(spans.null_scores - spans.scores).double().cpu(), answered.double(), silent.double()], 1)

    def _silent(self, spans: Spans) -> Tensor:
        """``(rows,)`` bool, True where there is no answer."""
        none = spans.scores == -float("inf")
        if self.null_threshold is None:
            return none
        return none | (spans.null_scores - spans.scores > self.null_threshold)

    def _scores(self, texts: Sequence[str], batch: Mapping[str, Any]) -> Tensor:
        unanswerable = self.null_threshold is not None
        rows = [
            (*answer_scores(text, answers, self.scoring, unanswerable), float(any(answers)))
            for text, answers in zip(texts, batch["answers"], strict=True)
        ]
        return torch.tensor(rows)

    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        spans = best_spans(logits, batch, self.max_answer_length)
        names = [{"id": name} for name in batch["ids"]] if "ids" in batch else [{} for _ in batch["contexts"]]
        records = []
        for row, silent in enumerate(self._silent(spans).tolist()):
            answer: dict[str, Any] = {"answer": "", "start": None, "end": None}
            if not silent:
                start, end = int(spans.starts[row]), int(spans.ends[row])
                answer = {"answer": batch["contexts"][row][start:end], "start": start, "end": end}
            score, null_score = spans.scores[row].item(), spans.null_scores[row].item()
            answer["score"] = score if score > -float("inf") else None
            records.append({**names[row], **answer, "null_score": null_score})
        return records

    def encode(self, texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """A batch of pairs, a question and its passage each, to predict on."""
        if any(isinstance(pair, str) or len(pair) != 2 for pair in texts):
            raise InputError("Expected argument `texts` to hold pairs (question, passage), but got other texts.")
        questions, contexts = ([str(text) for text in column] for column in zip(*texts, strict=True))
        max_length = min(tokenizer.model_max_length, _LONGEST)
        encoded = PassageEncoder(tokenizer, max_length, stride=max_length // 3).encode(questions, contexts)
        batch = all_windows(encoded.tokens, encoded.offsets, encoded.windows, tokenizer.pad_token_id)
        return {**batch, "contexts": contexts}


def _texts(spans: Spans, batch: Mapping[str, Any]) -> list[str]:
    places = zip(batch["contexts"], spans.starts.tolist(), spans.ends.tolist(), strict=True)
    return [context[start:end] if start >= 0 else "" for context, start, end in places]
