"""A tokenizer with fewer tokens, which writes some texts as the whole one does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_kd._checks import InputError

__all__ = ["Encodings", "compare", "kept_tokens", "save_reduced"]


@dataclass(frozen=True)
class Encodings:
    """What fewer tokens did to the encodings of some texts.

    Attributes:
        texts: How many there are.
        unknown: Share of the unknown token in what the whole tokenizer writes, from 0 to 1.
        unknown_reduced: The same of the reduced one.
        changed: Share of the texts that are cut into other tokens than before.
    """

    texts: int
    unknown: float
    unknown_reduced: float
    changed: float

    def __str__(self) -> str:
        return (
            f"{self.changed:.2%} of {self.texts:,} texts are cut into other tokens than before; "
            f"{self.unknown:.3%} of the tokens were unknown, now {self.unknown_reduced:.3%}"
        )


def kept_tokens(
    tokenizer: PreTrainedTokenizerBase,
    counts: NDArray[np.int64],
    texts: Iterable[str],
    min_count: int = 1,
    others: Iterable[int] = (),
) -> list[int]:
    """The tokens that some texts need, so that they are cut as before and that any other text can still be read.

    These are the tokens with a count of ``min_count`` or more, the special and the added ones, all single characters
    (of a byte-level vocabulary: all bytes), and what leads to them. With ``min_count`` 1 the texts that were counted
    are cut into the same tokens by the reduced tokenizer:

    - WordPiece takes the longest token that fits (Wu et al. 2016): one that was taken is still there, and no longer
      one has come. Words that end as the unknown token need what was taken before nothing fitted.
    - BPE applies the earliest merge that it can (Sennrich et al. 2016): those that lead to a counted token stay.

    Args:
        tokenizer: A fast tokenizer with a WordPiece or BPE vocabulary.
        counts: ``(V,)``, how often each token was written.
        texts: The texts that were counted.
        min_count: 1 or more. From 2 on, texts with a rarer token are cut into shorter ones.
        others: Numbers of tokens to keep beside these.

    Returns:
        Numbers of tokens, ascending; a token's place is its number in the reduced vocabulary.

    Raises:
        InputError: If the vocabulary is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    vocabulary = tokenizer.get_vocab()
    kept = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *others}
    kept.update(np.flatnonzero(counts >= min_count).tolist())
    prefix = model.get("continuing_subword_prefix") or ""
    kept.update(i for token, i in vocabulary.items() if len(token.removeprefix(prefix)) == 1)
    if model.get("type") == "WordPiece":
        for word in _words(backend, texts):
            kept.update(vocabulary[piece] for piece in _before_unknown(word, model, prefix))
    elif model.get("type") == "BPE" and not (prefix or model.get("end_of_word_suffix") or model.get("byte_fallback")):
        pieces = _with_parts([token for token, i in vocabulary.items() if i in kept], _merges(model))
        kept.update(vocabulary[piece] for piece in pieces if piece in vocabulary)
    else:
        raise InputError(
            f"Argument `vocabulary` needs a WordPiece or byte-level BPE vocabulary, but {type(tokenizer).__name__} has "
            f"{model.get('type', 'one without a tokenizer.json')}: leave it out, and the student reads all tokens."
        )
    return sorted(kept)


def _words(backend: Any, texts: Iterable[str]) -> set[str]:
    """The different words that a tokenizer's model gets to see."""
    words: set[str] = set()
    for text in texts:
        normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))
    return words


def _before_unknown(word: str, model: dict[str, Any], prefix: str) -> list[str]:
    """What WordPiece takes of a word before it finds it unknown; nothing of a known word."""
    vocabulary, start = model["vocab"], 0
    taken: list[str] = []
    while start < len(word) <= model["max_input_chars_per_word"]:
        pieces = ((prefix if start else "") + word[start:end] for end in range(len(word), start, -1))
        piece = next((piece for piece in pieces if piece in vocabulary), None)
        if piece is None:
            return taken
        taken.append(piece)
        start += len(piece.removeprefix(prefix) if start else piece)
    return []


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model in their order; older files have them as one string each."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _with_parts(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> set[str]:
    """BPE tokens and all that is merged on the way to them."""
    rank = {merge: i for i, merge in enumerate(merges)}
    found = set(tokens)
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            ranks = [rank.get(pair, len(rank)) for pair in pairwise(parts)]
            first = ranks.index(min(ranks))
            if ranks[first] == len(rank):
                break  # a special token, or one that no text can give
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
            found.add(parts[first])
    return found


def save_reduced(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int], folder: Path) -> PreTrainedTokenizerBase:
    """Write a tokenizer with the ``kept`` tokens alone, renumbered by their place, and open it again.

    Args:
        tokenizer: The whole one, which stays as it is.
        kept: From :func:`kept_tokens`.
        folder: Where its files go.
    """
    number = {old: new for new, old in enumerate(kept)}
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    model = whole["model"]
    vocabulary = {token: number[i] for token, i in model["vocab"].items() if i in number}
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        model["merges"] = [list(m) for m in _merges(model) if {*m, "".join(m)} <= vocabulary.keys()]
    for added in whole["added_tokens"]:
        added["id"] = number[added["id"]]
    whole["post_processor"] = _renumbered(whole["post_processor"], number)
    whole["padding"] = whole["truncation"] = None  # or the student would be read as the teacher was last
    file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    reduced = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if {token: number.get(i) for token, i in tokenizer.get_vocab().items() if i in number} != reduced.get_vocab():
        raise InputError(
            f"Argument `vocabulary` cannot be used with {type(tokenizer).__name__}, which does not read its vocabulary "
            "from tokenizer.json: leave it out, and the student reads all tokens."
        )
    return reduced


def _renumbered(part: Any, number: dict[int, int]) -> Any:
    """A post-processor with other numbers of its special tokens: ``"ids": [101]``, or ``"cls": ["[CLS]", 101]``."""
    if isinstance(part, list):
        return [_renumbered(each, number) for each in part]
    if not isinstance(part, dict):
        return part
    changed = {}
    for key, value in part.items():
        if key == "ids":
            changed[key] = [number[i] for i in value]
        elif key in ("sep", "cls") and isinstance(value, list):
            changed[key] = [value[0], number[value[1]]]
        else:
            changed[key] = _renumbered(value, number)
    return changed


def compare(whole: PreTrainedTokenizerBase, reduced: PreTrainedTokenizerBase, texts: Sequence[str]) -> Encodings:
    """How a reduced tokenizer cuts ``texts``, beside the whole one."""
    before, after = (_Counter(tokenizer) for tokenizer in (whole, reduced))
    changed = sum(one != other for one, other in zip(before.cut(texts), after.cut(texts), strict=True))
    return Encodings(len(texts), before.unknown_share, after.unknown_share, changed / max(1, len(texts)))


class _Counter:
    """Cuts texts, and counts tokens meanwhile."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.tokens, self.unknown = tokenizer, 0, 0

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.tokens)

    def cut(self, texts: Sequence[str]) -> Iterator[list[str]]:
        for start in range(0, len(texts), 10_000):
            part = list(texts[start : start + 10_000])
            for ids in self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
                self.tokens += len(ids)
                self.unknown += ids.count(self.tokenizer.unk_token_id)
                yield cast(list[str], self.tokenizer.convert_ids_to_tokens(ids))
