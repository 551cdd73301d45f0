"""Meshes and logical-axis rules: where every parameter and activation lives."""

from videogen.parallel.distributed import on_host
from videogen.parallel.mesh import AXES, batch_axes, batch_sharding, make_mesh, mesh_axis_size, on_mesh, target_platform
from videogen.parallel.rules import GRID_AXES, RULES, activation_spec, constrain, parameter_spec, shardings

__all__ = [
    "AXES",
    "GRID_AXES",
    "RULES",
    "activation_spec",
    "batch_axes",
    "batch_sharding",
    "constrain",
    "make_mesh",
    "mesh_axis_size",
    "on_host",
    "on_mesh",
    "parameter_spec",
    "shardings",
    "target_platform",
]
