"""The device mesh: one set of axis names from a laptop to a pod."""

import math
from collections.abc import Mapping

import jax
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
    return jax.make_mesh(tuple(shape.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def mesh_axis_size(axis: str) -> int:
    """Size of ``axis`` in the mesh entered with ``jax.set_mesh``; 1 outside any mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its leading axis over every data-parallel mesh axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
