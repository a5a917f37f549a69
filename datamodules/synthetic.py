"""A sentiment data set that a small grammar writes: nothing to download, and no noise in its labels."""

from __future__ import annotations

import random
import zlib

from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertTokenizerFast, PreTrainedTokenizerBase  # type: ignore[attr-defined]  # made on import

from lightning_kd._checks import expected
from lightning_kd.datamodules.base import TransformerDataModule

__all__ = ["SyntheticDataModule"]

_SUBJECTS = tuple(
    "acting cast hero villain lead script plot story dialogue humor romance mystery "
    "opening ending finale pacing music score sound cinematography lighting editing set wardrobe".split()
)
_VERBS = ("is", "was")
_POSITIVE = tuple(
    "good great superb wonderful brilliant charming moving funny "
    "gripping delightful clever fresh elegant memorable satisfying impressive".split()
)
_NEGATIVE = tuple(
    "bad dull awful boring terrible clumsy weak tedious "
    "bland dreadful shallow stale messy forgettable disappointing annoying".split()
)
_NEGATIONS = ("not ", "never ", "hardly ", "not very ")
#: From weak to strong; a negated adjective is as strong as a bare one, "not very" included. The bare one stands there
#: four times, so that a quarter of the clauses is bare and a quarter negated.
_DEGREES = (
    ("slightly ", "somewhat ", "mildly ", "partly "),
    ("", "", "", "", *_NEGATIONS),
    ("very ", "truly ", "utterly ", "absolutely "),
)
_MODIFIERS = tuple(modifier for degree in _DEGREES for modifier in degree)
_CLOSINGS = tuple(
    "| overall| throughout| as usual| once again| this time| this year| for me"
    "| to my mind| on the whole| all in all| in this film".split("|")
)
_CONTRASTS = (
    "{other}, but {main}",
    "{other}, yet {main}",
    "although {other}, {main}",
    "{main}, although {other}",
    "even though {other}, {main}",
    "{main}, even though {other}",
)
_JOINTS = ("{main} and {other}", "{other} and {main}")
_PATTERNS = {"agree": (*_CONTRASTS, *_JOINTS), "contrast": _CONTRASTS, "stronger": _JOINTS}
#: Share of the rows: one clause; two that agree; a contrast; two that disagree, where the stronger decides. Without the
#: first two, a transformer stays on the plateau of the loss for most of a short training.
_SHARES = {"one": 0.3, "agree": 0.3, "contrast": 0.25, "stronger": 0.15}

#: A sentence belongs to one split, whatever the seed and the sizes: by its checksum modulo 4.
_SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}
#: Rows for each quarter of the sentences. Those of one clause are the fewest: this many rows take 30 % of them, so that
#: a new one is found soon.
_MAX_ROWS = len(_CLOSINGS) * len(_SUBJECTS) * len(_VERBS) * len(set(_MODIFIERS)) * len(_POSITIVE + _NEGATIVE) // 4


class SyntheticDataModule(TransformerDataModule):
    """Reviews of one or two clauses, written by a grammar, whose label a bag of words cannot tell.

    A clause says that something was good or bad. It takes composition to tell the label of a sentence:

    - negation turns a clause around: "the plot was hardly dull" is positive;
    - in a contrast the main clause decides: "the acting was dull, but the ending was superb" and "the ending was
      superb, although the acting was dull" are positive;
    - where two clauses joined by "and" disagree, the stronger one decides: "the music was slightly bland and the script
      was clever" is positive. "slightly", "somewhat", "mildly" and "partly" weaken an adjective, "very", "truly",
      "utterly" and "absolutely" strengthen it; a bare or a negated one is in between.

    The labels are exact, and about half of them positive. The rows of a split are distinct, the same for the same seed,
    and drawn from sentences that belong to this split alone: no training sentence is in validation or test, even of
    another seed.

    The tokenizer has one token for each word of the grammar and depends on no argument, so that teacher and student
    have the same. It is written down, not trained: training WordPiece twice on one text gives two vocabularies.

    Args:
        num_train: Rows to train on, from 1 to 119,808.
        num_validation: Rows to validate on, from 1 to 59,904.
        num_test: Rows to test on, from 1 to 59,904.
        tokenizer: Hub name or local folder; on the command line, the student's unless given. The grammar's own if there
            is none.
        max_length: Longest row in tokens, at least 1; a longer one is cut. No sentence has more than 20.
        batch_size: Rows in a training batch, on each device, at least 1.
        eval_batch_size: Rows in an evaluation batch, at least 1.
        holdout_size: Rows taken out of the training split, to test on instead of the test split; from 0 to below
            ``num_train``.
        max_train_rows: Train on this many rows, drawn at random; at least 1.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the sentences, of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer; the batches then hold
            the rows as it reads them, too, unless its vocabulary is that of ``tokenizer``. On the command line, each
            teacher's own unless given.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> data = SyntheticDataModule(num_train=1000, num_validation=100, num_test=100)
        >>> data.setup("fit")
        >>> data.sizes, data.label_names
        ({'train': 1000, 'test': 100, 'validation': 100}, ['negative', 'positive'])
        >>> data.texts("train")[4]
        ('the opening was somewhat boring, although the mystery was not very funny on the whole',)
    """

    text_columns = ("sentence",)

    def __init__(
        self,
        num_train: int = 20_000,
        num_validation: int = 2_000,
        num_test: int = 2_000,
        tokenizer: str | None = None,
        max_length: int = 64,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        holdout_size: int = 0,
        max_train_rows: int | None = None,
        num_workers: int = 0,
        holdout_seed: int = 0,
        seed: int = 0,
        teacher_tokenizers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            holdout_size,
            max_train_rows,
            num_workers,
            holdout_seed,
            seed,
            teacher_tokenizers,
        )
        self.num_rows = {"train": num_train, "validation": num_validation, "test": num_test}
        for split, rows in self.num_rows.items():
            most = _MAX_ROWS * len(_SPLITS[split])
            if not 1 <= rows <= most:
                raise expected(f"data.num_{split}", f"from 1 to {most:,}, as no sentence comes twice", rows)
        self._splits: dict[str, Dataset] = {}

    def load_split(self, split: str) -> Dataset | None:
        if split not in self.num_rows:
            return None
        if split not in self._splits:
            labels = _write_sentences(split, self.num_rows[split], self.seed)
            features = {
                "sentence": Value("string"),
                "label": ClassLabel(names=["negative", "positive"]),
                "idx": Value("int32"),
            }
            self._splits[split] = Dataset.from_dict(
                {"sentence": list(labels), "label": list(labels.values()), "idx": range(len(labels))},
                features=Features(features),
            )
        return self._splits[split]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return super().load_tokenizer() if self.tokenizer_source is not None else _grammar_tokenizer()


def _write_sentences(split: str, rows: int, seed: int) -> dict[str, int]:
    """Different sentences of a split, with their labels."""
    rng = random.Random(f"{split} {seed}")  # noqa: S311  # no secret; several times as fast as numpy for single draws
    labels: dict[str, int] = {}
    for kind in rng.choices(list(_SHARES), list(_SHARES.values()), k=rows):
        label = rng.randrange(2)
        while True:  # redrawn with the same kind and label, so that the shares of both do not depend on the size
            sentence = _sentence(rng, kind, label == 1)
            if sentence not in labels and zlib.crc32(sentence.encode()) % 4 in _SPLITS[split]:
                break
        labels[sentence] = label
    return labels


def _sentence(rng: random.Random, kind: str, positive: bool) -> str:
    subject, other_subject = rng.sample(_SUBJECTS, 2)
    closing = rng.choice(_CLOSINGS)
    if kind == "one":
        return _clause(rng, subject, positive, _MODIFIERS) + closing
    main_modifiers = other_modifiers = _MODIFIERS
    if kind == "stronger":
        other_modifiers, main_modifiers = (_DEGREES[i] for i in sorted(rng.sample(range(len(_DEGREES)), 2)))
    main = _clause(rng, subject, positive, main_modifiers)
    other = _clause(rng, other_subject, positive == (kind == "agree"), other_modifiers)
    return rng.choice(_PATTERNS[kind]).format(main=main, other=other) + closing


def _clause(rng: random.Random, subject: str, positive: bool, modifiers: tuple[str, ...]) -> str:
    modifier = rng.choice(modifiers)
    adjectives = _POSITIVE if positive != (modifier in _NEGATIONS) else _NEGATIVE
    return f"the {subject} {rng.choice(_VERBS)} {modifier}{rng.choice(adjectives)}"


def _grammar_tokenizer() -> PreTrainedTokenizerBase:
    parts = (*_SUBJECTS, *_VERBS, *_POSITIVE, *_NEGATIVE, *_MODIFIERS, *_CLOSINGS, *_CONTRASTS, *_JOINTS, "the")
    words = " ".join(parts).format(main="", other="").replace(",", " , ").split()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
