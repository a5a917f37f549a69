"""Data modules: where the rows come from, and nothing about models or losses."""

from lightning_kd.datamodules.base import TransformerDataModule
from lightning_kd.datamodules.glue import GLUEDataModule

__all__ = ["GLUEDataModule", "TransformerDataModule"]
