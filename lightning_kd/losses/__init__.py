"""Distillation losses, one family a file: a pure function, and a class that picks its tensors."""

from lightning_kd.losses.attention import (
    AttentionCrossEntropy,
    AttentionKL,
    AttentionMSE,
    attention_cross_entropy,
    attention_kl,
    attention_mse,
    attention_scores,
)
from lightning_kd.losses.base import DistillationLoss, FeatureMatch, LayerMap
from lightning_kd.losses.binary import SoftTargetBinaryKL, soft_target_binary_kl
from lightning_kd.losses.cka import LinearCKA, cka_distance
from lightning_kd.losses.contrastive import CRD, crd_loss
from lightning_kd.losses.decoupled import DecoupledKD, decoupled_kd
from lightning_kd.losses.dist import DIST, LogitCorrelation, dist_loss, logit_correlation
from lightning_kd.losses.divergences import (
    JensenShannon,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
)
from lightning_kd.losses.embedding import EmbeddingMSE, embedding_mse
from lightning_kd.losses.emd import BERTEMD, bert_emd
from lightning_kd.losses.fsp import FSP, fsp
from lightning_kd.losses.hidden_state import HiddenStateCosine, HiddenStateMSE, hidden_state_cosine, hidden_state_mse
from lightning_kd.losses.layer_pairs import LayerPairMatch
from lightning_kd.losses.logit_mse import LogitMSE, logit_mse
from lightning_kd.losses.logit_standardization import LogitStandardizationKL, logit_standardization_kl, standardize
from lightning_kd.losses.logits import CWSM, FLSW, ExampleTemperature, probability_shift
from lightning_kd.losses.minilm import MiniLM, MiniLMv2, relation_kl
from lightning_kd.losses.nst import NST, nst
from lightning_kd.losses.patient import PatientKD, patient_kd
from lightning_kd.losses.probabilistic import PKT, pkt
from lightning_kd.losses.relational import RKDAngle, RKDDistance, rkd_angle, rkd_distance
from lightning_kd.losses.similarity import SimilarityPreserving, similarity_preserving
from lightning_kd.losses.soft_target import (
    SoftTargetCrossEntropy,
    SoftTargetKL,
    soft_target_cross_entropy,
    soft_target_kl,
)

__all__ = [
    "BERTEMD",
    "CRD",
    "CWSM",
    "DIST",
    "FLSW",
    "FSP",
    "NST",
    "PKT",
    "AttentionCrossEntropy",
    "AttentionKL",
    "AttentionMSE",
    "DecoupledKD",
    "DistillationLoss",
    "EmbeddingMSE",
    "ExampleTemperature",
    "FeatureMatch",
    "HiddenStateCosine",
    "HiddenStateMSE",
    "JensenShannon",
    "LayerMap",
    "LayerPairMatch",
    "LinearCKA",
    "LogitCorrelation",
    "LogitMSE",
    "LogitStandardizationKL",
    "MiniLM",
    "MiniLMv2",
    "PatientKD",
    "RKDAngle",
    "RKDDistance",
    "ReverseKL",
    "SimilarityPreserving",
    "SkewedKL",
    "SkewedReverseKL",
    "SoftTargetBinaryKL",
    "SoftTargetCrossEntropy",
    "SoftTargetKL",
    "attention_cross_entropy",
    "attention_kl",
    "attention_mse",
    "attention_scores",
    "bert_emd",
    "cka_distance",
    "crd_loss",
    "decoupled_kd",
    "dist_loss",
    "embedding_mse",
    "fsp",
    "hidden_state_cosine",
    "hidden_state_mse",
    "jensen_shannon",
    "logit_correlation",
    "logit_mse",
    "logit_standardization_kl",
    "nst",
    "patient_kd",
    "pkt",
    "probability_shift",
    "relation_kl",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "skewed_kl",
    "skewed_reverse_kl",
    "soft_target_binary_kl",
    "soft_target_cross_entropy",
    "soft_target_kl",
    "standardize",
]
