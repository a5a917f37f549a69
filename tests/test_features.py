"""What is read of a model is what the model computes, the fused attention stays on, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lightning_kd import InputError
from lightning_kd.features import FeatureCapture
from lightning_kd.losses.attention import attention_scores
from lightning_kd.outputs import Needs

TYPES = ["bert", "distilbert", "roberta", "electra"]
LAYERS = frozenset({1, 3})
MODULES = {
    "bert": "bert.encoder.layer.1.output",
    "distilbert": "distilbert.transformer.layer.1.ffn",
    "roberta": "roberta.encoder.layer.1.output",
    "electra": "electra.encoder.layer.1.output",
}

each_type = pytest.mark.parametrize("model_type", TYPES)


@pytest.fixture(scope="module")
def load(tiny_model: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    """Loads a tiny model without dropout: ``load(type, attention)``."""

    def make(model_type: str, attention: str = "sdpa") -> PreTrainedModel:
        folder = tiny_model(model_type)
        return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention).eval()

    return make


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Two texts, of 6 and of 4 tokens."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(output: Any) -> Mapping[str, Tensor]:
    return {"logits": output.logits}


def hooks(model: nn.Module) -> int:
    """How many of our hooks are on the model's modules; transformers puts on its own when hidden states are asked."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    each = [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]
    return sum(hook.__module__.startswith("lightning_kd") for hook in each)


@each_type
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_models_own(load: Any, batch: Any, model_type: str, attention: str) -> None:
    """Stops another layer's projections, queries in the place of keys, a wrong scale, and heads that are cut wrongly.

    The values are right if the model's attention times them is the context that goes on to its output projection.
    """
    own = load(model_type, "eager")
    contexts: list[Tensor] = []
    names = [n for n, _ in own.named_modules() if n.endswith((".out_lin", ".attention.output.dense"))]
    for name in names:
        own.get_submodule(name).register_forward_hook(lambda module, args, output: contexts.append(args[0]))
    model = load(model_type, attention)
    with torch.no_grad():
        reference = own(**batch, output_attentions=True)
        features = FeatureCapture(model, Needs(queries=LAYERS, keys=LAYERS, values=LAYERS), logits)(batch)
    assert model.config._attn_implementation == attention
    assert set(features.queries) == set(features.keys) == set(features.values) == LAYERS
    left_out = batch["attention_mask"][:, None, None, :] == 0
    for layer in LAYERS:
        scores = attention_scores(features.queries[layer], features.keys[layer])
        attentions = scores.masked_fill(left_out, float("-inf")).softmax(-1)
        torch.testing.assert_close(attentions, reference.attentions[layer - 1], rtol=1e-4, atol=1e-6)
        context = (attentions @ features.values[layer]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(context, contexts[layer - 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.logits["logits"], reference.logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(reference.attentions[0], reference.attentions[2], atol=1e-2)


@each_type
def test_hidden_states_by_number(load: Any, batch: Any, model_type: str) -> None:
    """Stops an offset of one: 0 is the output of the embeddings, and there is one state more than there are layers."""
    model = load(model_type)
    reference = model(**batch, output_hidden_states=True).hidden_states
    features = FeatureCapture(model, Needs(hidden_states=frozenset({0, 2, 3})), logits)(batch)
    assert len(reference) == 4 and set(features.hidden_states) == {0, 2, 3}
    for layer, state in features.hidden_states.items():
        assert torch.equal(state, reference[layer])
    assert hooks(model) == 0


@each_type
def test_module_by_name(load: Any, batch: Any, model_type: str) -> None:
    """Stops a name that is read as another module, and a state that is a copy without the gradient."""
    model, name = load(model_type), MODULES[model_type]
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
    features = FeatureCapture(model, Needs(hidden_states=frozenset({name, 2})), logits)(batch)
    handle.remove()
    assert set(features.hidden_states) == {name, 2} and len(seen) == 1
    assert features.hidden_states[name] is seen[0]
    features.hidden_states[name].sum().backward()
    assert next(model.get_submodule(name).parameters()).grad is not None


def test_queries_carry_the_gradient(load: Any, batch: Any) -> None:
    """Stops a detach between the student's projections and a loss on them."""
    model = load("bert")
    features = FeatureCapture(model, Needs(queries=frozenset({2})), logits)(batch)
    features.queries[2].square().sum().backward()
    layers = model.bert.encoder.layer
    assert layers[1].attention.self.query.weight.grad is not None
    assert layers[1].attention.self.key.weight.grad is None and layers[2].attention.self.query.weight.grad is None


@each_type
def test_without_needs_the_call_is_the_models_own(load: Any, batch: Any, model_type: str) -> None:
    """Stops hooks and hidden states that nobody reads: they cost memory and break a compiled graph."""
    model = load(model_type)
    options: list[Mapping[str, Any]] = []
    watch = model.register_forward_pre_hook(lambda module, args, kwargs: options.append(kwargs), with_kwargs=True)
    capture = FeatureCapture(model, Needs(), logits)
    assert hooks(model) == 0
    features = capture(batch)
    watch.remove()
    assert options[0]["output_hidden_states"] is False and "output_attentions" not in options[0]
    assert torch.equal(features.logits["logits"], model(**batch).logits)
    assert not (features.hidden_states or features.queries or features.keys or features.values)


def test_remove_takes_all_hooks_off(load: Any, batch: Any) -> None:
    """Stops a hook that stays on the student, and is exported or pickled with it."""
    model = load("bert")
    needs = Needs(hidden_states=frozenset({MODULES["bert"]}), queries=LAYERS, keys=LAYERS, values=LAYERS)
    capture = FeatureCapture(model, needs, logits)
    assert hooks(model) == 0  # of a model that is never trained, too
    before = capture(batch)
    assert hooks(model) == 7
    capture.remove()
    assert hooks(model) == 0
    capture.remove()
    after = capture(batch)  # as after a training in between
    assert hooks(model) == 7 and all(torch.equal(before.queries[i], after.queries[i]) for i in LAYERS)


def test_other_calls_store_nothing(load: Any, batch: Any) -> None:
    """Stops a pass of a metric or a callback from being matched, and its graph from being kept alive."""
    model, name = load("bert"), MODULES["bert"]
    capture = FeatureCapture(model, Needs(hidden_states=frozenset({name}), queries=LAYERS), logits)
    model(**batch)
    assert capture._kept is None
    first = capture(batch)
    model(input_ids=batch["input_ids"][:1])
    assert capture._kept is None
    second = capture(batch)
    assert torch.equal(first.hidden_states[name], second.hidden_states[name])
    assert torch.equal(first.queries[1], second.queries[1])
    with pytest.raises(ValueError, match="input_ids"):
        capture({})
    assert capture._kept is None


def test_refuses_an_unknown_name(load: Any) -> None:
    """Stops a misspelled module from an AttributeError of torch; no hook stays behind."""
    model = load("bert")
    needs = Needs(hidden_states=frozenset({"bert.encoder.layer.1.outptu"}))
    with pytest.raises(InputError) as error:
        FeatureCapture(model, needs, logits, role="teacher")
    assert str(error.value) == (
        "Expected argument `teacher_layer` to be a layer's number or a module of the teacher by its dotted name, "
        "but got 'bert.encoder.layer.1.outptu'. Did you mean `bert.encoder.layer.1.output`?"
    )
    needs = Needs(hidden_states=frozenset({MODULES["bert"], "x.no_such_module"}))
    with pytest.raises(InputError):
        FeatureCapture(model, needs, logits)
    assert hooks(model) == 0


def test_refuses_a_module_that_does_not_run(load: Any, batch: Any) -> None:
    """Stops a module that only stands in the model from giving the state of an earlier pass, or none."""
    model = load("bert")
    model.unused = nn.Linear(2, 2)
    capture = FeatureCapture(model, Needs(hidden_states=frozenset({"unused"})), logits)
    with pytest.raises(InputError, match="The module unused of the student ran 0 times in one pass"):
        capture(batch)
    assert capture._kept is None


def test_refuses_a_module_that_runs_twice(load: Any, batch: Any) -> None:
    """Stops the first of several outputs from being taken: ALBERT's layers share one module."""
    model = load("albert")
    name = "albert.encoder.albert_layer_groups.0"
    with pytest.raises(InputError, match=f"The module {name} of the student ran 3 times"):
        FeatureCapture(model, Needs(hidden_states=frozenset({name})), logits)(batch)


def test_refuses_attention_of_albert(load: Any) -> None:
    """Stops the shared projections of ALBERT from being read as those of one layer."""
    model = load("albert")
    with pytest.raises(
        InputError, match=r"attention of albert, the teacher, cannot be read.* know bert, .* distilbert"
    ):
        FeatureCapture(model, Needs(keys=frozenset({1})), logits, role="teacher")
    assert hooks(model) == 0
