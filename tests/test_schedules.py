"""Schedules at their ends, between and beyond."""

import pytest

from videogen.schedules import DECAYS, decay, ramp


@pytest.mark.parametrize("name", DECAYS)
def test_decays_begin_at_one_and_never_rise(name):
    values = [float(decay(name, progress / 10)) for progress in range(11)]
    assert values[0] == 1 and values == sorted(values, reverse=True)


def test_a_ramp_is_straight_and_stays_at_its_end():
    values = [float(ramp(3.0, 1.0, 2000, step)) for step in (0, 500, 1000, 2000, 10_000)]
    assert values == pytest.approx([3.0, 2.5, 2.0, 1.0, 1.0])


def test_a_ramp_of_no_steps_is_at_its_end():
    assert [float(ramp(3.0, 1.0, 0, step)) for step in (0, 1)] == [1.0, 1.0]
