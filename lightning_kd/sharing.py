"""Several models with one encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lightning_kd._checks import InputError

__all__ = ["share_encoder"]


def share_encoder(models: Sequence[PreTrainedModel]) -> list[str]:
    """Have all models compute with the encoder's parameters of the first one.

    The models stay whole, each with modules of its own: only the parameters are the same objects. A pooler belongs to
    the head, as not every task has one.

    Args:
        models: Of one architecture, with different heads; changed in place.

    Returns:
        The names of the shared parameters within ``base_model``.

    Raises:
        InputError: If a model has no encoder to share, or the encoders are not of one shape.

    Example:
        >>> from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, BertConfig
        >>> shape = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> kinds = AutoModelForSequenceClassification, AutoModelForQuestionAnswering
        >>> models = [kind.from_config(shape) for kind in kinds]
        >>> len(share_encoder(models))
        21
        >>> models[0].bert.embeddings.LayerNorm.weight is models[1].bert.embeddings.LayerNorm.weight
        True
    """
    first, *others = (_encoder(model) for model in models)
    names = [name for name, _ in first.named_parameters(remove_duplicate=False) if not _is_head(name)]
    if more := [name for name in first.state_dict() if name not in names and not _is_head(name)]:
        raise InputError(
            f"The encoder of {models[0].config.model_type} has {more[0]}, which is no weight and cannot be shared: use "
            "a transformer as the student of several tasks."
        )
    for other in others:
        own = dict(other.named_parameters(remove_duplicate=False))
        for name in names:
            parameter = first.get_parameter(name)
            if name not in own or own[name].shape != parameter.shape:
                raise InputError(f"Not all students have {name} in the same shape: they cannot share their encoder.")
            stem, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(stem), leaf, parameter)
    return names


def _is_head(name: str) -> bool:
    return name.partition(".")[0].startswith("pooler")


def _encoder(model: PreTrainedModel) -> nn.Module:
    if model.base_model is model:
        raise InputError(f"A {type(model).__name__} has no encoder apart from its head, which tasks could share.")
    return model.base_model
