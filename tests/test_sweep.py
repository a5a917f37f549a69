"""The search without W&B, and that W&B takes the same files."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_kd import InputError, cli
from lightning_kd.sweep import main, read_sweep, run_sweep

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))

#: Stands for a training: its validation metric is a function of its options; one of them makes it fail.
PROGRAM = """
import sys
from pathlib import Path
given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
folder = Path(given["trainer.default_root_dir"])
with (folder.parent / "started").open("a") as file:
    file.write(given["x"] + given["y"] + "\\n")
if (given["x"], given["y"]) == ("2", "b"):
    sys.exit("no more memory")
best = int(given["x"]) + 0.5 * (given["y"] == "b")
(folder / "curves.csv").write_text(f"step,epoch,train/loss,val/f1\\n1,0,3.0,\\n1,0,,{best}\\n2,1,,{best - 1}\\n")
"""


def write(folder: Path, **changes: Any) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    content = {
        "program": str(folder / "program.py"),
        "method": "grid",
        "metric": {"name": "val/f1", "goal": "maximize"},
        "parameters": {"x": {"values": [1, 2, 3]}, "y": {"values": ["a", "b"]}},
        "command": ["${interpreter}", "${program}", "${args}"],
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in {**content, **changes}.items() if v is not None}))
    return file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandb_makes_the_same_command_of_our_files(file: Path, tmp_path: Path) -> None:
    """Stops a search without W&B from being another one than that with it."""
    from wandb.sdk.launch.sweeps import utils

    config = utils.load_sweep_config(str(file))
    assert config is not None and config["method"] in ("grid", "random")
    sweep = read_sweep(file)
    for point in itertools.islice(sweep.points(3, 0), 3):
        flags = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
        macros = {"${env}": [], "${interpreter}": [sys.executable], "${program}": [config["program"]]}
        macros["${args}"] = flags["args"]
        expected = [word for part in utils.create_sweep_command(config["command"]) for word in macros.get(part, [part])]
        own = sweep.arguments(point, tmp_path)
        assert own[: len(expected)] == expected
        assert own[len(expected) :] == [f"--trainer.{o}={tmp_path}" for o in ("default_root_dir", "logger.save_dir")]


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest's own stand in sys.argv
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_point_of_our_files_fits_the_signatures(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a search whose every run fails, and a layer map that is parsed but not used."""
    made: list[Any] = []
    monkeypatch.setattr(cli.DistillationCLI, "_run_subcommand", lambda self, _: made.append(self))
    monkeypatch.setattr(cli, "load_config", lambda *_: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(file)
    points = list(itertools.islice(sweep.points(6, 0), 6))
    for point in points:
        words = sweep.arguments(point, tmp_path)
        cli.main(words[words.index("fit") :])
        rank_zero_only.rank = 0
        module = made[-1].model
        matches = yaml.safe_load(point["model.losses.hidden.init_args.matches"])
        found = [(m.student_layer, m.teacher_layer) for m in module.losses["hidden"].matches]
        assert found == [(m["student_layer"], m["teacher_layer"]) for m in matches]
        assert module.temperature == point["model.temperature"]
        assert module.loss_weights["hidden"] == point["model.loss_weights.hidden"]
        assert module.hard_label_weight == point["model.hard_label_weight"]
    assert len(made) == len(points) == 6


def test_a_grid_is_gone_through_and_the_best_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops the last epoch's metric from being taken for the best, and a failed run from hiding the others."""
    file, out = write(tmp_path), tmp_path / "out"
    with pytest.raises(InputError, match=r"^1 of 6 runs failed"):
        main([str(file), "--path", str(out), "--jobs", "2"])
    with (out / "sweep.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["x"], row["y"]) for row in rows] == [
        ("3", "b"), ("3", "a"), ("2", "a"), ("1", "b"), ("1", "a"), ("2", "b"),
    ]  # fmt: skip
    assert [row["best val/f1"] for row in rows[:5]] == ["3.5000", "3.0000", "2.0000", "1.5000", "1.0000"]
    assert rows[5]["best val/f1"] == "exit status 1: no more memory"
    assert "Sweep" in capsys.readouterr().out and "| 3 | b | 3.5000 |" in (out / "sweep.md").read_text()


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    """Stops an interrupted search from starting over, and one that is made longer from losing its results."""
    sweep, out = read_sweep(write(tmp_path)), tmp_path / "out"
    out.mkdir()
    assert len(run_sweep(sweep, out, count=2)) == 2
    assert (out / "started").read_text().split() == ["1a", "1b"]
    runs = run_sweep(sweep, out)
    assert (out / "started").read_text().split() == ["1a", "1b", "2a", "2b", "3a", "3b"]
    assert runs[0].score == 3.5 and runs[-1].failure
    run_sweep(sweep, out)
    assert (out / "started").read_text().split()[6:] == ["2b"], "what failed is tried again"
    result = json.loads((runs[0].folder / "result.json").read_text())
    assert result == {"parameters": {"x": 3, "y": "b"}, "score": 3.5, "figures": {}}


def test_less_may_be_better(tmp_path: Path) -> None:
    """Stops a search for the lowest perplexity from ending with the highest."""
    sweep = read_sweep(write(tmp_path, metric={"name": "val/f1", "goal": "minimize"}))
    runs = run_sweep(sweep, tmp_path / "out", count=2)
    assert [run.score for run in runs] == [0.0, 0.5]


def test_a_random_search_is_drawn_from_the_ranges_once(tmp_path: Path) -> None:
    """Stops a search that tries a point twice, leaves its range or cannot be repeated."""
    parameters = {
        "a": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0},
        "b": {"min": 2, "max": 4},
        "c": {"min": 0.0, "max": 1.0},
        "d": {"values": ["x", "y"], "probabilities": [0.0, 1.0]},
        "e": {"distribution": "q_uniform", "min": 0, "max": 10, "q": 5},
        "f": {"value": 7},
    }
    sweep = read_sweep(write(tmp_path, method="random", parameters=parameters, run_cap=200))
    points = list(sweep.points(None, 0))
    assert points == list(sweep.points(None, 0)) != list(sweep.points(None, 1))
    assert len({json.dumps(point) for point in points}) == 200
    assert {p["b"] for p in points} == {2, 3, 4} and {p["e"] for p in points} == {0, 5, 10}
    assert {p["d"] for p in points} == {"y"} and {p["f"] for p in points} == {7}
    assert all(0.001 <= p["a"] <= 1 and 0 <= p["c"] <= 1 for p in points)
    assert 0.35 < sum(math.log10(p["a"]) < -1.5 for p in points) / 200 < 0.65, "as many below the geometric middle"
    few = read_sweep(write(tmp_path, method="random", parameters={"b": {"min": 1, "max": 3}}))
    assert sorted(p["b"] for p in few.points(10, 0)) == [1, 2, 3], "no more than there are"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, r"`method` to be grid or random, but got 'bayes'.*wandb sweep"),
        ({"metric": None}, r"is no sweep: it needs method, metric\.name and parameters"),
        ({"early_terminate": {"type": "hyperband"}}, r"^early_terminate needs W&B"),
        ({"command": ["${program}", "${args_json}"]}, r"`command` to be words and .* but got '\$\{args_json\}'"),
        ({"parameters": {"x": {"min": 0, "max": 1}}}, r"`parameters\.x` to be values to go through"),
        ({"method": "random"}, r"^A random search has no end of its own: give --runs"),
        ({"method": "random", "run_cap": 1, "parameters": {"x": {"distribution": "beta"}}}, r"one of categorical"),
        ({"method": "random", "run_cap": 1, "parameters": {"x": {"min": 1}}}, r"value, values, or min and max"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Stops a search that W&B would do otherwise, or that ends at its first run."""
    with pytest.raises(InputError, match=message):
        list(read_sweep(write(tmp_path, **changes)).points(None, 0))


def test_a_metric_that_is_not_logged_is_named(tmp_path: Path) -> None:
    """Stops a search by a misspelt metric from looking like one that failed."""
    sweep = read_sweep(write(tmp_path, metric={"name": "val/f2", "goal": "maximize"}))
    [run] = run_sweep(sweep, tmp_path / "out", count=1)
    assert run.failure.startswith("Expected argument `metric.name` to be one that the run logs (train/loss, val/f1)")
