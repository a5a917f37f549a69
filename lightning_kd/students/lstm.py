"""A recurrent language model in the form of a transformers model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

__all__ = ["LSTMConfig", "LSTMForCausalLM"]


class LSTMConfig(PretrainedConfig):
    """The shape of a :class:`LSTMForCausalLM`; ``model_type: lstm`` in a config.

    Args:
        vocab_size: Words; with ``from_scratch``, those of the data's tokenizer unless given.
        hidden_size: Width of the embedding and of every layer.
        num_hidden_layers: LSTM layers.
        dropout: On the embedding and on the output of every layer, from 0 to below 1.
        initializer_range: Standard deviation of the embedding's and the decoder's first weights.
        pad_token_id: What stands behind the last word of a row.
        tie_word_embeddings: One matrix for embedding and decoder.
    """

    model_type = "lstm"

    def __init__(
        self,
        vocab_size: int = 10_000,
        hidden_size: int = 200,
        num_hidden_layers: int = 2,
        dropout: float = 0.2,
        initializer_range: float = 0.1,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings


class LSTMForCausalLM(PreTrainedModel):
    """Embedding, LSTM layers (Hochreiter and Schmidhuber 1997) and a decoder onto the next word.

    Every row starts from a state of zeros. Padding stands behind the last word, where a network that reads forwards
    never sees it.
    """

    config_class = LSTMConfig
    config: LSTMConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"decoder.weight": "embedding.weight"}  # noqa: RUF012  # read by transformers

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            module.reset_parameters()
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | list[int] = False,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits of the word after each.

        Args:
            input_ids: ``(B, L)`` int64.
            attention_mask: Not read.
            output_hidden_states: Also return the embedding and the output of every layer, each ``(B, L, H)``.
            return_dict: Whether to return names beside the tensors; the configuration's unless given.

        Returns:
            ``logits``, ``(B, L, vocab_size)``, and the hidden states if asked for.
        """
        states = [self.dropout(self.embedding(input_ids))]
        for layer in self.layers:
            states.append(self.dropout(layer(states[-1])[0]))
        output = CausalLMOutput(
            logits=self.decoder(states[-1]), hidden_states=tuple(states) if output_hidden_states else None
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


AutoConfig.register(LSTMConfig.model_type, LSTMConfig)  # or transformers cannot open a folder that holds one
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM)
