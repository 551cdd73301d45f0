"""How long a compiled step takes at least, from what its program computes, moves and sends at the chips' peak rates.

Instructions of one device run one after another, each as long as its matrix products or its memory traffic need,
whichever is longer. Copies that the compiler starts ahead of their use, such as those of weights into on-chip memory,
take the memory's time that the instructions until then leave over. Collectives over the batch axes (weight gathers,
gradient sums) are taken to hide behind computation; those over ``tensor`` and ``context`` wait for activations, so they
are added.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from videogen.parallel.flops import Flops
from videogen.parallel.hlo import Collective, Module, collectives
from videogen.parallel.hlo_cost import Work, work
from videogen.parallel.mesh import AXES, BATCH_AXES
from videogen.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: HLO opcode.
      axis: mesh axes, joined by commas.
      bytes: size of the gathered or reduced arrays on one device, per step.
      wire_bytes: what one device sends per step.
      seconds: how long that takes.
      count: how many run per step.
    """

    kind: str
    axis: str
    bytes: float
    wire_bytes: float
    seconds: float
    count: int

    @property
    def overlaps(self) -> bool:
        """Whether it is taken to hide behind computation."""
        return set(self.axis.split(",")) <= set(BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class Share:
    """The instructions that come from one kind of operation of the traced step and have equal results.

    Attributes:
      source: the operation, as ``hlo_cost.Work`` names it, or the kernel.
      seconds: what they add to the step.
      compute, hbm: what their products and their memory traffic would take alone.
      count: how many run per step.
    """

    source: str
    seconds: float
    compute: float
    hbm: float
    count: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds per step, and what they are made of.

    Attributes:
      compute, hbm, interconnect: what each would take alone.
      step: the estimate of the step.
      compiled_flops: matrix products of one device in the compiled program, kernels included.
      traffic: the collectives, the longest first.
      shares: what the step is made of apart from them, the longest first.
    """

    compute: float
    hbm: float
    interconnect: float
    step: float
    compiled_flops: float
    traffic: list[Traffic]
    shares: list[Share]

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "hbm", "interconnect"), key=lambda name: getattr(self, name))


def estimate(
    module: Module,
    flops: Flops,
    topology: Topology,
    mesh: Mapping[str, int],
    coordinates: Sequence[tuple[int, ...]],
) -> Estimate:
    """Estimates the step of a compiled program.

    Args:
      module: the optimised program of one device.
      flops: the count of the traced step, which knows what the kernels compute.
      topology: the chips.
      mesh: devices along each mesh axis.
      coordinates: ``(slice, node, *place on the slice)`` of every device of the flattened mesh.
    """
    chip = topology.chip
    peak = chip.flops / chip.devices
    memory_rate = chip.hbm_bandwidth / chip.devices
    items, runs = list(work(module, chip.tile)), collections.Counter()
    for item in items:
        runs[item.kernel] += item.times

    def compute_seconds(item: Work) -> float:
        filled = flops.kernels_filled.get(item.kernel, 0.0) / runs[item.kernel] if item.kernel else item.filled
        return filled / peak

    sums, sources = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0]), {item.name: item.source for item in items}
    timed = [(item, compute_seconds(item), item.moved / memory_rate) for item in items]
    for (item, busy, moving), seconds in zip(timed, durations(timed), strict=True):
        # What is awaited counts as often as it was started.
        source, times = sources.get(item.awaits) or item.kernel or item.source, item.times
        _add(sums[source], times * seconds, times * busy, times * moving, 0 if item.awaits else times)
    shares = sorted((Share(source, *values) for source, values in sums.items()), key=lambda share: -share.seconds)
    alone, compute, hbm = (sum(getattr(share, name) for share in shares) for name in ("seconds", "compute", "hbm"))
    traffic = sorted(summarise(collectives(module), topology, mesh, coordinates), key=lambda t: -t.seconds)
    hidden = sum(t.seconds for t in traffic if t.overlaps)
    exposed = sum(t.seconds for t in traffic if not t.overlaps)
    step = max(alone, hidden) + exposed
    compiled = sum(item.times * item.flops for item in items) + sum(flops.kernels.values())
    return Estimate(compute, hbm, hidden + exposed, step, compiled, traffic, shares)


def durations(timed: Iterable[tuple[Work, float, float]]) -> Iterator[float]:
    """How long each instruction takes once.

    A start takes no time itself: its copy goes on while instructions of its computation leave memory idle, behind the
    copies started before it, and what awaits it takes as long as is then left of it.

    Args:
      timed: instructions in their order, with the seconds that their products and their memory traffic take alone.
    """
    copying: dict[int, dict[str, float]] = collections.defaultdict(dict)
    for item, busy, moving in timed:
        left = copying[item.place]
        if item.starts:
            left[item.name] = moving
            yield 0.0
            continue
        if item.awaits:
            yield left.pop(item.awaits, 0.0)
            continue
        idle = max(busy - moving, 0.0)
        for name in list(left):
            used = min(idle, left[name])
            left[name] -= used
            idle -= used
        yield max(busy, moving)


def _add(sums: list[float], *values: float) -> None:
    for i, value in enumerate(values):
        sums[i] += value


def summarise(
    found: Sequence[Collective],
    topology: Topology,
    mesh: Mapping[str, int],
    coordinates: Sequence[tuple[int, ...]],
) -> list[Traffic]:
    """Adds up collectives by kind and mesh axes."""
    sums: dict[tuple[str, str], list[float]] = {}
    for collective in found:
        group = collective.group or tuple(range(len(coordinates)))
        axis = "replica" if collective.dcn else mesh_axes(group, mesh)
        if not axis:
            continue
        size = topology.slices if collective.dcn else len(group)
        sent = collective.payload * _sent_share(collective.kind, size)
        rate = topology.chip.dcn_bandwidth if collective.dcn else bandwidth(topology, [coordinates[m] for m in group])
        runs, entry = collective.times, sums.setdefault((collective.kind, axis), [0.0, 0.0, 0.0, 0])
        _add(entry, collective.payload * runs, sent * runs, sent * runs / rate, runs)
    return [Traffic(kind, axis, *values[:3], int(values[3])) for (kind, axis), values in sums.items()]


def _sent_share(kind: str, size: int) -> float:
    """What a device of a ring sends, as a share of the whole array."""
    if kind == "collective-permute":
        return 1.0
    share = (size - 1) / size
    return 2 * share if kind == "all-reduce" else share


def mesh_axes(group: Sequence[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the members of a group differ, joined by commas."""
    varying, stride = [], math.prod(mesh[axis] for axis in AXES)
    for axis in AXES:
        stride //= mesh[axis]
        if len({member // stride % mesh[axis] for member in group}) > 1:
            varying.append(axis)
    return ",".join(varying)


def bandwidth(topology: Topology, members: Sequence[tuple[int, ...]]) -> float:
    """Bytes/s in one direction that a device of a group has to the others.

    On a TPU slice: two links for every ring of the slice the group runs along, one for a line. Between slices, and
    between GPU nodes, every chip has its share of the network.
    """
    chip = topology.chip
    if chip.platform == "gpu":
        nodes = len({member[1] for member in members})
        return (
            chip.link_bandwidth if nodes == 1 else min(chip.link_bandwidth, chip.dcn_bandwidth * len(members) / nodes)
        )
    if len({member[0] for member in members}) > 1:
        return chip.dcn_bandwidth / chip.devices
    links = 0
    for axis, size in enumerate(topology.shape):
        along = len({member[2 + axis] for member in members})
        if along > 1:
            links += 2 if along == size and topology.wrap[axis] else 1
    # Devices of one chip are closer than any link; two rings' worth is the least they have.
    return (links or 4) * chip.link_bandwidth / chip.devices
