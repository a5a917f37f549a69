"""Convolutions over words: a classifier and a tagger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from lightning_kd._checks import expected
from lightning_kd.students.base import Encoder, EncoderConfig, SequenceClassifier, TokenClassifier

__all__ = ["CNNConfig", "CNNForSequenceClassification", "CNNForTokenClassification", "CNNModel"]


class CNNConfig(EncoderConfig):
    """The shape of a :class:`CNNModel`; ``model_type: cnn`` in a config.

    Args:
        kernel_sizes: Tokens in a window, at least 1; different ones share ``hidden_size`` in equal parts, one filter
            for each dimension.
        hidden_size: The number of filters of a layer, all windows together.
        dropout: Between layers and on what is classified.
        options: As in :class:`~lightning_kd.students.base.EncoderConfig`.
    """

    model_type = "cnn"

    def __init__(
        self, kernel_sizes: Sequence[int] = (3, 4, 5), hidden_size: int = 300, dropout: float = 0.5, **options: Any
    ) -> None:
        super().__init__(hidden_size=hidden_size, dropout=dropout, **options)
        self.kernel_sizes = list(kernel_sizes)


class _Layer(nn.Module):
    def __init__(self, config: CNNConfig, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        filters = config.hidden_size // len(config.kernel_sizes)
        # A product with each window's concatenated vectors (Kim's eq. 2), as every backend can quantize one.
        self.windows = nn.ModuleDict(
            {str(size): nn.Linear(size * config.hidden_size, filters) for size in config.kernel_sizes}
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states, length = states * mask.unsqueeze(-1), states.shape[1]
        outputs = []
        for size, linear in self.windows.items():
            reach = (int(size) - 1) * self.dilation
            padded = F.pad(states, (0, 0, reach // 2, reach - reach // 2))
            steps = range(0, reach + 1, self.dilation)
            outputs.append(linear(torch.cat([padded[:, step : step + length] for step in steps], -1)).relu())
        return torch.cat(outputs, -1)


class CNNModel(Encoder):
    """Embeddings and convolutions with windows of several widths (Kim 2014, arXiv 1408.5882).

    A window is centred at every token, with zeros beyond the ends of the row. One layer is Kim's network; in further
    ones the tokens of a window stand twice as far apart as in the layer below (Strubell et al. 2017, arXiv 1702.02098).

    Raises:
        InputError: If the kernel sizes are not different numbers, or cannot share ``hidden_size``.
    """

    config_class = CNNConfig
    config: CNNConfig
    drops_embeddings = False
    lowest = 0.0

    def __init__(self, config: CNNConfig) -> None:
        sizes = config.kernel_sizes
        if not sizes or len(set(sizes)) != len(sizes) or min(sizes) < 1:
            raise expected("config.kernel_sizes", "different numbers of tokens, at least 1", sizes)
        if config.hidden_size % len(sizes):
            raise expected(
                "config.hidden_size", f"a multiple of {len(sizes)}, the number of kernel sizes", config.hidden_size
            )
        super().__init__(config)

    def layer(self, number: int) -> nn.Module:
        return _Layer(self.config, 2**number)


class CNNForSequenceClassification(SequenceClassifier):
    """Kim's classifier: the largest output of every filter over the row, dropout and a linear layer."""

    config_class = CNNConfig
    config: CNNConfig
    encoder_class = CNNModel


class CNNForTokenClassification(TokenClassifier):
    """A tagger on dilated convolutions: with three layers and windows of 3, each tag sees 15 tokens."""

    config_class = CNNConfig
    config: CNNConfig
    encoder_class = CNNModel


AutoConfig.register(CNNConfig.model_type, CNNConfig)  # or transformers cannot open a folder that holds one
AutoModel.register(CNNConfig, CNNModel)
AutoModelForSequenceClassification.register(CNNConfig, CNNForSequenceClassification)
AutoModelForTokenClassification.register(CNNConfig, CNNForTokenClassification)
