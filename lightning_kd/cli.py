"""The command line: fit, validate, test, predict, analyze and prune from YAML, and describe."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from transformers.utils import logging as transformers_logging

from lightning_kd import describe
from lightning_kd._checks import InputError, expected, nearest
from lightning_kd.callbacks import CompressionReport, PredictionWriter, StudentExport, TeacherCache
from lightning_kd.callbacks._fit_end import callbacks_of
from lightning_kd.models import ModelSource, has_tokenizer, load_config
from lightning_kd.module import DistillationModule
from lightning_kd.trainer import CompressionTrainer

__all__ = ["DistillationCLI", "main"]


#: Values of ``ckpt_path`` that name no file.
_ELSEWHERE = ("best", "last", "hpc", "registry")


#: What needs no configuration is no subcommand of Lightning's.
_DESCRIBE = "Without a config: `describe MODEL [MODEL ...]` shows where the parameters of models are, side by side."


class DistillationCLI(LightningCLI):
    """LightningCLI with the module fixed, any data module, and the tokenizer following the student.

    Every logger gets the whole configuration as its hyperparameters.
    """

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            DistillationModule,
            L.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=_LogConfig,
            save_config_kwargs={"overwrite": True},
            trainer_class=CompressionTrainer,
            trainer_defaults={"enable_model_summary": False},
            parser_class=_Parser,
            parser_kwargs={"epilog": _DESCRIBE},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {name: {"model", "datamodule"} for name in ("analyze", "prune")}
        return {**LightningCLI.subcommands(), **own}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(StudentExport, "export")
        parser.add_lightning_class_args(CompressionReport, "report")
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        # The float student is written first: it is there, whatever a quantizer does. Teachers run over all rows last,
        # once whatever can be refused before the first batch has been.
        order = {StudentExport: 0, TeacherCache: 2}
        callbacks_of(trainer).sort(key=lambda callback: order.get(type(callback), 1))
        return trainer

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        checkpoint = config.get("ckpt_path")
        if checkpoint is not None and not (checkpoint in _ELSEWHERE or ":" in checkpoint or os.path.exists(checkpoint)):
            raise expected("ckpt_path", "a checkpoint file, best or last", checkpoint, "There is no such file.")
        options = config.data.init_args
        if "tokenizer" in options and options.tokenizer is None and config.model.student.path is not None:
            load_config(ModelSource(**vars(config.model.student)), "model.student")  # or the tokenizer gets the blame
            options.tokenizer = config.model.student.path
        elif "tokenizer" in options and options.tokenizer is None:
            options.tokenizer = config.model.student.embeddings_from  # whose vocabulary it has to be
        if self.subcommand == "fit" and "teacher_tokenizers" in options and options.teacher_tokenizers is None:
            options.teacher_tokenizers = {}
            for name, source in (config.model.teachers or {}).items():
                load_config(ModelSource(**vars(source)), f"model.teachers.{name}")
                if source.path is not None and has_tokenizer(source.path):
                    options.teacher_tokenizers[name] = source.path


class _LogConfig(SaveConfigCallback):
    """Saves the configuration beside the logs, and sends it to the loggers."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module._log_hyperparams = False  # they are a part of the configuration, and would come again as one
        config = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)


class _Parser(LightningArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error or os.environ.get("LIGHTNING_KD_TRACEBACK"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        own = _input_error(ex)
        if own is not None:
            self.exit(2, f"error: {own}\n")
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        wrong = re.match(r"argument subcommand: invalid choice: '([^']*)'", message)
        if wrong:
            names = [*DistillationCLI.subcommands(), "describe"]
            sentence = f"There is no subcommand `{wrong[1]}`. {nearest(wrong[1], names)} There are {', '.join(names)}."
            sentence = sentence.replace("  ", " ")
        elif unknown:
            options = [option for action in parser._actions for option in action.option_strings]
            sentence = f"There is no option `{unknown[1]}`. {nearest(unknown[1], options)}".strip()
        else:
            sentence = _one_sentence(message)
        self.exit(2, f"error: {sentence} See `{parser.prog.replace(' [options]', '')} --help`.\n")


#: What jsonargparse tells of its own workings, one line each.
_WORKINGS = re.compile(
    r"Does not validate against|Subtypes: |Errors:$|Given value|Expected a path but |Expected a <class 'NoneType'>|"
    r"Subclass types expect one of|a class path \(str\)|a dict with|$"
)


def _one_sentence(message: str) -> str:
    """What the user has to know of a message of jsonargparse's, whose unions take a line for each of their types."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = "; ".join([line for line in lines if not _WORKINGS.match(line)] or lines).replace(":; ", ": ")
    text = re.sub(r'Parser key "([^"]+)":', r"`\1`:", text)
    text = re.sub(r"Expected a typing\.Literal\[([^]]*)\]", r"Expected one of \1", text)
    text = re.sub(r"Expected a <class '([^']+)'>", r"Expected a value of type \1", text)
    return re.sub(r"\. Got value: ", ", but got ", text).rstrip(".") + "."


def _input_error(error: BaseException | None) -> InputError | None:
    """The error of ours that jsonargparse has wrapped in its own, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: What was typed; ``sys.argv`` unless given.
    """
    _hush()
    typed = sys.argv[1:] if args is None else args
    try:
        if isinstance(typed, list) and typed[:1] == ["describe"]:
            describe.main(typed[1:])
        else:
            DistillationCLI(args)
    except ValueError as error:
        own = _input_error(error)
        if own is None or os.environ.get("LIGHTNING_KD_TRACEBACK"):
            raise
        print(f"error: {own}", file=sys.stderr)
        sys.exit(2)


def _hush() -> None:
    """Leave out what other libraries say that nobody at a command line can act on."""
    transformers_logging.set_verbosity_error()  # that a student's head starts from random weights, above all
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Starting from v1.9.0, `tensorboardX`")  # the CSV logger does
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # every run has a folder of its own
    warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef` will save all targets")  # a number a row
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # the records have their own
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "Tip: " not in record.getMessage() and "TPU" not in record.getMessage())
