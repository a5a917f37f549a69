"""Sentences with named entities that a small grammar writes: nothing to download, and no noise in their tags."""

from __future__ import annotations

import random
import re
import zlib

from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertTokenizerFast, PreTrainedTokenizerBase  # type: ignore[attr-defined]  # made on import

from lightning_kd._checks import expected
from lightning_kd.datamodules.ner import NERDataModule

__all__ = ["SyntheticNERDataModule"]

#: Every stem with every ending is a name of two sub-words; which of a person, a place or a company, the context tells.
_STEMS = tuple(
    "ash brad clif dal edger fen gar hal ing kel lang mil nor oak pem rad sel tan wal wes bur cran stan".split()
)
_ENDINGS = tuple("ton ford ville field by well ham mont son ley".split())
_FIRST_NAMES = tuple(
    "anna ben carla david emma felix greta hugo irene jack karen leo maria nina oscar paula quinn rosa simon".split()
)
#: ``*`` is a name and ``~`` a first name; half of the mentions are a bare name.
_FORMS = {
    "PER": ("*", "*", "*", "~ *", "~ *", "~ * junior"),
    "ORG": ("*", "*", "*", "* motors", "* airlines", "bank of *", "university of *"),
    "LOC": ("*", "*", "*", "new *", "port *", "* island"),
}
_CLAUSES = (
    "PER lives in LOC",
    "PER was born in LOC",
    "PER and PER were born in LOC",
    "PER works for ORG in LOC",
    "mr PER bought shares of ORG",
    "doctor PER , who lives in LOC , joined ORG",
    "PER married PER in LOC",
    "ORG hired PER",
    "ORG fired PER and PER",
    "ORG opened an office in LOC",
    "ORG and ORG opened an office in LOC",
    "ORG sold its plant in LOC to ORG",
    "ORG , based in LOC , sued ORG",
    "shares of ORG and ORG fell",
    "the mayor of LOC met PER",
    "LOC and LOC were flooded",
    "the train from LOC to LOC was late",
    "it rained in LOC and LOC",
)
_TIMES = ("", "last week", "on monday", "on friday", "in march", "in june", "this year", "again")
_LABELS = ["O", *(f"{letter}-{kind}" for kind in sorted(_FORMS) for letter in "BI")]

#: A sentence belongs to one split, whatever the seed and the sizes: by its checksum modulo 4.
_SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}


class SyntheticNERDataModule(NERDataModule):
    """Sentences with persons, organisations and places, written by a grammar, whose tags a list of names cannot tell.

    Any name can be of each type: "Dalford lives in Ashton", "Ashton hired Dalford", "Dalford and Ashton were flooded".
    What it is of stands before it, behind it or, as in the last of these, at the end of the sentence. A mention has one
    to three words ("Bank of Ashton"), a name two sub-words.

    The tags are exact. The rows of a split are distinct, the same for the same seed, and drawn from sentences that
    belong to this split alone: no training sentence is in validation or test, even of another seed.

    The tokenizer is made of the grammar and depends on no argument, so that teacher and student have the same.

    Args:
        num_train: Rows to train on, at least 1.
        num_validation: Rows to validate on, at least 1.
        num_test: Rows to test on, at least 1.
        tokenizer: Hub name or local folder; on the command line, the student's unless given. The grammar's own if there
            is none.
        max_length: Longest window in tokens; no sentence of the grammar's own tokenizer has more than 23.
        stride: Tokens that a window shares with the next one.
        batch_size: Sentences in a training batch, on each device.
        eval_batch_size: Sentences in an evaluation batch.
        holdout_size: Rows taken out of the training split, to test on instead of the test split.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the sentences, of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer; the batches then hold
            the rows as it reads them, too, unless its vocabulary is that of ``tokenizer``. On the command line, each
            teacher's own unless given.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> data = SyntheticNERDataModule(num_train=100, num_validation=10, num_test=10)
        >>> data.setup("fit")
        >>> data.sizes, data.label_names
        ({'train': 100, 'test': 10, 'validation': 10}, ['O', 'B-LOC', 'I-LOC', 'B-ORG', 'I-ORG', 'B-PER', 'I-PER'])
        >>> " ".join(data.texts("train")[0][0])
        'Doctor Garley , who lives in Milham , joined bank of Walville on monday .'
    """

    def __init__(
        self,
        num_train: int = 8_000,
        num_validation: int = 1_000,
        num_test: int = 2_000,
        tokenizer: str | None = None,
        max_length: int = 64,
        stride: int = 16,
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
            path=type(self).__name__,
            tokenizer=tokenizer,
            max_length=max_length,
            stride=stride,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            holdout_size=holdout_size,
            max_train_rows=max_train_rows,
            num_workers=num_workers,
            holdout_seed=holdout_seed,
            seed=seed,
            teacher_tokenizers=teacher_tokenizers,
        )
        self.num_rows = {"train": num_train, "validation": num_validation, "test": num_test}
        for split, rows in self.num_rows.items():
            if rows < 1:
                raise expected(f"data.num_{split}", "at least 1", rows)

    def load_split(self, split: str) -> Dataset | None:
        if split not in self.num_rows:
            return None
        if split not in self._splits:
            words, tags = zip(*_write_sentences(split, self.num_rows[split], self.seed).items(), strict=True)
            features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=_LABELS))})
            self._splits[split] = Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=features)
        return self._splits[split]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return super().load_tokenizer() if self.tokenizer_source is not None else _grammar_tokenizer()


def _write_sentences(split: str, rows: int, seed: int) -> dict[tuple[str, ...], list[str]]:
    """Different sentences of a split, with their tags."""
    rng = random.Random(f"{split} {seed}")  # noqa: S311  # no secret
    found: dict[tuple[str, ...], list[str]] = {}
    for clause in rng.choices(_CLAUSES, k=rows):
        while True:  # redrawn with the same clause, unless so many rows are wanted that it has no others
            words, tags = _sentence(rng, clause)
            if words not in found and zlib.crc32(" ".join(words).encode()) % 4 in _SPLITS[split]:
                break
        found[words] = tags
    return found


def _sentence(rng: random.Random, clause: str) -> tuple[tuple[str, ...], list[str]]:
    words: list[str] = []
    tags: list[str] = []
    for part in f"{clause} {rng.choice(_TIMES)}".split():
        form = rng.choice(_FORMS.get(part, (part,)))
        mention = [_name(rng, word) for word in form.split()]
        words += mention
        tags += [f"B-{part}", *[f"I-{part}"] * (len(mention) - 1)] if part in _FORMS else ["O"]
    return (words[0].capitalize(), *words[1:], "."), [*tags, "O"]


def _name(rng: random.Random, word: str) -> str:
    if word == "*":
        return (rng.choice(_STEMS) + rng.choice(_ENDINGS)).capitalize()
    return rng.choice(_FIRST_NAMES).capitalize() if word == "~" else word


def _grammar_tokenizer() -> PreTrainedTokenizerBase:
    forms = (form for kind in _FORMS.values() for form in kind)
    words = set(re.findall(r"[a-z]+|[,.]", " ".join([*_CLAUSES, *_TIMES, *forms, *_STEMS, *_FIRST_NAMES, "."])))
    endings = sorted(f"##{ending}" for ending in _ENDINGS)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words), *endings]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
