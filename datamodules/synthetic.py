"""A sentiment data set that a small grammar writes: nothing to download, and no noise in its labels."""

from __future__ import annotations

import random
import zlib

from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from lightning_kd._checks import expected
from lightning_kd.datamodules.base import TransformerDataModule

__all__ = ["SyntheticDataModule"]

_OPENINGS = (
    *("", "frankly, ", "overall, ", "honestly, ", "for me, ", "to my mind, "),
    *("in the end, ", "to be fair, ", "all in all, ", "as a whole, ", "in short, ", "in my opinion, "),
)
_SUBJECTS = (
    *("the acting", "the cast", "the hero", "the villain", "the lead", "the script", "the plot", "the story"),
    *(
        "the dialogue",
        "the humor",
        "the romance",
        "the mystery",
        "the opening",
        "the ending",
        "the finale",
        "the pacing",
    ),
    *(
        "the music",
        "the score",
        "the sound",
        "the camera work",
        "the lighting",
        "the editing",
        "the set",
        "the wardrobe",
    ),
)
_VERBS = ("is", "was")
_POSITIVE = (
    *("good", "great", "superb", "wonderful", "brilliant", "charming", "moving", "funny"),
    *("gripping", "delightful", "clever", "fresh", "elegant", "memorable", "satisfying", "impressive"),
)
_NEGATIVE = (
    *("bad", "dull", "awful", "boring", "terrible", "clumsy", "weak", "tedious"),
    *("bland", "dreadful", "shallow", "stale", "messy", "forgettable", "disappointing", "annoying"),
)
_NEGATIONS = ("not ", "never ", "hardly ", "not very ")
#: From weak to strong, four each; a negated adjective is as strong as a bare one, "not very" included.
_DEGREES = (
    ("slightly ", "somewhat ", "mildly ", "a little "),
    ("", "", "", "", *_NEGATIONS),
    ("very ", "truly ", "utterly ", "absolutely "),
)
_MODIFIERS = tuple(modifier for degree in _DEGREES for modifier in degree)
_CONTRASTS = (
    "{other}, but {main}",
    "{other}, yet {main}",
    "although {other}, {main}",
    "{main}, although {other}",
    "even though {other}, {main}",
    "{main}, even though {other}",
)
#: Share of the rows: one clause; two that agree; two that disagree, where the stronger wins; a contrast.
_SHARES = {"one": 0.25, "agree": 0.15, "stronger": 0.2, "contrast": 0.4}

#: A sentence belongs to one split, whatever the seed and the sizes, by its checksum modulo 4.
_SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}
#: A split of this size has used up half of its sentences of one clause, which run out first: they are a quarter of the
#: rows, and a quarter of them belongs to the smaller splits.
_MAX_ROWS = len(_OPENINGS) * len(_SUBJECTS) * len(_VERBS) * len(_MODIFIERS) * len(_POSITIVE + _NEGATIVE) // 2


class SyntheticDataModule(TransformerDataModule):
    """Reviews of one or two clauses, written by a grammar, whose label no bag of words can tell.

    A clause says that something was good or bad. It takes composition to know the label of a sentence:

    - negation turns a clause around: "the plot was hardly dull" is positive;
    - in a contrast the main clause decides: "the acting was dull, but the ending was superb" and "the ending was
      superb, although the acting was dull" are positive;
    - where two clauses joined by "and" disagree, the stronger decides: "the music was slightly bland and the script was
      truly clever" is positive. "slightly", "somewhat", "mildly" and "a little" weaken an adjective, "very", "truly",
      "utterly" and "absolutely" strengthen it; a bare or a negated one is in between.

    The labels are exact and half of them positive. The rows are distinct, the same for the same seed, and drawn from a
    part of the sentences that is the split's own: no training sentence is in validation or test, even of another seed.

    The tokenizer has a token for each of the grammar's words, and depends on no other argument: teacher and student
    have the same. It is written down rather than trained, as training a WordPiece vocabulary on the same text twice
    gives two vocabularies.

    Args:
        num_train: Rows to train on, from 1 to 129,024.
        num_validation: Rows to validate on, from 1 to 129,024.
        num_test: Rows to test on, from 1 to 129,024.
        tokenizer: Hub name or local folder; on the command line, the student's unless given; the grammar's own if
            neither is.
        max_length: Longest row in tokens, at least 1; no sentence has more than 32.
        batch_size: Rows in a training batch, on each device, at least 1.
        eval_batch_size: Rows in an evaluation batch, at least 1.
        holdout_size: Rows taken out of the training split to test on them instead of on the test split, from 0 to
            below ``num_train``.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        seed: Of the sentences, of the held-out rows, of the drawn rows and of the order of batches.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> data = SyntheticDataModule(num_train=1000, num_validation=100, num_test=100)
        >>> data.setup("fit")
        >>> data.sizes, data.label_names
        ({'train': 1000, 'validation': 100}, ['negative', 'positive'])
        >>> data.texts("train")[0]
    """

    text_columns = ("sentence",)

    def __init__(
        self,
        num_train: int = 20_000,
        num_validation: int = 2_000,
        num_test: int = 2_000,
        tokenizer: str | None = None,
        max_length: int = 64,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        holdout_size: int = 0,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer, max_length, batch_size, eval_batch_size, holdout_size, max_train_rows, num_workers, seed
        )
        self.num_rows = {"train": num_train, "validation": num_validation, "test": num_test}
        for split, rows in self.num_rows.items():
            if not 1 <= rows <= _MAX_ROWS:
                raise expected(f"num_{split}", f"from 1 to {_MAX_ROWS:,}, as sentences are distinct", f"{rows:,}")
        self._splits: dict[str, Dataset] = {}

    def load_split(self, split: str) -> Dataset | None:
        if split not in self.num_rows:
            return None
        if split not in self._splits:
            labels = _sentences(split, self.num_rows[split], self.seed)
            self._splits[split] = Dataset.from_dict(
                {"sentence": list(labels), "label": list(labels.values()), "idx": range(len(labels))},
                features=Features(
                    {
                        "sentence": Value("string"),
                        "label": ClassLabel(names=["negative", "positive"]),
                        "idx": Value("int32"),
                    }
                ),
            )
        return self._splits[split]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return _grammar_tokenizer() if self.tokenizer_source is None else super().load_tokenizer()


def _sentences(split: str, rows: int, seed: int) -> dict[str, int]:
    """The label by sentence, for ``rows`` different sentences of a split."""
    rng = random.Random(f"{split} {seed}")
    labels: dict[str, int] = {}
    for kind in rng.choices(list(_SHARES), list(_SHARES.values()), k=rows):
        label = rng.randrange(2)
        while True:  # a redrawn sentence keeps kind and label, so that their shares do not depend on the size
            sentence = _sentence(rng, kind, label == 1)
            if sentence not in labels and zlib.crc32(sentence.encode()) % 4 in _SPLITS[split]:
                break
        labels[sentence] = label
    return labels


def _sentence(rng: random.Random, kind: str, positive: bool) -> str:
    subject, other_subject = rng.sample(_SUBJECTS, 2)
    opening = rng.choice(_OPENINGS)
    if kind == "one":
        return opening + _clause(rng, subject, positive, _MODIFIERS)
    if kind == "contrast":
        main = _clause(rng, subject, positive, _MODIFIERS)
        other = _clause(rng, other_subject, not positive, _MODIFIERS)
        return opening + rng.choice(_CONTRASTS).format(main=main, other=other)
    if kind == "agree":
        clauses = [_clause(rng, name, positive, _MODIFIERS) for name in (subject, other_subject)]
    else:
        weaker, stronger = sorted(rng.sample(range(len(_DEGREES)), 2))
        clauses = [
            _clause(rng, subject, positive, _DEGREES[stronger]),
            _clause(rng, other_subject, not positive, _DEGREES[weaker]),
        ]
        rng.shuffle(clauses)
    return opening + " and ".join(clauses)


def _clause(rng: random.Random, subject: str, positive: bool, modifiers: tuple[str, ...]) -> str:
    modifier = rng.choice(modifiers)
    adjectives = _POSITIVE if positive != (modifier in _NEGATIONS) else _NEGATIVE
    return f"{subject} {rng.choice(_VERBS)} {modifier}{rng.choice(adjectives)}"


def _grammar_tokenizer() -> PreTrainedTokenizerBase:
    """A BERT tokenizer with a token for each word of the grammar."""
    text = " ".join((*_OPENINGS, *_SUBJECTS, *_VERBS, *_POSITIVE, *_NEGATIVE, *_MODIFIERS, *_CONTRASTS, "and"))
    words = text.replace("{main}", "").replace("{other}", "").replace(",", " , ").split()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
