"""What has to be imported, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_kd
from lightning_kd.cli import DistillationCLI
from lightning_kd.cli import main as full
from lightning_kd.start import SUBCOMMANDS, main
from source_tree import ROOT


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_subcommands_are_those_of_the_command_line() -> None:
    """Stops a new subcommand from being answered as a mistyped one."""
    assert SUBCOMMANDS == (*DistillationCLI.subcommands(), "describe", "compare", "sweep")


@pytest.mark.parametrize("typed", ["fitt", "xyzzy"])
def test_a_mistyped_subcommand_gets_the_answer_of_the_full_command_line(
    typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the short way from saying less than the long one."""
    with pytest.raises(SystemExit):
        full([typed])
    expected = capsys.readouterr().err.partition(" See `")[0]
    monkeypatch.setattr(sys, "argv", ["lightning-kd", typed])
    with pytest.raises(SystemExit) as left:
        main()
    assert capsys.readouterr().err == f"{expected} See `lightning-kd --help`.\n"
    assert left.value.code == 2


def test_a_mistyped_subcommand_is_answered_before_the_imports() -> None:
    """Stops an import that takes seconds from slipping into the package or the start of its command line."""
    code = """
import sys
import lightning_kd.start
sys.argv = ["lightning-kd", "fitt"]
try:
    lightning_kd.start.main()
except SystemExit:
    print(sorted({"torch", "transformers", "lightning", "datasets", "numpy"} & set(sys.modules)))
"""
    assert run(code) == "[]\n"


def test_classes_are_known_by_their_names_alone() -> None:
    """Stops a kind of class from being found by its name in tests alone, where something else has imported it."""
    code = """
import sys
from lightning_kd.cli import main
names = {"data": "SyntheticDataModule", "model.task": "SequenceClassification", "model.losses": '{"a": "SoftTargetKL"}'}
names |= {"trainer.callbacks+": "QuantizationCallback", "trainer.callbacks.quantizer": "DynamicInt8"}
main(["fit", *(f"--{name}={value}" for name, value in names.items()), "--print_config"])
"""
    printed = run(code)
    for place in ("datamodules", "tasks", "losses", "callbacks", "quantization"):
        assert f"class_path: lightning_kd.{place}." in printed


def test_names_of_the_package_come_on_first_use() -> None:
    """Stops a name from being offered that is not there, and one that is there from being left out."""
    for name in lightning_kd.__all__:
        assert name in dir(lightning_kd)
        assert getattr(lightning_kd, name).__name__ == name
    assert lightning_kd.losses.SoftTargetKL.__module__ == "lightning_kd.losses.soft_target"
    with pytest.raises(AttributeError, match="has no attribute 'Runer'"):
        lightning_kd.Runer  # noqa: B018  # looked up for its error
    with pytest.raises(ImportError):
        exec("from lightning_kd import Runer")


def test_whoever_opens_a_model_knows_the_students_that_are_no_transformer() -> None:
    """Stops `from lightning_kd import Runner` from leaving transformers without the recurrent and the convolutional."""
    code = """
from lightning_kd import Runner
from transformers import AutoConfig
print(*(AutoConfig.for_model(name).model_type for name in ("rnn", "cnn", "lstm")))
"""
    assert run(code) == "rnn cnn lstm\n"


def test_help_collects_the_options_of_its_own_subcommand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Stops `fit --help` from taking the time of six, and one of the six from being forgotten."""
    for name in DistillationCLI.subcommands():
        with pytest.raises(SystemExit):
            full([name, "--help"])
        assert "--model.temperature" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        full(["--help"])
    said = capsys.readouterr().out
    assert all(f" {name} " in said for name in DistillationCLI.subcommands())
    assert "--model.temperature" not in said
