"""Bi-encoders: one vector for each text of a pair, and a score or logits from the two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from lightning_kd._checks import InputError, expected

__all__ = ["BiEncoderConfig", "BiEncoderForSequenceClassification", "BiEncoderModel", "pool_texts", "split_pairs"]

_Pooling = Literal["mean", "cls", "max"]
#: The folder that sentence-transformers looks for the pooling in.
_POOLING = "1_Pooling"


def _of_encoder(name: str) -> Any:
    """A field that is the encoder's own, so that nothing is said twice."""
    return property(
        lambda config: getattr(config.encoder, name),
        lambda config, value: setattr(config.encoder, name, value),
        doc=f"The encoder's ``{name}``.",
    )


class BiEncoderConfig(PretrainedConfig):
    """A bi-encoder around any encoder; ``model_type: bi_encoder`` in a config.

    Args:
        encoder: The configuration of the encoder, with its ``model_type``; with a ``path`` it is that of the model
            there. BERT's unless given.
        pooling: A text's vector, from the last layer's states: ``mean`` over its tokens, ``cls``, the first token's, or
            ``max``, the largest value of each dimension over its tokens.
        score_range: What the score of a pair is where the cosine of its vectors is 0, and where it is 1; for data with
            scores instead of labels.
        options: Those of every configuration of transformers.
    """

    model_type = "bi_encoder"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # read by transformers

    vocab_size = _of_encoder("vocab_size")
    hidden_size = _of_encoder("hidden_size")
    num_hidden_layers = _of_encoder("num_hidden_layers")
    pad_token_id = _of_encoder("pad_token_id")
    type_vocab_size = 2  # it reads which text a token belongs to

    def __init__(
        self,
        encoder: PretrainedConfig | dict[str, Any] | None = None,
        pooling: _Pooling = "mean",
        score_range: Sequence[float] = (0.0, 1.0),
        **options: Any,
    ) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        super().__init__(**options)
        self.pooling = pooling
        self.score_range = list(score_range)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder" and isinstance(value, dict):
            fields = dict(value)
            value = AutoConfig.for_model(fields.pop("model_type", "bert"), **fields)
        super().__setattr__(name, value)

    @classmethod
    def around(cls, encoder: PretrainedConfig) -> BiEncoderConfig:
        """That of a bi-encoder around a stored model. It gives a score, which needs no weights beside the encoder's."""
        return cls(encoder=encoder, num_labels=1)


def split_pairs(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The two texts of each row as rows of their own, each with the first token and its separator.

    Args:
        input_ids: ``(B, L)`` int64.
        attention_mask: ``(B, L)``, 1 at real tokens, which come first in a row; all are real unless given.
        token_type_ids: ``(B, L)``, 1 at the second text and the separator behind it, 0 before.

    Returns:
        The tokens ``(2 B, L)``, first texts and then second texts; their mask, bool of the same shape; and for each
        token of a row ``(B, L)`` its place in its text.

    Raises:
        InputError: If no token types are given, or a row has one text alone.

    Example:
        >>> ids = torch.tensor([[1, 7, 2, 8, 9, 2]])
        >>> texts, mask, _ = split_pairs(ids, None, torch.tensor([[0, 0, 0, 1, 1, 1]]))
        >>> [row[kept].tolist() for row, kept in zip(texts, mask)]
        [[1, 7, 2], [1, 8, 9, 2]]
    """
    if token_type_ids is None:
        raise InputError(
            "A bi-encoder tells the two texts of a row by their token types, but the batch has no token_type_ids: take "
            "a tokenizer that writes them, as those of BERT and ELECTRA do."
        )
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    first, second = real & (token_type_ids == 0), real & (token_type_ids == 1)
    if not _is_traced() and not bool(second.any(-1).all()):
        row = int((~second.any(-1)).int().argmax())
        raise InputError(
            f"A bi-encoder reads pairs of texts, but row {row} of the batch has one text alone: give data with two "
            "text columns."
        )
    place = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    length = first.sum(-1, keepdim=True)
    # the second text starts with the row's first token, too
    source = torch.where(place == 0, 0, (place + length - 1).clamp(max=input_ids.shape[1] - 1))
    texts = torch.cat([input_ids, input_ids.gather(1, source)])
    mask = torch.cat([first, place < 1 + second.sum(-1, keepdim=True)])
    places = torch.where(place < length, place, place - length + 1)
    if _is_traced():
        return texts, mask, places
    longest = int(mask.sum(-1).max())
    # torch's int8 embeddings read nothing but contiguous tokens
    return texts[:, :longest].contiguous(), mask[:, :longest], places.clamp(max=longest - 1)


def _is_traced() -> bool:
    """Whether a graph is being made, in which no shape can follow from a value."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def pool_texts(states: Tensor, mask: Tensor, pooling: _Pooling) -> Tensor:
    """One vector for each text.

    Args:
        states: ``(B, L, H)``.
        mask: Bool ``(B, L)``, True at real tokens, of which each text has one at least, the first.
        pooling: ``mean``, ``cls`` or ``max``.

    Returns:
        ``(B, H)``.

    Example:
        >>> states, mask = torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> [pool_texts(states, mask, pooling).item() for pooling in ("mean", "cls", "max")]
        [3.0, 2.0, 4.0]
    """
    kept = mask.unsqueeze(-1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        return (states * kept).sum(1) / kept.sum(1).clamp(min=1)
    # the first token's state stands at padding, and not an infinity, so that the values keep a range to quantize
    return torch.where(kept, states, states[:, :1]).amax(1, keepdim=True).squeeze(1)


class _Pool(nn.Module):
    """A module, so that losses can read its output by name: ``encoder.pool``."""

    def __init__(self, pooling: _Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return pool_texts(states, mask, self.pooling)


class _BiEncoder(PreTrainedModel):
    config_class = BiEncoderConfig
    config: BiEncoderConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.transformer.get_input_embeddings()  # type: ignore[union-attr, operator]  # a model

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.transformer.set_input_embeddings(value)  # type: ignore[union-attr, operator]  # a model

    def _returns_names(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)


class BiEncoderModel(_BiEncoder):
    """An encoder and the pooling of its states: single texts to vectors (Reimers and Gurevych 2019, arXiv 1908.10084).

    Raises:
        InputError: If the pooling is none of those there are.
    """

    def __init__(self, config: BiEncoderConfig) -> None:
        super().__init__(config)
        if config.pooling not in get_args(_Pooling):
            raise expected("config.pooling", "mean, cls or max", config.pooling)
        attention = None if config._attn_implementation == "sdpa" else config._attn_implementation
        dtype = torch.get_default_dtype()
        self.transformer = AutoModel.from_config(config.encoder, attn_implementation=attention, dtype=dtype)
        self._has_types = getattr(config.encoder, "type_vocab_size", 0) > 0
        self.pool = _Pool(config.pooling)
        self.post_init()
        self.start_from(self.transformer)

    def start_from(self, transformer: PreTrainedModel) -> None:
        """Go on with another encoder, a trained one for instance; its own pooler, which nothing reads, is dropped."""
        if getattr(transformer, "pooler", None) is not None:
            setattr(transformer, "pooler", None)  # noqa: B010  # no field of every model's
        self.transformer = transformer
        self.config.encoder = transformer.config
        self.config.encoder._name_or_path = ""  # or every exported folder would name this machine's

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """The vectors of a batch of single texts.

        Args:
            input_ids: ``(B, L)`` int64.
            attention_mask: ``(B, L)``, 1 at real tokens; all are real unless given.
            token_type_ids: Not read: there is one text in a row.
            output_hidden_states: Also return the encoder's hidden states.
            return_dict: Whether to return names beside the tensors; the configuration's unless given.

        Returns:
            ``last_hidden_state``, ``(B, L, H)``; ``pooler_output``, ``(B, H)``, the texts' vectors; and the hidden
            states if asked for.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # named, or transformers expands a row of them, which torch's int8 embeddings do not read
        types = {"token_type_ids": torch.zeros_like(input_ids)} if self._has_types else {}
        encoded = self.transformer(
            input_ids, attention_mask=mask, output_hidden_states=output_hidden_states, return_dict=True, **types
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=self.pool(encoded.last_hidden_state, mask.bool()),
            hidden_states=encoded.hidden_states if output_hidden_states else None,
        )
        return output if self._returns_names(return_dict) else output.to_tuple()

    def save_sentence_encoder(self, folder: Path, max_length: int = 128) -> None:
        """Write the encoder alone, as a plain transformers folder that sentence-transformers opens, too.

        Args:
            folder: An existing folder; the tokenizer in it is the caller's.
            max_length: Longest text in tokens.
        """
        self.transformer.save_pretrained(folder)
        modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
        pooling = {f"pooling_mode_{mode}": name == self.config.pooling for name, mode in modes.items()}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate([("", "Transformer"), (_POOLING, "Pooling")])
        ]
        (folder / _POOLING).mkdir()
        for file, content in {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
            f"{_POOLING}/config.json": {"word_embedding_dimension": self.config.hidden_size, **pooling},
        }.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class BiEncoderForSequenceClassification(_BiEncoder):
    """A pair's score or classes from its texts' vectors (Reimers and Gurevych 2019, arXiv 1908.10084, sec. 3).

    It reads the rows that a cross-encoder reads, ``[CLS] a [SEP] b [SEP]`` with token types, and encodes each text by
    itself. With one output, the score is ``low + (high - low) * cosine(u, v)``, ``low`` and ``high`` being
    ``score_range``; else the logits are a linear layer on ``u``, ``v`` and ``|u - v|``.
    """

    def __init__(self, config: BiEncoderConfig) -> None:
        super().__init__(config)
        if len(config.score_range) != 2 or config.score_range[0] >= config.score_range[1]:
            raise expected(
                "config.score_range", "two numbers, the scores of cosines 0 and 1, in rising order", config.score_range
            )
        self.encoder = BiEncoderModel(config)
        count = cast(int, config.num_labels)
        self.classifier = None if count == 1 else nn.Linear(3 * config.hidden_size, count)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits of a batch of pairs.

        Args:
            input_ids: ``(B, L)`` int64, both texts in a row.
            attention_mask: ``(B, L)``, 1 at real tokens, which come first in a row; all are real unless given.
            token_type_ids: ``(B, L)``, 1 at the second text and the separator behind it, 0 before.
            output_hidden_states: Also return the encoder's hidden states.
            return_dict: Whether to return names beside the tensors; the configuration's unless given.

        Returns:
            ``logits``, ``(B, num_labels)``, and the hidden states if asked for, each ``(B, L, H)``: every token's state
            stands where the token does.

        Raises:
            InputError: If no token types are given, or a row has one text alone.
        """
        texts, mask, places = split_pairs(input_ids, attention_mask, token_type_ids)
        encoded = self.encoder(texts, mask.long(), None, output_hidden_states, return_dict=True)
        vectors, count = encoded.pooler_output, input_ids.shape[0]  # len() and chunk() would fix it in a graph
        u, v = vectors[:count], vectors[count:]
        if self.classifier is None:
            low, high = self.config.score_range
            # in two steps, as OpenVINO has no cosine
            cosine = (F.normalize(u.float(), dim=-1) * F.normalize(v.float(), dim=-1)).sum(-1, keepdim=True)
            logits = low + (high - low) * cosine
        else:
            logits = self.classifier(torch.cat([u, v, (u - v).abs()], -1))
        states = None
        if output_hidden_states:
            row = torch.arange(count, device=places.device).unsqueeze(1)
            row = row + count * (token_type_ids == 1)
            states = tuple(None if layer is None else layer[row, places] for layer in encoded.hidden_states)
        output = SequenceClassifierOutput(logits=logits, hidden_states=states)  # type: ignore[arg-type]  # None where not asked for
        return output if self._returns_names(return_dict) else output.to_tuple()


AutoConfig.register(BiEncoderConfig.model_type, BiEncoderConfig)  # or transformers cannot open a folder that holds one
AutoModel.register(BiEncoderConfig, BiEncoderModel)
AutoModelForSequenceClassification.register(BiEncoderConfig, BiEncoderForSequenceClassification)
