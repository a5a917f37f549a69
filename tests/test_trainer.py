"""The subcommand `analyze` from its arguments on; what it finds is tested with the data that it is found on."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from lightning_kd import DistillationModule
from lightning_kd.trainer import CompressionTrainer
from lightning_kd.cli import main
from lightning_kd.datamodules import GLUEDataModule

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv
ROOT = Path(__file__).resolve().parents[1]


def test_takes_the_config_of_fit(tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an experiment from having to be written down a second time to be analyzed."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(CompressionTrainer, "analyze", recorded(calls))
    options = {"model.student.path": tiny_model(), "trainer.default_root_dir": tmp_path, "data.path": tmp_path}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    config = str(ROOT / "configs" / "sst2" / "no_teacher.yaml")
    main(["analyze", "--config", config, *arguments, "--bits", "[4,8]", "--granularity", "group"])
    (call,) = calls
    assert isinstance(call["model"], DistillationModule) and isinstance(call["datamodule"], GLUEDataModule)
    assert (call["bits"], call["granularity"], call["symmetric"]) == ([4, 8], "group", True)


def recorded(calls: list[dict[str, Any]]) -> Any:
    """The method with its own signature, which the command line reads, and without its work."""

    @wraps(CompressionTrainer.analyze)
    def analyze(self: CompressionTrainer, **options: Any) -> None:
        calls.append(options)

    return analyze


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--granularity=row", "error: `granularity`: Expected one of 'tensor', 'channel', 'group', but got row."),
        ("--granularty=row", "error: There is no option `--granularty`. Did you mean `--granularity`?"),
    ],
)
def test_a_wrong_value_is_one_sentence(option: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops an analysis per row, which is called per channel, from being a page of jsonargparse's workings."""
    with pytest.raises(SystemExit):
        main(["analyze", "--config", str(ROOT / "configs" / "sst2" / "no_teacher.yaml"), option])
    assert capsys.readouterr().err.startswith(sentence)
