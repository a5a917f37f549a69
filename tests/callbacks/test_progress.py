"""What is shown of a run's progress, on a terminal and in a log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import pytest

from lightning_kd import _progress
from lightning_kd._progress import Tracked, stage, track
from lightning_kd.callbacks import CompressionReport, QuantizationCallback, StageProgress, StudentExport, TeacherCache
from lightning_kd.quantization import DynamicInt8

Make = Callable[..., Any]


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StubTrainer:
    """What the estimate reads of a trainer: 2 epochs of 10 batches, each followed by 4 batches of validation."""

    num_training_batches = 10
    num_val_batches = (4,)
    val_check_batch = 10
    check_val_every_n_epoch = 1
    max_epochs = 2
    max_steps = -1
    current_epoch = 0
    global_step = 0
    accumulate_grad_batches = 1
    enable_validation = True


def test_the_end_counts_training_and_validation_each_at_its_own_pace() -> None:
    """Stops an end that moves away at every validation, which a rate of training batches alone leaves out."""
    clock, bar, trainer = Clock(), StageProgress(), cast(L.Trainer, StubTrainer())
    bar._clock = clock
    assert bar._train_total(trainer) == 20
    bar._since = clock.now

    def go(kind: str, batches: int, seconds: float) -> None:
        for _ in range(batches):
            clock.now += seconds
            bar._tick(kind)

    go("val", 2, 0.5)  # the sanity check
    assert bar.seconds_left(trainer, 20) == float("inf"), "nothing is known yet"
    go("train", 5, 2.0)
    assert bar.seconds_left(trainer, 20) == pytest.approx(15 * 2.0 + 2 * 4 * 0.5)
    go("train", 5, 2.0)
    go("val", 4, 0.5)
    go("train", 2, 2.0)
    started = clock.now
    expected = bar.seconds_left(trainer, 20)
    go("train", 8, 2.0)
    go("val", 4, 0.5)
    assert clock.now - started == pytest.approx(expected), "it ends when it was said to end"
    assert bar.seconds_left(trainer, 20) == 0
    assert bar.seconds_left(trainer, None) == float("inf")


def test_a_resumed_fit_has_less_to_do() -> None:
    """Stops a bar that ends in the middle after a resume."""
    trainer = StubTrainer()
    trainer.current_epoch = 1
    assert StageProgress._train_total(cast(L.Trainer, trainer)) == 10
    trainer.max_steps, trainer.global_step = 13, 10
    assert StageProgress._train_total(cast(L.Trainer, trainer)) == 3
    trainer.max_epochs, trainer.max_steps = -1, -1
    assert StageProgress._train_total(cast(L.Trainer, trainer)) is None


@pytest.fixture
def fit(distillation: Make, glue: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs every stage once: tokenizing, caching, training, quantizing, evaluating."""

    def run() -> None:
        monkeypatch.setattr("lightning_kd.callbacks.report._ROUNDS", 1)
        callbacks = [StageProgress(), StudentExport(), TeacherCache(), QuantizationCallback(DynamicInt8())]
        trainer = make_trainer(callbacks=[*callbacks, CompressionReport()], enable_progress_bar=True, max_epochs=3)
        trainer.fit(distillation(), datamodule=glue())

    return run


STAGES = ("Tokenizing train", "Tokenizing validation", "Caching teacher", "Training", "Evaluating")


def test_a_log_has_one_line_a_stage_and_no_control_characters(
    fit: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stops a log of a build from being full of half-drawn bars."""
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 0.0)
    with monkeypatch.context() as patch:  # as the command line has it: transformers draws bars of its own
        patch.setattr("transformers.utils.logging._tqdm_active", False)
        fit()
    written = capfd.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", written.out + written.err), "a control character"
    assert "━" not in written.err and "batches/s  ends" not in written.err
    lines = [record.getMessage() for record in log.records if record.levelno == logging.INFO]
    for name in STAGES:
        [line] = [line for line in lines if line.startswith(f"{name}: ")]
        assert re.search(r" in \d+ s, [\d.,]+ (rows|batches)/s", line), line
    [line] = [line for line in lines if line.startswith("Training: ")]
    assert line.startswith("Training: 9 steps, 9 batches in ") and "val/accuracy" in line
    [line] = [line for line in lines if line.startswith("Evaluating: ")]
    assert line.startswith("Evaluating: 30 rows"), "three models, ten rows"


def test_a_terminal_shows_rate_and_end(
    fit: Callable[[], None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a stage without a bar, and a bar that does not say when it ends."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    fit()
    drawn = capfd.readouterr().err
    assert "\x1b[" in drawn
    for name in STAGES[:3]:
        assert name in drawn, name
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert re.search(r" 9/9 [\d.]+ batches/s +ends \d\d:\d\d:\d\d, in 0 s", plain), plain[-2000:]
    assert re.search(r"Evaluating .*30/30", plain)


def test_nothing_is_shown_where_no_bar_is_wanted(
    distillation: Make, glue: Make, make_trainer: Make, capfd: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
) -> None:
    """Stops `enable_progress_bar: false` from silencing the training alone."""
    make_trainer(callbacks=[CompressionReport()]).fit(distillation(), datamodule=glue())
    assert not [r for r in log.records if r.getMessage().startswith(STAGES)]
    assert "━" not in capfd.readouterr().err


def test_calibration_counts_its_batches(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a backend that reads the batches by number, or twice, from getting others."""
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 0.0)
    tracked = Tracked([10, 20, 30], "Calibrating", "batches")
    assert list(tracked) == list(tracked) == [10, 20, 30]
    assert len(tracked) == 3 and tracked[1] == 20 and tracked[1:] == [20, 30]
    lines = [r.getMessage() for r in log.records]
    assert len(lines) == 2 and all(line.startswith("Calibrating: 3 batches in 0 s") for line in lines)


def test_a_stage_that_fails_says_so_itself(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a line that says that something is done which is not."""
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 0.0)
    with pytest.raises(RuntimeError), stage("Reading", 2, "rows"):
        raise RuntimeError
    assert list(track("ab", "Reading", 2, "rows", size=lambda _: 5)) == ["a", "b"]
    assert [r.getMessage()[:16] for r in log.records] == ["Reading: 10 rows"]
