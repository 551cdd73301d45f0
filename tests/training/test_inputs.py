"""Which examples a process reads: those that its devices hold."""

from types import SimpleNamespace

import pytest

from videogen.errors import UserError
from videogen.training import inputs


@pytest.fixture
def held(monkeypatch):
    """Makes devices of this process (0) and of others hold slices of a batch."""

    def hold(*slices: tuple[int, int, int]) -> None:
        devices = {Device(process): (slice(start, stop),) for process, start, stop in slices}
        sharding = SimpleNamespace(devices_indices_map=lambda shape: devices)
        monkeypatch.setattr(inputs, "batch_sharding", lambda mesh, size: sharding)

    return hold


class Device:
    """Equal to itself only, as devices are."""

    def __init__(self, process_index: int):
        self.process_index = process_index


def test_a_process_alone_reads_the_batch(held):
    held((0, 0, 4), (0, 4, 8))
    assert inputs.share(8, mesh=None) == (0, 1)


def test_processes_with_examples_of_their_own_read_those(held):
    held((1, 0, 2), (1, 2, 4), (0, 4, 6), (0, 6, 8))
    assert inputs.share(8, mesh=None) == (1, 2)


def test_processes_that_hold_the_same_examples_read_the_same(held):
    held((0, 0, 4), (1, 0, 4), (2, 4, 8), (3, 4, 8))
    assert inputs.share(8, mesh=None) == (0, 2)
    held((0, 0, 8), (1, 0, 8))
    assert inputs.share(8, mesh=None) == (0, 1)


@pytest.mark.parametrize("slices", [((0, 0, 4), (1, 2, 6), (2, 6, 8)), ((0, 0, 2), (1, 2, 8))])
def test_unequal_shares_are_refused(held, slices):
    held(*slices)
    with pytest.raises(UserError, match="overlapping parts of a batch of 8"):
        inputs.share(8, mesh=None)
