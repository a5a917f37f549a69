"""Data modules: where the rows come from, and nothing about models or losses."""

from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.glue import GLUEDataModule
from lightning_kd.datamodules.multi_task import MultiTaskDataModule
from lightning_kd.datamodules.ner import NERDataModule
from lightning_kd.datamodules.qa import QADataModule
from lightning_kd.datamodules.running_text import RunningTextDataModule
from lightning_kd.datamodules.synthetic import SyntheticDataModule
from lightning_kd.datamodules.synthetic_ner import SyntheticNERDataModule
from lightning_kd.datamodules.synthetic_qa import SyntheticQADataModule
from lightning_kd.datamodules.text import TextDataModule

__all__ = [
    "GLUEDataModule",
    "MultiTaskDataModule",
    "NERDataModule",
    "QADataModule",
    "RunningTextDataModule",
    "SyntheticDataModule",
    "SyntheticNERDataModule",
    "SyntheticQADataModule",
    "TextDataModule",
    "TransformerDataModule",
]
