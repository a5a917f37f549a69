"""The command line: fit, quantize, validate, test, predict, analyze and prune from YAML; and what needs no YAML."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers.utils import logging as transformers_logging

import lightning_kd.datamodules  # noqa: F401  # or a configuration could not name one without its module
from lightning_kd import compare, describe, sweep
from lightning_kd._checks import InputError, expected, unknown_subcommand
from lightning_kd._secrets import mask_arguments, without_secrets
from lightning_kd.callbacks import (
    AtomicCheckpointIO,
    CompressionReport,
    DistillationLossCallback,
    PerTask,
    PredictionWriter,
    Resume,
    StageProgress,
    StudentExport,
    TeacherCache,
    TrainingCurves,
)
from lightning_kd.callbacks._fit_end import callbacks_of
from lightning_kd.callbacks._loggers import check_loggers, finish_loggers
from lightning_kd.callbacks.resume import last_checkpoint
from lightning_kd.checkpoints import check_checkpoint
from lightning_kd.compatibility import check_strategy
from lightning_kd.models import ModelSource, has_tokenizer, load_config
from lightning_kd.module import DistillationModule
from lightning_kd.multi_task import MultiTaskModule
from lightning_kd.task_trainer import is_for_one_task
from lightning_kd.trainer import CompressionTrainer
from lightning_kd.typed import Typed, error_sentence, flat, run_sentence, sentence_of, trainer_words

__all__ = ["DistillationCLI", "main"]


#: Values of ``ckpt_path`` that name no file.
_ELSEWHERE = ("best", "last", "hpc", "registry")


#: What needs no configuration is no subcommand of Lightning's.
_OTHERS = {"describe": describe.main, "compare": compare.main, "sweep": sweep.main}
_DESCRIPTION = "Knowledge distillation and quantization of transformers."
_EPILOG = (
    "Without a config: `describe MODEL [MODEL ...]` shows where the parameters of models are, side by side; "
    "`compare RUN [RUN ...]` the reports of many runs; `sweep FILE` runs the search that a W&B sweep file describes. "
    "Wrong input is answered with one sentence; LIGHTNING_KD_TRACEBACK=1 in the environment shows where it comes from."
)
#: The variable that asks for tracebacks.
_TRACEBACK = "LIGHTNING_KD_TRACEBACK"


class DistillationCLI(LightningCLI):
    """LightningCLI with the module fixed, any data module, and the tokenizer following the student.

    The module is a :class:`MultiTaskModule` where the arguments give the model ``tasks``; its callbacks are then run
    for each task.

    Every logger gets the whole configuration as its hyperparameters.
    """

    def __init__(self, args: ArgsType = None) -> None:
        typed = sys.argv[1:] if args is None else args
        first = typed[0] if isinstance(typed, list) and typed else ""
        #: The one subcommand whose options are needed; None where that is not to be seen.
        self._needed = "" if first in ("-h", "--help") else first if first in self.subcommands() else None
        self._command = _command(args)
        super().__init__(
            MultiTaskModule if _has_tasks(args) else DistillationModule,
            L.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=_LogConfig,
            save_config_kwargs={"overwrite": True},
            trainer_class=CompressionTrainer,
            trainer_defaults={"enable_model_summary": False},
            parser_class=_Parser,
            parser_kwargs={"description": _DESCRIPTION, "epilog": _EPILOG},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {name: {"model", "datamodule"} for name in ("quantize", "analyze", "prune")}
        return {**LightningCLI.subcommands(), **own}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The options of a subcommand, or none: to collect those of all takes most of the time of a short answer."""
        if self._needed in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(StudentExport, "export")
        parser.add_lightning_class_args(CompressionReport, "report")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(TrainingCurves, "curves")

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; unlike Lightning's, never put its hyperparameters in the place of what was typed."""
        config = self.config[self.config.subcommand]
        if "weights_only" in config:
            if config.weights_only is False:
                raise expected("weights_only", "true or left out", "false", "Nothing is unpickled from a checkpoint.")
            config.weights_only = True  # or a checkpoint from an address would be unpickled
        checkpoint = config.get("ckpt_path")
        if checkpoint is None or "://" in checkpoint:
            return
        if checkpoint not in _ELSEWHERE:
            check_checkpoint("ckpt_path", checkpoint)
        elif checkpoint == "best" and self.config.subcommand != "fit":
            raise expected("ckpt_path", "a checkpoint file", checkpoint, "Only a run that has trained knows its best.")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (
            ArithmeticError,
            AttributeError,
            ImportError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            if error_sentence(error) is not None:
                raise
            cause: Exception = error
            while isinstance(cause.__cause__, Exception):
                cause = cause.__cause__
            sentence = trainer_words(str(cause)).rstrip(".")
            raise InputError(f"What the configuration describes cannot be made: {sentence}.") from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        given = self._get(self.config_init, "trainer", default={})
        callbacks = given.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if given.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            kwargs["callbacks"] = [*callbacks, StageProgress()]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one of the user's
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if not any(isinstance(callback, Resume) for callback in callbacks_of(trainer)):
            callbacks_of(trainer).append(Resume())
        check_loggers(trainer.loggers)
        if isinstance(trainer, CompressionTrainer):
            trainer.command = self._command
        # Losses are added before anything copies the module. The float student is written first: it is there, whatever
        # a quantizer does. Teachers run over all rows last, once whatever can be refused at the start has been.
        order = {Resume: -2, DistillationLossCallback: -1, StudentExport: 0, _LogConfig: 2, TeacherCache: 3}
        callbacks = callbacks_of(trainer)
        callbacks.sort(key=lambda one: order.get(type(one.callback if isinstance(one, PerTask) else one), 1))
        if isinstance(self.model, MultiTaskModule):
            callbacks[:] = [PerTask(one) if is_for_one_task(one) else one for one in callbacks]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        logged = [Path(path) for each in self.trainer.loggers if (path := getattr(each, "log_dir", None))]
        made = [folder for folder in (*logged, Path(self.trainer.default_root_dir)) if not folder.exists()]
        there = {folder: next(each for each in folder.absolute().parents if each.exists()) for folder in made}
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            started = [callback.started for callback in callbacks_of(self.trainer) if isinstance(callback, _LogConfig)]
            if self.trainer.is_global_zero and not any(started):
                for folder in made:
                    _remove(folder, there[folder], folder in logged)
            raise

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        strategy = config.trainer.strategy  # before the trainer looks for what it needs
        check_strategy(strategy if isinstance(strategy, str) else strategy.class_path)
        tasks, datas = config.model.get("tasks"), config.data.init_args.get("tasks")
        if tasks is None or datas is None:
            self._follow(config.data.init_args, config.model.student, config.model.get("teachers"), "model")
            return
        for name, data in datas.items():
            teachers = tasks[name].teachers if name in tasks else {}
            self._follow(data.init_args, config.model.student, teachers, f"model.tasks.{name}")

    def _follow(self, options: Any, student: Any, teachers: Any, role: str) -> None:
        """The tokenizers of a data module that are not given are those of the models."""
        if "tokenizer" in options and options.tokenizer is None and student.path is not None:
            load_config(ModelSource(**vars(student)), "model.student")  # or the tokenizer gets the blame
            options.tokenizer = student.path
        elif "tokenizer" in options and options.tokenizer is None:
            options.tokenizer = student.embeddings_from  # whose vocabulary it has to be
        if (
            self.subcommand in ("fit", "quantize")
            and "teacher_tokenizers" in options
            and options.teacher_tokenizers is None
        ):
            options.teacher_tokenizers = {}
            for name, source in (teachers or {}).items():
                load_config(ModelSource(**vars(source)), f"{role}.teachers.{name}")
                if source.path is not None and has_tokenizer(source.path):
                    options.teacher_tokenizers[name] = source.path

    def before_fit(self) -> None:
        """Find what ``--ckpt_path last`` names, over all earlier runs, and go on in its folder."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path != "last":
            return
        last = last_checkpoint(self.trainer)
        config.ckpt_path = None if last is None else str(last)
        if last is None:
            rank_zero_info("There is no checkpoint to go on from yet: the training starts from its beginning")
            return
        check_checkpoint("ckpt_path", str(last))
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(last.parent)


def _has_tasks(args: ArgsType) -> bool:
    """Whether arguments, or configurations that they name, give the model tasks: the parser needs to know its class."""
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list):
        typed = _Parser.typed or Typed(words)
        keys = [*(option.removeprefix("--") for option in typed.options), *typed.keys]
    else:
        keys = list(flat(words.as_dict() if isinstance(words, Namespace) else words))
    return any(re.match(r"(\w+\.)?model\.tasks(\.|$)", key) for key in keys)  # or below a subcommand's name


class _LogConfig(SaveConfigCallback):
    """Saves the configuration beside the logs, and sends it to the loggers, once nothing can be refused any more.

    What is secret in it is masked in both.
    """

    #: Whether a batch has been near.
    started = False

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *args: Any, **kwargs: Any) -> None:
        super().__init__(parser, _masked(config), *args, **kwargs)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module._log_hyperparams = False  # they are a part of the configuration, and would come again as one

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True
        super().setup(trainer, pl_module, str(trainer.state.fn))

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _start

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        config = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)


def _remove(folder: Path, root: Path, everything: bool) -> None:
    """Take away a folder that a refused run has made, and those above it, up to ``root``, that are empty.

    Args:
        folder: The folder.
        root: Was there before the run.
        everything: Whether its files go, too.
    """
    if everything:
        shutil.rmtree(folder, ignore_errors=True)  # what cannot go may stay: the error to tell of is another
    folder = folder.absolute()
    while folder != root:
        try:
            folder.rmdir()
        except FileNotFoundError:  # nobody has made it
            pass
        except OSError:  # something is in it
            return
        folder = folder.parent


def _command(args: ArgsType) -> str | None:
    """What was typed, without its secrets; None of arguments that were not typed."""
    if args is not None and not isinstance(args, list):
        return None
    program = Path(sys.argv[0]).name if args is None else "lightning-kd"
    start = ["python", program] if program.endswith(".py") else [program]
    return shlex.join([*start, *mask_arguments(sys.argv[1:] if args is None else args)])


def _masked(config: Any) -> Any:
    """A copy of a parsed configuration with its secrets masked."""
    if isinstance(config, Namespace):
        return Namespace({name: without_secrets(_masked(value), name) for name, value in vars(config).items()})
    if isinstance(config, dict):
        return {name: without_secrets(_masked(value), str(name)) for name, value in config.items()}
    return [_masked(value) for value in config] if isinstance(config, list) else without_secrets(config)


class _Parser(LightningArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    #: What was typed; set by :func:`main`.
    typed: Typed | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error or os.environ.get(_TRACEBACK):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        typed = self.typed or Typed([])
        own = None if ex is None else error_sentence(ex)
        if own is not None:
            self.exit(2, f"error: {typed.in_words(own)}\n")
        names = [*DistillationCLI.subcommands(), *_OTHERS]
        if wrong := re.match(r"argument subcommand: invalid choice: '([^']*)'", message):
            sentence = unknown_subcommand(wrong[1], names)
        elif '"subcommand"' in message:
            sentence = f"The first word has to be a subcommand: {', '.join(names)}."
        else:
            subcommand = re.match(r"Subcommand '(\w+)'", message)  # of a file
            if subcommand:
                parser = self._subcommands_action.choices[subcommand[1]]  # type: ignore[union-attr]  # it has some
            options = [option for action in parser._actions for option in action.option_strings]
            sentence = sentence_of(message, typed, options)
        self.exit(2, f"error: {sentence} See `{parser.prog.replace(' [options]', '')} --help`.\n")


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: What was typed; ``sys.argv`` unless given.
    """
    _hush()
    words = sys.argv[1:] if args is None else args
    typed = None
    try:
        typed = _Parser.typed = Typed(words if isinstance(words, list) else [])
        if isinstance(words, list) and words and words[0] in _OTHERS:
            _OTHERS[words[0]](words[1:])
        else:
            finish_loggers(DistillationCLI(args).trainer)
    except Exception as error:
        sentence = error_sentence(error, typed)
        code = 2
        if sentence is None:
            sentence, code = run_sentence(error), 1
        elif typed:
            sentence = typed.in_words(sentence)
        if sentence is None or os.environ.get(_TRACEBACK):
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(code)
    finally:
        _Parser.typed = None


def _hush() -> None:
    """Leave out what other libraries say that nobody at a command line can act on."""
    os.environ.setdefault("WANDB_QUIET", "true")  # where the run is, is said when it is over
    transformers_logging.set_verbosity_error()  # that a student's head starts from random weights, above all
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*`tensorboardX` has been removed as a dependency")  # CSV it is then
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # every run has a folder of its own
    warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef` will save all targets")  # a number a row
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")  # nothing is sharded here
    warnings.filterwarnings("ignore", message="No seed found")  # and which one is taken is said
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log.*sync_dist")  # they are of all ranks
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # the records have their own
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "Tip: " not in record.getMessage() and "TPU" not in record.getMessage())
