"""The device mesh: one set of axis names from a laptop to a pod."""

import itertools
import math
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from videogen.errors import UserError, near_matches

AXES = ("replica", "data", "fsdp", "tensor", "context")
BATCH_AXES = ("replica", "data", "fsdp")


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh ``replica × data × fsdp × tensor × context`` over all devices.

    Args:
      sizes: devices along each axis; one of them may be -1 and takes what is left; absent axes are 1.
      devices: defaults to every device of the job.

    Raises:
      UserError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    for name in sizes:
        if name not in AXES:
            raise UserError(f"unknown mesh axis {name!r}{near_matches(name, AXES)}")
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        raise UserError(f"mesh sizes must be positive, with at most one -1; got {shape}")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if free:
        shape[free[0]] = max(len(devices) // fixed, 1)
    if math.prod(shape.values()) != len(devices):
        layout = " × ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "1"
        raise UserError(
            f"the mesh {layout} needs {math.prod(shape.values())} devices but there are {len(devices)}; "
            f"set parallel.mesh so that the product is {len(devices)}, or one axis to -1"
        )
    return Mesh(_arrange(tuple(shape.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse_mesh(text: str) -> dict[str, int]:
    """Reads the sizes of ``make_mesh`` as a flag gives them: ``data=4,fsdp=2``.

    Raises:
      UserError: no whole numbers of axes, or an axis twice.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if not re.fullmatch(r"-?\d+", size) or name in sizes:
            raise UserError(f"a mesh is written like data=4,fsdp=2, each axis once; got {text!r}")
        sizes[name] = int(size)
    return sizes


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices in the shape of the mesh: near ones along the inner axes, the slices of a job along ``replica``."""
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise UserError(f"the devices are in {slices} slices; set parallel.mesh.replica to a multiple of {slices}")
    inner, outer = (shape[0] // slices, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def on_mesh() -> bool:
    """Whether the traced code is to be spread over devices: in a mesh of several, and not inside ``shard_map``."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and not mesh.manual_axes


def mesh_axis_size(axis: str) -> int:
    """Size of ``axis`` in the mesh entered with ``jax.set_mesh``; 1 outside any mesh and inside ``shard_map``."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1) if on_mesh() else 1


def target_platform() -> str:
    """Platform (``cpu``, ``gpu``, ``tpu``) of the entered mesh's devices, which may be absent hardware that is planned.

    Outside any mesh it is the platform computations run on by default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def batch_axes(mesh_shape: Mapping[str, int], size: int) -> tuple[str, ...]:
    """The data-parallel axes that share a batch of ``size`` evenly: all of them, or else those that make most shares.

    Devices along the others hold the same examples.
    """
    subsets = (axes for count in range(len(BATCH_AXES), -1, -1) for axes in itertools.combinations(BATCH_AXES, count))
    shares = {axes: math.prod(mesh_shape.get(axis, 1) for axis in axes) for axes in subsets}
    return max((axes for axes in shares if size % shares[axes] == 0), key=shares.get)


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """Sharding of the leading axis of a batch of ``size`` examples."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh.shape, size)))
