"""What recurrent and convolutional students share: embeddings, a stack of layers, and the heads on it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput

__all__ = ["Encoder", "EncoderConfig", "SequenceClassifier", "Student", "TokenClassifier", "max_over_tokens"]


class EncoderConfig(PretrainedConfig):
    """What the shapes of all encoders have.

    Args:
        vocab_size: Tokens; with ``from_scratch``, those of the data's tokenizer unless given.
        hidden_size: Width of every layer's output.
        embedding_size: Width of the word embeddings; where it is not ``hidden_size``, a linear projection follows.
            ``hidden_size`` unless given.
        num_hidden_layers: Layers, at least 1.
        dropout: From 0 to below 1.
        initializer_range: Standard deviation of the word embeddings' first weights.
        pad_token_id: What stands behind the last token of a row.
        options: Those of every configuration of transformers.
    """

    def __init__(
        self,
        vocab_size: int = 30_522,
        hidden_size: int = 256,
        embedding_size: int | None = None,
        num_hidden_layers: int = 1,
        dropout: float = 0.3,
        initializer_range: float = 0.1,
        pad_token_id: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id


def max_over_tokens(states: Tensor, mask: Tensor, lowest: float) -> Tensor:
    """The largest value of each dimension over the real tokens of a row.

    Args:
        states: ``(B, L, H)``.
        mask: ``(B, L)`` bool, True at real tokens.
        lowest: What no state is below. It stands at padding, and not an infinity, so that the values keep a range that
            can be quantized.

    Returns:
        ``(B, H)``.

    Example:
        >>> max_over_tokens(torch.tensor([[[-0.3], [-0.2], [0.0]]]), torch.tensor([[True, True, False]]), -1.0)
        tensor([[-0.2000]])
    """
    # kept and squeezed: OpenVINO runs a maximum that drops its dimension together with the scales behind it, wrongly
    return states.masked_fill(~mask.unsqueeze(-1), lowest).amax(1, keepdim=True).squeeze(1)


class Student(PreTrainedModel):
    """A model with one table of embeddings; heads hold their encoder as ``encoder``."""

    base_model_prefix = "encoder"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.LSTM, nn.GRU, nn.Linear)):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding  # type: ignore[return-value]  # a module

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embedding = value

    def _returns_names(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)


class Encoder(Student):
    """Word embeddings and layers; what a token's state is does not depend on how far its row is padded.

    Padding stands behind the last token of a row.
    """

    #: A layer takes states ``(B, L, H)`` and the mask ``(B, L)``, True at real tokens, and gives states of that shape.
    layers: nn.ModuleList
    #: Whether dropout falls on the embeddings too, or between layers only.
    drops_embeddings: ClassVar[bool] = True
    #: What no layer's output is below.
    lowest: ClassVar[float]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.embedding_size or config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.projection = nn.Identity() if width == config.hidden_size else nn.Linear(width, config.hidden_size)
        self.layers = nn.ModuleList(self.layer(number) for number in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def layer(self, number: int) -> nn.Module:
        """A new layer, the first being number 0."""
        raise NotImplementedError

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """From the last layer's states and the mask to one vector a row, ``(B, H)``."""
        return max_over_tokens(states, mask, self.lowest)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """The states of a batch's tokens.

        Args:
            input_ids: ``(B, L)`` int64.
            attention_mask: ``(B, L)``, 1 at real tokens, which come first in a row; all are real unless given.
            token_type_ids: Not read: a separator stands between two texts.
            output_hidden_states: Also return the projected embeddings and the output of every layer.
            return_dict: Whether to return names beside the tensors; the configuration's unless given.

        Returns:
            ``last_hidden_state``, ``(B, L, H)``, and the hidden states if asked for. What stands at padding means
            nothing.
        """
        mask = _mask(input_ids, attention_mask)
        states = [self.projection(self.embedding(input_ids))]
        for number, layer in enumerate(self.layers):
            drops = number or self.drops_embeddings
            states.append(layer(self.dropout(states[-1]) if drops else states[-1], mask))
        output = BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if output_hidden_states else None
        )
        return output if self._returns_names(return_dict) else output.to_tuple()


def _mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.to(torch.bool)


class _Classifier(Student):
    """An encoder, dropout and a linear layer."""

    encoder_class: ClassVar[type[Encoder]]
    output_class: ClassVar[Any]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def read(self, states: Tensor, mask: Tensor) -> Tensor:
        """What is classified of the last layer's states ``(B, L, H)`` and the mask ``(B, L)``."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits, and hidden states if asked for; the arguments are those of :meth:`Encoder.forward`."""
        encoded = self.encoder(input_ids, attention_mask, None, output_hidden_states, return_dict=True)
        read = self.read(encoded.last_hidden_state, _mask(input_ids, attention_mask))
        logits = self.classifier(self.dropout(read))
        output = self.output_class(logits=logits, hidden_states=encoded.hidden_states)
        return output if self._returns_names(return_dict) else output.to_tuple()


class SequenceClassifier(_Classifier):
    """Logits ``(B, num_labels)``, from what the encoder pools."""

    output_class = SequenceClassifierOutput

    def read(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.pool(states, mask)


class TokenClassifier(_Classifier):
    """Logits ``(B, L, num_labels)``, of each token."""

    output_class = TokenClassifierOutput

    def read(self, states: Tensor, mask: Tensor) -> Tensor:
        return states
