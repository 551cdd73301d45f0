"""Meshes and logical-axis rules: where every parameter and activation lives."""

from videogen.parallel.distributed import on_host
from videogen.parallel.mesh import (
    AXES,
    batch_axes,
    batch_sharding,
    make_mesh,
    mesh_axis_size,
    on_mesh,
    parse_mesh,
    target_platform,
)
from videogen.parallel.rules import GRID_AXES, RULES, activation_spec, constrain, parameter_spec, shardings
from videogen.parallel.spread import inside, mesh_of, padded, spread

__all__ = [
    "AXES",
    "GRID_AXES",
    "RULES",
    "activation_spec",
    "batch_axes",
    "batch_sharding",
    "constrain",
    "inside",
    "make_mesh",
    "mesh_axis_size",
    "mesh_of",
    "on_host",
    "on_mesh",
    "padded",
    "parameter_spec",
    "parse_mesh",
    "shardings",
    "spread",
    "target_platform",
]
