"""Compiles the real train step of a config for hardware that is not there, in a process that can be stopped early.

The compiler writes what a plan needs (the optimised program and its memory report) before it generates code, which
takes most of its time. So the compilation runs in a child process with the compiler's dumps on, and the child is
stopped as soon as they are complete.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from videogen import tasks
from videogen.configuration import load_config, save_config
from videogen.data.inputs import abstract_batch, check_batch
from videogen.errors import UserError
from videogen.parallel import AXES, batch_sharding, make_mesh
from videogen.parallel.flops import Flops, count
from videogen.parallel.topology import GIB, Topology, absent_devices, parse_topology
from videogen.tasks.base import PUBLISHED
from videogen.training.state import (
    State,
    Structure,
    frozen_shardings,
    new_state,
    parameter_count,
    state_shardings,
    structure_of,
)
from videogen.training.step import jit_train_step

T5_V1_1 = {
    512: {"head_width": 64, "mlp_width": 1024, "layers": 8, "heads": 6},
    768: {"head_width": 64, "mlp_width": 2048, "layers": 12, "heads": 12},
    1024: {"head_width": 64, "mlp_width": 2816, "layers": 24, "heads": 16},
    2048: {"head_width": 64, "mlp_width": 5120, "layers": 24, "heads": 32},
    4096: {"head_width": 64, "mlp_width": 10240, "layers": 24, "heads": 64},
}
"""The published T5 v1.1 encoders by width: what a config without a text encoder's folder is planned with."""

_POLL_SECONDS = 0.1
_UNITS = {"M": 2**20, "G": GIB, "T": 2**40}
_REQUEST, _CONFIG, _TRACED, _FAILED, _COMPILED = (
    "request.json",
    "config.json",
    "traced.json",
    "failed.json",
    "done.json",
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
      topology: chips, e.g. ``v5p:4x4x4``.
      slices: how many such slices.
      mesh: devices along each mesh axis; one may be -1.
      remat: a name in ``nn.REMAT_POLICIES``.
      frozen: a name in ``training.state.FROZEN_LAYOUTS``.
      full: compile to the end rather than until the memory report.
    """

    topology: str
    slices: int
    mesh: Mapping[str, int]
    remat: str
    frozen: str
    full: bool = False


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a request.

    Attributes:
      request: the request.
      mesh: devices along each mesh axis.
      coordinates: ``(slice, node, *place on the slice)`` of each device, in the order of the flattened mesh.
      parameters: trained parameters by group.
      flops: counted from the traced step.
      hlo: text of the optimised program of one device; empty if the compiler gave up before.
      needed: bytes of memory of one device.
      available: bytes of memory the compiler may use on one device, where it ran out of it.
      seconds: wall time of the plan.
    """

    request: Request
    mesh: dict[str, int]
    coordinates: list[tuple[int, ...]]
    parameters: dict[str, int]
    flops: Flops
    hlo: str
    needed: float
    available: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """What a run is made of, without arrays: shapes in place of parameters, no checkpoint read."""

    task: tasks.Task
    structure: Structure
    modules: dict[str, nnx.Module]
    state: State
    frozen: dict[str, nnx.Module]


def abstract_run(config: Any) -> AbstractRun:
    """The abstract run of a completed config."""
    task = tasks.build(config)
    structure, modules = structure_of(task, config)
    state = jax.eval_shape(lambda: new_state(task, structure, config))
    return AbstractRun(task, structure, modules, state, nnx.eval_shape(lambda: task.frozen(None)))


def abstract_step(run: AbstractRun, config: Any, mesh: Mesh | AbstractMesh) -> tuple[Any, tuple[Any, Any, Any]]:
    """The jitted train step as the training loop compiles it, and its abstract arguments; call it inside the mesh."""
    placement = state_shardings(run.modules, run.state, mesh)
    split = {name: nnx.split(module) for name, module in run.frozen.items()}
    graphs = {name: graph for name, (graph, _) in split.items()}
    weights = {name: nnx.to_pure_dict(values) for name, (_, values) in split.items()}
    frozen_placement = frozen_shardings(run.frozen, mesh, config.parallel.frozen)
    step = jit_train_step(run.task, run.structure, graphs, config, mesh, placement, frozen_placement)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, x.shape[0])),
        abstract_batch(config, run.task),
    )
    return step, (run.state, weights, batch)


def complete_for_planning(config: Any) -> list[str]:
    """Fills in what a run would learn from its frozen modules; returns what was assumed."""
    assumed = []
    tasks.class_of(config).complete(config, {})
    for name, what in tasks.class_of(config).parts_of(config).items():
        if name not in config.parts:
            raise UserError(f"config.parts.{name} is missing: it is a frozen part of this {config.task}")
        model = config.parts[name].model
        if what == PUBLISHED and set(model) == {"name", "width"}:
            if model.width not in T5_V1_1:
                widths = ", ".join(map(str, T5_V1_1))
                raise UserError(
                    f"no T5 v1.1 encoder has width {model.width} (they have {widths}); "
                    f"set config.parts.{name}.checkpoint to the encoder's folder"
                )
            common = {"vocabulary_size": 32128, "gated": True, "buckets": 32, "max_distance": 128, "epsilon": 1e-6}
            config.parts[name].model = {"name": model.name, "width": model.width, **common, **T5_V1_1[model.width]}
            assumed.append(f"text encoder: T5 v1.1 of width {model.width}, frozen, in {config.parallel.dtype}")
    return assumed


def compile_for(config: Any, request: Request) -> Compiled:
    """Compiles the train step of a config for absent hardware in a child process.

    Raises:
      UserError: what is asked for cannot be laid out, or the compiler for that hardware is not installed.
      RuntimeError: the compiler failed for another reason than memory.
    """
    with tempfile.TemporaryDirectory(prefix="videogen_plan_") as folder:
        folder, started = Path(folder), time.monotonic()
        save_config(folder / _CONFIG, config)
        (folder / _REQUEST).write_text(json.dumps(dataclasses.asdict(request)))
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder)],
                env=_environment(folder, parse_topology(request.topology, request.slices)),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                _wait(child, folder, request.full)
            finally:
                child.kill()
                child.wait()
        return _read(folder, request, started)


def _environment(folder: Path, topology: Topology) -> dict[str, str]:
    # Kernels for GPUs are tuned by timing them, which needs one; library calls are not.
    flags = (
        f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_train_step "
        "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
    )
    if topology.chip.platform == "cpu":
        flags += f" --xla_force_host_platform_device_count={topology.devices}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Entries for absent devices are written but cannot be read back.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(tasks.__file__).parents[2]), os.getenv("PYTHONPATH")])),
    }


def _wait(child: subprocess.Popen, folder: Path, full: bool) -> None:
    """Returns when the child has ended or, for a quick plan, has written all that is needed."""
    before = -1
    while child.poll() is None:
        # The last file before code generation for TPUs; for GPUs that is the memory report.
        if not full and any(folder.glob("*after_optimizations_after_buffer_assignment.txt")):
            return
        size = sum(report.stat().st_size for report in folder.glob("*gpu_after_optimizations-memory-usage-report.txt"))
        if not full and size and size == before:
            return
        before = size
        time.sleep(_POLL_SECONDS)


def _read(folder: Path, request: Request, started: float) -> Compiled:
    failed = folder / _FAILED
    failure = json.loads(failed.read_text()) if failed.exists() else {}
    if "mistake" in failure:
        raise UserError(failure["mistake"])
    reports = list(folder.glob("*after_optimizations-memory-usage-report.txt"))
    if not reports and not failure:
        log = (folder / "log").read_text()
        reasons = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)\b.*)", log, re.MULTILINE)
        raise RuntimeError(f"the compiler stopped: {(reasons or log.strip().splitlines() or ['without a word'])[-1]}")
    traced = json.loads((folder / _TRACED).read_text())
    traced["flops"]["unknown"] = set(traced["flops"]["unknown"])
    needed = failure.get("needed", 0.0)
    if reports:
        needed = max(needed, float(re.search(r"Total bytes: (\d+)", reports[0].read_text())[1]))
    programs = list(folder.glob("*after_optimizations.txt"))
    return Compiled(
        request=request,
        mesh=traced["mesh"],
        coordinates=[tuple(place) for place in traced["coordinates"]],
        parameters=traced["parameters"],
        flops=Flops(**traced["flops"]),
        hlo=programs[0].read_text() if programs else "",
        needed=needed,
        available=failure.get("available"),
        seconds=time.monotonic() - started,
    )


def coordinates(device: jax.Device) -> tuple[int, ...]:
    """``(slice, node, *place on the slice)`` of a device."""
    return (getattr(device, "slice_index", None) or 0, device.process_index, *getattr(device, "coords", (device.id,)))


def _main(folder: Path) -> None:
    """The child: traces, writes what it counted, compiles."""
    request = Request(**json.loads((folder / _REQUEST).read_text()))
    try:
        lowered = _lower(load_config(folder / _CONFIG), request, folder)
    except UserError as error:
        (folder / _FAILED).write_text(json.dumps({"mistake": str(error)}))
        return
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = [float(size) * _UNITS[unit] for size, unit in re.findall(r"([\d.]+)([MGT])\b", str(error))]
        (folder / _FAILED).write_text(json.dumps(dict(zip(("needed", "available"), sizes, strict=False))))


def _lower(config: Any, request: Request, folder: Path) -> Any:
    topology: Topology = parse_topology(request.topology, request.slices)
    mesh = make_mesh(request.mesh, absent_devices(topology))
    check_batch(config, mesh.shape)
    config.parallel.remat, config.parallel.frozen = request.remat, request.frozen
    # Outside the mesh: what a task computes while it is built needs a device that is here.
    run = abstract_run(config)
    with jax.set_mesh(mesh):
        step, arguments = abstract_step(run, config, mesh)
        traced = step.trace(*arguments)
        flops = dataclasses.asdict(count(traced.jaxpr, topology.chip.tile))
        record = {
            "mesh": {axis: mesh.shape[axis] for axis in AXES},
            "coordinates": [coordinates(device) for device in mesh.devices.flat],
            "parameters": {group: parameter_count(params) for group, params in arguments[0]["params"].items()},
            "flops": flops | {"unknown": sorted(flops["unknown"])},
        }
        (folder / _TRACED).write_text(json.dumps(record))
        return traced.lower()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
