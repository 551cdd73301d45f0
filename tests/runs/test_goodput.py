"""Every second of a run is counted once."""

import threading

import pytest

from videogen.runs.goodput import LOSSES, Goodput


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Device:
    """A step's result that is ready when told to; ``jax.block_until_ready`` calls its method."""

    def __init__(self):
        self._done = threading.Event()

    def block_until_ready(self) -> "Device":
        assert self._done.wait(10)
        return self

    def finish(self, goodput: Goodput, steps: int) -> None:
        """Ends the step, and waits until the end has been counted."""
        self._done.set()
        for _ in range(10_000):
            if goodput.finished == steps:
                return
            threading.Event().wait(0.001)
        raise AssertionError("the step was never counted")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def goodput(clock):
    goodput = Goodput(clock)
    yield goodput
    goodput.close()


def test_shares_add_up_to_100(clock, goodput):
    for seconds, what in enumerate(LOSSES, 1):
        with goodput.lost(what):
            clock.now += seconds
    device = Device()
    goodput.step(lambda: (None, device))
    clock.now += 30
    device.finish(goodput, 1)
    clock.now += 10
    shares = goodput.shares()
    assert shares == pytest.approx(
        {"step": 60, "compile": 2, "input": 4, "checkpoint": 6, "evaluation": 8, "other": 20}
    )
    assert sum(shares.values()) == pytest.approx(100)


def test_waiting_for_input_while_a_step_runs_costs_nothing(clock, goodput):
    device = Device()
    goodput.step(lambda: (None, device))
    with goodput.lost("input"):
        clock.now += 8
    clock.now += 2
    device.finish(goodput, 1)
    assert goodput.shares() == pytest.approx({**dict.fromkeys((*LOSSES, "other"), 0), "step": 100}, abs=1e-9)


def test_only_the_idle_part_of_a_wait_is_lost(clock, goodput):
    device = Device()
    goodput.step(lambda: (None, device))
    with goodput.lost("input"):
        clock.now += 6
        device.finish(goodput, 1)
        clock.now += 4
    shares = goodput.shares()
    assert shares["step"] == pytest.approx(60) and shares["input"] == pytest.approx(40)


def test_steps_that_wait_for_each_other_are_not_counted_twice(clock, goodput):
    first, second = Device(), Device()
    goodput.step(lambda: (None, first))
    clock.now += 1
    goodput.step(lambda: (None, second))
    clock.now += 4
    first.finish(goodput, 1)
    clock.now += 5
    assert goodput.shares()["step"] == pytest.approx(100)  # the second still runs
    second.finish(goodput, 2)
    clock.now += 10
    assert goodput.shares()["step"] == pytest.approx(50)
