"""Callbacks: losses and schedules that attach to a module, and what happens at the end of a fit."""

from lightning_kd.callbacks.distillation_loss import DistillationLossCallback
from lightning_kd.callbacks.export import StudentExport
from lightning_kd.callbacks.gradual_pruning import GradualPruning
from lightning_kd.callbacks.null_threshold import NullThreshold
from lightning_kd.callbacks.predictions import GLUESubmission, PredictionWriter
from lightning_kd.callbacks.quantization import QuantizationCallback
from lightning_kd.callbacks.report import CompressionReport
from lightning_kd.callbacks.schedules import LossWeightSchedule, TemperatureSchedule
from lightning_kd.callbacks.teacher_cache import TeacherCache
from lightning_kd.callbacks.theseus import Theseus

__all__ = [
    "CompressionReport",
    "DistillationLossCallback",
    "GLUESubmission",
    "GradualPruning",
    "LossWeightSchedule",
    "NullThreshold",
    "PredictionWriter",
    "QuantizationCallback",
    "StudentExport",
    "TeacherCache",
    "TemperatureSchedule",
    "Theseus",
]
