"""A training that is killed at random moments ends as one that is not; by hand with 20 kills each."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kill_and_resume import KINDS, interrupted, make_teacher, outcome, same, uninterrupted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "name"), [("live", "SIGKILL"), ("cached", "SIGTERM"), ("accumulated", "SIGKILL")])
def test_killed_and_resumed_run_equals_a_whole_one(kind: str, name: str, tmp_path: Path) -> None:
    """Stops half a checkpoint, a batch that is lost or comes twice, other dropout, and a gap in the log."""
    teacher = make_teacher(tmp_path / "teacher")
    number = signal.Signals[name]
    seconds = uninterrupted(tmp_path / "whole", teacher, kind)
    codes = interrupted(tmp_path / "parts", teacher, kind, kills=3, seconds=seconds, number=number, seed=1)
    assert codes[-1] == 0 and any(code != 0 for code in codes), codes
    whole = outcome(tmp_path / "whole")
    assert len(whole.history) > 100 and kind in KINDS
    same(whole, outcome(tmp_path / "parts"))
