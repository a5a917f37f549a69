"""What the command line answers to wrong input: one sentence, at once, and nothing is written."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from lightning_utilities.core.imports import RequirementCache
from transformers import AutoConfig, AutoModelForTokenClassification

from lightning_kd.cli import DistillationCLI, main
from lightning_kd.folders import QUANTIZED
from lightning_kd.quantization import DynamicInt8
from lightning_kd.quantization.base import empty_model
from lightning_kd.runner import _QUANTIZERS
from source_tree import ROOT
from wrong_inputs import FIT, SHAPE, SOFT, TABLE, Wrong

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv

SUBCOMMANDS = DistillationCLI.subcommands()
#: How the lines begin that Lightning prints of every run.
NOTES = ("Seed set to", "GPU available", "TPU available", "💡")


SECRET = "0123456789abcdef-never-to-be-seen"


class Hostile:
    """Runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (self.mark, "w")


@dataclass(frozen=True)
class World:
    """Files and folders that a wrong input can point to."""

    places: dict[str, str]
    root: Path
    config: dict[str, Any]
    leaks: list[str]

    def fill(self, value: Any) -> Any:
        """``value`` with the places that the words in braces stand for."""
        if isinstance(value, dict):
            return {key: self.fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.fill(each) for each in value]
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda found: self.places[found[1]], value)
        return value

    def write(self, changes: dict[str, Any]) -> None:
        """The configuration with its changes, as ``{config}``."""
        config = json.loads(json.dumps(self.config))
        for key, value in changes.items():
            *parents, last = key.split(".")
            inner = config
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        Path(self.places["config"]).write_text(yaml.safe_dump(self.fill(config)))

    def files(self) -> dict[str, int]:
        """All that is there, and when it was last written to."""
        return {
            str(path): path.stat().st_mtime_ns for path in self.root.rglob("*") if path.name != "config-of-row.yaml"
        }


CONFIG = {
    "seed_everything": 0,
    "model": {"student": {"from_scratch": True, "config": SHAPE}},
    "data": {
        "class_path": "lightning_kd.datamodules.SyntheticDataModule",
        "init_args": {"num_train": 64, "num_validation": 40, "num_test": 30, "batch_size": 16},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "enable_progress_bar": False,
        "default_root_dir": "{root}",
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path], glue_folder: Path) -> World:
    root = tmp_path_factory.mktemp("wrong")
    places = {"root": str(root / "runs"), "config": str(root / "config-of-row.yaml"), "glue": str(glue_folder)}
    made = World(places, root, CONFIG, [])
    made.write({})
    with pytest.MonkeyPatch.context() as environment:
        for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, SECRET)
        main(["fit", "--config", places["config"]])
    made.leaks.extend(str(path) for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes())
    [checkpoint] = (root / "runs").rglob("*.ckpt")
    shutil.copy(checkpoint, root / "good.ckpt")
    student = (root / "runs" / "student").rename(root / "student")
    shutil.rmtree(root / "runs")

    def folder(name: str, source: Path = student, without: str = "-") -> Path:
        shutil.copytree(source, root / name, ignore=shutil.ignore_patterns(without))
        places[name] = str(root / name)
        return root / name

    def file(name: str, content: str | bytes, called: str | None = None) -> Path:
        path = root / (called or name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        places[name] = str(path)
        return path

    def checkpoint_with(name: str, **changes: Any) -> None:
        content = torch.load(root / "good.ckpt", weights_only=True)
        torch.save({**content, **changes}, root / f"{name}.ckpt")
        places[name] = str(root / f"{name}.ckpt")

    places |= {"student": str(student), "checkpoint": str(root / "good.ckpt")}
    places["weights"] = str(student / "model.safetensors")
    config = AutoConfig.from_pretrained(student)
    vocabulary = config.vocab_size
    for name, options in (("headless", {"head": False}), ("three_labels", {"num_labels": 3})):
        shutil.copytree(tiny_model(vocab_size=vocabulary, **options), root / name)
        places[name] = str(root / name)
        for each in student.glob("token*"):
            shutil.copy(each, root / name)
    shutil.copytree(tiny_model(), root / "other_vocabulary")
    places["other_vocabulary"] = str(root / "other_vocabulary")
    tagger = folder("tagger", without="model.safetensors")
    AutoModelForTokenClassification.from_config(config).save_pretrained(tagger)
    int8 = folder("int8", without="model.safetensors")
    DynamicInt8().convert(empty_model(student), [], int8)
    cut = folder("cut_int8", int8) / "int8.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    cut = folder("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    folder("no_weights", without="model.safetensors")
    pickled = folder("pickled", without="model.safetensors")
    torch.save({"weight": Hostile(root / "executed")}, pickled / "pytorch_model.bin")
    code = folder("code")
    settings = json.loads((code / "config.json").read_text())
    settings |= {
        "model_type": "unheard",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.M"},
    }
    (code / "config.json").write_text(json.dumps(settings))
    (code / "code.py").write_text(f"open({str(root / 'executed')!r}, 'w')\n")
    (root / "script").mkdir()
    (root / "script" / "script.py").write_text(f"open({str(root / 'executed')!r}, 'w')\n")
    (root / "empty_folder").mkdir()
    (root / "precious" / "home").mkdir(parents=True)
    (root / "precious" / "home" / "thesis.tex").write_text("years of work")
    places |= {"home": str(root / "precious" / "home"), "home_parent": str(root / "precious")}
    places |= {"script": str(root / "script"), "folder": str(root / "empty_folder")}
    file("broken_yaml", "model: [1, 2\ntrainer: {", "broken.yaml")
    file("list_yaml", "- model\n- trainer\n", "list.yaml")
    file("empty", "", "empty.yaml")
    file("csv", "text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20)), "rows.csv")
    file("three_csv", "text,label\n" + "".join(f"row {i},{i % 3}\n" for i in range(20)), "three.csv")
    file("latin", "text,label\ncafé,1\n".encode("latin-1"), "latin.csv")
    file("ragged", "text,label\na,1,2\n", "ragged.csv")
    parquet = root / "no_column" / "sst2"
    parquet.mkdir(parents=True)
    for split in ("train", "validation"):
        datasets.Dataset.from_dict({"text": ["bun", "den"], "label": [0, 1]}).to_parquet(parquet / f"{split}-0.parquet")
    header = "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
    header += "".join(f"  - split: {split}\n    path: sst2/{split}-*.parquet\n" for split in ("train", "validation"))
    (root / "no_column" / "README.md").write_text(header + "---\n")
    places["no_column"] = str(root / "no_column")
    file("cut_checkpoint", (root / "good.ckpt").read_bytes()[:-2000], "cut.ckpt")
    checkpoint_with("hostile_checkpoint", hostile=Hostile(root / "executed"))
    checkpoint_with("later_checkpoint", lightning_kd_format=999)
    checkpoint_with("earlier_checkpoint", lightning_kd_format=0)
    content = torch.load(root / "good.ckpt", weights_only=True)
    del content["student_config"]
    torch.save(content, root / "foreign.ckpt")
    places["foreign_checkpoint"] = str(root / "foreign.ckpt")
    return made


def run(world: World, wrong: Wrong, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed."""
    world.write(wrong.config)
    if wrong.missing:
        for name in [wrong.missing, *(name for name in sys.modules if name.startswith(f"{wrong.missing}."))]:
            monkeypatch.setitem(sys.modules, name, None)
    if wrong.missing == "tensorboard":  # which Lightning looks for once, by its version
        monkeypatch.setattr(
            "lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", RequirementCache("tensorboard>=1000")
        )
    subcommand = wrong.typed.partition(" ")[0]
    if subcommand in SUBCOMMANDS:  # the parsers of the others take longest
        only = {subcommand: SUBCOMMANDS[subcommand]}
        monkeypatch.setattr(DistillationCLI, "subcommands", staticmethod(lambda: only))
    with pytest.raises(SystemExit) as left:
        main(shlex.split(world.fill(wrong.typed)))
    assert left.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out
    return said.err


@pytest.mark.parametrize("wrong", TABLE.values(), ids=TABLE)
def test_wrong_input_gets_one_sentence(
    wrong: Wrong,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stops a mistake from ending in a traceback, in a run of something else, or in a folder that nobody wants."""
    monkeypatch.chdir(tmp_path)
    before, started = world.files(), time.process_time()
    said = run(world, wrong, monkeypatch, capsys)
    assert time.process_time() - started < 15
    lines = [line for line in said.splitlines() if not line.startswith(NOTES)]
    assert len(lines) == 1 and lines[0].startswith("error: "), said
    assert [part for part in wrong.says if world.fill(part) not in lines[0]] == [], lines[0]
    assert world.files() == before and not list(tmp_path.iterdir())


def test_what_was_there_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Stops a refused run from taking away, or writing over, the logs of an earlier one."""
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "runs" / "lightning_logs" / "version_0"
    earlier.mkdir(parents=True)
    (earlier / "metrics.csv").write_text("step")
    (tmp_path / "runs" / "config.yaml").write_text("of an earlier run")
    for logger in (True, False):
        changes = {"trainer.default_root_dir": str(tmp_path / "runs"), "trainer.logger": logger}
        wrong = Wrong(FIT, (), {**changes, "model.losses": {"soft": SOFT}})
        assert "add one to `teachers`" in run(world, wrong, monkeypatch, capsys)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["runs/config.yaml", "runs/lightning_logs/version_0/metrics.csv"]
    assert (tmp_path / "runs" / "config.yaml").read_text() == "of an earlier run"
    assert [path.name for path in (tmp_path / "runs" / "lightning_logs").iterdir()] == ["version_0"]


def test_no_secret_is_written(world: World) -> None:
    """Stops a key in the environment from being found in a log, a report or a checkpoint that is shared."""
    assert world.leaks == []


def test_the_files_of_other_models_are_told_by_name() -> None:
    """Stops a new backend's folder from being taken for a float one."""
    assert {kind.file_name for kind in _QUANTIZERS} == set(QUANTIZED)


@pytest.mark.parametrize("name", ["option", "student is int8", "describe: cut off"])
def test_in_a_process_of_its_own(name: str, world: World, tmp_path: Path) -> None:
    """Stops the sentence from depending on what a test has imported or caught."""
    wrong = TABLE[name]
    world.write(wrong.config)
    command = [sys.executable, str(ROOT / "train.py"), *shlex.split(world.fill(wrong.typed))]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 15
    lines = [line for line in done.stderr.splitlines() if not line.startswith(NOTES)]
    assert done.returncode == 2 and not done.stdout and len(lines) == 1, done.stderr
    assert all(world.fill(part) in lines[0] for part in wrong.says)
    assert not list(tmp_path.iterdir())


def test_hyperparameters_of_a_checkpoint_are_no_configuration(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stops a checkpoint from putting its temperature, or a class of its choice, in the place of what was typed."""
    content = torch.load(world.places["checkpoint"], weights_only=True)
    content["hyper_parameters"] |= {"temperature": "hot", "task": {"class_path": "antigravity.Task"}}
    torch.save(content, world.root / "other.ckpt")
    wrong = Wrong(f"{FIT} --ckpt_path {world.root / 'other.ckpt'} --model.warmup 2", ())
    assert "`--model.warmup` to be between 0 and 1" in run(world, wrong, monkeypatch, capsys)
    assert "antigravity" not in sys.modules
