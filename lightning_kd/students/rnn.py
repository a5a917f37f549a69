"""Recurrent classifiers and taggers: LSTM and GRU, in one direction or both."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from lightning_kd._checks import expected
from lightning_kd.students.base import Encoder, EncoderConfig, SequenceClassifier, TokenClassifier

__all__ = ["RNNConfig", "RNNForSequenceClassification", "RNNForTokenClassification", "RNNModel"]

_Cell = Literal["lstm", "gru"]
_Pooling = Literal["max", "last"]


class RNNConfig(EncoderConfig):
    """The shape of a :class:`RNNModel`; ``model_type: rnn`` in a config.

    Args:
        cell: ``lstm`` (Hochreiter and Schmidhuber 1997) or ``gru`` (Cho et al. 2014, arXiv 1406.1078), which has three
            quarters of the weights.
        bidirectional: Read in both directions (Schuster and Paliwal 1997), half of ``hidden_size`` each.
        pooling: What a row is classified by: ``max``, the largest value of each dimension over its tokens (Conneau et
            al. 2017, arXiv 1705.02364), or ``last``, the state of each direction after the last token that it reads.
        options: As in :class:`~lightning_kd.students.base.EncoderConfig`; dropout falls on the embeddings and on the
            output of every layer.
    """

    model_type = "rnn"

    def __init__(
        self, cell: _Cell = "lstm", bidirectional: bool = True, pooling: _Pooling = "max", **options: Any
    ) -> None:
        super().__init__(**options)
        self.cell = cell
        self.bidirectional = bidirectional
        self.pooling = pooling


class _Layer(nn.Module):
    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[config.cell]
        width = config.hidden_size // (1 + config.bidirectional)
        self.forwards = kind(config.hidden_size, width, batch_first=True)
        self.backwards = kind(config.hidden_size, width, batch_first=True) if config.bidirectional else None

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        forwards, _ = self.forwards(states)  # padding comes last, where it is read after every real token
        if self.backwards is None:
            return forwards
        # Packed sequences can be neither exported nor quantized: each row's real tokens change their order instead.
        length, place = mask.sum(1, keepdim=True), torch.arange(mask.shape[1], device=mask.device)
        order = torch.where(place < length, length - 1 - place, place)
        row = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1)
        backwards, _ = self.backwards(states[row, order])
        return torch.cat([forwards, backwards[row, order]], -1)


class RNNModel(Encoder):
    """Embeddings and recurrent layers.

    Raises:
        InputError: If the cell or the pooling is none of those there are, or two directions cannot share
            ``hidden_size``.
    """

    config_class = RNNConfig
    config: RNNConfig
    lowest = -1.0  # of a tanh, times a gate or between two of them

    def __init__(self, config: RNNConfig) -> None:
        if config.cell not in get_args(_Cell):
            raise expected("config.cell", "lstm or gru", config.cell)
        if config.pooling not in get_args(_Pooling):
            raise expected("config.pooling", "max or last", config.pooling)
        if config.bidirectional and config.hidden_size % 2:
            raise expected("config.hidden_size", "even, half for each direction", config.hidden_size)
        super().__init__(config)

    def layer(self, number: int) -> nn.Module:
        return _Layer(self.config)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "max":
            return super().pool(states, mask)
        row = torch.arange(mask.shape[0], device=mask.device)
        last = states[row, mask.sum(1) - 1]
        if not self.config.bidirectional:
            return last
        width = self.config.hidden_size // 2
        return torch.cat([last[:, :width], states[:, 0, width:]], -1)


class RNNForSequenceClassification(SequenceClassifier):
    """A recurrent classifier, as BiLSTM students of BERT are (Tang et al. 2019, arXiv 1903.12136)."""

    config_class = RNNConfig
    config: RNNConfig
    encoder_class = RNNModel


class RNNForTokenClassification(TokenClassifier):
    """A recurrent tagger (Huang et al. 2015, arXiv 1508.01991), without a CRF: tags are chosen token by token."""

    config_class = RNNConfig
    config: RNNConfig
    encoder_class = RNNModel


AutoConfig.register(RNNConfig.model_type, RNNConfig)  # or transformers cannot open a folder that holds one
AutoModel.register(RNNConfig, RNNModel)
AutoModelForSequenceClassification.register(RNNConfig, RNNForSequenceClassification)
AutoModelForTokenClassification.register(RNNConfig, RNNForTokenClassification)
