"""Where a model comes from, and how it is loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

import lightning_kd.students  # noqa: F401  # registered with transformers, or it cannot open a folder that holds one
from lightning_kd._checks import InputError, expected, nearest
from lightning_kd.folders import check_config, check_size, why_no_config, why_no_weights
from lightning_kd.labels import label_names_of, order_outputs

__all__ = [
    "ModelSource",
    "check_folder",
    "count_parameters",
    "freeze",
    "keep_layers",
    "layer_list",
    "load_config",
    "load_model",
    "load_trained",
    "num_positions",
    "pad_with",
    "shape_in_words",
]


#: What configurations say of each layer.
_BY_LAYER = ("layer_types", "attention_window")


@dataclass(frozen=True)
class ModelSource:
    """A model on the Hub or in a local folder, or the configuration of one that starts from random weights.

    Code from the Hub is never run.

    Args:
        path: Hub name or local folder. May be left out with ``from_scratch`` if ``config`` names a ``model_type``.
        revision: Branch, tag or commit on the Hub.
        dtype: Of the weights, whatever the stored ones have.
        attention: Attention implementation: ``sdpa`` is the fast one, where the model has it (DeBERTa and MPNet have
            not), ``eager`` the one that can return its scores.
        keep_layers: The transformer layers to keep, 0 being the first, in the order given; the others are dropped
            and the kept ones renumbered.
        from_scratch: Random weights in the shape of the configuration.
        embeddings_from: Hub name or local folder of a trained model, a teacher for instance, whose word embeddings the
            student's start as; with ``from_scratch``, and for the same vocabulary. Narrower ones, by ``embedding_size``
            in ``config``, are the principal components.
        config: Values that replace those of the configuration, e.g. ``{"num_hidden_layers": 3}``. ``model_type``:
            ``bi_encoder`` makes a bi-encoder around the model at ``path``, without its head.
    """

    path: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    keep_layers: list[int] | None = None
    from_scratch: bool = False
    embeddings_from: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def check_folder(name: str, path: str) -> None:
    """Refuse a ``path`` that can only be a local folder and is none, before any hub is asked."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    if Path(path).is_file():
        raise expected(name, "a local folder or a Hub name", path, "That is a file: give the folder that it is in.")
    if looks_local and not Path(path).expanduser().is_dir():
        raise expected(name, "a local folder or a Hub name", path, "There is no such folder.")


def has_tokenizer(path: str) -> bool:
    """Whether a model comes with its tokenizer: a Hub name, or a local folder with one of a tokenizer's files."""
    files = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    return not Path(path).is_dir() or any((Path(path) / file).exists() for file in files)


def load_config(source: ModelSource, role: str = "model") -> PretrainedConfig:
    """The configuration that ``source`` describes.

    Args:
        source: Where the model comes from.
        role: The argument's name in messages, e.g. ``student``.

    Raises:
        InputError: If there is no such model, or an override names what the configuration does not have.
    """
    if source.path is None:
        model_type = source.config.get("model_type")
        if not source.from_scratch or model_type is None:
            raise expected(
                f"{role}.path",
                "a local folder or a Hub name",
                "nothing",
                "Leave it out only with from_scratch: true and a config that names a model_type.",
            )
        try:
            config = AutoConfig.for_model(model_type)
        except ValueError as error:
            raise expected(f"{role}.config.model_type", "a model type of transformers", model_type) from error
    else:
        check_folder(f"{role}.path", source.path)
        try:
            config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
        except Exception as error:  # whatever transformers makes of what is in the file
            raise expected(
                f"{role}.path",
                "a local folder with a config.json, or the name of a model on the Hub",
                source.path,
                why_no_config(source.path),
            ) from error
        check_config(f"{role}.path", source.path, config)
        config = _around(config, source.config.get("model_type"))
    for key, value in source.config.items():
        if key == "model_type":
            if source.path is not None and value != config.model_type:
                raise expected(f"{role}.config.model_type", f"{config.model_type!r}, as {source.path} has it", value)
            continue
        if key != "num_labels" and not hasattr(config, key):
            fields = [*vars(config), *config.attribute_map]
            raise expected(f"{role}.config", f"made of {type(config).__name__}'s fields", key, nearest(key, fields))
        try:
            setattr(config, key, value)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise expected(f"{role}.config.{key}", "what the model's configuration takes", value, reason) from error
    return config


def _around(stored: PretrainedConfig, model_type: str | None) -> PretrainedConfig:
    """That of a model of another type around a stored encoder, where there is such a type: a bi-encoder."""
    if model_type in (None, stored.model_type) or model_type not in CONFIG_MAPPING:
        return stored
    around = getattr(CONFIG_MAPPING[model_type], "around", None)
    return stored if around is None else cast(PretrainedConfig, around(stored))


def load_model(
    source: ModelSource, auto_class: type, config: PretrainedConfig, role: str = "student", whole: bool = False
) -> PreTrainedModel:
    """The model that ``source`` describes, in train mode; parts that the stored one lacks start from random weights.

    Args:
        source: Where the model comes from.
        auto_class: The transformers auto class of the task.
        config: From :func:`load_config`, with the labels set.
        role: The argument's name in messages.
        whole: Refuse a stored model that lacks a part: one that is not trained, but evaluated.

    Raises:
        InputError: If the weights cannot be read, do not fit the labels, or a kept layer does not exist.
    """
    options = _options(source)
    if source.from_scratch:
        model = _from_config(auto_class, config, role, options)
    else:
        model, missing = _from_pretrained(source, auto_class, config, role, options)
        if missing and whole:
            raise _untrained(source, config, missing, role)
    _check_summary(model, role)
    if source.keep_layers is not None:
        model = keep_layers(model, source.keep_layers, f"{role}.keep_layers")
    return model.train()


def _options(source: ModelSource) -> dict[str, Any]:
    # transformers refuses sdpa that is asked for where a model lacks it, and takes it unasked where it does not
    attention = None if source.attention == "sdpa" else source.attention
    return {"dtype": getattr(torch, source.dtype), "attn_implementation": attention}


def _from_config(auto_class: Any, config: PretrainedConfig, role: str, options: dict[str, Any]) -> PreTrainedModel:
    try:
        model: PreTrainedModel = auto_class.from_config(config, **options)
    except Exception as error:  # whatever transformers and torch make of a shape that is none
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"Expected argument `{role}.config` to be the shape of a {config.model_type}, but no model can be made of "
            f"it: {reason}."
        ) from error
    return model


def load_trained(
    source: ModelSource, auto_class: type, role: str = "teacher", label_names: Sequence[str] | None = None
) -> PreTrainedModel:
    """A model whose every weight is stored, frozen and in eval mode: a teacher.

    Args:
        source: Where it is.
        auto_class: The transformers auto class of the task.
        role: The argument's name in messages.
        label_names: The data's; the outputs are put into their order if the model's labels have the same names.

    Raises:
        InputError: If the weights cannot be read, the head for the task is not among them, ``source`` asks for less
            than the stored model, or its outputs cannot be put into the order of the labels.
    """
    for name in ("from_scratch", "keep_layers", "embeddings_from"):
        if value := getattr(source, name):
            raise expected(f"{role}.{name}", "left out", value, "A teacher is loaded whole, with its trained weights.")
    config = load_config(source, role)
    options = _options(source)
    model, missing = _from_pretrained(source, auto_class, config, role, options)
    if missing:
        raise _untrained(source, config, missing, role)
    _check_summary(model, role)
    return freeze(order_outputs(model, label_names_of(model.config), label_names, f"`{role}`"))


def _check_summary(model: PreTrainedModel, role: str) -> None:
    if hasattr(model, "sequence_summary") and getattr(model.config, "summary_type", None) == "last":
        raise InputError(
            f"Expected `{role}` to be a model that knows where a text ends, but {type(model).__name__} reads the last "
            "place of a row, which is padding wherever a text is shorter than its neighbour: take another one."
        )


def _untrained(source: ModelSource, config: PretrainedConfig, missing: Sequence[str], role: str) -> InputError:
    kind = f"It is a {config.architectures[0]}, and its" if config.architectures else "Its"
    way_out = f"{kind} weights lack {', '.join(sorted(missing)[:3])}: fine-tune it first."
    return expected(f"{role}.path", "a model that is fine-tuned for this task", source.path, way_out)


def _from_pretrained(
    source: ModelSource, auto_class: Any, config: PretrainedConfig, role: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    assert source.path is not None  # load_config refuses a source without
    if source.config.get("model_type") == config.model_type and hasattr(config, "around"):
        stored = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
        if stored.model_type != config.model_type:
            return _encoder_from_pretrained(source, auto_class, config, role, options)
    try:
        check_size(f"{role}.path", source.path, auto_class, config)
        model, info = auto_class.from_pretrained(
            source.path,
            config=config,
            revision=source.revision,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in words that say what to do
            use_safetensors=None,
            **options,
        )
    except Exception as error:  # whatever transformers, safetensors and torch make of what is in the files
        if isinstance(error, InputError):
            raise
        raise expected(
            f"{role}.path", f"a model for {auto_class.__name__}", source.path, why_no_weights(source.path, error)
        ) from error
    mismatched = {key: f"{tuple(stored)} for {tuple(wanted)}" for key, stored, wanted in info["mismatched_keys"]}
    encoder = sorted(key for key in mismatched if key.startswith(f"{model.base_model_prefix}."))
    if encoder:
        raise InputError(
            f"Expected argument `{role}.config` to fit the stored weights, but {source.path} has {encoder[0]} of shape "
            f"{mismatched[encoder[0]]}. Leave the override out, or set from_scratch: true."
        )
    if mismatched:
        raise InputError(
            f"The head stored in {source.path} does not have the {config.num_labels} outputs that the data needs: "
            f"give the encoder it was made from as `{role}.path`, or data with the same labels."
        )
    dropped = [key for key in info["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", key)]
    if dropped and "num_hidden_layers" not in source.config:
        raise InputError(
            f"The config.json of `{role}.path` ({source.path}) has {config.num_hidden_layers} layers, but its weights "
            f"have more ({dropped[0]}): it is damaged, or of another model. To leave layers out, name those to keep in "
            "keep_layers."
        )
    return model, list(info["missing_keys"])


def _encoder_from_pretrained(
    source: ModelSource, auto_class: Any, config: Any, role: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """A new model around a stored encoder, and what neither of them stores."""
    own = {key: value for key, value in source.config.items() if key != "model_type"}
    encoder, missing = _from_pretrained(replace(source, config=own), AutoModel, config.encoder, role, options)
    model = auto_class.from_config(config, **options)
    model.base_model.start_from(encoder)
    head = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    return model, [*(name for name in missing if name in encoder.state_dict()), *head]


def num_positions(model: nn.Module) -> int | None:
    """The longest row that a model has positions for; None where it has no table of them."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def layer_list(model: PreTrainedModel, name: str) -> str:
    """The dotted name of the list that holds the transformer layers of ``model``.

    Args:
        model: An encoder.
        name: What needs it, for the message.

    Raises:
        InputError: If there is no such list, or more than one.
    """
    depth = model.config.num_hidden_layers
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise InputError(
            f"Argument `{name}` needs a model with one list of {depth} layers; "
            f"{model.config.model_type} has {len(lists)}."
        )
    return lists[0]


def keep_layers(model: PreTrainedModel, layers: Sequence[int], name: str = "keep_layers") -> PreTrainedModel:
    """A new model with some of the transformer layers of ``model``, renumbered from 0.

    Args:
        model: Any encoder that holds its layers in one list: BERT, DistilBERT, RoBERTa, ELECTRA and their like.
        layers: The layers to keep, 0 being the first.
        name: The argument's name in messages.

    Raises:
        InputError: If a layer does not exist or is named twice, or if the layers share their weights (ALBERT).
    """
    config = copy.deepcopy(model.config)
    if getattr(config, "num_hidden_groups", None) is not None:
        raise InputError(
            f"Argument `{name}` cannot be used with {config.model_type}: its layers share their weights. "
            "Set config: {num_hidden_layers: ...} instead."
        )
    depth = config.num_hidden_layers
    stem = layer_list(model, name)
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < depth for layer in layers):
        raise expected(name, f"different layers from 0 to {depth - 1}", list(layers))
    try:
        config.num_hidden_layers = len(layers)
        for each in _BY_LAYER:
            if len(values := getattr(config, each, None) or ()) == depth:
                setattr(config, each, [values[layer] for layer in layers])
        smaller = type(model)._from_config(config, dtype=model.dtype, attn_implementation=config._attn_implementation)
    except Exception as error:  # of a kind whose layers hang on more than their number
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"Argument `{name}` cannot be used with {config.model_type}: {reason}.") from error
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    new_number = {layer: i for i, layer in enumerate(layers)}
    state = {}
    for key, value in model.state_dict().items():
        found = pattern.match(key)
        if found and int(found.group(1)) not in new_number:
            continue
        state[f"{stem}.{new_number[int(found.group(1))]}.{key[found.end() :]}" if found else key] = value
    smaller.load_state_dict(state)
    return smaller


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` in eval mode, none of its parameters trainable."""
    return model.eval().requires_grad_(False)


def shape_in_words(config: PretrainedConfig, model: PreTrainedModel | None) -> str:
    """Kind, layers and, of a loaded model, parameters."""
    layers = f"{config.model_type}, {getattr(config, 'num_hidden_layers', '?')} layers"
    return layers if model is None else f"{layers}, {count_parameters(model) / 1e6:.1f} M parameters"


def pad_with(model: PreTrainedModel, tokenizer: Any) -> None:
    """Tell a model what its rows are padded with: a decoder finds the last token of a row, which it classifies, by it.

    Args:
        model: Its configuration is changed.
        tokenizer: That writes the rows; of ``None`` nothing is known.
    """
    if getattr(tokenizer, "pad_token_id", None) is not None:
        model.config.pad_token_id = tokenizer.pad_token_id


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
