"""The table of parameters: each counted once, in the part that it is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)

from lightning_kd import InputError, LSTMConfig, LSTMForCausalLM
from lightning_kd.cli import main
from lightning_kd.describe import Part, describe, parts_of, table_of
from lightning_kd.models import count_parameters
from lightning_kd.quantization import DynamicInt8

TinyModel = Callable[..., Path]

WIDTH, INNER, NORM = 16, 24, 2 * 16
ATTENTION = 4 * (WIDTH * WIDTH + WIDTH) + NORM
FEED_FORWARD = 2 * WIDTH * INNER + WIDTH + INNER + NORM


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_a_layer_is_attention_and_feed_forward(tiny_model: TinyModel, family: str) -> None:
    """Stops biases or norms that are in no part, or in that of another layer, in any of the families' names."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model(family))
    parts = parts_of(model)
    for i in range(3):
        assert parts[f"layer {i}: attention"] == Part(4 * ATTENTION, ATTENTION)
        assert parts[f"layer {i}: feed-forward"] == Part(4 * FEED_FORWARD, FEED_FORWARD)
    head = (WIDTH + 1) * 2 + (0 if family == "bert" else WIDTH * (WIDTH + 1))  # BERT has a pooler for it
    assert parts["head"].parameters == head
    assert ("pooler" in parts) == (family == "bert")
    assert sum(part.parameters or 0 for part in parts.values()) == count_parameters(model)
    assert len(parts) == 6 + 2 + (family == "bert")


def test_shared_parameters_count_once() -> None:
    """Stops a decoder that is the embedding from being counted, and paid for, twice."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=60, tie_word_embeddings=True, **shape)
    model = AutoModelForMaskedLM.from_config(config)
    parts = parts_of(model)
    assert parts["embeddings"].parameters == (60 + 512 + 2) * 16 + NORM
    assert parts["head"].parameters == 16 * 17 + NORM + 60  # transform and its norm, and the bias of each word
    recurrent = parts_of(LSTMForCausalLM(LSTMConfig(50, 8, 2, tie_word_embeddings=True)))
    assert {name: part.parameters for name, part in recurrent.items()} == {
        "embeddings": 400,
        "layer 0": 8 * 64 + 64,
        "layer 1": 8 * 64 + 64,
        "head": 50,
    }


def test_layers_that_share_their_weights_have_a_name(tiny_model: TinyModel) -> None:
    """Stops a kind of model that has no list of layers from ending the table with an error."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model("albert"))
    parts = parts_of(model)
    assert {"embeddings", "encoder", "pooler", "head"} == set(parts)
    assert sum(part.parameters or 0 for part in parts.values()) == count_parameters(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_those_of_the_file(tiny_model: TinyModel, dtype: torch.dtype, capsys: pytest.CaptureFixture) -> None:
    """Stops a folder in half precision from being shown at twice its size, and one without a head with one."""
    folder = tiny_model(dtype=dtype, head=False)
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())
    found = columns(describe([str(folder)]))
    assert "head" not in found
    assert found["all"][0].split()[1] == f"{stored / 1e6:.2f}"


def columns(table: object) -> dict[str, list[str]]:
    """The cells of a table by the name of their row."""
    cells = [list(column.cells) for column in table.columns]
    return {str(row[0]): [str(cell) for cell in row[1:]] for row in zip(*cells, strict=True)}


def test_rows_are_in_the_order_of_a_batch() -> None:
    """Stops layer 10 from standing before layer 2, and one model's cell from standing in another's column."""
    names = [*(f"layer {i}: attention" for i in (10, 2)), "head", "pooler", "model.onnx", "embeddings"]
    big = {name: Part(4_000_000 * i, 1_000_000 * i) for i, name in enumerate(names, 1) if "." not in name}
    found = columns(table_of({"big": big, "small": {"model.onnx": Part(3_000_000)}}))
    assert list(found) == [
        "embeddings",
        "layer 2: attention",
        "layer 10: attention",
        "pooler",
        "head",
        "model.onnx",
        "all",
        "times smaller",
    ]
    assert found["embeddings"] == ["6.000  24.00", "-"] and found["model.onnx"] == ["-", "  3.00"]
    assert found["times smaller"] == ["1.0", f"{4 * (1 + 2 + 3 + 4 + 6) / 3:.1f}"]


def test_float_and_int8_are_timed_side_by_side(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Stops an int8 folder from being opened, and measured, as the float model that its configuration describes."""
    source = tiny_model()
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    folder = tmp_path / "int8"
    folder.mkdir()
    DynamicInt8().convert(model, [], folder)
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    found = columns(describe([str(source), str(folder)], times=True, length=7))
    size = (folder / "int8.safetensors").stat().st_size
    assert found["int8.safetensors"] == ["-", f"{size / 1e6:6.2f}"]
    assert all(float(cell) > 0 for cell in found["ms, p50"] + found["times faster"])
    assert found["times faster"][0] == "1.0"


def test_a_headless_and_an_answering_model_are_timed(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Stops an encoder, which has no logits, from failing once it is to be timed."""
    AutoModelForQuestionAnswering.from_pretrained(tiny_model()).save_pretrained(tmp_path / "answers")
    found = columns(describe([str(tiny_model(head=False)), str(tmp_path / "answers")], times=True))
    assert len(found["ms, p50"]) == 2 and found["head"][0] == "-"


def test_the_command_prints_the_table(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops `describe` from asking for a config, as every other subcommand does."""
    main(["describe", str(tiny_model())])
    assert "layer 2: feed-forward" in capsys.readouterr().out


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Stops a command that only those know who have read its code."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "describe MODEL" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["/nowhere/at/all", "no-such-model"])
def test_an_unknown_path_is_one_sentence(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops a mistyped folder from being looked for on the Hub, with a page of its answer."""
    with pytest.raises(SystemExit) as end:
        main(["describe", path])
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.startswith("error: Expected argument `MODEL` to be a local folder")
    assert path in message and message.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("length", 0), ("threads", 0)])
def test_a_value_out_of_range_is_named(tiny_model: TinyModel, option: str, value: int) -> None:
    """Stops a row without tokens from failing inside of the model."""
    with pytest.raises(InputError, match=f"argument `{option}` to be a finite number, 1 or more, but got 0"):
        describe([str(tiny_model())], **{option: value})
