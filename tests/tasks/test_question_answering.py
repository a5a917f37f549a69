"""From characters to tokens and back, over windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightning_kd import InputError
from lightning_kd.tasks import QuestionAnswering
from lightning_kd.tasks.base import IGNORED
from lightning_kd.tasks.passages import PassageEncoder
from lightning_kd.tasks.question_answering import answer_positions, best_spans
from lightning_kd.tasks.windows import all_windows
from tests.conftest import SPECIAL_TOKENS, VOCABULARY

ALPHABET = "abё é\u0301中文\u200b😀👩\u200d👧.,\n\tZ"


def _bpe() -> PreTrainedTokenizerBase:
    """Bytes: an emoji is several tokens, and the pair is <s> q </s></s> c </s>, as RoBERTa's."""
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    bpe.train_from_iterator(["ba ko 中文 😀", "Zoë bas din"], trainer)
    bpe.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=True)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def _metaspace() -> PreTrainedTokenizerBase:
    """Pieces with the space before a word in them, as SentencePiece makes them."""
    unigram = Tokenizer(models.BPE(unk_token="[UNK]"))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL_TOKENS, initial_alphabet=list(ALPHABET))
    unigram.train_from_iterator(["ba ko 中文 😀", "Zoë bas din"], trainer)
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    unigram.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=unigram, **names)


def _wordpiece() -> PreTrainedTokenizerBase:
    """Takes accents and control characters out of the text."""
    letters = [*"abezZ.,", "中", "文", "😀", "👩", "##a", "##b", "##e", "##z"]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate([*VOCABULARY, *letters])})


TOKENIZERS = (_wordpiece(), _bpe(), _metaspace())


def encoded(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], contexts: list[str], max_length: int = 16, stride: int = 4
) -> dict[str, Any]:
    found = PassageEncoder(tokenizer, max_length, stride).encode(questions, contexts)
    batch = all_windows(found.tokens, found.offsets, found.windows, tokenizer.pad_token_id or 0)
    return {**batch, "contexts": contexts}


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["wordpiece", "bpe", "metaspace"])
def test_a_short_pair_is_the_tokenizers_own(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stops special tokens or types of tokens that the model was not trained with."""
    questions, contexts = ["ba ko", "", "bas"], ["Zoë ba.", "ko", ""]
    batch = encoded(tokenizer, questions, contexts, 64, 8)
    theirs = tokenizer(questions, contexts, padding=True, return_tensors="pt")
    for name in tokenizer.model_input_names:
        assert torch.equal(batch[name], theirs[name]), name


@given(
    context=st.text(st.sampled_from(ALPHABET), max_size=60),
    question=st.text(st.sampled_from("ab 中é"), max_size=12),
    place=st.tuples(st.integers(0, 60), st.integers(1, 60)),
    tokenizer=st.sampled_from(TOKENIZERS),
    max_length=st.integers(14, 40),
)
def test_an_answer_comes_back_to_the_character(
    context: str, question: str, place: tuple[int, int], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Stops spans that are off by an accent, half an emoji, a dropped character, or the windows' cuts."""
    batch = encoded(tokenizer, [question], [context], max_length, 4)
    starts, ends = batch["char_starts"], batch["char_ends"]
    assert ((ends == 0).sum(1) == 1).all()  # one token a window stands for "no answer"
    begin, end = place[0], min(place[0] + place[1], len(context))
    batch["labels"] = torch.tensor([[begin, end]])
    covered = {(s, e) for s, e in zip(starts[ends > 0].tolist(), ends[ends > 0].tolist(), strict=True)}
    assert all(0 <= s < e <= len(context) and not context[s].isspace() for s, e in covered)
    touched = [(s, e) for s, e in covered if e > begin and s < end] if begin < end else []
    first, last = answer_positions(batch)
    if not touched:
        assert end == 0 or (first == IGNORED).all()
        return
    expected = (min(s for s, _ in touched), max(e for _, e in touched))
    held = [i for i in range(len(first)) if first[i] != IGNORED and ends[i, first[i]] > 0]
    if not held:  # longer than a window holds
        assert (first == IGNORED).all()
        return
    for i in held:
        assert (int(starts[i, first[i]]), int(ends[i, last[i]])) == expected
    for i in set(range(len(first))) - set(held):
        assert ends[i, first[i]] == 0 and first[i] == last[i]
    logits = {"start": torch.zeros(starts.shape), "end": torch.zeros(starts.shape)}
    for i in held:
        logits["start"][i, first[i]] = logits["end"][i, last[i]] = 5.0
    (record,) = QuestionAnswering(max_answer_length=99).records(logits, batch, BertConfig())
    assert (record["start"], record["end"]) == expected and record["answer"] == context[slice(*expected)]
    assert record["score"] == 10.0 and record["null_score"] == 0.0


def test_answers_at_whole_tokens_come_back_whole() -> None:
    """Stops the property above from holding for spans that are too wide."""
    context = "Zoë ba 中文, 😀 ko"
    for tokenizer in TOKENIZERS:
        for answer in ("Zoë", "中文", "😀", "ba 中文", "ko"):
            batch = encoded(tokenizer, ["ba"], [context], 64, 8)
            begin = context.index(answer)
            batch["labels"] = torch.tensor([[begin, begin + len(answer)]])
            first, last = (int(position[0]) for position in answer_positions(batch))
            assert context[batch["char_starts"][0, first] : batch["char_ends"][0, last]] == answer


def slow_spans(logits: Mapping[str, Tensor], batch: Mapping[str, Any], longest: int) -> list[tuple[float, int, int]]:
    """Every pair of tokens of every window."""
    best = [(-math.inf, -1, -1)] * len(batch["index"])
    for window, row in enumerate(batch["example"].tolist()):
        context = [i for i, end in enumerate(batch["char_ends"][window].tolist()) if end > 0]
        for i in context:
            for j in context:
                if i <= j < i + longest:
                    score = (logits["start"][window, i] + logits["end"][window, j]).item()
                    if score > best[row][0]:
                        place = batch["char_starts"][window, i].item(), batch["char_ends"][window, j].item()
                        best[row] = (score, *place)
    return best


@given(seed=st.integers(0, 10_000), longest=st.integers(1, 20))
def test_the_best_span_of_all_windows(seed: int, longest: int) -> None:
    """Stops spans that end before they begin, are too long, are of the question, or of another row's window."""
    generator = torch.Generator().manual_seed(seed)
    contexts = ["ba ko bas " * int(n) for n in torch.randint(0, 9, (4,), generator=generator)]
    batch = encoded(TOKENIZERS[0], ["ba ko", "", "bas ba ko", "ba"], contexts)
    shape = batch["input_ids"].shape
    logits = {name: torch.randn(shape, generator=generator) for name in ("start", "end")}
    found = best_spans(logits, batch, longest)
    expected = slow_spans(logits, batch, longest)
    for row, (score, start, end) in enumerate(expected):
        assert found.scores[row].item() == pytest.approx(score)
        if score > -math.inf:
            assert (found.starts[row].item(), found.ends[row].item()) == (start, end)
        null = min(
            (logits["start"][w, 0] + logits["end"][w, 0]).item() for w, r in enumerate(batch["example"]) if r == row
        )
        assert found.null_scores[row].item() == pytest.approx(null)


def test_no_answer_where_the_threshold_says_so() -> None:
    """Stops the sign of the difference from being turned around."""
    contexts = ["ba ko", "ba ko"]
    batch = encoded(TOKENIZERS[0], ["ba", "ko"], contexts)
    logits = {name: torch.zeros(batch["input_ids"].shape) for name in ("start", "end")}
    logits["start"][0, 0], logits["start"][1, 0] = 1.0, 3.0
    batch["answers"] = [["ba"], []]
    for threshold, answered in ((None, 2), (0.0, 0), (2.0, 1), (5.0, 2)):
        task = QuestionAnswering(null_threshold=threshold)
        records = task.records(logits, batch, BertConfig())
        assert sum(record["answer"] != "" for record in records) == answered
        assert all((record["start"] is None) == (record["answer"] == "") for record in records)
        places, scores = task.outcomes(logits, batch)
        assert [bool(place) for place in places] == [record["answer"] != "" for record in records]
        if threshold == 2.0:
            assert scores[:, 2].tolist() == [1, 0] and scores[1].tolist() == [1, 1, 0]
    found = QuestionAnswering(null_threshold=0.0).null_outcomes(logits, batch)
    assert found[:, 0].tolist() == [1.0, 3.0] and found[:, 2].tolist() == [0.0, 1.0]


def test_hard_loss_is_over_what_can_be_an_answer() -> None:
    """Stops the padding and the question from taking a share of the softmax, and unknown answers from being learned."""
    contexts = ["ba ko bas", "ko"]
    batch = encoded(TOKENIZERS[0], ["ba", "ko ko"], contexts)
    batch["labels"] = torch.tensor([[3, 5], [0, 0]])
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(batch["input_ids"].shape, generator=generator) for name in ("start", "end")}
    loss = QuestionAnswering().hard_label_loss(logits, batch)
    expected = []
    for name, positions in zip(("start", "end"), answer_positions(batch), strict=True):
        for window in range(2):
            allowed = batch["char_ends"][window] >= 0
            target = allowed[: positions[window]].sum()
            expected.append(F.cross_entropy(logits[name][window][allowed], target))
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item())
    batch["labels"] = torch.full((2, 2), IGNORED)
    values = {name: value.requires_grad_() for name, value in logits.items()}
    nothing = QuestionAnswering().hard_label_loss(values, batch)
    nothing.backward()
    assert nothing.item() == 0 and values["start"].grad is not None and not values["start"].grad.any()


def test_long_questions_are_cut_and_windows_stay_within_the_limit() -> None:
    """Stops a question that leaves no room for its passage, and positions that the model does not have."""
    found = PassageEncoder(TOKENIZERS[0], 20, 5).encode(["ba " * 50, "ko"], ["din " * 100, "ba " * 30])
    assert found.cut_questions == 1 and found.split_rows == 2
    assert max(found.offsets[1:] - found.offsets[:-1]) == 20
    batch = all_windows(found.tokens, found.offsets, found.windows, 0)
    for row in range(2):  # every token of the passage is in some window, and neighbours share 5
        windows = [batch["char_starts"][w][batch["char_ends"][w] > 0].tolist() for w in range(len(batch["example"]))]
        windows = [w for w, r in zip(windows, batch["example"].tolist(), strict=True) if r == row]
        assert sorted(set().union(*windows)) == list(range(0, (400, 90)[row], (4, 3)[row]))
        assert all(len(set(one) & set(other)) == 5 for one, other in pairwise(windows))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuestionAnswering(max_answer_length=0), "`max_answer_length` to be 1 or more"),
        (lambda: QuestionAnswering(scoring="rouge"), "`scoring` to be one of squad, cmrc2018"),
        (lambda: PassageEncoder(TOKENIZERS[0], 10, 6), "`max_length` to be above 10"),
        (lambda: QuestionAnswering().encode(["who?"], TOKENIZERS[0]), "to hold pairs"),
        (lambda: QuestionAnswering().metrics(["accuracy"], ["start", "end"]), "among f1, exact_match"),
        (lambda: QuestionAnswering().configure(BertConfig(), ["no", "yes"]), "needs data with answers, but .* no, yes"),
    ],
)
def test_refused(call: Callable[[], Any], message: str) -> None:
    """Stops what cannot work from failing in the middle of a run."""
    with pytest.raises(InputError, match=message):
        call()


def test_a_model_keeps_its_threshold() -> None:
    """Stops a threshold that was found on training rows from being lost with the export."""
    config = BertConfig()
    QuestionAnswering(null_threshold=0.0).configure(config, ["start", "end"])
    assert config.null_threshold == 0.0 and config.num_labels == 2
    config.null_threshold = 1.5
    QuestionAnswering(null_threshold=0.0).configure(config, ["start", "end"])
    assert QuestionAnswering(null_threshold=0.0).with_config(config).null_threshold == 1.5
    QuestionAnswering(max_answer_length=50).configure(other := BertConfig(), ["start", "end"])
    assert QuestionAnswering().with_config(other).max_answer_length == 50  # as who opens the exported folder does
    assert QuestionAnswering(null_threshold=2.0).with_config(BertConfig()).null_threshold == 2.0
    QuestionAnswering().configure(config, ["start", "end"])  # data where every question has an answer
    assert QuestionAnswering().with_config(config).null_threshold is None
