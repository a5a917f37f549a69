"""Schedules: where they start and end, and that they keep nothing to themselves."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_kd.schedules import Constant, Cosine, Linear, Schedule

values = st.floats(-100, 100)
shares = st.floats(0, 1)
ramps = st.sampled_from([Linear, Cosine])


@given(ramp=ramps, start=values, end=values)
def test_endpoints(ramp: type[Linear], start: float, end: float) -> None:
    """Stops start and end from being swapped, and a schedule that never arrives."""
    schedule = ramp(start, end)
    assert schedule(0.0) == pytest.approx(start, abs=1e-9)
    assert schedule(0.5) == pytest.approx((start + end) / 2, abs=1e-9)
    assert schedule(1.0) == pytest.approx(end, abs=1e-9)


@given(ramp=ramps, start=values, end=values, one=shares, other=shares)
def test_monotone_between_the_ends(ramp: type[Linear], start: float, end: float, one: float, other: float) -> None:
    """Stops an overshoot: a temperature below its end may be 0 or less."""
    schedule = ramp(start, end)
    early, late = sorted((one, other))
    low, high = sorted((start, end))
    assert low - 1e-9 <= schedule(early) <= high + 1e-9
    assert (schedule(late) - schedule(early)) * (end - start) >= -1e-9


@given(start=values, end=values, progress=shares)
def test_formulas(start: float, end: float, progress: float) -> None:
    """Stops a ramp from being taken for the other one."""
    wave = (1 - math.cos(math.pi * progress)) / 2
    assert Linear(start, end)(progress) == pytest.approx((1 - progress) * start + progress * end, abs=1e-9)
    assert Cosine(start, end)(progress) == pytest.approx((1 - wave) * start + wave * end, abs=1e-9)
    assert Constant(start)(progress) == start


def test_cosine_is_flat_at_the_ends() -> None:
    """Stops a full wave, or a quarter of one, both of which have the right ends."""
    schedule = Cosine(0.0, 1.0)
    assert schedule(0.01) < 0.001
    assert 1 - schedule(0.99) < 0.001
    assert schedule(0.51) - schedule(0.5) == pytest.approx(0.01 * math.pi / 2, rel=1e-3)


@pytest.mark.parametrize("schedule", [Constant(2.0), Linear(8.0, 2.0), Cosine(8.0, 2.0)])
def test_pure(schedule: Schedule) -> None:
    """Stops a schedule that counts its calls: resumed or sent to another process, it would start again."""
    forwards = [schedule(step / 10) for step in range(11)]
    assert [schedule(step / 10) for step in reversed(range(11))] == forwards[::-1]
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 1.0)  # type: ignore[arg-type]
