"""The command line: fit, validate, test and predict from YAML."""

from __future__ import annotations

import os
import sys

import lightning as L
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_kd._checks import InputError
from lightning_kd.callbacks import CompressionReport, PredictionWriter, StudentExport
from lightning_kd.module import DistillationModule

__all__ = ["DistillationCLI", "main"]


class DistillationCLI(LightningCLI):
    """LightningCLI with the module fixed, any data module, and the tokenizer following the student."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            DistillationModule,
            L.LightningDataModule,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"enable_model_summary": False},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(StudentExport, "export")
        parser.add_lightning_class_args(CompressionReport, "report")
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        options = config.data.init_args
        if "tokenizer" in options and options.tokenizer is None:
            options.tokenizer = config.model.student.path


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: What was typed; ``sys.argv`` unless given.
    """
    try:
        DistillationCLI(args)
    except InputError as error:
        if os.environ.get("LIGHTNING_KD_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
