"""One forward pass that keeps what the losses read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightning_kd._checks import InputError, expected, nearest
from lightning_kd.models import layer_list
from lightning_kd.outputs import Features, Needs

__all__ = ["FeatureCapture"]

_BERT = {"queries": "query", "keys": "key", "values": "value"}
#: Where each kind of model computes its queries, keys and values, by its `model_type`. Only models whose attention
#: scores are softmax(q k / sqrt(d)) and nothing more stand here.
_ATTENTION = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": {"queries": "q_lin", "keys": "k_lin", "values": "v_lin"},
}


class FeatureCapture:
    """Calls a model and hands out what :class:`~lightning_kd.outputs.Needs` names of that pass.

    Hidden states come from the model's own output, restricted to the needed layers. Queries, keys and values, and the
    outputs of named modules, come by hooks on those modules alone, so that the fused attention stays on everywhere.
    Without needs the call is the model's own.

    Args:
        model: The model; hooks are on it from the first call on, until :meth:`remove`.
        needs: What to keep.
        logits: Takes the logits by name from the model's output.
        role: ``student`` or ``teacher``, for messages.

    Raises:
        InputError: If a module does not exist, or the model's attention is of a kind that cannot be read; in a call,
            if a named module did not run exactly once or gave no tensor.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        needs: Needs,
        logits: Callable[[Any], Mapping[str, Tensor]],
        role: Literal["student", "teacher"] = "student",
    ) -> None:
        self._model = model
        self._logits = logits
        self._role = role
        self._layers = sorted(layer for layer in needs.hidden_states if isinstance(layer, int))
        self._names = sorted(layer for layer in needs.hidden_states if isinstance(layer, str))
        self._attention = [(kind, layer) for kind in _BERT for layer in sorted(getattr(needs, kind))]
        self._kept: dict[str, list[Any]] | None = None  # filled during a call, and in no other pass of the model
        self._modules = {name: name for name in self._names}
        self._modules.update({f"{kind} {layer}": self._find(kind, layer) for kind, layer in self._attention})
        self._places = {key: self._module(name) for key, name in self._modules.items()}
        self._handles: list[RemovableHandle] = []

    def _module(self, name: str) -> nn.Module:
        try:
            return self._model.get_submodule(name)
        except AttributeError:
            names = [known for known, _ in self._model.named_modules()]
            what = f"a layer's number or a module of the {self._role} by its dotted name"
            raise expected(f"{self._role}_layer", what, name, nearest(name, names)) from None

    def _find(self, kind: str, layer: int) -> str:
        """The dotted name of the projection that makes a layer's queries, keys or values."""
        model_type = self._model.config.model_type
        if model_type not in _ATTENTION:
            raise InputError(
                f"The attention of {model_type}, the {self._role}, cannot be read: losses on attention know "
                f"{', '.join(_ATTENTION)}. Use a loss on hidden states instead."
            )
        stem = f"{layer_list(self._model, self._role)}.{layer - 1}"
        wanted = _ATTENTION[model_type][kind]
        found = [n for n, m in self._model.get_submodule(stem).named_modules() if n.split(".")[-1] == wanted]
        if len(found) != 1:
            raise InputError(f"Expected one `{wanted}` in {stem} of the {self._role}, but found {len(found)}.")
        return f"{stem}.{found[0]}"

    def _keep(self, key: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._kept is not None:
                self._kept.setdefault(key, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    def __call__(self, inputs: Mapping[str, Tensor]) -> Features:
        """Run the model on ``inputs`` and keep what is needed of the pass."""
        if not self._handles:
            self._handles = [module.register_forward_hook(self._keep(key)) for key, module in self._places.items()]
        self._kept = {}
        try:
            output = self._model(**inputs, output_hidden_states=self._layers or False)
            kept = {key: self._only(key) for key in self._modules}
        finally:
            self._kept = None
        states: dict[int | str, Tensor] = {layer: output.hidden_states[layer] for layer in self._layers}
        states.update({name: kept[name] for name in self._names})
        heads: dict[str, dict[int, Tensor]] = {kind: {} for kind in _BERT}
        for kind, layer in self._attention:
            flat = kept[f"{kind} {layer}"]
            heads[kind][layer] = flat.unflatten(-1, (self._model.config.num_attention_heads, -1)).transpose(1, 2)
        return Features(self._logits(output), states, **heads)

    def _only(self, key: str) -> Tensor:
        assert self._kept is not None  # within a call
        outputs = self._kept.get(key, [])
        name = self._modules[key]
        if len(outputs) != 1:
            raise InputError(
                f"The module {name} of the {self._role} ran {len(outputs)} times in one pass, so its output cannot be "
                "matched: name a module that runs exactly once."
            )
        if not isinstance(outputs[0], torch.Tensor):
            raise InputError(
                f"The module {name} of the {self._role} gives a {type(outputs[0]).__name__} and not a tensor, "
                "so its output cannot be matched."
            )
        return outputs[0]

    def remove(self) -> None:
        """Take the hooks off the model; the next call puts them on again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
