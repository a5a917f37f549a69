"""The synthetic set: labels against a reader of its sentences, splits, tokenizer and limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Value
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from lightning_kd import InputError
from lightning_kd.datamodules.synthetic import SyntheticDataModule

SPLITS = ("train", "validation", "test")
GOOD = {
    *("good", "great", "superb", "wonderful", "brilliant", "charming", "moving", "funny"),
    *("gripping", "delightful", "clever", "fresh", "elegant", "memorable", "satisfying", "impressive"),
}
BAD = {
    *("bad", "dull", "awful", "boring", "terrible", "clumsy", "weak", "tedious"),
    *("bland", "dreadful", "shallow", "stale", "messy", "forgettable", "disappointing", "annoying"),
}
STRENGTH = {"slightly": 1, "somewhat": 1, "mildly": 1, "partly": 1, "": 2}
STRENGTH |= {"very": 3, "truly": 3, "utterly": 3, "absolutely": 3}
CLAUSE = re.compile(r"the \w+ (?:is|was) (?:(not very|not|never|hardly) )?(?:(\w+) )?(\w+)")
CLOSINGS = ["overall", "throughout", "as usual", "once again", "this time", "this year", "for me", "to my mind"]
CLOSING = re.compile(f" ({'|'.join([*CLOSINGS, 'on the whole', 'all in all', 'in this film'])})$")


def read_clause(clause: str) -> tuple[int, int]:
    """Whether a clause is positive, and how strong it is."""
    found = CLAUSE.fullmatch(clause)
    assert found, clause
    negation, modifier, adjective = found.groups()
    assert (adjective in GOOD) != (adjective in BAD), adjective
    assert not (negation and modifier), clause
    return int((adjective in GOOD) != bool(negation)), STRENGTH[modifier or ""]


def read(sentence: str) -> tuple[str, int]:
    """The kind of a sentence and its label, from its text alone, by the rules that the class documents."""
    body = CLOSING.sub("", sentence)
    if leading := re.fullmatch(r"(?:although|even though) (.+), (.+)", body):
        kind, clauses = "contrast", [leading[2], leading[1]]
    elif contrast := re.fullmatch(r"(.+), (although|even though|but|yet) (.+)", body):
        kind, clauses = "contrast", [contrast[1], contrast[3]]
        if contrast[2] in ("but", "yet"):
            clauses.reverse()
    else:
        kind, clauses = "stronger", body.split(" and ")
    (label, strength), *rest = map(read_clause, clauses)
    if not rest:
        return "one", label
    ((other_label, other_strength),) = rest
    if label == other_label:
        return "agree", label
    if kind == "contrast":
        return kind, label
    assert strength != other_strength, f"nothing decides: {sentence}"
    return kind, label if strength > other_strength else other_label


def columns(data: SyntheticDataModule, split: str) -> tuple[list[str], list[int]]:
    """Sentences and labels of a split."""
    rows = data.load_split(split)
    assert isinstance(rows, Dataset)
    return list(rows["sentence"]), list(rows["label"])


@pytest.fixture(scope="module")
def data() -> SyntheticDataModule:
    """The set in its default size."""
    return SyntheticDataModule()


@pytest.mark.parametrize(
    ("sentence", "kind", "label"),
    [
        ("the plot was hardly dull", "one", 1),
        ("the plot is not very good this time", "one", 0),
        ("the plot is never good, yet the script was utterly bad", "agree", 0),
        ("the acting was dull, but the ending was superb", "contrast", 1),
        ("even though the acting was partly moving, the ending was never superb overall", "contrast", 0),
        ("the ending was superb, although the acting was dull", "contrast", 1),
        ("the music was slightly bland and the script was clever", "stronger", 1),
        ("the music was absolutely bland and the script was not weak", "stronger", 0),
    ],
)
def test_the_reader_of_these_tests_knows_the_rules(sentence: str, kind: str, label: int) -> None:
    """A reader that answers like the grammar by chance would let every label pass."""
    assert read(sentence) == (kind, label)


@given(st.integers(-5, 10_000), st.sampled_from(SPLITS))
def test_labels_are_what_the_sentences_say(seed: int, split: str) -> None:
    """A word in the wrong list or a negation that does not turn its clause puts noise into labels called exact."""
    data = SyntheticDataModule(num_train=150, num_validation=150, num_test=150, seed=seed)
    for sentence, label in zip(*columns(data, split), strict=True):
        assert read(sentence)[1] == label, sentence


def test_labels_are_balanced_within_every_kind_of_sentence(data: SyntheticDataModule) -> None:
    """A kind whose labels lean to one side gives points to a model that sees only the connective."""
    labels: dict[str, list[int]] = {}
    for sentence in columns(data, "train")[0]:
        kind, label = read(sentence)
        labels.setdefault(kind, []).append(label)
    shares = {"one": 0.3, "agree": 0.3, "contrast": 0.25, "stronger": 0.15}
    assert {kind: len(rows) / 20_000 for kind, rows in labels.items()} == pytest.approx(shares, abs=0.015)
    for kind, rows in labels.items():
        assert sum(rows) / len(rows) == pytest.approx(0.5, abs=0.03), kind


def test_a_bag_of_words_cannot_solve_it(data: SyntheticDataModule) -> None:
    """A set that word counts solve shows nothing about what a small student loses. Measured: 0.68."""
    sentences, labels = columns(data, "train")
    words = CountVectorizer(token_pattern=r"\w+|,")
    model = LogisticRegression(max_iter=500).fit(words.fit_transform(sentences), labels)
    test_sentences, test_labels = columns(data, "test")
    assert model.score(words.transform(test_sentences), test_labels) < 0.75


def test_no_sentence_is_in_two_splits_or_twice_in_one(data: SyntheticDataModule) -> None:
    """Training sentences among those of the test, of another seed too, make a model look better than it is."""
    other = SyntheticDataModule(seed=1)
    sentences = {split: columns(data, split)[0] for split in SPLITS}
    for split in SPLITS:
        assert len(set(sentences[split])) == len(sentences[split])
    train = {*sentences["train"], *columns(other, "train")[0]}
    for split in ("validation", "test"):
        assert train.isdisjoint(sentences[split])
    assert set(sentences["validation"]).isdisjoint(sentences["test"])


def test_rows_follow_from_the_seed_alone() -> None:
    """Validation rows that move with the size of another split cannot be compared between runs."""
    data = SyntheticDataModule(num_train=300, num_validation=80, num_test=90, seed=3)
    same = SyntheticDataModule(num_train=100, num_validation=80, num_test=90, seed=3)
    other = SyntheticDataModule(num_train=300, num_validation=80, num_test=90, seed=4)
    for split, rows in (("validation", 80), ("test", 90)):
        assert columns(data, split) == columns(same, split)
        assert len(columns(data, split)[0]) == rows
        assert columns(data, split) != columns(other, split)
    again = SyntheticDataModule(num_train=300, num_validation=80, num_test=90, seed=3)
    assert columns(data, "train") == columns(again, "train") != columns(other, "train")


def test_columns_are_those_of_sst2(data: SyntheticDataModule) -> None:
    """Without names in the features, the student is exported with LABEL_0 and LABEL_1."""
    rows = data.load_split("validation")
    assert isinstance(rows, Dataset)
    label = ClassLabel(names=["negative", "positive"])
    assert rows.features == {"sentence": Value("string"), "label": label, "idx": Value("int32")}
    assert list(rows["idx"]) == list(range(2_000))
    assert data.load_split("validation") is rows, "generated again on every call"
    assert data.load_split("test_matched") is None


def test_every_stage_has_its_rows() -> None:
    """The test split has labels here: `test` runs without rows held out, and on the rows that `predict` shows."""
    data = SyntheticDataModule(num_train=60, num_validation=20, num_test=30)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert data.sizes == {"train": 60, "validation": 20, "test": 30, "predict": 30}
    assert data.label_names == ["negative", "positive"]
    assert data.texts("test") == [(sentence,) for sentence in columns(data, "test")[0]]
    labels: dict[int, int] = {}
    for batch in data.test_dataloader():
        labels.update(zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True))
    assert [labels[i] for i in range(30)] == columns(data, "test")[1]


def test_holding_rows_out_still_works() -> None:
    """An override of the splits that forgets `holdout_size` would test on rows of another split than it says."""
    data = SyntheticDataModule(num_train=60, num_validation=20, num_test=30, holdout_size=10)
    data.setup("fit")
    assert data.sizes == {"train": 50, "test": 10, "validation": 20}


def test_the_tokenizer_knows_every_word_and_depends_on_nothing() -> None:
    """A vocabulary that moves with seed or size gives a student other token numbers than its teacher learned."""
    small, large = SyntheticDataModule(num_train=5, seed=7).load_tokenizer(), SyntheticDataModule().load_tokenizer()
    assert small.get_vocab() == large.get_vocab()
    tokens = sorted(large.get_vocab(), key=large.get_vocab().__getitem__)
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[5:] == sorted(tokens[5:]), "in the order of a set, which changes from process to process"


def test_a_word_is_a_token_and_no_row_is_cut(data: SyntheticDataModule) -> None:
    """A word that the list of the vocabulary misses would be [UNK]: both polarities look the same."""
    data.setup("fit")
    data.setup("test")
    assert data.tokenizer is not None
    for split in SPLITS:
        rows = data._rows[split]
        words = sum(len(re.findall(r"\w+|,", sentence)) for (sentence,) in data.texts(split))
        assert len(rows.tokens["input_ids"]) == words + 2 * len(rows)
        assert (rows.tokens["input_ids"] != data.tokenizer.unk_token_id).all()
        assert rows.truncated == 0 and rows.lengths.max() <= 20
    used = set(data._rows["train"].tokens["input_ids"].tolist())
    assert len(data.tokenizer) - len(used) == 3, "more tokens than [PAD], [UNK] and [MASK] are in no sentence"


def test_the_tokenizer_survives_a_folder(tmp_path: Path) -> None:
    """An exported student whose folder gives another tokenizer back is wrong on every text, without an error."""
    own = SyntheticDataModule().load_tokenizer()
    own.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == own.get_vocab()
    texts = ("The plot was hardly dull, but the ending was superb.", "the music is unheard")
    expected = own(*texts)
    assert loaded(*texts) == expected
    pieces = "[CLS] the plot was hardly dull , but the ending was superb [UNK] [SEP] the music is [UNK] [SEP]"
    assert own.convert_ids_to_tokens(expected["input_ids"]) == pieces.split()
    assert expected["token_type_ids"] == [0] * 14 + [1] * 5
    given = SyntheticDataModule(tokenizer=str(tmp_path)).load_tokenizer()
    assert given.get_vocab() == own.get_vocab()


def test_a_given_tokenizer_is_used(tiny_model: Callable[..., Path]) -> None:
    """A pretrained student that is fed the grammar's token numbers reads other words, without an error."""
    folder = tiny_model("bert")
    given = SyntheticDataModule(tokenizer=str(folder)).load_tokenizer()
    assert given.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    with pytest.raises(InputError, match=r"`data\.tokenizer`.*no such folder"):
        SyntheticDataModule(tokenizer="./nowhere").load_tokenizer()


@pytest.mark.parametrize(
    ("name", "rows", "most"),
    [
        ("num_train", 0, "119,808"),
        ("num_train", 119_809, "119,808"),
        ("num_validation", 59_905, "59,904"),
        ("num_test", -1, "59,904"),
    ],
)
def test_a_size_out_of_range_is_refused_at_once(name: str, rows: int, most: str) -> None:
    """More rows than there are sentences would search for a new one without end."""
    with pytest.raises(InputError, match=rf"`data\.{name}` to be from 1 to {most}, .* but got {rows}\."):
        SyntheticDataModule(**{name: rows})


@pytest.mark.slow
def test_the_largest_size_is_served() -> None:
    """A limit above what the grammar can write hangs; one too near to it runs out of short sentences."""
    sentences, labels = columns(SyntheticDataModule(num_validation=59_904), "validation")
    assert len(set(sentences)) == 59_904
    assert sum(labels) / 59_904 == pytest.approx(0.5, abs=0.01)
    assert sum(read(sentence)[0] == "one" for sentence in sentences) / 59_904 == pytest.approx(0.3, abs=0.01)
