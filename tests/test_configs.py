"""Every experiment in configs/ parses, and says how to run it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from transformers import PretrainedConfig

import lightning_kd.callbacks
import lightning_kd.datamodules
import lightning_kd.losses
import lightning_kd.quantization
from lightning_kd import DistillationModule, MultiTaskModule, cli, students

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
#: Exported classes that no config names, and why.
WITHOUT_A_CONFIG = {
    "AtomicCheckpointIO": "the command line adds it",
    "StageProgress": "the command line adds it",
    "TrainingCurves": "the command line adds it as `curves`",
    "CompressionReport": "the command line adds it as `report`",
    "PredictionWriter": "the command line adds it as `predictions`",
    "Resume": "the command line adds it",
    "StudentExport": "the command line adds it as `export`",
    "LogitStandardizationKL": "two standardized logits are always the same: no set of the configs has three labels",
}


def is_shape(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, PretrainedConfig)


def names(config: Path) -> str:
    return str(config.relative_to(ROOT))


def commands(config: Path) -> list[list[str]]:
    """The arguments of every command in the comment at the top; one that starts with `...` goes on from the first."""
    header = ""
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header += line.removeprefix("#").strip() + "\n"
    lines = header.replace("\\\n", " ").splitlines()
    whole = [shlex.split(line.removeprefix("python train.py")) for line in lines if line.startswith("python train.py")]
    more = [shlex.split(line.removeprefix("...")) for line in lines if line.startswith("...")]
    return whole + [whole[0] + arguments for arguments in more]


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_the_header_says_how_to_run_it(config: Path) -> None:
    """Stops a config that was copied from naming the file that it was copied from."""
    assert commands(config), "the comment at the top holds no `python train.py ...`"
    for arguments in commands(config):
        assert arguments[:2] == [config.stem if config.stem in ("prune", "quantize") else "fit", "--config"]
        assert arguments[2] == names(config)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_every_command_in_the_header_fits_the_signatures(config: Path, instantiated: list[Any]) -> None:
    """Stops an argument that was renamed in Python alone from failing at its first user's."""
    for arguments in commands(config):
        cli.main(arguments)
    assert len(instantiated) == len(commands(config))
    for made in instantiated:
        assert isinstance(made.model, (DistillationModule, MultiTaskModule)) and not list(made.model.parameters())
        assert isinstance(made.datamodule, L.LightningDataModule) and isinstance(made.trainer, L.Trainer)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_runs_write_into_folders_of_their_own(config: Path) -> None:
    """Stops a config that was copied from replacing another experiment's student."""
    trainer = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]
    roots = [yaml.safe_load(other.read_text(encoding="utf-8"))["trainer"]["default_root_dir"] for other in CONFIGS]
    assert roots.count(trainer["default_root_dir"]) == 1
    for callback in trainer.get("callbacks", []):
        folder = callback.get("init_args", {}).get("export_dir")
        assert folder is None or folder.startswith(trainer["default_root_dir"] + "/")


def exported() -> Iterator[tuple[str, type]]:
    """The classes that a config can name: neither abstract nor a plain record."""
    for package in (
        lightning_kd.losses,
        lightning_kd.callbacks,
        lightning_kd.quantization,
        lightning_kd.datamodules,
    ):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) and not dataclasses.is_dataclass(value):
                is_base = inspect.isabstract(value) or name in ("DistillationLoss", "TransformerDataModule")
                if not is_base:
                    yield f"{package.__name__}.{name}", value


@pytest.mark.parametrize("name", [name for name, _ in exported()])
def test_every_class_stands_in_a_config(name: str) -> None:
    """Stops a class that nobody has ever named from YAML: its signature may not parse at all."""
    if name.rpartition(".")[2] in WITHOUT_A_CONFIG:
        pytest.skip(WITHOUT_A_CONFIG[name.rpartition(".")[2]])
    pattern = re.compile(rf"class_path: {re.escape(name)}\b")
    assert any(pattern.search(config.read_text(encoding="utf-8")) for config in CONFIGS), f"no config names {name}"


@pytest.mark.parametrize("model_type", [value.model_type for value in vars(students).values() if is_shape(value)])
def test_every_student_that_is_no_transformer_stands_in_a_config(model_type: str) -> None:
    """Stops a model type that nobody has ever named from YAML."""
    pattern = re.compile(rf"model_type: {model_type}\b")
    assert any(pattern.search(config.read_text(encoding="utf-8")) for config in CONFIGS), f"no config has {model_type}"


def test_the_tokenizer_is_that_of_the_embeddings(instantiated: list[Any]) -> None:
    """Stops a student from scratch from asking for the tokenizer that its embeddings already name."""
    cli.main(["fit", "--config", "configs/sst2/bigru.yaml"])
    cli.main(["fit", "--config", "configs/sst2/bigru.yaml", "--data.tokenizer", "some/other"])
    sources = [made.datamodule.tokenizer_source for made in instantiated]
    assert sources == ["runs/sst2/teacher/student", "some/other"]
