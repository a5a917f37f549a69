"""One tag per word: named entities, and whatever else is tagged in IOB2."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from tokenizers import PreTokenizedString
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedTokenizerBase

from lightning_kd._checks import InputError, expected
from lightning_kd.tasks.base import IGNORED, Task
from lightning_kd.tasks.windows import all_windows
from lightning_kd.tasks.words import WordEncoder, joined, piece_spans

__all__ = ["EntityScore", "TokenClassification", "entities"]

Score = Literal["f1", "precision", "recall"]

#: Tokens in a window, where the tokenizer does not say what the model can read.
_LONGEST = 512


def entities(tags: Tensor, prefixes: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
    """The entities of tag sequences in IOB2, read as seqeval and conlleval do: an ``I`` without a beginning begins one.

    Args:
        tags: ``(rows, words)`` int64, tag numbers; negative behind the last word.
        prefixes: By tag number: 0 outside, 1 begin, 2 inside.
        types: By tag number: the type's number; that of outside is not read.

    Returns:
        Two of ``(rows, words)`` int64: at the first word of an entity its type, -1 elsewhere; and there the number of
        its last word.

    Example:
        >>> prefixes, types = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0])  # O, B-PER, I-PER
        >>> starts, ends = entities(torch.tensor([[1, 2, 0, 2, -100]]), prefixes, types)
        >>> starts.tolist(), ends[starts >= 0].tolist()
        ([[0, -1, -1, 0, -1]], [1, 3])
    """
    known = tags.clamp(min=0)
    prefix = torch.where(tags < 0, 0, prefixes[known])
    kind = torch.where(prefix == 0, -1, types[known])
    outside = kind.new_full((len(tags), 1), -1)
    before, after = torch.cat([outside, kind[:, :-1]], 1), torch.cat([kind[:, 1:], outside], 1)
    next_begins = torch.cat([prefix[:, 1:], prefix.new_zeros(len(tags), 1)], 1) == 1
    starts = torch.where((kind >= 0) & ((prefix == 1) | (before != kind)), kind, -1)
    is_end = (kind >= 0) & (next_begins | (after != kind))
    # The number of the next end at or behind each word: a running minimum from the right.
    words = torch.arange(tags.shape[1], device=tags.device).expand_as(tags)
    numbers = torch.where(is_end, words, tags.shape[1])
    return starts, numbers.flip(1).cummin(1).values.flip(1)


class EntityScore(Metric):
    """Precision, recall or F1 of whole entities (Tjong Kim Sang and De Meulder 2003, arXiv cs/0306050).

    An entity counts if its first word, its last word and its type are right. Where there is nothing to count the score
    is 0, as in seqeval.

    Args:
        label_names: The tags in IOB2, by number.
        score: Which of the three.
        kind: Of the entities of this type alone; all together (micro average) unless given.
    """

    prefixes: Tensor
    types: Tensor
    found: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, label_names: Sequence[str], score: Score = "f1", kind: str | None = None) -> None:
        super().__init__()
        names = entity_types(label_names)
        self.score = score
        self.kind = None if kind is None else names.index(kind)
        letters = {"O": 0, "B": 1, "I": 2}
        self.register_buffer("prefixes", torch.tensor([letters[name[0]] for name in label_names]), persistent=False)
        numbers = [names.index(name[2:]) if name != "O" else 0 for name in label_names]
        self.register_buffer("types", torch.tensor(numbers), persistent=False)
        for state in ("found", "predicted", "actual"):
            self.add_state(state, torch.zeros(len(names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Count the entities of some rows.

        Args:
            predictions: ``(rows, words)`` int64, tag numbers.
            target: The same shape, the true ones; negative behind the last word.
        """
        predictions = torch.where(target < 0, IGNORED, predictions)
        starts, ends = entities(predictions, self.prefixes, self.types)
        true_starts, true_ends = entities(target, self.prefixes, self.types)
        right = (starts >= 0) & (starts == true_starts) & (ends == true_ends)
        for state, at in ((self.found, starts[right]), (self.predicted, starts), (self.actual, true_starts)):
            state += torch.bincount(at[at >= 0], minlength=len(state))

    def compute(self) -> Tensor:
        chosen = slice(None) if self.kind is None else slice(self.kind, self.kind + 1)
        found, predicted, actual = (s[chosen].sum().float() for s in (self.found, self.predicted, self.actual))
        below = {"f1": (predicted + actual) / 2, "precision": predicted, "recall": actual}[self.score]
        return torch.where(below > 0, found / below.clamp(min=0.5), 0.0)


def entity_types(label_names: Sequence[str]) -> list[str]:
    """The types in tags of IOB2, sorted.

    Raises:
        InputError: If a tag is neither ``O`` nor ``B-`` or ``I-`` with a type.
    """
    for name in label_names:
        if name != "O" and (name[:2] not in ("B-", "I-") or len(name) < 3):
            raise InputError(f"Expected tags in IOB2 (O, B-PER, I-PER, ...), but got {name!r}: convert the tags first.")
    return sorted({name[2:] for name in label_names if name != "O"})


@dataclass(frozen=True)
class TokenClassification(Task):
    """A tag for every word, read at its first sub-word; entities are what the metrics count.

    With ``label_all_subwords`` every sub-word has a tag and is read: the first its word's, the others ``I-`` with the
    same type. An entity is then found where sub-words say so, as ``pipeline("token-classification")`` finds it with
    ``aggregation_strategy="simple"``, and counts only if it has the right words as a whole. Without, the later
    sub-words are never trained, and ``"first"`` is the strategy that gives the entities of ``predict``.

    Metrics: ``f1``, ``precision``, ``recall`` over all entities, and each with a type, e.g. ``f1_PER``.

    Args:
        label_all_subwords: Tag every sub-word. Needs a teacher that was trained so and reads the same vocabulary.
    """

    label_all_subwords: bool = False

    auto_class: ClassVar[Any] = AutoModelForTokenClassification
    per_token: ClassVar[bool] = True

    def configure(self, config: PretrainedConfig, label_names: Sequence[str] | None) -> None:
        if not label_names:
            raise InputError("TokenClassification needs data with tags, but these have none.")
        entity_types(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
        config.label_all_subwords = self.label_all_subwords

    def with_config(self, config: PretrainedConfig) -> TokenClassification:
        return replace(self, label_all_subwords=getattr(config, "label_all_subwords", self.label_all_subwords))

    def check_teacher(self, name: str, config: PretrainedConfig) -> None:
        """Refuse a teacher whose later sub-words were never trained, where the student learns from them."""
        if self.label_all_subwords and not getattr(config, "label_all_subwords", True):
            raise InputError(
                f"Expected the teacher {name!r} to be trained with label_all_subwords, as the student is, but it was "
                "trained on first sub-words alone: train it again, or leave the option out."
            )

    def logits(self, output: Any) -> dict[str, Tensor]:
        return {"logits": output.logits}

    def logit_masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": batch["words"] >= 0}

    def hard_labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": batch["labels"]}

    def hard_label_loss(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        values, labels = logits["logits"].float().flatten(0, 1), batch["labels"].flatten()
        total = F.cross_entropy(values, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def metrics(self, names: Sequence[str], label_names: Sequence[str] | None) -> MetricCollection:
        tags = list(label_names or [])
        kinds = [None, *entity_types(tags)]
        known = {s if k is None else f"{s}_{k}": (s, k) for k in kinds for s in get_args(Score)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise expected("metric_names", f"among {', '.join(known)}", ", ".join(unknown))
        scores = {name: EntityScore(tags, *known[name]) for name in names}
        return MetricCollection(scores, compute_groups=False)  # type: ignore[arg-type]  # a dict of metrics

    def detailed_metrics(self, label_names: Sequence[str] | None) -> list[str]:
        return [f"f1_{kind}" for kind in entity_types(label_names or [])]

    def outcomes(self, logits: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return by_word(logits["logits"].argmax(-1), batch), by_word(batch["labels"], batch)

    def show(
        self, outcome: Tensor, texts: Sequence[Any] | None, label_names: Sequence[str] | None, other: Tensor
    ) -> str:
        """The tags that differ, behind their words or, without texts and of sub-words, their numbers."""
        words, names = texts[0] if texts and not self.label_all_subwords else None, label_names or []
        width = min(len(outcome), len(other))
        differ = ((outcome[:width] != other[:width]) & (outcome[:width] >= 0)).nonzero()[:, 0].tolist()
        return ", ".join(f"{words[i] if words else i}: {names[int(outcome[i])]}" for i in differ)

    transfers_tokens: ClassVar[bool] = True

    def transfer(self, name: str, values: Tensor, own: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """What stands at a word's first sub-word for the teacher, at its first sub-word for the student."""
        words = batch["words"]
        at = words >= 0
        rows = batch["example"].unsqueeze(1).expand_as(words)[at]
        out = values.new_zeros(*words.shape, *values.shape[2:])
        out[at] = by_word(values, own)[rows, words[at]]
        return out

    def token_masks(
        self, batch: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Words alone where the two vocabularies differ."""
        if own is None:
            return super().token_masks(batch)
        return batch["words"] >= 0, batch["words"] >= 0

    def records(
        self, logits: Mapping[str, Tensor], batch: Mapping[str, Any], config: PretrainedConfig
    ) -> list[dict[str, Any]]:
        by_number = cast(dict[int, str], config.id2label or {})
        names = [by_number[i] for i in range(logits["logits"].shape[-1])]
        found = entity_types(names)
        prefixes = torch.tensor([{"O": 0, "B": 1, "I": 2}[name[0]] for name in names])
        types = torch.tensor([found.index(name[2:]) if name != "O" else 0 for name in names])
        scores, tags = logits["logits"].float().softmax(-1).cpu().max(-1)
        on_cpu = {name: batch[name].cpu() for name in ("words", "example", "index")}
        tags, scores = by_word(tags, on_cpu), by_word(scores, on_cpu)
        starts, ends = entities(tags, prefixes, types)
        records = []
        for row, (text, spans) in enumerate(zip(batch["texts"], batch["spans"], strict=True)):
            one = []
            for first in (starts[row] >= 0).nonzero()[:, 0].tolist():
                last = int(ends[row, first])
                start, end = spans[first][0], spans[last][1]
                score = scores[row, first : last + 1].mean().item()
                label = found[int(starts[row, first])]
                one.append({"label": label, "text": text[start:end], "start": start, "end": end, "score": score})
            records.append({"entities": one})
        return records

    def encode(self, texts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        rows, full_texts, spans = zip(*(_words_of(text, tokenizer) for text in texts), strict=True)
        max_length = min(tokenizer.model_max_length, _LONGEST)
        encoded = WordEncoder(tokenizer, max_length, max_length // 4, self.label_all_subwords).encode(rows)
        if encoded.pieces is not None:
            spans = tuple(piece_spans(*row) for row in zip(spans, encoded.pieces, strict=True))
        batch = all_windows(encoded.tokens, encoded.offsets, encoded.windows, tokenizer.pad_token_id)
        return {**batch, "texts": list(full_texts), "spans": list(spans)}


def _words_of(text: str | Sequence[str], tokenizer: Any) -> tuple[list[str], str, list[tuple[int, int]]]:
    """The words of a text, as the tokenizer sees them unless they are given, the text, and where they are in it."""
    if not isinstance(text, str):
        return list(text), *joined(text)
    backend = tokenizer.backend_tokenizer
    parts = PreTokenizedString(text)
    if backend.normalizer is not None:  # it is what parts Chinese characters
        parts.normalize(backend.normalizer.normalize)
    backend.pre_tokenizer.pre_tokenize(parts)
    words, spans = [], []
    for _, (start, end), _ in parts.get_splits("original", "char"):
        while end < len(text) and unicodedata.combining(text[end]):  # an accent that the tokenizer takes out
            end += 1
        word = text[start:end]
        start, end = start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip())
        if start < end:
            words.append(text[start:end])
            spans.append((start, end))
    return words, text, spans


def by_word(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """What stands at the first sub-word of each word, by row and word, whichever window the word is read in.

    Args:
        values: ``(windows, L, ...)``.
        batch: With ``words`` ``(windows, L)``, the word that is read at a token or -1; ``example`` ``(windows,)``, the
            row of each window; ``index`` ``(rows,)``.

    Returns:
        ``(rows, most words, ...)``, ``IGNORED`` behind a row's last word.
    """
    words = batch["words"]
    at = words >= 0
    rows = batch["example"].unsqueeze(1).expand_as(words)
    width = int(words.max()) + 1 if words.numel() else 0
    out = values.new_full((len(batch["index"]), width, *values.shape[2:]), IGNORED)
    out[rows[at], words[at]] = values[at]
    return out
