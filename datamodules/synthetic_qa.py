"""Questions about passages that a small grammar writes: nothing to download, and no doubt about the answers."""

from __future__ import annotations

import random
import zlib
from typing import Any

from datasets import Dataset
from transformers import BertTokenizerFast, PreTrainedTokenizerBase  # type: ignore[attr-defined]  # made on import

from lightning_kd._checks import check_range, expected
from lightning_kd.datamodules.qa import QADataModule
from lightning_kd.datamodules.qa_files import QA_FEATURES

__all__ = ["SyntheticQADataModule"]

_NAMES = tuple(
    "anna ben carla david emma felix greta henry ida jack karen leo mia noah olga paul rosa simon tina victor".split()
)
_THINGS = {
    "city": tuple("paris rome berlin london madrid vienna oslo lisbon athens dublin prague warsaw".split()),
    "job": tuple("baker teacher doctor farmer painter lawyer pilot singer nurse writer judge tailor".split()),
    "color": tuple("red green blue yellow black white brown gray purple silver".split()),
    "pet": tuple("cat dog horse rabbit parrot turtle goat snake hamster duck".split()),
}
#: A fact about somebody, and the question that it answers. The braces of the kinds are the answer.
_FACTS = (
    ("{name} lives in {city} .", "where does {name} live ?", "{city}"),
    ("{name} works as a {job} .", "what is the job of {name} ?", "{job}"),
    ("{name} owns a {color} {pet} .", "what does {name} own ?", "a {color} {pet}"),
    ("{name} was born in {city} .", "where was {name} born ?", "{city}"),
)
#: A passage belongs to one split, whatever the seed: by its checksum modulo 4.
_SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}


class SyntheticQADataModule(QADataModule):
    """Passages of a few facts about a few people, and a question about one of them.

    "anna lives in rome . ben owns a red cat . anna works as a baker ." - "what does ben own ?" - "a red cat". The
    passage holds facts about other people that look like the answer, and other facts about the one who is asked for;
    where a question has no answer, nothing but these. The answers are exact, the rows of a split the same for the same
    seed, and every passage belongs to one split alone, whatever the seed.

    The tokenizer has one token for each word of the grammar and depends on no argument.

    Args:
        num_train: Rows to train on, 1 or more.
        num_validation: Rows to validate on, 1 or more.
        num_test: Rows to test on, 1 or more.
        unanswerable: Share of the questions without an answer, from 0 to 1; above 0 the task needs a
            ``null_threshold``.
        tokenizer: Hub name or local folder; on the command line, the student's unless given. The grammar's own if there
            is none.
        max_length: Longest window in tokens, question and passage together; no pair has more than 64.
        stride: Tokens of the passage that a window shares with the next one, 0 or more.
        batch_size: Questions in a training batch, on each device.
        eval_batch_size: Questions in an evaluation batch.
        holdout_size: Rows taken out of the training split, to test on instead of the test split.
        max_train_rows: Train on this many rows, drawn at random.
        num_workers: Processes that collate; 0 is fast enough for a CPU.
        holdout_seed: Of the held-out rows: the same for a teacher and for the students that are tested on them.
        seed: Of the passages, of the drawn rows and of the order of batches.
        teacher_tokenizers: By the teacher's name, the Hub name or local folder of its tokenizer.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> data = SyntheticQADataModule(num_train=100, num_validation=10, num_test=10)
        >>> row = data.load_split("train")[5]
        >>> row["context"]
        'ben was born in vienna . anna lives in london . anna works as a baker .'
        >>> row["question"], row["answers"]
        ('where was ben born ?', {'text': ['vienna'], 'answer_start': [16]})
    """

    def __init__(
        self,
        num_train: int = 20_000,
        num_validation: int = 1_000,
        num_test: int = 1_000,
        unanswerable: float = 0.0,
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
            "synthetic_qa",
            None,
            tokenizer,
            max_length,
            stride,
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
        for split, count in self.num_rows.items():
            if count < 1:
                raise expected(f"num_{split}", "at least 1", count)
        check_range("unanswerable", unanswerable, 0, 1)
        self.unanswerable = unanswerable
        self._splits: dict[str, Dataset] = {}

    def _name(self) -> str:
        return "synthetic questions"

    def load_split(self, split: str) -> Dataset | None:
        if split not in self.num_rows:
            return None
        if split not in self._splits:
            rng = random.Random(f"{split} {self.seed}")  # noqa: S311  # no secret
            rows = [_row(rng, split, number, self.unanswerable) for number in range(self.num_rows[split])]
            self._splits[split] = Dataset.from_list(rows, features=QA_FEATURES)
        return self._splits[split]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return super().load_tokenizer() if self.tokenizer_source is not None else _grammar_tokenizer()


def _row(rng: random.Random, split: str, number: int, unanswerable: float) -> dict[str, Any]:
    asks = rng.random() >= unanswerable
    while True:  # redrawn with the same kind of question, so that its share is as asked for
        names = rng.sample(_NAMES, 3)
        pairs = rng.sample([(name, kind) for name in names for kind in range(len(_FACTS))], rng.randint(3, 5) + 1)
        name, kind = pairs[0]
        facts = pairs[:-1] if asks else pairs[1:]
        rng.shuffle(facts)
        sentences: list[str] = []
        answers, starts = [], []
        for pair in facts:
            things = {thing: rng.choice(words) for thing, words in _THINGS.items()}
            statement, _, answer = _FACTS[pair[1]]
            if pair == (name, kind):
                before = statement.partition(answer)[0].format(name=name, **things)
                answers.append(answer.format(**things))
                starts.append(len(" ".join([*sentences, before])))
            sentences.append(statement.format(name=pair[0], **things))
        context = " ".join(sentences)
        if zlib.crc32(context.encode()) % 4 in _SPLITS[split]:
            break
    return {
        "id": f"{split}-{number}",
        "context": context,
        "question": _FACTS[kind][1].format(name=name),
        "answers": {"text": answers, "answer_start": starts},
    }


def _grammar_tokenizer() -> PreTrainedTokenizerBase:
    patterns = " ".join(part for fact in _FACTS for part in fact)
    kept = [word for word in patterns.split() if "{" not in word]
    words = {*_NAMES, *(word for values in _THINGS.values() for word in values), *kept}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
