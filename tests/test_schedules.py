"""Schedules: where they start and end, and that they keep nothing to themselves."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_kd import InputError
from lightning_kd.schedules import Constant, Cosine, Cubic, Exponential, Linear, Piecewise, Schedule, Step

values = st.floats(-100, 100)
shares = st.floats(0, 1)
ramps = st.sampled_from([Linear, Cosine, Cubic])
symmetric = st.sampled_from([Linear, Cosine])


@given(ramp=symmetric, start=values, end=values)
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
    assert Cubic(start, end)(progress) == pytest.approx(start + (1 - (1 - progress) ** 3) * (end - start), abs=1e-9)
    assert Constant(start)(progress) == start


def test_cosine_is_flat_at_the_ends() -> None:
    """Stops a full wave, or a quarter of one, both of which have the right ends."""
    schedule = Cosine(0.0, 1.0)
    assert schedule(0.01) < 0.001
    assert 1 - schedule(0.99) < 0.001
    assert schedule(0.51) - schedule(0.5) == pytest.approx(0.01 * math.pi / 2, rel=1e-3)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(2.0),
        Linear(8.0, 2.0),
        Cosine(8.0, 2.0),
        Cubic(8.0, 2.0),
        Exponential(8.0, 2.0),
        Step([3.0, 1.0], [0.5]),
        Piecewise([3.0, 1.0], [0.2, 0.7]),
    ],
)
def test_pure(schedule: Schedule) -> None:
    """Stops a schedule that counts its calls: resumed or sent to another process, it would start again."""
    forwards = [schedule(step / 10) for step in range(11)]
    assert [schedule(step / 10) for step in reversed(range(11))] == forwards[::-1]
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 1.0)


@given(start=st.floats(0.01, 100), end=st.floats(0.01, 100), steps=st.integers(1, 20))
def test_exponential_is_one_factor_a_step(start: float, end: float, steps: int) -> None:
    """Stops a decay by differences, and one that never arrives at its end."""
    seen = [Exponential(start, end)(step / steps) for step in range(steps + 1)]
    assert (seen[0], seen[-1]) == pytest.approx((start, end))
    factors = [b / a for a, b in itertools.pairwise(seen)]
    assert factors == pytest.approx([(end / start) ** (1 / steps)] * steps)


@given(points=st.dictionaries(st.floats(0, 1, width=16), values, min_size=1, max_size=5), progress=shares)
def test_piecewise_equals_numpy(points: dict[float, float], progress: float) -> None:
    """Stops a line between the wrong two points, and an extrapolation past the ends."""
    milestones = sorted(points)
    schedule = Piecewise([points[m] for m in milestones], milestones)
    assert schedule(progress) == pytest.approx(np.interp(progress, milestones, schedule.values), abs=1e-6)


def test_step_equals_torch() -> None:
    """Stops a change one step late: torch's own schedule has the new value at the milestone itself."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 6], gamma=0.5)
    schedule = Step([1.0, 0.5, 0.25], [0.3, 0.6])
    for step in range(10):
        assert schedule(step / 10) == reference.get_last_lr()[0]
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(1.0, 0.0), "`end` to be a number above 0, but got 0.0"),
        (lambda: Step([1.0], [0.5]), "`values` to be one value more than the 1 milestones"),
        (lambda: Step([1.0, 2.0, 3.0], [0.5, 0.5]), "`milestones` to be rising numbers from 0 to 1"),
        (lambda: Piecewise([], []), "`values` to be as many as the 0 milestones, at least one"),
        (lambda: Piecewise([1.0, 2.0], [0.0, 500.0]), "`milestones` to be rising numbers from 0 to 1"),
    ],
)
def test_refused(make: Callable[[], Schedule], message: str) -> None:
    """Stops milestones in steps from being taken for shares, and a schedule of nothing."""
    with pytest.raises(InputError, match=message):
        make()
