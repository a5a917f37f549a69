"""Fewer tokens: what was counted is cut as before, and anything else can still be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)

from lightning_kd import InputError
from lightning_kd.cutting import named_tokens, reduce_embeddings
from lightning_kd.vocabulary import compare, kept_tokens, save_reduced
from tests.conftest import SPECIAL_TOKENS

#: "##y" alone is missing: a word is unknown where it is what is left, and known where "##by" takes it along.
PIECES = ["a", "b", "ab", "abab", "##a", "##b", "##ab", "##by", "##ba", "##bab", "y"]
SENTENCES = ["low lower lowest", "new newer newest", "wide wider widest", "lower and wider, newest lowest!", "Äther ☃"]


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """WordPiece over ``PIECES``, the special tokens in the middle."""
    folder = tmp_path_factory.mktemp("wordpiece")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", *PIECES[:4], *SPECIAL_TOKENS[1:], *PIECES[4:]]) + "\n")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """RoBERTa's kind of BPE, trained on ``SENTENCES`` and others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    others = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("n", "st", "nest")]
    tokenizer.train_from_iterator([*SENTENCES * 3, *others], trainer)
    parts = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in parts["merges"]]
    return RobertaTokenizerFast(vocab=parts["vocab"], merges=merges, model_max_length=64)


def counted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Any:
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for ids in tokenizer(list(texts))["input_ids"]:
        np.add.at(counts, ids, 1)
    return counts


def reduce(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], folder: Path, min_count: int = 1
) -> PreTrainedTokenizerBase:
    kept = kept_tokens(tokenizer, counted(tokenizer, texts), texts, min_count)
    return save_reduced(tokenizer, kept, folder)


def strings(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(list(texts))["input_ids"]]


@given(texts=st.lists(st.text("aby ", max_size=9), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wordpiece_cuts_counted_texts_as_before(
    wordpiece: PreTrainedTokenizerBase, tmp_path: Path, texts: list[str]
) -> None:
    """Stops a word that was unknown from becoming another, known one, once the piece it started with is gone."""
    reduced = reduce(wordpiece, texts, tmp_path)
    assert strings(reduced, texts) == strings(wordpiece, texts)


def test_an_unknown_word_stays_unknown(wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Stops "aby", unknown behind "ab", from being read as "a ##by" where "ab" stands in no other word."""
    texts = ["aby", "bby a"]
    assert strings(wordpiece, texts) == [["[CLS]", "[UNK]", "[SEP]"], ["[CLS]", "b", "##by", "a", "[SEP]"]]
    reduced = reduce(wordpiece, texts, tmp_path)
    assert strings(reduced, texts) == strings(wordpiece, texts)
    assert "##by" in reduced.get_vocab() and "abab" not in reduced.get_vocab()
    naive = [i for i, n in enumerate(counted(wordpiece, texts)) if n or i in wordpiece.all_special_ids]
    naive += [i for token, i in wordpiece.get_vocab().items() if token in ("a", "b", "##a", "##b", "y")]
    worse = save_reduced(wordpiece, sorted(set(naive)), tmp_path / "naive")
    assert strings(worse, texts)[0] == ["[CLS]", "a", "##by", "[SEP]"]


@given(texts=st.lists(st.sampled_from([*SENTENCES, "nest", "west ☃☃", "lo west", "wnewer"]), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_byte_level_bpe_cuts_counted_texts_as_before(
    byte_level: PreTrainedTokenizerBase, tmp_path: Path, texts: list[str]
) -> None:
    """Stops a token whose merges went with a part of it that stands nowhere alone."""
    reduced = reduce(byte_level, texts, tmp_path)
    assert strings(reduced, texts) == strings(byte_level, texts)
    assert len(reduced) < len(byte_level)
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert len(reduced) == 256 + 5 + len(merges)  # bytes, special tokens, and what a merge gives: no more
    other = "something else: 我 <"
    assert reduced.decode(reduced(other, add_special_tokens=False)["input_ids"]) == other


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_special_tokens_keep_their_places(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Stops a pair from being joined by whatever token has the separator's old number."""
    whole = request.getfixturevalue(kind)
    texts = ["ab b", "low"]
    reduced = reduce(whole, texts, tmp_path)
    pair = [tokenizer(*texts, padding="max_length", max_length=16) for tokenizer in (whole, reduced)]
    tokens = [t.convert_ids_to_tokens(p["input_ids"]) for t, p in zip((whole, reduced), pair, strict=True)]
    assert tokens[0] == tokens[1] and pair[0]["attention_mask"] == pair[1]["attention_mask"]
    assert reduced.special_tokens_map == whole.special_tokens_map
    assert sorted(reduced.get_vocab().values()) == list(range(len(reduced)))


def test_what_a_run_left_in_the_tokenizer_is_not_saved(wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Stops a folder that cuts every text to the length of the last batch."""
    wordpiece(["a b"], padding="max_length", truncation=True, max_length=3)
    reduced = reduce(wordpiece, ["a b a b"], tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.padding is None and len(backend.encode("a b a b").ids) == len(reduced("a b a b").input_ids) == 6


def test_rare_tokens_go_first(wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Stops `min_count` from dropping what can be read no other way, or from counting texts rather than tokens."""
    texts = ["ab ab", "abab"]
    reduced = reduce(wordpiece, texts, tmp_path, min_count=2)
    assert strings(reduced, texts) == [["[CLS]", "ab", "ab", "[SEP]"], ["[CLS]", "ab", "##a", "##b", "[SEP]"]]
    assert {"a", "b", "y", "##a", "##b"} < reduced.get_vocab().keys()


def test_encodings_are_compared(wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Stops a share of tokens that is called one of texts, and special tokens that make unknown ones look rare."""
    reduced = reduce(wordpiece, ["a"], tmp_path)
    found = compare(wordpiece, reduced, ["a b", "ab", "ab aby", "ay"])
    # before: a b | ab | ab [UNK] | [UNK]; now: a b | a ##b | a ##b [UNK] | [UNK]
    assert (found.texts, found.unknown, found.unknown_reduced, found.changed) == (4, 2 / 6, 2 / 8, 0.5)
    assert str(found) == (
        "50.00% of 4 texts are cut into other tokens than before; 33.333% of the tokens were unknown, now 25.000%"
    )


@pytest.mark.parametrize("model", [models.Unigram([("a", -1.0), ("b", -2.0)]), models.WordLevel({"a": 0, "b": 1}, "a")])
def test_other_vocabularies_are_refused(model: Any) -> None:
    """Stops a vocabulary of probabilities from losing tokens by which other texts are then cut."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(InputError) as error:
        kept_tokens(tokenizer, np.ones(2, dtype=np.int64), ["a"])
    assert str(error.value).startswith("Argument `vocabulary` needs a WordPiece or byte-level BPE vocabulary, but ")
    assert type(model).__name__ in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("vocabulary", ["wordpiece", "byte_level"])
def test_logits_of_counted_texts_stay(
    kind: str, vocabulary: str, request: pytest.FixtureRequest, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Stops a row of the embedding that is another token's, and positions that move with the padding's number."""
    whole = request.getfixturevalue(vocabulary)
    texts = ["ab b", "abab aby"] if vocabulary == "wordpiece" else SENTENCES
    config = AutoConfig.from_pretrained(tiny_model(kind), vocab_size=len(whole) + 3, pad_token_id=whole.pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    kept = kept_tokens(whole, counted(whole, texts), texts, others=named_tokens(model))
    reduced, smaller = save_reduced(whole, kept, tmp_path), reduce_embeddings(model, kept)
    logits = []
    for each, tokenizer in ((model, whole), (smaller, reduced)):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits.append(each(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-6)
    assert smaller.get_input_embeddings().weight.shape[0] == smaller.config.vocab_size == len(kept) < len(whole)
    assert smaller.config.pad_token_id == reduced.pad_token_id


def test_positions_start_where_they_did(tiny_model: Callable[..., Path]) -> None:
    """Stops RoBERTa's positions, which count from the padding's number on, from starting earlier."""
    config = AutoConfig.from_pretrained(tiny_model("roberta"), pad_token_id=7)
    model = AutoModelForSequenceClassification.from_config(config)
    assert set(range(8)) <= named_tokens(model)
    plain = AutoConfig.from_pretrained(tiny_model("bert"), pad_token_id=7)
    assert named_tokens(AutoModelForSequenceClassification.from_config(plain)) == {7}


def test_real_texts_are_cut_as_before(shared: Path, tmp_path: Path) -> None:
    """Stops accents, apostrophes and Chinese signs of real texts, which no made-up vocabulary has."""
    whole = AutoTokenizer.from_pretrained(shared / "data" / "vocab" / "bert-base-uncased")
    texts = list(load_dataset(str(shared / "data" / "glue"), "sst2", split="train[:3000]")["sentence"])
    texts += ["Ångström café 東京 naïve \u200b don't", "x" * 120]
    reduced = reduce(whole, texts, tmp_path)
    assert strings(reduced, texts) == strings(whole, texts)
    assert len(reduced) < len(whole) / 3
