"""Loading models and dropping layers: tiny random models of each family, in folders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError, ModelSource
from lightning_kd.models import count_parameters, freeze, keep_layers, load_config, load_model, load_trained

TinyModel = Callable[..., Path]

#: Where each family holds its layers.
LAYERS = {
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
}
TOKENS = {
    "input_ids": torch.tensor([[2, 10, 20, 30, 3], [2, 40, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}

families = pytest.mark.parametrize("family", LAYERS)


def load(path: Path, **options: Any) -> PreTrainedModel:
    """The student in ``path``."""
    source = ModelSource(str(path), **options)
    return load_model(source, AutoModelForSequenceClassification, load_config(source, "student"))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """The model's logits for two texts, without dropout."""
    return model.eval()(**TOKENS).logits


# ---------------------------------------------------------------------------------------------- keep_layers


@families
@pytest.mark.parametrize("layers", [[0, 2], [2, 0], [1]])
def test_kept_layers_are_the_right_ones(tiny_model: TinyModel, family: str, layers: list[int]) -> None:
    """Stops a kept layer that holds another's weights, or random ones: the student trains all the same, from worse."""
    model = load(tiny_model(family))
    smaller = keep_layers(model, layers)
    old, new = model.get_submodule(LAYERS[family]), smaller.get_submodule(LAYERS[family])
    assert len(new) == smaller.config.num_hidden_layers == len(layers)
    for kept, layer in zip(new, layers, strict=True):
        torch.testing.assert_close(kept.state_dict(), old[layer].state_dict(), rtol=0, atol=0)
    others = {name: value for name, value in model.state_dict().items() if not name.startswith(LAYERS[family])}
    kept_others = {name: smaller.state_dict()[name] for name in others}
    torch.testing.assert_close(kept_others, others, rtol=0, atol=0)


@families
def test_all_layers_kept_is_the_same_model(tiny_model: TinyModel, family: str) -> None:
    """Stops a part outside of the layers (embeddings, pooler, head, buffers) from being lost on the way."""
    model = load(tiny_model(family))
    same = keep_layers(model, [0, 1, 2])
    assert torch.equal(logits(same), logits(model))
    assert same.config.to_dict() == model.config.to_dict()


@families
def test_output_is_that_of_the_shortened_model(tiny_model: TinyModel, family: str) -> None:
    """Stops a forward pass that skips or repeats layers after the renumbering, and one hidden state too many."""
    model = load(tiny_model(family))
    by_hand = copy.deepcopy(model)
    old = by_hand.get_submodule(LAYERS[family])
    by_hand.set_submodule(LAYERS[family], nn.ModuleList([old[0], old[2]]))
    smaller = keep_layers(model, [0, 2])
    assert torch.equal(logits(smaller), logits(by_hand))
    assert not torch.allclose(logits(smaller), logits(model))
    assert len(smaller(**TOKENS, output_hidden_states=True).hidden_states) == 3


@families
def test_shortened_model_comes_back_from_disk(tiny_model: TinyModel, family: str, tmp_path: Path) -> None:
    """Stops a config of the old depth, for which the missing layers come back random."""
    smaller = load(tiny_model(family), keep_layers=[0, 2])
    smaller.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.num_hidden_layers == 2
    assert torch.equal(logits(again), logits(smaller))


def test_shortened_model_is_a_copy(tiny_model: TinyModel) -> None:
    """Stops the student's training from moving the teacher that it was cut from."""
    model = load(tiny_model("bert"))
    before = logits(model)
    with torch.no_grad():
        for parameter in keep_layers(model, [0, 2]).parameters():
            parameter.zero_()
    assert torch.equal(logits(model), before)
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 0], [0, 1, 2, 3]])
def test_refuses_layers_that_are_not_there(tiny_model: TinyModel, layers: list[int]) -> None:
    """Stops -1 from being taken for nothing at all, and one layer from standing in two places."""
    with pytest.raises(InputError) as error:
        load(tiny_model("bert"), keep_layers=layers)
    message = f"Expected argument `student.keep_layers` to be different layers from 0 to 2, but got {layers}."
    assert str(error.value) == message


def test_refuses_shared_layers(tiny_model: TinyModel) -> None:
    """Stops ALBERT, whose one group of weights would be cut as if it were all layers."""
    with pytest.raises(InputError, match=r"with albert: its layers share their weights.*num_hidden_layers"):
        load(tiny_model("albert"), keep_layers=[0, 1])
    assert load(tiny_model("albert"), config={"num_hidden_layers": 2}).config.num_hidden_layers == 2


# ---------------------------------------------------------------------------------------------- a student


def test_student_is_in_train_mode(tiny_model: TinyModel) -> None:
    """Stops training without dropout: from_pretrained returns eval mode, and the trainer leaves it there."""
    for options in ({}, {"keep_layers": [0]}, {"from_scratch": True}):
        model = load(tiny_model("bert"), **options)
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"keep_layers": [0, 2]}, {"from_scratch": True}])
def test_half_folder_gives_float32(tiny_model: TinyModel, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Stops a student that is stored in half precision from being trained in it, where small updates are lost."""
    model = load(tiny_model("bert", dtype=dtype), **options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_dtype_is_what_was_asked_for(tiny_model: TinyModel) -> None:
    """Stops a teacher that was to be loaded in bfloat16 from taking twice the memory."""
    source = ModelSource(str(tiny_model("bert")), dtype="bfloat16")
    assert load_trained(source, AutoModelForSequenceClassification).dtype == torch.bfloat16


def test_stored_weights_are_loaded(tiny_model: TinyModel) -> None:
    """Stops random weights in the place of the stored ones."""
    path = tiny_model("bert")
    expected = AutoModelForSequenceClassification.from_pretrained(path)
    assert torch.equal(logits(load(path)), logits(expected))


def test_encoder_gets_a_new_head(tiny_model: TinyModel) -> None:
    """Stops the refusal of a pretrained encoder, or the loss of its weights, where only the head is new."""
    path = tiny_model("bert", head=False)
    model = load(path, config={"num_labels": 3})
    assert model.classifier.out_features == 3
    stored = AutoModel.from_pretrained(path)
    torch.testing.assert_close(model.bert.state_dict(), stored.state_dict(), rtol=0, atol=0)


def test_from_scratch_takes_overrides(tiny_model: TinyModel) -> None:
    """Stops an override that changes the config, but not the model; stops stored weights in a fresh student."""
    path = tiny_model("bert")
    model = load(path, from_scratch=True, config={"hidden_size": 8, "num_hidden_layers": 1})
    assert model.config.hidden_size == model.bert.embeddings.word_embeddings.embedding_dim == 8
    assert len(model.bert.encoder.layer) == 1
    fresh, stored = load(path, from_scratch=True), load(path)
    assert not torch.equal(fresh.classifier.weight, stored.classifier.weight)


def test_from_scratch_without_path() -> None:
    """Stops a download for a model that is made of its configuration alone."""
    source = ModelSource(
        from_scratch=True,
        config={
            "model_type": "distilbert", "vocab_size": 50, "dim": 8, "hidden_dim": 8, "n_heads": 2, "n_layers": 1,
            "num_labels": 4,
        },
    )  # fmt: skip
    model = load_model(source, AutoModelForSequenceClassification, load_config(source))
    assert model.config.model_type == "distilbert"
    assert model.classifier.out_features == 4
    assert count_parameters(model) < 6000


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("override", "hint"),
    [({"num_hiden_layers": 2}, " Did you mean `num_hidden_layers`?"), ({"xyzzy": 2}, "")],
)
def test_refuses_unknown_override(tiny_model: TinyModel, override: dict[str, int], hint: str) -> None:
    """Stops a mistyped override from being stored in the config and read by nobody."""
    with pytest.raises(InputError) as error:
        load_config(ModelSource(str(tiny_model("bert")), config=override), "student")
    key = next(iter(override))
    assert (
        str(error.value)
        == f"Expected argument `student.config` to be made of BertConfig's fields, but got {key!r}.{hint}"
    )


def test_override_by_the_common_name(tiny_model: TinyModel) -> None:
    """Stops DistilBERT's `dim` from staying what it was when `hidden_size` is set, and the hint for it from failing."""
    config = load_config(ModelSource(str(tiny_model("distilbert")), config={"hidden_size": 8}))
    assert config.dim == 8
    with pytest.raises(InputError, match="Did you mean `hidden_size`"):
        load_config(ModelSource(str(tiny_model("distilbert")), config={"hiden_size": 8}))


def test_refuses_other_model_type(tiny_model: TinyModel) -> None:
    """Stops a model type that contradicts the folder's from being passed over."""
    source = ModelSource(str(tiny_model("bert")), config={"model_type": "electra"})
    with pytest.raises(InputError, match=r"`student.config.model_type` to be 'bert', as .* has it, but got 'electra'"):
        load_config(source, "student")
    assert load_config(ModelSource(source.path, config={"model_type": "bert"})).model_type == "bert"


@pytest.mark.parametrize(
    "path", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "some/deep/folder", "no-such-model"]
)
def test_wrong_path_is_one_sentence(path: str) -> None:
    """Stops a mistyped folder from being looked for on the Hub, and a page of traceback where it is not found."""
    with pytest.raises(InputError) as error:
        load_config(ModelSource(path), "student")
    message = str(error.value)
    assert (
        message.startswith("Expected argument `student.path` to be a local folder") and f"but got {path!r}" in message
    )
    assert "\n" not in message


def test_folder_without_weights_is_one_sentence(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Stops random weights where a folder holds no more than a configuration."""
    load(tiny_model("bert")).config.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"`student.path` to be a model for AutoModelForSequenceClassification"
    ) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"`student.path` to be a local folder with a config.json"):
        load_config(ModelSource(str(tmp_path)), "student")


@pytest.mark.parametrize(
    "source", [ModelSource(), ModelSource(from_scratch=True), ModelSource(config={"model_type": "bert"})]
)
def test_refuses_no_path(source: ModelSource) -> None:
    """Stops a student of nobody's choice."""
    with pytest.raises(InputError, match=r"`student.path` .* but got 'nothing'. .* from_scratch: true and a config"):
        load_config(source, "student")


def test_refuses_unknown_model_type() -> None:
    """Stops a page of transformers' model names from being the message."""
    with pytest.raises(
        InputError, match=r"`student.config.model_type` to be a model type of transformers, but got 'bertt'"
    ):
        load_config(ModelSource(from_scratch=True, config={"model_type": "bertt"}), "student")


def test_refuses_head_with_other_labels(tiny_model: TinyModel) -> None:
    """Stops a trained head from being replaced by a random one because the data has other labels."""
    with pytest.raises(InputError, match=r"The head stored in .* does not have the 3 outputs that the data needs"):
        load(tiny_model("bert"), config={"num_labels": 3})


def test_refuses_override_of_stored_shapes(tiny_model: TinyModel) -> None:
    """Stops the head from being blamed where an override asks for another width than the stored weights have."""
    with pytest.raises(InputError, match=r"`student.config` to fit the stored weights.* from_scratch: true"):
        load(tiny_model("bert"), config={"hidden_size": 8})


# ---------------------------------------------------------------------------------------------- a teacher


@families
def test_teacher_is_frozen(tiny_model: TinyModel, family: str) -> None:
    """Stops a teacher with dropout, whose targets change from call to call, and one that is trained."""
    path = tiny_model(family)
    teacher = load_trained(ModelSource(str(path)), AutoModelForSequenceClassification)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher(**TOKENS).logits, logits(load(path)))


@families
def test_refuses_teacher_without_trained_head(tiny_model: TinyModel, family: str) -> None:
    """Stops distillation from a random head: the loss falls, and the student learns noise."""
    source = ModelSource(str(tiny_model(family, head=False)))
    message = r"`teacher.path` .*fine-tuned for this task.* lack classifier.*fine-tune it first"
    with pytest.raises(InputError, match=message):
        load_trained(source, AutoModelForSequenceClassification)


@pytest.mark.parametrize("options", [{"from_scratch": True}, {"keep_layers": [0, 1]}])
def test_refuses_teacher_that_is_not_whole(tiny_model: TinyModel, options: dict[str, Any]) -> None:
    """Stops an option that says how a student starts from being passed over for a teacher."""
    source = ModelSource(str(tiny_model("bert")), **options)
    with pytest.raises(InputError, match=rf"`teacher.{next(iter(options))}` to be left out"):
        load_trained(source, AutoModelForSequenceClassification)


def test_freeze_and_count(tiny_model: TinyModel) -> None:
    """Stops frozen or shared parameters from being reported as trained, or counted twice."""
    model = load(tiny_model("albert"))
    everything = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    model.classifier.requires_grad_(False)
    assert count_parameters(model) == everything
    assert count_parameters(model, trainable_only=True) == everything - 16 * 2 - 2
    assert model.training
    assert count_parameters(freeze(model), trainable_only=True) == 0
    assert not model.training
