"""Accelerators that need not be there: what each chip can do, and its devices to compile for.

Peak rates are the vendors' published figures (bf16 products, dense). Link rates are bytes per second in one direction;
of a TPU that is half of a chip's bidirectional rate, shared out over its links (v6e: 800 GB/s, four links). Whether the
axes of a TPU slice wrap around follows the vendor's description of each generation. They are assumptions of every plan
and are printed with it.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from videogen.environment import COMPILING_FOR_TPUS
from videogen.errors import UserError, near_matches

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator; all rates are per chip.

    Attributes:
      platform: ``tpu``, ``gpu`` or ``cpu``.
      flops: peak bf16 FLOP/s.
      hbm_bytes: memory the compiler may use.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s in one direction, of one inter-chip link (TPU) or of all links to the node's switch (GPU).
      dcn_bandwidth: bytes/s in one direction to other slices (TPU) or nodes (GPU).
      tile: rows and columns of the matrix unit, which smaller products do not fill; 1 where that is not known.
      dimensions: of a slice; 0 for GPUs.
      largest: the shape of the largest slice.
      wraps: an axis of a multiple of this many chips is a ring.
      devices: JAX devices per chip.
    """

    platform: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    tile: int = 1
    dimensions: int = 0
    largest: tuple[int, ...] = ()
    wraps: int = 0
    devices: int = 1


_CORES = os.cpu_count() or 1
_MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

CHIPS = {
    "v4": Chip("tpu", 275e12, 30.75 * GIB, 1228e9, 50e9, 6.25e9, 128, 3, (16, 16, 16), 4),
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, 128, 2, (16, 16), 16),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, 128, 3, (16, 20, 28), 4),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, 256, 2, (16, 16), 16),
    "tpu7x": Chip("tpu", 2307e12, 189.5 * GIB, 7380e9, 100e9, 12.5e9, 256, 3, (16, 24, 24), 4, 2),
    "a100": Chip("gpu", 312e12, 80e9, 2039e9, 300e9, 25e9),
    "h100": Chip("gpu", 989e12, 80e9, 3350e9, 450e9, 50e9),
    "h200": Chip("gpu", 989e12, 141e9, 4800e9, 450e9, 50e9),
    # This machine, whose rates are not published: 16 float32 products and sums a cycle and core at 2 GHz, 20 GB/s.
    "cpu": Chip("cpu", _CORES * 64e9, _MACHINE_BYTES, 20e9, 20e9, 20e9),
}
GPUS_PER_NODE = 8
GPU_LIMITS = {
    "a100": (108, 8, 166912, 40 * 2**20),
    "h100": (132, 9, 232448, 50 * 2**20),
    "h200": (132, 9, 232448, 50 * 2**20),
}
"""Cores, compute capability, bytes of shared memory per block and of second-level cache."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """``slices`` equal slices of a chip, or GPU nodes.

    Attributes:
      name: key of ``CHIPS``.
      shape: chips along each axis of one slice; one number for GPUs.
      slices: how many slices, connected by the data-centre network.
    """

    name: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return CHIPS[self.name]

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """JAX devices: what the mesh is made of."""
        return self.chips * self.chip.devices

    @property
    def chip_bytes(self) -> float:
        """Memory of a chip; devices of a CPU share the machine's."""
        return self.chip.hbm_bytes / (self.chips if self.chip.platform == "cpu" else 1)

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which axes of a slice are rings."""
        return tuple(self.chip.wraps > 0 and size % self.chip.wraps == 0 for size in self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads ``v5p:4x4x4``, ``v6e:16x16``, ``h100:64`` or ``cpu:1`` (so many devices that share this machine).

    Args:
      text: chip and shape.
      slices: how many such slices.

    Raises:
      UserError: no such chip, or a shape its slices cannot have.
    """
    name, _, sizes = text.partition(":")
    name = {"v5": "v5p", "v5litepod": "v5e", "v7x": "tpu7x"}.get(name, name)
    if name not in CHIPS:
        raise UserError(f"unknown chip {name!r} in --topology={text}{near_matches(name, CHIPS)}")
    if slices < 1:
        raise UserError(f"--slices must be at least 1, got {slices}")
    chip = CHIPS[name]
    axes = max(chip.dimensions, 1)
    example = f"{name}:{'x'.join(['4'] * axes)}" if chip.dimensions else f"{name}:64"
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), sizes):
        raise UserError(f"a {name} topology is written like {example}; got {text!r}")
    shape = tuple(map(int, sizes.split("x")))
    if chip.platform == "gpu":
        if slices > 1:
            raise UserError("--slices is for TPUs; a GPU topology counts all GPUs, e.g. h100:64")
        if shape[0] > GPUS_PER_NODE and shape[0] % GPUS_PER_NODE:
            raise UserError(f"GPUs come in nodes of {GPUS_PER_NODE}; {text} is no multiple of that")
    elif chip.platform == "tpu" and any(
        size > most for size, most in zip(sorted(shape), sorted(chip.largest), strict=True)
    ):
        largest = "x".join(map(str, chip.largest))
        raise UserError(f"the largest {name} slice is {largest}; use several with --slices, got {text!r}")
    return Topology(name, shape, slices)


def require_compiler(topology: Topology) -> None:
    """Refuses a topology whose compiler is not installed.

    Raises:
      UserError: with the command that installs it.
    """
    if topology.chip.platform == "cpu":
        return
    tpu = topology.chip.platform == "tpu"
    package, extra = ("libtpu", "tpu") if tpu else ("jax_cuda12_plugin", "cuda")
    if importlib.util.find_spec(package) is None:
        kind = "TPUs" if tpu else "GPUs"
        raise UserError(f"planning for {kind} needs their compiler: pip install 'videogen[{extra}]'")


def absent_devices(topology: Topology) -> list[jax.Device]:
    """Devices of hardware that is not there, to build a mesh of and to compile for.

    Raises:
      UserError: the compiler of that platform is not installed, or cannot lay out the slice.
    """
    require_compiler(topology)
    if topology.chip.platform == "cpu":
        return jax.devices("cpu")[: topology.chips]
    return _tpu_devices(topology) if topology.chip.platform == "tpu" else _gpu_devices(topology)


_LOOK = """
import json, jax
devices = jax.devices()
shape = [max(axis) + 1 for axis in zip(*(getattr(d, "coords", (0,)) for d in devices))]
print(json.dumps([devices[0].platform, devices[0].device_kind, len(devices), shape]))
"""


def local_topology() -> str:
    """The devices of this machine as ``parse_topology`` reads them; a process of its own looks for them, and leaves
    them free.

    Raises:
      UserError: they cannot be reached, or no plan knows their rates.
    """
    found = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"the devices of this machine cannot be reached: {reason}")
    platform, kind, count, shape = json.loads(found.stdout.splitlines()[-1])
    if platform == "cpu":
        return f"cpu:{count}"
    name = next((name for begins, name in KINDS.items() if kind.startswith(begins)), None)
    if name is None:
        raise UserError(f"no plan knows the chip {kind!r} of this machine; name a similar one: {', '.join(CHIPS)}")
    if CHIPS[name].platform == "gpu":
        return f"{name}:{count}"
    return f"{name}:{'x'.join(map(str, shape[: CHIPS[name].dimensions]))}"


def _tpu_devices(topology: Topology) -> list[jax.Device]:
    os.environ.update(COMPILING_FOR_TPUS | os.environ)
    # libtpu counts three axes, for flat slices too.
    settings = {"num_slices": topology.slices, "wrap": [*topology.wrap, False, False][:3]}
    if math.prod(topology.shape) == 1:
        settings["chips_per_host_bounds"] = [1, 1, 1]
    if topology.name == "v4":
        # Both cores of a chip as one device, as JAX runs them.
        settings["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(str(topology), "tpu", **settings).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).rpartition("Description: ")[2] or str(error)
        raise UserError(f"there is no slice {topology}: {reason}") from error


def _gpu_devices(topology: Topology) -> list[jax.Device]:
    per_node = min(topology.chips, GPUS_PER_NODE)
    settings = {
        "topology": f"1x{topology.chips // per_node}x{per_node}",
        "target_config": _gpu_target(topology.name, topology.chip),
    }
    return list(topologies.get_topology_desc("", "cuda", **settings).devices)


def _gpu_target(name: str, chip: Chip) -> str:
    """XLA's description of a GPU, as a text proto."""
    cores, capability, shared, cache = GPU_LIMITS[name]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {shared + 1024} shared_memory_per_block_optin: {shared}
          core_count: {cores} fpus_per_core: {64 if capability == 8 else 128} clock_rate_ghz: 1.7
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {chip.hbm_bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {chip.hbm_bytes:.0f}
          cuda_compute_capability {{ major: {capability} }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 8 }}
        device_description_str: "{name}"
    """


KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100-SXM": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}
"""How JAX's name of a device begins -> key of ``CHIPS``; the first that fits counts."""


def peak_flops(devices: Sequence[jax.Device]) -> float:
    """Peak bf16 FLOP/s of devices that are there, together; 0 where their kind is not known."""
    name = next((name for kind, name in KINDS.items() if devices[0].device_kind.startswith(kind)), None)
    return len(devices) * CHIPS[name].flops / CHIPS[name].devices if name else 0.0
