"""Callbacks: losses and schedules that attach to a module, and what happens at the end of a fit."""

from lightning_kd.callbacks.checkpoint_io import AtomicCheckpointIO
from lightning_kd.callbacks.curves import TrainingCurves
from lightning_kd.callbacks.distillation_loss import DistillationLossCallback
from lightning_kd.callbacks.export import SentenceEncoderExport, StudentExport
from lightning_kd.callbacks.gradual_pruning import GradualPruning
from lightning_kd.callbacks.null_threshold import NullThreshold
from lightning_kd.callbacks.per_task import PerTask
from lightning_kd.callbacks.predictions import GLUESubmission, PredictionWriter
from lightning_kd.callbacks.progress import StageProgress
from lightning_kd.callbacks.quantization import QuantizationCallback
from lightning_kd.callbacks.report import CompressionReport
from lightning_kd.callbacks.resume import Resume
from lightning_kd.callbacks.schedules import LossWeightSchedule, TemperatureSchedule
from lightning_kd.callbacks.teacher_cache import TeacherCache
from lightning_kd.callbacks.theseus import Theseus

__all__ = [
    "AtomicCheckpointIO",
    "CompressionReport",
    "DistillationLossCallback",
    "GLUESubmission",
    "GradualPruning",
    "LossWeightSchedule",
    "NullThreshold",
    "PerTask",
    "PredictionWriter",
    "QuantizationCallback",
    "Resume",
    "SentenceEncoderExport",
    "StageProgress",
    "StudentExport",
    "TeacherCache",
    "TemperatureSchedule",
    "Theseus",
    "TrainingCurves",
]
