"""The names of a model's labels, and outputs put into the order of other names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lightning_kd._checks import InputError

__all__ = ["label_names_of", "label_order", "order_outputs"]


def label_names_of(config: PretrainedConfig) -> list[str] | None:
    """A model's label names by number; ``None`` where it has one output, a score."""
    names = cast(dict[int, str], config.id2label or {})
    return None if len(names) == 1 else [names[i] for i in sorted(names, key=int)]  # text in YAML


def label_order(own: Sequence[str] | None, wanted: Sequence[str] | None) -> list[int] | None:
    """For each wanted label the number of the output that stands for it, ``None`` where the names do not tell.

    ``NOT_ENTAILMENT`` stands for ``not_entailment``: names that differ in case, spaces and punctuation alone are the
    same, as long as all labels of a model still differ.

    Args:
        own: A model's names, by the number of the output.
        wanted: The names to find among them.
    """
    if not own or not wanted or len(own) != len(wanted):
        return None
    for plain in (str, _plain):
        ours, others = [plain(name) for name in own], [plain(name) for name in wanted]
        if len(set(ours)) == len(ours) and set(ours) == set(others):
            return [ours.index(name) for name in others]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def order_outputs(
    model: PreTrainedModel, own: Sequence[str] | None, wanted: Sequence[str] | None, who: str
) -> PreTrainedModel:
    """The model with its outputs in the order of the wanted names, changed in place, if the names tell the order.

    Args:
        model: With one linear layer that has an output for each label.
        own: The names of its labels as it was trained.
        wanted: The names of the labels of the data.
        who: What the model is, in messages.

    Raises:
        InputError: If the order differs, and there is no such layer, or more than one.
    """
    order = label_order(own, wanted)
    if order is None:
        return model
    names = list(wanted or [])
    if order != sorted(order):
        stem = f"{model.base_model_prefix}."
        named = ((name, module) for name, module in model.named_modules() if not name.startswith(stem))
        heads = [each for _, each in named if isinstance(each, nn.Linear) and each.out_features == len(order)]
        if len(heads) != 1:
            raise InputError(
                f"The labels of {who} are in another order ({', '.join(own or [])}) than the data's "
                f"({', '.join(names)}), and {type(model).__name__} has no one layer to reorder: use a model with the "
                "data's order."
            )
        with torch.no_grad():
            for parameter in heads[0].parameters():
                parameter.copy_(parameter[order])
        rank_zero_info(f"The labels of {who} are put into the data's order: {', '.join(names)}")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model
