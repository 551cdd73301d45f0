"""How long a compiled step takes at least, from what its program computes, moves and sends at the chips' peak rates.

Instructions of one device run one after another, each as long as its matrix products or its memory traffic need,
whichever is longer. Collectives over the batch axes (weight gathers, gradient sums) are taken to hide behind
computation; those over ``tensor`` and ``context`` wait for activations, so they are added.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from videogen.parallel.flops import Flops
from videogen.parallel.hlo import Collective, Module, collectives
from videogen.parallel.hlo_cost import work
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
    total, sums = 0.0, collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0])
    kernels: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for item in work(module, chip.tile):
        busy, moving = item.times * item.filled / peak, item.times * item.moved / memory_rate
        total += item.times * item.flops
        if item.kernel:
            _add(kernels[item.kernel], moving, item.times)
        else:
            _add(sums[item.source], max(busy, moving), busy, moving, item.times)
    for name, (moving, times) in kernels.items():
        busy = flops.kernels_filled.get(name, 0.0) / peak
        _add(sums[name], max(busy, moving), busy, moving, times)
    shares = sorted((Share(source, *values) for source, values in sums.items()), key=lambda share: -share.seconds)
    alone, compute, hbm = (sum(getattr(share, name) for share in shares) for name in ("seconds", "compute", "hbm"))
    traffic = sorted(summarise(collectives(module), topology, mesh, coordinates), key=lambda t: -t.seconds)
    hidden = sum(t.seconds for t in traffic if t.overlaps)
    exposed = sum(t.seconds for t in traffic if not t.overlaps)
    step, compiled = max(alone, hidden) + exposed, total + sum(flops.kernels.values())
    return Estimate(compute, hbm, hidden + exposed, step, compiled, traffic, shares)


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
