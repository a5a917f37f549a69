"""Students that transformers does not bring, in the form of its models: a ``model_type`` in a config names them."""

from lightning_kd.students.bi_encoder import BiEncoderConfig, BiEncoderForSequenceClassification, BiEncoderModel
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
    "BiEncoderConfig",
    "BiEncoderForSequenceClassification",
    "BiEncoderModel",
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
