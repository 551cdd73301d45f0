"""When a device's memory is used up: one line that says what takes it and which settings help most."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from videogen.parallel.mesh import BATCH_AXES
from videogen.runs.stops import Stopped

GIB = 2**30

KINDS = {"params": "parameters", "variables": "parameters", "optimizer": "optimizer", "ema": "ema"}
"""Part of the state -> kind of memory, as a plan names it (``planning.plans``)."""

SHARE_LEFT = {"full": 0.4, "attention": 0.45, "dots": 0.7}
"""Remat policy -> the share of the activations that it leaves, about."""


class OutOfMemory(Stopped):
    """The memory of a device is used up; the message says by what, and what helps."""


def held(state: Any, placement: Any, frozen: Any, frozen_placement: Any, batch: Any) -> dict[str, float]:
    """Bytes that the arguments of a train step take on one device, by kind.

    Args:
      state: its (abstract) arrays.
      placement: their shardings.
      frozen: the (abstract) arrays of frozen modules.
      frozen_placement: their shardings.
      batch: (abstract) arrays with their shardings.
    """
    kinds = dict.fromkeys((*dict.fromkeys(KINDS.values()), "frozen", "inputs"), 0.0)
    for part, tree in state.items():
        kinds[KINDS.get(part, "inputs")] += _bytes(tree, placement[part])
    kinds["frozen"] += _bytes(frozen, frozen_placement)
    kinds["inputs"] += _bytes(batch, jax.tree.map(lambda x: x.sharding, batch))
    return kinds


def _bytes(tree: Any, shardings: Any) -> float:
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return float(sum(jax.tree.leaves(sizes)))


def breakdown(kinds: Mapping[str, float], activations: float | None) -> str:
    """The kinds of memory in words, the largest first.

    Args:
      kinds: bytes on one device, from ``held``.
      activations: what a step needs beside its arguments; ``None`` where that is not known.
    """
    every = {**kinds, **({} if activations is None else {"activations": activations})}
    listed = sorted(((size, kind) for kind, size in every.items() if size), reverse=True)
    words = ", ".join(f"{kind} {size_text(size)}" for size, kind in listed)
    return words + (", and activations, whose size is not known" if activations is None else "")


def remedies(kinds: Mapping[str, float], activations: float | None, config: Any, mesh: Mapping[str, int]) -> list[str]:
    """The settings that free most memory, the best first, each with about how much that is.

    Args:
      kinds, activations: as for ``breakdown``; activations that are not known are taken to be as large as the rest.
      config: the stage config.
      mesh: devices along each axis.
    """
    state = sum(kinds.get(kind, 0.0) for kind in ("parameters", "optimizer", "ema"))
    activations = sum(kinds.values()) if activations is None else activations
    groups = math.prod(mesh[axis] for axis in BATCH_AXES)
    mine = max(config.data.batch_size // groups // config.accumulate, 1)
    freed: dict[str, float] = {}
    if (others := mesh["data"]) > 1:
        shared = f"parallel.mesh.fsdp={mesh['fsdp'] * others} with parallel.mesh.data=1"
        freed[shared] = state * (1 - 1 / others)
    if mine > 1:
        freed[f"accumulate={config.accumulate * (mine if mine % 2 else 2)}"] = activations / 2
        freed[f"data.batch_size={config.data.batch_size // mine * (mine // 2)}"] = activations / 2
    if config.parallel.remat != "full":
        freed["parallel.remat=full"] = activations * (1 - SHARE_LEFT["full"] / SHARE_LEFT.get(config.parallel.remat, 1))
    if config.parallel.dtype == "float32":
        freed["parallel.dtype=bfloat16"] = activations / 2
    if config.parallel.frozen == "whole" and mesh["fsdp"] > 1:
        freed["parallel.frozen=sharded"] = kinds.get("frozen", 0.0) * (1 - 1 / mesh["fsdp"])
    if config.ema.decay:
        freed["ema.decay=0"] = kinds.get("ema", 0.0)
    if mesh["data"] == 1:
        freed["more devices along parallel.mesh.fsdp"] = state / 2
    best = sorted(freed, key=freed.get, reverse=True)[:3]
    return [f"{setting} (frees about {size_text(freed[setting])})" for setting in best]


def message(
    needed: float | None,
    available: float | None,
    kinds: Mapping[str, float],
    activations: float | None,
    config: Any,
    mesh: Mapping[str, int],
) -> str:
    """One line of what was needed, of what it is made, and what helps."""
    total = f"needs {size_text(needed)}" if needed else "needs more than it has"
    has = f" and has {size_text(available)}" if available else ""
    return (
        f"out of memory: a device {total}{has}: {breakdown(kinds, activations)}; what helps most: "
        f"{'; '.join(remedies(kinds, activations, config, mesh))}. python -m videogen.plan --topology=local with the "
        "same --config tells beforehand"
    )


@contextlib.contextmanager
def memory_errors(kinds: Mapping[str, float], config: Any, mesh: Mesh, available: float | None) -> Iterator[None]:
    """Turns the compiler's or the device's word that its memory is used up into ``OutOfMemory``.

    Args:
      kinds: from ``held``.
      config: the stage config.
      mesh: the devices.
      available: bytes of a device, where that is known.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # The compiler says how much the whole program needs; a device only what it could not allocate in the end.
        used = re.search(r"[Uu]sed ([\d.]+)([MGT]) of ([\d.]+)([MGT])", str(error))
        needed = float(used[1]) * _UNITS[used[2]] if used else None
        activations = max(needed - sum(kinds.values()), 0.0) if needed else None
        raise OutOfMemory(message(needed, available, kinds, activations, config, dict(mesh.shape))) from error


def check_program(program: Any, kinds: Mapping[str, float], config: Any, mesh: Mesh, available: float) -> None:
    """Refuses a compiled step that needs more memory than a device has, before it runs.

    Raises:
      OutOfMemory: says what takes it, and what helps.
    """
    if (report := program.memory_analysis()) is None:
        return
    activations = float(report.temp_size_in_bytes)
    if (needed := sum(kinds.values()) + activations) > available:
        raise OutOfMemory(message(needed, available, kinds, activations, config, dict(mesh.shape)))


_UNITS = {"M": 2**20, "G": GIB, "T": 2**40}


def size_text(count: float) -> str:
    """Bytes in words, in MiB or GiB."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"
