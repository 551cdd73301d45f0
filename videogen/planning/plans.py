"""What a plan says: one JSON object, and the same as a table to read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from videogen.parallel.hlo import argument_bytes, parse
from videogen.parallel.roofline import Estimate, estimate
from videogen.parallel.topology import GIB, Topology
from videogen.planning.programs import Compiled

KINDS = {
    "state['params'": "parameters",
    "state['optimizer'": "optimizer",
    "state['ema'": "ema",
    "frozen": "frozen",
}
"""Argument of the train step -> kind of memory; all other arguments are ``inputs``."""

SHARES = 40
"""Operations a plan names; its table shows the first quarter."""


def plan_of(compiled: Compiled, topology: Topology, config: Any, assumed: list[str]) -> dict[str, Any]:
    """The plan of a compiled step.

    Keys: ``topology, slices, chips, mesh, remat, frozen, parameters, bytes_per_chip`` (by kind; ``activations`` is
    everything the step needs beside its arguments), ``hbm_bytes, fits, flops_per_step`` (of the model: once),
    ``recomputed_flops, compiled_flops`` (as the compiler has them, kernels added), ``collectives``, ``shares`` (what
    the step is made of, by operation), ``seconds``, ``mfu`` (``flops_per_step`` over peak times ``seconds.step``),
    ``bound``, ``run`` (steps, days, chip hours), ``assumptions``, ``plan_seconds``. What needs a compiled program is
    ``None`` where the compiler gave up for want of memory.
    """
    chip = topology.chip
    module = parse(compiled.hlo) if compiled.hlo else None
    available = compiled.available * chip.devices if compiled.available else topology.chip_bytes
    plan = {
        "topology": str(topology),
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": compiled.mesh,
        "remat": compiled.request.remat,
        "frozen": compiled.request.frozen,
        "parameters": sum(compiled.parameters.values()),
        "bytes_per_chip": _memory(argument_bytes(module) if module else {}, compiled.needed, chip.devices),
        "hbm_bytes": available,
        "fits": compiled.available is None and compiled.needed * chip.devices <= available,
        "flops_per_step": compiled.flops.model,
        "recomputed_flops": compiled.flops.recomputed,
    }
    timed = estimate(module, compiled.flops, topology, compiled.mesh, compiled.coordinates) if module else None
    plan |= _times(timed, compiled, topology, config.steps)
    plan["assumptions"] = [*assumed, *_assumptions(topology, compiled)]
    plan["plan_seconds"] = compiled.seconds
    return plan


def _memory(arguments: dict[str, float], needed: float, devices: int) -> dict[str, float]:
    kinds = dict.fromkeys((*KINDS.values(), "inputs"), 0.0)
    for name, size in arguments.items():
        kind = next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), "inputs")
        kinds[kind] += size * devices
    total = needed * devices
    return kinds | {"activations": max(total - sum(kinds.values()), 0.0), "total": total}


def _times(timed: Estimate | None, compiled: Compiled, topology: Topology, steps: int) -> dict[str, Any]:
    if timed is None:
        names = ("compiled_flops", "seconds", "mfu", "bound", "run")
        return dict.fromkeys(names) | {"collectives": [], "shares": []}
    peak = topology.chips * topology.chip.flops
    seconds = {name: getattr(timed, name) for name in ("compute", "hbm", "interconnect", "step")}
    days = steps * timed.step / 86400
    return {
        "compiled_flops": timed.compiled_flops * topology.devices,
        "collectives": [
            {
                "kind": t.kind,
                "axis": t.axis,
                "bytes": t.bytes * topology.chip.devices,
                "wire_bytes": t.wire_bytes * topology.chip.devices,
                "seconds": t.seconds,
                "count": t.count,
                "overlaps": t.overlaps,
            }
            for t in timed.traffic
        ],
        "shares": [dataclasses.asdict(share) for share in timed.shares[:SHARES]],
        "seconds": seconds,
        "mfu": compiled.flops.model / peak / timed.step,
        "bound": timed.bound,
        "run": {"steps": steps, "days": days, "chip_hours": days * 24 * topology.chips},
    }


def _assumptions(topology: Topology, compiled: Compiled) -> list[str]:
    chip = topology.chip
    link = "GPU inside a node" if chip.platform == "gpu" else "link"
    peaks = (
        f"peak rates per chip: {chip.flops / 1e12:.4g} TFLOP/s bf16, memory {chip.hbm_bandwidth / 1e9:.0f} GB/s, "
        f"{chip.link_bandwidth / 1e9:.0f} GB/s per {link} and direction, {chip.dcn_bandwidth / 1e9:.2f} GB/s to others"
    )
    lines = [
        peaks,
        "the step is a lower bound: instructions run one after another, each at the peak its products or its memory "
        "traffic allow, beside copies that were started ahead; nothing is calibrated on hardware",
        "collectives over replica, data and fsdp hide behind computation; those over tensor and context do not",
    ]
    if chip.tile > 1:
        lines.append(
            f"products that do not fill the {chip.tile} × {chip.tile} matrix unit take as long as those that do"
        )
    if any(topology.wrap):
        lines.append("slice axes that are rings: " + " ".join(f"{'yes' if w else 'no'}" for w in topology.wrap))
    if chip.platform == "gpu":
        lines.append(
            "cuDNN's attention, which cannot be compiled without a GPU, is a call of the same operands and results"
        )
    if compiled.flops.unknown:
        lines.append("kernels counted as nothing: " + ", ".join(sorted(compiled.flops.unknown)))
    return lines


def table(plan: dict[str, Any]) -> str:
    """A plan as text for people."""
    memory, fits = plan["bytes_per_chip"], plan["fits"]
    name = plan["topology"] + (f" × {plan['slices']} slices" if plan["slices"] > 1 else "")
    rows = [
        ("chips", f"{plan['chips']:,} ({name})"),
        ("mesh", f"{layout(plan['mesh'])}; remat {plan['remat']}; frozen {plan['frozen']}"),
        ("parameters", f"{plan['parameters']:,}"),
        (
            "memory",
            f"{memory['total'] / GIB:.2f} of {plan['hbm_bytes'] / GIB:.2f} GiB per chip: "
            + ("fits" if fits else "DOES NOT FIT"),
        ),
        *((f"  {kind}", f"{size / GIB:.2f} GiB") for kind, size in memory.items() if kind != "total" and size),
    ]
    model, again = plan["flops_per_step"], plan["recomputed_flops"]
    rows.append(("FLOPs per step", f"{model:.3e} (and {again:.3e} recomputed, {again / model:.0%})"))
    if plan["seconds"]:
        seconds = plan["seconds"]
        rows += [
            ("compute", f"{seconds['compute'] * 1e3:.4g} ms"),
            ("memory traffic", f"{seconds['hbm'] * 1e3:.4g} ms"),
            *(
                (
                    f"  {share['seconds'] * 1e3:.4g} ms",
                    f"{share['source']}: compute {share['compute'] * 1e3:.4g} ms, memory "
                    f"{share['hbm'] * 1e3:.4g} ms, {share['count']} times",
                )
                for share in plan["shares"][: SHARES // 4]
            ),
            ("interconnect", f"{seconds['interconnect'] * 1e3:.4g} ms"),
            *(
                (
                    f"  {c['kind']}",
                    f"{c['seconds'] * 1e3:.4g} ms over {c['axis']}: {c['bytes'] / GIB:.3f} GiB, {c['count']} times",
                )
                for c in plan["collectives"][:8]
            ),
            ("step", f"{seconds['step'] * 1e3:.4g} ms; most of it {plan['bound']}"),
            ("MFU", f"{plan['mfu']:.1%}"),
            (
                "run",
                f"{plan['run']['steps']:,} steps: {plan['run']['days']:.1f} days, "
                f"{plan['run']['chip_hours']:,.0f} chip hours",
            ),
        ]
    width = max(len(row[0]) for row in rows) + 2
    lines = [f"{label:<{width}}{value}" for label, value in rows]
    return "\n".join([*lines, "assumed:", *(f"  - {line}" for line in plan["assumptions"])])


def summary(plan: dict[str, Any]) -> dict[str, Any]:
    """What the ranking of a search tells of a plan."""
    return {
        "mesh": plan["mesh"],
        "remat": plan["remat"],
        "frozen": plan["frozen"],
        "fits": plan["fits"],
        "mfu": plan["mfu"],
        "step": plan["seconds"] and plan["seconds"]["step"],
        "bytes": plan["bytes_per_chip"]["total"],
        "bound": plan["bound"],
    }


def ranking(plans: list[dict[str, Any]]) -> str:
    """The candidates of a search as text, the best first."""
    lines = [f"{'mesh':<36} {'remat':<10} {'frozen':<8} {'GiB':>7} {'step ms':>9} {'MFU':>6}  bound"]
    for plan in map(summary, plans):
        speed = f"{plan['step'] * 1e3:>9.1f} {plan['mfu']:>6.1%}" if plan["step"] else f"{'':>16}"
        note = plan["bound"] if plan["fits"] else "does not fit"
        how = f"{layout(plan['mesh']):<36} {plan['remat']:<10} {plan['frozen']:<8}"
        lines.append(f"{how} {plan['bytes'] / GIB:>7.2f} {speed}  {note}")
    return "\n".join(lines)


def layout(mesh: Mapping[str, int]) -> str:
    """A mesh as text."""
    return " × ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
