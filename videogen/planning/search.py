"""Finds mesh, rematerialisation and place of frozen weights: estimates all layouts, compiles the best, ranks them."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from absl import logging
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh

from videogen.errors import UserError
from videogen.nn import REMAT_POLICIES
from videogen.parallel import AXES
from videogen.parallel.flops import count, inner_jaxprs
from videogen.parallel.mesh import BATCH_AXES
from videogen.parallel.topology import GIB, Topology
from videogen.planning.plans import layout, plan_of
from videogen.planning.programs import (
    AbstractRun,
    Request,
    abstract_run,
    abstract_step,
    check_batch,
    compile_for,
)
from videogen.training.state import FROZEN_LAYOUTS, frozen_shardings, state_shardings

COMPILED = 6
"""Candidates that are compiled."""

AT_ONCE = 2
"""Compilers that run side by side: each keeps about one core busy and takes 1 to 2 GB."""

PATIENCE = 25.0
"""Seconds after which no further candidate is compiled, once there is a plan: a search answers within a minute."""

MOST_MODEL_PARALLEL = 8
"""The largest tensor × context that is tried: activations cross those axes in every layer."""

MARGIN = 1.15
"""What the compiler needs above the estimate: padding and fragmentation."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a traced step says of a rematerialisation policy, over all devices.

    Attributes:
      flops: of the step, recomputation included.
      saved: bytes of activations the forward pass keeps for the backward pass.
      layer: bytes of the activations of one layer.
      kernels: whether there are custom kernels.
    """

    flops: float
    saved: float
    layer: float
    kernels: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh, a policy and a layout of frozen weights, with the estimated bytes and seconds on one device."""

    mesh: dict[str, int]
    remat: str
    frozen: str
    memory: float
    seconds: float


def search(config: Any, topology: Topology, assumed: list[str]) -> list[dict[str, Any]]:
    """Plans of the most promising layouts, those that fit first, the highest MFU first.

    Args:
      config: a completed stage config; its ``parallel.mesh``, ``remat`` and ``frozen`` are replaced.
      topology: the chips.
      assumed: what the config was completed with.

    Raises:
      UserError: no mesh can share the batch.
    """
    started, finished = time.monotonic(), 0
    chosen = choose(config, topology)

    def compile_candidate(candidate: Candidate) -> dict[str, Any] | None:
        nonlocal finished
        if finished and time.monotonic() - started > PATIENCE:
            logging.info("%s, remat %s: not compiled, for want of time", layout(candidate.mesh), candidate.remat)
            return None
        request = Request(str(topology), topology.slices, candidate.mesh, candidate.remat, candidate.frozen)
        try:
            plan = plan_of(compile_for(config, request), topology, config, assumed)
        except RuntimeError as error:
            logging.warning("%s, remat %s: %s", layout(candidate.mesh), candidate.remat, error)
            return None
        result = f"{plan['mfu']:.1%} MFU" if plan["fits"] else "does not fit"
        total = plan["bytes_per_chip"]["total"] / GIB
        logging.info("%s, remat %s: %s, %.1f GiB", layout(candidate.mesh), candidate.remat, result, total)
        finished += 1
        return plan

    with ThreadPoolExecutor(AT_ONCE) as pool:
        plans = [plan for plan in pool.map(compile_candidate, chosen) if plan]
    if not plans:
        raise RuntimeError("the compiler could compile none of the candidates; its messages are above")
    return sorted(plans, key=lambda plan: (not plan["fits"], -(plan["mfu"] or 0), plan["bytes_per_chip"]["total"]))


def choose(config: Any, topology: Topology) -> list[Candidate]:
    """The candidates worth compiling: the fastest by estimate among those that should fit, or else the smallest."""
    meshes = list(possible_meshes(config, topology))
    surveys: dict[str, Survey] = {}
    for remat in REMAT_POLICIES:
        if remat == "attention" and not surveys["full"].kernels:
            continue  # it keeps what kernels compute, so without kernels it is "full"
        config = config.copy_and_resolve_references()
        config.parallel.remat = remat
        run = abstract_run(config)
        surveys[remat] = survey(run, config, topology, meshes[0])
    every = []
    for mesh in meshes:
        for frozen in FROZEN_LAYOUTS if run.frozen and mesh["fsdp"] > 1 else FROZEN_LAYOUTS[:1]:
            held = held_bytes(run, topology, mesh, frozen)
            every += [estimated(held, topology, mesh, remat, frozen, surveys) for remat in surveys]
    fitting = [c for c in every if c.memory * MARGIN <= topology.chip_bytes / topology.chip.devices]
    logging.info(
        "%d layouts, %d of them should fit; compiling the best %d", len(every), len(fitting), min(COMPILED, len(every))
    )
    if not fitting:
        return sorted(every, key=lambda c: c.memory)[:COMPILED]
    fastest = sorted(fitting, key=lambda c: c.seconds)
    # Small networks gain nothing from sharded weights, which the estimate does not see: the best without comes second.
    replicated = [c for c in fastest if c.mesh["fsdp"] == 1][:1]
    chosen: list[Candidate] = []
    for candidate in fastest[:1] + replicated + fastest:
        # A few of a policy, and no neighbours: what the estimate cannot tell is which collectives the compiler chooses.
        same = [c for c in chosen if c.remat == candidate.remat]
        if len(same) < COMPILED // 2 and not any(_close(candidate.mesh, c.mesh) for c in same):
            chosen.append(candidate)
    return chosen[:COMPILED]


def _close(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two meshes differ little: the weights shared by less than four times as many chips."""
    ratio = max(one["fsdp"], other["fsdp"]) / min(one["fsdp"], other["fsdp"])
    return ratio < 4 and all(one[axis] == other[axis] for axis in ("tensor", "context"))


def possible_meshes(config: Any, topology: Topology) -> Iterator[dict[str, int]]:
    """Meshes over all devices whose data-parallel part divides the batch; slices are replicas.

    Where there are images, also with twice the replicas: two of them may share images that all devices could not.

    Raises:
      UserError: there is none.
    """
    refusal, found = None, False
    for replica in (topology.slices, 2 * topology.slices)[: 1 + bool(config.data.image_batch_size)]:
        for tensor, context, fsdp in itertools.product(*[_divisors(topology.devices // replica)] * 3):
            data, remainder = divmod(topology.devices, replica * tensor * context * fsdp)
            if remainder or tensor * context > MOST_MODEL_PARALLEL:
                continue
            mesh = dict(zip(AXES, (replica, data, fsdp, tensor, context), strict=True))
            try:
                check_batch(config, mesh)
            except UserError as error:
                refusal = refusal or error
                continue
            found = True
            yield mesh
    if not found:
        raise refusal


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def survey(run: AbstractRun, config: Any, topology: Topology, mesh: Mapping[str, int]) -> Survey:
    """Traces a train step; nothing is compiled."""
    abstract = abstract_mesh(topology, mesh)
    with jax.sharding.use_abstract_mesh(abstract):
        step, arguments = abstract_step(run, config, abstract)
        traced = step.trace(*arguments).jaxpr
    flops = count(traced)
    saved, layer = _saved(traced.jaxpr)
    return Survey(flops.model + flops.recomputed, saved, layer, bool(flops.kernels))


def abstract_mesh(topology: Topology, mesh: Mapping[str, int]) -> AbstractMesh:
    """A mesh of the chips without devices: enough to trace and to share out arrays."""
    kind = AbstractDevice(device_kind=topology.name, num_cores=1, platform=topology.chip.platform)
    return AbstractMesh(tuple(mesh[axis] for axis in AXES), AXES, abstract_device=kind)


def _saved(jaxpr: Any) -> tuple[float, float]:
    """Bytes the forward scans stack up for the backward ones, and the largest share of one layer."""
    total, layer = 0.0, 0.0
    for equation in jaxpr.eqns:
        if "transpose" in str(equation.source_info.name_stack):
            continue
        if equation.primitive.name == "scan":
            stacked = equation.outvars[equation.params["num_carry"] :]
            size = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in stacked)
            total += size
            layer = max(layer, size / equation.params["length"])
        else:
            for inner, _ in inner_jaxprs(equation):
                more, one = _saved(inner)
                total, layer = total + more, max(layer, one)
    return total, layer


def held_bytes(run: AbstractRun, topology: Topology, mesh: Mapping[str, int], frozen: str) -> tuple[float, ...]:
    """Bytes that a device has of the train state, of its parameters alone, and of the frozen weights."""
    abstract = abstract_mesh(topology, mesh)
    placement = state_shardings(run.modules, run.state, abstract)
    arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in run.frozen.items()}
    return (
        sharded_bytes(run.state, placement),
        sharded_bytes(run.state["params"], placement["params"]),
        sharded_bytes(arrays, frozen_shardings(run.frozen, abstract, frozen)),
    )


def estimated(
    held: tuple[float, ...],
    topology: Topology,
    mesh: dict[str, int],
    remat: str,
    frozen: str,
    surveys: dict[str, Survey],
) -> Candidate:
    """Estimates one layout by rules of thumb; the compiler has the last word.

    ``held`` are the ``held_bytes`` of the mesh with this place of frozen weights.
    """
    chip, mine = topology.chip, surveys[remat]
    batch_shards = math.prod(mesh[axis] for axis in BATCH_AXES)
    shards, fsdp, tensor, context = batch_shards * mesh["context"], mesh["fsdp"], mesh["tensor"], mesh["context"]
    state, weights, still = held
    # Gradients are as large as the weights; a layer's activations exist while its gradient is computed.
    memory = state + still + weights + (mine.saved + surveys["none"].layer) / shards

    links = 2 * max(chip.dimensions, 1) * chip.link_bandwidth / chip.devices
    computing = mine.flops * chip.devices / topology.devices / chip.flops
    # Activations are written and read, the state is read, written and cast, frozen weights are read.
    moving = (2 * mine.saved / shards + 3 * state + still) * chip.devices / chip.hbm_bandwidth
    # How much of the forward pass is done again, with its collectives.
    least, most = surveys["none"].flops, surveys["full"].flops
    repeated = (mine.flops - least) / (most - least) if most > least else 0.0
    # Weights are gathered in bfloat16 for the forward, backward and repeated forward pass (attention kernels, all that
    # some policies repeat, have none); gradients are summed.
    passes = 3 + round(repeated)
    gathered = passes * weights / 2 + (still if frozen == "sharded" else 0.0)
    gathering = gathered * (fsdp - 1) / links + weights / 2 / links
    # What the layers hand to each other, half of it forward: float32 sums over tensor four times per layer, shares of
    # the sequence exchanged over context six times. Few chips share an example: they use the links of one axis.
    residual = surveys["full"].saved / shards
    handed = 16 * residual * (tensor - 1) / tensor + 6 * residual * (context - 1) / context
    waiting = (1 + repeated / 2) * handed / (links / max(chip.dimensions, 1))
    # Something of every collective shows.
    return Candidate(mesh, remat, frozen, memory, max(computing + moving, gathering) + 0.1 * gathering + waiting)


def sharded_bytes(tree: Any, placement: Any) -> float:
    """Bytes of the largest share that a device has of a tree of abstract arrays."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, placement)
    return float(sum(jax.tree.leaves(sizes)))
