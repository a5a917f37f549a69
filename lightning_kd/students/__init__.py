"""Students that are no transformer, in the form of transformers models: a ``model_type`` in a config names them."""

from lightning_kd.students.cnn import (
    CNNConfig,
    CNNForSequenceClassification,
    CNNForTokenClassification,
    CNNModel,
)
from lightning_kd.students.lstm import LSTMConfig, LSTMForCausalLM
from lightning_kd.students.rnn import (
    RNNConfig,
    RNNForSequenceClassification,
    RNNForTokenClassification,
    RNNModel,
)

__all__ = [
    "CNNConfig",
    "CNNForSequenceClassification",
    "CNNForTokenClassification",
    "CNNModel",
    "LSTMConfig",
    "LSTMForCausalLM",
    "RNNConfig",
    "RNNForSequenceClassification",
    "RNNForTokenClassification",
    "RNNModel",
]
